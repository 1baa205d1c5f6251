package verdict

import (
	"cmp"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
)

// outcomes is what a chain may do with a packet.
type outcomes uint8

const (
	passes  outcomes = 1 << iota // ACCEPT
	refuses                      // DROP, REJECT
	returns                      // goes on behind the jump
)

// maxVisits bounds the rules that one packet may meet: chains that jump to
// each other widely can be made to take for ever.
const maxVisits = 1 << 20

// walk is one packet's way through the tables. It lives on the stack.
type walk struct {
	e *hostFacts
	p *Packet

	tuple        *host.Tuple // as the current table sees it
	src, dst     nets.Bits
	sport, dport uint16
	in, out      string

	states           State
	entered, group   State  // the states as the current base chain began, and the first of its priority
	mark, markBits   uint32 // value, and which bits of it are known
	kept             uint32 // bits of the mark that are what they were when it entered
	route            Mark   // where the packet's way is chosen
	marks            *RuleRef
	proxied          *RuleRef // what answers in the place of who it is sent to
	mayProxy         bool     // some rule may answer so
	answered         *RuleRef // what answers the SYN, unless another chain of its priority refuses it
	refused          *RuleRef // what refuses it, unless another chain of its priority answers
	cmark, cmarkBits uint32
	seen             bool  // by connection tracking
	decided          bool  // the current base chain has decided on tracking
	template         Truth // a CT target before has decided how it is tracked
	sure             bool  // the current rule is surely reached
	racing           bool  // raw tables of two backends want different things
	asks             question
	shared           bool // see baseChain
	part             Fragment
	visits           int
	chosen           int32  // of a rule's targets, or several
	mayChoose        uint64 // the same as bits, all from the 64th on as one
	decider, doubt   *RuleRef
	untracks         *RuleRef
	zone             Zone
	translates       *RuleRef // a nat rule that may change the destination
}

func (s *walk) addr(dst bool) nets.Bits {
	if dst {
		return s.dst
	}
	return s.src
}

func (s *walk) look(t *host.Tuple, in, out string) {
	s.tuple = t
	s.src, s.dst = nets.Of(t.Src), nets.Of(t.Dst)
	s.sport, s.dport = t.SrcPort, t.DstPort
	s.in, s.out = in, out
}

// Verdict says what becomes of the packet. It allocates nothing, and may be
// called from several goroutines.
func (e *Evaluator) Verdict(p *Packet) Decision {
	if p.Fragment == Whole || e.joins != Maybe {
		return e.verdict(p, e.joins == Yes)
	}
	apart, joined := e.verdict(p, false), e.verdict(p, true)
	if apart.Verdict != joined.Verdict {
		apart.Verdict = Unknown
	}
	return apart
}

// verdict is Verdict where fragments are joined before tracking, or not.
func (e *Evaluator) verdict(p *Packet, joins bool) Decision {
	s := walk{e: e.host, p: p, states: StateInvalid, racing: e.racing, asks: e.asks, part: p.Fragment}
	tracked := cmp.Or(p.State, StateAny)
	s.knownMarks()
	wire := &p.Tuple
	if p.Wire.Src.IsValid() {
		wire = &p.Wire
	}
	var open bool // some chain may have refused it
	var last *RuleRef

	if p.Hook == HookInput && p.In == "lo" {
		s.wentOut(e.loop, wire, tracked)
	}
	for i := range e.hooks[p.Hook] {
		h := &e.hooks[p.Hook][i]
		if h.opens && s.raced() {
			return s.race(open)
		}
		s.join(h.chain.base, joins)
		if !h.untracked && !s.seen {
			s.track(tracked)
		}
		s.see(h.view, wire)
		if h.blurred && s.translated(h.chain.base) {
			open = true
			s.wonder(&h.chain.policyRef)
			s.forgetMarks()
			continue
		}
		before := s.doubt
		s.enter(h)
		var got outcomes
		if h.nat {
			if got = s.natChain(h.chain); s.translates != nil {
				return s.decision(Unknown, s.translates)
			}
		} else {
			got = s.chain(h.chain)
			s.leave(h)
		}
		if b := h.chain.base; b.Hook == Prerouting || b.Reroutes {
			s.route = s.markNow()
		}
		switch {
		case s.proxied != nil || got == refuses: // no later hook sees it
			s.answered = cmp.Or(s.proxied, s.answered)
			if s.proxied == nil {
				s.refused = s.decider
			}
			if s.proxied = nil; !h.rival {
				return s.race(open)
			}
		case got&refuses != 0:
			open = true
			if before != nil {
				s.doubt = before
			}
		default:
			s.doubt = before
			switch policy := s.decider == &h.chain.policyRef; {
			case h.nat || last != nil && !h.filter:
			case policy && last != nil && last.Policy == "": // a rule says more than that there was none
			default:
				last = s.decider
			}
		}
	}
	if s.raced() {
		return s.race(open)
	}
	if !s.seen {
		s.track(tracked)
	}
	if open || joins && s.waits(e.splits) {
		return s.decision(Unknown, s.doubt)
	}
	return s.decision(Accepted, last)
}

