package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

func notrackTCP(policy declared.StatefulPolicy) declared.Desired {
	d := declared.Desired{
		Block: "api", Mode: declared.Notrack, ModeSource: declared.Pos{File: "api.hcl", Line: 2}, Source: declared.Pos{File: "api.hcl", Line: 1},
		Families: []host.Family{host.IPv4}, StatefulRules: policy,
	}
	for _, hook := range []string{"PREROUTING", "OUTPUT"} {
		d.Chains = append(d.Chains, chain("raw", hook, "-p tcp -j CT --notrack"))
	}
	d.Chains = append(d.Chains, chain("filter", "INPUT", "-p tcp -m tcp --dport 22 -j ACCEPT"))
	return d
}

func chain(table, hook string, rules ...string) declared.Chain {
	c := declared.Chain{Family: host.IPv4, Table: table, Hook: hook, Name: declared.OwnPrefix + hook}
	for i, text := range rules {
		c.Rules = append(c.Rules, declared.TargetRule{Rule: host.Rule{Chain: c.Name, Words: strings.Fields(text), Text: text}, Source: declared.Pos{File: "api.hcl", Line: 10 + i}})
	}
	return c
}

const filterHead = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:user -\n"

func TestStatefulRules(t *testing.T) {
	tests := []struct {
		name, rule     string
		blocked, stays bool
	}{
		{"all protocols: part of it stays tracked", "-A INPUT -m state --state ESTABLISHED -j ACCEPT", true, true},
		{"tcp alone: it would never match again", "-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT", true, false},
		{"udp stays tracked", "-A INPUT -p udp -m state --state ESTABLISHED -j ACCEPT", false, true},
		{"untracked packets match", "-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT", false, true},
		{"no state at all", "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", false, true},
		{"in a user's chain, which both hooks may reach", "-A user -p tcp -m conntrack --ctstate NEW -j DROP", true, false},
		{"a state match that a comment talks about", "-A INPUT -p tcp -m comment --comment state -j ACCEPT", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live := testHost(parseLines(t, host.IPv4, filterHead+tt.rule+"\nCOMMIT\n"))
			p := Diff(notrackTCP(declared.RefuseStateful), live)
			if p.Blocked() != tt.blocked {
				t.Errorf("refuse: blocked is %v: %+v", p.Blocked(), p.Blocks)
			}
			if tt.blocked {
				if b := p.Blocks[0]; b.Where != tt.rule || b.Risk != declared.RiskStatefulRules || b.Remedy == "" || b.Source != (declared.Pos{File: "api.hcl", Line: 1}) {
					t.Errorf("the block does not name the rule: %+v", b)
				}
			}
			p = Diff(notrackTCP(declared.RemoveStateful), live)
			k := newKernel(live.Rulesets[0])
			for _, s := range rulesSections(p) {
				k.run(t, s)
			}
			if p.Blocked() || strings.Contains(k.text(), tt.rule) != tt.stays {
				t.Errorf("remove: blocked %v, the rule stays %v\n%s", p.Blocked(), !tt.stays, k.text())
			}
			allowed := notrackTCP(declared.RefuseStateful)
			allowed.AllowRisk = []declared.Risk{declared.RiskStatefulRules}
			accepted := func(w change.Warning) bool { return strings.Contains(w.Text, "allow_risk accepts stateful_rules") }
			if p = Diff(allowed, live); p.Blocked() || tt.blocked != slices.ContainsFunc(p.Warnings, accepted) {
				t.Errorf("allow_risk: %+v %+v", p.Blocks, p.Warnings)
			}
		})
	}
}

func TestNAT(t *testing.T) {
	nat := "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n"
	tests := []struct {
		name, rule        string
		notrack, disabled bool
		why               string
	}{
		{"masquerading everything", "-A POSTROUTING -o eth0 -j MASQUERADE", true, true, ""},
		{"another protocol", "-A PREROUTING -p udp -m udp --dport 53 -j REDIRECT", false, true, ""},
		{"docker's", "-A DOCKER -p tcp -m tcp --dport 80 -j DNAT", true, true, "made by docker"},
		{"a jump translates nothing, but keeps the table", "-A PREROUTING -j DOCKER", false, true, "made by docker"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			live := testHost(parseLines(t, host.IPv4, nat+tt.rule+"\nCOMMIT\n"))
			p := Diff(notrackTCP(declared.RefuseStateful), live)
			if p.Blocked() != tt.notrack {
				t.Errorf("notrack: blocked is %v: %+v", p.Blocked(), p.Blocks)
			}
			d := declared.Desired{Mode: declared.Disabled, Families: []host.Family{host.IPv4}, StatefulRules: declared.RefuseStateful, ModeSource: declared.Pos{File: "a.hcl", Line: 1}}
			p = Diff(d, live)
			if p.Blocked() != tt.disabled || tt.disabled && (p.Blocks[0].Risk != declared.RiskNAT || !strings.Contains(p.Blocks[0].Why, tt.why)) {
				t.Errorf("disabled: %+v", p.Blocks)
			}
			d.AllowRisk = []declared.Risk{declared.RiskNAT}
			p = Diff(d, live)
			k := newKernel(live.Rulesets[0])
			for _, s := range rulesSections(p) {
				k.run(t, s)
			}
			if p.Blocked() || strings.Contains(k.text(), tt.rule) {
				t.Errorf("disabled with the risk accepted: blocked %v\n%s", p.Blocked(), k.text())
			}
		})
	}
}

