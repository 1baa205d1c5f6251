// Package suggest proposes what to declare for a host whose table is full, and
// holds the proposal against the plan for it.
package suggest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Options say what to suggest.
type Options struct {
	Mode   declared.Mode     // Unmanaged: whichever fits the host
	Render declared.Renderer // never nil
	// Readings are numbers of tracked connections that were read one after
	// another, for the growth of the table; empty where it was read once.
	Readings []Reading
}

// Suggestion is a configuration that cures a host of its full table.
type Suggestion struct {
	declared.Declaration
	// Remains is what the plan for it would still do that somebody must decide
	// about: connections and services that it cuts off, other blocks, what it
	// lets in. A sentence without a full stop each.
	Remains []string
	// Blocked is whether a safety check would hold the plan back.
	Blocked bool
	// Unsure is whether the plan, blocked or not, cuts something off that works
	// today, or may: nobody can tell what becomes of it.
	Unsure bool

	obstacles []*obstacle
}

// fits is whether it can be taken as it stands.
func (s *Suggestion) fits() bool { return !s.Blocked && !s.Unsure }

// ErrNoConnections says that Live.Connections is nil.
var ErrNoConnections = errors.New("what is connected now was not read")

// NATError says that a host has nat rules, without which it does not work and
// which need connection tracking.
type NATError struct {
	Mode  declared.Mode
	Rules []string // the first of them
	Total int
}

func (e *NATError) Error() string {
	return fmt.Sprintf("mode %q is not possible here: address translation is connection tracking, and this host has %s, such as %s", e.Mode, words.Plural(e.Total, "nat rule", "nat rules"), e.Rules[0])
}

// maxRounds bounds how often a proposal is held against the plan for it.
const maxRounds = 6

// Suggest proposes what to declare for a host: for disabled and notrack the
// accept blocks without which the plan would cut connections or services off,
// for tuned the sizes. The proposal is planned, and refined until that plan
// loses nothing; what it still loses is in Remains.
//
// It is a pure function. Errors: ErrNoConnections, and NATError where the mode
// asked for is not possible.
func Suggest(l host.Live, o Options) (Suggestion, error) {
	if l.Connections == nil && o.Mode != declared.Tuned {
		return Suggestion{}, ErrNoConnections
	}
	nat := natRules(l)
	if len(nat) > 0 && (o.Mode == declared.Disabled || o.Mode == declared.Notrack) {
		return Suggestion{}, &NATError{o.Mode, nat[:min(len(nat), change.MaxNamed)], len(nat)}
	}
	switch o.Mode {
	case declared.Tuned:
		return suggestSizes(l, o, "asked for with --mode tuned"), nil
	case declared.Disabled, declared.Notrack:
		return suggestAccepts(l, o, o.Mode, "asked for with --mode "+string(o.Mode)), nil
	}
	if len(nat) > 0 {
		return suggestSizes(l, o, fmt.Sprintf("this host has %s, such as %s: address translation is connection tracking, so it cannot do without", words.Plural(len(nat), "nat rule", "nat rules"), nat[0])), nil
	}
	why := "nothing here translates addresses, and with the accept blocks below nothing else needs connection tracking: without it there is no table that could fill"
	if l.Conntrack.Kind == host.ConntrackAbsent {
		why = "this kernel has no connection tracking"
	}
	disabled := suggestAccepts(l, o, declared.Disabled, why)
	if disabled.fits() || l.Conntrack.Kind == host.ConntrackAbsent {
		return disabled, nil
	}
	because := strings.TrimSuffix(first(disabled.Remains), ".")
	notrack := suggestAccepts(l, o, declared.Notrack, "disabled would not do ("+because+")")
	if notrack.fits() {
		return notrack, nil
	}
	s := suggestSizes(l, o, "neither disabled nor notrack would do ("+because+"), so the table is given the size that it needs")
	for _, text := range inTheWay(l, &notrack) {
		s.Note(declared.NoteHead, text)
	}
	return s, nil
}

func first(list []string) string {
	if len(list) == 0 {
		return "its plan is blocked"
	}
	return list[0]
}

