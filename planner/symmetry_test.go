package planner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// declared is a notrack host of both families; chains are given as "table
// HOOK rule" lines, with "6:" ahead for IPv6.
func declaring(lines ...string) declared.Desired {
	d := declared.Desired{Block: "t", Source: declared.Pos{File: "t.hcl", Line: 1}, ModeSource: declared.Pos{File: "t.hcl", Line: 2}, Mode: declared.Notrack, Families: host.Families, StatefulRules: declared.RemoveStateful}
	for i, l := range lines {
		l, six := strings.CutPrefix(l, "6:")
		f := host.IPv4
		if six {
			f = host.IPv6
		}
		w := strings.SplitN(l, " ", 3)
		at := slices.IndexFunc(d.Chains, func(c declared.Chain) bool { return c.Family == f && c.Table == w[0] && c.Hook == w[1] })
		if at < 0 {
			at = len(d.Chains)
			d.Chains = append(d.Chains, declared.Chain{Family: f, Table: w[0], Hook: w[1], Name: declared.OwnPrefix + w[1]})
		}
		d.Chains[at].Rules = append(d.Chains[at].Rules, declared.TargetRule{Rule: host.Rule{Chain: declared.OwnPrefix + w[1], Words: strings.Fields(w[2]), Text: w[2]}, Source: declared.Pos{File: "t.hcl", Line: 10 + i}})
	}
	return d
}

// twoNetworks is a host with eth0 10.0.0.1 and eth1 10.0.1.1, in both families.
func twoNetworks(c host.Connections) *host.Connections {
	c.Total = int64(len(c.Flows))
	for _, a := range []string{"lo 127.0.0.1/8", "lo ::1/128", "eth0 10.0.0.1/24", "eth0 2001:db8::1/64", "eth1 10.0.1.1/24", "eth1 2001:db8:1::1/64"} {
		name, prefix, _ := strings.Cut(a, " ")
		p := netip.MustParsePrefix(prefix)
		c.Addresses = append(c.Addresses, host.Address{Interface: name, Prefix: p})
		if name != "lo" {
			c.Routes = append(c.Routes, host.Route{Prefix: p.Masked(), Interface: name})
		}
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		c.Routes = append(c.Routes, host.Route{Prefix: netip.MustParsePrefix(all), Interface: "eth0"})
	}
	return &c
}

// symmetryOf plans, and returns what the checks say: "block RISK address" or
// "warn address", with the text.
func symmetryOf(t testing.TB, d declared.Desired, four, six string, c *host.Connections) (found []string, plan Plan) {
	t.Helper()
	l := testHost(parseLines(t, host.IPv4, four))
	if six != "" {
		l.Rulesets = append(l.Rulesets, parseLines(t, host.IPv6, six))
	}
	l.Connections = c
	p := Diff(d, l)
	return symmetryFindings(p), p
}

func symmetryFindings(p Plan) (found []string) {
	for _, b := range p.Blocks {
		if b.Risk == declared.RiskOneSided || b.Risk == declared.RiskRelated {
			found = append(found, fmt.Sprintf("block %s %s: %s: %s; %s", b.Risk, b.Address, b.Where, b.Why, b.Remedy))
		}
	}
	for _, w := range p.Warnings {
		if !strings.Contains(w.Text, "may now") && !strings.Contains(w.Text, "survive a reboot") && !strings.Contains(w.Text, "stays for what is still tracked") {
			found = append(found, "warn "+w.Address+": "+w.Text)
		}
	}
	return found
}

// contained reports what of the wanted pieces is missing; one line of found
// must hold all pieces of one want.
func contained(found []string, want ...string) string {
	if len(found) != len(want) {
		return fmt.Sprintf("%d findings, want %d", len(found), len(want))
	}
	for _, w := range want {
		pieces := strings.Split(w, " … ")
		if !slices.ContainsFunc(found, func(f string) bool {
			return !slices.ContainsFunc(pieces, func(p string) bool { return !strings.Contains(f, p) })
		}) {
			return "not said: " + w
		}
	}
	return ""
}

const openInput = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n"

