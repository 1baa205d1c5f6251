package importer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// atom is one rule of a chain, from the host's point of view.
type atom struct {
	family        host.Family
	hook          string
	inbound       bool // from the remote side
	local, remote netip.Prefix
	lports        []host.PortRange
	rports        []host.PortRange
	iface         string
	proto         string
	noSyn         bool
	own           bool // of a host that routes: for this host alone
}

// named is the rules of one block: those with its name.
type named struct {
	name  string
	atoms []atom
}

// ownTraffic reads ctplan's chains in the kernel back into the blocks that they
// were made from.
func ownTraffic(l host.Live) (accepts, notracks []declared.Traffic) {
	read := func(table string) []declared.Traffic {
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
						if rule.Chain != declared.OwnPrefix+hook {
							continue
						}
						s := xtables.Parse(rule.Words)
						if table == "raw" && !s.Untracks() || table != "raw" && s.Target != "ACCEPT" {
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
		var out []declared.Traffic
		for _, name := range merged(order) {
			blocks[name].plain()
			out = append(out, blocks[name].traffic(table))
		}
		return out
	}
	return read("filter"), read("raw")
}

var multicast6 = netip.MustParsePrefix("ff00::/8")

// plain takes out the rules that ctplan adds for multicast of IPv6 where a block
// is of this host's traffic: see iptables.Render.
func (n *named) plain() {
	if slices.ContainsFunc(n.atoms, func(a atom) bool { return a.own && a.family == host.IPv6 && !a.local.IsValid() }) {
		n.atoms = slices.DeleteFunc(n.atoms, func(a atom) bool { return a.hook == "PREROUTING" && a.local == multicast6 })
	}
}

// foreignNotracks reads NOTRACK rules that are not ctplan's. left are those that
// no block says: who would declare more than they take, as whole connections for
// the SYNs that are kept for SYNPROXY, would lose what stands behind them.
func foreignNotracks(l host.Live) (out []declared.Traffic, left []string) {
	for i := range l.Rulesets {
		r := &l.Rulesets[i]
		for _, t := range r.Sections("raw") {
			for k := range t.Rules {
				s := xtables.Parse(t.Rules[k].Words)
				hook := t.Rules[k].Chain
				if xtables.IsOwn(hook) || !s.Untracks() || hook != "PREROUTING" && hook != "OUTPUT" {
					continue
				}
				if !xtables.PacketsOf(s).Plain() {
					left = append(left, "-A "+t.Rules[k].Chain+" "+t.Rules[k].Text)
					continue
				}
				one := named{name: "notrack", atoms: []atom{atomOf(s, r.Family, hook)}}
				b := one.traffic("raw")
				if i := slices.IndexFunc(out, func(o declared.Traffic) bool { return sameTraffic(o, b) }); i >= 0 {
					if out[i].Direction != b.Direction {
						out[i].Direction = declared.Both
					}
					if !slices.Contains(out[i].Families, r.Family) {
						out[i].Families = slices.Clone(host.Families)
					}
					continue
				}
				b.Name = fmt.Sprintf("notrack-%d", len(out)+1)
				out = append(out, b)
			}
		}
	}
	return out, left
}

// sameTraffic compares all but name, direction and families.
func sameTraffic(a, b declared.Traffic) bool {
	return a.Protocol == b.Protocol && slices.Equal(a.Local, b.Local) && slices.Equal(a.Remote, b.Remote) && slices.Equal(a.LocalPorts, b.LocalPorts) && slices.Equal(a.RemotePorts, b.RemotePorts) && a.Interface == b.Interface
}

// nameOf is the name of the block that a rule was made from: its comment.
func nameOf(s xtables.Spec, otherwise string) string {
	for _, o := range s.Matches {
		if o.Name == "--comment" && len(o.Args) == 1 {
			return declared.Label(o.Args[0], otherwise)
		}
	}
	return otherwise
}

// atomOf reads one rule.
func atomOf(s xtables.Spec, f host.Family, hook string) atom {
	p := xtables.PacketsOf(s)
	a := atom{family: f, hook: hook, inbound: hook == "INPUT" || hook == "PREROUTING" || hook == "FORWARD" && p.In.Name != ""}
	if n, ok := protocol.Number(p.Proto); ok && p.Proto != "" {
		a.proto = protocol.Name(n)
	}
	src, dst := p.Src.Prefix, p.Dst.Prefix
	sports, dports := p.SrcPorts.Ranges, p.DstPorts.Ranges
	if a.inbound {
		src, dst, sports, dports = dst, src, dports, sports
	}
	a.local, a.remote, a.lports, a.rports = plainPrefix(src, f), plainPrefix(dst, f), sports, dports
	for _, name := range []string{p.In.Name, p.Out.Name} {
		if len(name) <= 15 && declared.PlainInterface(strings.TrimSuffix(name, "+")) {
			a.iface = name
		}
	}
	a.noSyn = slices.ContainsFunc(s.Matches, func(o xtables.Option) bool {
		return o.Not && (o.Name == "--syn" || o.Name == "--tcp-flags" && strings.Join(o.Args, " ") == "FIN,SYN,RST,ACK SYN")
	})
	a.own = hook == "PREROUTING" && slices.Contains(s.Modules, "addrtype")
	return a
}

// plainPrefix is a network that the language can name in the family; the zero
// Prefix, any, for others.
func plainPrefix(p netip.Prefix, f host.Family) netip.Prefix {
	if !p.IsValid() || p.Bits() == 0 || p.Addr().Is4() != (f == host.IPv4) || p.Addr().Is4In6() {
		return netip.Prefix{}
	}
	return p.Masked()
}

// traffic is the block whose rules these are.
func (n *named) traffic(table string) declared.Traffic {
	t := declared.Traffic{Name: n.name, Direction: n.direction(table)}
	seen := n.atoms
	if t.Direction == declared.Forward {
		seen = n.outbound()
	}
	whole := map[host.Family][2]bool{} // any local, any remote
	for _, a := range seen {
		t.Protocol, t.Interface = a.proto, words.Or(a.iface, t.Interface)
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
		t.Interface = words.Or(t.Interface, a.iface)
		if a.noSyn {
			if t.Initiator = declared.RemoteSide; a.inbound || t.Direction == declared.Forward && !slices.ContainsFunc(seen, func(o atom) bool { return o.noSyn }) {
				t.Initiator = declared.LocalSide
			}
		}
	}
	for i, list := range []*[]netip.Prefix{&t.Local, &t.Remote} {
		for _, f := range host.Families {
			if len(*list) > 0 && whole[f][i] {
				*list = append(*list, nets.All(f))
			}
		}
	}
	t.LocalPorts, t.RemotePorts = sortedPorts(t.LocalPorts), sortedPorts(t.RemotePorts)
	if !carriesPortsByName(t.Protocol) {
		t.LocalPorts, t.RemotePorts = nil, nil
	}
	if t.Protocol != "tcp" {
		t.Initiator = declared.EitherSide
	}
	slices.SortFunc(t.Families, func(a, b host.Family) int { return slices.Index(host.Families, a) - slices.Index(host.Families, b) })
	if t.Protocol == "icmp" {
		t.Families = []host.Family{host.IPv4}
	}
	if t.Protocol == "ipv6-icmp" {
		t.Families = []host.Family{host.IPv6}
	}
	return t
}

func carriesPortsByName(proto string) bool {
	n, ok := protocol.Number(proto)
	return ok && protocol.CarriesPorts(n)
}

// sortedPorts are ranges in order, without those that begin in another.
func sortedPorts(list []host.PortRange) []host.PortRange {
	slices.SortFunc(list, func(a, b host.PortRange) int {
		if a.From != b.From {
			return int(a.From) - int(b.From)
		}
		return int(a.To) - int(b.To)
	})
	var out []host.PortRange
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
func (n *named) direction(table string) declared.Direction {
	in, out, forward, pre := n.in("INPUT"), n.in("OUTPUT"), n.in("FORWARD"), n.in("PREROUTING")
	switch {
	case forward:
		return declared.Forward
	case table == "raw" && pre && !out:
		if !slices.ContainsFunc(n.atoms, func(a atom) bool { return a.own }) && n.mirrored() {
			return declared.Forward
		}
		return declared.In
	case (in || pre) && out:
		return declared.Both
	case out:
		return declared.Out
	}
	return declared.In
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
	for _, f := range host.Families {
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
			rest = words.Or(rest, l[0])
			waits := slices.ContainsFunc(lists, func(o []string) bool { return slices.Index(o, l[0]) > 0 })
			if !waits {
				pick = l[0]
				break
			}
		}
		if rest == "" {
			return out
		}
		name := words.Or(pick, rest) // in a circle, the first
		out = append(out, name)
		for i := range lists {
			lists[i] = slices.DeleteFunc(slices.Clone(lists[i]), func(o string) bool { return o == name })
		}
	}
}
