// Package translate turns rules of iptables that match on connection state into
// stateless ones for traffic that is no longer tracked, and says of each what is
// lost and what is let in by that.
//
// A packet that is not tracked shows less than its connection did. What each
// state becomes:
//
//	state        TCP                   UDP and others         ICMP, ICMPv6
//	NEW          SYN alone             all of it              echo requests
//	ESTABLISHED  everything else       nothing: see Answers   echo replies
//	RELATED      nothing               nothing                errors
//	INVALID      flags no TCP sends    nothing                nothing
//
// NEW and ESTABLISHED together are all of it. A twin is exact where every packet
// of every conversation that keeps to its protocol meets it as it met the rule,
// wider where others do too, narrower where some do no longer. That is no guess:
// rule and twins are held against each other by the verdict, kind of packet by
// kind. Packets of no conversation, as a forged answer, are not told apart from
// those of one by any stateless rule.
//
// It knows one rule at a time, and nothing of plans.
package translate

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Grade is how twins compare with the rule that they stand for.
type Grade uint8

// The grades. Twins may be wider and narrower at once.
const (
	Exact Grade = 0
	Wider Grade = 1 << (iota - 1)
	Narrower
)

// String is the grade in words.
func (g Grade) String() string {
	return [...]string{"exact", "wider", "narrower", "wider and narrower"}[g&3]
}

// Scope is what is known of the traffic that a rule sees.
type Scope struct {
	Family host.Family
	// Untracks says whether packets of a protocol that the rule may match leave
	// tracking, and whether all of them do. "" is any protocol but TCP, UDP and
	// ICMP. Nil: everything does, and nothing can match on state any more.
	Untracks func(proto string) (touched, covered bool)
	// Errors is whether errors of ICMP about what leaves tracking come by: where ICMP
	// itself stays tracked they are INVALID then.
	Errors bool
	// Answered says whether a rule ahead takes all that goes on in a conversation, so
	// that only what begins one comes here.
	Answered func() bool
	// Related says whether one takes all errors of ICMP about conversations.
	Related func() bool
	// Answers names what else lets in answers of protocols that show no sign of
	// being one: the accept blocks that are declared.
	Answers []string
}

// Translation is what stands for a rule.
type Translation struct {
	Twins []host.Rule // in order; one that does nothing where no conversation meets the rule
	Stays bool        // the rule, behind them, for what is still tracked
	Grade Grade
	// Unanswered is whether answers of UDP that the rule let by are let by no twin.
	Unanswered bool
	// Why says what makes the twins wider or narrower, and Note what else
	// changes: sentences without a full stop.
	Why, Note []string
	// None says why the rule cannot be translated; the rest is empty then.
	None string
}

// Translator translates rules. It remembers what it has proved, and is not for
// several goroutines at once.
type Translator struct {
	proved map[string]difference
}

// New is a Translator.
func New() *Translator { return &Translator{proved: map[string]difference{}} }

// Rule translates a rule that matches on state. touched is false where it goes
// on as it is: what it sees stays tracked, or it takes what is untracked for
// itself.
func (t *Translator) Rule(rule *host.Rule, in Scope) (out Translation, touched bool) {
	w := work{in: in, chain: rule.Chain}
	var ok bool
	if w.l, ok = layoutOf(rule); !ok {
		return Translation{None: unreadable}, true
	}
	w.classes()
	if len(w.touched) == 0 && w.errors == nil {
		return out, false
	}
	out.None = w.untranslatable()
	if out.None == "" {
		w.ask, out.None = askOf(&w.l)
	}
	if out.None != "" {
		return out, true
	}
	if w.ask.untracked && !w.full { // it stays, and takes what is untracked for itself
		out.Stays = true
		w.grade(t, &out)
		return out, out.Grade != Exact
	}
	if len(w.touched) == 0 && w.ask.states&(verdict.StateRelated|verdict.StateInvalid) == 0 {
		return out, false
	}
	if out.None = w.direction(); out.None != "" {
		return out, true
	}
	forms, why := w.forms()
	if why != "" {
		return Translation{None: why}, true
	}
	for _, f := range forms {
		twins, why := w.twins(f)
		if why != "" {
			return Translation{None: why}, true
		}
		out.Twins = append(out.Twins, twins...)
	}
	// Whoever finds a twin must find its rule by it, or there is no way back.
	key := xtables.Key(rule.Words)
	for i := range out.Twins {
		if back, ok := Original(&out.Twins[i]); !ok || xtables.Key(back.Words) != key {
			return Translation{None: unreadable}, true
		}
	}
	out.Stays = !w.full
	w.grade(t, &out)
	if h, ok := w.holder(); ok && len(out.Twins) == 0 && w.full {
		out.Twins = []host.Rule{h}
	}
	return out, true
}