func TestOneSided(t *testing.T) {
	const invalid = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
	const router = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -s 10.0.1.0/24 -j ACCEPT\nCOMMIT\n"
	raw := func(rules ...string) string {
		return openInput + "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:user -\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
	}
	in, out := "raw PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack", "raw OUTPUT -p tcp -m tcp --sport 80 -j CT --notrack"
	for _, tt := range []struct {
		name  string
		d     declared.Desired
		rules string
		c     host.Connections
		want  []string
	}{
		{"both ways", declaring(in, out), invalid, host.Connections{}, nil},
		{"in alone, and INVALID is dropped: the classic lock-out", declaring(in), invalid, host.Connections{}, []string{"block one_sided iptables.ipv4.raw: -A CTPLAN-PREROUTING -p tcp -m tcp --dport 80 … dropped by: -A OUTPUT -m conntrack --ctstate INVALID -j DROP … raw OUTPUT"}},
		{"in alone, and nothing cares", declaring(in), openInput, host.Connections{}, []string{"warn iptables.ipv4.raw: -A CTPLAN-PREROUTING … INVALID"}},
		{"out alone", declaring(out), openInput, host.Connections{}, []string{"warn iptables.ipv4.raw: -A CTPLAN-OUTPUT … raw PREROUTING"}},
		{"the impact says so already", declaring(in), invalid, host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("10.0.0.1:80"), Listening: true}}},
			[]string{"warn iptables.ipv4.raw: -A CTPLAN-PREROUTING … dropped by"}},
		{"udp of which no answer is known", declaring("raw OUTPUT -p udp -m udp --dport 5140 -j CT --notrack"), "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n", host.Connections{},
			[]string{"warn iptables.ipv4.raw: -A CTPLAN-OUTPUT … still fills the table"}},
		{"udp that is answered", declaring("raw OUTPUT -p udp -m udp --dport 53 -j CT --notrack"), "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n",
			host.Connections{Flows: []host.Flow{tracked(t, "udp 10.0.0.1:4000 9.9.9.9:53")}}, []string{"block one_sided iptables.ipv4.raw … dropped by: policy DROP of INPUT"}},
		{"over lo, the way out counts", declaring("raw OUTPUT -o lo -j CT --notrack"), invalid, host.Connections{}, nil},
		{"all interfaces but one way by its address", declaring("raw PREROUTING -d 10.0.0.1/32 -p tcp -j CT --notrack", "raw OUTPUT -s 10.0.1.1/32 -p tcp -j CT --notrack"), openInput, host.Connections{},
			[]string{"warn … -d 10.0.0.1/32", "warn … -s 10.0.1.1/32"}},
		{"a foreign rule", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK"), host.Connections{}, []string{"warn iptables.ipv4.raw: -A PREROUTING -p udp … declare the traffic"}},
		{"a foreign rule that the HCL completes", declaring("raw OUTPUT -p udp -m udp --sport 53 -j CT --notrack"), raw("-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK"), host.Connections{}, nil},
		{"ours stands ahead of a foreign zone", declaring(in, out), raw("-A OUTPUT -p tcp -m tcp --sport 80 -j CT --zone 3"), host.Connections{}, nil},
		{"in a chain of its own", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -p tcp -j user", "-A user -p tcp -j NOTRACK"), host.Connections{}, []string{"warn … -A user -p tcp -j NOTRACK"}},
		{"a zone for one way", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone 7"), host.Connections{}, []string{"warn … -A PREROUTING -i eth0 -j CT --zone 7 … zone"}},
		{"a zone for both", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone 7", "-A OUTPUT -o eth0 -j CT --zone 7"), host.Connections{}, nil},
		{"a zone of one direction is meant so", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone-orig 7"), host.Connections{}, nil},
		{"routed, the port of the server alone", declaring(in, out), router, host.Connections{}, []string{"block one_sided … routed … policy DROP of FORWARD"}},
		{"routed, both", declaring(in, out, "raw PREROUTING -p tcp -m tcp --sport 80 -j CT --notrack", "raw OUTPUT -p tcp -m tcp --dport 80 -j CT --notrack", "filter FORWARD -p tcp -j ACCEPT"), router, host.Connections{}, nil},
		{"this host's own address alone", declaring(strings.Replace(in, "-p tcp", "-d 10.0.0.1/32 -p tcp", 1), strings.Replace(out, "-p tcp", "-s 10.0.0.1/32 -p tcp", 1)), router, host.Connections{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, p := symmetryOf(t, tt.d, tt.rules, "", twoNetworks(tt.c))
			found = slices.DeleteFunc(found, func(s string) bool { return strings.Contains(s, "ICMP errors") })
			if fault := contained(found, tt.want...); fault != "" {
				t.Errorf("%s\n%s\n%+v", fault, strings.Join(found, "\n"), p.Impact)
			}
		})
	}
}

// TestOneSidedMeans is what one side alone is not, and what mends one that is.
func TestOneSidedMeans(t *testing.T) {
	const synproxy = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460\n" +
		"-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
	const syn = "-A PREROUTING -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack"
	const router = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -i eth0 -j ACCEPT\nCOMMIT\n"
	const stateful = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n-A OUTPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
	const clients = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
	const port = "-A PREROUTING -p tcp -m tcp --dport 80 -j NOTRACK"
	raw := func(rules ...string) string {
		return "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
	}
	vxlan := raw("-A PREROUTING -p udp -m udp --dport 4789 -j NOTRACK", "-A OUTPUT -p udp -m udp --dport 4789 -j NOTRACK")
	listens := host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("0.0.0.0:80"), Listening: true}}}
	for _, tt := range []struct {
		name  string
		rules string
		c     *host.Connections
		want  []string
	}{
		{"SYNs that SYNPROXY answers", synproxy + raw(syn), twoNetworks(listens), nil},
		{"SYNs that nothing answers in its place", stateful + raw(syn), twoNetworks(host.Connections{}), []string{"warn … take this rule away"}},
		{"VXLAN", openInput + vxlan, twoNetworks(host.Connections{}), nil},
		{"VXLAN, routed too", router + vxlan, twoNetworks(host.Connections{}), nil},
		{"VXLAN, of which a port is answered nevertheless", openInput + vxlan, twoNetworks(host.Connections{Flows: []host.Flow{tracked(t, "udp 10.0.0.1:4000 10.0.0.9:4789")}}), []string{"warn … to this host", "warn … this host sends"}},
		{"Geneve, GTP, BFD and syslog", openInput + raw("-A PREROUTING -p udp -m udp --dport 6081 -j NOTRACK", "-A OUTPUT -p udp -m udp --dport 2152 -j NOTRACK", "-A PREROUTING -p udp -m udp --dport 3784 -j NOTRACK", "-A OUTPUT -p udp -m udp --dport 514 -j NOTRACK"), twoNetworks(host.Connections{}), nil},
		{"broadcast and multicast", router + raw("-A PREROUTING -d 255.255.255.255/32 -p udp -j NOTRACK", "-A OUTPUT -d 224.0.0.0/4 -j NOTRACK", "-A PREROUTING -d 10.0.0.255/32 -j NOTRACK", "-A OUTPUT -s 0.0.0.0/32 -p udp -m udp --dport 67 -j NOTRACK"), twoNetworks(host.Connections{}), nil},
		{"an address of a container", openInput + raw("-A PREROUTING -d 10.0.5.5/32 -p tcp -m tcp --dport 8001 -j CT --notrack"), twoNetworks(host.Connections{}), nil},
		{"the same behind a router", router + raw("-A PREROUTING -d 10.0.5.5/32 -p tcp -m tcp --dport 8001 -j CT --notrack"), twoNetworks(host.Connections{}), []string{"warn … one direction of routed connections"}},
		{"an address of which nobody knows whose it is", openInput + raw("-A PREROUTING -d 10.0.5.5/32 -p tcp -m tcp --dport 8001 -j CT --notrack"), nil, nil},
		{"its mirror image mends it", openInput + raw(port), twoNetworks(listens), []string{"warn … add its mirror image to raw OUTPUT"}},
		{"it takes an accept as well", stateful + raw(port), twoNetworks(host.Connections{}), []string{"warn … with an accept block for it"}},
		{"so do the answers to what this host opens", clients + raw("-A OUTPUT -p tcp -m tcp --dport 443 -j NOTRACK"), twoNetworks(host.Connections{}), []string{"warn … with an accept block for it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, _ := symmetryOf(t, tuned(1000, 1000), tt.rules, "", tt.c)
			found = slices.DeleteFunc(found, func(s string) bool { return !strings.Contains(s, "iptables.") })
			if fault := contained(found, tt.want...); fault != "" {
				t.Errorf("%s\n%s", fault, strings.Join(found, "\n"))
			}
		})
	}
}

