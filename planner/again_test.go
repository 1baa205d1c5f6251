package planner

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// TestWorse has plans differ in one point each.
func TestWorse(t *testing.T) {
	rules := func(before ...string) []change.Change {
		return []change.Change{&change.RulesChange{
			M: change.Meta{Address: "iptables.ipv4.filter"}, Backend: host.NFT, Table: "filter", Before: before,
			Open: []change.RuleOp{{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{"-j ACCEPT"}}, {Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j CTPLAN-INPUT"}},
		}}
	}
	was := Plan{
		Changes: rules(":INPUT ACCEPT", "-A INPUT -j bans", "-A bans -s 192.0.2.1/32 -j DROP"),
		Blocks:  []change.Block{{Risk: "nat", Address: "iptables.ipv4.nat", Where: "-A X", Why: "w"}},
		Impact: &impact.Impact{
			Groups:  []impact.FlowGroup{{Result: impact.FlowLost, Service: "tcp/22 in", Family: host.IPv4, Count: 2}, {Result: impact.FlowKept, Service: "tcp/80 in", Family: host.IPv4, Count: 9}},
			Exposed: []impact.Exposure{{Family: host.IPv4, What: "anybody may"}},
		},
	}
	with := func(edit func(*Plan)) Plan {
		now, hurt := was, *was.Impact
		now.Impact = &hurt
		edit(&now)
		return now
	}
	for name, c := range map[string]struct {
		now  Plan
		says string
	}{
		"the same":    {was, ""},
		"another ban": {with(func(p *Plan) { p.Changes = rules(":INPUT ACCEPT", "-A INPUT -j bans", "-A bans -j DROP") }), ""},
		"fewer lost":  {with(func(p *Plan) { p.Impact.Groups = was.Impact.Groups[1:] }), ""},
		"more kept": {with(func(p *Plan) {
			p.Impact.Groups = append([]impact.FlowGroup{{Result: impact.FlowKept, Service: "x", Count: 5}}, was.Impact.Groups...)
		}), ""},
		"no block any more":   {with(func(p *Plan) { p.Blocks = nil }), ""},
		"a rule of the chain": {with(func(p *Plan) { p.Changes = rules(":INPUT ACCEPT", "-A INPUT -j DROP", "-A INPUT -j bans") }), "iptables.ipv4.filter would be another"},
		"the policy":          {with(func(p *Plan) { p.Changes = rules(":INPUT DROP", "-A INPUT -j bans") }), "iptables.ipv4.filter would be another"},
		"no jump":             {with(func(p *Plan) { p.Changes = rules(":INPUT ACCEPT") }), "iptables.ipv4.filter would be another"},
		"a change more": {with(func(p *Plan) {
			p.Changes = append(rules(was.Changes[0].(*change.RulesChange).Before...), &change.SysctlChange{M: change.Meta{Address: "sysctl.x"}})
		}), "sysctl.x would be changed too"},
		"a change less": {with(func(p *Plan) { p.Changes = nil }), "iptables.ipv4.filter would not be changed any more"},
		"a block": {with(func(p *Plan) {
			p.Blocks = append(was.Blocks[:1:1], change.Block{Risk: "nat", Address: "iptables.ipv6.nat", Why: "translated"})
		}), "iptables.ipv6.nat: translated"},
		"more lost": {with(func(p *Plan) {
			p.Impact.Groups = []impact.FlowGroup{{Result: impact.FlowLost, Service: "tcp/22 in", Family: host.IPv4, Count: 3}}
		}), "tcp/22 in: 3 open connections lost, and not 2"},
		"unknown": {with(func(p *Plan) {
			p.Impact.Groups = []impact.FlowGroup{{Result: impact.FlowUnknown, Service: "tcp/80 in", Family: host.IPv4, Count: 1}}
		}), "tcp/80 in: 1 open connection unknown, and not 0"},
		"a service": {with(func(p *Plan) {
			p.Impact.Services = []impact.FlowGroup{{Result: impact.FlowLost, Service: "tcp/80 in", Family: host.IPv4, Count: 1}}
		}), "1 listening service lost"},
		"who gets in":        {with(func(p *Plan) { p.Impact.Exposed = []impact.Exposure{{Family: host.IPv6, What: "anybody may"}} }), "anybody may"},
		"no impact any more": {with(func(p *Plan) { p.Impact = nil }), ""},
		"a rule of ctplan's": {with(func(p *Plan) { p.Changes = rules(":INPUT ACCEPT", "-A INPUT -j bans", "-A CTPLAN-INPUT -j DROP") }), "would be another"},
		"another kind of rules": {with(func(p *Plan) {
			c := *was.Changes[0].(*change.RulesChange)
			c.Backend = host.Legacy
			p.Changes = []change.Change{&c}
		}), "would be another"},
	} {
		got := strings.Join(Worse(Made{Plan: was}, Made{Plan: c.now}), "; ")
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", name, got, c.says)
		}
	}
}
