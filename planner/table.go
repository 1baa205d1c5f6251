package planner

import (
	"fmt"
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

// TableModel is a table as a value that operations can be tried on. It is how
// the planner knows what a table will look like, and what each intermediate
// state lets through, and how rollback knows how far a transaction came.
type TableModel struct {
	name   string
	chains []ChainDecl
	rules  map[string][]string // by chain: rule text behind "-A CHAIN "
}

// NewTableModel is a table of these sections. One of none is as the kernel
// makes it: empty, every policy ACCEPT.
func NewTableModel(name string, sections []*Table) *TableModel {
	m := &TableModel{name: name, rules: map[string][]string{}}
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

// Model copies one table of a ruleset, as NewTableModel does.
func Model(r Ruleset, table string) *TableModel { return NewTableModel(table, r.Sections(table)) }

// Apply runs operations in order. It mirrors what iptables-restore --noflush
// does with the lines that are written for them.
func (m *TableModel) Apply(ops ...RuleOp) {
	for _, op := range ops {
		m.apply(op)
	}
}

func (m *TableModel) apply(op RuleOp) {
	rules := m.rules[op.Chain]
	switch op.Kind {
	case SetChain:
		if !m.Has(op.Chain) {
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

// Deletion is the operation that deletes the rule. Of equal rules iptables
// deletes the first, and so does the model.
func (m *TableModel) Deletion(r *Rule) RuleOp {
	return RuleOp{Kind: DeleteRule, Chain: r.Chain, Pos: slices.Index(m.rules[r.Chain], r.Text) + 1, Rule: r.Text}
}

// Name is the table's name.
func (m *TableModel) Name() string { return m.name }

// Has reports whether the chain exists.
func (m *TableModel) Has(chain string) bool {
	return slices.ContainsFunc(m.chains, func(c ChainDecl) bool { return c.Name == chain })
}

// Chains are the table's chains, in order.
func (m *TableModel) Chains() []ChainDecl { return m.chains }

// Rules are the rules of a chain, in order, as iptables-save prints them
// behind "-A CHAIN ". The list is not the caller's to change.
func (m *TableModel) Rules(chain string) []string { return m.rules[chain] }

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
	chains := slices.SortedFunc(slices.Values(m.chains), func(a, b ChainDecl) int { return strings.Compare(a.Name, b.Name) })
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
func Lines(r Ruleset) []TableLines {
	var out []TableLines
	for _, name := range tablesOf(&r) {
		out = append(out, TableLines{name, Model(r, name).Lines()})
	}
	return out
}

func countRules(sections []*Table) (n int) {
	for _, t := range sections {
		n += len(t.Rules)
	}
	return n
}

// jumpText is the rule that leads from a built-in chain into one of ours.
func jumpText(chain string) string { return "-j " + chain }

func isOwn(chain string) bool { return strings.HasPrefix(chain, OwnPrefix) }

// targetOf is the rule's target, without parsing all of it where the rule
// cannot lead to one of ours.
func ownTarget(words []string) string {
	for i := len(words) - 1; i > 0; i-- {
		if isOwn(words[i]) {
			if t := parseSpec(words).target; isOwn(t) {
				return t
			}
			return ""
		}
	}
	return ""
}

// isBareJump reports whether the rule is an unconditional jump.
func isBareJump(words []string) bool {
	s := parseSpec(words)
	return !s.isGoto && len(s.modules) == 0 && len(s.opts) == 0
}

func tablesOf(rulesets ...*Ruleset) []string {
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

func toolName(f Family, b Backend, primary bool) string {
	name := "iptables"
	if f == IPv6 {
		name = "ip6tables"
	}
	if !primary && b != "" {
		name += "-" + string(b)
	}
	return name
}

// firstNeedy is the first rule of a table that cannot be loaded without
// nf_conntrack. The nat table needs it even without a rule.
func firstNeedy(t *Table) *Rule {
	for i := range t.Rules {
		if needsOf(t.Name, t.Rules[i].Words) != needNothing {
			return &t.Rules[i]
		}
	}
	if t.Name == "nat" {
		line := 1
		if len(t.Chains) > 0 {
			line = t.Chains[0].Line
		}
		return &Rule{Line: line}
	}
	return nil
}

// TableAddress is the address in a plan of a table of a ruleset.
func TableAddress(r *Ruleset, table string) string {
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
func Where(r *Ruleset, rule *Rule) string {
	text := "-A " + rule.Chain + " " + rule.Text
	if r.File != nil {
		return fmt.Sprintf("%s:%d: %s", r.File.Path, rule.Line, text)
	}
	return text
}
