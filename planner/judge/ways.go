package judge

import (
	"fmt"
	"sync"

	"github.com/ctplan/ctplan/planner/routing"
	"github.com/ctplan/ctplan/planner/verdict"
)

// ways is what marks decide beside rules, and the reasons that were given, each
// once however many connections it is about.
type ways struct {
	marks *routing.Map
	none  bool // nothing beside rules goes by a mark
	mu    sync.Mutex
	known map[string]*verdict.RuleRef
}

func (w *ways) reason(text string) *verdict.RuleRef {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known == nil {
		w.known = map[string]*verdict.RuleRef{}
	}
	if w.known[text] == nil {
		w.known[text] = &verdict.RuleRef{Policy: text, Routes: true}
	}
	return w.known[text]
}

// differ are the bits by which two marks may differ: not those that are known to
// be alike, nor those that are in both what the packet came with.
func differ(a, b verdict.Mark) uint32 {
	alike := a.Known&b.Known&^(a.Value^b.Value) | a.Kept&b.Kept
	if a.By != nil && b.By != nil && *a.By == *b.By && a.Known == b.Known && a.Kept == b.Kept {
		alike |= ^(a.Known | a.Kept) // one rule set what is not known of both
	}
	return ^alike
}

// entered is what routing is asked with. What a packet came with is taken to be
// no mark: the kernel gives what comes from the wire none, and most sockets none.
func entered(m verdict.Mark) (mark, unknown uint32) { return m.Value, ^(m.Known | m.Kept) }

// rerouted is what becomes of a packet under rules that let it through as d says,
// where its mark is another than today's: it may take another way, and not arrive.
func (j *Judge) rerouted(today, d verdict.Decision, p *verdict.Packet) verdict.Decision {
	if today.Verdict == verdict.Dropped || d.Verdict == verdict.Dropped || p.In == "lo" || p.Out == "lo" {
		return d
	}
	route, leaves := differ(today.Route, d.Route)&j.ways.marks.Marks(), differ(today.Leaves, d.Leaves)
	if route == 0 && leaves == 0 {
		return d
	}
	v, why := j.compare(route, today, d, p)
	switch {
	case v == verdict.Dropped:
		d.Verdict, d.Rule = v, j.ways.reason(why)
	case v == verdict.Unknown && d.Verdict == verdict.Accepted:
		d.Verdict, d.Rule = v, j.ways.reason(why)
	}
	return d
}

// compare says what the way makes of a packet, and why.
func (j *Judge) compare(route uint32, today, d verdict.Decision, p *verdict.Packet) (verdict.Verdict, string) {
	w := j.ways.marks
	q := routing.Packet{Src: p.Src, Dst: p.Dst, SPort: p.SrcPort, DPort: p.DstPort, Protocol: p.Protocol, In: known(p.In)}
	ask := func(q routing.Packet, m verdict.Mark) routing.Way {
		q.Mark, q.Unknown = entered(m)
		return w.Of(q)
	}
	if route != 0 && p.Hook != verdict.HookOutput {
		back := q
		back.Src, back.Dst, back.SPort, back.DPort, back.In = p.Dst, p.Src, p.DstPort, p.SrcPort, "lo"
		if v, why := j.comesBack(ask(back, today.Route), ask(back, d.Route), today, p); v != verdict.Accepted {
			return v, why
		}
	}
	if route != 0 && p.Hook != verdict.HookInput {
		if p.Hook == verdict.HookOutput {
			q.In = "lo"
		}
		a, b := ask(q, today.Route), ask(q, d.Route)
		near := j.Places.onLink(p.Dst)
		switch {
		case routing.Same(a, b), !a.Unsure && a.Dead():
		case near != "" && near != a.Interface && !a.Unsure: // nobody there gets an answer today, or such a packet never came
		case a.Unsure || b.Unsure:
			return verdict.Unknown, fmt.Sprintf("%s and by which it is routed: what that changes cannot be told%s", lostMark(today), byRule(a, b))
		case a.Interface == b.Interface && !b.Dead():
			return verdict.Unknown, fmt.Sprintf("%s, so that it goes %s and no longer %s%s", lostMark(today), b, a, byRule(a, b))
		default:
			return verdict.Dropped, fmt.Sprintf("%s, so that it goes %s and no longer %s%s", lostMark(today), b, a, byRule(a, b))
		}
	}
	return j.beyond(today, d, p)
}

