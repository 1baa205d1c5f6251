package planner

import (
	"fmt"
	"slices"
	"strings"
)

// holder is something outside of what ctplan changes that needs connection
// tracking, and so keeps modules loaded: in native nftables, or in another
// network namespace.
type holder struct {
	what     string   // the exact object, behind its kind
	modules  []string // that it keeps loaded
	maker    string   // who makes such things; empty where it is not known
	commands []string // that take it away; nil where no command can name it
}

// holders blocks the plan for each such thing, by table. Where the HCL accepts
// that, it returns the modules that stay loaded, by anyBackend's names.
//
// Without modules to unload only this namespace matters: connection tracking
// is at work in each by itself.
func (p *stageModules) holders() map[string]bool {
	stay := map[string]bool{}
	for _, t := range p.l.NFT {
		p.blockHolders("nftables."+t.Family+"."+t.Name, "", tableHolders(t, ""), stay)
	}
	if p.l.Conntrack.Kind != ConntrackModule {
		return stay
	}
	for _, n := range p.l.Namespaces {
		name, enter := describeNamespace(n)
		for _, t := range n.NFT {
			p.blockHolders("netns."+labelOfNamespace(n), "in "+name+": ", tableHolders(t, enter), stay)
		}
		for i := range n.Rulesets {
			p.blockHolders("netns."+labelOfNamespace(n), "in "+name+": ", legacyHolders(&n.Rulesets[i], enter), stay)
		}
	}
	p.untraced(stay)
	return stay
}

// untraced blocks the plan where a module has references that are of rules,
// and nothing that was read explains any of them: unloading it would fail.
func (p *stageModules) untraced(stay map[string]bool) {
	known := map[string]bool{}
	byNFT := false
	for _, t := range p.l.NFT {
		for _, i := range t.Items {
			for _, m := range itemModules(i) {
				known[m] = true
			}
		}
	}
	for i := range p.l.Rulesets {
		r := &p.l.Rulesets[i]
		for j := range r.Tables {
			for k := range r.Tables[j].Rules {
				for _, m := range ruleModulesOf(r.Tables[j].Name, r.Tables[j].Rules[k].Words) {
					known[m] = true
					byNFT = byNFT || r.Backend == NFT
				}
			}
		}
	}
	for _, m := range p.l.Modules {
		name := anyBackend(m.Name)
		_, elsewhere := stay[name]
		if !ruleModules[name] || m.Refs <= int64(len(m.By)) || known[name] || elsewhere || slices.Contains(m.By, "[permanent]") {
			continue
		}
		if byNFT && strings.HasPrefix(name, "nft_") {
			continue // newer iptables-nft writes some of its rules with these
		}
		if p.Block(Block{
			Risk: RiskModuleHeld, Address: "module." + m.Name, Where: fmt.Sprintf("%s has %s", m.Name, plural(int(m.Refs)-len(m.By), "reference that is no module", "references that are no modules")),
			Why:    "rules need it that ctplan cannot find, so unloading it would fail: they are in a network namespace that nothing lists, because only an open file or a mount in another mount namespace keeps it",
			Remedy: `end the program or the container that keeps that namespace, or allow_risk = ["module_held"] to leave the module loaded`, Override: true, Source: p.d.ModeSource,
		}) {
			stay[name] = true
		}
	}
}

func (p *stageModules) blockHolders(address, where string, list []holder, stay map[string]bool) {
	accepted := p.d.Allows(RiskModuleHeld)
	for _, h := range list {
		for _, m := range h.modules {
			stay[anyBackend(m)] = accepted
		}
	}
	for i, h := range list {
		if i == MaxNamed && len(list) > MaxNamed+1 {
			rest := list[i:]
			var names, commands []string
			for _, h := range rest {
				names = append(names, h.what)
				commands = append(commands, h.commands...)
			}
			h = holder{what: strings.Join(names, "; "), modules: h.modules, maker: h.maker, commands: commands}
			p.blockHolder(address, where, h)
			return
		}
		p.blockHolder(address, where, h)
	}
}

func (p *stageModules) blockHolder(address, where string, h holder) {
	why, remedy := "it needs connection tracking", "delete it, here and in what makes it"
	if p.l.Conntrack.Kind == ConntrackModule {
		why += ", keeps " + strings.Join(h.modules, " and ") + " loaded, and could not be made again once loading is blocked"
	}
	if h.maker != "" {
		why += "; " + h.maker + " makes it"
	}
	if len(h.commands) == 0 {
		remedy = "end what makes it: nft's language cannot write its name, so no command deletes it alone"
	}
	p.Block(Block{
		Risk: RiskModuleHeld, Address: address, Where: where + h.what, Why: why,
		Remedy:   remedy + `; or allow_risk = ["module_held"] to leave it as it is`,
		Override: true, Source: p.d.ModeSource, Commands: h.commands,
	})
}

// tableHolders are what of a table of nftables needs connection tracking:
// rules first, since nothing that they name can go before them.
func tableHolders(t NFTTable, enter string) []holder {
	items := slices.Clone(t.Items)
	slices.SortStableFunc(items, func(a, b NFTItem) int { return rank(a) - rank(b) })
	var out []holder
	for _, i := range items {
		modules := itemModules(i)
		if len(modules) == 0 || i.Kind == "chain" && enter == "" && isXtables(t) {
			continue // the last: apply removes iptables' own chains when they are empty
		}
		out = append(out, holder{
			what: describeItem(t, i), modules: modules, maker: madeNFT(t, i), commands: deletionOf(t, i, enter),
		})
	}
	return out
}

// legacyHolders are the rules of iptables-legacy in another namespace.
func legacyHolders(r *Ruleset, enter string) []holder {
	var out []holder
	tool := toolName(r.Family, Legacy, false)
	for i := range r.Tables {
		t := &r.Tables[i]
		for j := range t.Rules {
			rule := &t.Rules[j]
			modules := ruleModulesOf(t.Name, rule.Words)
			if len(modules) == 0 {
				continue
			}
			out = append(out, holder{
				what:     fmt.Sprintf("%s -t %s -A %s %s", tool, t.Name, rule.Chain, rule.Text),
				modules:  modules,
				maker:    makerOf(append([]string{rule.Chain}, rule.Words...)...),
				commands: []string{enter + tool + " -t " + t.Name + " -D " + shellWords(append([]string{rule.Chain}, rule.Words...)...)},
			})
		}
	}
	return out
}

// modules are those that a rule keeps loaded, and connection tracking with them.
func ruleModulesOf(table string, words []string) []string {
	if needsOf(table, words) == needNothing {
		return nil
	}
	s := parseSpec(words)
	var out []string
	for _, m := range s.modules {
		if m := NFTModule("match " + m); m != "" {
			out = append(out, m)
		}
	}
	if m := NFTModule("target " + s.target); m != "" {
		out = append(out, m)
	}
	if table == "nat" {
		out = append(out, "iptable_nat")
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// anyBackend is one name for the modules that do one thing and are called
// differently by family or age: ipt_MASQUERADE is xt_MASQUERADE.
func anyBackend(module string) string {
	for _, prefix := range []string{"ipt_", "ip6t_"} {
		if rest, ok := strings.CutPrefix(module, prefix); ok {
			return "xt_" + rest
		}
	}
	switch {
	case module == "ip6table_nat":
		return "iptable_nat"
	case strings.HasPrefix(module, "nf_flow_table"):
		return "nf_flow_table"
	case strings.HasPrefix(module, "nft_chain_nat"):
		return "nft_chain_nat"
	}
	return module
}