const unreadable = "it is written in a way that ctplan does not take apart"

// class is the packets of one protocol that a rule may match.
type class struct {
	proto string // "": any but those that have classes of their own
	added bool   // the rule names no protocol
}

// work is the translation of one rule.
type work struct {
	in      Scope
	chain   string
	l       layout
	ask     ask
	named   string // the protocol that the rule names
	all     []class
	touched []class // those of which something leaves tracking
	errors  *class  // ICMP that stays tracked, but for errors about what does not
	full    bool    // everything that the rule may match does
}

func icmpName(f host.Family) string {
	if f == host.IPv6 {
		return "ipv6-icmp"
	}
	return "icmp"
}

// classes finds the protocols of the rule and what of them leaves tracking.
func (w *work) classes() {
	p, _ := w.l.option("-p")
	if p != nil && len(p.Args) == 1 {
		w.named = protocolName(p.Args[0])
	}
	if w.named == "" || w.named == "all" || p.Not {
		for _, name := range []string{"tcp", "udp", icmpName(w.in.Family), ""} {
			if p == nil || name != w.named {
				w.all = append(w.all, class{name, true})
			}
		}
	} else {
		w.all = []class{{w.named, false}}
	}
	w.full = true
	for _, c := range w.all {
		touched, covered := true, true
		if w.in.Untracks != nil {
			touched, covered = w.in.Untracks(c.proto)
		}
		if touched {
			w.touched = append(w.touched, c)
		}
		w.full = w.full && covered
		if c.proto == icmpName(w.in.Family) && !touched && w.in.Errors {
			w.errors = &c
		}
	}
}

// untranslatable says why a rule has no twin because of what it does or asks
// for beside the state.
func (w *work) untranslatable() string {
	for _, g := range w.l.groups {
		if xtables.IsStateModule(g.module) && !g.isState() {
			return "-m " + g.module + " works on connections alone, and nothing stateless does the same"
		}
	}
	switch w.l.target {
	case "CONNMARK", "CONNSECMARK", "SYNPROXY", "CLUSTERIP", "CT":
		return "the target " + w.l.target + " works on connections alone, and nothing stateless does the same"
	}
	if !slices.ContainsFunc(w.l.groups, func(g group) bool { return g.isState() }) {
		return "nothing stateless does the same"
	}
	return ""
}

// servers is where ports end that nobody is given by chance
// (net.ipv4.ip_local_port_range).
const servers = 32768

// direction says why the way of a connection that is asked for shows in nothing
// else; "" where it does.
func (w *work) direction() string {
	if w.ask.way == eitherWay || w.ask.states&verdict.StateEstablished == 0 || len(w.ask.tuples) > 0 {
		return ""
	}
	for _, name := range []string{"-s", "-d", "-i", "-o", "--sport", "--dport", "--sports", "--dports"} {
		if o, _ := w.l.option(name); o != nil {
			return ""
		}
	}
	return "which way of its connection a packet goes shows in nothing that the rule asks for, neither addresses nor ports nor interfaces"
}

// coded is a form for packets of one class.
type coded struct {
	form
	class
	tracked bool // the packets are: errors of ICMP about what is not
}