// natRules are the rules that translate addresses, live and saved, each once.
func natRules(l host.Live) []string {
	var out []string
	seen := map[string]bool{}
	for _, sets := range [][]host.Ruleset{l.Rulesets, l.SavedRules} {
		for i := range sets {
			for k := range sets[i].Tables {
				t := &sets[i].Tables[k]
				for n := range t.Rules {
					r := &t.Rules[n]
					if xtables.IsOwn(r.Chain) || xtables.Needs(t.Name, r.Words) != xtables.NeedNAT {
						continue
					}
					if text := "-A " + r.Chain + " " + r.Text; !seen[text] {
						seen[text] = true
						out = append(out, text)
					}
				}
			}
		}
	}
	for _, t := range l.NFT {
		for _, i := range t.Items {
			if !t.Dormant && i.Kind == "rule" && slices.ContainsFunc(i.Uses, nftables.Translates) {
				out = append(out, nftables.Describe(t, i))
			}
		}
	}
	// Those that translate say more than jumps to them.
	slices.SortStableFunc(out, func(a, b string) int {
		translates := func(s string) int {
			if !strings.HasPrefix(s, "-A ") || slices.ContainsFunc(strings.Fields(s), xtables.IsNATTarget) {
				return 0
			}
			return 1
		}
		return cmp.Compare(translates(a), translates(b))
	})
	return out
}

// suggestAccepts covers what the plan without accept blocks would lose, in the
// first of the mode's ways that loses nothing and opens nothing. Where none does,
// what it would open is left out, whatever that costs.
func suggestAccepts(l host.Live, o Options, mode declared.Mode, why string) Suggestion {
	var all []*attempt
	list := ways(mode)
	if mode == declared.Notrack {
		list = append(list, around(&l)...)
	}
	for i, w := range list {
		a := try(l, o, mode, w)
		if !a.fits() {
			all = append(all, a)
			continue
		}
		if next := i + 1; len(a.d.Accept) > 0 && next < len(list) && w.stateful == declared.RemoveStateful && list[next].stateful == declared.TranslateStateful {
			// Rules that are translated say the same as today's, blocks about the same.
			if t := try(l, o, mode, list[next]); t.fits() && len(t.d.Accept) < len(a.d.Accept) {
				a = t
			}
		}
		return a.suggestion(l, o, mode, why)
	}
	slices.SortStableFunc(all, func(a, b *attempt) int {
		return cmp.Compare(a.opens()+len(a.plan.Blocks), b.opens()+len(b.plan.Blocks))
	})
	for _, a := range all {
		if a.close(l, o); a.opens() == 0 {
			return a.suggestion(l, o, mode, why)
		}
	}
	return all[0].suggestion(l, o, mode, why)
}

// attempt is a proposal for one of a mode's ways, with its plan.
type attempt struct {
	way   way
	d     declared.Desired
	notes map[string][]string
	plan  planner.Plan
	cover *cover
}

// fits is whether it loses nothing and opens nothing.
func (a *attempt) fits() bool { return a.opens() == 0 && !a.plan.Blocked() }

// try makes the accept blocks for a way.
func try(l host.Live, o Options, mode declared.Mode, w way) *attempt {
	a := &attempt{way: w, cover: newCover(l, o.Render), d: declared.Desired{
		Block: declared.Label(l.Host.Name, "host"), Mode: mode, Notrack: w.notrack, StatefulRules: w.stateful, Families: slices.Clone(host.Families),
	}}
	for range maxRounds {
		a.d.Accept, a.notes = a.cover.blocks()
		o.Render(&a.d, l)
		bare := l
		bare.Connections = nil
		if !a.cover.learn(a.d, l, planner.Diff(a.d, bare)) {
			break
		}
	}
	a.plan = planner.Diff(a.d, l)
	if w.narrow {
		a.narrow(l, o)
	}
	return a
}

