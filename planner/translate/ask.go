package translate

import (
	"strings"

	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// way is which way of a connection a packet goes.
type way uint8

const (
	eitherWay way = iota
	original
	reply
)

// tuple is a condition on an address or a port of a connection's tuples.
type tuple struct {
	reply, dst, port bool
	not              bool
	arg              string
}

// ask is what a rule asks of a packet's connection.
type ask struct {
	states    verdict.State // any of these
	untracked bool          // or it has none
	way       way
	tuples    []tuple
}

const trackedStates = verdict.StateNew | verdict.StateEstablished | verdict.StateRelated | verdict.StateInvalid

var stateNames = map[string]verdict.State{
	"NEW": verdict.StateNew, "ESTABLISHED": verdict.StateEstablished, "RELATED": verdict.StateRelated,
	"INVALID": verdict.StateInvalid, "UNTRACKED": verdict.StateUntracked,
	// Untracked packets are not translated, so no connection of theirs is.
	"SNAT": 0, "DNAT": 0,
}

// read takes in an option of a match on state. It returns why that has no
// twin; "" if it may have one.
func (a *ask) read(o xtables.Option) (why string) {
	arg := ""
	if len(o.Args) == 1 {
		arg = o.Args[0]
	}
	switch o.Name {
	case "--state", "--ctstate":
		states := verdict.State(0)
		for name := range strings.SplitSeq(strings.ToUpper(arg), ",") {
			s, ok := stateNames[name]
			if !ok {
				return "it asks for a state that ctplan does not know"
			}
			states |= s
		}
		if o.Not {
			states = verdict.StateAny &^ states
		}
		a.states &= states
	case "--ctdir":
		if a.way = original; (arg == "REPLY") != o.Not {
			a.way = reply
		}
	case "--ctstatus":
		return a.status(o.Not, arg)
	case "--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport":
		a.tuples = append(a.tuples, tuple{
			reply: strings.HasPrefix(o.Name, "--ctrepl"), dst: strings.Contains(o.Name, "dst"), port: strings.HasSuffix(o.Name, "port"), not: o.Not, arg: arg,
		})
	default:
		return "no packet shows " + o.Name
	}
	return ""
}

// status narrows the states to those in which a connection's status shows.
func (a *ask) status(not bool, list string) (why string) {
	for name := range strings.SplitSeq(list, ",") {
		switch name {
		case "SEEN_REPLY", "CONFIRMED":
		case "ASSURED":
			if not {
				return "no packet shows that its connection is not assured"
			}
		default:
			return "no packet shows the status " + name
		}
	}
	if not {
		a.states &= verdict.StateNew
	} else {
		a.states &= verdict.StateEstablished | verdict.StateRelated
	}
	return ""
}

// askOf is what the matches on state of a rule ask for together.
func askOf(l *layout) (a ask, why string) {
	a.states = verdict.StateAny
	asksState := false
	for i := range l.groups {
		g := &l.groups[i]
		if !g.isState() {
			continue
		}
		if len(g.parts) == 0 {
			return a, "it asks nothing of the state"
		}
		for _, p := range g.parts {
			asksState = asksState || p.Name == "--state" || p.Name == "--ctstate"
			if why := a.read(p.Option); why != "" {
				return a, why
			}
		}
	}
	if !asksState { // what has no connection meets no other condition on one
		a.states &= verdict.StateNew | verdict.StateEstablished | verdict.StateRelated
	}
	a.untracked = a.states&verdict.StateUntracked != 0 && len(a.tuples) == 0 && a.way == eitherWay
	a.states &= trackedStates
	return a, ""
}

// ways are those that the packets asked for may go.
func (a *ask) ways() []way {
	switch {
	case len(a.tuples) == 0:
		return []way{eitherWay}
	case a.way != eitherWay:
		return []way{a.way}
	case a.states == verdict.StateNew:
		return []way{original}
	}
	return []way{original, reply}
}

// shown is the option that says of a packet that goes this way what a tuple
// says of its connection.
func (t tuple) shown(w way) (name, text string) {
	dst := t.dst != t.reply != (w == reply)
	switch {
	case t.port && dst:
		name = "--dport"
	case t.port:
		name = "--sport"
	case dst:
		name = "-d"
	default:
		name = "-s"
	}
	text = name + " " + t.arg
	if t.not {
		text = "! " + text
	}
	return name, text
}
