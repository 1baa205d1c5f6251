package verdict

import "github.com/ctplan/ctplan/planner/protocol"

// Mark is what is known of a packet's mark at some point of its way.
type Mark struct {
	Value, Known uint32   // the value of the bits that are known
	Kept         uint32   // bits that are what they were when the packet entered
	By           *RuleRef // what changed it last
}

func (s *walk) markNow() Mark { return Mark{s.mark & s.markBits, s.markBits, s.kept, s.marks} }

// markPacket carries out a target that sets the mark of the packet.
func (s *walk) markPacket(r *Rule, t *Target) {
	after, known, touched, sure := s.mark&^t.mask^t.value, s.markBits|t.mask, t.mask|t.value, s.sure
	switch t.kind {
	case targetUnknownMark:
		after, known, touched = s.mark, s.markBits&^t.mask, t.mask
	case targetRestore: // value of the connection's, over mask (net/netfilter/xt_connmark.c, connmark_tg_shift)
		has := s.tracked(Yes, No)
		if has == No {
			return
		}
		sure = sure && has == Yes
		after, known = s.mark&^t.mask^s.cmark&t.value, (s.markBits|t.mask)&(s.cmarkBits|^t.value)
	}
	s.mark, s.markBits = s.assign(s.mark, s.markBits, after, known, touched, sure)
	s.kept &^= touched
	s.marks = r.ref
}

// markConnection is the same for the mark of the packet's connection, if it has one.
func (s *walk) markConnection(t *Target) {
	has := s.tracked(Yes, No)
	if has == No {
		return
	}
	after, known, touched := s.cmark&^t.mask^t.value, s.cmarkBits|t.mask, t.mask|t.value
	switch t.kind {
	case targetUnknownCMark:
		after, known, touched = s.cmark, s.cmarkBits&^t.mask, t.mask
	case targetSave: // value of the packet's, over mask
		after, known = s.cmark&^t.mask^s.mark&t.value, (s.cmarkBits|t.mask)&(s.markBits|^t.value)
	}
	s.cmark, s.cmarkBits = s.assign(s.cmark, s.cmarkBits, after, known, touched, s.sure && has == Yes)
}

// assign is a mark that becomes another, and which bits of that are known.
func (s *walk) assign(mark, known, after, knownAfter, touched uint32, sure bool) (uint32, uint32) {
	if s.e.mixed || s.shared {
		knownAfter &= known &^ touched // the other backend's rules may come in between
	}
	if !sure {
		knownAfter &= known &^ (mark ^ after)
	}
	return after, knownAfter
}

// forgetMarks is for what may have set any.
func (s *walk) forgetMarks() { s.markBits, s.cmarkBits, s.kept = 0, 0, 0 }

// proxy is what SYNPROXY does: it takes what opens a connection of TCP, and
// answers in the place of the server; of what acknowledges, it takes the answers
// to its own cookies and drops the rest; everything else goes on
// (net/ipv4/netfilter/ipt_SYNPROXY.c, synproxy_tg4; net/netfilter/nft_synproxy.c).
func (s *walk) proxy(r *Rule, t *Target) (leaves outcomes, goesOn bool) {
	flags := s.p.TCPFlags & (TCPSyn | TCPAck | TCPRst | TCPFin)
	opens, acks := flags == TCPSyn, flags == TCPAck
	if t.value == nftProxy {
		opens, acks = flags&TCPSyn != 0, flags&TCPAck != 0
	}
	switch {
	case s.p.Protocol != protocol.TCP:
		return 0, true
	case opens && s.sure:
		s.decider, s.proxied = r.ref, r.ref
		return passes, false
	case opens:
		s.mayProxy = true
	case !acks:
		return 0, true
	case s.sure && s.p.State&StateEstablished != 0 && s.p.State&StateNew == 0: // an open connection's, which carries no cookie
		s.decider = r.ref
		return refuses, false
	}
	s.wonder(r.ref)
	if s.asks == anyPasses {
		return passes, false
	}
	s.decider = r.ref
	return passes | refuses, false
}