// suggestion writes it down.
func (a *attempt) suggestion(l host.Live, o Options, mode declared.Mode, why string) Suggestion {
	plan := a.plan
	if mode == declared.Notrack && o.Mode == declared.Unmanaged {
		why += "; " + cmp.Or(a.way.cure, "with notrack nothing enters the table, so that it cannot fill")
	}
	s := Suggestion{Declaration: declared.Declaration{Host: l.Host.Name, Desired: a.d, Notes: a.notes}, Blocked: plan.Blocked()}
	if s.Notes == nil {
		s.Notes = map[string][]string{}
	}
	head := []string{fmt.Sprintf("Suggested by ctplan for %s, mode %s: %s.", l.Host.Name, mode, strings.TrimSuffix(why, "."))}
	head = append(head, a.cover.seen(plan, a.way.stateful))
	for _, t := range a.way.notrack[:min(1, len(a.way.notrack))] {
		s.Note("notrack "+t.Name, a.way.note)
	}
	for _, b := range plan.Blocks {
		s.Remains = append(s.Remains, fmt.Sprintf("blocked by %s: %s (%s); %s", b.Risk, b.Why, b.Where, b.Remedy))
	}
	s.obstacles = obstacles(a.d, l, plan)
	s.Unsure = len(s.obstacles) > 0 || plan.Impact != nil && plan.Impact.Unknown > 0
	for _, o := range s.obstacles {
		if !o.open { // else a block says so
			s.Remains = append(s.Remains, o.String()+"; "+o.way(&l).Text)
		}
	}
	if plan.Impact != nil {
		for _, g := range plan.Impact.Groups {
			if g.Result == impact.FlowUnknown {
				s.Remains = append(s.Remains, fmt.Sprintf("whether %s of %s survive cannot be told, because of this rule: %s", words.Plural(int(g.Count), "connection", "connections"), g.Service, g.After))
			}
		}
	}
	if goes := lostProtection(l, plan); len(goes) > 0 && a.way.stateful == declared.RemoveStateful {
		more := ""
		if len(goes) > change.MaxNamed {
			more = fmt.Sprintf("; and %d more", len(goes)-change.MaxNamed)
			goes = goes[:change.MaxNamed]
		}
		s.Remains = append(s.Remains, "these rules go, and what they keep out or count is not replaced: "+strings.Join(goes, "; ")+more)
	}
	if n := l.Connections.Total - int64(len(l.Connections.All())); n > 0 {
		s.Remains = append(s.Remains, fmt.Sprintf("of %d tracked connections %d were read: what the others need is not covered", l.Connections.Total, len(l.Connections.All())))
	}
	if l.Connections.Anonymised {
		s.Remains = append(s.Remains, "the addresses in this snapshot are stand-ins: where a block below names one that no rule names, put the real one there, or run ctplan suggest on the host")
	}
	s.Remains = slices.Compact(s.Remains)
	for _, r := range s.Remains {
		head = append(head, "To decide: "+r+".")
	}
	s.Notes[declared.NoteHead] = head
	return s
}

// lostProtection are the rules on connection state that a plan takes away and
// that do more than let known connections through and keep broken packets out.
func lostProtection(l host.Live, plan planner.Plan) []string {
	var out []string
	goes := map[string]bool{}
	for _, step := range change.StepsOf(plan.Changes) {
		if step.Rules == nil {
			continue
		}
		for _, section := range step.Rules.Sections {
			for _, op := range section.Ops {
				if op.Kind == change.DeleteRule {
					goes["-A "+op.Chain+" "+op.Rule] = true
				}
			}
		}
	}
	for i := range l.Rulesets {
		for k := range l.Rulesets[i].Tables {
			t := &l.Rulesets[i].Tables[k]
			for n := range t.Rules {
				r := &t.Rules[n]
				if xtables.IsOwn(r.Chain) || xtables.Needs(t.Name, r.Words) != xtables.NeedState {
					continue
				}
				s := xtables.Parse(r.Words)
				plain := s.Target == "ACCEPT" && !slices.ContainsFunc(s.Modules, func(m string) bool {
					return xtables.IsStateModule(m) && m != "state" && m != "conntrack" || m == "limit" || m == "hashlimit" || m == "recent"
				})
				invalid := slices.ContainsFunc(s.Matches, func(o xtables.Option) bool {
					return !o.Not && (o.Name == "--state" || o.Name == "--ctstate") && len(o.Args) == 1 && o.Args[0] == "INVALID"
				})
				if text := "-A " + r.Chain + " " + r.Text; !plain && !invalid && goes[text] && !slices.Contains(out, text) {
					out = append(out, text)
				}
			}
		}
	}
	return out
}
