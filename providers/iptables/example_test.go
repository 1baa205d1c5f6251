package iptables_test

import (
	"fmt"
	"net/netip"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// The rules of a table, chain by chain, as words and as written.
func ExampleParse() {
	rules, err := iptables.Parse(host.IPv4, `*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "from \"inside\"" -j ACCEPT
COMMIT
`)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, t := range rules.Tables {
		for _, c := range t.Chains {
			fmt.Println(t.Name, c.Name, c.Policy)
		}
		for _, r := range t.Rules {
			fmt.Printf("line %d: %s: %q\n", r.Line, r.Chain, r.Words)
		}
	}
	// Output:
	// filter INPUT DROP
	// filter OUTPUT ACCEPT
	// line 4: INPUT: ["-m" "conntrack" "--ctstate" "RELATED,ESTABLISHED" "-j" "ACCEPT"]
	// line 5: INPUT: ["-p" "tcp" "-m" "tcp" "--dport" "22" "-m" "comment" "--comment" "from \"inside\"" "-j" "ACCEPT"]
}

// What blocks of HCL become: rules in chains of ctplan's own, both ways.
func ExampleRender() {
	families := []host.Family{host.IPv4}
	chains := iptables.Render(declared.Desired{
		Mode:     declared.Notrack,
		Families: families,
		Notrack:  []declared.Traffic{{Name: "tcp", Protocol: "tcp", Direction: declared.Both, Families: families}},
		Accept: []declared.Traffic{{
			Name: "api", Protocol: "tcp", Remote: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")},
			RemotePorts: []host.PortRange{{From: 443, To: 443}}, Initiator: declared.LocalSide,
			Direction: declared.Both, Families: families,
		}},
	}, host.Live{})
	for _, c := range chains {
		for _, r := range c.Rules {
			fmt.Printf("%s: -A %s %s\n", c.Table, c.Name, r.Text)
		}
	}
	// Output:
	// filter: -A CTPLAN-INPUT -s 192.0.2.7/32 -p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment api -j ACCEPT
	// filter: -A CTPLAN-OUTPUT -d 192.0.2.7/32 -p tcp -m tcp --dport 443 -m comment --comment api -j ACCEPT
	// raw: -A CTPLAN-PREROUTING -p tcp -m comment --comment tcp -j CT --notrack
	// raw: -A CTPLAN-OUTPUT -p tcp -m comment --comment tcp -j CT --notrack
}

// Operations on a table as the input of iptables-restore --noflush.
func ExampleScript() {
	script, err := iptables.Script([]change.Section{{Table: "raw", Ops: []change.RuleOp{
		{Kind: change.SetChain, Chain: "CTPLAN-OUTPUT", Rules: []string{"-p tcp -j CT --notrack"}},
		{Kind: change.InsertRule, Chain: "OUTPUT", Pos: 1, Rule: "-j CTPLAN-OUTPUT"},
	}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(script)
	// Output:
	// *raw
	// -N CTPLAN-OUTPUT
	// -A CTPLAN-OUTPUT -p tcp -j CT --notrack
	// -I OUTPUT 1 -j CTPLAN-OUTPUT
	// COMMIT
}
