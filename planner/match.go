package planner

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// packets is the set of packets that a rule's matches let through, as far as
// it can be told from addresses, ports, interfaces and protocol. Every other
// match is kept as text in rest and only ever compared for equality.
type packets struct {
	proto          string // "" any
	notProto       bool
	src, dst       prefixSet
	in, out        ifaceSet
	sports, dports portSet
	rest           []string // canonical, sorted
}

type prefixSet struct {
	not    bool
	prefix netip.Prefix // invalid: any
}

type ifaceSet struct {
	not  bool
	name string // "" any
}

type portSet struct {
	not    bool
	ranges []PortRange // nil: any
}

// packetsOf reads the matches of a rule.
func packetsOf(s spec) packets {
	var p packets
	for _, o := range s.opts {
		arg := ""
		if len(o.args) > 0 {
			arg = o.args[0]
		}
		ok := false
		switch o.name {
		case "--comment":
			ok = true
		case "-p":
			proto := canonicalProtocol(arg)
			if proto != "all" {
				p.proto, p.notProto = proto, o.not
			}
			ok = true
		case "-s":
			ok = p.src.set(o.not, arg)
		case "-d":
			ok = p.dst.set(o.not, arg)
		case "-i":
			ok = p.in.set(o.not, arg)
		case "-o":
			ok = p.out.set(o.not, arg)
		case "--sport", "--sports":
			ok = p.sports.set(o.not, arg)
		case "--dport", "--dports":
			ok = p.dports.set(o.not, arg)
		}
		if !ok {
			p.rest = append(p.rest, canonicalOption(o))
		}
	}
	p.rest = append(p.rest, s.bareModules()...)
	slices.Sort(p.rest)
	return p
}

func (s *prefixSet) set(not bool, arg string) bool {
	if s.prefix.IsValid() {
		return false // a second one cannot be told apart: leave it to rest
	}
	addr, bits, found := strings.Cut(arg, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return false
	}
	n := a.BitLen()
	if found {
		if n, err = strconv.Atoi(bits); err != nil {
			mask, err := netip.ParseAddr(bits)
			if err != nil || !mask.Is4() {
				return false
			}
			if n = maskBits(mask); n < 0 {
				return false
			}
		}
	}
	prefix, err := a.Prefix(n)
	if err != nil {
		return false
	}
	s.not, s.prefix = not, prefix
	return true
}

// maskBits is the prefix length of a dotted mask, or -1 when it has holes.
func maskBits(mask netip.Addr) int {
	b := mask.As4()
	n, ended := 0, false
	for _, octet := range b {
		for i := 7; i >= 0; i-- {
			one := octet>>i&1 == 1
			if one && ended {
				return -1
			}
			if one {
				n++
			}
			ended = ended || !one
		}
	}
	return n
}

func (s *ifaceSet) set(not bool, arg string) bool {
	if s.name != "" || arg == "" {
		return false
	}
	if arg == "+" && !not {
		return true
	}
	s.not, s.name = not, arg
	return true
}

func (s *portSet) set(not bool, arg string) bool {
	if s.ranges != nil {
		return false
	}
	var ranges []PortRange
	for part := range strings.SplitSeq(arg, ",") {
		lo, hi, isRange := strings.Cut(part, ":")
		if lo == "" {
			lo = "0"
		}
		if !isRange {
			hi = lo
		} else if hi == "" {
			hi = "65535"
		}
		from, err1 := strconv.ParseUint(lo, 10, 16)
		to, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			return false
		}
		ranges = append(ranges, PortRange{uint16(from), uint16(to)})
	}
	s.not, s.ranges = not, ranges
	return true
}

// covers reports whether every packet of q is surely one of p.
func (p packets) covers(q packets) bool {
	if p.proto != "" && (p.proto != q.proto || p.notProto != q.notProto) {
		if !p.notProto || q.notProto || q.proto == "" || q.proto == p.proto {
			return false
		}
	}
	for _, r := range p.rest {
		if !slices.Contains(q.rest, r) {
			return false
		}
	}
	return p.src.covers(q.src) && p.dst.covers(q.dst) && p.in.covers(q.in) && p.out.covers(q.out) &&
		p.sports.covers(q.sports) && p.dports.covers(q.dports)
}

