package planner

import "net/netip"

// Side is an end of a packet.
type Side uint8

// The sides. EitherEnd is for ports alone: one of the two will do.
const (
	SourceEnd Side = iota
	DestinationEnd
	EitherEnd
)

// Negated is the condition's opposite.
func (m Condition) Negated() Condition {
	m.not = !m.not
	return m
}

// Never is a condition that no packet meets.
func Never() Condition { return Condition{kind: matchNever} }

// Masked asks for addresses that are the given one behind a mask, which may have
// holes. Both are of the evaluator's family.
func Masked(s Side, addr, mask netip.Addr) Condition {
	m := words128(mask)
	return Condition{kind: matchAddr, dst: s == DestinationEnd, addr: words128(addr).and(m), mask: m}
}

// Between asks for addresses in a range, its ends among them.
func Between(s Side, from, to netip.Addr) Condition {
	return Condition{kind: matchRange, dst: s == DestinationEnd, addr: words128(from), mask: words128(to)}
}

// InPorts asks for ports. Packets of protocols without ports never meet it.
func InPorts(s Side, ranges []PortRange) Condition {
	return Condition{kind: matchPorts, dst: s == DestinationEnd, either: s == EitherEnd, ports: ranges}
}

// NeitherPort asks for packets that are not from the one port and not to the
// other; of a packet that is just one of that, nobody knows.
func NeitherPort(source, destination uint16) Condition {
	return Condition{kind: matchNeitherPort, a: uint32(source), b: uint32(destination)}
}

// Flags asks for flags of TCP (TCPSyn and the like): of those in mask, the ones
// in value are set.
func Flags(mask, value uint32) Condition { return Condition{kind: matchFlags, a: mask, b: value} }

// AnyICMP is the type that stands for all of ICMP.
const AnyICMP = 0xffff

// ICMP asks for a type of ICMP, or AnyICMP, and a range of codes.
func ICMP(typ uint16, from, to uint8) Condition {
	return Condition{kind: matchICMP, a: uint32(typ), b: uint32(from)<<8 | uint32(to)}
}

// PacketMark asks for mark & mask == value.
func PacketMark(value, mask uint32) Condition { return Condition{kind: matchMark, a: value, b: mask} }

// ConnMark asks the same of the connection's mark.
func ConnMark(value, mask uint32) Condition { return Condition{kind: matchCMark, a: value, b: mask} }

// Connection asks for what is in c, which may still be filled in.
func Connection(c *CT) Condition { return Condition{kind: matchCT, ct: c} }

// TrackedOnly is a condition of which nobody knows what it makes of a packet
// that has a connection; one that has none does not meet it.
func TrackedOnly() Condition { return Condition{kind: matchTrackedOnly} }

// User asks for packets of sockets of a range of users, and Group of groups.
func User(from, to uint32) Condition { return Condition{kind: matchOwner, a: from, b: to} }

// Group is as User.
func Group(from, to uint32) Condition {
	return Condition{kind: matchOwner, either: true, a: from, b: to}
}

// Length asks for IP packets of so many bytes.
func Length(from, to uint32) Condition { return Condition{kind: matchLength, a: from, b: to} }

// MAC asks for a source address of Ethernet, in the low 48 bits.
func MAC(address uint64) Condition { return Condition{kind: matchMAC, addr: addr128{0, address}} }

// LinkType asks for a link-layer destination (PktHost and the like).
func LinkType(typ uint8) Condition { return Condition{kind: matchPkt, a: uint32(typ)} }

// BridgePort asks for packets that pass ports of a bridge; those that pass none
// meet it where result says so.
func BridgePort(result bool) Condition {
	m := Condition{kind: matchPhys}
	if result {
		m.a = 1
	}
	return m
}

// The types of addresses (linux/netfilter/xt_addrtype.h), as far as they can be
// told; TypeOther is for all others.
const (
	TypeUnspec    = 1 << 0
	TypeUnicast   = 1 << 1
	TypeLocal     = 1 << 2
	TypeBroadcast = 1 << 3
	TypeMulticast = 1 << 5
	TypeOther     = 1 << 15
)

// AddressType asks for addresses of one of the types.
func AddressType(s Side, types uint32) Condition {
	return Condition{kind: matchType, dst: s == DestinationEnd, a: types}
}

// InSet asks for members of a set: sides are those of its parts, address and
// port. ok is false where the set cannot be searched so.
func InSet(set *IPSet, f Family, sides []Side) (m Condition, ok bool) {
	c := compileSet(set, f)
	want := 0
	if c != nil && c.addr {
		want++
	}
	if c != nil && c.port {
		want++
	}
	if c == nil || len(sides) < want {
		return m, false
	}
	return Condition{kind: matchSet, set: c, dst: sides[0] == DestinationEnd, dst2: sides[want-1] == DestinationEnd}, true
}
