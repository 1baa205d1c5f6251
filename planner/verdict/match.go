package verdict

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Truth is what is known of a statement about a packet. The order makes "and"
// the smaller of two.
type Truth uint8

// The truths.
const (
	No Truth = iota
	Maybe
	Yes
)

// TruthOf is what is known of a statement that is known.
func TruthOf(b bool) Truth {
	if b {
		return Yes
	}
	return No
}

func (t Truth) invert(not bool) Truth {
	if not {
		return Yes - t
	}
	return t
}

// matchKind says what a condition compares.
type matchKind uint8

const (
	matchUnknown matchKind = iota // cannot be known from a packet
	matchRate                     // the same, and because of a rate alone
	matchNever
	matchAddr        // addr, mask; dst: of the destination
	matchRange       // addr to mask
	matchPorts       // ports; sports, dports or either
	matchNeitherPort // a: source, b: destination; one of them: nobody knows
	matchFlags       // a: mask, b: value
	matchICMP        // a: type, b: code range lo<<8|hi; type 0xffff is any
	matchMark        // a: value, b: mask
	matchCMark       // the same of the connection
	matchCT          // ct
	matchOwner       // a, b: range of users or groups
	matchLength      // a, b: range
	matchMAC         // addr.lo
	matchPkt         // a
	matchPhys        // a: result where no bridge is
	matchType        // a: mask of address types
	matchSet         // set
	matchTrackedOnly // a: unknown with a connection, not: the answer without one
	matchFragment    // a: a bit for each Fragment
)

// Condition is one condition of a rule.
type Condition struct {
	kind       matchKind
	not        bool
	dst        bool // the destination's side
	either     bool // ports: any side will do; owner: the group
	a, b       uint32
	addr, mask nets.Bits
	ports      []host.PortRange
	ct         *CT
	set        *compiledSet
	dst2       bool // set: the port's side
	blind      bool // see ReadBlindly
}

func (m *Condition) eval(s *walk) Truth {
	p := s.p
	switch m.kind {
	case matchNever:
		return No
	case matchAddr:
		return TruthOf((s.addr(m.dst).And(m.mask) == m.addr) != m.not)
	case matchRange:
		a := s.addr(m.dst)
		return TruthOf((!a.Less(m.addr) && !m.mask.Less(a)) != m.not)
	case matchPorts:
		if !protocol.CarriesPorts(p.Protocol) {
			return No
		}
		if s.headless() {
			return m.misread(!m.not && !slices.ContainsFunc(m.ports, func(r host.PortRange) bool { return r.From != r.To }))
		}
		var hit bool
		switch {
		case m.either:
			hit = host.InRanges(m.ports, s.sport) || host.InRanges(m.ports, s.dport)
		case m.dst:
			hit = host.InRanges(m.ports, s.dport)
		default:
			hit = host.InRanges(m.ports, s.sport)
		}
		return TruthOf(hit != m.not)
	case matchNeitherPort:
		switch src, dst := uint32(s.sport) == m.a, uint32(s.dport) == m.b; {
		case s.headless():
			return m.misread(false)
		case !protocol.CarriesPorts(p.Protocol), src && dst:
			return No
		case src || dst:
			return Maybe
		}
		return Yes
	case matchFlags:
		if s.headless() {
			return m.misread(false)
		}
		return TruthOf((uint32(p.TCPFlags)&m.a == m.b) != m.not)
	case matchICMP:
		if s.headless() {
			return m.misread(false)
		}
		hit := m.a == 0xffff || uint32(p.ICMPType) == m.a && uint32(p.ICMPCode) >= m.b>>8 && uint32(p.ICMPCode) <= m.b&0xff
		return TruthOf(hit != m.not)
	case matchMark:
		return compareMark(s.mark, s.markBits, m.a, m.b).invert(m.not)
	case matchCMark:
		return s.tracked(compareMark(s.cmark, s.cmarkBits, m.a, m.b).invert(m.not), No)
	case matchCT:
		return m.ct.eval(s)
	case matchTrackedOnly:
		return s.tracked(Maybe, TruthOf(m.not))
	case matchType:
		return s.addrType(m.dst, m.a).invert(m.not)
	case matchSet:
		return m.set.has(s, m.dst, m.dst2).invert(m.not)
	case matchFragment:
		return TruthOf((m.a>>s.part&1 != 0) != m.not)
	}
	return m.evalOptional(s)
}

