package cause

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/providers/trace"
)

// own is what ctplan itself has to do with a difference; nil: nothing.
func (m *matcher) own(c change.Change) *Cause {
	address := c.Meta().Address
	stayed := false // a newer transaction made the host what was declared then
	for _, t := range m.Past {
		step := stepOf(t, address)
		switch {
		case stayed && (t.Outcome != journal.Committed || step == nil):
		case t.Outcome == journal.Running || t.Outcome == journal.Undoing:
			// The steps that it did not come to are not in its journal.
			return m.about(t, t.Time, CutOff, "transaction %d%s was cut off, or is being carried out right now: it has not come to its end", t.ID, by(t))
		case step == nil:
		case t.Outcome == journal.WasUndone && asBefore(step, c):
			return m.about(t, t.Ended, RolledBack, "transaction %d%s was taken back%s", t.ID, by(t), because(t.Reason))
		case t.Outcome == journal.Committed && t.Back && asApplied(step, c):
			return m.about(t, t.Ended, RolledBack, "transaction %d%s took it back to what it was before", t.ID, by(t))
		case t.Outcome == journal.Committed && asApplied(step, c):
			return m.about(t, t.Ended, Declaration, "it is as transaction %d%s made it: what is declared has changed since", t.ID, by(t))
		case t.Outcome == journal.Committed:
			return nil // older ones say nothing of what it was since then
		}
		stayed = stayed || t.Outcome == journal.Committed
	}
	if m.since.IsZero() {
		return &Cause{
			Kind: NeverApplied, Sure: Likely, Text: "ctplan has not been applied here yet",
			Evidence: []trace.Record{{Where: journal.Dir, Text: "no transaction stayed"}},
		}
	}
	return nil
}

func (m *matcher) about(t journal.Transaction, at time.Time, kind Kind, format string, args ...any) *Cause {
	where := fmt.Sprintf("transaction %d", t.ID)
	if m.Journal != nil {
		where = m.Journal(t.ID)
	}
	return &Cause{Kind: kind, Sure: Likely, Text: fmt.Sprintf(format, args...), Evidence: []trace.Record{{Where: where, Text: string(t.Outcome) + ": " + t.Summary, Time: at}}}
}

func by(t journal.Transaction) string {
	if t.Who.User == "" {
		return ""
	}
	return " of " + t.Who.User
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func stepOf(t journal.Transaction, address string) *journal.Step {
	i := slices.IndexFunc(t.Steps, func(s journal.Step) bool { return slices.Contains(s.Addresses, address) })
	if i < 0 {
		return nil
	}
	return &t.Steps[i]
}

// asApplied reports whether an object is as a step left it.
func asApplied(s *journal.Step, c change.Change) bool { return as(s.Step, c) }

// asBefore reports whether an object is as it was before a step.
func asBefore(s *journal.Step, c change.Change) bool {
	if _, ok := c.(*change.RulesChange); ok {
		return true // what a rollback leaves of rules is what was there before
	}
	return as(s.Step.Inverse(), c)
}

func as(s change.Step, c change.Change) bool {
	switch c := c.(type) {
	case *change.SysctlChange:
		return s.Sysctl != nil && strings.Join(strings.Fields(s.Sysctl.After), " ") == strings.Join(strings.Fields(c.Before), " ")
	case *change.HashsizeChange:
		return s.Hashsize != nil && s.Hashsize.After == c.Before
	case *change.ModuleChange:
		return s.Module != nil && s.Module.Load != c.Load
	case *change.FileChange:
		return s.File != nil && s.File.After.Exists == c.Before.Exists && s.File.After.Content == c.Before.Content && s.File.After.Mode == c.Before.Mode
	case *change.RulesChange:
		return s.Rules != nil && chainsAs(s.Rules, c)
	}
	return false
}

// chainsAs reports whether ctplan's chains in a table stand as a step set them,
// and a plan would have them otherwise.
func chainsAs(s *change.RulesStep, c *change.RulesChange) bool {
	changes := false
	any := false
	for _, sec := range s.Sections {
		if sec.Table != c.Table {
			continue
		}
		for _, op := range sec.Ops {
			if op.Kind != change.SetChain {
				continue
			}
			any = true
			if !slices.Equal(chain(c.Before, op.Chain), op.Rules) {
				return false
			}
			changes = changes || !slices.Equal(chain(c.After, op.Chain), op.Rules)
		}
	}
	return any && changes && s.Family == c.Family
}

// chain is a chain's rules, of a table as iptables-save prints it.
func chain(lines []string, name string) (rules []string) {
	for _, l := range lines {
		if rule, ok := strings.CutPrefix(l, "-A "+name+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules
}

// number is a value of a sysctl that is one number.
func number(s string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	return n, err == nil
}