// TestBridges: a host whose bridge hands frames to the rules of IP is one that
// routes, with ip_forward off and nothing said of FORWARD.
func TestBridges(t *testing.T) {
	const web = "raw PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack"
	const invalid = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
	for _, tt := range []struct {
		bridged bool
		calls   string
		want    bool
	}{{true, "1", true}, {true, "0", false}, {false, "1", false}} {
		l := testHost(parseLines(t, host.IPv4, invalid))
		l.Sysctls[host.SysctlBridged4] = host.Sysctl{Value: tt.calls}
		l.Connections = twoNetworks(host.Connections{Bridged: tt.bridged})
		d := declaring(web, "raw OUTPUT -p tcp -m tcp --sport 80 -j CT --notrack")
		d.StatefulRules = declared.RefuseStateful
		d.AllowRisk = []declared.Risk{declared.RiskStatefulRules}
		got := slices.ContainsFunc(symmetryFindings(Diff(d, l)), func(s string) bool { return strings.Contains(s, "one direction of routed connections") })
		if got != tt.want {
			t.Errorf("%+v: found %v", tt, got)
		}
	}
}

// TestOneSidedProperty: what takes both ways never triggers, and without one
// way it always does, whatever the host's filter says.
func TestOneSidedProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	mirror := strings.NewReplacer("-s ", "-d ", "-d ", "-s ", "--sport", "--dport", "--dport", "--sport", "-i ", "-o ", "--sports", "--dports", "--dports", "--sports")
	fired := 0
	for range 3000 {
		var rule []string
		if r.IntN(3) == 0 {
			rule = append(rule, "-s "+[]string{"192.0.2.0/24", "54.1.1.1/32", "10.0.0.0/8"}[r.IntN(3)])
		}
		if r.IntN(3) == 0 {
			rule = append(rule, "-d "+[]string{"10.0.0.1/32", "10.0.0.0/24", "10.0.1.1/32"}[r.IntN(3)])
		}
		if r.IntN(3) == 0 {
			rule = append(rule, "-i eth"+[]string{"0", "+"}[r.IntN(2)])
		}
		if proto := []string{"", "tcp", "udp", "icmp"}[r.IntN(4)]; proto != "" {
			rule = append(rule, "-p "+proto)
			if proto != "icmp" {
				switch port := []int{22, 80, 443}[r.IntN(3)]; r.IntN(4) {
				case 0:
					rule = append(rule, fmt.Sprintf("-m %s --dport %d", proto, port))
				case 1:
					rule = append(rule, fmt.Sprintf("-m %s --sport %d", proto, port))
				case 2:
					rule = append(rule, fmt.Sprintf("-m multiport --dports %d,8000:9000", port))
				}
			}
		}
		if len(rule) > 1 && strings.Contains(strings.Join(rule, " "), "-d 10.0.1.1/32 -i eth0") {
			continue // no packet of the world
		}
		text := strings.Join(rule, " ") + " -j CT --notrack"
		text = strings.TrimSpace(text)
		in, out := "raw PREROUTING "+text, "raw OUTPUT "+mirror.Replace(text)
		world := strings.ReplaceAll(randomForeign(r), "*raw", "*security") // its own rules may be of one side
		world = strings.NewReplacer("*security\n:PREROUTING ACCEPT\n", "*security\n:INPUT ACCEPT\n", "-A PREROUTING -p udp -j CT --notrack\n", "").Replace(world)
		for _, tt := range []struct {
			lines []string
			want  bool
		}{{[]string{in, out}, false}, {[]string{in}, true}, {[]string{out}, true}} {
			found, _ := symmetryOf(t, declaring(tt.lines...), world, "", twoNetworks(host.Connections{}))
			got := slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, "this rule takes packets") })
			if got != tt.want {
				t.Fatalf("%q: found is %v\n%s\n%s", tt.lines, got, strings.Join(found, "\n"), world)
			}
			if got {
				fired++
			}
		}
	}
	t.Logf("%d one-sided declarations found", fired)
}