// forms are what stands for the rule's match on state, class by class.
func (w *work) forms() (out []coded, why string) {
	states := w.ask.states
	if w.ask.way == reply {
		states &^= verdict.StateNew
	}
	if w.l.option_("-p").Not && (w.named != "" && w.named != "all") {
		if states&opensAndGoesOn != opensAndGoesOn {
			return nil, "it asks for any protocol but one, which no single twin can"
		}
		return []coded{{form: anyForm}}, ""
	}
	const most = opensAndGoesOn | verdict.StateRelated
	if len(w.all) > 1 && states&most == most && w.full {
		return []coded{{form: anyForm}}, ""
	}
	for _, c := range w.touched {
		forms, why := w.ofClass(c, states)
		if why != "" {
			return nil, why
		}
		for _, f := range forms {
			out = append(out, coded{form: f, class: c})
		}
	}
	if w.errors != nil && states&verdict.StateRelated != 0 {
		forms, why := w.ofClass(*w.errors, verdict.StateRelated)
		if why != "" {
			return nil, why
		}
		for _, f := range forms {
			out = append(out, coded{form: f, class: *w.errors, tracked: true})
		}
	}
	return out, ""
}

// ofClass are the forms for one protocol.
func (w *work) ofClass(c class, states verdict.State) (forms []form, why string) {
	switch c.proto {
	case "":
		return nil, "" // no rule can ask for all other protocols
	case "tcp":
		forms = tcpForms(states)
		if own, more := w.l.option("--tcp-flags"); own != nil || more {
			return w.fit(own, more, forms)
		} else if own, more := w.l.option("--syn"); own != nil {
			return w.fit(own, more, forms)
		}
	case "icmp", "ipv6-icmp":
		forms = icmpForms(w.in.Family, states)
		name := icmpForm(w.in.Family, 0).option
		if own, more := w.l.option(name); own != nil {
			fitted, ok := fitTypes(*own, forms)
			if more || !ok {
				return nil, "it asks for types of ICMP in a way that goes with no other"
			}
			return fitted, ""
		}
	default:
		forms = otherForms(states)
	}
	return forms, ""
}

func (w *work) fit(own *part, more bool, forms []form) ([]form, string) {
	fitted, ok := fitFlags(own.text, forms)
	if more || !ok {
		return nil, "it asks for flags of TCP itself, and iptables keeps no two such conditions apart"
	}
	return fitted, ""
}

// option_ is the option by this name, or none that says nothing.
func (l *layout) option_(name string) part {
	if p, _ := l.option(name); p != nil {
		return *p
	}
	return part{}
}

const untrackedText = "--ctstate UNTRACKED"

// twins are the rule with a form in the place of its matches on state: one for
// each way that a packet may go.
func (w *work) twins(f coded) (out []host.Rule, why string) {
	for _, way := range w.ask.ways() {
		l := w.l.clone()
		var codes []string
		if !w.full && !f.tracked {
			codes = append(codes, "untracked")
		}
		if f.added && f.proto != "" {
			l.head = slices.DeleteFunc(l.head, func(p part) bool { return p.Name == "-p" })
			l.add("-p", "-p "+f.proto)
			codes = append(codes, f.proto)
		}
		for _, t := range w.ask.tuples {
			name, text := t.shown(way)
			if o, _ := l.option(name); o != nil {
				return nil, "what it asks of its connection's addresses or ports goes with what it asks of the packet's no other way"
			}
			if t.port && (f.proto != "tcp" && f.proto != "udp") {
				continue
			}
			codes = append(codes, strings.TrimLeft(name, "-"))
			w.protocolGroup(&l, f.proto, t.port)
			l.add(name, text)
		}
		codes = append(codes, f.code)
		if why := w.replace(&l, f, codes, ""); why != "" {
			return nil, why
		}
		out = append(out, l.rule(w.chain))
	}
	return out, ""
}

// protocolGroup sees to it that the match of a protocol is there.
func (w *work) protocolGroup(l *layout, proto string, needed bool) {
	if needed && !l.has(proto) {
		at := slices.IndexFunc(l.groups, func(g group) bool { return g.isState() })
		l.groups = slices.Insert(l.groups, at, group{module: proto})
	}
}

