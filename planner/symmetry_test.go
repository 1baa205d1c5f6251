package planner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// declared is a notrack host of both families; chains are given as "table
// HOOK rule" lines, with "6:" ahead for IPv6.
func declaring(lines ...string) Desired {
	d := Desired{Block: "t", Source: Pos{"t.hcl", 1}, ModeSource: Pos{"t.hcl", 2}, Mode: Notrack, Families: Families, StatefulRules: RemoveStateful}
	for i, l := range lines {
		l, six := strings.CutPrefix(l, "6:")
		f := IPv4
		if six {
			f = IPv6
		}
		w := strings.SplitN(l, " ", 3)
		at := slices.IndexFunc(d.Chains, func(c Chain) bool { return c.Family == f && c.Table == w[0] && c.Hook == w[1] })
		if at < 0 {
			at = len(d.Chains)
			d.Chains = append(d.Chains, Chain{Family: f, Table: w[0], Hook: w[1], Name: OwnPrefix + w[1]})
		}
		d.Chains[at].Rules = append(d.Chains[at].Rules, TargetRule{Rule: Rule{Chain: OwnPrefix + w[1], Words: strings.Fields(w[2]), Text: w[2]}, Source: Pos{"t.hcl", 10 + i}})
	}
	return d
}

// twoNetworks is a host with eth0 10.0.0.1 and eth1 10.0.1.1, in both families.
func twoNetworks(c Connections) *Connections {
	c.Total = int64(len(c.Flows))
	for _, a := range []string{"lo 127.0.0.1/8", "lo ::1/128", "eth0 10.0.0.1/24", "eth0 2001:db8::1/64", "eth1 10.0.1.1/24", "eth1 2001:db8:1::1/64"} {
		name, prefix, _ := strings.Cut(a, " ")
		p := netip.MustParsePrefix(prefix)
		c.Addresses = append(c.Addresses, Address{name, p})
		if name != "lo" {
			c.Routes = append(c.Routes, Route{p.Masked(), name})
		}
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		c.Routes = append(c.Routes, Route{netip.MustParsePrefix(all), "eth0"})
	}
	return &c
}

// symmetryOf plans, and returns what the checks say: "block RISK address" or
// "warn address", with the text.
func symmetryOf(t testing.TB, d Desired, four, six string, c *Connections) (found []string, plan Plan) {
	t.Helper()
	l := testHost(parseLines(t, IPv4, four))
	if six != "" {
		l.Rulesets = append(l.Rulesets, parseLines(t, IPv6, six))
	}
	l.Connections = c
	p := Diff(d, l)
	return symmetryFindings(p), p
}

