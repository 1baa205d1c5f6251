package planner

import (
	"net/netip"
	"slices"
)

// maxNetworks is how many networks a block names one by one.
const maxNetworks = 64

// alikeKey is a question that many connections ask: are all of these let in?
type alikeKey struct {
	family   Family
	way      way
	proto    uint8
	from, to netip.Prefix
	sport    uint16
	dport    uint16
	in, out  string
	state    State
}

// width finds how widely today's rules let a service be used: from which
// network its users come, and at which of this host's addresses. Every answer
// is tried on the rules with first packets; a network counts as let in when its
// ends and middle are. The key loses its interface where any other would do.
func (c *cover) width(j *judge, at *oriented) (local, remote netip.Prefix) {
	k := &at.key
	q := alikeKey{family: j.family, way: k.way, proto: k.proto, in: at.in, out: at.out, sport: at.open.SrcPort, dport: at.open.DstPort, state: StateNew,
		from: host(at.open.Src), to: host(at.open.Dst)}
	if q.sport >= unprivileged.From {
		q.sport = 40000
	}
	if k.data {
		q.state = StateRelated
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
		control.state, control.dport, control.sport = StateNew, ftpControl, 40000
		if at.open.SrcPort == ftpData { // active FTP: the server calls back
			control.from, control.to, control.in, control.out = q.to, q.from, q.out, q.in
			control.way = map[way]way{wayIn: wayOut, wayOut: wayIn, wayForward: wayForward}[q.way]
		}
		return c.lets(j, control)
	}
	src := c.widest(j.family, at.open.Src, k.way != wayOut, func(p netip.Prefix) bool {
		wider := q
		wider.from = p
		return opens(wider)
	})
	if k.way != wayOut {
		q.from = src
	}
	dst := c.widest(j.family, at.open.Dst, k.way != wayIn, func(p netip.Prefix) bool {
		wider := q
		wider.to = p
		return opens(wider)
	})
	if k.way == wayIn && k.proto == protoTCP && !k.data && !opens(q) {
		k.initiator = LocalSide // nobody may open one today: what is open stays so, and no more
	}
	switch k.way {
	case wayIn:
		local, remote = anyOf(j.family), src
		for _, own := range j.doors() {
			other := q
			other.to = host(own.Prefix.Addr())
			if own.Interface == at.in && !opens(other) {
				local = host(at.open.Dst)
			}
		}
	case wayOut:
		local, remote = anyOf(j.family), dst
	default:
		local, remote = src, dst
	}
	if k.initiator == LocalSide && k.way != wayForward && !opens(q) {
		k.iface = "" // no first packet comes in, wherever
		return anyOf(j.family), remote
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
	if !plainInterface(k.iface) || len(c.ifaces) < 2 {
		return ""
	}
	if k.way == wayForward {
		if src.Bits() > 0 {
			return ""
		}
		return k.iface
	}
	for name := range c.ifaces {
		in, out := name, ""
		if k.way == wayOut {
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
func (c *cover) widest(f Family, a netip.Addr, ask bool, passes func(netip.Prefix) bool) netip.Prefix {
	if !ask {
		return host(a)
	}
	if p := anyOf(f); passes(p) {
		return p
	}
	for _, p := range c.named[f] {
		if p.Contains(a) && passes(p) {
			return p
		}
	}
	return host(a)
}

// samples are addresses to try a network with.
func samples(stranger netip.Addr, p netip.Prefix, own func(netip.Addr) bool) []netip.Addr {
	if p.Bits() == 0 {
		return []netip.Addr{stranger}
	}
	if p.IsSingleIP() {
		return []netip.Addr{p.Addr()}
	}
	first, last := p.Masked().Addr().AsSlice(), lastOf(p).AsSlice()
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
func (c *cover) lets(j *judge, q alikeKey) bool {
	if answer, ok := c.alike[q]; ok {
		return answer
	}
	nobody := func(netip.Addr) bool { return false }
	from, to := samples(j.stranger(), q.from, nobody), samples(j.stranger(), q.to, nobody)
	if q.way != wayOut {
		from = samples(j.stranger(), q.from, j.places.local)
	}
	if q.way != wayIn {
		to = samples(j.stranger(), q.to, j.places.local)
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
func (c *cover) opens(j *judge, q alikeKey, from, to netip.Addr) bool {
	p := Packet{Protocol: q.proto, State: q.state, Tuple: Tuple{from, to, q.sport, q.dport}, In: q.in, Out: q.out, Known: KnownReply | KnownTuples | KnownConnMark | KnownStatus}
	p.Orig, p.Reply = p.Tuple, Tuple{to, from, q.dport, q.sport}
	p.Hook = [...]Hook{wayIn: HookInput, wayOut: HookOutput, wayForward: HookForward}[q.way]
	if q.proto == protoTCP {
		p.TCPFlags = TCPSyn
	}
	if q.state == StateRelated {
		p.Status = StatusExpected
	}
	if !j.conns.Bridged {
		p.Known |= KnownUnbridged
	}
	if q.proto == protoTCP || q.way != wayIn {
		p.PktType, p.Known = PktHost, p.Known|KnownPktType
	}
	return j.admitting.Verdict(&p).Verdict == Accepted
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
