package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A job is one measurement; it prints its lines.
type job struct {
	name    string
	measure func(*space) error
}

var jobs = []job{
	{"empty", planEmpty},
	{"drift", driftQuiet},
	{"foreign", planForeign},
	{"translate", planTranslate},
	{"accepts", applyAccepts},
	{"six", sixTasks},
	{"impact", planImpact},
	{"native", planNative},
	{"elements", planElements},
	{"nativeimpact", planNativeImpact},
	{"status", statusFull},
	{"verify", verifyFull},
	{"carry", carryOver},
	{"curve", curve},
}

// saves is what reading a host's rules costs by itself.
func (s *space) saves() error {
	if err := s.run("iptables-save"); err != nil {
		return err
	}
	return s.run("ip6tables-save")
}

// planEmpty plans on a host without rules that is as declared.
func planEmpty(s *space) error {
	path, err := s.apply(`conntrack "none" { mode = "disabled" }` + "\n")
	if err != nil {
		return err
	}
	c := compared{
		ctplan:    func() error { return s.run(s.bin, "plan", path) },
		reference: s.saves,
		runs:      31,
	}
	if err := c.atMost("plan, no rules : two saves", s.backend, 4); err != nil {
		return err
	}
	return s.extras("plan, no rules", "plan", path)
}

const webUntracked = `
conntrack "web" {
  mode = "notrack"

  notrack "web" {
    protocol   = "tcp"
    local_port = 443
  }

  accept "web" {
    protocol   = "tcp"
    local_port = 443
    initiator  = "remote"
  }
}
`

// planForeign plans with nothing to change on a host that has 10,000 rules of
// somebody else's: all in one family, where nothing can be read in parallel,
// and in both.
func planForeign(s *space) error {
	const rules = 10_000
	for _, split := range []struct {
		what   string
		v4, v6 int
	}{{"plan, 10,000 v4 rules", rules, 0}, {"plan, 5,000 v4 + 5,000 v6", rules / 2, rules / 2}} {
		if _, err := s.exec(foreign(split.v4, "10.%d.%d.%d/32"), "iptables-restore"); err != nil {
			return err
		}
		if _, err := s.exec(foreign(split.v6, "fd00:%x:%x::%x/128"), "ip6tables-restore"); err != nil {
			return err
		}
		path, err := s.apply(webUntracked)
		if err != nil {
			return err
		}
		c := compared{
			ctplan:    func() error { return s.run(s.bin, "plan", path) },
			reference: s.saves,
			runs:      21,
		}
		if err := c.atMost(split.what+" : two saves", s.backend, 1.25); err != nil {
			return err
		}
		if err := s.extras(split.what, "plan", path); err != nil {
			return err
		}
	}
	return nil
}

// A kind of foreign rule: what it says for the ith of them from an address.
var foreignKinds = []string{
	`-A INPUT -s %[1]s -p tcp -m tcp --dport %[2]d -m comment --comment "tenant %[2]d: api" -j ACCEPT`,
	`-A INPUT -s %[1]s -i eth0 -p tcp -m multiport --dports 80,443,%[2]d -j ACCEPT`,
	`-A INPUT -s %[1]s -j DROP`,
	`-A FORWARD -d %[1]s -i eth1 -o eth0 -p udp -m udp --dport %[2]d:65535 -j ACCEPT`,
	`-A CUSTOMERS -s %[1]s -p tcp -m tcp --dport %[2]d --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 25/sec -m comment --comment "no more than it paid for" -j ACCEPT`,
}

