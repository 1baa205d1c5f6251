package nftconf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// ownHead begins ctplan's own file.
const ownHead = "# ctplan writes this file, by its HCL: what is changed here is undone.\n"

// Keep is the edit that makes a change of the kernel's tables last: before is what
// stood, after what stands. What is gone of the rules of others is cut out of the
// files, and what is ctplan's own stands in ctplan's file: its table, its chains in
// the tables of others, and the jumps there, at the place among the saved rules that
// they have among those of the kernel.
func Keep(conf *host.NFTConf, before, after []host.NFTTable) (Edit, []Refusal) {
	k := &keeper{conf: conf, before: before}
	if conf.Doubt != "" {
		k.refuse(lastMain(conf.Mains), "what nftables.service loads is not known whole: %s", conf.Doubt)
		return k.edit, k.refused
	}
	for i := range before {
		k.cut(&before[i], after)
	}
	for i := range after {
		if t := &after[i]; nftables.IsOwnTable(t) {
			k.table(t)
		}
	}
	for i := range after {
		if t := &after[i]; !nftables.IsOwnTable(t) {
			k.chains(t)
		}
	}
	if k.b.Len() > 0 {
		k.edit.Own = ownHead + k.b.String()
	}
	return k.edit, k.refused
}

type keeper struct {
	conf    *host.NFTConf
	before  []host.NFTTable
	edit    Edit
	b       strings.Builder
	refused []Refusal
}

func (k *keeper) refuse(at, format string, args ...any) {
	k.refused = append(k.refused, Refusal{at, fmt.Sprintf(format, args...)})
}

// jumpsTo is ctplan's chain that a rule leads to; empty where it leads to none.
func jumpsTo(r *host.NFTRule) string {
	chain, _ := nftables.OwnTarget(r)
	return chain
}

// cut finds the statements of what is gone of a table, where it is not ctplan's.
func (k *keeper) cut(t *host.NFTTable, after []host.NFTTable) {
	stands := host.FindNFT(after, t.Family, t.Name)
	if stands == nil || nftables.IsOwnTable(t) {
		return
	}
	for c := range t.Chains {
		chain := &t.Chains[c]
		left := stands.Chain(chain.Name)
		if left == nil || nftables.IsOwn(chain.Name) {
			continue
		}
		for r := range chain.Rules {
			rule := &chain.Rules[r]
			if jumpsTo(rule) != "" || slices.ContainsFunc(left.Rules, func(o host.NFTRule) bool { return o.Handle == rule.Handle }) {
				continue
			}
			origin := nftables.OriginOf(k.conf, t, chain, r)
			switch saved, same := nftables.SavedRule(k.conf, t, chain, r); {
			case same:
				k.edit.Cut = append(k.edit.Cut, saved.Site)
			case origin.Exact:
				k.refuse(origin.At, "it stands where the kernel has the rule with handle %d, %s, and reads otherwise", rule.Handle, rule.Text)
			case origin.At != "" && !origin.Added:
				k.refuse(origin.At, "it is not known which line has the rule with handle %d, %s", rule.Handle, rule.Text)
			}
		}
	}
}

// table writes ctplan's own table, so that it can be loaded once more.
func (k *keeper) table(t *host.NFTTable) {
	name := t.Family + " " + t.Name
	fmt.Fprintf(&k.b, "\ntable %s\ndelete table %s\ntable %s {\n", name, name, name)
	for i := range t.Chains {
		k.chain(t, &t.Chains[i])
	}
	k.b.WriteString("}\n")
}

// chain writes a chain of ctplan's.
func (k *keeper) chain(t *host.NFTTable, c *host.NFTChain) {
	fmt.Fprintf(&k.b, "\tchain %s {\n", c.Name)
	if c.Base() {
		fmt.Fprintf(&k.b, "\t\ttype %s hook %s priority %d; policy %s;\n", c.Type, c.Hook, c.Priority, nftables.Policy(c.Policy))
	}
	for i := range c.Rules {
		k.b.WriteString("\t\t" + c.Rules[i].Text + "\n")
	}
	k.b.WriteString("\t}\n")
}