// wentOut is what became of what the host sends to itself as it went out: it was
// tracked then, or not.
func (s *walk) wentOut(loop []baseChain, wire *host.Tuple, tracked State) {
	s.look(wire, "", "lo")
	for i := range loop {
		s.enter(&loop[i])
		s.chain(loop[i].chain)
		s.leave(&loop[i])
	}
	s.track(tracked)
	s.template, s.decider, s.doubt = Yes, nil, nil
	s.markBits, s.kept = 0, 0 // mangle OUTPUT came in between
}

// raced is whether a chain has decided while others of its priority may come
// before it: nobody knows in which order the kernel calls those.
func (s *walk) raced() bool { return s.answered != nil || s.refused != nil }

// race is what comes of that, when all of the priority have been walked.
// What may be answered before it comes to who refuses it is not known.
func (s *walk) race(open bool) Decision {
	switch {
	case s.answered != nil && s.refused == nil && !open:
		s.proxied = s.answered
		return s.decision(Accepted, s.answered)
	case s.answered == nil && !s.mayProxy:
		return s.decision(Dropped, s.refused)
	}
	s.wonder(cmp.Or(s.refused, s.answered))
	return s.decision(Unknown, s.doubt)
}

// translated is whether translation may make something else of the packet where
// the chain stands.
func (s *walk) translated(b *Base) bool {
	p := s.p
	if b.Hook == Prerouting || b.Hook == LocalOut {
		return p.Wire.Src.IsValid() && p.Wire != p.Tuple
	}
	turned := host.Tuple{Src: p.Orig.Dst, Dst: p.Orig.Src, SrcPort: p.Orig.DstPort, DstPort: p.Orig.SrcPort}
	return p.Known&KnownTuples == 0 || p.Reply != turned || s.states&(StateNew|StateRelated) != 0
}

// knownMarks are those that the packet has when it enters.
func (s *walk) knownMarks() {
	if s.p.Known&KnownMark != 0 {
		s.mark, s.markBits = s.p.Mark, ^uint32(0)
	}
	s.kept = ^s.markBits
	s.route = s.markNow()
	if s.p.Known&KnownConnMark != 0 {
		s.cmark, s.cmarkBits = s.p.ConnMark, ^uint32(0)
	}
}

// see is what a chain sees of the packet; wire are its addresses before they are
// translated.
func (s *walk) see(view viewKind, wire *host.Tuple) {
	p := s.p
	switch view {
	case viewWire:
		s.look(wire, p.In, "")
	case viewWireOut:
		s.look(wire, "", p.Out)
	case viewIn:
		s.look(&p.Tuple, p.In, "")
	case viewBoth:
		s.look(&p.Tuple, p.In, p.Out)
	case viewOut:
		s.look(&p.Tuple, "", p.Out)
	case viewLeaves:
		s.look(&p.Tuple, "", p.Out)
		if p.Hook == HookForward {
			s.in = SomeInterface
		}
	}
}

func (s *walk) decision(v Verdict, r *RuleRef) Decision {
	return Decision{
		Verdict: v, Untracked: s.states == StateUntracked, Rule: r,
		Tracked: s.seen && s.states&StateUntracked == 0, By: s.untracks, Zone: s.zone,
		Proxied: s.proxied, Route: s.route, Leaves: s.markNow(), ConnMark: s.cmark, ConnMarkBits: s.cmarkBits,
	}
}

// track is what connection tracking does with the packet: before it, in the
// raw table, a packet has no connection, which matches as INVALID does.
func (s *walk) track(as State) {
	s.seen = true
	switch {
	case s.states == StateUntracked:
	case s.states&StateUntracked != 0:
		s.states = as | StateUntracked
	default:
		s.states = as
	}
}

