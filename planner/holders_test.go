package planner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// moduleHost is a host whose kernel has connection tracking as a module that
// is loaded, with modules above it.
func moduleHost(above ...string) Live {
	l := testHost(Ruleset{Family: IPv4, Backend: NFT, Primary: true})
	l.Conntrack = Conntrack{Kind: ConntrackModule, Loaded: true, InitialNetns: true}
	l.Modules = []Module{{Name: "nf_conntrack", By: above}}
	for _, m := range above {
		l.Modules = append(l.Modules, Module{Name: m})
	}
	return l
}

func disabling(risks ...Risk) Desired {
	return Desired{Mode: Disabled, Families: Families, AllowRisk: risks}
}

func unloads(p Plan) []string {
	var out []string
	for _, c := range p.Changes {
		if m, ok := c.(*ModuleChange); ok {
			out = append(out, m.Module)
		}
	}
	return out
}

func nftRules(n int) NFTTable {
	t := NFTTable{Family: "inet", Name: "fw"}
	for i := range n {
		t.Items = append(t.Items, NFTItem{Kind: "rule", Chain: "in", Handle: uint64(i + 10), Text: "ct state new", Uses: []string{"ct"}})
	}
	return t
}

// TestHolders: everything that holds a module is named with its command; once
// accepted, its module stays with those below, and no other does.
func TestHolders(t *testing.T) {
	for _, n := range []int{1, MaxNamed, MaxNamed + 1, MaxNamed + 2, 300} {
		l := moduleHost("nft_ct", "xt_conntrack")
		l.NFT = []NFTTable{nftRules(n)}
		plan := Diff(disabling(), l)
		var text strings.Builder
		for _, b := range plan.Blocks {
			fmt.Fprintln(&text, b.Where, b.Commands)
		}
		for i := range n {
			for _, want := range []string{fmt.Sprintf("handle %d: ct state new", i+10), fmt.Sprintf("nft delete rule inet fw in handle %d", i+10)} {
				if !strings.Contains(text.String(), want) {
					t.Errorf("%d rules: nothing says %q:\n%s", n, want, text.String())
				}
			}
		}
		if len(plan.Blocks) > MaxNamed+1 {
			t.Errorf("%d rules: %d blocks", n, len(plan.Blocks))
		}
		plan = Diff(disabling(RiskModuleHeld), l)
		if got := unloads(plan); plan.Blocked() || !slices.Equal(got, []string{"xt_conntrack"}) {
			t.Errorf("%d rules accepted: unloads %q, blocked: %v", n, got, plan.Blocked())
		}
	}
}

// TestHoldersElsewhere: rules in other namespaces hold modules, and nothing
// where there is no module.
func TestHoldersElsewhere(t *testing.T) {
	inside := parseLines(t, IPv4, "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n*filter\n:INPUT ACCEPT\n-A INPUT -j DROP\n-A INPUT -m state --state NEW -j DROP\nCOMMIT\n")
	l := moduleHost("nft_ct", "xt_conntrack", "ipt_MASQUERADE", "iptable_nat")
	l.Namespaces = []Namespace{
		{Inode: 5, Path: "/run/netns/it's", NFT: []NFTTable{nftRules(1)}},
		{Inode: 6, PID: 77, Command: "dockerd", Rulesets: []Ruleset{inside}},
	}
	plan := Diff(disabling(), l)
	var got []string
	for _, b := range plan.Blocks {
		got = append(got, b.Commands...)
	}
	if want := []string{
		`ip netns exec 'it'\''s' nft delete rule inet fw in handle 10`,
		"nsenter --net=/proc/77/ns/net iptables-legacy -t nat -D POSTROUTING -j MASQUERADE",
		"nsenter --net=/proc/77/ns/net iptables-legacy -t filter -D INPUT -m state --state NEW -j DROP",
	}; !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
	if got := unloads(Diff(disabling(RiskModuleHeld), l)); len(got) > 0 {
		t.Errorf("unloads %q, which rules elsewhere hold", got)
	}
	l.Conntrack.Kind, l.Modules = ConntrackBuiltin, nil
	if plan := Diff(disabling(), l); plan.Blocked() {
		t.Errorf("built in, rules elsewhere do not concern this namespace: %+v", plan.Blocks)
	}
	l.NFT = []NFTTable{nftRules(1)}
	if plan := Diff(disabling(), l); !plan.Blocked() {
		t.Error("built in, a rule here has tracking at work")
	}
}