// replace puts the form and the mark where the matches on state stand. The mark
// ends in rest.
func (w *work) replace(l *layout, f coded, codes []string, rest string) (why string) {
	var state []string
	at := slices.IndexFunc(l.groups, func(g group) bool { return g.isState() })
	l.groups = slices.DeleteFunc(l.groups, func(g group) bool {
		if g.isState() {
			state = append(state, g.text())
		}
		return g.isState()
	})
	var put []group
	if codes[0] == "untracked" {
		put = append(put, group{"conntrack", []part{{xtables.Option{Name: "--ctstate"}, untrackedText}}})
	}
	if f.option != "" {
		module := "tcp"
		switch f.option {
		case "--icmp-type":
			module = "icmp"
		case "--icmpv6-type":
			module = "icmp6"
		}
		if !l.has(module) {
			put = append(put, group{module: module})
		}
	}
	mark, ok := markGroup(codes, strings.Join(state, " ")+rest)
	if !ok {
		return "what it asks of connections is too long for the comment of a twin, or has quotes"
	}
	l.groups = slices.Insert(l.groups, at, append(put, mark)...)
	if f.option != "" {
		l.add(f.option, f.text)
	}
	return ""
}

// rated are the matches that count packets.
var rated = words.Set("limit", "hashlimit", "recent", "quota", "statistic")

// What goes the way of the first packet is let through where that was, and does not
// come where that is refused.
func lets(target string) bool    { return target == "ACCEPT" || target == "RETURN" || target == "LOG" }
func refuses(target string) bool { return target == "DROP" || target == "REJECT" }

// grade holds the twins against the rule.
func (w *work) grade(t *Translator, out *Translation) {
	d := t.compare(w, out.Twins)
	d.wider = slices.DeleteFunc(d.wider, func(k kind) bool { return k.later && refuses(w.l.target) })
	d.narrower = slices.DeleteFunc(d.narrower, func(k kind) bool { return k.later && lets(w.l.target) })
	if slices.ContainsFunc(d.wider, func(k kind) bool { return k.answers }) && w.in.Answered != nil && w.in.Answered() {
		d.wider = slices.DeleteFunc(d.wider, func(k kind) bool { return k.answers })
	}
	if slices.ContainsFunc(d.wider, func(k kind) bool { return k.errors }) && w.in.Related != nil && w.in.Related() {
		d.wider = slices.DeleteFunc(d.wider, func(k kind) bool { return k.errors })
	}
	out.Unanswered = slices.ContainsFunc(d.narrower, func(k kind) bool { return k.answers && k.proto == "udp" })
	if i := slices.IndexFunc(d.narrower, func(k kind) bool { return k.answers && !k.isICMP }); i >= 0 && len(w.in.Answers) > 0 {
		d.narrower = slices.DeleteFunc(d.narrower, func(k kind) bool { return k.answers && !k.isICMP })
		out.Grade |= Wider
		out.Why = append(out.Why, "answers that show no sign of being one are let in by accept "+listed(w.in.Answers)+" alone, and so does whatever is sent from there")
	}
	for _, g := range w.l.groups {
		if rated[g.module] && w.ask.states&opensAndGoesOn == verdict.StateNew && slices.ContainsFunc(w.touched, func(c class) bool { return c.proto != "tcp" && c.proto != "" }) {
			out.Grade |= Wider
			out.Why = append(out.Why, "-m "+g.module+" counts every packet but those of TCP, not only the first of a conversation")
			break
		}
	}
	if len(d.wider) > 0 {
		out.Grade |= Wider
		out.Why = append(out.Why, "it also matches "+names(d.wider))
	}
	if len(d.narrower) > 0 {
		out.Grade |= Narrower
		out.Why = append(out.Why, "it no longer matches "+names(d.narrower))
	}
	if w.ask.states&verdict.StateInvalid != 0 {
		out.Note = append(out.Note, "packets out of a connection's window, and answers to nothing, are no longer told apart from others")
	}
	if len(out.Twins) == 0 && w.full {
		out.Note = append(out.Note, "no packet of a conversation meets it, so a rule that does nothing holds its place")
	}
}
