package planner

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// networksOf are the networks that a rule names as its source, or as its
// destination, whether to match them or all others: by address, as a range
// (xt_iprange), or as members of a set (xt_set), as far as sets are known.
func networksOf(words []string, dst bool, sets map[string]*IPSet) iter.Seq[netip.Prefix] {
	address, ranged, way := "-s", "--src-range", "src"
	if dst {
		address, ranged, way = "-d", "--dst-range", "dst"
	}
	return func(yield func(netip.Prefix) bool) {
		for i := 0; i+1 < len(words); i++ {
			switch words[i] {
			case address:
				var set prefixSet
				if set.set(false, words[i+1]) && !yield(set.prefix) {
					return
				}
			case ranged:
				if from, to, ok := addressRange(words[i+1]); ok {
					for _, p := range rangePrefixes(from, to) {
						if !yield(p) {
							return
						}
					}
				}
			case "--match-set":
				set := sets[words[i+1]]
				if set == nil || i+2 >= len(words) || set.Type == "bitmap:port" {
					continue
				}
				if first, _, _ := strings.Cut(words[i+2], ","); first != way {
					continue
				}
				for _, e := range set.Prefixes {
					if !yield(e.Prefix) {
						return
					}
				}
			}
		}
	}
}

// stranger is an address of nobody in particular: one that rules name no network
// of, so that a rule about some is not taken for one about all. Where they name
// the whole world in parts, it is one that nobody has (RFC 5737, RFC 3849).
func (j *judge) stranger() netip.Addr { return j.strangers()[0] }

// another is a second stranger.
func (j *judge) another() netip.Addr { return j.strangers()[1] }

func (j *judge) strangers() []netip.Addr {
	if j.nobody != nil {
		return j.nobody
	}
	named := j.namedNetworks(false)
	first := netip.AddrFrom4([4]byte{203, 0, 113, 77})
	next := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{i, 77, 77, 77}) }
	from, to := byte(1), byte(223)
	if j.family == IPv6 {
		first = netip.MustParseAddr("2001:db8:ffff::77")
		next = func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{0: i, 1: 0x77, 15: 0x77}) }
		from, to = 0x20, 0x3f
	}
	unnamed := func(a netip.Addr) bool {
		return !a.IsPrivate() && !a.IsLoopback() && !slices.ContainsFunc(named, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
	}
	for a, i := first, from; len(j.nobody) < 2 && i <= to; a, i = next(i), i+1 {
		if !unnamed(a) {
			continue
		}
		j.nobody = append(j.nobody, a)
		if a = a.Next(); len(j.nobody) < 2 && unnamed(a) {
			j.nobody = append(j.nobody, a)
		}
	}
	for a := first; len(j.nobody) < 2; a = a.Next() {
		j.nobody = append(j.nobody, a)
	}
	return j.nobody
}

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
