package suggest

import (
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// maxNetworks is how many networks a block names one by one.
const maxNetworks = 64

// alikeKey is a question that many connections ask: are all of these let in?
type alikeKey struct {
	family   host.Family
	way      judge.Way
	proto    uint8
	from, to netip.Prefix
	sport    uint16
	dport    uint16
	in, out  string
	state    verdict.State
}

// width finds how widely today's rules let a service be used: from which
// network its users come, and at which of this host's addresses. Every answer
// is tried on the rules with first packets; a network counts as let in when its
// ends and middle are. The key loses its interface where any other would do.
func (c *cover) width(j *judge.Judge, at *oriented) (local, remote netip.Prefix) {
	k := &at.key
	q := alikeKey{family: j.Family, way: k.way, proto: k.proto, in: at.in, out: at.out, sport: at.open.SrcPort, dport: at.open.DstPort, state: verdict.StateNew,
		from: nets.Single(at.open.Src), to: nets.Single(at.open.Dst)}
	if q.sport >= unprivileged.From {
		q.sport = 40000
	}
	if k.data {
		q.state = verdict.StateRelated
	}
	opens := func(q alikeKey) bool {
		if !c.lets(j, q) {
			return false
		}
		if !k.data {
			return true
		}
		// What a helper lets in belongs to a connection that somebody could open.
		control := q
		control.state, control.dport, control.sport = verdict.StateNew, ftpControl, 40000
		if at.open.SrcPort == ftpData { // active FTP: the server calls back
			control.from, control.to, control.in, control.out = q.to, q.from, q.out, q.in
			control.way = map[judge.Way]judge.Way{judge.In: judge.Out, judge.Out: judge.In, judge.Forward: judge.Forward}[q.way]
		}
		return c.lets(j, control)
	}
	src := c.widest(j.Family, at.open.Src, k.way != judge.Out, func(p netip.Prefix) bool {
		wider := q
		wider.from = p
		return opens(wider)
	})
	if k.way != judge.Out {
		q.from = src
	}
	dst := c.widest(j.Family, at.open.Dst, k.way != judge.In, func(p netip.Prefix) bool {
		wider := q
		wider.to = p
		return opens(wider)
	})
	if k.way == judge.In && k.proto == protocol.TCP && !k.data && !opens(q) {
		k.initiator = declared.LocalSide // nobody may open one today: what is open stays so, and no more
	}
	switch k.way {
	case judge.In:
		local, remote = nets.All(j.Family), src
		for _, own := range j.Doors() {
			other := q
			other.to = nets.Single(own.Prefix.Addr())
			if own.Interface == at.in && !opens(other) {
				local = nets.Single(at.open.Dst)
			}
		}
	case judge.Out:
		local, remote = nets.All(j.Family), dst
	default:
		local, remote = src, dst
	}
	if k.initiator == declared.LocalSide && k.way != judge.Forward && !opens(q) {
		k.iface = "" // no first packet comes in, wherever
		return nets.All(j.Family), remote
	}
	k.iface = c.narrow(k, at, src, func(in, out string) bool {
		other := q
		other.in, other.out = in, out
		return opens(other)
	})
	return local, remote
}

// narrow is the interface that the service must name, "" for none. Routed
// traffic names it where nothing else tells the sides apart.
func (c *cover) narrow(k *serviceKey, at *oriented, src netip.Prefix, opens func(in, out string) bool) string {
	if !declared.PlainInterface(k.iface) || len(c.ifaces) < 2 {
		return ""
	}
	if k.way == judge.Forward {
		if src.Bits() > 0 {
			return ""
		}
		return k.iface
	}
	for name := range c.ifaces {
		in, out := name, ""
		if k.way == judge.Out {
			in, out = "", name
		}
		if !opens(in, out) {
			return k.iface
		}
	}
	return ""
}

// widest is the widest of the networks around an address that passes: any,
// those that rules or interfaces name, the address alone.
func (c *cover) widest(f host.Family, a netip.Addr, ask bool, passes func(netip.Prefix) bool) netip.Prefix {
	if !ask {
		return nets.Single(a)
	}
	if p := nets.All(f); passes(p) {
		return p
	}
	for _, p := range c.named[f] {
		if p.Contains(a) && passes(p) {
			return p
		}
	}
	return nets.Single(a)
}

// samples are addresses to try a network with.
func samples(stranger netip.Addr, p netip.Prefix, own func(netip.Addr) bool) []netip.Addr {
	if p.Bits() == 0 {
		return []netip.Addr{stranger}
	}
	if p.IsSingleIP() {
		return []netip.Addr{p.Addr()}
	}
	first, last := p.Masked().Addr().AsSlice(), nets.Last(p).AsSlice()
	middle := slices.Clone(first)
	middle[p.Bits()/8] |= 1 << (7 - p.Bits()%8)
	var out []netip.Addr
	for _, b := range [][]byte{first, middle, last} {
		a, _ := netip.AddrFromSlice(b)
		switch {
		case len(out) == 0:
			a = a.Next() // not the network itself
		case a.Is4() && p.Bits() < 31 && len(out) == 2:
			a = a.Prev() // nor its broadcast address
		}
		for range 4 {
			if own(a) {
				a = a.Next()
			}
		}
		if p.Contains(a) && !own(a) {
			out = append(out, a)
		}
	}
	return out
}

// lets reports whether today's rules surely let all of these through.
func (c *cover) lets(j *judge.Judge, q alikeKey) bool {
	if answer, ok := c.alike[q]; ok {
		return answer
	}
	nobody := func(netip.Addr) bool { return false }
	from, to := samples(j.Stranger(), q.from, nobody), samples(j.Stranger(), q.to, nobody)
	if q.way != judge.Out {
		from = samples(j.Stranger(), q.from, j.Places.Local)
	}
	if q.way != judge.In {
		to = samples(j.Stranger(), q.to, j.Places.Local)
	}
	answer := len(from) > 0 && len(to) > 0
	for _, a := range from {
		for _, b := range to {
			answer = answer && c.opens(j, q, a, b)
		}
	}
	c.alike[q] = answer
	return answer
}

// opens tries one first packet.
func (c *cover) opens(j *judge.Judge, q alikeKey, from, to netip.Addr) bool {
	p := j.First(q.way, q.proto, host.Tuple{Src: from, Dst: to, SrcPort: q.sport, DstPort: q.dport}, q.in, q.out)
	if p.State = q.state; q.state == verdict.StateRelated {
		p.Status = host.StatusExpected
	}
	return j.Admitting.Verdict(&p).Verdict == verdict.Accepted
}

// reduced is a list of networks without those that others cover, neighbours
// merged; nil where one of them is any.
func reduced(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	for {
		slices.SortFunc(list, func(a, b netip.Prefix) int {
			if c := a.Addr().Compare(b.Addr()); c != 0 {
				return c
			}
			return a.Bits() - b.Bits()
		})
		var out []netip.Prefix
		merged := false
		for _, p := range list {
			if p.Bits() == 0 {
				return nil
			}
			if n := len(out); n > 0 {
				last := out[n-1]
				if last.Bits() <= p.Bits() && last.Contains(p.Addr()) {
					continue
				}
				up := netip.PrefixFrom(last.Addr(), last.Bits()-1).Masked()
				if last.Bits() == p.Bits() && last.Bits() > 1 && up.Contains(p.Addr()) {
					out[n-1], merged = up, true
					continue
				}
			}
			out = append(out, p)
		}
		if list = out; !merged {
			return out
		}
	}
}

// summarised is a list of at most maxNetworks networks that hold all of these.
func summarised(list []netip.Prefix) []netip.Prefix {
	list = reduced(list)
	for bits := 127; len(list) > maxNetworks && bits > 0; bits-- {
		for i, p := range list {
			if p.Bits() > bits {
				list[i] = netip.PrefixFrom(p.Addr(), bits).Masked()
			}
		}
		list = reduced(list)
	}
	return list
}