func TestManyRulesAreCounted(t *testing.T) {
	live := testHost(parseLines(t, host.IPv4, filterHead+strings.Repeat("-A INPUT -p tcp -m state --state NEW -j ACCEPT\n", 25)+"COMMIT\n"))
	p := Diff(notrackTCP(declared.RefuseStateful), live)
	if len(p.Blocks) != change.MaxNamed+1 || p.Blocks[change.MaxNamed].Where != "and 15 more rules like these" {
		t.Errorf("got %d reasons, the last %+v", len(p.Blocks), p.Blocks[len(p.Blocks)-1])
	}
}

func TestSavedStateRuleIsNamedByLine(t *testing.T) {
	content := "# mine\n" + filterHead + "-A INPUT -p tcp -m state --state NEW -j ACCEPT\nCOMMIT\n"
	saved := parseLines(t, host.IPv4, content)
	saved.Primary, saved.File = false, &host.File{Path: "/etc/sysconfig/iptables", Exists: true, Content: content}
	live := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
	live.SavedRules = []host.Ruleset{saved}
	p := Diff(notrackTCP(declared.RefuseStateful), live)
	if len(p.Blocks) != 1 || !strings.HasPrefix(p.Blocks[0].Where, "/etc/sysconfig/iptables:7: -A INPUT") {
		t.Errorf("got %+v", p.Blocks)
	}

	saved.Tables, saved.Refusal, saved.RefusalLine = nil, "unknown command", 3
	live.SavedRules = []host.Ruleset{saved}
	p = Diff(notrackTCP(declared.RefuseStateful), live)
	if len(p.Blocks) != 1 || p.Blocks[0].Where != "/etc/sysconfig/iptables:3" || p.Blocks[0].Risk != declared.RiskSavedRules {
		t.Errorf("got %+v", p.Blocks)
	}
}

