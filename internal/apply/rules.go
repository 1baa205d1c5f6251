package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner"
)

// rulesKey names what one iptables-save prints.
type rulesKey struct {
	family  planner.Family
	backend planner.Backend
}

// Seen tells the host which rulesets stand in the kernel, read under the lock
// just now, so that it need not read them again.
func (h *Host) Seen(rulesets []planner.Ruleset) {
	h.seen = map[rulesKey]planner.Ruleset{}
	for _, r := range rulesets {
		if r.File == nil {
			h.seen[rulesKey{r.Family, r.Backend}] = r
		}
	}
}

// observeRules remembers how every table of the step will look after each of
// its sections, so that recovery can tell how far the step came.
func (h *Host) observeRules(ctx context.Context, s *planner.RulesStep) (journal.Before, error) {
	live, ok := h.seen[rulesKey{s.Family, s.Backend}]
	if !ok {
		var err error
		if live, err = h.Rules.Save(ctx, s.Family, s.Backend); err != nil {
			return journal.Before{}, err
		}
	}
	exist, err := h.Rules.Tables(s.Family, s.Backend)
	if err != nil {
		return journal.Before{}, err
	}
	var before journal.Before
	for _, name := range tableNames(s.Sections) {
		t := journal.TableBefore{Name: name}
		t.Chains, t.Existed = exist[name]
		m := live.Model(name)
		t.States = append(t.States, digest(m))
		for _, sec := range s.Sections {
			if sec.Table == name {
				m.Apply(sec.Ops...)
			}
			t.States = append(t.States, digest(m))
		}
		before.Tables = append(before.Tables, t)
	}
	return before, nil
}

// undoRules takes a rules step back from wherever it stands.
//
// Each section is one commit, so the tables stand as one of the states that
// the journal holds; sections come off from there in reverse. Where somebody
// else changed a table meanwhile, no state fits: then every operation is taken
// back where its result still stands, and what others did stays.
func (h *Host) undoRules(ctx context.Context, u undo) error {
	s := u.Step.Rules
	live, err := h.Rules.Save(ctx, s.Family, s.Backend)
	if err != nil {
		return err
	}
	came := progressOf(live, u)
	var back []planner.Section
	switch {
	case came >= 0:
		back = inverse(s, came)
	case u.Rebooted && !showsOwn(live, s):
		return nil // the boot made these rules, not the transaction
	default:
		back = mend(live, s)
	}
	if len(back) > 0 {
		if err := h.Rules.Commit(ctx, s.Family, s.Backend, back); err != nil {
			return err
		}
	}
	for _, t := range u.Before.Tables {
		if err := h.Rules.Trim(s.Family, s.Backend, t); err != nil {
			return err
		}
	}
	if len(back) == 0 {
		return nil
	}
	if live, err = h.Rules.Save(ctx, s.Family, s.Backend); err != nil {
		return err
	}
	if came >= 0 && progressOf(live, undo{Step: u.Step, Before: firstStates(u.Before)}) == 0 || len(mend(live, s)) == 0 {
		return nil
	}
	return errors.New("read back after the rollback, the rules are not what they were")
}

// progressOf returns after how many of the step's sections the tables stand as
// they do; -1 when no number of sections explains it.
func progressOf(live planner.Ruleset, u undo) int {
	digests := make([]string, len(u.Before.Tables))
	for i, t := range u.Before.Tables {
		digests[i] = digest(live.Model(t.Name))
	}
	for came := range len(u.Step.Rules.Sections) + 1 {
		fits := func(i int) bool {
			states := u.Before.Tables[i].States
			return came < len(states) && states[came] == digests[i]
		}
		all := len(digests) > 0
		for i := range digests {
			all = all && fits(i)
		}
		if all {
			return came
		}
	}
	return -1
}

// firstStates keeps of each table the state before the step alone.
func firstStates(b journal.Before) journal.Before {
	var first journal.Before
	for _, t := range b.Tables {
		t.States = t.States[:min(1, len(t.States))]
		first.Tables = append(first.Tables, t)
	}
	return first
}

// inverse returns the sections that take back the first came sections.
func inverse(s *planner.RulesStep, came int) []planner.Section {
	part := planner.Step{Rules: &planner.RulesStep{Sections: s.Sections[:came]}}
	return part.Inverse().Rules.Sections
}

// showsOwn reports whether one of ctplan's chains that the step made stands.
func showsOwn(live planner.Ruleset, s *planner.RulesStep) bool {
	return slices.ContainsFunc(s.Sections, func(sec planner.Section) bool {
		m := live.Model(sec.Table)
		return slices.ContainsFunc(sec.Ops, func(op planner.RuleOp) bool {
			return op.Kind == planner.SetChain && m.Has(op.Chain)
		})
	})
}

// mend returns what takes back the step in tables that others changed too.
// Where nothing is left to take back it returns nothing.
func mend(live planner.Ruleset, s *planner.RulesStep) []planner.Section {
	var out []planner.Section
	models := map[string]planner.TableModel{}
	for _, sec := range inverse(s, len(s.Sections)) {
		m, ok := models[sec.Table]
		if !ok {
			m = live.Model(sec.Table)
			models[sec.Table] = m
		}
		var ops []planner.RuleOp
		for _, op := range sec.Ops {
			if op, needed := mendOp(m, op); needed {
				m.Apply(op)
				ops = append(ops, op)
			}
		}
		if len(ops) > 0 {
			out = append(out, planner.Section{Table: sec.Table, Ops: ops})
		}
	}
	return out
}

// mendOp fits one operation to the table as it stands; needed is false where
// its result stands already.
func mendOp(m planner.TableModel, op planner.RuleOp) (_ planner.RuleOp, needed bool) {
	rules := m.Rules(op.Chain)
	at := slices.Index(rules, op.Rule)
	switch op.Kind {
	case planner.SetChain:
		return op, !m.Has(op.Chain) || !slices.Equal(rules, op.Rules)
	case planner.DropChain:
		op.Was = rules
		return op, m.Has(op.Chain)
	case planner.DeleteRule:
		op.Pos = at + 1
		return op, at >= 0
	default:
		op.Pos = min(max(op.Pos, 1), len(rules)+1)
		return op, at < 0 && m.Has(op.Chain)
	}
}

// tableNames lists the tables of sections, each once.
func tableNames(sections []planner.Section) []string {
	var names []string
	for _, s := range sections {
		if !slices.Contains(names, s.Table) {
			names = append(names, s.Table)
		}
	}
	return names
}

// digest names the state of a table.
func digest(m planner.TableModel) string {
	sum := sha256.Sum256([]byte(m.Canonical()))
	return hex.EncodeToString(sum[:16])
}
