package nft

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// once plans the same operations whatever the ruleset.
func once(ops ...change.NFTOp) func([]host.NFTTable) ([]change.NFTOp, error) {
	return func([]host.NFTTable) ([]change.NFTOp, error) { return ops, nil }
}

func takenBack(ops []change.NFTOp) []change.NFTOp { return (&change.NFTStep{Ops: ops}).Inverse().Ops }

func readAll(t *testing.T) []host.NFTTable {
	t.Helper()
	tables, err := Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// TestPutBack takes each rule of the corpus away and puts it back in its place, and
// holds nft's listing of the ruleset to what it was: with what counters have
// counted, and with the sets that went with the rule.
func TestPutBack(t *testing.T) {
	ruleset, err := os.ReadFile(corpus)
	if err != nil {
		t.Fatal(err)
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.RunInput(string(ruleset), "nft", "-f", "-")
		before := ns.Run("nft", "list", "ruleset")
		tables := readAll(t)
		n := 0
		for i := range tables {
			table := &tables[i]
			for k := range table.Chains {
				c := &table.Chains[k]
				if !slices.Contains([]string{"inet", "ip", "ip6"}, table.Family) {
					continue
				}
				for odd := range 2 { // so that each has a neighbour that stays
					var ops []change.NFTOp
					for at, r := range slices.Backward(c.Rules) {
						if at%2 == odd {
							ops = append(ops, change.NFTOp{Kind: change.DeleteNFTRule, Family: table.Family, Table: table.Name, Chain: c.Name, Pos: at + 1, Rule: &r, Sets: nftables.SetsOf(table, []host.NFTRule{r})})
						}
					}
					if n += len(ops); len(ops) == 0 {
						continue
					}
					ops, err := Keep(ops)
					if err != nil {
						t.Fatalf("chain %s: %v", c.Name, err)
					}
					if err := Test(once(append(slices.Clone(ops), takenBack(ops)...)...)); err != nil {
						t.Errorf("testing chain %s: %v", c.Name, err)
					}
					if err := Commit(once(ops...)); err != nil {
						t.Fatalf("chain %s: %v", c.Name, err)
					}
					if ns.Run("nft", "list", "ruleset") == before {
						t.Fatalf("nothing of chain %s was deleted", c.Name)
					}
					if err := Commit(once(takenBack(ops)...)); err != nil {
						t.Fatalf("putting back chain %s: %v", c.Name, err)
					}
				}
			}
		}
		if after := ns.Run("nft", "list", "ruleset"); n < 100 || inOrder(after) != inOrder(before) {
			t.Errorf("%d rules, and the ruleset is another:\n%s\nit was:\n%s", n, after, before)
		}
	})
}

var expires = regexp.MustCompile(`expires \S+`)

// inOrder is a listing with the elements of sets without a name in order, which the
// kernel lists in one of its own, and without clocks.
func inOrder(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = expires.ReplaceAllString(line, "expires")
		out.WriteString(inSet.ReplaceAllStringFunc(line, func(set string) string {
			elements := strings.Split(strings.Trim(set, "{ }"), ", ")
			slices.Sort(elements)
			return "{ " + strings.Join(elements, ", ") + " }"
		}))
	}
	return out.String()
}

// declaredTraffic has everything that a block can say.
func declaredTraffic() declared.Desired {
	p := netip.MustParsePrefix
	both := host.Families
	return declared.Desired{
		Mode: declared.Notrack, Families: both,
		Notrack: []declared.Traffic{
			{Name: "tcp", Protocol: "tcp", Direction: declared.Both, Families: both},
			{Name: "dns", Protocol: "udp", RemotePorts: []host.PortRange{{From: 53, To: 53}, {From: 853, To: 853}, {From: 1000, To: 1010}, {From: 1011, To: 1020}}, Direction: declared.Both, Families: both},
			{Name: "routed", Direction: declared.Forward, Interface: "eth+", Families: both},
		},
		Accept: []declared.Traffic{
			{Name: "api", Protocol: "tcp", Remote: []netip.Prefix{p("54.239.25.200/32")}, RemotePorts: []host.PortRange{{From: 443, To: 443}}, Initiator: declared.LocalSide, Direction: declared.Both, Families: both[:1]},
			{Name: "web", Protocol: "tcp", LocalPorts: []host.PortRange{{From: 80, To: 80}, {From: 443, To: 443}}, Direction: declared.Both, Families: both},
			{Name: "nets", Protocol: "udp", Remote: []netip.Prefix{p("10.0.0.0/9"), p("10.128.0.0/9"), p("192.0.2.1/32"), p("2001:db8::/33"), p("255.255.255.0/24")}, LocalPorts: []host.PortRange{{From: 1024, To: 65535}}, Direction: declared.Both, Families: both},
			{Name: "odd", Remote: []netip.Prefix{p("10.0.0.0/13"), p("2001:db8::/35")}, Direction: declared.In, Interface: "lo", Families: both},
			{Name: "ping", Protocol: "icmp", Direction: declared.Both, Families: both},
			{Name: "four", Protocol: "tcp", LocalPorts: []host.PortRange{{From: 1, To: 1}}, Direction: declared.Both, Families: both[:1]},
			{Name: "six", Protocol: "ipv6-icmp", Remote: []netip.Prefix{p("fe80::/10")}, Direction: declared.Both, Families: both[1:]},
			{Name: "gre", Protocol: "gre", Direction: declared.Out, Families: both},
			{Name: "lite", Protocol: "udplite", LocalPorts: []host.PortRange{{From: 7, To: 9}}, Direction: declared.Both, Families: both},
			{Name: "through", Protocol: "tcp", RemotePorts: []host.PortRange{{From: 25, To: 25}}, Direction: declared.Forward, Interface: "eth0", Families: both},
		},
	}
}

