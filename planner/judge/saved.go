package judge

import (
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Saved are judges of the saved rules files that say something else than the
// kernel's rules, and of which work makes something, or whose raw tables keep
// out of tracking: as they stand, and as they will.
func Saved(d declared.Desired, l host.Live, work map[*host.Ruleset]*change.RulesStep) []*Judge {
	var out []*Judge
	for _, f := range host.Families {
		for i := range l.SavedRules {
			r := &l.SavedRules[i]
			if r.Family != f || r.Refusal != "" || len(r.Tables) == 0 || slices.ContainsFunc(l.Rulesets, func(live host.Ruleset) bool { return live.Family == f && sameRulesets(&live, r) }) {
				continue
			}
			var steps []change.Step
			if w := work[r]; w != nil {
				steps = append(steps, change.Step{Rules: w})
			} else if !TracksByRaw(r) {
				continue
			}
			out = append(out, New(d, l, f, []*host.Ruleset{r}, steps, nil))
		}
	}
	return out
}

// Across is a judge of what a boot makes of today: the kernel's rules as they
// stand, and those of j's saved file as it will be.
func (j *Judge) Across(kernel *Judge) *Judge {
	return &Judge{
		Desired: j.Desired, Live: j.Live, Family: j.Family, File: j.File, mixed: kernel.mixed, Connections: j.Connections, Places: j.Places,
		operators: j.operators, listens: j.listens, named: map[bool][]netip.Prefix{}, facts: j.facts, ways: ways{marks: j.ways.marks, none: j.ways.none},
		Stages: []Stage{kernel.Stages[0], j.End()}, Admitting: kernel.Admitting,
		sets: slices.Concat(kernel.sets, j.sets), coming: slices.Concat(kernel.coming, j.coming),
	}
}

func sameRulesets(a, b *host.Ruleset) bool {
	for _, name := range slices.Concat(a.TableNames(), b.TableNames()) {
		if xtables.Model(*a, name).Canonical() != xtables.Model(*b, name).Canonical() {
			return false
		}
	}
	return true
}

// TracksByRaw is whether rules of others in the raw table change what is
// tracked.
func TracksByRaw(r *host.Ruleset) bool {
	for i := range r.Tables {
		if r.Tables[i].Name == "raw" && slices.ContainsFunc(r.Tables[i].Rules, func(rule host.Rule) bool { return !xtables.IsOwn(rule.Chain) && xtables.MayNeed("raw", rule.Words) }) {
			return true
		}
	}
	return false
}