// foreign is a filter table with n rules of the kinds that firewalls are made
// of. None needs connection tracking.
func foreign(n int, address string) string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:CUSTOMERS - [0:0]\n")
	for i := range n {
		from := fmt.Sprintf(address, i>>16, i>>8&0xff, i&0xff)
		fmt.Fprintf(&b, foreignKinds[i%len(foreignKinds)]+"\n", from, 1024+i)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// applyAccepts applies 1,000 accepts, TCP and UDP in turns, a rule in and a rule
// out for each, against the commands that cannot be done without, for each family
// that is changed: save; the rehearsal, restore there and save, restore back and
// save; restore, save.
func applyAccepts(s *space) error {
	for _, scope := range []struct {
		what, hcl string
		tools     []string
	}{
		{"apply, 1,000 accepts", "", []string{"iptables", "ip6tables"}},
		{"apply, 1,000 accepts, IPv4 alone", "  families = [\"ipv4\"]\n", []string{"iptables"}},
	} {
		if err := s.applyAccepts(scope.what, scope.hcl, scope.tools); err != nil {
			return err
		}
	}
	return nil
}

func (s *space) applyAccepts(what, attribute string, tools []string) error {
	var hcl strings.Builder
	hcl.WriteString("conntrack \"x\" {\n  mode = \"notrack\"\n" + attribute + "  notrack \"all\" {}\n")
	for i := range 1000 {
		protocol := []string{"tcp", "udp"}[i%2]
		fmt.Fprintf(&hcl, "  accept \"service-%d\" {\n    protocol   = %q\n    local_port = %d\n  }\n", i, protocol, 1024+i)
	}
	hcl.WriteString("}\n")
	const bare = "*filter\nCOMMIT\n*raw\nCOMMIT\n"
	reset := func() error {
		if err := os.RemoveAll("/var/lib/ctplan"); err != nil {
			return err
		}
		for _, tool := range []string{"iptables", "ip6tables"} {
			if _, err := s.exec(bare, tool+"-restore"); err != nil {
				return err
			}
		}
		return nil
	}
	if err := reset(); err != nil {
		return err
	}
	// What ctplan makes of it is what the reference restores.
	path, err := s.apply(hcl.String())
	if err != nil {
		return err
	}
	scripts := map[string]string{}
	for _, tool := range tools {
		if scripts[tool], err = s.exec("", tool+"-save"); err != nil {
			return err
		}
	}
	c := compared{
		reset:  reset,
		ctplan: func() error { return s.run(s.bin, "apply", "--auto-approve", path) },
		reference: func() error {
			for _, tool := range tools {
				if err := s.run(tool + "-save"); err != nil {
					return err
				}
				for _, script := range []string{scripts[tool], bare, scripts[tool]} {
					if _, err := s.exec(script, tool+"-restore"); err != nil {
						return err
					}
					if err := s.run(tool + "-save"); err != nil {
						return err
					}
				}
			}
			return nil
		},
		runs: 15,
	}
	if err := c.atMost(what+fmt.Sprintf(" : %d commands", 7*len(tools)), s.backend, 1.5); err != nil {
		return err
	}
	if err := reset(); err != nil {
		return err
	}
	return s.extras(what, "apply", "--auto-approve", path)
}

// extras prints a run's memory and the commands that it starts. The memory is
// measured first, for a run that changes something.
func (s *space) extras(what string, args ...string) error {
	bytes, err := s.peak(args...)
	if err != nil {
		return err
	}
	note(what+": memory", s.backend, fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)))
	if args[0] != "plan" {
		return nil
	}
	names, err := s.children(args...)
	if err != nil || names == "" {
		return err
	}
	note(what+": runs", s.backend, "  "+names)
	return nil
}

// The same six tasks in three languages: two rules, a sysctl line away, a
// modprobe line, an array and a list of modules. ferm can do the rules alone.
const (
	sixHCL = `
conntrack "web" {
  mode     = "disabled"
  families = ["ipv4"]

  accept "web" {
    protocol   = "tcp"
    local_port = 443
  }
}
`
	sixFerm = `
domain ip table filter {
	chain INPUT proto tcp dport 443 ACCEPT;
	chain OUTPUT proto tcp sport 443 ACCEPT;
}
`
	sixPlaybook = `
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.iptables: {chain: INPUT, protocol: tcp, destination_port: "443", jump: ACCEPT}
    - ansible.builtin.iptables: {chain: OUTPUT, protocol: tcp, source_port: "443", jump: ACCEPT}
    - ansible.builtin.lineinfile: {path: /etc/sysctl.conf, regexp: '^net\.netfilter\.nf_conntrack_', state: absent}
    - ansible.builtin.lineinfile: {path: /etc/modprobe.d/netfilter.conf, line: install nf_conntrack /bin/false, create: true}
    - ansible.builtin.lineinfile: {path: /etc/init.d/iptables, regexp: '^NF_MODULES_COMMON=', line: 'NF_MODULES_COMMON=(x_tables) # Used by netfilter v4 and v6'}
    - ansible.builtin.lineinfile: {path: /etc/sysconfig/iptables-config, regexp: '^IPTABLES_MODULES=', line: 'IPTABLES_MODULES=""'}
`
)

// sixTasks plans a change of six tasks, against the dry runs of others.
func sixTasks(s *space) error {
	files := map[string]string{
		"/etc/sysctl.conf":               "net.netfilter.nf_conntrack_max = 65536\n",
		"/etc/init.d/iptables":           "#!/bin/bash\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6\n",
		"/etc/sysconfig/iptables-config": "IPTABLES_MODULES=\"nf_conntrack_ftp\"\n",
		s.dir + "/ferm.conf":             sixFerm,
		s.dir + "/playbook.yml":          sixPlaybook,
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return err
		}
	}
	path, err := s.config(sixHCL)
	if err != nil {
		return err
	}
	plan := func() error { return s.run(s.bin, "plan", path) }
	for _, other := range []struct {
		command []string
		limit   float64
		runs    int
	}{
		{[]string{"ferm", "--noexec", s.dir + "/ferm.conf"}, 3, 15},
		{[]string{"ansible-playbook", "--check", "-i", "localhost,", s.dir + "/playbook.yml"}, 100, 3},
	} {
		name := other.command[0]
		what := "plan, six tasks : " + strings.Join(other.command[:2], " ")
		if _, err := exec.LookPath(name); err != nil {
			note(what, s.backend, name+" is not installed")
			continue
		}
		c := compared{
			ctplan:    plan,
			reference: func() error { return s.run(name, other.command[1:]...) },
			runs:      other.runs,
		}
		if err := c.fasterBy(what, s.backend, other.limit); err != nil {
			return err
		}
	}
	return nil
}
