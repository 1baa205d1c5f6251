package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
)

// tracked is a connection as the table has it, "proto src:port dst:port",
// answered; after "as" stands where it is translated to.
func tracked(t *testing.T, text string) host.Flow {
	t.Helper()
	w := strings.Fields(text)
	proto, _ := protocol.Number(w[0])
	a, b := netip.MustParseAddrPort(w[1]), netip.MustParseAddrPort(w[2])
	f := host.Flow{Protocol: proto, Status: host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed}
	f.Orig = host.Tuple{Src: a.Addr(), Dst: b.Addr(), SrcPort: a.Port(), DstPort: b.Port()}
	if len(w) == 4 {
		b = netip.MustParseAddrPort(w[3])
	}
	f.Reply = host.Tuple{Src: b.Addr(), Dst: a.Addr(), SrcPort: b.Port(), DstPort: a.Port()}
	if proto == protocol.TCP {
		f.TCPState = 3
	}
	return f
}

// impactPlan plans for a host with eth0 10.0.0.1/24 and eth1 10.0.1.1/24.
func impactPlan(t *testing.T, d declared.Desired, rules string, c host.Connections) Plan {
	t.Helper()
	c.Total = int64(len(c.Flows))
	c.Addresses = []host.Address{{Interface: "lo", Prefix: netip.MustParsePrefix("127.0.0.1/8")}, {Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}, {Interface: "eth1", Prefix: netip.MustParsePrefix("10.0.1.1/24")}}
	c.Routes = []host.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("10.0.0.0/24"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("10.0.1.0/24"), Interface: "eth1"}}
	l := testHost(parseLines(t, host.IPv4, rules))
	l.Connections = &c
	return Diff(d, l)
}

// untrackTCP declares all TCP untracked, and accepts as rules of INPUT and OUTPUT.
func untrackTCP(accepts map[string][]string) declared.Desired {
	d := declared.Desired{Block: "t", Source: declared.Pos{File: "t.hcl", Line: 1}, ModeSource: declared.Pos{File: "t.hcl", Line: 2}, Mode: declared.Notrack, Families: []host.Family{host.IPv4}, StatefulRules: declared.RemoveStateful}
	add := func(table, hook string, rules ...string) {
		ch := declared.Chain{Family: host.IPv4, Table: table, Hook: hook, Name: declared.OwnPrefix + hook}
		for i, r := range rules {
			ch.Rules = append(ch.Rules, declared.TargetRule{Rule: host.Rule{Chain: ch.Name, Words: strings.Fields(r), Text: r}, Source: declared.Pos{File: "t.hcl", Line: 10 + i}})
		}
		if len(ch.Rules) > 0 {
			d.Chains = append(d.Chains, ch)
		}
	}
	for _, hook := range []string{"INPUT", "OUTPUT", "FORWARD"} {
		add("filter", hook, accepts[hook]...)
	}
	add("raw", "PREROUTING", "-p tcp -j CT --notrack")
	add("raw", "OUTPUT", "-p tcp -j CT --notrack")
	return d
}

const statefulInput = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -i eth0 -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\nCOMMIT\n"

func groupsOf(p Plan) []string {
	var out []string
	for _, g := range p.Impact.Groups {
		who := ""
		if g.Operator {
			who = " operator"
		}
		out = append(out, fmt.Sprintf("%s %s %d%s", g.Result, g.Service, g.Count, who))
	}
	return out
}