// Where the jump to ctplan's chain stands decides who is locked out.
func TestJump(t *testing.T) {
	tests := []struct{ name, before, after string }{
		{
			"an empty chain", "", "-j CTPLAN-INPUT",
		},
		{
			"where the first rule on state stood",
			"-s 192.0.2.0/24 -j DROP|-p tcp -m state --state NEW -j ACCEPT|-j REJECT",
			"-s 192.0.2.0/24 -j DROP|-j CTPLAN-INPUT|-j REJECT",
		},
		{
			"never behind what drops everything",
			"-j DROP|-p tcp -m state --state NEW -j ACCEPT",
			"-j CTPLAN-INPUT|-j DROP",
		},
		{
			"never behind what drops all that one rule lets through",
			"-p tcp -m tcp --dport 1:1024 -j DROP|-p tcp -m state --state NEW -j ACCEPT",
			"-j CTPLAN-INPUT|-p tcp -m tcp --dport 1:1024 -j DROP",
		},
		{
			"a blocklist put ahead by hand may stay",
			"-s 192.0.2.9/32 -j DROP|-p tcp -m multiport --dports 22 -j f2b|-j CTPLAN-INPUT|-j DROP",
			"-s 192.0.2.9/32 -j DROP|-p tcp -m multiport --dports 22 -j f2b|-j CTPLAN-INPUT|-j DROP",
		},
		{
			"a drop put ahead by hand may not",
			"-s 192.0.2.9/32 -j DROP|-p tcp -j DROP|-j CTPLAN-INPUT",
			"-j CTPLAN-INPUT|-s 192.0.2.9/32 -j DROP|-p tcp -j DROP",
		},
		{
			"nor a jump into a chain that drops it",
			"-j shut|-j CTPLAN-INPUT",
			"-j CTPLAN-INPUT|-j shut",
		},
		{
			"nor a goto",
			"-g f2b|-j CTPLAN-INPUT",
			"-j CTPLAN-INPUT|-g f2b",
		},
		{
			"one jump is enough, and it has no conditions",
			"-p tcp -j CTPLAN-INPUT|-j CTPLAN-INPUT|-j CTPLAN-INPUT|-p udp -j ACCEPT",
			"-j CTPLAN-INPUT|-p udp -j ACCEPT",
		},
		{
			"a second jump goes, the first stays where it is",
			"-s 192.0.2.9/32 -j DROP|-j CTPLAN-INPUT|-p udp -j ACCEPT|-p tcp -j CTPLAN-INPUT|-j CTPLAN-INPUT",
			"-s 192.0.2.9/32 -j DROP|-j CTPLAN-INPUT|-p udp -j ACCEPT",
		},
		{
			"an accept ahead takes nothing away",
			"-i lo -j ACCEPT|-p tcp -j ACCEPT|-j CTPLAN-INPUT|-j DROP",
			"-i lo -j ACCEPT|-p tcp -j ACCEPT|-j CTPLAN-INPUT|-j DROP",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:f2b -\n:shut -\n:CTPLAN-INPUT -\n"
			if tt.before != "" {
				for r := range strings.SplitSeq(tt.before, "|") {
					text += "-A INPUT " + r + "\n"
				}
			}
			text += "-A f2b -s 192.0.2.7/32 -j REJECT\n-A f2b -j RETURN\n-A shut -p tcp -j DROP\n-A CTPLAN-INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
			for _, saved := range []bool{false, true} {
				r := parseLines(t, host.IPv4, text)
				var rules []string
				if saved {
					r.Primary, r.File = false, &host.File{Path: "/rules", Exists: true, Content: text}
					live := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
					live.SavedRules = []host.Ruleset{r}
					content := text
					for _, c := range Diff(notrackTCP(declared.RemoveStateful), live).Changes {
						if f, ok := c.(*change.FileChange); ok {
							content = f.After.Content
						}
					}
					after := parseLines(t, host.IPv4, content)
					rules = newKernel(after).table("filter").Rules("INPUT")
				} else {
					k := newKernel(r)
					for _, s := range rulesSections(Diff(notrackTCP(declared.RemoveStateful), testHost(r))) {
						k.run(t, s)
					}
					rules = k.table("filter").Rules("INPUT")
				}
				if got := strings.Join(rules, "|"); got != tt.after {
					t.Errorf("saved %v: got  %s\nwant %s", saved, got, tt.after)
				}
			}
		})
	}
}

func TestOtherBackend(t *testing.T) {
	own := "*filter\n:INPUT ACCEPT\n:CTPLAN-INPUT -\n-A INPUT -j CTPLAN-INPUT\n-A INPUT -p tcp -m state --state NEW -j ACCEPT\n-A CTPLAN-INPUT -j ACCEPT\nCOMMIT\n"
	live := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
	legacy := parseLines(t, host.IPv4, own)
	legacy.Backend, legacy.Primary = host.Legacy, false
	live.Rulesets = append(live.Rulesets, legacy)
	p := Diff(notrackTCP(declared.RemoveStateful), live)
	k := newKernel(legacy)
	found := false
	for _, s := range Steps(p) {
		if s.Rules != nil && s.Rules.Backend == host.Legacy {
			found = true
			for _, sec := range s.Rules.Sections {
				k.run(t, sec)
			}
		}
	}
	if text := k.text(); !found || strings.Contains(text, "-A") {
		t.Errorf("what stands in the other backend stays:\n%s", text)
	}
}

func TestUnmanaged(t *testing.T) {
	r := parseLines(t, host.IPv4, "*filter\n:INPUT ACCEPT\n:CTPLAN-INPUT -\n:CTPLAN-$(reboot) -\n-A INPUT -j CTPLAN-INPUT\nCOMMIT\n")
	p := Diff(declared.Desired{}, testHost(r))
	if !p.Empty() || len(p.Warnings) != 2 {
		t.Fatalf("got %+v", p)
	}
	want := []string{"iptables -t filter -D INPUT -j CTPLAN-INPUT", "iptables -t filter -F CTPLAN-INPUT", "iptables -t filter -X CTPLAN-INPUT"}
	if !slices.Equal(p.Warnings[1].Commands, want) {
		t.Errorf("got %q", p.Warnings[1].Commands)
	}
}

