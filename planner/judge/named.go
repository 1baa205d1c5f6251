package judge

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/xtables"
)

// rules are the words of iptables' rules of the family: those that stand, and
// those to come; entering are those that what comes in, or through, may meet.
func (j *Judge) rules(entering bool) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for _, r := range j.sets {
			for k := range r.Tables {
				for n := range r.Tables[k].Rules {
					if r := &r.Tables[k].Rules[n]; !(entering && leaves(r.Chain)) && !yield(r.Words) {
						return
					}
				}
			}
		}
		for _, ch := range j.Desired.ChainsOf(j.Family) {
			for _, r := range ch.Rules {
				if !(entering && leaves(ch.Name)) && !yield(r.Words) {
					return
				}
			}
		}
		for _, words := range j.coming {
			if !yield(words) {
				return
			}
		}
	}
}

// leaves is whether a chain sees what this host sends alone.
func leaves(chain string) bool {
	return chain == "OUTPUT" || chain == declared.OwnPrefix+"OUTPUT"
}

// Standing finds a rule of iptables: its ruleset, the rules of its chain, and
// its place among them; nil where no such rule stands today.
func (j *Judge) Standing(r *verdict.RuleRef) (set *host.Ruleset, chain []host.Rule, at int) {
	if r.Native != "" || r.Text == "" {
		return nil, nil, 0
	}
	for _, set := range j.sets {
		if set.Backend != r.Backend {
			continue
		}
		for _, s := range set.Sections(r.Table) {
			for _, rule := range s.Rules {
				if rule.Chain == r.Chain {
					chain = append(chain, rule)
				}
			}
		}
		at := slices.IndexFunc(chain, func(rule host.Rule) bool { return rule.Text == r.Text })
		if at >= 0 {
			return set, chain, at
		}
		chain = nil
	}
	return nil, nil, 0
}

// Somebody is a kind of addresses: those that rules tell from all others by the
// networks that they name. One of them stands for all.
type Somebody struct {
	Addr netip.Addr
	Name netip.Prefix // the narrowest network around it that they name; invalid: none, it is a stranger
}

