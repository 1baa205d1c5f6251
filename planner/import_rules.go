package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// atom is one rule of a chain, from the host's point of view.
type atom struct {
	family        Family
	hook          string
	inbound       bool // from the remote side
	local, remote netip.Prefix
	lports        []PortRange
	rports        []PortRange
	iface         string
	proto         string
	noSyn         bool
}

// named is the rules of one block: those with its name.
type named struct {
	name  string
	atoms []atom
}

// ownTraffic reads ctplan's chains in the kernel back into the blocks that they
// were made from.
func ownTraffic(l Live) (accepts, notracks []Traffic) {
	read := func(table string) []Traffic {
		var order [][]string
		blocks := map[string]*named{}
		for i := range l.Rulesets {
			r := &l.Rulesets[i]
			if !r.Primary {
				continue
			}
			for _, hook := range []string{"INPUT", "OUTPUT", "FORWARD", "PREROUTING"} {
				var names []string
				for _, t := range r.Sections(table) {
					for k := range t.Rules {
						rule := &t.Rules[k]
						if rule.Chain != OwnPrefix+hook {
							continue
						}
						s := parseSpec(rule.Words)
						if table == "raw" && !s.notracks() || table != "raw" && s.target != "ACCEPT" {
							continue
						}
						name := nameOf(s, "rule")
						if !slices.Contains(names, name) {
							names = append(names, name)
						}
						if blocks[name] == nil {
							blocks[name] = &named{name: name}
						}
						blocks[name].atoms = append(blocks[name].atoms, atomOf(s, r.Family, hook))
					}
				}
				if len(names) > 0 {
					order = append(order, names)
				}
			}
		}
		var out []Traffic
		for _, name := range merged(order) {
			out = append(out, blocks[name].traffic(table))
		}
		return out
	}
	return read("filter"), read("raw")
}

// foreignNotracks reads NOTRACK rules that are not ctplan's.
func foreignNotracks(l Live) []Traffic {
	var out []Traffic
	for i := range l.Rulesets {
		r := &l.Rulesets[i]
		for _, t := range r.Sections("raw") {
			for k := range t.Rules {
				s := parseSpec(t.Rules[k].Words)
				hook := t.Rules[k].Chain
				if isOwn(hook) || !s.notracks() || hook != "PREROUTING" && hook != "OUTPUT" {
					continue
				}
				one := named{name: "notrack", atoms: []atom{atomOf(s, r.Family, hook)}}
				b := one.traffic("raw")
				if i := slices.IndexFunc(out, func(o Traffic) bool { return sameTraffic(o, b) }); i >= 0 {
					if out[i].Direction != b.Direction {
						out[i].Direction = Both
					}
					if !slices.Contains(out[i].Families, r.Family) {
						out[i].Families = slices.Clone(Families)
					}
					continue
				}
				b.Name = fmt.Sprintf("notrack-%d", len(out)+1)
				out = append(out, b)
			}
		}
	}
	return out
}

// sameTraffic compares all but name, direction and families.
func sameTraffic(a, b Traffic) bool {
	return a.Protocol == b.Protocol && slices.Equal(a.Local, b.Local) && slices.Equal(a.Remote, b.Remote) && slices.Equal(a.LocalPorts, b.LocalPorts) && slices.Equal(a.RemotePorts, b.RemotePorts) && a.Interface == b.Interface
}

// nameOf is the name of the block that a rule was made from: its comment.
func nameOf(s spec, otherwise string) string {
	for _, o := range s.opts {
		if o.name == "--comment" && len(o.args) == 1 {
			return labelOf(o.args[0], otherwise)
		}
	}
	return otherwise
}

// atomOf reads one rule.
func atomOf(s spec, f Family, hook string) atom {
	p := packetsOf(s)
	a := atom{family: f, hook: hook, inbound: hook == "INPUT" || hook == "PREROUTING" || hook == "FORWARD" && p.in.name != ""}
	if n, ok := ProtocolNumber(p.proto); ok && p.proto != "" {
		a.proto = protocolText(n)
	}
	src, dst := p.src.prefix, p.dst.prefix
	sports, dports := p.sports.ranges, p.dports.ranges
	if a.inbound {
		src, dst, sports, dports = dst, src, dports, sports
	}
	a.local, a.remote, a.lports, a.rports = plainPrefix(src, f), plainPrefix(dst, f), sports, dports
	for _, name := range []string{p.in.name, p.out.name} {
		if len(name) <= 15 && plainInterface(strings.TrimSuffix(name, "+")) {
			a.iface = name
		}
	}
	a.noSyn = slices.ContainsFunc(s.opts, func(o option) bool {
		return o.not && (o.name == "--syn" || o.name == "--tcp-flags" && strings.Join(o.args, " ") == "FIN,SYN,RST,ACK SYN")
	})
	return a
}

// plainPrefix is a network that the language can name in the family; the zero
// Prefix, any, for others.
func plainPrefix(p netip.Prefix, f Family) netip.Prefix {
	if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4() != (f == IPv4) || p.Addr().Is4In6() {
		return netip.Prefix{}
	}
	return p.Masked()
}

