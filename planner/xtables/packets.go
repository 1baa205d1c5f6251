package xtables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Packets is the set of packets that a rule's matches let through, as far as
// it can be told from addresses, ports, interfaces and protocol. Every other
// match is kept as text in rest and only ever compared for equality.
type Packets struct {
	Proto              string // "" any
	NotProto           bool
	Src, Dst           PrefixSet
	In, Out            InterfaceSet
	SrcPorts, DstPorts PortSet
	rest               []string // canonical, sorted
}

// PrefixSet is what a rule says of an address.
type PrefixSet struct {
	Not    bool
	Prefix netip.Prefix // invalid: any
}

// InterfaceSet is what a rule says of an interface.
type InterfaceSet struct {
	Not  bool
	Name string // "" any
}

// PortSet is what a rule says of a port.
type PortSet struct {
	Not    bool
	Ranges []host.PortRange // nil: any
}

// Plain is whether the set is all that the rule's matches say, and says nothing
// by leaving something out.
func (p Packets) Plain() bool {
	return len(p.rest) == 0 && !p.NotProto && !p.Src.Not && !p.Dst.Not && !p.In.Not && !p.Out.Not && !p.SrcPorts.Not && !p.DstPorts.Not
}

// PacketsOf reads the matches of a rule.
func PacketsOf(s Spec) Packets {
	var p Packets
	for _, o := range s.Matches {
		arg := ""
		if len(o.Args) > 0 {
			arg = o.Args[0]
		}
		ok := false
		switch o.Name {
		case "--comment":
			ok = true
		case "-p":
			proto := protocol.Canonical(arg)
			if proto != "all" {
				p.Proto, p.NotProto = proto, o.Not
			}
			ok = true
		case "-s":
			ok = p.Src.Take(o.Not, arg)
		case "-d":
			ok = p.Dst.Take(o.Not, arg)
		case "-i":
			ok = p.In.Take(o.Not, arg)
		case "-o":
			ok = p.Out.Take(o.Not, arg)
		case "--sport", "--sports":
			ok = p.SrcPorts.Take(o.Not, arg)
		case "--dport", "--dports":
			ok = p.DstPorts.Take(o.Not, arg)
		}
		if !ok {
			p.rest = append(p.rest, canonicalOption(o))
		}
	}
	p.rest = append(p.rest, s.bareModules()...)
	slices.Sort(p.rest)
	return p
}

