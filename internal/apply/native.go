package apply

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/providers/nft"
)

// Native reads and changes nftables.
type Native interface {
	// Read reads all tables.
	Read() ([]host.NFTTable, error)
	// Keep adds to operations what their way back needs of the rules that they
	// delete.
	Keep(ops []change.NFTOp) ([]change.NFTOp, error)
	// Test has the kernel check what plan makes of the tables, and changes nothing.
	Test(plan NativePlan) error
	// Commit has it happen: all of it or nothing, for just those tables.
	Commit(plan NativePlan) error
}

// NativePlan is what to do to the tables as they stand.
type NativePlan = func(tables []host.NFTTable) ([]change.NFTOp, error)

// systemNative is nftables in the kernel.
type systemNative struct{}

func (systemNative) Read() ([]host.NFTTable, error)                  { return nft.Read(nil) }
func (systemNative) Keep(ops []change.NFTOp) ([]change.NFTOp, error) { return nft.Keep(ops) }
func (systemNative) Test(plan NativePlan) error                      { return nft.Test(plan) }
func (systemNative) Commit(plan NativePlan) error                    { return nft.Commit(plan) }

// errMoved says that rules are not those that the step was made for.
var errMoved = errors.New("the rules have changed since the plan was made")

// keepNative returns the step with what its way back needs.
func (h *Host) keepNative(s change.Step) (change.Step, error) {
	if s.NFT == nil {
		return s, nil
	}
	ops, err := h.Native.Keep(s.NFT.Ops)
	if err != nil {
		return s, err
	}
	s.NFT = &change.NFTStep{Ops: ops}
	return s, nil
}

// observeNative remembers how what the step changes stands.
func (h *Host) observeNative(s *change.NFTStep) (journal.Before, error) {
	tables, err := h.Native.Read()
	if err != nil {
		return journal.Before{}, err
	}
	return journal.Before{Native: nativeDigest(tables, s.Ops)}, nil
}

// doNative carries the step out on the chains that it was made for.
func (h *Host) doNative(s *change.NFTStep, before journal.Before) error {
	return h.Native.Commit(func(tables []host.NFTTable) ([]change.NFTOp, error) {
		if nativeDigest(tables, s.Ops) != before.Native {
			return nil, errMoved
		}
		return s.Ops, nil
	})
}