// comesBack is for rp_filter, which asks by which way an answer would go, with
// the mark of what comes in (fib_validate_source in net/ipv4/fib_frontend.c).
func (j *Judge) comesBack(a, b routing.Way, today verdict.Decision, p *verdict.Packet) (verdict.Verdict, string) {
	in := known(p.In)
	if in == "" {
		in = a.Interface // what comes from there is taken to come by the way that leads back
	}
	const strict = 1
	filter := j.ways.marks.Link(in)
	passes := func(w routing.Way) bool { return w.Type == "unicast" && (filter != strict || w.Interface == in) }
	switch {
	case filter == 0 || routing.Same(a, b):
	case a.Unsure || b.Unsure:
		return verdict.Unknown, fmt.Sprintf("%s, and what rp_filter of %s makes of it cannot be told%s", lostMark(today), in, byRule(a, b))
	case passes(a) && !passes(b):
		return verdict.Dropped, fmt.Sprintf("%s, so that rp_filter of %s takes it for forged: an answer would go %s%s", lostMark(today), in, b, byRule(a, b))
	}
	return verdict.Accepted, ""
}

// beyond is for what goes by the mark behind rules: tc and IPsec.
func (j *Judge) beyond(today, d verdict.Decision, p *verdict.Packet) (verdict.Verdict, string) {
	bits := differ(today.Leaves, d.Leaves)
	if bits == 0 {
		return verdict.Accepted, ""
	}
	a, unknownA := entered(today.Leaves)
	b, unknownB := entered(d.Leaves)
	if out := known(p.Out); p.Hook != verdict.HookInput {
		if link, ok := j.ways.marks.Filter(out); ok {
			return verdict.Unknown, fmt.Sprintf("%s, and filters of tc on %s may go by that", lostMark(today), link)
		}
	}
	if x, ok := j.ways.marks.IPsec(a, b, (unknownA|unknownB)&bits); ok {
		return verdict.Unknown, fmt.Sprintf("%s, and a %s of IPsec goes by that (mark %#x/%#x)", lostMark(today), x.What, x.Mark, x.Mask)
	}
	return verdict.Accepted, ""
}

// known is an interface's name, or empty.
func known(name string) string {
	if name == verdict.SomeInterface {
		return ""
	}
	return name
}

func lostMark(today verdict.Decision) string {
	mark := today.Route
	if mark.By == nil {
		mark = today.Leaves
	}
	if mark.By == nil {
		return "it comes by another mark"
	}
	if unknown := ^(mark.Known | mark.Kept); unknown != 0 {
		return fmt.Sprintf("it loses the mark that %s gives it today", mark.By)
	}
	return fmt.Sprintf("it loses the mark %#x, which %s gives it today", mark.Value, mark.By)
}

// byRule names the rule of routing that asks for the mark.
func byRule(a, b routing.Way) string {
	for _, w := range []routing.Way{a, b} {
		if w.Rule != nil && w.Rule.Mask != 0 {
			return " (" + routing.RuleString(w.Rule) + ")"
		}
	}
	for _, w := range []routing.Way{a, b} {
		if w.Rule != nil {
			return " (" + routing.RuleString(w.Rule) + ")"
		}
	}
	return ""
}

// KeepsMarks says what keeps connections whose way goes by their mark.
const KeepsMarks = `leave this traffic tracked: narrow the notrack blocks until they leave it alone, or use mode = "tuned"; or set the mark without tracking, by what each packet shows: ` +
	`with -j MARK in mangle PREROUTING by -i for what comes in, in mangle OUTPUT by -s for what this host sends from an uplink's own address`
