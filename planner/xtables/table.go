package xtables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// Builtins are the chains that the kernel makes in each table, in its order.
var Builtins = map[string][]string{
	"filter":   {"INPUT", "FORWARD", "OUTPUT"},
	"raw":      {"PREROUTING", "OUTPUT"},
	"nat":      {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle":   {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"security": {"INPUT", "FORWARD", "OUTPUT"},
}

// TableModel is a table as a value that operations can be tried on. It is how
// the planner knows what a table will look like, and what each intermediate
// state lets through, and how rollback knows how far a transaction came.
type TableModel struct {
	name   string
	chains []host.ChainDecl
	rules  map[string][]string // by chain: rule text behind "-A CHAIN "
	mine   map[string]bool     // the chains whose list nobody else has
}

// NewTable is a table of these sections. One of none is as the kernel
// makes it: empty, every policy ACCEPT.
func NewTable(name string, sections []*host.Table) *TableModel {
	m := &TableModel{name: name, rules: map[string][]string{}, mine: map[string]bool{}}
	for _, t := range sections {
		m.chains = append(m.chains, t.Chains...)
		for i := range t.Rules {
			r := &t.Rules[i]
			m.rules[r.Chain] = append(m.rules[r.Chain], r.Text)
		}
	}
	if len(sections) == 0 {
		for _, c := range Builtins[name] {
			m.chains = append(m.chains, host.ChainDecl{Name: c, Policy: "ACCEPT"})
		}
	}
	return m
}

// Model copies one table of a ruleset, as NewTable does.
func Model(r host.Ruleset, table string) *TableModel { return NewTable(table, r.Sections(table)) }

// Clone is a copy on which operations can be tried.
func (m *TableModel) Clone() *TableModel {
	if len(m.mine) > 0 {
		clear(m.mine)
	}
	return &TableModel{name: m.name, chains: m.chains, rules: maps.Clone(m.rules), mine: map[string]bool{}}
}

// Apply runs operations in order. It mirrors what iptables-restore --noflush
// does with the lines that are written for them.
func (m *TableModel) Apply(ops ...change.RuleOp) {
	for _, op := range ops {
		m.apply(op)
	}
}

func (m *TableModel) apply(op change.RuleOp) {
	rules := m.rules[op.Chain]
	switch op.Kind {
	case change.SetChain:
		if !m.Has(op.Chain) {
			m.chains = append(slices.Clip(m.chains), host.ChainDecl{Name: op.Chain, Policy: "-"})
		}
		m.rules[op.Chain] = op.Rules
		delete(m.mine, op.Chain)
	case change.DropChain:
		m.chains = slices.DeleteFunc(slices.Clone(m.chains), func(c host.ChainDecl) bool { return c.Name == op.Chain })
		delete(m.rules, op.Chain)
	case change.InsertRule:
		at := min(max(op.Pos-1, 0), len(rules))
		m.rules[op.Chain] = slices.Insert(m.own(op.Chain), at, op.Rule)
	case change.DeleteRule:
		if i := slices.Index(rules, op.Rule); i >= 0 {
			m.rules[op.Chain] = slices.Delete(m.own(op.Chain), i, i+1)
		}
	}
}

// own is a chain's list to be changed in place, which many operations on a long
// one need.
func (m *TableModel) own(chain string) []string {
	if !m.mine[chain] {
		m.rules[chain], m.mine[chain] = slices.Clone(m.rules[chain]), true
	}
	return m.rules[chain]
}

// Deletion is the operation that deletes the rule. Of equal rules iptables
// deletes the first, and so does the model.
func (m *TableModel) Deletion(r *host.Rule) change.RuleOp {
	return change.RuleOp{Kind: change.DeleteRule, Chain: r.Chain, Pos: slices.Index(m.rules[r.Chain], r.Text) + 1, Rule: r.Text}
}

// Name is the table's name.
func (m *TableModel) Name() string { return m.name }

// Has reports whether the chain exists.
func (m *TableModel) Has(chain string) bool {
	return slices.ContainsFunc(m.chains, func(c host.ChainDecl) bool { return c.Name == chain })
}

// Chains are the table's chains, in order.
func (m *TableModel) Chains() []host.ChainDecl { return m.chains }

// Rules are the rules of a chain, in order, as iptables-save prints them
// behind "-A CHAIN ". The list is not the caller's to change.
func (m *TableModel) Rules(chain string) []string {
	if m.mine[chain] {
		delete(m.mine, chain)
	}
	return m.rules[chain]
}

// Lines prints the table as iptables-save does, without counters.
func (m *TableModel) Lines() []string {
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

// Canonical is Lines in a form that two tables share exactly when they treat
// every packet alike rule by rule: chains in order of their names, and empty
// built-in chains with the policy ACCEPT left out, since a table without them
// does the same.
func (m *TableModel) Canonical() string {
	chains := slices.SortedFunc(slices.Values(m.chains), func(a, b host.ChainDecl) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, c := range chains {
		if c.Policy != "ACCEPT" {
			b.WriteString(":" + c.Name + " " + c.Policy + "\n")
		}
		for _, r := range m.rules[c.Name] {
			b.WriteString("-A " + c.Name + " " + r + "\n")
		}
	}
	return b.String()
}

// TableLines is a table as iptables-save prints it, without counters.
type TableLines struct {
	Name  string   `json:"name"`
	Lines []string `json:"lines"` // ":CHAIN POLICY", then "-A CHAIN …"
}

// Lines prints all tables of a ruleset.
func Lines(r host.Ruleset) []TableLines {
	var out []TableLines
	for _, name := range TableNames(&r) {
		out = append(out, TableLines{name, Model(r, name).Lines()})
	}
	return out
}

// CountRules is how many rules stand in sections.
func CountRules(sections []*host.Table) (n int) {
	for _, t := range sections {
		n += len(t.Rules)
	}
	return n
}

// Jump is the rule that leads from a built-in chain into one of ours.
func Jump(chain string) string { return "-j " + chain }

// IsOwn reports whether a chain is one of ctplan's.
func IsOwn(chain string) bool { return strings.HasPrefix(chain, declared.OwnPrefix) }

// OwnTarget is the chain of ctplan's that a rule leads to; "" where it leads to
// none. Not all of a rule is read where it cannot.
func OwnTarget(words []string) string {
	for i := len(words) - 1; i > 0; i-- {
		if IsOwn(words[i]) {
			if t := Parse(words).Target; IsOwn(t) {
				return t
			}
			return ""
		}
	}
	return ""
}

// IsBareJump reports whether the rule is an unconditional jump.
func IsBareJump(words []string) bool {
	s := Parse(words)
	return !s.IsGoto && len(s.Modules) == 0 && len(s.Matches) == 0
}

// TableNames are the tables of rulesets, each once, in their order.
func TableNames(rulesets ...*host.Ruleset) []string {
	var names []string
	for _, r := range rulesets {
		for _, t := range r.Tables {
			if !slices.Contains(names, t.Name) {
				names = append(names, t.Name)
			}
		}
	}
	return names
}

// ToolName is the iptables command of a family, and of a backend where plain
// iptables speaks to another one.
func ToolName(f host.Family, b host.Backend, primary bool) string {
	name := "iptables"
	if f == host.IPv6 {
		name = "ip6tables"
	}
	if !primary && b != "" {
		name += "-" + string(b)
	}
	return name
}

// FirstNeedy is the first rule of a table that cannot be loaded without
// nf_conntrack. The nat table needs it even without a rule.
func FirstNeedy(t *host.Table) *host.Rule {
	for i := range t.Rules {
		if Needs(t.Name, t.Rules[i].Words) != NeedNothing {
			return &t.Rules[i]
		}
	}
	if t.Name == "nat" {
		line := 1
		if len(t.Chains) > 0 {
			line = t.Chains[0].Line
		}
		return &host.Rule{Line: line}
	}
	return nil
}

// Address is the address in a plan of a table of a ruleset.
func Address(r *host.Ruleset, table string) string {
	switch {
	case r.File != nil:
		return "file." + r.File.Path
	case !r.Primary:
		return fmt.Sprintf("iptables.%s.%s.%s", r.Family, r.Backend, table)
	}
	return fmt.Sprintf("iptables.%s.%s", r.Family, table)
}

// Where names a rule so that it can be found: by file and line, or as
// iptables-save prints it.
func Where(r *host.Ruleset, rule *host.Rule) string {
	text := "-A " + rule.Chain + " " + rule.Text
	if r.File != nil {
		return fmt.Sprintf("%s:%d: %s", r.File.Path, rule.Line, text)
	}
	return text
}