// TestRender has the kernel take what is rendered, reads it back, and has nft load
// its own listing of it, and ctplan's.
func TestRender(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, list := range []string{"kernel", "nft", "ctplan"} {
			ns.Run("nft", "flush", "ruleset")
			var ops []change.NFTOp
			var wants []*change.NFTContent
			chains := Render(declaredTraffic())
			for i := range chains {
				c := &chains[i]
				name := c.Hook
				if c.Notrack {
					name += "-raw"
				}
				want := &change.NFTContent{Chain: host.NFTChain{Name: name}, Sets: c.Sets}
				for _, r := range c.Rules {
					want.Chain.Rules = append(want.Chain.Rules, r.NFTRule)
				}
				if !slices.ContainsFunc(ops, func(op change.NFTOp) bool { return op.Kind == change.AddNFTTable && op.Family == c.Family }) {
					ops = append(ops, change.NFTOp{Kind: change.AddNFTTable, Family: c.Family, Table: "t"})
				}
				wants = append(wants, want)
				ops = append(ops, change.NFTOp{Kind: change.SetNFTChain, Family: c.Family, Table: "t", Chain: name, Want: want})
			}
			if err := Test(once(ops...)); err != nil {
				t.Fatal(err)
			}
			if got := readAll(t); len(got) != 0 {
				t.Fatalf("testing has made %+v", got)
			}
			if err := Commit(once(ops...)); err != nil {
				t.Fatal(err)
			}
			switch list {
			case "nft":
				text := ns.Run("nft", "list", "ruleset")
				ns.Run("nft", "flush", "ruleset")
				ns.RunInput(text, "nft", "-f", "-")
			case "ctplan":
				var text strings.Builder
				for _, table := range readAll(t) {
					var names []string
					for _, c := range table.Chains {
						names = append(names, c.Name)
					}
					text.WriteString(strings.Join(nftables.Lines(&table, names), "\n") + "\n")
				}
				ns.Run("nft", "flush", "ruleset")
				ns.RunInput(text.String(), "nft", "-f", "-")
			}
			tables := readAll(t)
			if len(tables) != 3 {
				t.Fatalf("%d tables", len(tables))
			}
			for i := range chains {
				k := slices.IndexFunc(tables, func(h host.NFTTable) bool { return h.Family == chains[i].Family })
				got := nftables.Content(&tables[k], wants[i].Chain.Name)
				if !nftables.SameContent(got, wants[i]) {
					for n, r := range wants[i].Chain.Rules {
						if n < len(got.Chain.Rules) && nftables.Key(&got.Chain.Rules[n], got.Sets) != nftables.Key(&r, wants[i].Sets) {
							t.Errorf("%s, %s %s: %q\n got %q\nwant %q", list, chains[i].Family, wants[i].Chain.Name, r.Text, nftables.Key(&got.Chain.Rules[n], got.Sets), nftables.Key(&r, wants[i].Sets))
						}
					}
					t.Errorf("%s, %s %s: is not what was rendered: %d rules, want %d", list, chains[i].Family, wants[i].Chain.Name, len(got.Chain.Rules), len(wants[i].Chain.Rules))
				}
				for n, r := range got.Chain.Rules {
					if list == "kernel" && r.Text != wants[i].Chain.Rules[n].Text {
						t.Errorf("%q is read as %q", wants[i].Chain.Rules[n].Text, r.Text)
					}
				}
			}
			if list == "kernel" {
				if err := Commit(once(takenBack(ops)...)); err != nil {
					t.Fatal(err)
				}
				if got := ns.Run("nft", "list", "ruleset"); got != "" {
					t.Errorf("after the way back: %s", got)
				}
			}
		}
	})
}

// TestCommitMoved has the ruleset change between the look and the transaction: it
// is made anew for what stands then.
func TestCommitMoved(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Run("nft", "add table inet t; add chain inet t c; add rule inet t c accept")
		calls := 0
		err := Commit(func(tables []host.NFTTable) ([]change.NFTOp, error) {
			if calls++; calls <= 2 {
				ns.Run("nft", "insert", "rule", "inet", "t", "c", "drop")
			}
			rules := tables[0].Chains[0].Rules
			return []change.NFTOp{{Kind: change.DeleteNFTRule, Family: "inet", Table: "t", Chain: "c", Pos: len(rules), Rule: &rules[len(rules)-1]}}, nil
		})
		if err != nil || calls != 3 {
			t.Errorf("%v after %d calls", err, calls)
		}
		if rules := readAll(t)[0].Chains[0].Rules; len(rules) != 2 || rules[0].Text != "drop" || rules[1].Text != "drop" {
			t.Errorf("left is %+v", rules)
		}
		// A transaction of which one part is refused leaves nothing.
		err = Commit(once(
			change.NFTOp{Kind: change.AddNFTTable, Family: "ip", Table: "other"},
			change.NFTOp{Kind: change.AddNFTTable, Family: "inet", Table: "t"},
		))
		if !errors.Is(err, unix.EEXIST) || len(readAll(t)) != 1 {
			t.Errorf("%v, %+v", err, readAll(t))
		}
	})
}