// Take takes in a match of the rule. It reports false for one that the set cannot
// hold.
func (s *PrefixSet) Take(not bool, arg string) bool {
	if s.Prefix.IsValid() {
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
	s.Not, s.Prefix = not, prefix
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

// Take is as that of PrefixSet.
func (s *InterfaceSet) Take(not bool, arg string) bool {
	if s.Name != "" || arg == "" {
		return false
	}
	if arg == "+" && !not {
		return true
	}
	s.Not, s.Name = not, arg
	return true
}

// Take is as that of PrefixSet.
func (s *PortSet) Take(not bool, arg string) bool {
	if s.Ranges != nil {
		return false
	}
	var ranges []host.PortRange
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
		ranges = append(ranges, host.PortRange{From: uint16(from), To: uint16(to)})
	}
	s.Not, s.Ranges = not, ranges
	return true
}

// Covers reports whether every packet of q is surely one of p.
func (p Packets) Covers(q Packets) bool {
	if p.Proto != "" && (p.Proto != q.Proto || p.NotProto != q.NotProto) {
		if !p.NotProto || q.NotProto || q.Proto == "" || q.Proto == p.Proto {
			return false
		}
	}
	for _, r := range p.rest {
		if !slices.Contains(q.rest, r) {
			return false
		}
	}
	return p.Src.covers(q.Src) && p.Dst.covers(q.Dst) && p.In.covers(q.In) && p.Out.covers(q.Out) &&
		p.SrcPorts.covers(q.SrcPorts) && p.DstPorts.covers(q.DstPorts)
}

// Disjoint reports whether surely no packet is in both.
func (p Packets) Disjoint(q Packets) bool {
	if p.Proto != "" && q.Proto != "" && (p.Proto != q.Proto) && !p.NotProto && !q.NotProto {
		return true
	}
	if p.Proto == q.Proto && p.Proto != "" && p.NotProto != q.NotProto {
		return true
	}
	return p.Src.disjoint(q.Src) || p.Dst.disjoint(q.Dst) || p.In.disjoint(q.In) || p.Out.disjoint(q.Out) ||
		p.SrcPorts.disjoint(q.SrcPorts) || p.DstPorts.disjoint(q.DstPorts)
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

func (s PrefixSet) covers(o PrefixSet) bool {
	switch {
	case !s.Prefix.IsValid():
		return true
	case !o.Prefix.IsValid():
		return s.Prefix.Bits() == 0 && !s.Not
	case s.Not && o.Not:
		return contains(o.Prefix, s.Prefix)
	case s.Not:
		return !s.Prefix.Overlaps(o.Prefix)
	case o.Not:
		return false
	}
	return contains(s.Prefix, o.Prefix)
}

func (s PrefixSet) disjoint(o PrefixSet) bool {
	switch {
	case !s.Prefix.IsValid() || !o.Prefix.IsValid(), s.Not && o.Not:
		return false
	case s.Not:
		return contains(s.Prefix, o.Prefix)
	case o.Not:
		return contains(o.Prefix, s.Prefix)
	}
	return !s.Prefix.Overlaps(o.Prefix)
}

// InterfaceCovers reports whether pattern a matches every name that b does; a
// trailing "+" matches any rest.
func InterfaceCovers(a, b string) bool {
	if stem, ok := strings.CutSuffix(a, "+"); ok {
		return strings.HasPrefix(strings.TrimSuffix(b, "+"), stem)
	}
	return a == b
}

func (s InterfaceSet) covers(o InterfaceSet) bool {
	switch {
	case s.Name == "":
		return true
	case o.Name == "":
		return false
	case s.Not && o.Not:
		return InterfaceCovers(o.Name, s.Name)
	case s.Not:
		return !InterfaceCovers(s.Name, o.Name) && !InterfaceCovers(o.Name, s.Name)
	case o.Not:
		return false
	}
	return InterfaceCovers(s.Name, o.Name)
}

func (s InterfaceSet) disjoint(o InterfaceSet) bool {
	switch {
	case s.Name == "" || o.Name == "", s.Not && o.Not:
		return false
	case s.Not:
		return InterfaceCovers(s.Name, o.Name)
	case o.Not:
		return InterfaceCovers(o.Name, s.Name)
	}
	return !InterfaceCovers(s.Name, o.Name) && !InterfaceCovers(o.Name, s.Name)
}

func (s PortSet) covers(o PortSet) bool {
	switch {
	case s.Ranges == nil:
		return true
	case o.Ranges == nil:
		return false
	case s.Not == o.Not && slices.Equal(s.Ranges, o.Ranges):
		return true
	case s.Not && !o.Not:
		return !portsOverlap(s.Ranges, o.Ranges)
	case s.Not || o.Not:
		return false
	}
	return !slices.ContainsFunc(o.Ranges, func(r host.PortRange) bool {
		return !slices.ContainsFunc(s.Ranges, func(w host.PortRange) bool { return w.From <= r.From && r.To <= w.To })
	})
}

func (s PortSet) disjoint(o PortSet) bool {
	switch {
	case s.Ranges == nil || o.Ranges == nil || s.Not && o.Not:
		return false
	case s.Not:
		return PortSet{Ranges: s.Ranges}.covers(o)
	case o.Not:
		return PortSet{Ranges: o.Ranges}.covers(s)
	}
	return !portsOverlap(s.Ranges, o.Ranges)
}

func portsOverlap(a, b []host.PortRange) bool {
	for _, x := range a {
		for _, y := range b {
			if x.From <= y.To && y.From <= x.To {
				return true
			}
		}
	}
	return false
}