func TestImpact(t *testing.T) {
	ssh, web := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22"), tracked(t, "tcp 10.0.0.1:40000 54.1.1.1:443")
	nat := tracked(t, "tcp 10.0.0.9:5001 10.0.0.1:8080 10.0.1.5:80")
	dns, closed := tracked(t, "udp 10.0.0.1:40000 9.9.9.9:53"), ssh
	closed.TCPState = judge.TCPTimeWait
	operator := []host.Session{{Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:5000")}}
	for _, tt := range []struct {
		name    string
		accepts map[string][]string
		rules   string
		c       host.Connections
		want    []string
		risks   []declared.Risk
	}{
		{"all that is untracked is lost, the operator first", nil, statefulInput, host.Connections{Flows: []host.Flow{web, web, ssh, dns}, Operator: operator},
			[]string{"lost tcp/22 in 1 operator", "lost tcp/443 out 2", "kept udp/53 out 1"}, []declared.Risk{declared.RiskLostFlows, declared.RiskLostFlows}},
		{"accepts keep it", map[string][]string{"INPUT": {"-p tcp -m tcp --dport 22 -j ACCEPT", "-p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"}}, statefulInput,
			host.Connections{Flows: []host.Flow{web, ssh}}, []string{"kept tcp/22 in 1", "kept tcp/443 out 1"}, nil},
		{"what is over does not count", nil, statefulInput, host.Connections{Flows: []host.Flow{closed}}, nil, nil},
		{"translated and untracked goes nowhere", map[string][]string{"FORWARD": {"-j ACCEPT"}}, statefulInput, host.Connections{Flows: []host.Flow{nat}}, []string{"lost tcp/80 forward 1"}, []declared.Risk{declared.RiskLostFlows}},
		{"a rate makes it unknown", nil, strings.Replace(statefulInput, "COMMIT", "-A INPUT -p tcp -m limit --limit 5/sec -j ACCEPT\nCOMMIT", 1), host.Connections{Flows: []host.Flow{ssh}}, []string{"unknown tcp/22 in 1"}, nil},
		{"sockets count where nothing is tracked", nil, strings.Replace(statefulInput, "COMMIT", "-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT", 1),
			host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: operator[0].Local, Remote: operator[0].Remote}, {Protocol: protocol.TCP, Local: netip.MustParseAddrPort("0.0.0.0:22"), Listening: true}}},
			[]string{"lost tcp/22 in 1"}, []declared.Risk{declared.RiskLostFlows, declared.RiskLostServices, declared.RiskLostServices}},
		{"a tracked socket counts once", nil, statefulInput, host.Connections{Flows: []host.Flow{ssh}, Sockets: []host.Socket{{Protocol: protocol.TCP, Local: operator[0].Local, Remote: operator[0].Remote}}},
			[]string{"lost tcp/22 in 1"}, []declared.Risk{declared.RiskLostFlows}},
		{"a socket whose connection is translated as it goes out counts once", nil, statefulInput, host.Connections{Flows: []host.Flow{tracked(t, "tcp 10.0.0.1:40000 10.96.0.1:443 10.0.1.5:6443")},
			Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.96.0.1:443")}}},
			[]string{"lost tcp/6443 out 1"}, []declared.Risk{declared.RiskLostFlows}},
		{"a listening service that some strangers reach", nil, strings.Replace(statefulInput, "-A INPUT -m state", "-A INPUT -p tcp -m connlimit --connlimit-above 9 --connlimit-mask 32 --connlimit-saddr -j DROP\n-A INPUT -m state", 1), host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("10.0.0.1:22"), Listening: true}}},
			nil, []declared.Risk{declared.RiskConnectionLimits, declared.RiskLostServices}},
		{"a listening service that strangers reach", nil, statefulInput, host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("10.0.0.1:22"), Listening: true}}},
			nil, []declared.Risk{declared.RiskLostServices}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := impactPlan(t, untrackTCP(tt.accepts), tt.rules, tt.c)
			if got := groupsOf(p); !slices.Equal(got, tt.want) {
				t.Errorf("groups %q, want %q\n%+v", got, tt.want, p.Impact)
			}
			var risks []declared.Risk
			for _, b := range p.Blocks {
				risks = append(risks, b.Risk)
			}
			if !slices.Equal(risks, tt.risks) {
				t.Errorf("blocked by %q, want %q", risks, tt.risks)
			}
		})
	}
}