// TestNoSavedFile is of hosts without a saved rules file: what becomes of rules at
// a reboot, by what brings that host's own rules back.
func TestNoSavedFile(t *testing.T) {
	from := func(r ...host.Restorer) []host.Restorer { return r }
	for _, tt := range []struct {
		name   string
		boot   *host.Boot
		os     []string
		want   string
		saveTo string
	}{
		{"a host of which nothing is known", nil, nil, "whether the ipv4 rules will survive a reboot is not known: there is no saved rules file, and how this host boots could not be told", ""},
		{"nftables", &host.Boot{Services: []string{"nftables"}}, nil, "nor a restart or reload of nftables,", ""},
		{"firewalld", &host.Boot{Services: []string{"firewalld"}}, nil, "nor a restart or reload of firewalld,", ""},
		{"shorewall", &host.Boot{Services: []string{"shorewall"}}, nil, "nor a restart or reload of shorewall, which keeps this host's rules", ""},
		{"ufw", &host.Boot{Services: []string{"ufw"}}, []string{"debian"}, "the ipv4 rules will not survive a reboot: ufw keeps this host's rules, and none of ctplan's", ""},
		{"netfilter-persistent with no file", &host.Boot{Services: []string{"netfilter-persistent", "nftables"}}, []string{"debian"}, "netfilter-persistent is enabled, and the file that it restores, /etc/iptables/rules.v4, does not exist", "/etc/iptables/rules.v4"},
		{"iptables-services with no file", &host.Boot{Services: []string{"iptables"}}, []string{"rhel"}, "iptables is enabled, and the file that it restores, /etc/sysconfig/iptables, does not exist", "/etc/sysconfig/iptables"},
		{"Alpine with no file", &host.Boot{Init: host.InitOpenRC, Services: []string{"iptables"}}, []string{"alpine"}, "/etc/iptables/rules-save, does not exist", "/etc/iptables/rules-save"},
		{"Gentoo with no file", &host.Boot{Init: host.InitOpenRC, Services: []string{"iptables"}}, []string{"gentoo"}, "/var/lib/iptables/rules-save, does not exist", "/var/lib/iptables/rules-save"},
		{"Arch with no file", &host.Boot{Services: []string{"iptables"}, Restorers: from(host.Restorer{By: "iptables.service", At: "/usr/lib/systemd/system/iptables.service:9", Does: host.DoRestore, Family: host.IPv4, File: "/etc/iptables/iptables.rules"})}, []string{"arch"},
			"the file that /usr/lib/systemd/system/iptables.service:9 restores, /etc/iptables/iptables.rules, does not exist", "/etc/iptables/iptables.rules"},
		{"a script that makes rules", &host.Boot{Restorers: from(host.Restorer{By: "/etc/rc.local", At: "/etc/rc.local:3", Does: host.DoMake, Family: host.IPv4})}, []string{"debian"}, "the ipv4 rules will not survive a reboot: /etc/rc.local:3 makes rules", ""},
		{"a script that makes rules of IPv6", &host.Boot{Restorers: from(host.Restorer{By: "/etc/rc.local", At: "/etc/rc.local:3", Does: host.DoMake, Family: host.IPv6})}, nil, "there is no saved rules file, and nothing was found that restores one", ""},
		{"a script that cannot be followed", &host.Boot{Restorers: from(host.Restorer{By: "fw.service", At: "/usr/local/bin/fw.py:7", Does: host.DoUnknown})}, nil, "is not known: there is no saved rules file, and /usr/local/bin/fw.py:7 names a program that changes rules", ""},
		{"a file that cannot be told", &host.Boot{Restorers: from(host.Restorer{By: "fw.service", At: "/etc/fw.sh:2", Does: host.DoRestore, Family: host.IPv4})}, nil, "/etc/fw.sh:2 restores one that cannot be told from there: name it by files { rules_v4 = … }", ""},
		{"nothing, Debian", &host.Boot{}, []string{"ubuntu", "debian"}, "nothing was found that restores one. Install netfilter-persistent", "/etc/iptables/rules.v4"},
		{"nothing, Red Hat", &host.Boot{}, []string{"rocky", "rhel", "centos", "fedora"}, "nothing was found that restores one. Install and enable iptables-services", "/etc/sysconfig/iptables"},
		{"nothing, another", &host.Boot{}, []string{"void"}, "the ipv4 rules will not survive a reboot: there is no saved rules file, and nothing was found that restores one", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
			if l.Boot, l.Host.OS = tt.boot, tt.os; tt.boot != nil && tt.boot.Init == "" {
				tt.boot.Init = host.InitSystemd
			}
			p := Diff(notrackTCP(declared.RefuseStateful), l)
			i := slices.IndexFunc(p.Warnings, func(w change.Warning) bool { return strings.Contains(w.Text, tt.want) })
			if i < 0 {
				t.Fatalf("got %+v", p.Warnings)
			}
			want := []string(nil)
			if tt.saveTo != "" {
				want = []string{"iptables-save > " + tt.saveTo}
			}
			if !slices.Equal(p.Warnings[i].Commands, want) {
				t.Errorf("commands %q, want %q", p.Warnings[i].Commands, want)
			}
		})
	}
}
