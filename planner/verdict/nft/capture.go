package nft

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// address says which address of a header n bytes from offset are the beginning
// of.
func (b *builder) address(offset, n int) (side verdict.Side, from int, ok bool) {
	size, first := 4, 12
	if b.l.family == host.IPv6 {
		size, first = 16, 8
	}
	switch {
	case n > size:
		return 0, 0, false
	case offset == first:
		return verdict.SourceEnd, size, true
	case offset == first+size:
		return verdict.DestinationEnd, size, true
	}
	return 0, 0, false
}

func (b *builder) captureAddress(l *load, s verdict.Side, size int, value []byte, add func(verdict.Condition) bool) bool {
	if l.n != len(value) {
		return false
	}
	addr, mask := make([]byte, size), make([]byte, size)
	for i, v := range value {
		addr[i], mask[i] = v, 0xff
		if l.mask != nil {
			if mask[i] = l.mask[i]; l.xor[i] != 0 || v&^mask[i] != 0 {
				return false
			}
		}
	}
	a, _ := netip.AddrFromSlice(addr)
	m, _ := netip.AddrFromSlice(mask)
	return add(verdict.Masked(s, a, m))
}

func (b *builder) captureTransport(l *load, value []byte, add func(verdict.Condition) bool) bool {
	f := &l.field
	switch {
	case l.n != len(value):
	case l.n == 2 && l.mask == nil && (f.Offset == 0 || f.Offset == 2) && protocol.CarriesPorts(b.proto):
		side := verdict.SourceEnd
		if f.Offset == 2 {
			side = verdict.DestinationEnd
		}
		return add(verdict.InPorts(side, []host.PortRange{{From: port(value), To: port(value)}}).ReadBlindly())
	case l.n == 1 && f.Offset == 13 && b.proto == protocol.TCP && l.mask != nil && l.mask[0]&^0x3f == 0 && (l.xor[0]|value[0])&^l.mask[0] == 0:
		return add(verdict.Flags(uint32(l.mask[0]), uint32(value[0]^l.xor[0])).ReadBlindly())
	case l.n == 1 && f.Offset == 0 && l.mask == nil && (b.proto == protocol.ICMP || b.proto == protocol.ICMPv6):
		return add(verdict.ICMP(uint16(value[0]), 0, 0xff).ReadBlindly())
	}
	return false
}

// captureInterface is for names, which may end early for all that begin so, and
// for indices of interfaces that are known.
func (b *builder) captureInterface(k verdict.FieldKind, value []byte, not bool) bool {
	in := k == verdict.FieldInName || k == verdict.FieldInIndex
	name := ""
	if k == verdict.FieldInIndex || k == verdict.FieldOutIndex {
		const loopback = 1
		if name = b.l.names[number(value)]; number(value) == loopback {
			name = "lo"
		}
		if name == "" || len(value) != 4 {
			return false
		}
	} else {
		stem, rest, whole := bytes.Cut(value, []byte{0})
		if name = string(stem); name == "" || strings.HasSuffix(name, "+") || len(bytes.Trim(rest, "\x00")) > 0 {
			return false
		}
		if !whole && len(value) < 16 {
			name += "+"
		}
	}
	if strings.HasSuffix(name, "+") && (k == verdict.FieldInIndex || k == verdict.FieldOutIndex) || b.changes {
		return false
	}
	have := &b.out
	if in {
		have = &b.in
	}
	if *have {
		return false // a rule has room for one
	}
	*have = true
	if in {
		b.r.In(name, not)
	} else {
		b.r.Out(name, not)
	}
	return true
}

// stateOf is the state of a bit of NF_CT_STATE_BIT.
func stateOf(bit uint32) (verdict.State, bool) {
	for _, b := range verdict.StateBits {
		if b.Bit == bit {
			return b.State, true
		}
	}
	return 0, false
}

// statesOf are the states of several bits.
func statesOf(bits uint32) (states verdict.State, ok bool) {
	for _, b := range verdict.StateBits {
		if bits&b.Bit != 0 {
			states |= b.State
			bits &^= b.Bit
		}
	}
	return states, bits == 0
}

// captureState is for "state & mask == value", where it asks for one of some
// states, or none of them.
func (b *builder) captureState(l *load, eq bool, value []byte) bool {
	v := number(value)
	if l.mask == nil {
		s, ok := stateOf(v)
		return ok && b.states(s, !eq)
	}
	s, ok := statesOf(number(l.mask))
	return ok && number(l.xor) == 0 && v == 0 && s != 0 && b.states(s, eq)
}

func (b *builder) states(s verdict.State, not bool) bool {
	b.need(verdict.Connection(&verdict.CT{States: s, NotStates: not}))
	return true
}

// captureOrder is for ports below and above one.
func (b *builder) captureOrder(l *load, op uint32, value []byte) bool {
	if len(value) != 2 {
		return false
	}
	r := host.PortRange{To: 65535}
	switch v := port(value); {
	case op == cmpLte:
		r.To = v
	case op == cmpGte:
		r.From = v
	case op == cmpLt && v > 0:
		r.To = v - 1
	case op == cmpGt && v < 65535:
		r.From = v + 1
	default:
		return false
	}
	return b.ports(l, false, r)
}

func (b *builder) captureRange(l *load, not bool, from, to []byte) bool {
	if l.mask != nil || l.n != len(from) {
		return false
	}
	if len(from) == 2 {
		return b.ports(l, not, host.PortRange{From: port(from), To: port(to)})
	}
	s, size, ok := b.address(l.field.Offset, l.n)
	if l.field.Kind != verdict.FieldNetwork || !ok || size != l.n {
		return false
	}
	a, _ := netip.AddrFromSlice(from)
	z, _ := netip.AddrFromSlice(to)
	c := verdict.Between(s, a, z)
	if not {
		c = c.Negated()
	}
	b.need(c)
	return true
}

// captureSet is for sets of a few ports, of states, and of what all packets of
// the family have.
func (b *builder) captureSet(l *load, not bool, s *set) bool {
	if l.mask != nil || l.n != int(s.KeyLen) {
		return false
	}
	switch l.field.Kind {
	case verdict.FieldFamily, verdict.FieldEtherType:
		if !s.closed() || s.Flags&host.NFTSetInterval != 0 {
			return false
		}
		want := b.constant(l.field.Kind)
		found := false
		for e := range s.Elements.All() {
			found = found || e.Any || bytes.Equal(e.Key, want)
		}
		if found == not {
			b.never()
		}
		return true
	case verdict.FieldState:
		states, ok := s.states()
		return ok && states != 0 && b.states(states, not)
	case verdict.FieldTransport:
		ranges, ok := s.ports()
		return ok && b.ports(l, not, slices.Clip(ranges)...)
	}
	return false
}
