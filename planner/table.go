package planner

import (
	"slices"
	"strings"
)

// builtins are the chains that the kernel makes in each table, in its order.
var builtins = map[string][]string{
	"filter":   {"INPUT", "FORWARD", "OUTPUT"},
	"raw":      {"PREROUTING", "OUTPUT"},
	"nat":      {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle":   {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"security": {"INPUT", "FORWARD", "OUTPUT"},
}

// tableModel is a table as a value that operations can be tried on. It is how
// the planner knows what a table will look like, and what each intermediate
// state lets through.
type tableModel struct {
	name   string
	chains []ChainDecl
	rules  map[string][]string // by chain: rule text behind "-A CHAIN "
}

func newTableModel(name string, sections []*Table) *tableModel {
	m := &tableModel{name: name, rules: map[string][]string{}}
	for _, t := range sections {
		m.chains = append(m.chains, t.Chains...)
		for i := range t.Rules {
			r := &t.Rules[i]
			m.rules[r.Chain] = append(m.rules[r.Chain], r.Text)
		}
	}
	if len(sections) == 0 {
		for _, c := range builtins[name] {
			m.chains = append(m.chains, ChainDecl{Name: c, Policy: "ACCEPT"})
		}
	}
	return m
}

// apply runs one operation. It mirrors what iptables-restore --noflush does
// with the lines that providers/iptables writes for it.
func (m *tableModel) apply(op RuleOp) {
	rules := m.rules[op.Chain]
	switch op.Kind {
	case SetChain:
		if !slices.ContainsFunc(m.chains, func(c ChainDecl) bool { return c.Name == op.Chain }) {
			m.chains = append(slices.Clip(m.chains), ChainDecl{Name: op.Chain, Policy: "-"})
		}
		m.rules[op.Chain] = op.Rules
	case DropChain:
		m.chains = slices.DeleteFunc(slices.Clone(m.chains), func(c ChainDecl) bool { return c.Name == op.Chain })
		delete(m.rules, op.Chain)
	case InsertRule:
		at := min(max(op.Pos-1, 0), len(rules))
		m.rules[op.Chain] = slices.Insert(slices.Clone(rules), at, op.Rule)
	case DeleteRule:
		if i := slices.Index(rules, op.Rule); i >= 0 {
			m.rules[op.Chain] = slices.Delete(slices.Clone(rules), i, i+1)
		}
	}
}

// deletion is the operation that deletes the rule. Of equal rules iptables
// deletes the first, and so does the model.
func (m *tableModel) deletion(r *Rule) RuleOp {
	return RuleOp{Kind: DeleteRule, Chain: r.Chain, Pos: slices.Index(m.rules[r.Chain], r.Text) + 1, Rule: r.Text}
}

// lines prints the table as iptables-save does, without counters.
func (m *tableModel) lines() []string {
	var out []string
	for _, c := range m.chains {
		out = append(out, ":"+c.Name+" "+c.Policy)
	}
	for _, c := range m.chains {
		for _, r := range m.rules[c.Name] {
			out = append(out, "-A "+c.Name+" "+r)
		}
	}
	return out
}

// sections returns the parts of a ruleset that make up one table.
func (r *Ruleset) sections(table string) []*Table {
	var found []*Table
	for i := range r.Tables {
		if r.Tables[i].Name == table {
			found = append(found, &r.Tables[i])
		}
	}
	return found
}

// standing is the one of them that stands once all are loaded: iptables-restore
// flushes the table at each.
func (r *Ruleset) standing(table string) []*Table {
	found := r.sections(table)
	return found[max(0, len(found)-1):]
}

func countRules(sections []*Table) (n int) {
	for _, t := range sections {
		n += len(t.Rules)
	}
	return n
}

// tableNames lists the tables to look at: filter and raw first, in the order
// in which they open, then whatever else the ruleset has.
func (r *Ruleset) tableNames() []string {
	names := []string{"filter", "raw"}
	for _, t := range r.Tables {
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

// jumpText is the rule that leads from a built-in chain into one of ours.
func jumpText(chain string) string { return "-j " + chain }

func isOwn(chain string) bool { return strings.HasPrefix(chain, OwnPrefix) }

// targetOf is the rule's target, without parsing all of it where the rule
// cannot lead to one of ours.
func (r *Rule) ownTarget() string {
	for i := len(r.Words) - 1; i > 0; i-- {
		if isOwn(r.Words[i]) {
			if t := parseSpec(r.Words).target; isOwn(t) {
				return t
			}
			return ""
		}
	}
	return ""
}

// isBareJump reports whether the rule is an unconditional jump.
func (r *Rule) isBareJump() bool {
	s := parseSpec(r.Words)
	return !s.isGoto && len(s.modules) == 0 && len(s.opts) == 0
}