// evalOptional is eval of what is not known of every packet.
func (m *Condition) evalOptional(s *walk) Truth {
	p := s.p
	switch m.kind {
	case matchOwner:
		id, known := p.UID, KnownUID
		if m.either {
			id, known = p.GID, KnownGID
		}
		if p.Known&known == 0 {
			return Maybe
		}
		return TruthOf((id >= m.a && id <= m.b) != m.not)
	case matchLength:
		n, known := s.length()
		if !known {
			return Maybe
		}
		return TruthOf((n >= m.a && n <= m.b) != m.not)
	case matchMAC:
		switch {
		case s.in == "lo":
			return No // not an Ethernet device: the match fails, also when negated
		case p.Known&KnownMAC == 0:
			return Maybe
		}
		var mac uint64
		for _, b := range p.MAC {
			mac = mac<<8 | uint64(b)
		}
		return TruthOf((mac == m.addr.Lo) != m.not)
	case matchPkt:
		if p.Known&KnownPktType == 0 {
			return Maybe
		}
		return TruthOf((uint32(p.PktType) == m.a) != m.not)
	case matchPhys:
		if p.Known&KnownUnbridged == 0 && s.in != "lo" && s.out != "lo" {
			return Maybe
		}
		return TruthOf(m.a != 0)
	}
	return Maybe
}

// tracked is t for a packet with a connection, f for one without, and what is
// left of both where that is not known.
func (s *walk) tracked(t, f Truth) Truth {
	const without = StateInvalid | StateUntracked
	switch {
	case s.states&without == 0:
		return t
	case s.states&^without == 0, t == f:
		return f
	}
	return Maybe
}

// compareMark is whether mark&mask == value, where only the known bits of the
// mark are known.
func compareMark(mark, known, value, mask uint32) Truth {
	switch {
	case (mark^value)&mask&known != 0, value&^mask != 0:
		return No
	case mask&^known != 0:
		return Maybe
	}
	return Yes
}

// localTo is whether an address of the packet is one of the host's own.
func (s *walk) localTo(a netip.Addr, dst bool) Truth {
	local := s.e.local(a)
	if local == Maybe && s.p.Hook == HookInput && dst && s.tuple.Dst == s.p.Dst && !a.IsMulticast() && s.p.Known&KnownPktType != 0 && s.p.PktType == PktHost {
		local = Yes
	}
	return local
}

// addrType is whether the address is of one of the types
// (net/netfilter/xt_addrtype.c).
func (s *walk) addrType(dst bool, mask uint32) Truth {
	a := s.tuple.Src
	if dst {
		a = s.tuple.Dst
	}
	local := s.localTo(a, dst)
	if a.Is4() {
		var typ uint32
		switch b := a.As4(); {
		case b[0] == 0 || b == [4]byte{255, 255, 255, 255}:
			typ = TypeBroadcast
		case a.IsMulticast():
			typ = TypeMulticast
		case local == Yes:
			typ = TypeLocal
		case local == Maybe:
			const possible = TypeLocal | TypeBroadcast | TypeUnicast
			switch {
			case mask&possible == 0:
				return No
			case mask&possible == possible:
				return Yes
			}
			return Maybe
		case s.e.broadcast(a):
			typ = TypeBroadcast
		default:
			typ = TypeUnicast
		}
		return TruthOf(mask&typ != 0)
	}
	// For IPv6 the types are conditions that must all hold.
	t := Yes
	if mask&TypeMulticast != 0 && !a.IsMulticast() || mask&TypeUnicast != 0 && (a.IsMulticast() || a.IsUnspecified()) ||
		mask&TypeUnspec != 0 && !a.IsUnspecified() {
		t = No
	}
	switch {
	case mask&TypeOther != 0:
		t = min(t, Maybe)
	case mask&TypeLocal != 0:
		t = min(t, local)
	}
	return t
}

// CT is what one match asks of a packet's connection (net/netfilter/xt_conntrack.c,
// conntrack_mt).
type CT struct {
	States     State // 0: any
	SNAT, DNAT bool  // or a connection whose source, or destination, is translated
	NotStates  bool

	ByDirection, Reply bool // it goes the way of the connection's reply, or not

	ByStatus, NotStatus bool
	Status              uint32 // some bit of it is set

	ByProtocol, NotProtocol bool
	Protocol                uint8

	Tuples []TupleMatch
	Vague  bool // something else, whose answer nobody can know
}

// TupleMatch compares an address or a port of the connection's tuples.
type TupleMatch struct {
	Reply       bool // of the reply's tuple
	Destination bool
	Not         bool
	Network     netip.Prefix   // of the address, where it is valid
	Ports       host.PortRange // else
}

func (c *CT) eval(s *walk) Truth {
	state := Yes
	if c.States != 0 || c.SNAT || c.DNAT {
		state = c.state(s)
		if state == No {
			return No
		}
	}
	// Without a connection, the state alone counts.
	without := No
	if c.States != 0 || c.SNAT || c.DNAT {
		without = state
	}
	if s.states&^(StateInvalid|StateUntracked) == 0 {
		return without
	}
	with := min(state, c.rest(s))
	if s.states&(StateInvalid|StateUntracked) == 0 || with == without {
		return with
	}
	return Maybe
}

