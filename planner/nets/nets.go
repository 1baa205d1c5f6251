// Package nets is the arithmetic of addresses and networks of both families.
package nets

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Bits is an address as two words, IPv4 in the low one: it compares and
// masks without a loop.
type Bits struct{ Hi, Lo uint64 }

// Of is an address as bits.
func Of(a netip.Addr) Bits {
	if a.Is4() {
		b := a.As4()
		return Bits{0, uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := a.As16()
	var w Bits
	for i := range 8 {
		w.Hi = w.Hi<<8 | uint64(b[i])
		w.Lo = w.Lo<<8 | uint64(b[i+8])
	}
	return w
}

// Mask is the mask of a network of so many bits, in an address of width bits: 32
// or 128.
func Mask(bits, width int) Bits {
	if width == 32 {
		return Bits{0, ^uint64(0) << (32 - bits) & 0xffffffff}
	}
	if bits >= 64 {
		return Bits{^uint64(0), ^uint64(0) << (128 - bits)}
	}
	return Bits{^uint64(0) << (64 - bits), 0}
}

// And is what is left of the address behind a mask.
func (a Bits) And(m Bits) Bits { return Bits{a.Hi & m.Hi, a.Lo & m.Lo} }

// Less orders addresses of one family.
func (a Bits) Less(b Bits) bool { return a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo }

// ParseRange reads "from-to", or one address.
func ParseRange(arg string) (from, to netip.Addr, ok bool) {
	a, z, isRange := strings.Cut(arg, "-")
	if !isRange {
		z = a
	}
	from, err1 := netip.ParseAddr(a)
	to, err2 := netip.ParseAddr(z)
	return from, to, err1 == nil && err2 == nil && from.Is4() == to.Is4()
}

// Cover are the networks that make up a range of addresses of one
// family, the lowest first; none for a range that is empty.
func Cover(from, to netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for from.Compare(to) <= 0 {
		p := netip.PrefixFrom(from, from.BitLen())
		last := from
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			end := Last(wider)
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

// Last is the highest address of a network.
func Last(p netip.Prefix) netip.Addr {
	b := slices.Clone(p.Addr().AsSlice())
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Broadcast is the broadcast address of a network (RFC 919, section 7).
func Broadcast(p netip.Prefix) (a netip.Addr, ok bool) {
	if !p.Addr().Is4() || p.Bits() >= 31 {
		return a, false
	}
	return Last(p), true
}

// Any is the unspecified address of a family.
func Any(f host.Family) netip.Addr {
	if f == host.IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// All is the network of all addresses of a family.
func All(f host.Family) netip.Prefix { return netip.PrefixFrom(Any(f), 0) }

// Single is the network of one address.
func Single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Without is what is left of a network without another one: the networks that
// hold all of it but that.
func Without(p, less netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(less):
		return []netip.Prefix{p}
	case less.Bits() <= p.Bits():
		return nil
	}
	low := netip.PrefixFrom(p.Masked().Addr(), p.Bits()+1)
	high := netip.PrefixFrom(Last(low).Next(), p.Bits()+1)
	return append(Without(low, less), Without(high, less)...)
}
