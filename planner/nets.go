package planner

import (
	"net/netip"
	"slices"
	"strings"
)

// addr128 is an address as two words, IPv4 in the low one: it compares and
// masks without a loop.
type addr128 struct{ hi, lo uint64 }

func words128(a netip.Addr) addr128 {
	if a.Is4() {
		b := a.As4()
		return addr128{0, uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := a.As16()
	var w addr128
	for i := range 8 {
		w.hi = w.hi<<8 | uint64(b[i])
		w.lo = w.lo<<8 | uint64(b[i+8])
	}
	return w
}

func mask128(bits, width int) addr128 {
	if width == 32 {
		return addr128{0, ^uint64(0) << (32 - bits) & 0xffffffff}
	}
	if bits >= 64 {
		return addr128{^uint64(0), ^uint64(0) << (128 - bits)}
	}
	return addr128{^uint64(0) << (64 - bits), 0}
}

func (a addr128) and(m addr128) addr128 { return addr128{a.hi & m.hi, a.lo & m.lo} }

func (a addr128) less(b addr128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

// addressRange reads "from-to", or one address.
func addressRange(arg string) (from, to netip.Addr, ok bool) {
	a, z, isRange := strings.Cut(arg, "-")
	if !isRange {
		z = a
	}
	from, err1 := netip.ParseAddr(a)
	to, err2 := netip.ParseAddr(z)
	return from, to, err1 == nil && err2 == nil && from.Is4() == to.Is4()
}

// rangePrefixes are the networks that make up a range of addresses of one
// family, the lowest first; none for a range that is empty.
func rangePrefixes(from, to netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for from.Compare(to) <= 0 {
		p := netip.PrefixFrom(from, from.BitLen())
		last := from
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			end := lastOf(wider)
			if wider.Masked().Addr() != from || end.Compare(to) > 0 {
				break
			}
			p, last = wider, end
		}
		out = append(out, p)
		if last == to {
			break
		}
		from = last.Next()
	}
	return out
}

// lastOf is the highest address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := slices.Clone(p.Addr().AsSlice())
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// broadcastOf is the broadcast address of a network (RFC 919, section 7).
func broadcastOf(p netip.Prefix) (a netip.Addr, ok bool) {
	if !p.Addr().Is4() || p.Bits() >= 31 {
		return a, false
	}
	return lastOf(p), true
}

func anyAddress(f Family) netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func anyOf(f Family) netip.Prefix { return netip.PrefixFrom(anyAddress(f), 0) }

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
