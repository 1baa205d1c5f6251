package verdict

import (
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// FieldKind is something of a packet, its connection or its way that a program
// can load.
type FieldKind uint8

// The fields.
const (
	FieldNone         FieldKind = iota // no packet here has it
	FieldUnknown                       // of which nobody knows what it is
	FieldDoubtful                      // nor whether there is one
	FieldOfConnection                  // the same, and without a connection there is none
	FieldLink                          // bytes of the link layer's header, from Offset
	FieldNetwork                       // of the header of IP
	FieldTransport                     // of the protocol's
	FieldFragment                      // of the fragment header of IPv6
	FieldLength                        // of the IP packet, in bytes: a number of the host
	FieldEtherType                     // 2 bytes
	FieldFamily                        // one byte, NFPROTO_IPV4 or _IPV6
	FieldProtocol                      // one byte
	FieldMark                          // numbers of the host, from here
	FieldInIndex
	FieldOutIndex
	FieldUser
	FieldGroup
	FieldInType // 2 bytes, of the host: ARPHRD_…
	FieldOutType
	FieldInName // 16 bytes
	FieldOutName
	FieldPktType     // one byte
	FieldState       // of the connection: NF_CT_STATE_BIT
	FieldDirection   // one byte: 1 for the reply
	FieldStatus      // enum ip_conntrack_status
	FieldConnMark    //
	FieldConnFamily  // one byte
	FieldConnProto   // one byte
	FieldConnSource  // the address in the direction Reply; with Any, in that of the packet
	FieldConnDest    //
	FieldConnSrcPort // 2 bytes
	FieldConnDstPort //
	FieldZone        // 2 bytes, of the host
	FieldAddressType // of the source, or with Destination: enum rtn_type; with Narrowed, as seen from the interface
	FieldWayBack     // the interface that a packet to the source would leave by: its index; 0: none. Only whether there is one is known
)

// Field says what to load.
type Field struct {
	Kind        FieldKind
	Offset, Len int // of the headers, and of what is unknown: bytes
	Reply       bool
	Destination bool
	Narrowed    bool // the route must lead through the packet's own interface
	// Exists is whether 1 is loaded for something, 0 for nothing.
	Exists bool
}

// Numbers of the kernel (include/uapi/linux/netfilter.h, nf_conntrack_common.h,
// rtnetlink.h, if_ether.h).
const (
	nfprotoIPv4, nfprotoIPv6 = 2, 10
	etherIPv4, etherIPv6     = 0x0800, 0x86dd

	rtnUnicast, rtnLocal, rtnBroadcast, rtnAnycast, rtnMulticast, rtnBlackhole, rtnUnreachable, rtnProhibit = 1, 2, 3, 4, 5, 6, 7, 8
)

// StateBits are the bits of FieldState, by state.
var StateBits = [5]struct {
	State State
	Bit   uint32
}{{StateInvalid, 1}, {StateEstablished, 2}, {StateRelated, 4}, {StateNew, 8}, {StateUntracked, 64}}

// Size is how many bytes of a register it takes, of an address the least.
func (f *Field) Size() int {
	switch f.Kind {
	case FieldNone, FieldUnknown, FieldDoubtful, FieldOfConnection, FieldLink, FieldNetwork, FieldTransport, FieldFragment:
		return f.Len
	case FieldWayBack:
		if f.Exists {
			return 1
		}
	case FieldInType, FieldOutType, FieldEtherType, FieldConnSrcPort, FieldConnDstPort, FieldZone:
		return 2
	case FieldFamily, FieldProtocol, FieldPktType, FieldDirection, FieldConnFamily, FieldConnProto:
		return 1
	case FieldInName, FieldOutName:
		return 16
	}
	return 4
}

// load puts a field into a register of n bytes. It reports whether there is one.
func (s *walk) load(m *machine, f *Field, to, n uint8) Truth {
	p := s.p
	v4 := p.Dst.Is4()
	m.forget(to, n)
	byteOf := func(b uint8, known bool) {
		if known {
			m.put(to, []byte{b})
		}
	}
	switch f.Kind {
	case FieldNone:
		return No
	case FieldUnknown:
	case FieldDoubtful:
		return Maybe
	case FieldOfConnection:
		return s.tracked(Maybe, No)
	case FieldLink:
		return s.loadLink(m, f.Offset, to, n)
	case FieldNetwork:
		return s.loadNetwork(m, f.Offset, to, n)
	case FieldTransport:
		return s.loadTransport(m, f.Offset, to, n)
	case FieldFragment:
		return s.loadFragment(m, f, to, n)
	case FieldLength:
		if length, known := s.length(); known {
			m.put32(to, length, ^uint32(0))
		}
	case FieldEtherType:
		if v4 {
			m.put(to, []byte{etherIPv4 >> 8, etherIPv4 & 0xff})
		} else {
			m.put(to, []byte{etherIPv6 >> 8, etherIPv6 & 0xff})
		}
	case FieldFamily, FieldConnFamily:
		family := uint8(nfprotoIPv6)
		if v4 {
			family = nfprotoIPv4
		}
		byteOf(family, true)
		if f.Kind == FieldConnFamily {
			return s.tracked(Yes, No)
		}
	case FieldProtocol:
		byteOf(p.Protocol, true)
	case FieldMark:
		m.put32(to, s.mark, s.markBits)
	case FieldInIndex, FieldOutIndex, FieldInName, FieldOutName:
		s.loadInterface(m, f, to)
	case FieldInType, FieldOutType:
		s.loadLinkType(m, f, to)
	case FieldUser, FieldGroup:
		return s.loadOwner(m, f, to)
	case FieldPktType:
		byteOf(p.PktType, p.Known&KnownPktType != 0)
	case FieldState:
		s.loadState(m, to)
	case FieldAddressType:
		s.loadAddressType(m, f, to)
	case FieldWayBack:
		s.loadWayBack(m, f, to)
	default:
		return s.tracked(s.loadConnection(m, f, to), No)
	}
	return Yes
}

// loadConnection is of a packet that has a connection.
func (s *walk) loadConnection(m *machine, f *Field, to uint8) Truth {
	p := s.p
	switch f.Kind {
	case FieldDirection:
		m.forget(to, 1)
		if p.Known&KnownReply != 0 {
			m.put(to, []byte{0})
			if p.IsReply {
				m.val[to] = 1
			}
		}
	case FieldStatus:
		const known = host.StatusExpected | host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed | host.StatusSNAT | host.StatusDNAT
		m.put32(to, 0, 0)
		if p.Known&KnownStatus != 0 {
			m.put32(to, p.Status, known)
		}
	case FieldConnMark:
		m.put32(to, s.cmark, s.cmarkBits)
	case FieldZone:
		m.forget(to, 2)
		if z := s.zone; !z.Unsure {
			m.put(to, []byte{byte(z.ID), byte(z.ID >> 8)})
		}
	case FieldConnProto:
		m.forget(to, 1)
		if p.Known&KnownTuples != 0 || s.states&StateRelated == 0 {
			m.put(to, []byte{p.Protocol})
		}
	default:
		s.loadTuple(m, f, to)
	}
	return Yes
}

// loadTuple loads an address or a port of the connection.
func (s *walk) loadTuple(m *machine, f *Field, to uint8) {
	p := s.p
	port := f.Kind == FieldConnSrcPort || f.Kind == FieldConnDstPort
	t := &p.Orig
	if f.Reply {
		t = &p.Reply
	}
	known := p.Known&KnownTuples != 0 && (!port || protocol.CarriesPorts(p.Protocol) && s.states&StateRelated == 0)
	switch {
	case port:
		m.forget(to, 2)
		number := t.SrcPort
		if f.Kind == FieldConnDstPort {
			number = t.DstPort
		}
		if known {
			m.put(to, []byte{byte(number >> 8), byte(number)})
		}
	default:
		a := t.Src
		if f.Kind == FieldConnDest {
			a = t.Dst
		}
		m.forget(to, addressBytes(p.Dst))
		if known {
			m.putAddress(to, a)
		}
	}
}

func addressBytes(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 16
}

func (m *machine) putAddress(at uint8, a netip.Addr) {
	if int(at)+int(addressBytes(a)) > registerBytes {
		return
	}
	if a.Is4() {
		b := a.As4()
		m.put(at, b[:])
		return
	}
	b := a.As16()
	m.put(at, b[:])
}

// part copies what of a header lies in a window of n bytes from offset, and is
// known, to a register: which is unknown before.
func (m *machine) part(to, n uint8, offset, at int, bytes []byte, known byte) {
	for i, b := range bytes {
		if k := at + i - offset; k >= 0 && k < int(n) {
			m.val[int(to)+k], m.known[int(to)+k] = b&known, known
		}
	}
}

// loadLink knows headers of Ethernet, which packets that go out do not have yet.
func (s *walk) loadLink(m *machine, offset int, to, n uint8) Truth {
	p := s.p
	switch {
	case p.Hook == HookOutput:
		return No
	case s.in == "lo" || p.Known&KnownMAC == 0 || offset+int(n) > 14:
		return Maybe
	}
	m.part(to, n, offset, 6, p.MAC[:], 0xff)
	return Yes
}

// loadNetwork knows headers without options, and without extensions but for
// that of fragments.
func (s *walk) loadNetwork(m *machine, offset int, to, n uint8) Truth {
	p := s.p
	part := func(at int, b ...byte) { m.part(to, n, offset, at, b, 0xff) }
	length, sized := s.length()
	size := 40
	if s.tuple.Dst.Is4() {
		size = 20
		src, dst := s.tuple.Src.As4(), s.tuple.Dst.As4()
		part(0, 0x45)
		if sized {
			part(2, byte(length>>8), byte(length))
		}
		at, more := s.part.place()
		m.part(to, n, offset, 6, []byte{more<<5 | byte(at>>8)}, 0x3f)
		part(7, byte(at))
		part(9, p.Protocol)
		part(12, src[:]...)
		part(16, dst[:]...)
	} else {
		src, dst := s.tuple.Src.As16(), s.tuple.Dst.As16()
		m.part(to, n, offset, 0, []byte{0x60}, 0xf0)
		if sized {
			part(4, byte((length-40)>>8), byte(length-40))
		}
		next := p.Protocol
		if s.part != Whole {
			next = headerFragment
		}
		part(6, next)
		part(8, src[:]...)
		part(24, dst[:]...)
	}
	if offset+int(n) <= size {
		return Yes
	}
	return Maybe
}

// loadTransport knows ports, flags and types.
func (s *walk) loadTransport(m *machine, offset int, to, n uint8) Truth {
	p := s.p
	part := func(at int, b ...byte) { m.part(to, n, offset, at, b, 0xff) }
	if s.headless() {
		return Maybe // see Fragment
	}
	size := 0
	if protocol.CarriesPorts(p.Protocol) {
		part(0, byte(s.sport>>8), byte(s.sport), byte(s.dport>>8), byte(s.dport))
		size = 8
	}
	switch p.Protocol {
	case protocol.TCP:
		m.part(to, n, offset, 13, []byte{p.TCPFlags}, 0x3f)
		size = 20
	case protocol.ICMP, protocol.ICMPv6:
		part(0, p.ICMPType, p.ICMPCode)
		size = 8
	}
	if offset+int(n) <= size {
		return Yes
	}
	return Maybe
}

func (s *walk) loadInterface(m *machine, f *Field, to uint8) {
	name := s.in
	if f.Kind == FieldOutIndex || f.Kind == FieldOutName {
		name = s.out
	}
	if f.Kind == FieldInName || f.Kind == FieldOutName {
		m.forget(to, 16)
		if name != SomeInterface && len(name) < 16 {
			m.clear(to, 16)
			copy(m.val[to:], name)
		}
		return
	}
	m.put32(to, 0, 0)
	switch index, ok := s.e.interfaces[name]; {
	case name == "":
		m.put32(to, 0, ^uint32(0))
	case name == "lo":
		m.put32(to, loopbackIndex, ^uint32(0))
	case ok:
		m.put32(to, index, ^uint32(0))
	default:
		m.not, m.notAt = loopbackIndexBytes, to
	}
}

// loadLinkType knows lo, and by what a packet came that has a source of Ethernet.
func (s *walk) loadLinkType(m *machine, f *Field, to uint8) {
	const ethernet = 1
	name := s.in
	if f.Kind == FieldOutType {
		name = s.out
	}
	switch {
	case name == "":
		m.put(to, []byte{0, 0})
	case name == "lo":
		m.put(to, []byte{loopbackType & 0xff, loopbackType >> 8})
	case f.Kind == FieldInType && s.p.Known&KnownMAC != 0:
		m.put(to, []byte{ethernet, 0})
	default:
		m.not, m.notAt = loopbackTypeBytes, to
	}
}

// loadOwner is of the socket that a packet comes from.
func (s *walk) loadOwner(m *machine, f *Field, to uint8) Truth {
	p := s.p
	id, known := p.UID, KnownUID
	if f.Kind == FieldGroup {
		id, known = p.GID, KnownGID
	}
	m.put32(to, 0, 0)
	switch {
	case p.Hook == HookForward:
		return No
	case p.Hook == HookInput || p.Known&known == 0:
		return Maybe
	}
	m.put32(to, id, ^uint32(0))
	return Yes
}

// loadState loads the states that the packet may have.
func (s *walk) loadState(m *machine, to uint8) {
	var list [len(StateBits)]uint32
	n := 0
	for _, b := range StateBits {
		if s.states&b.State != 0 {
			list[n] = b.Bit
			n++
		}
	}
	if n == 0 {
		m.put32(to, 0, 0)
		return
	}
	m.putFew(to, list[:n])
}

// loadAddressType is as net/ipv4/netfilter/nft_fib_ipv4.c and
// net/ipv6/netfilter/nft_fib_ipv6.c.
func (s *walk) loadAddressType(m *machine, f *Field, to uint8) {
	a := s.tuple.Src
	if f.Destination {
		a = s.tuple.Dst
	}
	var buf [maxFew]uint32
	types := buf[:0]
	local := s.localTo(a, f.Destination)
	switch v4 := a.Is4(); {
	case v4 && (a.As4()[0] == 0 || a == limitedBroadcast):
		types = append(types, rtnBroadcast)
	case v4 && a.IsMulticast():
		types = append(types, rtnMulticast)
	case a.IsMulticast():
		types = append(types, rtnMulticast, rtnUnreachable)
	case local == Yes:
		types = append(types, rtnLocal)
		if f.Narrowed {
			types = append(types, rtnUnicast, rtnUnreachable)
		}
	case v4 && local == Maybe:
		types = append(types, rtnLocal, rtnBroadcast, rtnUnicast)
	case v4 && s.e.broadcast(a):
		types = append(types, rtnBroadcast)
		if f.Narrowed {
			types = append(types, rtnUnicast)
		}
	case v4:
		types = append(types, rtnUnicast)
	default:
		types = append(types, rtnUnicast, rtnAnycast, rtnBlackhole, rtnUnreachable, rtnProhibit)
		if local == Maybe {
			types = append(types, rtnLocal)
		}
	}
	m.putFew(to, types)
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// loadWayBack is whether the source is reached through the interface that the
// packet has come by, or which interface that is.
func (s *walk) loadWayBack(m *machine, f *Field, to uint8) {
	back := (s.p.Known&KnownWayBack != 0 || s.in == "lo") && !f.Destination && s.in != ""
	switch {
	case !f.Exists && back:
		s.loadInterface(m, &Field{Kind: FieldInIndex}, to)
	case !f.Exists:
		m.put32(to, 0, 0)
	default:
		m.forget(to, 1)
		if back {
			m.put(to, []byte{1})
		}
	}
}