// TestHalfTracked: what tracking makes of a connection of which it sees one
// way only decides what the impact says of it.
func TestHalfTracked(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:OUTPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A OUTPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
	in, out := "raw PREROUTING -p tcp -j CT --notrack", "raw OUTPUT -p tcp -j CT --notrack"
	ssh := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22")
	_, p := symmetryOf(t, declaring(in), rules, "", twoNetworks(host.Connections{Flows: []host.Flow{ssh}}))
	if got := groupsOf(p); !slices.Equal(got, []string{"lost tcp/22 in 1"}) {
		t.Errorf("one way: %q", got)
	}
	d := declaring(out)
	_, p = symmetryOf(t, d, strings.Replace(rules, ":OUTPUT DROP", ":OUTPUT ACCEPT", 1), "", twoNetworks(host.Connections{Flows: []host.Flow{ssh}}))
	if got := groupsOf(p); !slices.Equal(got, []string{"kept tcp/22 in 1"}) {
		t.Errorf("out alone, with stateless rules: %q", got)
	}
	l := testHost(parseLines(t, host.IPv4, rules))
	l.Connections = twoNetworks(host.Connections{Flows: []host.Flow{ssh}})
	l.Sysctls["net.netfilter.nf_conntrack_tcp_be_liberal"] = host.Sysctl{Value: "1"}
	d = declaring(in)
	d.StatefulRules = declared.RefuseStateful
	if got := groupsOf(Diff(d, l)); !slices.Equal(got, []string{"kept tcp/22 in 1"}) {
		t.Errorf("liberal: %q", got)
	}
}