// TestHoldersEmptyNAT: the nat chains that iptables-nft leaves behind are
// apply's to remove; those of others are not.
func TestHoldersEmptyNAT(t *testing.T) {
	for table, blocked := range map[string]bool{"ip nat": false, "ip6 nat": false, "inet nat": true, "ip mine": true} {
		family, name, _ := strings.Cut(table, " ")
		l := moduleHost("nft_chain_nat")
		l.NFT = []NFTTable{{Family: family, Name: name, Items: []NFTItem{{Kind: "chain", Name: "POSTROUTING", Uses: []string{"chain nat"}}}}}
		if plan := Diff(disabling(), l); plan.Blocked() != blocked {
			t.Errorf("%s: blocked %v: %+v", table, plan.Blocked(), plan.Blocks)
		}
	}
}

// TestIncompatible: nothing is planned for a table whose rules nobody can show.
func TestIncompatible(t *testing.T) {
	l := moduleHost()
	l.Rulesets[0].Incompatible = []string{"filter"}
	d := Desired{Mode: Notrack, Families: []Family{IPv4}}
	if plan := Diff(d, l); plan.Blocked() || len(plan.Warnings) == 0 {
		t.Errorf("with nothing to add to it: %+v", plan)
	}
	d.Chains = []Chain{{Family: IPv4, Table: "filter", Hook: "INPUT", Name: "CTPLAN-INPUT"}}
	if plan := Diff(d, l); len(plan.Blocks) != 1 || plan.Blocks[0].Override {
		t.Errorf("with a chain to add to it: %+v", plan.Blocks)
	}
}

// TestNFTCommands: no name becomes more than a name in a command.
func TestNFTCommands(t *testing.T) {
	for _, name := range []string{"", "-f", "a b", "a;b", "$(id)", "a\nb", "`a`", "a'b", "a\"b", "{", "é", "\uFFFD", "#", "3"} {
		item := NFTItem{Kind: "rule", Chain: name, Handle: 3, Uses: []string{"ct"}}
		if c := deletionOf(NFTTable{Family: "ip", Name: "t"}, item, ""); c != nil {
			t.Errorf("chain %q: %q", name, c)
		}
		item.Chain = "c"
		if c := deletionOf(NFTTable{Family: "ip", Name: name}, item, ""); c != nil {
			t.Errorf("table %q: %q", name, c)
		}
	}
}

// TestUntraced: references that no rule explains block the plan, and no others.
func TestUntraced(t *testing.T) {
	state := parseLines(t, IPv4, "*filter\n:INPUT ACCEPT\n-A INPUT -m state --state NEW -j DROP\nCOMMIT\n")
	for name, test := range map[string]struct {
		change func(*Live)
		want   []string // modules in blocks
	}{
		"unknown":                  {func(l *Live) {}, []string{"nft_ct", "xt_conntrack"}},
		"a rule here":              {func(l *Live) { l.Rulesets = []Ruleset{state} }, nil}, // it explains nft_ct too, for newer iptables
		"a rule elsewhere":         {func(l *Live) { l.Namespaces = []Namespace{{Inode: 3, PID: 4, Rulesets: []Ruleset{state}}} }, []string{"nft_ct"}},
		"a native rule":            {func(l *Live) { l.NFT = []NFTTable{nftRules(1)} }, []string{"xt_conntrack"}},
		"modules alone":            {func(l *Live) { l.Modules[1].By, l.Modules[2].Refs = []string{"other"}, 0 }, nil},
		"a module that is no leaf": {func(l *Live) { l.Modules = []Module{{Name: "nf_conntrack", Refs: 5}} }, nil},
	} {
		l := moduleHost("nft_ct", "xt_conntrack")
		l.Modules[1].Refs, l.Modules[2].Refs = 1, 1
		test.change(&l)
		d := disabling()
		d.StatefulRules = RemoveStateful
		var got []string
		for _, b := range Diff(d, l).Blocks {
			if m, ok := strings.CutPrefix(b.Address, "module."); ok && strings.Contains(b.Where, "no module") {
				got = append(got, m)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	l := moduleHost("nft_ct", "xt_conntrack")
	l.Modules[1].Refs = 1
	if got := unloads(Diff(disabling(RiskModuleHeld), l)); !slices.Equal(got, []string{"xt_conntrack"}) {
		t.Errorf("accepted: unloads %q", got)
	}
}