// TestImpactStages: each commit on the way is judged, not the end alone.
func TestImpactStages(t *testing.T) {
	// A plan whose second commit undoes what its first one breaks.
	l := testHost(parseLines(t, host.IPv4, "*filter\n:INPUT ACCEPT\nCOMMIT\n"))
	l.Connections = &host.Connections{Flows: []host.Flow{tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22")}, Addresses: []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}}}
	changes := []change.Change{
		&change.RulesChange{Family: host.IPv4, Backend: host.NFT, Table: "filter", Open: []change.RuleOp{{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j DROP"}}, Close: []change.RuleOp{{Kind: change.DeleteRule, Chain: "INPUT", Pos: 1, Rule: "-j DROP"}}},
		&change.RulesChange{Family: host.IPv4, Backend: host.NFT, Table: "raw", Open: []change.RuleOp{{Kind: change.SetChain, Chain: "CTPLAN-PREROUTING"}}},
	}
	d := untrackTCP(nil)
	total, _ := impact.Of(d, l, judge.Kernel(d, l, change.StepsOf(changes), nil), nil)
	if g := total.Groups; len(g) != 1 || g[0].Result != impact.FlowLost || g[0].Stage != "iptables.ipv4.filter" || g[0].After != "-A INPUT -j DROP" {
		t.Errorf("%+v", g)
	}
}

func TestExposure(t *testing.T) {
	const open, shut = "-p tcp -m tcp --sport 443 -j ACCEPT", "-p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"
	for rule, want := range map[string]int{open: 2, shut: 0} { // port 22 is open on eth0 alone
		p := impactPlan(t, untrackTCP(map[string][]string{"INPUT": {rule}}), statefulInput, host.Connections{})
		if len(p.Impact.Exposed) != want {
			t.Errorf("%s: %+v", rule, p.Impact.Exposed)
		}
	}
	if p := impactPlan(t, untrackTCP(map[string][]string{"INPUT": {open}}), strings.Replace(statefulInput, "INPUT DROP", "INPUT ACCEPT", 1), host.Connections{}); len(p.Impact.Exposed) != 0 {
		t.Errorf("what is open already is exposed: %+v", p.Impact.Exposed)
	}
}

// TestExposedPorts: each port of an accept is tried, and those that are news
// are named.
func TestExposedPorts(t *testing.T) {
	const today = "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 8000:8005 -j ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
	for rule, want := range map[string]string{
		"-p tcp -m multiport --dports 22,3306 -j ACCEPT":                      "anybody may now reach tcp/3306 on this host",
		"-p tcp -m multiport --dports 22,3306,8000:8009,9000:9001 -j ACCEPT":  "anybody may now reach tcp/3306, 8006-8009 and 9000-9001 on this host",
		"-s 10.2.0.0/16 -p tcp -m tcp --dport 3306 -j ACCEPT":                 "10.2.0.0/16 may now reach tcp/3306 on this host",
		"-p tcp -m multiport --dports 22,8001:8002 -j ACCEPT":                 "",
		"-i eth1 -d 10.0.1.1/32 -p tcp -m multiport --sports 22,53 -j ACCEPT": `anybody may now reach every port of tcp but 22 and 8000-8005 from source port 22 and 53 on this host through eth1; initiator = "local" in the accept block keeps them out`,
		"-i eth0 -d 10.0.1.1/32 -p tcp -m multiport --sports 22,53 -j ACCEPT": `anybody may now reach every port of tcp but 22 and 8000-8005 from source port 22 and 53 on this host through eth0; initiator = "local" in the accept block keeps them out`, // the kernel answers for it there too
		"-p icmp -j ACCEPT": "anybody may now reach ping (icmp) on this host",
		"-p tcp -m tcp --dport 3306 ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT": "",
	} {
		p := impactPlan(t, untrackTCP(map[string][]string{"INPUT": {rule}}), today, host.Connections{})
		got := ""
		for _, x := range p.Impact.Exposed {
			got += x.What
		}
		if got != want {
			t.Errorf("%s: %q, want %q", rule, got, want)
		}
	}
}

// TestExposedRouted: what an accept newly lets through is named too.
func TestExposedRouted(t *testing.T) {
	const today = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m state --state ESTABLISHED -j ACCEPT\n-A FORWARD -i eth1 -o eth0 -j ACCEPT\nCOMMIT\n"
	for rule, want := range map[string]string{
		"-j ACCEPT": "anybody may now reach every port of tcp, every port of udp, ping (icmp) and every other protocol on hosts behind this one",
		"-p tcp -m multiport --dports 22,80 -j ACCEPT":          "anybody may now reach tcp/22 and 80 on hosts behind this one",
		"-s 198.51.100.0/24 -p udp -m udp --dport 53 -j ACCEPT": "198.51.100.0/24 may now reach udp/53 on hosts behind this one",
		"-s 10.0.1.0/24 -p tcp -j ACCEPT":                       "",
	} {
		p := impactPlan(t, untrackTCP(map[string][]string{"FORWARD": {rule}}), today, host.Connections{})
		got := ""
		for _, x := range p.Impact.Exposed {
			got += x.What
		}
		if got != want {
			t.Errorf("%s: %q, want %q", rule, got, want)
		}
	}
}

// TestStaleEntries: a connection that a rule keeps out of tracking, and whose
// entry from before is still there, may be INVALID when it is tracked again,
// unless tracking does not look at its window.
func TestStaleEntries(t *testing.T) {
	const today = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:CTPLAN-PREROUTING -\n:CTPLAN-OUTPUT -\n-A PREROUTING -j CTPLAN-PREROUTING\n-A OUTPUT -j CTPLAN-OUTPUT\n-A CTPLAN-PREROUTING -p tcp -j CT --notrack\n-A CTPLAN-OUTPUT -p tcp -j CT --notrack\nCOMMIT\n" +
		"*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -p tcp -m state --state NEW,ESTABLISHED,UNTRACKED -j ACCEPT\nCOMMIT\n"
	d := untrackTCP(nil)
	d.Chains, d.StatefulRules = nil, declared.RefuseStateful
	for liberal, want := range map[bool]string{false: "unknown tcp/22 in 1", true: "kept tcp/22 in 1"} {
		f := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22")
		f.Liberal = liberal
		p := impactPlan(t, d, today, host.Connections{Flows: []host.Flow{f}})
		if got := groupsOf(p); !slices.Equal(got, []string{want}) || len(p.Impact.Leaving) != 0 {
			t.Errorf("liberal %v: %q, want %q", liberal, got, want)
		}
	}
	out := untrackTCP(map[string][]string{"INPUT": {"-p tcp -j ACCEPT"}})
	ssh, dns := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22"), tracked(t, "udp 10.0.0.9:5000 10.0.0.1:53")
	if got := impactPlan(t, out, statefulInput, host.Connections{Flows: []host.Flow{ssh, dns}}).Impact.Leaving; !slices.Equal(got, []host.Tuple{ssh.Orig}) {
		t.Errorf("leaving tracking: %v", got)
	}
}

// TestAnswersAreKnown: what answers a first packet is of a connection that the
// table has confirmed, with whatever mark rules gave it.
func TestAnswersAreKnown(t *testing.T) {
	ssh := host.Socket{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("0.0.0.0:22"), Listening: true}
	for _, rule := range []string{"-m conntrack --ctstatus CONFIRMED -j ACCEPT", "-m connmark --mark 0x1 -j ACCEPT", "-m state --state ESTABLISHED -j ACCEPT"} {
		rules := "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j CONNMARK --set-xmark 0x1/0xffffffff\nCOMMIT\n*filter\n:INPUT ACCEPT\n:OUTPUT DROP\n-A OUTPUT " + rule + "\nCOMMIT\n"
		p := impactPlan(t, untrackTCP(nil), rules, host.Connections{Sockets: []host.Socket{ssh}})
		today := p.Impact.Services
		if len(today) != 2 { // at each interface
			t.Errorf("%s: the service is reached today, and not seen to be lost: %+v", rule, today)
		}
	}
}

func TestNoConnectionsNeeded(t *testing.T) {
	d := randomDesiredMode(declared.Tuned)
	if p := impactPlan(t, d, statefulInput, host.Connections{}); NeedsConnections(p) || p.Impact != nil {
		t.Errorf("sizing a table asks for connections: %+v", p.Impact)
	}
}

func randomDesiredMode(m declared.Mode) declared.Desired {
	return declared.Desired{Mode: m, Max: &declared.Setting{Value: 1000}, Hashsize: &declared.Setting{Value: 512}, Families: []host.Family{host.IPv4}}
}

// TestNotJudged is of tables whose rules are not known, and may ask for a state: a
// connection that is tracked today and will not be is not called kept.
func TestNotJudged(t *testing.T) {
	ssh := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22")
	accepts := map[string][]string{"INPUT": {"-p tcp -m tcp --dport 22 -j ACCEPT"}, "OUTPUT": {"-p tcp -m tcp --sport 22 -j ACCEPT"}}
	inet := host.NFTTable{Family: "inet", Name: "t", Drops: true, Chains: []host.NFTChain{{Name: "in", Type: "filter", Hook: "input", Policy: "accept"}}}
	bridge := host.NFTTable{Family: "bridge", Name: "t", Whole: true, Chains: []host.NFTChain{{Name: "out", Type: "filter", Hook: "output", Policy: "drop"}}}
	for _, tt := range []struct {
		name    string
		d       declared.Desired
		table   host.NFTTable
		bridged bool
		want    string
	}{
		{"a table that was not read whole", untrackTCP(accepts), inet, false, "unknown tcp/22 in 1"},
		{"one of a bridge, and a host without any", untrackTCP(accepts), bridge, false, "kept tcp/22 in 1"},
		{"one of a bridge", untrackTCP(accepts), bridge, true, "unknown tcp/22 in 1"},
		{"nothing leaves tracking", declared.Desired{Mode: declared.Notrack, Families: []host.Family{host.IPv4}, Firewall: declared.IPTables, Chains: untrackTCP(accepts).Chains[:1]}, inet, false, "kept tcp/22 in 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.d.Firewall = declared.IPTables
			c := host.Connections{Flows: []host.Flow{ssh}, Bridged: tt.bridged, Total: 1,
				Addresses: []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}}, Routes: []host.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}}}
			l := testHost(parseLines(t, host.IPv4, statefulInput))
			l.Connections, l.NFT = &c, []host.NFTTable{tt.table}
			p := Diff(tt.d, l)
			if got := groupsOf(p); !slices.Equal(got, []string{tt.want}) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