func symmetryFindings(p Plan) (found []string) {
	for _, b := range p.Blocks {
		if b.Risk == RiskOneSided || b.Risk == RiskRelated {
			found = append(found, fmt.Sprintf("block %s %s: %s: %s; %s", b.Risk, b.Address, b.Where, b.Why, b.Remedy))
		}
	}
	for _, w := range p.Warnings {
		if !strings.Contains(w.Text, "may now") && !strings.Contains(w.Text, "will not survive a reboot") && !strings.Contains(w.Text, "stays for what is still tracked") {
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
		d     Desired
		rules string
		c     Connections
		want  []string
	}{
		{"both ways", declaring(in, out), invalid, Connections{}, nil},
		{"in alone, and INVALID is dropped: the classic lock-out", declaring(in), invalid, Connections{}, []string{"block one_sided iptables.ipv4.raw: -A CTPLAN-PREROUTING -p tcp -m tcp --dport 80 … dropped by: -A OUTPUT -m conntrack --ctstate INVALID -j DROP … raw OUTPUT"}},
		{"in alone, and nothing cares", declaring(in), openInput, Connections{}, []string{"warn iptables.ipv4.raw: -A CTPLAN-PREROUTING … INVALID"}},
		{"out alone", declaring(out), openInput, Connections{}, []string{"warn iptables.ipv4.raw: -A CTPLAN-OUTPUT … raw PREROUTING"}},
		{"the impact says so already", declaring(in), invalid, Connections{Sockets: []Socket{{Protocol: protoTCP, Local: netip.MustParseAddrPort("10.0.0.1:80"), Listening: true}}},
			[]string{"warn iptables.ipv4.raw: -A CTPLAN-PREROUTING … dropped by"}},
		{"udp that nobody answers", declaring("raw OUTPUT -p udp -m udp --dport 514 -j CT --notrack"), "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n", Connections{},
			[]string{"warn iptables.ipv4.raw: -A CTPLAN-OUTPUT … still fills the table"}},
		{"udp that is answered", declaring("raw OUTPUT -p udp -m udp --dport 53 -j CT --notrack"), "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n",
			Connections{Flows: []Flow{tracked(t, "udp 10.0.0.1:4000 9.9.9.9:53")}}, []string{"block one_sided iptables.ipv4.raw … dropped by: policy DROP of INPUT"}},
		{"over lo, the way out counts", declaring("raw OUTPUT -o lo -j CT --notrack"), invalid, Connections{}, nil},
		{"all interfaces but one way by its address", declaring("raw PREROUTING -d 10.0.0.1/32 -p tcp -j CT --notrack", "raw OUTPUT -s 10.0.1.1/32 -p tcp -j CT --notrack"), openInput, Connections{},
			[]string{"warn … -d 10.0.0.1/32", "warn … -s 10.0.1.1/32"}},
		{"a foreign rule", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK"), Connections{}, []string{"warn iptables.ipv4.raw: -A PREROUTING -p udp … declare the traffic"}},
		{"a foreign rule that the HCL completes", declaring("raw OUTPUT -p udp -m udp --sport 53 -j CT --notrack"), raw("-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK"), Connections{}, nil},
		{"ours stands ahead of a foreign zone", declaring(in, out), raw("-A OUTPUT -p tcp -m tcp --sport 80 -j CT --zone 3"), Connections{}, nil},
		{"in a chain of its own", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -p tcp -j user", "-A user -p tcp -j NOTRACK"), Connections{}, []string{"warn … -A user -p tcp -j NOTRACK"}},
		{"a zone for one way", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone 7"), Connections{}, []string{"warn … -A PREROUTING -i eth0 -j CT --zone 7 … zone"}},
		{"a zone for both", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone 7", "-A OUTPUT -o eth0 -j CT --zone 7"), Connections{}, nil},
		{"a zone of one direction is meant so", declaring("filter INPUT -j ACCEPT"), raw("-A PREROUTING -i eth0 -j CT --zone-orig 7"), Connections{}, nil},
		{"routed, the port of the server alone", declaring(in, out), router, Connections{}, []string{"block one_sided … routed … policy DROP of FORWARD"}},
		{"routed, both", declaring(in, out, "raw PREROUTING -p tcp -m tcp --sport 80 -j CT --notrack", "raw OUTPUT -p tcp -m tcp --dport 80 -j CT --notrack", "filter FORWARD -p tcp -j ACCEPT"), router, Connections{}, nil},
		{"this host's own address alone", declaring(strings.Replace(in, "-p tcp", "-d 10.0.0.1/32 -p tcp", 1), strings.Replace(out, "-p tcp", "-s 10.0.0.1/32 -p tcp", 1)), router, Connections{}, nil},
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
			found, _ := symmetryOf(t, declaring(tt.lines...), world, "", twoNetworks(Connections{}))
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
	_, p := symmetryOf(t, declaring(in), rules, "", twoNetworks(Connections{Flows: []Flow{ssh}}))
	if got := groupsOf(p); !slices.Equal(got, []string{"lost tcp/22 in 1"}) {
		t.Errorf("one way: %q", got)
	}
	d := declaring(out)
	_, p = symmetryOf(t, d, strings.Replace(rules, ":OUTPUT DROP", ":OUTPUT ACCEPT", 1), "", twoNetworks(Connections{Flows: []Flow{ssh}}))
	if got := groupsOf(p); !slices.Equal(got, []string{"kept tcp/22 in 1"}) {
		t.Errorf("out alone, with stateless rules: %q", got)
	}
	l := testHost(parseLines(t, IPv4, rules))
	l.Connections = twoNetworks(Connections{Flows: []Flow{ssh}})
	l.Sysctls["net.netfilter.nf_conntrack_tcp_be_liberal"] = Sysctl{Value: "1"}
	d = declaring(in)
	d.StatefulRules = RefuseStateful
	if got := groupsOf(Diff(d, l)); !slices.Equal(got, []string{"kept tcp/22 in 1"}) {
		t.Errorf("liberal: %q", got)
	}
}
