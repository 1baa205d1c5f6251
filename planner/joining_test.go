package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
)

// TestKeepsFragmentsJoined: ctplan asks for fragments to be joined in a family
// where nothing else will, and parts would tell from whole datagrams.
func TestKeepsFragmentsJoined(t *testing.T) {
	const (
		ports   = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p udp -m udp --dport 53 -j ACCEPT\nCOMMIT\n"
		routes  = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -p udp -m udp --dport 53 -j ACCEPT\nCOMMIT\n"
		inner   = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:mine - [0:0]\n-A FORWARD -j mine\n-A mine -p udp -m udp --dport 53 -j ACCEPT\n-A mine -j REJECT\nCOMMIT\n"
		unmet   = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:mine - [0:0]\n-A mine -p udp -m udp --dport 53 -j DROP\nCOMMIT\n"
		address = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -s 10.0.0.0/24 -j ACCEPT\nCOMMIT\n"
		open    = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A INPUT -p udp -m udp --dport 53 -j ACCEPT\nCOMMIT\n"
		rate    = "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -m connmark --mark 0x1 -j ACCEPT\nCOMMIT\n"
		socket  = "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -m socket -j ACCEPT\nCOMMIT\n"
	)
	all := []string{"raw PREROUTING -j CT --notrack", "raw OUTPUT -j CT --notrack"}
	for _, tt := range []struct {
		name   string
		mode   declared.Mode
		v4, v6 string
		lacks  bool
		want   string // families with the chain
	}{
		{"ports in INPUT", declared.Notrack, ports, ports, false, "ipv6"},
		{"disabled", declared.Disabled, ports, ports, false, "ipv6"},
		{"tuned", declared.Tuned, ports, ports, false, ""},
		{"ports in FORWARD", declared.Notrack, routes, routes, false, "ipv4 ipv6"},
		{"in a chain that is called", declared.Notrack, inner, inner, false, "ipv4 ipv6"},
		{"in a chain that is not", declared.Notrack, unmet, unmet, false, ""},
		{"by addresses alone", declared.Notrack, address, "", false, ""},
		{"nothing is refused", declared.Notrack, open, open, false, ""},
		{"somebody else asks", declared.Notrack, routes + rate, routes + socket, false, ""},
		{"the kernel cannot", declared.Notrack, routes, routes, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := declaring(sixToo(all...)...)
			d.AllowRisk = []declared.Risk{declared.RiskStatefulRules}
			if tt.mode != declared.Notrack {
				d.Chains = nil
			}
			if d.Mode = tt.mode; tt.mode == declared.Tuned {
				d.Max, d.Hashsize = &declared.Setting{Value: 262144}, &declared.Setting{Value: 65536}
			}
			l := testHost(parseLines(t, host.IPv4, tt.v4))
			if tt.v6 != "" {
				six := parseLines(t, host.IPv6, tt.v6)
				six.Backend, six.Primary = l.Rulesets[0].Backend, true
				l.Rulesets = append(l.Rulesets, six)
			}
			if tt.lacks {
				l.Loading = &host.Loading{Tree: true, Usable: slices.DeleteFunc(slices.Clone(modules.Used), func(m string) bool { return m == "xt_socket" })}
			}
			var got []string
			for _, c := range Diff(d, l).Changes {
				r, ok := c.(*change.RulesChange)
				if !ok {
					continue
				}
				if slices.Contains(r.After, "-A CTPLAN-DEFRAG -m socket -j RETURN") {
					got = append(got, string(r.Family))
				}
				if strings.Contains(strings.Join(r.After, "\n"), "CTPLAN-DEFRAG") && !slices.ContainsFunc(r.Open, func(op change.RuleOp) bool { return op.Chain == declared.JoinChain }) {
					t.Errorf("the chain does not come before anything closes: %+v", r.Open)
				}
			}
			if joined := strings.Join(got, " "); joined != tt.want {
				t.Errorf("the chain is planned for %q, want %q", joined, tt.want)
			}
		})
	}
}
