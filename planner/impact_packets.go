package planner

import (
	"cmp"
	"net/netip"
	"slices"
)

// way is how a connection passes the host.
type way uint8

const (
	wayIn way = iota
	wayOut
	wayForward
	wayLoop
)

// highPorts stands for a port that was chosen by chance: services there are
// not told apart.
const (
	highPorts = 0
	firstHigh = 32768
)

// connection is a flow or a socket as the packets to judge it by.
type connection struct {
	proto      uint8
	orig       Tuple // as the filter table sees it, from who opened it
	packets    [4]Packet
	n          int
	way        way
	port       uint16 // of the service
	translated bool
	operator   bool
	strict     bool // TCP whose window is known to tracking, and checked
}

// String is the connection as a person writes it.
func (c *connection) String() string {
	if !carriesPorts(c.proto) {
		return c.orig.Src.String() + " -> " + c.orig.Dst.String()
	}
	return netip.AddrPortFrom(c.orig.Src, c.orig.SrcPort).String() + " -> " + netip.AddrPortFrom(c.orig.Dst, c.orig.DstPort).String()
}

type socketKey struct {
	proto         uint8
	local, remote netip.AddrPort
}

// sockets are the local ends that a tracked connection may have: who opened it
// sees the destination from before a translation.
func (c *connection) sockets(f *Flow) [3]socketKey {
	a, b := netip.AddrPortFrom(c.orig.Src, c.orig.SrcPort), netip.AddrPortFrom(c.orig.Dst, c.orig.DstPort)
	return [3]socketKey{{c.proto, a, b}, {c.proto, b, a}, {c.proto, a, netip.AddrPortFrom(f.Orig.Dst, f.Orig.DstPort)}}
}

// TCP states of connection tracking that no more packets are due in.
const (
	ctTimeWait = 7
	ctClose    = 8
)

// ofFlow makes the packets of a tracked connection. It reports false for one
// that is over.
func (j *judge) ofFlow(c *connection, f *Flow) bool {
	if f.Protocol == protoTCP && (f.TCPState == ctTimeWait || f.TCPState == ctClose) {
		return false
	}
	there := Tuple{f.Orig.Src, f.Reply.Src, f.Orig.SrcPort, f.Reply.SrcPort}
	*c = connection{proto: f.Protocol, orig: there}
	c.translated = f.Reply.Dst != f.Orig.Src || f.Reply.Src != f.Orig.Dst || carriesPorts(f.Protocol) && (f.Reply.DstPort != f.Orig.SrcPort || f.Reply.SrcPort != f.Orig.DstPort)
	base := Packet{
		Protocol: f.Protocol, Known: KnownConnMark | KnownStatus | KnownTuples | KnownReply,
		Orig: f.Orig, Reply: f.Reply, Status: f.Status, ConnMark: f.Mark,
	}
	first := base
	first.State = StateNew
	first.Tuple = there
	switch {
	case f.Status&StatusSeenReply != 0:
		first.State = StateEstablished
	case f.Status&StatusExpected != 0:
		first.State = StateRelated
	}
	if f.Protocol == protoTCP {
		first.TCPFlags = TCPAck
		if first.State != StateEstablished {
			first.TCPFlags = TCPSyn
		}
	}
	first.ICMPType = echo(f.Protocol, false)
	back := base
	back.State, back.IsReply, back.TCPFlags, back.ICMPType = StateEstablished, true, TCPAck, echo(f.Protocol, true)
	back.Tuple = Tuple{there.Dst, there.Src, there.DstPort, there.SrcPort}
	if f.Protocol != protoTCP {
		back.TCPFlags = 0
	}
	if c.translated {
		first.Wire, back.Wire = f.Orig, f.Reply
	}
	c.port = servicePort(f.Protocol, there.DstPort)
	j.route(c, first, back, f.Status&StatusSeenReply != 0)
	c.operator = j.isOperator(c)
	c.strict = f.Protocol == protoTCP && !f.Liberal && !j.liberal
	return true
}

func echo(proto uint8, reply bool) uint8 {
	switch {
	case proto == protoICMP && !reply:
		return 8
	case proto == protoICMPv6 && reply:
		return 129
	case proto == protoICMPv6:
		return 128
	}
	return 0
}

func servicePort(proto uint8, port uint16) uint16 {
	if !carriesPorts(proto) || port >= firstHigh {
		return highPorts
	}
	return port
}

func (j *judge) isOperator(c *connection) bool {
	if len(j.operators) == 0 || c.proto != protoTCP {
		return false
	}
	a, b := netip.AddrPortFrom(c.orig.Src, c.orig.SrcPort), netip.AddrPortFrom(c.orig.Dst, c.orig.DstPort)
	return j.operators[Session{b, a}] || j.operators[Session{a, b}]
}

