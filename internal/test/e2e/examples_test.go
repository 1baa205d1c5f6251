package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// A hand is something that somebody does to a host behind ctplan's back.
type hand struct {
	does    string // in words
	script  string
	address string // what drift must name, and nothing else
	stays   string // a rule of the hand's that apply must leave; it is no business of ctplan's
}

const filter, raw = "iptables.ipv4.filter", "iptables.ipv4.raw"

// ruleHands tamper with rules that every notrack host has.
var ruleHands = []hand{
	{"deletes a rule", "iptables -t raw -D CTPLAN-OUTPUT 1", raw, ""},
	{"deletes an accept", "iptables -D CTPLAN-INPUT 2", filter, ""},
	{"inserts a rule ahead", "iptables -I CTPLAN-INPUT 1 -p tcp -j DROP", filter, ""},
	{"inserts a rule ahead of the jump", "iptables -I OUTPUT 1 -p tcp -j DROP", filter, "-A OUTPUT -p tcp -j DROP\n"},
	{"reorders rules", `rule=$(iptables-save -t filter | grep -m1 '^-A CTPLAN-INPUT' | sed 's/^-A //'); iptables -D CTPLAN-INPUT 1; iptables -A $rule`, filter, ""},
	{"deletes a jump", "iptables -t raw -D PREROUTING -j CTPLAN-PREROUTING", raw, ""},
	{"doubles a jump", "iptables -A INPUT -j CTPLAN-INPUT", filter, ""},
	{"flushes all IPv6 rules", "ip6tables -t raw -F; ip6tables -t raw -X", "iptables.ipv6.raw", ""},
	{"deletes a saved rule", "sed -i '0,/^-A CTPLAN-INPUT -p tcp/{//d}' /etc/iptables/rules.v4", "file./etc/iptables/rules.v4", ""},
}

