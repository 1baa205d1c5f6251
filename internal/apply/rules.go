package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
	"github.com/ctplan/ctplan/providers/iptables"
)

// rulesKey names what one iptables-save prints.
type rulesKey struct {
	family  host.Family
	backend host.Backend
}

// Seen tells the host which rulesets stand in the kernel, read under the lock
// just now, so that it need not read them again.
func (h *Host) Seen(rulesets []host.Ruleset) {
	h.seen = map[rulesKey]host.Ruleset{}
	for _, r := range rulesets {
		if r.File == nil {
			h.seen[rulesKey{r.Family, r.Backend}] = r
		}
	}
}

// observeRules remembers how every table of the step will look after each of
// its sections, so that recovery can tell how far the step came.
func (h *Host) observeRules(ctx context.Context, s *change.RulesStep) (journal.Before, error) {
	live, err := h.rulesNow(ctx, rulesKey{s.Family, s.Backend})
	if err != nil {
		return journal.Before{}, err
	}
	exist, err := h.Rules.Tables(s.Family, s.Backend)
	if err != nil {
		return journal.Before{}, err
	}
	var before journal.Before
	for _, name := range tableNames(s.Sections) {
		t := journal.TableBefore{Name: name}
		t.Chains, t.Existed = exist[name]
		m := xtables.Model(live, name)
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
//
// Where that does not come to what it should, for whatever reason, the tables
// are loaded whole.
func (h *Host) undoRules(ctx context.Context, u undo) error {
	err := h.takeBack(ctx, u, h.Rules.Commit)
	if err == nil {
		return nil
	}
	if again := h.takeBack(ctx, u, h.replace); again != nil {
		return fmt.Errorf("%w; with the tables as a whole: %w", err, again)
	}
	return nil
}

// commit is how sections get into the kernel.
type commit func(context.Context, host.Family, host.Backend, []change.Section) error

// takeBack takes a rules step back by one way to commit, and reads it back.
func (h *Host) takeBack(ctx context.Context, u undo, commit commit) error {
	s := u.Step.Rules
	live, err := h.Rules.Save(ctx, s.Family, s.Backend)
	if err != nil {
		return err
	}
	came := progressOf(live, u)
	var back []change.Section
	switch {
	case came >= 0:
		back = inverse(s, came)
	case u.Rebooted && !showsOwn(live, s):
		return nil // the boot made these rules, not the transaction
	default:
		back = mend(live, inverse(s, len(s.Sections)))
	}
	if len(back) > 0 {
		if err := commit(ctx, s.Family, s.Backend, back); err != nil {
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
	if progressOf(live, u) == 0 || came < 0 && len(mend(live, inverse(s, len(s.Sections)))) == 0 {
		return nil
	}
	return errors.New("read back after the rollback, the rules are not what they were")
}

// replace is a commit that loads each table whole, as it will stand. What
// somebody else does to the tables in that instant is lost.
func (h *Host) replace(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error {
	live, err := h.Rules.Save(ctx, f, b)
	if err != nil {
		return err
	}
	names := tableNames(sections)
	models := modelsOf(live, names)
	models.apply(sections)
	var tables []xtables.TableLines
	for _, name := range names {
		tables = append(tables, xtables.TableLines{Name: name, Lines: models[name].Lines()})
	}
	return h.Rules.Replace(ctx, f, b, tables)
}

// insist sees to it that a step of the way back has happened, which came to err:
// where the rules are not what they should be, whole tables are loaded.
func (h *Host) insist(ctx context.Context, s *change.RulesStep, before journal.Before, err error) error {
	u := undo{Step: change.Step{Rules: s}, Before: before}
	live, again := h.Rules.Save(ctx, s.Family, s.Backend)
	if again != nil {
		return errors.Join(err, again)
	}
	came := progressOf(live, u)
	if happened(live, u) || came < 0 {
		return err // done, or others are at it too: reading back decides
	}
	again = h.replace(ctx, s.Family, s.Backend, s.Sections[came:])
	if again == nil {
		if live, again = h.Rules.Save(ctx, s.Family, s.Backend); again == nil && !happened(live, u) {
			again = errors.New("read back, the rules are not what they should be")
		}
	}
	if again != nil && err != nil {
		return fmt.Errorf("%w; with the tables as a whole: %w", err, again)
	}
	return again
}

// wholeMayDo reports whether rules that failed a test may still be loaded as
// whole tables.
func wholeMayDo(err error) bool {
	var refused *iptables.RestoreError
	var rehearsal *RehearsalError
	return errors.As(err, &refused) || errors.As(err, &rehearsal)
}

// progressOf returns after how many of the step's sections the rules stand as
// they do; -1 when no number of sections explains it.
func progressOf(live host.Ruleset, u undo) int {
	models := modelsOf(live, tableNames(u.Step.Rules.Sections))
	for came := range len(u.Step.Rules.Sections) + 1 {
		if models.stand(u.Before, came) {
			return came
		}
	}
	return -1
}

// happened reports whether the rules stand as they do after all of the step's
// sections: which may be as they stood before, where one takes back another.
func happened(live host.Ruleset, u undo) bool {
	sections := u.Step.Rules.Sections
	return modelsOf(live, tableNames(sections)).stand(u.Before, len(sections))
}

// inverse returns the sections that take back the first came sections.
func inverse(s *change.RulesStep, came int) []change.Section {
	part := change.Step{Rules: &change.RulesStep{Sections: s.Sections[:came]}}
	return part.Inverse().Rules.Sections
}

// showsOwn reports whether one of ctplan's chains that the step made stands.
func showsOwn(live host.Ruleset, s *change.RulesStep) bool {
	return slices.ContainsFunc(s.Sections, func(sec change.Section) bool {
		m := xtables.Model(live, sec.Table)
		return slices.ContainsFunc(sec.Ops, func(op change.RuleOp) bool {
			return op.Kind == change.SetChain && m.Has(op.Chain)
		})
	})
}

// mend fits sections that take something back to tables that others changed
// too: an operation whose result stands already is left out, and a rule is
// deleted where it is found. Where nothing is left to take back it returns
// nothing.
func mend(live host.Ruleset, back []change.Section) []change.Section {
	models := modelsOf(live, tableNames(back))
	out := models.mend(back)
	for name, m := range models {
		if digest(m) != digest(xtables.Model(live, name)) {
			return out
		}
	}
	return nil
}

// tableModels are tables by name.
type tableModels map[string]*xtables.TableModel

func modelsOf(live host.Ruleset, names []string) tableModels {
	models := tableModels{}
	for _, name := range names {
		models[name] = xtables.Model(live, name)
	}
	return models
}

// mend is mend on models, which it changes.
func (models tableModels) mend(back []change.Section) []change.Section {
	var out []change.Section
	inserts := map[string]int{} // of equal rules, by table, chain and rule
	for _, sec := range back {
		m := models[sec.Table]
		var ops []change.RuleOp
		for _, op := range sec.Ops {
			key := sec.Table + " " + op.Chain + " " + op.Rule
			if op.Kind == change.InsertRule {
				inserts[key]++
			}
			if op, needed := mendOp(m, op, inserts[key]); needed {
				m.Apply(op)
				ops = append(ops, op)
			}
		}
		if len(ops) > 0 {
			out = append(out, change.Section{Table: sec.Table, Ops: ops})
		}
	}
	return out
}

// apply carries sections out on models.
func (models tableModels) apply(sections []change.Section) {
	for _, sec := range sections {
		models[sec.Table].Apply(sec.Ops...)
	}
}

// stand reports whether the tables stand as they did after came sections of a
// step.
func (models tableModels) stand(before journal.Before, came int) bool {
	for _, t := range before.Tables {
		m, ok := models[t.Name]
		if !ok || came >= len(t.States) || t.States[came] != digest(m) {
			return false
		}
	}
	return len(before.Tables) > 0
}

// mendOp fits one operation to the table as it stands; needed is false where
// its result stands already. An insertion is the nth of equal ones.
func mendOp(m *xtables.TableModel, op change.RuleOp, nth int) (_ change.RuleOp, needed bool) {
	rules := m.Rules(op.Chain)
	switch op.Kind {
	case change.SetChain:
		op.Was, op.Existed = rules, m.Has(op.Chain)
		return op, !op.Existed || !slices.Equal(rules, op.Rules)
	case change.DropChain:
		op.Was = rules
		return op, m.Has(op.Chain)
	case change.DeleteRule:
		op.Pos = slices.Index(rules, op.Rule) + 1
		return op, op.Pos > 0
	default:
		have := 0
		for _, r := range rules {
			if r == op.Rule {
				have++
			}
		}
		op.Pos = min(max(op.Pos, 1), len(rules)+1)
		return op, have < nth && m.Has(op.Chain)
	}
}

// tableNames lists the tables of sections, each once.
func tableNames(sections []change.Section) []string {
	var names []string
	for _, s := range sections {
		if !slices.Contains(names, s.Table) {
			names = append(names, s.Table)
		}
	}
	return names
}

// digest names the state of a table.
func digest(m *xtables.TableModel) string {
	sum := sha256.Sum256([]byte(m.Canonical()))
	return hex.EncodeToString(sum[:16])
}
