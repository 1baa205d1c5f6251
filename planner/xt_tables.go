package planner

import (
	"strings"
)

// bases are where the kernel calls the built-in chains (the tables of
// net/ipv4/netfilter/iptable_*.c). Chains that only translate sources are left
// out.
var bases = map[string]map[string]Base{
	"raw": {
		"PREROUTING": {Hook: Prerouting, Priority: PriorityRaw},
		"OUTPUT":     {Hook: LocalOut, Priority: PriorityRaw},
	},
	"mangle": {
		"PREROUTING":  {Hook: Prerouting, Priority: PriorityMangle},
		"INPUT":       {Hook: LocalIn, Priority: PriorityMangle},
		"FORWARD":     {Hook: Forwarding, Priority: PriorityMangle},
		"OUTPUT":      {Hook: LocalOut, Priority: PriorityMangle},
		"POSTROUTING": {Hook: Postrouting, Priority: PriorityMangle},
	},
	"nat": {
		"PREROUTING": {Hook: Prerouting, Priority: PriorityNATDest, NAT: true},
		"OUTPUT":     {Hook: LocalOut, Priority: PriorityNATDest, NAT: true},
	},
	"filter": {
		"INPUT":   {Hook: LocalIn, Priority: PriorityFilter},
		"FORWARD": {Hook: Forwarding, Priority: PriorityFilter},
		"OUTPUT":  {Hook: LocalOut, Priority: PriorityFilter},
	},
	"security": {
		"INPUT":   {Hook: LocalIn, Priority: PrioritySecurity},
		"FORWARD": {Hook: Forwarding, Priority: PrioritySecurity},
		"OUTPUT":  {Hook: LocalOut, Priority: PrioritySecurity},
	},
}

func chainSource(table, chain, policy string) ChainSource {
	c := ChainSource{Name: chain, Policy: policy, Drops: policy == "DROP"}
	if b, ok := bases[table][chain]; ok {
		c.Base = &b
	}
	return c
}

// Sources is a table, of one section or several, as a Compiler takes it.
func Sources(table string, sections []*Table) []ChainSource {
	var out []ChainSource
	at := map[string]int{}
	for _, s := range sections {
		for _, d := range s.Chains {
			if _, ok := at[d.Name]; !ok {
				at[d.Name] = len(out)
				out = append(out, chainSource(table, d.Name, d.Policy))
			}
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			n, ok := at[r.Chain]
			if !ok { // a file may leave the line out for a built-in chain
				n = len(out)
				at[r.Chain] = n
				out = append(out, chainSource(table, r.Chain, "ACCEPT"))
			}
			out[n].Rules = append(out[n].Rules, RuleSource{r.Text, r.Words})
		}
	}
	return out
}

// ModelSources is the same of a table as a value. words are those of rules by
// their text; a rule that is not there is a jump of ctplan's own.
func ModelSources(table string, m *TableModel, words map[string][]string) []ChainSource {
	out := make([]ChainSource, len(m.Chains()))
	for i, c := range m.Chains() {
		rules := m.Rules(c.Name)
		out[i] = chainSource(table, c.Name, c.Policy)
		out[i].Rules = make([]RuleSource, len(rules))
		for k, text := range rules {
			w, ok := words[text]
			if !ok {
				w = strings.Fields(text)
			}
			out[i].Rules[k] = RuleSource{text, w}
		}
	}
	return out
}

// NewEvaluator compiles the rules of a family that stand in the kernel.
// Rulesets of the other family and saved files are passed over.
func NewEvaluator(family Family, rulesets []Ruleset, facts Facts) *Evaluator {
	var live []*Ruleset
	for i := range rulesets {
		if r := &rulesets[i]; r.Family == family && r.File == nil {
			live = append(live, r)
		}
	}
	c := NewCompiler(family, facts, XTables(family), len(live) > 1)
	var tables []*CompiledTable
	for _, r := range live {
		for _, name := range r.TableNames() {
			if sections := r.Sections(name); len(sections) > 0 {
				tables = append(tables, c.Table(TableID{r.Backend, name}, Sources(name, sections)))
			}
		}
	}
	return c.Evaluator(tables)
}