// roles are the examples, each on a host that it is for.
var roles = []struct {
	example, host string
	furnish       func(h *host)
	initial       bool // sets what only the initial network namespace can
	hands         []hand
}{
	{"notrack", "api-1", debian, false, ruleHands},
	{"translate", "web-1", servesTCP, false, []hand{
		{"deletes a twin", `iptables-save | grep -m1 'ctplan .*nosyn: ' | sed 's/^-A/iptables -D/' | sh`, filter, ""},
		{"asks for the state again", `iptables -A INPUT -p tcp -m tcp --dport 8443 -m state --state NEW -j ACCEPT`, filter,
			`-A INPUT -p tcp -m tcp --dport 8443 --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment "ctplan syn: -m state --state NEW" -j ACCEPT` + "\n"},
		{"deletes a saved twin", `sed -i '0,/ctplan .*type3: /{/ctplan .*type3: /d}' /etc/iptables/rules.v4`, "file./etc/iptables/rules.v4", ""},
	}},
	{"ftp", "ftp-1", debian, false, ruleHands[:1]},
	{"fleet", "api-1", debian, false, ruleHands[:1]},
	{"fleet", "web-1", debian, false, nil},
	{"disabled", "web-1", redHat, false, []hand{
		{"restores the array", `sed -i 's/^NF_MODULES_COMMON=(x_tables)/NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack)/' /etc/rc.d/init.d/iptables`, "initscript./etc/init.d/iptables", ""},
		{"takes away the block on loading", `sed -i '/^install nf_conntrack /d' /etc/modprobe.d/netfilter.conf`, "file./etc/modprobe.d/netfilter.conf", ""},
		{"sets a sysctl at boot", `echo net.netfilter.nf_conntrack_max = 1000 >> /etc/sysctl.conf`, "file./etc/sysctl.conf", ""},
		{"loads a helper", `sed -i 's/^IPTABLES_MODULES=.*/IPTABLES_MODULES="nf_conntrack_ftp"/' /etc/sysconfig/iptables-config`, "file./etc/sysconfig/iptables-config", ""},
		{"loads the module at boot", `echo nf_conntrack >> /etc/modules-load.d/net.conf`, "file./etc/modules-load.d/net.conf", ""},
		{"matches on state again", `iptables -A INPUT -p udp -m state --state ESTABLISHED -j ACCEPT`, filter, ""},
		{"saves a rule on state", `sed -i 's/^-A INPUT -p icmp .*/&\n-A INPUT -p udp -m conntrack --ctstate NEW -j ACCEPT/' /etc/sysconfig/iptables`, "file./etc/sysconfig/iptables", ""},
		{"deletes an accept", "iptables -D CTPLAN-OUTPUT 1", filter, ""},
	}},
	{"tuned", "nat-1", redHat, true, []hand{
		{"changes a sysctl", "echo 300000 > /proc/sys/net/netfilter/nf_conntrack_max", "sysctl.net.netfilter.nf_conntrack_max", ""},
		{"changes a timeout", "echo 77 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "sysctl.net.netfilter.nf_conntrack_tcp_timeout_time_wait", ""},
		{"resizes the hash", "echo 65536 > /sys/module/nf_conntrack/parameters/hashsize", "sysfs.nf_conntrack.hashsize", ""},
		{"changes a sysctl for the next boot", "sed -i 's/524288/65536/' /etc/sysctl.conf", "file./etc/sysctl.conf", ""},
		{"changes a modprobe line", "sed -i 's/hashsize=131072/hashsize=4096/' /etc/modprobe.d/netfilter.conf", "file./etc/modprobe.d/netfilter.conf", ""},
		{"forgets to load the module", "rm /etc/modules-load.d/netfilter.conf", "file./etc/modules-load.d/netfilter.conf", ""},
		{"trims the array", `sed -i 's/^NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack)/NF_MODULES_COMMON=(x_tables)/' /etc/rc.d/init.d/iptables`, "initscript./etc/init.d/iptables", ""},
		{"empties the list of sysctls", `sed -i 's/^IPTABLES_SYSCTL_LOAD_LIST=.*/IPTABLES_SYSCTL_LOAD_LIST=""/' /etc/sysconfig/iptables-config`, "file./etc/sysconfig/iptables-config", ""},
	}},
	{"fleet", "nat-1", debian, true, nil},
}

// TestExamples applies each example on each backend: the plan from a snapshot
// is the plan on the host, a second plan is empty, and each hand that tampers
// is named by drift and mended by apply, with nothing else changed.
func TestExamples(t *testing.T) {
	for _, role := range roles {
		for _, backend := range backends {
			t.Run(strings.Join([]string{role.example, role.host, string(backend)}, "/"), func(t *testing.T) {
				if role.initial {
					const timeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"
					nstest.Machine(t, timeout+"established", timeout+"time_wait")
				}
				h := newHost(t, backend, role.host)
				h.initial = role.initial
				role.furnish(h)
				path := h.example(role.example)

				before := h.state()
				planned := h.ctplan(exitChanges, "plan", "--detailed-exitcode", path)
				h.ctplan(exitOK, "snapshot", "-o", "host.json", path)
				same(t, "plan differs from plan --snapshot", planned.stdout, h.ctplan(exitOK, "plan", "--snapshot", "host.json", path).stdout)
				same(t, "plan changed the host", before, h.state())

				h.ctplan(exitOK, "apply", "--auto-approve", path)
				again := h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
				if !strings.Contains(again.stdout, "no changes") {
					t.Errorf("a plan right after apply says:\n%s", again.stdout)
				}
				h.ctplan(exitOK, "drift", path)
				h.imports()
				for _, hand := range role.hands {
					t.Run(strings.ReplaceAll(hand.does, " ", "-"), func(t *testing.T) { h.tamper(t, hand, path) })
				}
			})
		}
	}
}

// imports shows that what import writes is valid, and leaves nothing to plan:
// the host is as example, mode and rules alike, declares it.
func (h *host) imports() {
	h.t.Helper()
	const copied = "/run/test/imported.hcl"
	got := h.ctplan(exitOK, "import")
	h.write(copied, got.stdout)
	h.ctplan(exitOK, "snapshot", "-o", "now.json")
	same(h.t, "import differs from import --snapshot", got.stdout, h.ctplan(exitOK, "import", "--snapshot", "now.json").stdout)
	h.ctplan(exitOK, "fmt", "--check", copied)
	h.ctplan(exitOK, "validate", copied)
	if again := h.ctplan(exitOK, "plan", "--detailed-exitcode", copied); !strings.Contains(again.stdout, "no changes") {
		h.t.Errorf("a plan for what was imported says:\n%s\n%s", again.stdout, got.stdout)
	}
	h.ctplan(exitOK, "drift", copied)
}

func (h *host) tamper(t *testing.T, hand hand, path string) {
	outer := h.t
	h.t = t
	defer func() { h.t = outer }()

	before := h.state()
	h.sh(hand.script)
	if h.state() == before {
		t.Fatalf("the hand that %s changed nothing", hand.does)
	}
	status, found := h.addresses(path)
	if status != exitChanges || !slices.Equal(found, []string{hand.address}) {
		t.Errorf("drift exits %d and names %q, want %d and %q alone", status, found, exitChanges, hand.address)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	after := h.state()
	if hand.stays != "" {
		if strings.Count(after, hand.stays) != 1 {
			t.Errorf("apply took away what is not its own: %s", hand.stays)
		}
		after = strings.Replace(after, hand.stays, "", 1)
		h.sh("iptables -D" + strings.TrimPrefix(strings.TrimSpace(hand.stays), "-A"))
	}
	same(t, "apply did not bring back what was there before the hand", before, after)
	h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
}

// debian makes the host one that loads its rules with iptables-persistent. Its
// rules do not match on the state of TCP, so notrack takes nothing away.
func debian(h *host) {
	h.t.Helper()
	if h.initial {
		return // its rules are the machine's
	}
	h.sh(`
		iptables -P INPUT DROP
		iptables -N LOGDROP
		iptables -A LOGDROP -m limit --limit 5/min -j LOG --log-prefix 'drop: "in" '
		iptables -A LOGDROP -j DROP
		iptables -A INPUT -i lo -j ACCEPT
		iptables -A INPUT -s 192.0.2.0/24 -m comment --comment "don't ask; it's -j NOTRACK" -j LOGDROP
		iptables -A INPUT -p udp -m state --state RELATED,ESTABLISHED -j ACCEPT
		iptables -A INPUT -p icmp -j ACCEPT
		iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
		ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
		mkdir -p /etc/iptables
		iptables-save > /etc/iptables/rules.v4
		ip6tables-save > /etc/iptables/rules.v6
		chmod 0640 /etc/iptables/rules.v4`)
}

// servesTCP is debian, with rules on the state of TCP.
func servesTCP(h *host) {
	h.t.Helper()
	debian(h)
	h.sh(`
		iptables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
		iptables -A INPUT -m conntrack --ctstate INVALID -j LOGDROP
		iptables -A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m comment --comment "log in" -j ACCEPT
		iptables-save > /etc/iptables/rules.v4`)
}

// redHat makes the host one that loads its rules with the init script of the
// Red Hat family.
func redHat(h *host) {
	h.t.Helper()
	h.sh(`mkdir -p /etc/rc.d/init.d /etc/sysconfig; ln -s ../rc.d/init.d/iptables /etc/init.d/iptables`)
	h.write("/etc/rc.d/init.d/iptables", `#!/bin/bash
#
# iptables	Start the firewall
#
# chkconfig: 2345 08 92
IPTABLES=iptables
IPV=ip

# Modules that stop unloads
NF_MODULES=($(lsmod | awk "/^${IPV}table_/ {print \$1}") ${IPV}_tables)
NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6

IPTABLES_MODULES=""
[ -f /etc/sysconfig/iptables-config ] && . /etc/sysconfig/iptables-config

stop() {
	for mod in ${NF_MODULES[*]}; do
		rmmod_r $mod
	done
}
`)
	h.write("/etc/sysconfig/iptables-config", `# Helpers to load after the rules
IPTABLES_MODULES="nf_conntrack_ftp"
IPTABLES_MODULES_UNLOAD="yes"
IPTABLES_SYSCTL_LOAD_LIST=""
`)
	h.write("/etc/modules-load.d/net.conf", "# for the bridge\nbr_netfilter\n")
	h.sh(`chmod 0755 /etc/rc.d/init.d/iptables; chmod 0600 /etc/sysconfig/iptables-config
		printf 'net.netfilter.nf_conntrack_max=65536 \n# end\n' >> /etc/sysctl.conf`)
	if h.initial {
		return // its rules are the machine's
	}
	h.sh(`
		iptables -P INPUT DROP
		iptables -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
		iptables -A INPUT -p icmp -j ACCEPT
		iptables -A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
		iptables-save > /etc/sysconfig/iptables
		ip6tables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
		ip6tables-save > /etc/sysconfig/ip6tables
		chmod 0600 /etc/sysconfig/ip*tables`)
}
