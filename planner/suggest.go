package planner

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// SuggestOptions say what to suggest.
type SuggestOptions struct {
	Mode   Mode     // Unmanaged: whichever fits the host
	Render Renderer // never nil
	// Readings are numbers of tracked connections that were read one after
	// another, for the growth of the table; empty where it was read once.
	Readings []Reading
}

// Suggestion is a configuration that cures a host of its full table.
type Suggestion struct {
	Declaration
	// Remains is what the plan for it would still do that somebody must decide
	// about: connections and services that it cuts off, other blocks, what it
	// lets in. A sentence without a full stop each.
	Remains []string
	// Blocked is whether a safety check would hold the plan back.
	Blocked bool
}

// ErrNoConnections says that Live.Connections is nil.
var ErrNoConnections = errors.New("what is connected now was not read")

// NATError says that a host has nat rules, without which it does not work and
// which need connection tracking.
type NATError struct {
	Mode  Mode
	Rules []string // the first of them
	Total int
}

func (e *NATError) Error() string {
	return fmt.Sprintf("mode %q is not possible here: address translation is connection tracking, and this host has %s, such as %s", e.Mode, plural(e.Total, "nat rule", "nat rules"), e.Rules[0])
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
func Suggest(l Live, o SuggestOptions) (Suggestion, error) {
	if l.Connections == nil && o.Mode != Tuned {
		return Suggestion{}, ErrNoConnections
	}
	nat := natRules(l)
	if len(nat) > 0 && (o.Mode == Disabled || o.Mode == Notrack) {
		return Suggestion{}, &NATError{o.Mode, nat[:min(len(nat), MaxNamed)], len(nat)}
	}
	switch o.Mode {
	case Tuned:
		return suggestSizes(l, o, "asked for with --mode tuned"), nil
	case Disabled, Notrack:
		return suggestAccepts(l, o, o.Mode, "asked for with --mode "+string(o.Mode)), nil
	}
	if len(nat) > 0 {
		return suggestSizes(l, o, fmt.Sprintf("this host has %s, such as %s: address translation is connection tracking, so it cannot do without", plural(len(nat), "nat rule", "nat rules"), nat[0])), nil
	}
	why := "nothing here translates addresses, and with the accept blocks below nothing else needs connection tracking: without it there is no table that could fill"
	if l.Conntrack.Kind == ConntrackAbsent {
		why = "this kernel has no connection tracking"
	}
	disabled := suggestAccepts(l, o, Disabled, why)
	if !disabled.Blocked || l.Conntrack.Kind == ConntrackAbsent {
		return disabled, nil
	}
	because := strings.TrimSuffix(first(disabled.Remains), ".")
	if s := suggestAccepts(l, o, Notrack, "disabled would not do ("+because+"); with notrack nothing enters the table, so that it cannot fill"); !s.Blocked {
		return s, nil
	}
	return suggestSizes(l, o, "neither disabled nor notrack would do ("+because+"), so the table is given the size that it needs"), nil
}

func first(list []string) string {
	if len(list) == 0 {
		return "its plan is blocked"
	}
	return list[0]
}

// natRules are the rules that translate addresses, live and saved, each once.
func natRules(l Live) []string {
	var out []string
	seen := map[string]bool{}
	for _, sets := range [][]Ruleset{l.Rulesets, l.SavedRules} {
		for i := range sets {
			for k := range sets[i].Tables {
				t := &sets[i].Tables[k]
				for n := range t.Rules {
					r := &t.Rules[n]
					if isOwn(r.Chain) || needsOf(t.Name, r.Words) != needNAT {
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
	// Those that translate say more than jumps to them.
	slices.SortStableFunc(out, func(a, b string) int {
		translates := func(s string) int {
			if slices.ContainsFunc(strings.Fields(s), isNATTarget) {
				return 0
			}
			return 1
		}
		return cmp.Compare(translates(a), translates(b))
	})
	return out
}

// suggestAccepts covers what the plan without accept blocks would lose.
func suggestAccepts(l Live, o SuggestOptions, mode Mode, why string) Suggestion {
	s := Suggestion{Declaration: Declaration{Host: l.Host.Name, Desired: Desired{
		Block: labelOf(l.Host.Name, "host"), Mode: mode, StatefulRules: RemoveStateful, Families: slices.Clone(Families),
	}}}
	d := &s.Desired
	if mode == Notrack {
		d.Notrack = []Traffic{{Name: "all", Direction: Both, Families: slices.Clone(Families)}}
	}
	c := newCover(l, o.Render)
	var plan Plan
	for range maxRounds {
		d.Accept, s.Notes = c.blocks()
		d.Chains = o.Render(*d)
		bare := l
		bare.Connections = nil
		plan = Diff(*d, bare)
		if !c.learn(*d, l, plan) {
			break
		}
	}
	plan = Diff(*d, l)
	s.Blocked = plan.Blocked()
	head := []string{fmt.Sprintf("Suggested by ctplan for %s, mode %s: %s.", l.Host.Name, mode, strings.TrimSuffix(why, "."))}
	head = append(head, c.seen(plan))
	if mode == Notrack {
		s.note("notrack all", "Both directions, and what is routed: what is not tracked fills no table.")
	}
	for _, b := range plan.Blocks {
		s.Remains = append(s.Remains, fmt.Sprintf("blocked by %s: %s (%s); %s", b.Risk, b.Why, b.Where, b.Remedy))
	}
	s.Remains = append(s.Remains, c.admitted(*d, l, plan)...)
	if plan.Impact != nil {
		for _, g := range plan.Impact.Groups {
			if g.Result == FlowUnknown {
				s.Remains = append(s.Remains, fmt.Sprintf("whether %s of %s survive cannot be told, because of this rule: %s", plural(int(g.Count), "connection", "connections"), g.Service, g.After))
			}
		}
		var opens []string
		for _, e := range plan.Impact.Exposed {
			if !slices.Contains(opens, e.What) {
				opens = append(opens, e.What)
			}
		}
		if len(opens) > 0 {
			s.Remains = append(s.Remains, "without state nobody can tell an answer from a question: "+strings.Join(opens, "; "))
		}
	}
	if goes := lostProtection(l); len(goes) > 0 {
		more := ""
		if len(goes) > MaxNamed {
			more = fmt.Sprintf("; and %d more", len(goes)-MaxNamed)
			goes = goes[:MaxNamed]
		}
		s.Remains = append(s.Remains, "these rules go, and what they keep out or count is not replaced: "+strings.Join(goes, "; ")+more)
	}
	if n := l.Connections.Total - int64(len(l.Connections.Flows)); n > 0 {
		s.Remains = append(s.Remains, fmt.Sprintf("of %d tracked connections %d were read: what the others need is not covered", l.Connections.Total, len(l.Connections.Flows)))
	}
	if l.Connections.Anonymised {
		s.Remains = append(s.Remains, "the addresses in this snapshot are stand-ins: where a block below names one that no rule names, put the real one there, or run ctplan suggest on the host")
	}
	s.Remains = slices.Compact(s.Remains)
	for _, r := range s.Remains {
		head = append(head, "To decide: "+r+".")
	}
	s.Notes[NoteHead] = head
	return s
}

// lostProtection are the rules on connection state that do more than let
// known connections through and keep broken packets out.
func lostProtection(l Live) []string {
	var out []string
	for i := range l.Rulesets {
		for k := range l.Rulesets[i].Tables {
			t := &l.Rulesets[i].Tables[k]
			for n := range t.Rules {
				r := &t.Rules[n]
				if isOwn(r.Chain) || needsOf(t.Name, r.Words) != needState {
					continue
				}
				s := parseSpec(r.Words)
				plain := s.target == "ACCEPT" && !slices.ContainsFunc(s.modules, func(m string) bool {
					return isStateModule(m) && m != "state" && m != "conntrack" || m == "limit" || m == "hashlimit" || m == "recent"
				})
				invalid := slices.ContainsFunc(s.opts, func(o option) bool {
					return !o.not && (o.name == "--state" || o.name == "--ctstate") && len(o.args) == 1 && o.args[0] == "INVALID"
				})
				if text := "-A " + r.Chain + " " + r.Text; !plain && !invalid && !slices.Contains(out, text) {
					out = append(out, text)
				}
			}
		}
	}
	return out
}
