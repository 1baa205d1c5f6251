package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// NativeState warns of rules on connection state in tables of native nftables
// that were not read whole: they see packets that are tracked no longer, and what
// they do with them is not known. The others are judged.
func NativeState(d declared.Desired, l host.Live) change.Findings {
	p := change.NewReport(d)
	for _, t := range l.NFT {
		var named []string
		for _, i := range t.Items {
			if i.Kind == "rule" && !t.Whole {
				named = append(named, nftables.Describe(t, i))
			}
		}
		if len(named) == 0 {
			continue
		}
		if n := len(named) - change.MaxNamed; n > 0 {
			named = append(named[:change.MaxNamed], words.Plural(n, "more", "more"))
		}
		p.Warn("nftables."+t.Family+"."+t.Name, "what is no longer tracked has no state and is not translated, and this table was not read whole, so what it does with it is not known; see to it that the traffic still passes these: "+
			strings.Join(named, "; "), d.Source)
	}
	return p.Findings
}

// NativeChains names the chains of native nftables that filter too and were not
// read whole, where the plan changes rules: what becomes of a connection there is
// not known.
func NativeChains(l host.Live) change.Findings {
	var p change.Report
	var named []string
	for _, t := range l.NFT {
		if t.Family == "arp" || t.Whole {
			continue
		}
		for _, c := range t.Chains {
			if c.Base() && (c.Policy == "drop" || t.Drops) {
				named = append(named, fmt.Sprintf("%s %s %s (%s, policy %s)", t.Family, t.Name, c.Name, c.Hook, words.Or(c.Policy, "accept")))
			}
		}
	}
	if len(named) == 0 {
		return p.Findings
	}
	slices.Sort(named)
	if n := len(named) - change.MaxNamed; n > 0 {
		named = append(named[:change.MaxNamed], words.Plural(n, "more chain", "more chains"))
	}
	p.Warn("", "native nftables can drop packets too, and the rules of these chains were not read whole, so what becomes of connections there is not known: "+strings.Join(named, ", "), declared.Pos{})
	return p.Findings
}

// nativeNAT blocks what rules of nftables' own translate, and would no longer:
// packets that are not tracked are not translated.
func (p *stage) nativeNAT() {
	if p.d.Mode != declared.Notrack {
		return // disabled holds them for what keeps the modules loaded
	}
	type place struct {
		table, chain string
		handle       uint64
	}
	named, rare := map[place]bool{}, ""
	for _, f := range host.Families {
		for _, r := range nft.Rules(p.l.NFT, f, nft.Translates) {
			at := place{r.Ref.Native + " " + r.Ref.Table, r.Ref.Chain, r.Ref.Handle}
			how := p.meetsNative(f, r.Chain.Hook, r.Packets)
			if how == rarely && rare == "" {
				rare = r.Ref.String()
			}
			if how != meets || named[at] {
				continue
			}
			if named[at] = true; len(named) <= change.MaxNamed {
				p.Block(change.Block{
					Risk: declared.RiskNAT, Address: "nftables." + r.Ref.Native + "." + r.Ref.Table, Where: r.Ref.String(),
					Why:    "packets that are not tracked are not translated: this rule would no longer apply to them",
					Remedy: `narrow the notrack blocks until they leave its traffic alone, or use mode = "tuned"`, Override: true, Source: p.d.Source,
				})
			}
		}
	}
	if rare != "" {
		p.Warn("nftables", rare+begins, p.d.Source)
	}
	if n := len(named) - change.MaxNamed; n > 0 {
		p.Block(change.Block{Risk: declared.RiskNAT, Address: "nftables", Where: fmt.Sprintf("and %s like these", words.Plural(n, "more rule", "more rules")), Override: true, Source: p.d.Source})
	}
}

// builtIn are the chains of iptables that stand at nft's hooks.
var builtIn = map[string]string{"prerouting": "PREROUTING", "input": "INPUT", "forward": "FORWARD", "output": "OUTPUT", "postrouting": "POSTROUTING"}

// incompatible sees to the tables that iptables cannot show. Rules cannot be
// put into one whose other rules are not known.
func (p *stage) incompatible(r *host.Ruleset) {
	for _, table := range r.Incompatible {
		native := "nft -a list table ip " + words.ShellWords(table)
		if r.Family == host.IPv6 {
			native = "nft -a list table ip6 " + words.ShellWords(table)
		}
		address := xtables.Address(r, table)
		const why = "iptables cannot show this table, because nft has put there what it has no words for"
		ours := p.carrier == declared.IPTables && r.Primary && slices.ContainsFunc(p.d.ChainsOf(r.Family), func(c declared.Chain) bool { return c.Table == table })
		if !ours {
			p.Warn(address, why, declared.Pos{}, native)
			continue
		}
		p.Block(change.Block{
			Risk: declared.RiskUnshownRules, Address: address, Where: fmt.Sprintf("the %s table %s", r.Family, table), Why: why + ", so rules cannot be planned for it",
			Remedy: "delete those rules, or move them into a table of nftables' own", Source: p.d.Source, Commands: []string{native},
		})
	}
}