// somebodies are the kinds of addresses that rules tell apart as sources, or as
// destinations, of others: a stranger comes first. It reports false where there
// are more than most.
func (j *Judge) somebodies(dst bool, most int) (out []Somebody, all bool) {
	named := slices.Clone(j.namedNetworks(dst))
	for _, a := range j.Connections.Addresses {
		if p := a.Prefix.Masked(); a.Interface != "lo" && p.Addr().Is4() == (j.Family == host.IPv4) && !slices.Contains(named, p) {
			named = append(named, p)
		}
	}
	named = slices.DeleteFunc(named, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if all = len(named) < most; !all {
		named = named[:most-1]
	}
	stranger := j.Stranger()
	if dst {
		stranger = j.Another()
	}
	out = []Somebody{{Addr: stranger}}
	var starts []netip.Addr
	for _, p := range named {
		starts = append(starts, p.Addr())
		if next := nets.Last(p).Next(); next.IsValid() {
			starts = append(starts, next)
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	starts = slices.Compact(starts)
	seen := map[string]bool{}
	for i, a := range starts {
		var s Somebody
		in := make([]byte, (len(named)+7)/8)
		for k, p := range named {
			if p.Contains(a) {
				in[k/8] |= 1 << (k % 8)
				if !s.Name.IsValid() || p.Bits() > s.Name.Bits() {
					s.Name = p
				}
			}
		}
		if !s.Name.IsValid() || seen[string(in)] {
			continue
		}
		last := nets.Last(s.Name)
		if i+1 < len(starts) {
			last = starts[i+1].Prev()
		}
		if s.Addr = j.someone(a, last); s.Addr.IsValid() {
			seen[string(in)] = true
			out = append(out, s)
		}
	}
	return out, all
}

// someone is the first address of a span that others may have: not the network
// itself, where there are more. It is invalid where there is none.
func (j *Judge) someone(a, last netip.Addr) netip.Addr {
	if a != last && a.Next() != last {
		a = a.Next()
	}
	for range 4 {
		taken := j.Places.Local(a) || j.Places.casts[a] || a == limitedBroadcast || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.Is4() && a.As4()[0] == 0
		switch {
		case !taken:
			return a
		case a == last:
			return netip.Addr{}
		}
		a = a.Next()
	}
	return netip.Addr{}
}

// Service is a kind of first packets: those that rules tell from all others by
// protocols, ports and types of ICMP. One stands for all.
type Service struct {
	Proto     uint8
	Type      uint8 // of ICMP
	Port      uint16
	From      uint16           // the source's
	Ports     []host.PortRange // all that Port stands for; nil where the protocol has none
	FromPorts []host.PortRange // all that From stands for; nil: rules do not tell them apart
	Others    bool             // Proto stands for all that rules do not name
}

// Asks are the types of ICMP that begin a conversation: the kernel's tracking
// calls them NEW (nf_conntrack_proto_icmp.c and _icmpv6.c, valid_new).
var asks = map[uint8][]uint8{protocol.ICMP: {8, 13, 15, 17}, protocol.ICMPv6: {128, 139}}

// classes cuts a range of numbers where any of some ranges begins or ends, and
// puts together what is in the same of them: lists of ranges, the one that is in
// none first.
func classes(ranges []host.PortRange, all host.PortRange) [][]host.PortRange {
	starts := []int{int(all.From)}
	for _, r := range ranges {
		starts = append(starts, int(r.From), int(r.To)+1)
	}
	slices.Sort(starts)
	starts = slices.Compact(starts)
	at := map[string]int{}
	out := [][]host.PortRange{nil}
	for i, from := range starts {
		if from < int(all.From) || from > int(all.To) {
			continue
		}
		to := int(all.To)
		if i+1 < len(starts) {
			to = min(to, starts[i+1]-1)
		}
		var in []byte
		for k, r := range ranges {
			if from >= int(r.From) && from <= int(r.To) {
				in = fmt.Append(in, k, " ")
			}
		}
		n, ok := at[string(in)]
		if len(in) == 0 {
			n, ok = 0, true
		}
		if !ok {
			n = len(out)
			at[string(in)] = n
			out = append(out, nil)
		}
		out[n] = append(out[n], host.PortRange{From: uint16(from), To: uint16(to)})
	}
	return slices.DeleteFunc(out, func(l []host.PortRange) bool { return l == nil })
}

// named is what rules name of services.
type namedServices struct {
	src, dst map[uint8][]host.PortRange // by protocol; 0: any
	types    []uint8
	protos   []uint8
	all      bool
}

// services are the kinds of first packets that rules tell apart, those of TCP
// first. It reports false where there are more than most of a protocol.
func (j *Judge) services(most int) (out []Service, all bool) {
	n := namedServices{src: map[uint8][]host.PortRange{}, dst: map[uint8][]host.PortRange{}, protos: []uint8{protocol.TCP, protocol.UDP}, all: true}
	add := func(v protocol.Named) { n.add(v, most) }
	for words := range j.rules(true) {
		for v := range xtables.ServicesOf(words, j.Connections.Sets) {
			add(v)
		}
	}
	for v := range nft.Services(j.native, j.Family) {
		add(v)
	}
	icmp, other := uint8(protocol.ICMP), uint8(protocol.ICMPv6)
	if j.Family == host.IPv6 {
		icmp, other = other, icmp
	}
	slices.SortFunc(n.protos, func(a, b uint8) int {
		rank := func(p uint8) int { return slices.Index([]uint8{protocol.UDP, protocol.TCP}, p) }
		return cmp.Or(cmp.Compare(rank(b), rank(a)), cmp.Compare(a, b))
	})
	for _, proto := range n.protos {
		switch {
		case proto == icmp || proto == other:
		case protocol.CarriesPorts(proto):
			out = append(out, n.ofPorts(proto)...)
		default:
			out = append(out, Service{Proto: proto})
		}
	}
	for i, typ := range asks[icmp] {
		if i == 0 || slices.Contains(n.types, typ) {
			out = append(out, Service{Proto: icmp, Type: typ})
		}
	}
	for _, proto := range []uint8{253, 254, protocol.GRE, 50} {
		if !slices.Contains(n.protos, proto) {
			out = append(out, Service{Proto: proto, Others: true})
			break
		}
	}
	return out, n.all
}

// add takes in what a rule names.
func (n *namedServices) add(v protocol.Named, most int) {
	r := host.PortRange{From: v.From, To: v.To}
	list := n.dst
	switch v.Field {
	case protocol.Itself:
		if !slices.Contains(n.protos, v.Protocol) {
			n.protos = append(n.protos, v.Protocol)
		}
		return
	case protocol.ICMPType:
		if t := uint8(v.From); !slices.Contains(n.types, t) {
			n.types = append(n.types, t)
		}
		return
	case protocol.SourcePort:
		list = n.src
	}
	switch {
	case slices.Contains(list[v.Protocol], r):
	case len(list[v.Protocol]) == most:
		n.all = false
	default:
		list[v.Protocol] = append(list[v.Protocol], r)
	}
}

// maxPairs is how many pairs of a source port and a destination port of a
// protocol are tried.
const maxPairs = 2048

// ofPorts are the services of a protocol that has ports.
func (n *namedServices) ofPorts(proto uint8) (out []Service) {
	every := host.PortRange{From: 1, To: 65535}
	one := func(list []host.PortRange, likes uint16) uint16 {
		if host.InRanges(list, likes) {
			return likes
		}
		widest := slices.MaxFunc(list, func(a, b host.PortRange) int { return cmp.Compare(a.To-a.From, b.To-b.From) })
		return widest.From
	}
	from := [][]host.PortRange{nil}
	if named := slices.Concat(n.src[0], n.src[proto]); len(named) > 0 {
		from = classes(named, every)
	}
	tos := classes(slices.Concat(n.dst[0], n.dst[proto]), every)
	star := len(tos)*len(from) > maxPairs
	n.all = n.all && !star
	for a, to := range tos {
		for b, f := range from {
			if star && a > 0 && b > 0 {
				continue // one of them is such as no rule names
			}
			s := Service{Proto: proto, Port: one(to, 9), Ports: to, From: 40000, FromPorts: f}
			if f != nil {
				s.From = one(f, 40000)
			}
			out = append(out, s)
		}
	}
	return out
}