// testNative has the kernel check the steps, and that what rules of others they
// delete can be put back: one after the other, each as what the ones before leave.
func (h *Host) testNative(steps []change.Step) error {
	var ops []change.NFTOp
	for _, s := range steps {
		if s.NFT != nil {
			ops = append(ops, s.NFT.Ops...)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	ops, err := h.Native.Keep(ops)
	if err != nil {
		return err
	}
	if err := h.Native.Test(func([]host.NFTTable) ([]change.NFTOp, error) { return ops, nil }); err != nil {
		return err
	}
	var there []change.NFTOp // what stands today goes and comes back
	for _, op := range ops {
		if op.Kind == change.DeleteNFTRule && op.Kept != nil {
			there = append(there, op)
		}
	}
	err = h.Native.Test(func(tables []host.NFTTable) ([]change.NFTOp, error) {
		gone := mendNative(tables, there)
		return append(gone, (&change.NFTStep{Ops: gone}).Inverse().Ops...), nil
	})
	if err != nil {
		return &RehearsalError{Back: true, Err: err}
	}
	return nil
}

// undoNative takes a step back from wherever it stands: an operation whose result
// stands already is left out, and what others did meanwhile stays.
func (h *Host) undoNative(u undo) error {
	back := u.Step.NFT.Inverse().Ops
	err := h.Native.Commit(func(tables []host.NFTTable) ([]change.NFTOp, error) {
		if u.Rebooted && !showsOwnNative(tables, u.Step.NFT) {
			return nil, nil // the boot made these rules, not the transaction
		}
		return mendNative(tables, back), nil
	})
	if err != nil {
		return err
	}
	tables, err := h.Native.Read()
	if err != nil {
		return err
	}
	if !u.Rebooted && len(mendNative(tables, back)) > 0 {
		return errors.New("read back after the rollback, the rules of nftables are not what they were")
	}
	return nil
}

// showsOwnNative reports whether one of ctplan's chains that the step made stands.
func showsOwnNative(tables []host.NFTTable, s *change.NFTStep) bool {
	return slices.ContainsFunc(s.Ops, func(op change.NFTOp) bool {
		return op.Kind == change.SetNFTChain && chainIn(tables, &op) != nil
	})
}

func tableIn(tables []host.NFTTable, op *change.NFTOp) *host.NFTTable {
	return host.FindNFT(tables, op.Family, op.Table)
}

func chainIn(tables []host.NFTTable, op *change.NFTOp) *host.NFTChain {
	t := tableIn(tables, op)
	if t == nil {
		return nil
	}
	return t.Chain(op.Chain)
}

// mendNative fits operations to tables that others changed too: what stands
// already is left out, and a rule is deleted where it is found.
func mendNative(tables []host.NFTTable, ops []change.NFTOp) (out []change.NFTOp) {
	inserts := map[string]int{} // of equal rules, by table, chain and rule
	for _, op := range ops {
		var key string
		if op.Rule != nil {
			key = strings.Join([]string{op.Family, op.Table, op.Chain, nftables.Key(op.Rule, op.Sets)}, " ")
		}
		if op.Kind == change.InsertNFTRule {
			inserts[key]++
		}
		op, needed := mendNativeOp(tables, op, inserts[key])
		if !needed {
			continue
		}
		ops := []change.NFTOp{op}
		if op.Kind == change.DropNFTChain {
			ops = append(jumpsTo(tables, &op), op)
		}
		tables = nftables.Apply(tables, ops)
		out = append(out, ops...)
	}
	return out
}

// jumpsTo are the deletions of the rules that lead to a chain of ctplan's, which
// cannot go as long as somebody's do.
func jumpsTo(tables []host.NFTTable, op *change.NFTOp) (out []change.NFTOp) {
	t := tableIn(tables, op)
	for i := range t.Chains {
		c := &t.Chains[i]
		for k, r := range slices.Backward(c.Rules) {
			if to, _ := nftables.OwnTarget(&r); to == op.Chain {
				out = append(out, change.NFTOp{Kind: change.DeleteNFTRule, Family: op.Family, Table: op.Table, Chain: c.Name, Pos: k + 1, Rule: &r})
			}
		}
	}
	return out
}

// mendNativeOp fits one operation to the tables as they stand; needed is false
// where its result stands already, or cannot. An insertion is the nth of equal
// ones.
func mendNativeOp(tables []host.NFTTable, op change.NFTOp, nth int) (_ change.NFTOp, needed bool) {
	t, c := tableIn(tables, &op), chainIn(tables, &op)
	var at []int // where the rule stands
	if c != nil && op.Rule != nil {
		key := nftables.Key(op.Rule, op.Sets)
		for i := range c.Rules {
			if nftables.Key(&c.Rules[i], t.Sets) == key {
				at = append(at, i)
			}
		}
	}
	switch op.Kind {
	case change.AddNFTTable:
		return op, t == nil
	case change.DeleteNFTTable:
		return op, t != nil && len(t.Chains) == 0 && !slices.ContainsFunc(t.Sets, func(s host.NFTSet) bool { return s.Flags&host.NFTSetAnonymous == 0 })
	case change.SetNFTChain:
		if t == nil {
			return op, false
		}
		op.Was = nftables.Content(t, op.Chain)
		return op, !nftables.SameContent(op.Was, op.Want)
	case change.DropNFTChain:
		if c == nil {
			return op, false
		}
		op.Was = nftables.Content(t, op.Chain)
		return op, true
	case change.DeleteNFTRule:
		switch {
		case len(at) == 0:
			return op, false
		case !slices.Contains(at, op.Pos-1):
			op.Pos = at[0] + 1
		}
		return op, true
	default:
		if c == nil {
			return op, false
		}
		op.Pos = min(max(op.Pos, 1), len(c.Rules)+1)
		return op, len(at) < nth
	}
}

// nativeDigest names the state of the chains that operations are about: those of
// others by all their rules, in order.
func nativeDigest(tables []host.NFTTable, ops []change.NFTOp) string {
	var lines []string
	seen := map[string]bool{}
	for i := range ops {
		op := &ops[i]
		name := fmt.Sprintf("%s %q %q", op.Family, op.Table, op.Chain)
		if seen[name] {
			continue
		}
		seen[name] = true
		lines = append(lines, name)
		c := chainIn(tables, op)
		if c == nil {
			lines = append(lines, fmt.Sprint(tableIn(tables, op) != nil))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s %d %s", c.Type, c.Hook, c.Priority, c.Policy))
		for k := range c.Rules {
			lines = append(lines, nftables.Key(&c.Rules[k], tableIn(tables, op).Sets))
		}
	}
	sum := sha256.Sum256([]byte(strings.Join(lines, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// native plans the way back for nftables.
func (b *wayBack) native(group []journal.Step) error {
	live, err := b.host.Native.Read()
	if err != nil {
		return err
	}
	now := live
	var names []change.NFTOp // of the tables
	kept := map[string]*change.NFTKept{}
	for _, s := range slices.Backward(group) {
		back := s.NFT.Inverse().Ops
		for _, op := range back {
			if op.Kept != nil {
				kept[nftables.Key(op.Rule, op.Sets)] = op.Kept
			}
			if !slices.ContainsFunc(names, func(o change.NFTOp) bool { return o.Family == op.Family && o.Table == op.Table }) {
				names = append(names, op)
			}
		}
		now = nftables.Apply(now, mendNative(now, back))
	}
	step := change.Step{NFT: &change.NFTStep{}}
	for _, name := range names {
		was, want := tableIn(live, &name), tableIn(now, &name)
		c := &change.NFTChange{
			M:      change.Meta{Address: "nftables." + name.Family + "." + name.Table, Action: change.Update, Reasons: []string{b.reason}},
			Family: name.Family, Table: name.Table,
		}
		c.Ops = tableBetween(name, was, want, kept)
		if len(c.Ops) == 0 {
			continue
		}
		var chains []string
		for _, op := range c.Ops {
			chains = append(chains, op.Chain)
		}
		if was != nil {
			c.Before = nftables.Lines(was, chains)
		}
		if want != nil {
			c.After = nftables.Lines(want, chains)
		}
		step.NFT.Ops = append(step.NFT.Ops, c.Ops...)
		step.Addresses = append(step.Addresses, c.M.Address)
		b.plan.Changes = append(b.plan.Changes, c)
	}
	if len(step.NFT.Ops) > 0 {
		b.steps = append(b.steps, step)
	}
	return nil
}

// tableBetween is nftables.Between for a table that may not be there, before or
// after.
func tableBetween(name change.NFTOp, was, want *host.NFTTable, kept map[string]*change.NFTKept) []change.NFTOp {
	table := change.NFTOp{Family: name.Family, Table: name.Table}
	none := &host.NFTTable{Family: name.Family, Name: name.Table}
	switch {
	case was == nil && want == nil:
		return nil
	case was == nil:
		table.Kind = change.AddNFTTable
		return append([]change.NFTOp{table}, nftables.Between(none, want, kept)...)
	case want == nil:
		table.Kind = change.DeleteNFTTable
		return append(nftables.Between(was, none, kept), table)
	}
	return nftables.Between(was, want, kept)
}

// manualNative are the commands that take a step back by hand, in nft's words: as
// far as those are known to be the rule.
func manualNative(s *change.NFTStep) (out []string) {
	for _, op := range s.Inverse().Ops {
		chain := nftables.ChainName(&host.NFTTable{Family: op.Family, Name: op.Table}, op.Chain)
		switch {
		case op.Kind == change.DeleteNFTTable:
			out = append(out, fmt.Sprintf("nft delete table %s %s", op.Family, op.Table))
		case chain == "":
		case op.Kind == change.DropNFTChain:
			out = append(out, "nft flush chain "+chain, "nft delete chain "+chain)
		case op.Kind == change.DeleteNFTRule:
			out = append(out, fmt.Sprintf("nft -a list chain %s # and nft delete rule %[1]s handle N, of the rule that leads to %s", chain, op.Rule.Exprs[0].Chain))
		case op.Kind == change.InsertNFTRule:
			out = append(out, fmt.Sprintf("nft insert rule %s index %d %s", chain, op.Pos-1, quote(op.Rule.Text)))
		}
	}
	return out
}
