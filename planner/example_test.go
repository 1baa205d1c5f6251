package planner_test

import (
	"fmt"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// A host without rules, and a configuration that takes DNS out of tracking.
func ExampleDiff() {
	d := declared.Desired{
		Block: "resolver", Mode: declared.Notrack, StatefulRules: declared.RefuseStateful, Families: []host.Family{host.IPv4},
		Notrack: []declared.Traffic{{
			Name: "dns", Protocol: "udp", LocalPorts: []host.PortRange{{From: 53, To: 53}}, Direction: declared.Both, Families: []host.Family{host.IPv4},
		}},
	}
	d.Chains = iptables.Render(d, host.Live{})
	l := host.Live{
		Host:      host.Host{Name: "ns-1", Kernel: "6.1.0"},
		Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true},
		Rulesets:  []host.Ruleset{{Family: host.IPv4, Backend: host.NFT, Primary: true}},
	}
	plan := planner.Diff(d, l)
	for _, c := range plan.Changes {
		fmt.Println(c.Meta().Action, c.Meta().Address)
	}
	for _, s := range planner.Steps(plan) {
		for _, op := range s.Rules.Sections[0].Ops {
			fmt.Println(op.Kind, op.Chain, op.Rules)
		}
	}
	// Output:
	// create iptables.ipv4.raw
	// set-chain CTPLAN-PREROUTING [-p udp -m udp --dport 53 -m comment --comment dns -j CT --notrack]
	// set-chain CTPLAN-OUTPUT [-p udp -m udp --sport 53 -m comment --comment dns -j CT --notrack]
	// insert-rule PREROUTING []
	// insert-rule OUTPUT []
}
