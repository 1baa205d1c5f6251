package verdict

import "github.com/ctplan/ctplan/planner/host"

// Fragment says which part of a datagram a packet is.
//
// The parts behind the first have an IP header with the protocol, and nothing of
// the protocol's own header: no ports, flags or types. The matches of xtables
// that ask for those are not met, negated or not (net/netfilter/xt_tcpudp.c,
// udp_mt, and its like). nft's expressions, which iptables-nft makes of some of
// them, take what stands there for a header on some kernels (measured on 6.18),
// and are not met on others (nft_payload.c, nft_payload_eval).
//
// The kernel joins what comes in at PriorityJoin, as long as something in that
// network namespace asks for it. To the host itself IPv4 joins before LocalIn in
// any case (net/ipv4/ip_input.c, ip_local_deliver); IPv6 joins behind it, and
// nothing else joins what is routed. What the host sends is taken apart behind
// all hooks.
type Fragment uint8

// The parts.
const (
	Whole Fragment = iota
	FirstFragment
	MiddleFragment
	LastFragment
)

// place is the offset in units of 8 bytes, and 1 where more follows: as in a
// datagram of three parts over Ethernet.
func (f Fragment) place() (offset uint16, more byte) {
	const part = 1448 / 8
	switch f {
	case FirstFragment:
		return 0, 1
	case MiddleFragment:
		return part, 1
	case LastFragment:
		return 2 * part, 0
	}
	return 0, 0
}

// Fragments asks for packets that are one of these.
func Fragments(parts ...Fragment) Condition {
	m := Condition{kind: matchFragment}
	for _, f := range parts {
		m.a |= 1 << f
	}
	return m
}

// Join says of the whole table whether fragments are joined as long as it
// stands, where no rule of it says so. Rules that nobody has read may do.
func (t *Table) Join(as Truth) { t.joins = max(t.joins, as) }

// Joins is whether the kernel joins fragments before it looks at them: some rule
// asks for tracking, or for what needs whole packets as it does.
func (e *Evaluator) Joins() Truth { return e.joins }

// join is for what the kernel joins before the base chain. What has left tracking
// by then stays as it is (net/ipv4/netfilter/nf_defrag_ipv4.c, ipv4_conntrack_defrag).
func (s *walk) join(b *Base, joins bool) {
	joins = joins && s.states&StateUntracked == 0
	if joins && (b.Hook != Prerouting || b.Priority >= PriorityJoin) || b.Hook == LocalIn && s.e.family == host.IPv4 || s.p.In == "lo" || s.p.Hook == HookOutput {
		s.part = Whole
	}
}

// waits is whether a part may wait in vain for others of its datagram, which the
// chain has kept from being joined.
func (s *walk) waits(splits *RuleRef) bool {
	if s.p.Fragment == Whole || splits == nil {
		return false
	}
	s.wonder(splits)
	return true
}

// headless is whether the packet has no header of its protocol.
func (s *walk) headless() bool { return s.part > FirstFragment }

// ReadBlindly is the condition on the protocol's header as nft's expressions have
// it: see Fragment.
func (m Condition) ReadBlindly() Condition {
	m.blind = true
	return m
}

// misread is whether a part without the protocol's header meets the condition.
// Data are no number in particular: only what asks for few is not met by them.
func (m *Condition) misread(few bool) Truth {
	if m.blind && !few {
		return Maybe
	}
	return No
}

// length is that of the IP packet, in bytes.
func (s *walk) length() (n uint32, known bool) {
	if s.part != s.p.Fragment {
		return s.p.Datagram, s.p.Datagram != 0
	}
	return s.p.Length, s.p.Known&KnownLength != 0
}

// headerFragment is the number of IPv6's fragment header (RFC 8200, section 4.5).
const headerFragment = 44

// loadFragment loads of that header, or whether there is one.
func (s *walk) loadFragment(m *machine, f *Field, to, n uint8) Truth {
	switch {
	case f.Exists && s.part == Whole:
		m.put(to, []byte{0})
		return Yes
	case f.Exists:
		m.put(to, []byte{1})
		return Yes
	case s.part == Whole:
		return No
	}
	at, more := s.part.place()
	m.part(to, n, f.Offset, 0, []byte{s.p.Protocol, 0, byte(at >> 5), byte(at<<3) | more}, 0xff)
	if f.Offset+int(n) <= 8 {
		return Yes
	}
	return Maybe
}