// enter begins with a base chain. What others of its priority may have done
// before it, or do behind it, is not known.
func (s *walk) enter(b *baseChain) {
	s.sure, s.decider = true, nil
	if s.shared = b.shared; s.shared {
		s.forgetMarks()
	}
	if b.opens {
		s.group = s.states
	}
	if s.entered, s.decided = s.states, false; b.perhaps && (!s.seen || s.group&StateInvalid != 0) {
		s.states |= s.group | StateUntracked
	}
}

// leave takes that back, where the chain has not decided it.
func (s *walk) leave(b *baseChain) {
	if b.perhaps && (!s.decided || s.entered == StateUntracked) {
		s.states = s.entered
	}
}

// chain walks a built-in chain to its policy.
func (s *walk) chain(c *compiledChain) outcomes {
	got := s.rules(c)
	if got&returns == 0 {
		return got
	}
	got &^= returns
	s.decider = &c.policyRef
	return got | c.policy
}

// natChain walks a built-in chain of a nat table, which only the first packet
// of a connection passes, and no error of ICMP (net/netfilter/nf_nat_proto.c,
// nf_nat_ipv4_fn). A rule that may give it another destination decides what
// becomes of it.
func (s *walk) natChain(c *compiledChain) outcomes {
	opening := StateNew | StateRelated
	if s.p.Protocol == protocol.ICMP || s.p.Protocol == protocol.ICMPv6 {
		opening = StateNew
	}
	if s.states&opening == 0 {
		return passes
	}
	// What the host sends to itself was translated, or left as it is, as it went
	// out, where that was tracked: then it passes none of them again.
	again := s.p.Hook == HookInput && s.p.In == "lo"
	s.sure = s.states&^opening == 0 && !again
	got := s.chain(c)
	if !s.sure && got&refuses != 0 {
		s.wonder(s.decider)
		got |= passes
	}
	return got
}

func (s *walk) wonder(r *RuleRef) {
	if s.doubt == nil {
		s.doubt = r
	}
}

// rules walks a chain's rules and returns what may come of it.
func (s *walk) rules(c *compiledChain) outcomes {
	var got outcomes
	next := startAt(c, s)
	for {
		i := next.next(c)
		if i < 0 {
			return got | returns
		}
		r := &c.rules[i]
		if s.visits++; s.visits > maxVisits {
			s.wonder(r.ref)
			return got | passes | refuses | returns
		}
		hit := r.match(s)
		if hit == No {
			continue
		}
		sure := s.sure
		s.sure = sure && hit == Yes
		var leaves outcomes
		var goesOn bool
		if len(r.choices) > 0 {
			leaves, goesOn = s.actChosen(r)
		} else {
			leaves, goesOn = s.act(r, &r.target, r.chain)
		}
		s.sure = sure
		if hit == Maybe {
			switch s.asks {
			case anyPasses:
				hit, leaves = s.admit(r, leaves)
			case anyRefused:
				hit, leaves = refuse(leaves)
			}
		}
		got |= leaves
		if hit == Maybe {
			if leaves != 0 {
				s.wonder(r.ref)
			}
			goesOn = true
		}
		if !goesOn {
			return got
		}
		if leaves != 0 {
			s.sure = false // some packets like this one are gone from here on
		}
	}
}

// admit is for who asks whether any of such packets is let through, where a
// rule may match: what drops some lets others pass, and what accepts so many in
// a second accepts some.
func (s *walk) admit(r *Rule, leaves outcomes) (Truth, outcomes) {
	switch {
	case leaves&passes == 0:
		return Maybe, leaves &^ refuses
	case leaves == passes && r.rateAlone(s):
		return Yes, leaves
	}
	return Maybe, leaves
}

// refuse is the same for who asks whether any is refused: what accepts some
// leaves others, and what refuses some does so to one of them.
func refuse(leaves outcomes) (Truth, outcomes) {
	if leaves == refuses {
		return Yes, leaves
	}
	return Maybe, leaves &^ passes
}

