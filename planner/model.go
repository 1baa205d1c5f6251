package planner

import (
	"slices"
	"strings"
)

// TableModel is a table as a value: it shows what operations make of a table,
// without a kernel. Rollback asks it how far a transaction came.
type TableModel struct{ m *tableModel }

// Model copies one table of a ruleset. A table that does not stand there is
// modelled as the kernel makes it: empty, every policy ACCEPT.
func (r *Ruleset) Model(table string) TableModel {
	return TableModel{newTableModel(table, r.sections(table))}
}

// Apply runs operations in order, as iptables-restore --noflush does.
func (t TableModel) Apply(ops ...RuleOp) {
	for _, op := range ops {
		t.m.apply(op)
	}
}

// Has reports whether the chain exists.
func (t TableModel) Has(chain string) bool {
	return slices.ContainsFunc(t.m.chains, func(c ChainDecl) bool { return c.Name == chain })
}

// Rules are the rules of a chain, in order, as iptables-save prints them
// behind "-A CHAIN ".
func (t TableModel) Rules(chain string) []string { return slices.Clone(t.m.rules[chain]) }

// Lines prints the table as iptables-save does, without counters.
func (t TableModel) Lines() []string { return t.m.lines() }

// TableLines is a table as iptables-save prints it, without counters.
type TableLines struct {
	Name  string   `json:"name"`
	Lines []string `json:"lines"` // ":CHAIN POLICY", then "-A CHAIN …"
}

// Lines prints all tables of a ruleset.
func (r *Ruleset) Lines() []TableLines {
	var out []TableLines
	for _, name := range tablesOf(r) {
		out = append(out, TableLines{name, r.Model(name).Lines()})
	}
	return out
}

// Canonical is Lines in a form that two tables share exactly when they treat
// every packet alike rule by rule: chains in order of their names, and empty
// built-in chains with the policy ACCEPT left out, since a table without them
// does the same.
func (t TableModel) Canonical() string {
	chains := slices.SortedFunc(slices.Values(t.m.chains), func(a, b ChainDecl) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	for _, c := range chains {
		if c.Policy != "ACCEPT" {
			b.WriteString(":" + c.Name + " " + c.Policy + "\n")
		}
		for _, r := range t.m.rules[c.Name] {
			b.WriteString("-A " + c.Name + " " + r + "\n")
		}
	}
	return b.String()
}
