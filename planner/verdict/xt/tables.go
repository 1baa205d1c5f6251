// Package xt reads the tables of iptables, of either backend, for package verdict.
package xt

import (
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// bases are where the kernel calls the built-in chains (the tables of
// net/ipv4/netfilter/iptable_*.c). Chains that only translate sources are left
// out.
var bases = map[string]map[string]verdict.Base{
	"raw": {
		"PREROUTING": {Hook: verdict.Prerouting, Priority: verdict.PriorityRaw},
		"OUTPUT":     {Hook: verdict.LocalOut, Priority: verdict.PriorityRaw},
	},
	"mangle": {
		"PREROUTING":  {Hook: verdict.Prerouting, Priority: verdict.PriorityMangle},
		"INPUT":       {Hook: verdict.LocalIn, Priority: verdict.PriorityMangle},
		"FORWARD":     {Hook: verdict.Forwarding, Priority: verdict.PriorityMangle},
		"OUTPUT":      {Hook: verdict.LocalOut, Priority: verdict.PriorityMangle, Reroutes: true},
		"POSTROUTING": {Hook: verdict.Postrouting, Priority: verdict.PriorityMangle},
	},
	"nat": {
		"PREROUTING": {Hook: verdict.Prerouting, Priority: verdict.PriorityNATDest, NAT: true},
		"OUTPUT":     {Hook: verdict.LocalOut, Priority: verdict.PriorityNATDest, NAT: true},
	},
	"filter": {
		"INPUT":   {Hook: verdict.LocalIn, Priority: verdict.PriorityFilter},
		"FORWARD": {Hook: verdict.Forwarding, Priority: verdict.PriorityFilter},
		"OUTPUT":  {Hook: verdict.LocalOut, Priority: verdict.PriorityFilter},
	},
	"security": {
		"INPUT":   {Hook: verdict.LocalIn, Priority: verdict.PrioritySecurity},
		"FORWARD": {Hook: verdict.Forwarding, Priority: verdict.PrioritySecurity},
		"OUTPUT":  {Hook: verdict.LocalOut, Priority: verdict.PrioritySecurity},
	},
}

func chainSource(table, chain, policy string) verdict.ChainSource {
	c := verdict.ChainSource{Name: chain, Policy: policy, Drops: policy == "DROP"}
	if b, ok := bases[table][chain]; ok {
		c.Base = &b
	}
	return c
}

// Sources is a table, of one section or several, as a Compiler takes it.
func Sources(table string, sections []*host.Table) []verdict.ChainSource {
	var out []verdict.ChainSource
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
			out[n].Rules = append(out[n].Rules, verdict.RuleSource{Text: r.Text, Words: r.Words})
		}
	}
	return out
}

// ModelSources is the same of a table as a value. words are those of rules by
// their text; a rule that is not there is a jump of ctplan's own.
func ModelSources(table string, m *xtables.TableModel, words map[string][]string) []verdict.ChainSource {
	out := make([]verdict.ChainSource, len(m.Chains()))
	for i, c := range m.Chains() {
		rules := m.Rules(c.Name)
		out[i] = chainSource(table, c.Name, c.Policy)
		out[i].Rules = make([]verdict.RuleSource, len(rules))
		for k, text := range rules {
			w, ok := words[text]
			if !ok {
				w = xtables.Words(text)
			}
			out[i].Rules[k] = verdict.RuleSource{Text: text, Words: w}
		}
	}
	return out
}

// Alone is a chain of ctplan's as if nothing else were there: what it does not
// accept is dropped.
func Alone(c declared.Chain) verdict.ChainSource {
	out := verdict.ChainSource{Name: c.Name, Policy: "DROP", Drops: true, Base: chainSource(c.Table, c.Hook, "").Base}
	for _, r := range c.Rules {
		out.Rules = append(out.Rules, verdict.RuleSource{Text: r.Text, Words: r.Words})
	}
	return out
}

// NewEvaluator compiles the rules of a family that stand in the kernel.
// Rulesets of the other family and saved files are passed over.
func NewEvaluator(family host.Family, rulesets []host.Ruleset, facts verdict.Facts) *verdict.Evaluator {
	var live []*host.Ruleset
	for i := range rulesets {
		if r := &rulesets[i]; r.Family == family && r.File == nil {
			live = append(live, r)
		}
	}
	c := verdict.NewCompiler(family, facts, len(live) > 1)
	var tables []*verdict.Table
	for _, r := range live {
		for _, name := range r.TableNames() {
			if sections := r.Sections(name); len(sections) > 0 {
				tables = append(tables, c.Table(verdict.TableID{Backend: r.Backend, Table: name}, XTables(family), Sources(name, sections)))
			}
		}
	}
	return c.Evaluator(tables)
}
