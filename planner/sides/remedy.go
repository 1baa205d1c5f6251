package sides

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// cure is what keeps all connections whole where a rule is one-sided.
type cure uint8

// The cures, in the order in which they are tried.
const (
	cureNone   cure = iota // none that could be tried
	cureMirror             // its mirror image, or a block that takes both ways
	cureAccept             // the same, with accepts for both ways
	cureDelete             // taking it away
)

// maxTried bounds the open connections that a remedy is held against.
const maxTried = 20_000

// cureFor tries what could mend a one-sided rule, as the rules will stand, and
// returns the first that cures it and cuts nothing off that is let through today.
func cureFor(j *judge.Judge, ref verdict.RuleRef, c *judge.Example, zone bool) cure {
	if zone {
		return cureMirror // to be put into the same zone changes no verdict but that
	}
	if ref.Native != "" {
		return cureNone // another's to change
	}
	without := j.Tried(nil, &ref)
	passes := j.Opens(without, &c.Connection).Verdict == verdict.Accepted
	mends := func(s judge.Stage) bool {
		return keeps(j, s, c, true) && (!passes || j.Opens(s, &c.Connection).Verdict == verdict.Accepted)
	}
	mirror, accepts, ok := mirrored(j.Spec(ref), c)
	switch {
	case ok && mends(j.Tried(mirror, nil)):
		return cureMirror
	case ok && mends(j.Tried(append(accepts, mirror...), nil)):
		return cureAccept
	case keeps(j, without, c, false):
		return cureDelete
	}
	return cureNone
}

// mirrored are the rules that take the other way of a rule's packets out of
// tracking, and that accept both ways. ok is false where the rule matches by
// what the other way does not have.
func mirrored(s xtables.Spec, c *judge.Example) (mirror, accepts []judge.Rule, ok bool) {
	// What is for this host is so in INPUT, and what answers it in OUTPUT.
	local := func(o xtables.Option) bool {
		return o.Name == "--dst-type" && !o.Not && c.Way == judge.In && strings.Contains(strings.Join(o.Args, ","), "LOCAL")
	}
	swap := map[string]string{"-s": "-d", "-d": "-s", "--sport": "--dport", "--dport": "--sport", "--sports": "--dports", "--dports": "--sports", "-i": "-o", "-o": "-i", "-p": "-p"}
	words := func(turn bool, in, out string) []string {
		var list []string
		for _, m := range s.Modules {
			if m == "tcp" || m == "udp" || m == "multiport" || m == "sctp" || m == "dccp" || m == "udplite" {
				list = append(list, "-m", m)
			}
		}
		var match []string
		for _, o := range s.Matches {
			name := o.Name
			if turn {
				name = swap[name]
			}
			if name == "-i" && in == "" || name == "-o" && out == "" || o.Name == "--comment" || local(o) {
				continue
			}
			if o.Not {
				match = append(match, "!")
			}
			match = append(append(match, name), o.Args...)
		}
		proto := slices.Index(match, "-p")
		if proto < 0 {
			return append(list, match...)
		}
		end := proto + 2
		return slices.Concat(match[:end], list, match[end:])
	}
	for _, o := range s.Matches {
		if swap[o.Name] == "" && o.Name != "--comment" && !local(o) {
			return nil, nil, false
		}
	}
	type side struct{ raw, filter, in, out string }
	here, there := side{"PREROUTING", "INPUT", "in", ""}, side{"OUTPUT", "OUTPUT", "", "out"}
	switch c.Way {
	case judge.Out:
		here, there = there, here
	case judge.Forward:
		here = side{"PREROUTING", "FORWARD", "in", "out"}
		there = here
	}
	mirror = []judge.Rule{{Table: "raw", Chain: there.raw, Words: append(words(true, map[bool]string{true: "in"}[there.raw == "PREROUTING"], map[bool]string{true: "out"}[there.raw == "OUTPUT"]), "-j", "NOTRACK")}}
	accepts = []judge.Rule{
		{Table: "filter", Chain: here.filter, Words: append(words(false, here.in, here.out), "-j", "ACCEPT")},
		{Table: "filter", Chain: there.filter, Words: append(words(true, there.in, there.out), "-j", "ACCEPT")},
	}
	return mirror, accepts, true
}

// keeps is whether the rules as tried treat both packets of the connection
// alike, and nothing that is let through today is cut off: the connection
// itself, those that are open, and whoever calls on a service.
func keeps(j *judge.Judge, tried judge.Stage, c *judge.Example, untracked bool) bool {
	for i := range c.Count {
		if d := tried.Verdict(&c.Packets[i]); untracked && !d.Untracked || !untracked && d.Untracked {
			return false
		}
	}
	return j.KeepsAll(tried, &c.Connection, maxTried)
}

// remedy says how to mend the rule: what was tried, and keeps everything.
func (o *oneSide) remedy() string {
	mirror := "raw OUTPUT"
	if o.way != judge.In {
		mirror = "raw PREROUTING"
	}
	if o.native != "" {
		mirror = "a chain of " + hooksOf.Replace(mirror) + " with priority raw"
	}
	const accept = ", with an accept block for it, because what lets it through today asks for its state"
	also := ""
	if o.cure == cureAccept {
		also = accept
	}
	switch {
	case o.zone:
		return "put both ways into the same zone: add the rule's mirror image to " + mirror
	case o.cure == cureDelete && !o.ours:
		return "take this rule away: what it is about is tracked both ways then"
	case o.cure == cureDelete:
		return "take this out of the notrack blocks: it is tracked both ways then"
	case o.cure == cureNone && !o.ours:
		return "write a notrack block that takes both ways, accept blocks for what is let through today, and take this rule away; what that does to what is open the plan for it says"
	case !o.ours && o.cure == cureAccept:
		return "declare the traffic in a notrack block, which takes both ways" + accept + "; then take this rule away"
	case !o.ours:
		return "declare the traffic in a notrack block, which takes both ways, and take this rule away; or add its mirror image to " + mirror
	case o.own != nil && (o.own.Direction == declared.In || o.own.Direction == declared.Out):
		return fmt.Sprintf(`leave direction = %q out of the notrack block %q: without it the block takes both ways`, o.own.Direction, o.own.Name) + also
	case o.way == judge.Forward:
		return `name this host's addresses in the block's local, so that it leaves routed traffic alone, or declare that too, in a notrack block with direction = "forward"` + also
	case o.own != nil && o.own.Direction == declared.Forward:
		return `name the routed networks in the block's local and remote, or declare the host's own traffic too, in a notrack block without a direction` + also
	}
	return "declare both ways" + also + ", or take away what keeps the other way tracked in " + mirror
}