// chains writes those of ctplan's in a table of others, and the jumps to them.
func (k *keeper) chains(t *host.NFTTable) {
	var own []*host.NFTChain
	for i := range t.Chains {
		if nftables.IsOwn(t.Chains[i].Name) {
			own = append(own, &t.Chains[i])
		}
	}
	if len(own) == 0 {
		return
	}
	name := t.Family + " " + t.Name
	k.b.WriteString("\n")
	for _, c := range own {
		if nftables.ChainName(t, c.Name) == "" {
			k.refuse("table "+name, "nft has no way to write this name")
			return
		}
		fmt.Fprintf(&k.b, "add chain %s %s\nflush chain %s %s\n", name, c.Name, name, c.Name)
	}
	fmt.Fprintf(&k.b, "table %s {\n", name)
	for _, c := range own {
		k.chain(t, c)
	}
	k.b.WriteString("}\n")
	for i := range t.Chains {
		k.jumps(t, &t.Chains[i])
	}
}

// jumps writes the jumps of a chain of others, the last first: so the index of one
// does not count another.
func (k *keeper) jumps(t *host.NFTTable, c *host.NFTChain) {
	if nftables.IsOwn(c.Name) {
		return
	}
	for i := len(c.Rules) - 1; i >= 0; i-- {
		to := jumpsTo(&c.Rules[i])
		if to == "" {
			continue
		}
		_, saved := nftables.Find(k.conf, t.Family, t.Name, c.Name)
		if saved == nil {
			k.refuse(fmt.Sprintf("chain %s %s %s", t.Family, t.Name, c.Name), "no file that nftables.service loads has it, so the jump to %s cannot be saved", to)
			continue
		}
		where, ok := k.place(t, c, saved, i)
		if !ok {
			k.refuse(nftables.Place(saved.Site), "the rules there are not those of the kernel, so it is not known where among them the jump to %s stands", to)
			continue
		}
		fmt.Fprintf(&k.b, "%s jump %s\n", where, to)
	}
}

// place is the command that puts a rule where one of the kernel's stands: first,
// last, or beside the saved rule that stands beside it.
func (k *keeper) place(t *host.NFTTable, c *host.NFTChain, saved *host.NFTConfChain, at int) (string, bool) {
	chain := nftables.ChainName(t, c.Name)
	others := func(r host.NFTRule) bool { return jumpsTo(&r) == "" }
	switch {
	case chain == "" || saved.Doubt != "" || k.conf.Doubt != "":
		return "", false
	case !slices.ContainsFunc(c.Rules[at+1:], others):
		return "add rule " + chain, true
	case !slices.ContainsFunc(c.Rules[:at], others):
		return "insert rule " + chain, true
	case slices.ContainsFunc(saved.Rules, func(r host.NFTConfRule) bool { return r.Vague }):
		return "", false // nft 1.0.6 crashes on an index among rules with rules of their own
	}
	next := at + 1 + slices.IndexFunc(c.Rules[at+1:], others)
	if n := k.index(t, c, saved, next); n >= 0 {
		return fmt.Sprintf("insert rule %s index %d", chain, n), true
	}
	last := at - 1
	for !others(c.Rules[last]) {
		last--
	}
	if n := k.index(t, c, saved, last); n >= 0 {
		return fmt.Sprintf("add rule %s index %d", chain, n), true
	}
	return "", false
}

// index is where, among the saved rules that stay, that of the kernel's rule stands;
// -1 where that is not known.
func (k *keeper) index(t *host.NFTTable, c *host.NFTChain, saved *host.NFTConfChain, at int) int {
	table := host.FindNFT(k.before, t.Family, t.Name)
	if table == nil {
		return -1
	}
	was := table.Chain(c.Name)
	if was == nil {
		return -1
	}
	old := slices.IndexFunc(was.Rules, func(r host.NFTRule) bool { return r.Handle == c.Rules[at].Handle })
	if old < 0 {
		return -1
	}
	r, _ := nftables.SavedRule(k.conf, table, was, old)
	if r == nil || k.cuts(r.Site) {
		return -1
	}
	n := 0
	for s := range saved.Rules {
		if &saved.Rules[s] == r {
			return n
		}
		if site := saved.Rules[s].Site; !k.cuts(site) && !k.isOwn(site) {
			n++
		}
	}
	return -1
}

func (k *keeper) cuts(s host.NFTSite) bool {
	return slices.ContainsFunc(k.edit.Cut, func(o host.NFTSite) bool { return o.File == s.File && o.Span == s.Span })
}

func (k *keeper) isOwn(s host.NFTSite) bool { return s.File == OwnPath(k.conf.Mains) }
