package nftables

import (
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// IsOwn reports whether a chain is one of ctplan's.
func IsOwn(chain string) bool { return strings.HasPrefix(chain, declared.OwnPrefix) }

// IsOwnTable reports whether a table is ctplan's own.
func IsOwnTable(t *host.NFTTable) bool { return t.Family == "inet" && t.Name == declared.OwnTable }

// OwnTarget is the chain of ctplan's that a rule leads to; "" where it leads to
// none. bare is whether it leads every packet there.
func OwnTarget(r *host.NFTRule) (chain string, bare bool) {
	for i := range r.Exprs {
		if e := &r.Exprs[i]; e.Name == "immediate" && IsOwn(e.Chain) {
			return e.Chain, i == 0
		}
	}
	return "", false
}

// Jump is the rule that leads from a base chain into one of ctplan's.
func Jump(chain string) host.NFTRule {
	return host.NFTRule{Text: "jump " + chain, Exprs: host.NFTProgram{{Name: "immediate", Verdict: "jump", Chain: chain}}}
}

// Key is a rule's meaning in one string: two rules of one key are the same to
// the kernel, whatever their handles and counters. Sets without a name of their
// own count by what they hold.
func Key(r *host.NFTRule, sets []host.NFTSet) string {
	var b strings.Builder
	for i := range r.Exprs {
		e := r.Exprs[i]
		if strings.HasPrefix(e.Set, "__") {
			if k := slices.IndexFunc(sets, func(s host.NFTSet) bool { return s.Name == e.Set }); k >= 0 {
				e.Set = "{" + strconv.FormatUint(uint64(sets[k].KeyType), 10) + " " + string(sets[k].Elements) + "}"
			}
		}
		text, _ := host.NFTProgram{e}.MarshalText()
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String() + r.Comment
}

// Content is a chain of a table with the sets that its rules look up and that
// have no name of their own; nil where there is none.
func Content(t *host.NFTTable, chain string) *change.NFTContent {
	found := t.Chain(chain)
	if found == nil {
		return nil
	}
	c := *found
	c.Rules = slices.Clone(c.Rules)
	return &change.NFTContent{Chain: c, Sets: SetsOf(t, c.Rules)}
}

// SetsOf are the sets that rules of a table look up and that have no name of
// their own.
func SetsOf(t *host.NFTTable, rules []host.NFTRule) (out []host.NFTSet) {
	for i := range rules {
		for _, e := range rules[i].Exprs {
			if !strings.HasPrefix(e.Set, "__") {
				continue
			}
			if k := slices.IndexFunc(t.Sets, func(s host.NFTSet) bool { return s.Name == e.Set }); k >= 0 {
				out = append(out, t.Sets[k])
			}
		}
	}
	return out
}

// SameContent reports whether two chains are the same to the kernel.
func SameContent(a, b *change.NFTContent) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := &a.Chain, &b.Chain
	return x.Hook == y.Hook && x.Type == y.Type && x.Priority == y.Priority && x.Policy == y.Policy &&
		slices.EqualFunc(x.Rules, y.Rules, func(r, s host.NFTRule) bool { return Key(&r, a.Sets) == Key(&s, b.Sets) })
}

// Apply is what operations make of tables, which it leaves as they are. New
// sets without a name get names that no other set of the table has.
func Apply(tables []host.NFTTable, ops []change.NFTOp) []host.NFTTable {
	out := slices.Clone(tables)
	cloned := map[string]bool{}
	for i := range ops {
		op := &ops[i]
		k := slices.IndexFunc(out, func(t host.NFTTable) bool { return t.Family == op.Family && t.Name == op.Table })
		switch {
		case op.Kind == change.AddNFTTable && k < 0:
			out = append(out, host.NFTTable{Family: op.Family, Name: op.Table, Whole: true})
		case op.Kind == change.DeleteNFTTable && k >= 0:
			out = slices.Delete(out, k, k+1)
		case k >= 0:
			if name := op.Family + " " + op.Table; !cloned[name] {
				cloned[name] = true
				out[k] = Clone(out[k])
			}
			Do(&out[k], op)
		}
	}
	return out
}

// Clone is a copy on which operations can be tried.
func Clone(t host.NFTTable) host.NFTTable {
	t.Chains, t.Sets = slices.Clone(t.Chains), slices.Clone(t.Sets)
	for i := range t.Chains {
		t.Chains[i].Rules = slices.Clone(t.Chains[i].Rules)
	}
	return t
}

// Do runs an operation on the chains of a table.
func Do(t *host.NFTTable, op *change.NFTOp) {
	k := slices.IndexFunc(t.Chains, func(c host.NFTChain) bool { return c.Name == op.Chain })
	switch op.Kind {
	case change.SetNFTChain:
		c := op.Want.Chain
		c.Rules = adopt(t, c.Rules, op.Want.Sets)
		if k < 0 {
			t.Chains = append(t.Chains, c)
		} else {
			t.Chains[k] = c
		}
	case change.DropNFTChain:
		if k >= 0 {
			t.Chains = slices.Delete(t.Chains, k, k+1)
		}
	case change.InsertNFTRule:
		if k >= 0 {
			c := &t.Chains[k]
			rule := *op.Rule
			rule.Handle = 0 // the kernel gives it another
			c.Rules = slices.Insert(c.Rules, min(op.Pos-1, len(c.Rules)), adopt(t, []host.NFTRule{rule}, op.Sets)...)
		}
	case change.DeleteNFTRule:
		if k >= 0 && op.Pos <= len(t.Chains[k].Rules) {
			c := &t.Chains[k]
			c.Rules = slices.Delete(c.Rules, op.Pos-1, op.Pos)
		}
	}
}

// Between are the operations that make of a table another state of it, and no more
// than it takes: chains of ctplan's as a whole, those of others rule by rule. kept
// are rules of others as the kernel told of them, by their Key.
func Between(from, to *host.NFTTable, kept map[string]*change.NFTKept) (ops []change.NFTOp) {
	do := func(op change.NFTOp) {
		op.Family, op.Table = from.Family, from.Name
		ops = append(ops, op)
	}
	for i := range to.Chains {
		name := to.Chains[i].Name
		was, want := Content(from, name), Content(to, name)
		switch {
		case IsOwn(name) && !SameContent(was, want):
			do(change.NFTOp{Kind: change.SetNFTChain, Chain: name, Want: want, Was: was})
		case !IsOwn(name) && was != nil:
			between(was, want, kept, do)
		}
	}
	for i := len(from.Chains) - 1; i >= 0; i-- { // so that they come back in their order
		if name := from.Chains[i].Name; IsOwn(name) && Content(to, name) == nil {
			do(change.NFTOp{Kind: change.DropNFTChain, Chain: name, Was: Content(from, name)})
		}
	}
	return ops
}

// between is the same of one chain of others.
func between(was, want *change.NFTContent, kept map[string]*change.NFTKept, do func(change.NFTOp)) {
	a, b := was.Chain.Rules, want.Chain.Rules
	key := func(rules []host.NFTRule, sets []host.NFTSet) []string {
		keys := make([]string, len(rules))
		for i := range rules {
			keys[i] = Key(&rules[i], sets)
		}
		return keys
	}
	x, y := key(a, was.Sets), key(b, want.Sets)
	pos := 1
	for i, k := 0, 0; i < len(a) || k < len(b); {
		switch {
		case i < len(a) && k < len(b) && x[i] == y[k]:
			i, k, pos = i+1, k+1, pos+1
		case i < len(a) && (k == len(b) || !slices.Contains(y[k:], x[i])): // it goes
			do(change.NFTOp{Kind: change.DeleteNFTRule, Chain: was.Chain.Name, Pos: pos, Rule: &a[i], Sets: was.Sets, Kept: kept[x[i]]})
			i++
		case k < len(b) && (i == len(a) || !slices.Contains(x[i:], y[k])): // it comes
			do(change.NFTOp{Kind: change.InsertNFTRule, Chain: was.Chain.Name, Pos: pos, Rule: &b[k], Sets: want.Sets, Kept: kept[y[k]]})
			k, pos = k+1, pos+1
		default: // it moves: it goes here, and comes where it shall be
			do(change.NFTOp{Kind: change.DeleteNFTRule, Chain: was.Chain.Name, Pos: pos, Rule: &a[i], Sets: was.Sets, Kept: kept[x[i]]})
			i++
		}
	}
}

// adopt gives rules the names that their sets get in a table.
func adopt(t *host.NFTTable, rules []host.NFTRule, sets []host.NFTSet) []host.NFTRule {
	out := slices.Clone(rules)
	if len(sets) == 0 {
		return out
	}
	names := map[string]string{}
	for _, s := range sets {
		was := s.Name
		s.Name = "__new" + strconv.Itoa(len(t.Sets))
		names[was] = s.Name
		t.Sets = append(t.Sets, s)
	}
	for i := range out {
		out[i].Exprs = slices.Clone(out[i].Exprs)
		for k := range out[i].Exprs {
			if name, ok := names[out[i].Exprs[k].Set]; ok {
				out[i].Exprs[k].Set = name
			}
		}
	}
	return out
}

const indent = "    "

// RuleLine is a rule as a line of Lines.
func RuleLine(r *host.NFTRule) string {
	if r.Text == "" {
		return indent + indent + "counter" // which texts leave out
	}
	return indent + indent + r.Text
}

// Lines prints a table's chains of these names about as nft lists them.
func Lines(t *host.NFTTable, chains []string) []string {
	out := []string{"table " + t.Family + " " + nftName(t.Name) + " {"}
	for i := range t.Chains {
		c := &t.Chains[i]
		if !slices.Contains(chains, c.Name) {
			continue
		}
		if len(out) > 1 {
			out = append(out, "")
		}
		out = append(out, indent+"chain "+nftName(c.Name)+" {")
		if c.Base() {
			out = append(out, indent+indent+"type "+c.Type+" hook "+c.Hook+" priority "+Priority(c.Priority)+"; policy "+c.Policy+";")
		}
		for k := range c.Rules {
			out = append(out, RuleLine(&c.Rules[k]))
		}
		out = append(out, indent+"}")
	}
	return append(out, "}")
}

// Priority is how nft names a priority.
func Priority(n int) string {
	for name, p := range priorities {
		if p == n {
			return name
		}
	}
	return strconv.Itoa(n)
}