// ofSocket makes the packets of a connection that is not tracked.
func (j *judge) ofSocket(c *connection, s *Socket, listens bool) {
	out := Tuple{s.Local.Addr(), s.Remote.Addr(), s.Local.Port(), s.Remote.Port()}
	in := Tuple{out.Dst, out.Src, out.DstPort, out.SrcPort}
	*c = connection{proto: s.Protocol}
	base := Packet{Protocol: s.Protocol, State: StateNew | StateEstablished}
	if s.Protocol == protoTCP {
		base.TCPFlags, base.State = TCPAck, j.tcpLoose
	}
	first, back := base, base
	if listens {
		c.orig, c.port = in, servicePort(s.Protocol, in.DstPort)
	} else {
		c.orig, c.port = out, servicePort(s.Protocol, out.DstPort)
	}
	first.Tuple, back.Tuple = c.orig, Tuple{c.orig.Dst, c.orig.Src, c.orig.DstPort, c.orig.SrcPort}
	j.route(c, first, back, true)
	c.operator = j.isOperator(c)
}

// route says through which hooks and interfaces the two directions pass.
func (j *judge) route(c *connection, first, back Packet, replied bool) {
	add := func(p Packet, hook Hook, in, out string) {
		p.Hook, p.In, p.Out = hook, in, out
		if !j.conns.Bridged {
			p.Known |= KnownUnbridged
		}
		// What is routed, sent, or TCP came to this host alone.
		if hook != HookInput || p.Protocol == protoTCP {
			p.PktType, p.Known = PktHost, p.Known|KnownPktType
		}
		c.packets[c.n] = p
		c.n++
	}
	switch c.way = j.places.way(first.Src, first.Dst); c.way {
	case wayLoop:
		add(first, HookOutput, "", "lo")
		add(first, HookInput, "lo", "")
		if replied {
			add(back, HookOutput, "", "lo")
			add(back, HookInput, "lo", "")
		}
	case wayIn:
		peer := j.places.toward(first.Src)
		add(first, HookInput, peer, "")
		if replied {
			add(back, HookOutput, "", peer)
		}
	case wayOut:
		peer := j.places.toward(first.Dst)
		add(first, HookOutput, "", peer)
		if replied {
			add(back, HookInput, peer, "")
		}
	default:
		a, b := j.places.toward(first.Src), j.places.toward(first.Dst)
		add(first, HookForward, a, b)
		if replied {
			add(back, HookForward, b, a)
		}
	}
}

// placeMap says which addresses are the host's own, and through which
// interface the others are reached.
type placeMap struct {
	own    map[netip.Addr]bool
	casts  map[netip.Addr]bool // broadcast addresses of its networks
	only   string              // the one interface beside lo
	masks  []addr128
	routes []map[addr128]string
	policy bool
}

func newPlaceMap(c *Connections, f Family) *placeMap {
	m := &placeMap{own: map[netip.Addr]bool{}, casts: map[netip.Addr]bool{}, policy: c.PolicyRouting}
	var names []string
	for _, a := range c.Addresses {
		m.own[a.Prefix.Addr()] = true
		if cast, ok := broadcastOf(a.Prefix); ok {
			m.casts[cast] = true
		}
		if a.Interface != "lo" && !slices.Contains(names, a.Interface) {
			names = append(names, a.Interface)
		}
	}
	for _, r := range c.Routes {
		if r.Interface != "lo" && r.Interface != "" && !slices.Contains(names, r.Interface) {
			names = append(names, r.Interface)
		}
	}
	if len(names) == 1 {
		m.only = names[0]
	}
	routes := slices.Clone(c.Routes)
	slices.SortStableFunc(routes, func(a, b Route) int { return cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()) })
	for _, r := range routes {
		if !r.Prefix.IsValid() || r.Prefix.Addr().Is4() != (f == IPv4) {
			continue
		}
		mask := mask128(r.Prefix.Bits(), r.Prefix.Addr().BitLen())
		if n := len(m.masks); n == 0 || m.masks[n-1] != mask {
			m.masks = append(m.masks, mask)
			m.routes = append(m.routes, map[addr128]string{})
		}
		last := m.routes[len(m.routes)-1]
		key := words128(r.Prefix.Addr()).and(mask)
		name := r.Interface
		if before, ok := last[key]; ok && before != name {
			name = "" // several metrics
		}
		last[key] = name
	}
	return m
}

func (m *placeMap) local(a netip.Addr) bool { return a.IsLoopback() || m.own[a] }

// way is how packets between the addresses pass the host. What others send to
// a group or to everybody comes in.
func (m *placeMap) way(src, dst netip.Addr) way {
	switch from, to := m.local(src), m.local(dst); {
	case from && to:
		return wayLoop
	case from:
		return wayOut
	case to, dst.IsMulticast(), m.casts[dst], dst == limitedBroadcast:
		return wayIn
	}
	return wayForward
}

// limitedBroadcast means everybody on the link (RFC 919, section 7).
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// toward is the interface through which the address is reached, as the main
// routing table says; what comes from there is taken to come through it too.
func (m *placeMap) toward(a netip.Addr) string {
	if m.policy {
		return SomeInterface
	}
	if m.only != "" {
		return m.only
	}
	w := words128(a)
	for i, mask := range m.masks {
		if name, ok := m.routes[i][w.and(mask)]; ok {
			if name == "" {
				return SomeInterface
			}
			return name
		}
	}
	return SomeInterface
}