// actChosen carries out the target that the rule's program has chosen, or what
// is left of all that it may have.
func (s *walk) actChosen(r *Rule) (leaves outcomes, goesOn bool) {
	chosen, may := s.chosen, s.mayChoose
	if chosen >= 0 {
		c := &r.choices[chosen]
		return s.act(r, &c.target, c.chain)
	}
	s.sure = false
	for i := range r.choices {
		if may&(1<<min(i, 63)) == 0 {
			continue
		}
		c := &r.choices[i]
		l, on := s.act(r, &c.target, c.chain)
		leaves, goesOn = leaves|l, goesOn || on
	}
	s.wonder(r.ref)
	switch {
	case s.asks == anyPasses && (leaves&passes != 0 || goesOn):
		leaves &^= refuses
	case s.asks == anyRefused && (leaves&refuses != 0 || goesOn):
		leaves &^= passes
	}
	return leaves, goesOn
}

// act carries out a target of a rule. It returns how the packet may leave the
// chain, and whether it may go on behind the rule.
func (s *walk) act(r *Rule, t *Target, chain *compiledChain) (leaves outcomes, goesOn bool) {
	switch t.kind {
	case targetAccept:
		s.decider = r.ref
		return passes, false
	case targetDrop:
		s.decider = r.ref
		return refuses, false
	case targetReturn:
		return returns, false
	case targetJump:
		sub := s.rules(chain)
		return sub &^ returns, sub&returns != 0
	case targetGoto:
		return s.rules(chain), false
	case targetQueue:
		s.wonder(r.ref)
		s.forgetMarks()
		switch s.asks {
		case anyPasses:
			return passes, false
		case anyRefused:
			return refuses, false
		}
		return passes | refuses, false
	case targetUnknown:
		s.wonder(r.ref)
		s.forgetMarks()
		return passes | refuses, true
	case targetNAT:
		if s.translates == nil {
			s.translates = r.ref
		}
		return passes, false
	case targetNotrack:
		s.notrack(r)
	case targetCT:
		s.attach(r, t)
	case targetProxy:
		return s.proxy(r, t)
	case targetMark, targetUnknownMark, targetRestore:
		s.markPacket(r, t)
	case targetConnMark, targetUnknownCMark, targetSave:
		s.markConnection(t)
	}
	return 0, true
}

// attach gives the packet a template of tracking.
func (s *walk) attach(r *Rule, t *Target) {
	if s.seen {
		if s.states&StateInvalid != 0 {
			s.states = StateAny // a template is no connection, and is one to some matches
		}
		return
	}
	s.decided = true
	s.zone = s.zone.set(r, t, min(s.rawCertainty(), Yes-s.template))
	s.template = max(s.template, s.rawCertainty())
	s.states |= StateAny &^ StateUntracked // as above
}

// Zone is where connection tracking keeps a packet's connection: 0 unless a
// rule says otherwise.
type Zone struct {
	ID     uint32
	By     *RuleRef
	Unsure bool // it may be another
}

// set is what a CT target makes of it, if it does; only --zone for both ways
// of a connection counts.
func (z Zone) set(r *Rule, t *Target, does Truth) Zone {
	switch {
	case t.mask == 0 || does == No:
		return z
	case does == Maybe || t.mask != zoneKnown:
		return Zone{Unsure: true}
	}
	return Zone{ID: t.value, By: r.ref}
}

func (s *walk) certainty() Truth {
	if s.sure {
		return Yes
	}
	return Maybe
}

// rawCertainty is certainty of a rule that decides how a packet is tracked: with
// templates in two backends' raw tables, which comes first depends on which was
// made first.
func (s *walk) rawCertainty() Truth {
	if s.racing {
		return Maybe
	}
	return s.certainty()
}

// notrack takes the packet out of tracking, unless something before it has
// decided that (net/netfilter/xt_CT.c, xt_ct_target; nft_ct.c, nft_notrack_eval).
// Once tracking has seen it, that is so of a packet that has a connection.
func (s *walk) notrack(r *Rule) {
	if s.seen {
		switch {
		case s.states&StateInvalid == 0:
		case s.states == StateInvalid && s.sure:
			s.states = StateUntracked
		default:
			s.states |= StateUntracked
		}
		return
	}
	s.decided = true
	switch min(s.rawCertainty(), Yes-s.template) {
	case Yes:
		s.states = StateUntracked
		s.untracks = r.ref
		s.template = Yes
	case Maybe:
		s.states |= StateUntracked
		s.template = max(s.template, Maybe)
	}
}