func (c *CT) state(s *walk) Truth {
	var t Truth
	switch {
	case s.states&^c.States == 0:
		t = Yes
	case s.states&c.States == 0:
		t = No
	default:
		t = Maybe
	}
	if t != Yes && (c.SNAT || c.DNAT) {
		nat := Maybe
		if s.p.Known&KnownStatus != 0 {
			nat = TruthOf(c.SNAT && s.p.Status&host.StatusSNAT != 0 || c.DNAT && s.p.Status&host.StatusDNAT != 0)
		}
		t = max(t, s.tracked(nat, No))
	}
	return t.invert(c.NotStates)
}

// rest is everything but the state, of a packet with a connection.
func (c *CT) rest(s *walk) Truth {
	p := s.p
	t := Yes
	if c.Vague {
		t = Maybe
	}
	if c.ByDirection {
		if p.Known&KnownReply == 0 {
			t = min(t, Maybe)
		} else if p.IsReply != c.Reply {
			return No
		}
	}
	if c.ByStatus {
		if p.Known&KnownStatus == 0 {
			t = min(t, Maybe)
		} else if (p.Status&c.Status != 0) == c.NotStatus {
			return No
		}
	}
	if c.ByProtocol {
		if p.Known&KnownTuples == 0 && s.states&StateRelated != 0 {
			t = min(t, Maybe)
		} else if (p.Protocol == c.Protocol) == c.NotProtocol {
			return No
		}
	}
	for i := range c.Tuples {
		if p.Known&KnownTuples == 0 {
			t = min(t, Maybe)
		} else if !c.Tuples[i].hit(p) {
			return No
		}
	}
	return t
}

func (m *TupleMatch) hit(p *Packet) bool {
	t := &p.Orig
	if m.Reply {
		t = &p.Reply
	}
	a, port := t.Src, t.SrcPort
	if m.Destination {
		a, port = t.Dst, t.DstPort
	}
	if m.Network.IsValid() {
		return m.Network.Contains(a) != m.Not
	}
	return (port >= m.Ports.From && port <= m.Ports.To) != m.Not
}

// compiledSet is an ipset made to be searched.
type compiledSet struct {
	port, addr bool
	masks      []nets.Bits     // the narrowest first: it decides
	members    map[setKey]bool // false: nomatch
}

type setKey struct {
	addr, mask nets.Bits
	proto      uint8
	port       uint16
}

func compileSet(set *host.IPSet, f host.Family) *compiledSet {
	if set == nil {
		return nil
	}
	c := &compiledSet{members: make(map[setKey]bool, len(set.Prefixes))}
	switch set.Type {
	case "hash:ip", "hash:net", "bitmap:ip":
		c.addr = true
	case "hash:ip,port", "hash:net,port":
		c.addr, c.port = true, true
	case "bitmap:port":
		c.port = true
	default:
		return nil
	}
	seen := map[nets.Bits]bool{}
	for _, e := range set.Prefixes {
		k := setKey{proto: e.Protocol, port: e.Port}
		if c.addr {
			if e.Prefix.Addr().Is4() != (f == host.IPv4) {
				continue
			}
			k.mask = nets.Mask(e.Prefix.Bits(), e.Prefix.Addr().BitLen())
			k.addr = nets.Of(e.Prefix.Addr()).And(k.mask)
		}
		if !seen[k.mask] {
			seen[k.mask] = true
			c.masks = append(c.masks, k.mask)
		}
		c.members[k] = !e.Nomatch
	}
	slices.SortFunc(c.masks, func(a, b nets.Bits) int { return cmp.Or(cmp.Compare(b.Hi, a.Hi), cmp.Compare(b.Lo, a.Lo)) })
	return c
}

func (c *compiledSet) has(s *walk, dst, portDst bool) Truth {
	k := setKey{}
	if c.port && !c.addr && s.p.Protocol != protocol.TCP && s.p.Protocol != protocol.UDP {
		return No // ip_set_get_ip_port in net/netfilter/ipset/ip_set_getport.c
	}
	if c.port && s.headless() && s.p.Protocol != protocol.DCCP {
		return No
	}
	if c.port {
		if !protocol.CarriesPorts(s.p.Protocol) {
			return Maybe
		}
		k.port = s.sport
		if portDst {
			k.port = s.dport
		}
		if c.addr {
			k.proto = s.p.Protocol
		}
	}
	a := s.addr(dst)
	for _, m := range c.masks {
		k.mask = m
		if c.addr {
			k.addr = a.And(m)
		}
		if in, ok := c.members[k]; ok {
			return TruthOf(in)
		}
	}
	return No
}