// disjoint reports whether surely no packet is in both.
func (p packets) disjoint(q packets) bool {
	if p.proto != "" && q.proto != "" && (p.proto != q.proto) && !p.notProto && !q.notProto {
		return true
	}
	if p.proto == q.proto && p.proto != "" && p.notProto != q.notProto {
		return true
	}
	return p.src.disjoint(q.src) || p.dst.disjoint(q.dst) || p.in.disjoint(q.in) || p.out.disjoint(q.out) ||
		p.sports.disjoint(q.sports) || p.dports.disjoint(q.dports)
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func (s prefixSet) covers(o prefixSet) bool {
	switch {
	case !s.prefix.IsValid():
		return true
	case !o.prefix.IsValid():
		return s.prefix.Bits() == 0 && !s.not
	case s.not && o.not:
		return contains(o.prefix, s.prefix)
	case s.not:
		return !s.prefix.Overlaps(o.prefix)
	case o.not:
		return false
	}
	return contains(s.prefix, o.prefix)
}

func (s prefixSet) disjoint(o prefixSet) bool {
	switch {
	case !s.prefix.IsValid() || !o.prefix.IsValid(), s.not && o.not:
		return false
	case s.not:
		return contains(s.prefix, o.prefix)
	case o.not:
		return contains(o.prefix, s.prefix)
	}
	return !s.prefix.Overlaps(o.prefix)
}

// ifaceCovers reports whether pattern a matches every name that b does; a
// trailing "+" matches any rest.
func ifaceCovers(a, b string) bool {
	if stem, ok := strings.CutSuffix(a, "+"); ok {
		return strings.HasPrefix(strings.TrimSuffix(b, "+"), stem)
	}
	return a == b
}

func (s ifaceSet) covers(o ifaceSet) bool {
	switch {
	case s.name == "":
		return true
	case o.name == "":
		return false
	case s.not && o.not:
		return ifaceCovers(o.name, s.name)
	case s.not:
		return !ifaceCovers(s.name, o.name) && !ifaceCovers(o.name, s.name)
	case o.not:
		return false
	}
	return ifaceCovers(s.name, o.name)
}

func (s ifaceSet) disjoint(o ifaceSet) bool {
	switch {
	case s.name == "" || o.name == "", s.not && o.not:
		return false
	case s.not:
		return ifaceCovers(s.name, o.name)
	case o.not:
		return ifaceCovers(o.name, s.name)
	}
	return !ifaceCovers(s.name, o.name) && !ifaceCovers(o.name, s.name)
}

func (s portSet) covers(o portSet) bool {
	switch {
	case s.ranges == nil:
		return true
	case o.ranges == nil:
		return false
	case s.not == o.not && slices.Equal(s.ranges, o.ranges):
		return true
	case s.not && !o.not:
		return !portsOverlap(s.ranges, o.ranges)
	case s.not || o.not:
		return false
	}
	return !slices.ContainsFunc(o.ranges, func(r PortRange) bool {
		return !slices.ContainsFunc(s.ranges, func(w PortRange) bool { return w.From <= r.From && r.To <= w.To })
	})
}

func (s portSet) disjoint(o portSet) bool {
	switch {
	case s.ranges == nil || o.ranges == nil || s.not && o.not:
		return false
	case s.not:
		return portSet{ranges: s.ranges}.covers(o)
	case o.not:
		return portSet{ranges: o.ranges}.covers(s)
	}
	return !portsOverlap(s.ranges, o.ranges)
}

func portsOverlap(a, b []PortRange) bool {
	for _, x := range a {
		for _, y := range b {
			if x.From <= y.To && y.From <= x.To {
				return true
			}
		}
	}
	return false
}