// traffic is the block whose rules these are.
func (n *named) traffic(table string) Traffic {
	t := Traffic{Name: n.name, Direction: n.direction(table)}
	seen := n.atoms
	if t.Direction == Forward {
		seen = n.outbound()
	}
	whole := map[Family][2]bool{} // any local, any remote
	for _, a := range seen {
		t.Protocol, t.Interface = a.proto, orDefault(a.iface, t.Interface)
		for i, side := range []struct {
			list   *[]netip.Prefix
			prefix netip.Prefix
		}{{&t.Local, a.local}, {&t.Remote, a.remote}} {
			switch {
			case !side.prefix.IsValid():
				sides := whole[a.family]
				sides[i] = true
				whole[a.family] = sides
			case !slices.Contains(*side.list, side.prefix):
				*side.list = append(*side.list, side.prefix)
			}
		}
		t.LocalPorts, t.RemotePorts = append(t.LocalPorts, a.lports...), append(t.RemotePorts, a.rports...)
	}
	for _, a := range n.atoms {
		if !slices.Contains(t.Families, a.family) {
			t.Families = append(t.Families, a.family)
		}
		t.Interface = orDefault(t.Interface, a.iface)
		if a.noSyn {
			if t.Initiator = RemoteSide; a.inbound || t.Direction == Forward && !slices.ContainsFunc(seen, func(o atom) bool { return o.noSyn }) {
				t.Initiator = LocalSide
			}
		}
	}
	for i, list := range []*[]netip.Prefix{&t.Local, &t.Remote} {
		for _, f := range Families {
			if len(*list) > 0 && whole[f][i] {
				*list = append(*list, anyOf(f))
			}
		}
	}
	t.LocalPorts, t.RemotePorts = sortedPorts(t.LocalPorts), sortedPorts(t.RemotePorts)
	if !carriesPortsByName(t.Protocol) {
		t.LocalPorts, t.RemotePorts = nil, nil
	}
	if t.Protocol != "tcp" {
		t.Initiator = EitherSide
	}
	slices.SortFunc(t.Families, func(a, b Family) int { return slices.Index(Families, a) - slices.Index(Families, b) })
	if t.Protocol == "icmp" {
		t.Families = []Family{IPv4}
	}
	if t.Protocol == "ipv6-icmp" {
		t.Families = []Family{IPv6}
	}
	return t
}

func carriesPortsByName(proto string) bool {
	n, ok := ProtocolNumber(proto)
	return ok && carriesPorts(n)
}

// sortedPorts are ranges in order, without those that begin in another.
func sortedPorts(list []PortRange) []PortRange {
	slices.SortFunc(list, func(a, b PortRange) int {
		if a.From != b.From {
			return int(a.From) - int(b.From)
		}
		return int(a.To) - int(b.To)
	})
	var out []PortRange
	for _, r := range list {
		r.From = max(r.From, 1)
		r.To = max(r.To, 1)
		if n := len(out); n > 0 && r.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

// direction is told by the chains that the block has rules in.
func (n *named) direction(table string) Direction {
	in, out, forward, pre := n.in("INPUT"), n.in("OUTPUT"), n.in("FORWARD"), n.in("PREROUTING")
	switch {
	case forward:
		return Forward
	case table == "raw" && pre && !out:
		if n.mirrored() {
			return Forward
		}
		return In
	case (in || pre) && out:
		return Both
	case out:
		return Out
	}
	return In
}

func (n *named) in(hook string) bool {
	return slices.ContainsFunc(n.atoms, func(a atom) bool { return a.hook == hook })
}

// mirrored reports whether the rules are of both ways: in PREROUTING, routed
// traffic from the local side has no interface, and that to it may have.
func (n *named) mirrored() bool {
	with := 0
	for _, a := range n.atoms {
		if a.iface != "" {
			with++
		}
	}
	if with > 0 && 2*with != len(n.atoms) {
		return false
	}
	for _, a := range n.atoms {
		if !slices.ContainsFunc(n.atoms, func(b atom) bool {
			return a.family == b.family && a.local == b.remote && a.remote == b.local && slices.Equal(a.lports, b.rports) && slices.Equal(a.rports, b.lports)
		}) {
			return false
		}
	}
	return true
}

// outbound are the rules for what the local side of routed traffic sends. They
// come first, and where the block has an interface, it tells too.
func (n *named) outbound() []atom {
	var out []atom
	for _, f := range Families {
		var mine []atom
		for _, a := range n.atoms {
			if a.family == f {
				mine = append(mine, a)
			}
		}
		for i, a := range mine {
			late := i >= (len(mine)+1)/2
			switch {
			case a.hook == "FORWARD" && a.iface != "" && a.inbound, late && (a.hook == "PREROUTING" || a.iface == ""):
				continue
			}
			if a.hook == "PREROUTING" { // read as coming in, and meant as going out
				a.local, a.remote, a.lports, a.rports = a.remote, a.local, a.rports, a.lports
			}
			out = append(out, a)
		}
	}
	return out
}

// merged is one order of names that keeps those of all lists, as far as they
// agree.
func merged(lists [][]string) []string {
	var out []string
	lists = slices.Clone(lists)
	for {
		pick, rest := "", ""
		for _, l := range lists {
			if len(l) == 0 {
				continue
			}
			rest = orDefault(rest, l[0])
			waits := slices.ContainsFunc(lists, func(o []string) bool { return slices.Index(o, l[0]) > 0 })
			if !waits {
				pick = l[0]
				break
			}
		}
		if rest == "" {
			return out
		}
		name := orDefault(pick, rest) // in a circle, the first
		out = append(out, name)
		for i := range lists {
			lists[i] = slices.DeleteFunc(slices.Clone(lists[i]), func(o string) bool { return o == name })
		}
	}
}
