package judge

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Way is how a connection passes the host.
type Way uint8

const (
	In Way = iota
	Out
	Forward
	Loop
)

// HighPorts stands for a port that was chosen by chance: services there are
// not told apart.
const (
	HighPorts = 0
	FirstHigh = 32768 // the first that is chosen by chance (net.ipv4.ip_local_port_range)
)

// Connection is a flow or a socket as the packets to judge it by.
type Connection struct {
	Proto      uint8
	Orig       host.Tuple // as the filter table sees it, from who opened it
	Packets    [4]verdict.Packet
	Count      int
	Way        Way
	Port       uint16 // of the service
	Translated bool
	Operator   bool
	Strict     bool       // TCP whose window is known to tracking, and checked
	Untold     bool       // tracking has no entry of it: only a socket knows it
	Flow       *host.Flow // its entry, where it has one
}

// String is the connection as a person writes it.
func (c *Connection) String() string { return Describe(c.Proto, c.Orig) }

// Describe is a connection of a protocol as a person writes it.
func Describe(proto uint8, t host.Tuple) string {
	b := make([]byte, 0, 96)
	if !protocol.CarriesPorts(proto) {
		b = append(t.Src.AppendTo(b), " -> "...)
		return string(t.Dst.AppendTo(b))
	}
	b = append(netip.AddrPortFrom(t.Src, t.SrcPort).AppendTo(b), " -> "...)
	return string(netip.AddrPortFrom(t.Dst, t.DstPort).AppendTo(b))
}

// thereOf is the way there of a tracked connection, as the filter table sees it.
func thereOf(f *host.Flow) host.Tuple {
	return host.Tuple{Src: f.Orig.Src, Dst: f.Reply.Src, SrcPort: f.Orig.SrcPort, DstPort: f.Reply.SrcPort}
}

type socketKey struct {
	proto         uint8
	local, remote netip.AddrPort
}

// socketsOf are the local ends that a tracked connection may have: who opened it
// sees the destination from before a translation.
func socketsOf(f *host.Flow) [3]socketKey {
	a, b := netip.AddrPortFrom(f.Orig.Src, f.Orig.SrcPort), netip.AddrPortFrom(f.Reply.Src, f.Reply.SrcPort)
	return [3]socketKey{{f.Protocol, a, b}, {f.Protocol, b, a}, {f.Protocol, a, netip.AddrPortFrom(f.Orig.Dst, f.Orig.DstPort)}}
}

// TCP states of connection tracking: those that no more packets are due in, and
// those in which a connection is opened.
const (
	TCPTimeWait = 7
	TCPClose    = 8
	tcpSynSent  = 1
	tcpSynSent2 = 9
)

// over is whether no more packets are due of a tracked connection.
func over(f *host.Flow) bool {
	return f.Protocol == protocol.TCP && (f.TCPState == TCPTimeWait || f.TCPState == TCPClose)
}

// opening is whether the next packet from who opened a connection of TCP is its
// first again. One without an answer may have been picked up in the middle, where
// one way alone is tracked: tracking has taken it for established (tcp_new in
// net/netfilter/nf_conntrack_proto_tcp.c).
func opening(f *host.Flow) bool {
	return f.Protocol == protocol.TCP && f.Status&host.StatusSeenReply == 0 && (f.TCPState == 0 || f.TCPState == tcpSynSent || f.TCPState == tcpSynSent2)
}

// ofFlow makes the packets of a tracked connection.
func (j *Judge) ofFlow(c *Connection, f *host.Flow) {
	there := thereOf(f)
	*c = Connection{Proto: f.Protocol, Orig: there, Flow: f}
	c.Translated = f.Reply.Dst != f.Orig.Src || f.Reply.Src != f.Orig.Dst || protocol.CarriesPorts(f.Protocol) && (f.Reply.DstPort != f.Orig.SrcPort || f.Reply.SrcPort != f.Orig.DstPort)
	base := verdict.Packet{
		Protocol: f.Protocol, Known: verdict.KnownConnMark | verdict.KnownStatus | verdict.KnownTuples | verdict.KnownReply,
		Orig: f.Orig, Reply: f.Reply, Status: f.Status, ConnMark: f.Mark,
	}
	first := base
	first.State = verdict.StateNew
	first.Tuple = there
	switch {
	case f.Status&host.StatusSeenReply != 0:
		first.State = verdict.StateEstablished
	case f.Status&host.StatusExpected != 0:
		first.State = verdict.StateRelated
	}
	if f.Protocol == protocol.TCP {
		first.TCPFlags = verdict.TCPAck
		if opening(f) {
			first.TCPFlags = verdict.TCPSyn
		}
	}
	first.ICMPType = echo(f.Protocol, false)
	back := base
	back.State, back.IsReply, back.TCPFlags, back.ICMPType = verdict.StateEstablished, true, verdict.TCPAck, echo(f.Protocol, true)
	back.Tuple = host.Tuple{Src: there.Dst, Dst: there.Src, SrcPort: there.DstPort, DstPort: there.SrcPort}
	if f.Protocol != protocol.TCP {
		back.TCPFlags = 0
	}
	if c.Translated {
		first.Wire, back.Wire = f.Orig, f.Reply
	}
	c.Port = ServicePort(f.Protocol, there.DstPort)
	j.route(c, first, back, f.Status&host.StatusSeenReply != 0)
	c.Operator = j.isOperator(c)
	c.Strict = f.Protocol == protocol.TCP && !f.Liberal && !j.liberal
}

func echo(proto uint8, reply bool) uint8 {
	switch {
	case proto == protocol.ICMP && !reply:
		return 8
	case proto == protocol.ICMPv6 && reply:
		return 129
	case proto == protocol.ICMPv6:
		return 128
	}
	return 0
}

// ServicePort is the port by which a service is named: HighPorts for one that was
// chosen by chance, or where the protocol has none.
func ServicePort(proto uint8, port uint16) uint16 {
	if !protocol.CarriesPorts(proto) || port >= FirstHigh {
		return HighPorts
	}
	return port
}

func (j *Judge) isOperator(c *Connection) bool {
	if len(j.operators) == 0 || c.Proto != protocol.TCP {
		return false
	}
	a, b := netip.AddrPortFrom(c.Orig.Src, c.Orig.SrcPort), netip.AddrPortFrom(c.Orig.Dst, c.Orig.DstPort)
	return j.operators[host.Session{Local: b, Remote: a}] || j.operators[host.Session{Local: a, Remote: b}]
}

// ofSocket makes the packets of a connection that is not tracked.
func (j *Judge) ofSocket(c *Connection, s *host.Socket) {
	out := host.Tuple{Src: s.Local.Addr(), Dst: s.Remote.Addr(), SrcPort: s.Local.Port(), DstPort: s.Remote.Port()}
	in := host.Tuple{Src: out.Dst, Dst: out.Src, SrcPort: out.DstPort, DstPort: out.SrcPort}
	*c = Connection{Proto: s.Protocol, Untold: true}
	base := verdict.Packet{Protocol: s.Protocol, State: verdict.StateNew | verdict.StateEstablished}
	if s.Protocol == protocol.TCP {
		base.TCPFlags, base.State = verdict.TCPAck, j.tcpLoose
	}
	first, back := base, base
	if j.listens[protocol.Port{Protocol: s.Protocol, Port: s.Local.Port()}] {
		c.Orig, c.Port = in, ServicePort(s.Protocol, in.DstPort)
	} else {
		c.Orig, c.Port = out, ServicePort(s.Protocol, out.DstPort)
	}
	first.Tuple, back.Tuple = c.Orig, host.Tuple{Src: c.Orig.Dst, Dst: c.Orig.Src, SrcPort: c.Orig.DstPort, DstPort: c.Orig.SrcPort}
	j.route(c, first, back, true)
	c.Operator = j.isOperator(c)
}

// passes adds a packet that passes a hook.
func (j *Judge) passes(c *Connection, p verdict.Packet, hook verdict.Hook, in, out string) {
	j.passing(&p, hook, in, out)
	c.Packets[c.Count] = p
	c.Count++
}

// passing has a packet pass a hook.
func (j *Judge) passing(p *verdict.Packet, hook verdict.Hook, in, out string) {
	p.Hook, p.In, p.Out = hook, in, out
	if !j.Connections.Bridged {
		p.Known |= verdict.KnownUnbridged
	}
	if in != "" && in != verdict.SomeInterface {
		p.Known |= verdict.KnownWayBack // that is how it was found
	}
	// What is routed, sent, or TCP came to this host alone.
	if hook != verdict.HookInput || p.Protocol == protocol.TCP {
		p.PktType, p.Known = verdict.PktHost, p.Known|verdict.KnownPktType
	}
}

// route says through which hooks and interfaces the two directions pass.
func (j *Judge) route(c *Connection, first, back verdict.Packet, replied bool) {
	add := func(p verdict.Packet, hook verdict.Hook, in, out string) { j.passes(c, p, hook, in, out) }
	switch c.Way = j.Places.Way(first.Src, first.Dst); c.Way {
	case Loop:
		add(first, verdict.HookOutput, "", "lo")
		add(first, verdict.HookInput, "lo", "")
		if replied {
			add(back, verdict.HookOutput, "", "lo")
			add(back, verdict.HookInput, "lo", "")
		}
	case In:
		add(first, verdict.HookInput, j.Places.from(first.Src), "")
		if replied {
			add(back, verdict.HookOutput, "", j.Places.Toward(first.Src))
		}
	case Out:
		add(first, verdict.HookOutput, "", j.Places.Toward(first.Dst))
		if replied {
			add(back, verdict.HookInput, j.Places.from(first.Dst), "")
		}
	default:
		add(first, verdict.HookForward, j.Places.from(first.Src), j.Places.Toward(first.Dst))
		if replied {
			add(back, verdict.HookForward, j.Places.from(first.Dst), j.Places.Toward(first.Src))
		}
	}
}

// placeMap says which addresses are the host's own, and through which
// interface the others are reached.
type placeMap struct {
	own    map[netip.Addr]bool
	casts  map[netip.Addr]bool // broadcast addresses of its networks
	links  []host.Address      // the networks that its interfaces are in
	only   string              // the one interface beside lo
	masks  []nets.Bits
	routes []map[nets.Bits]string
	policy bool
}

func newPlaceMap(c *host.Connections, f host.Family) *placeMap {
	m := &placeMap{links: c.Addresses, own: map[netip.Addr]bool{}, casts: map[netip.Addr]bool{}, policy: c.PolicyRouting}
	var names []string
	for _, a := range c.Addresses {
		m.own[a.Prefix.Addr()] = true
		if cast, ok := nets.Broadcast(a.Prefix); ok {
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
	slices.SortStableFunc(routes, func(a, b host.Route) int { return cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()) })
	for _, r := range routes {
		if !r.Prefix.IsValid() || r.Prefix.Addr().Is4() != (f == host.IPv4) {
			continue
		}
		mask := nets.Mask(r.Prefix.Bits(), r.Prefix.Addr().BitLen())
		if n := len(m.masks); n == 0 || m.masks[n-1] != mask {
			m.masks = append(m.masks, mask)
			m.routes = append(m.routes, map[nets.Bits]string{})
		}
		last := m.routes[len(m.routes)-1]
		key := nets.Of(r.Prefix.Addr()).And(mask)
		name := r.Interface
		if before, ok := last[key]; ok && before != name {
			name = "" // several metrics
		}
		last[key] = name
	}
	return m
}

func (m *placeMap) Local(a netip.Addr) bool { return a.IsLoopback() || m.own[a] }

// Way is how packets between the addresses pass the host. What others send to
// a group or to everybody comes in.
func (m *placeMap) Way(src, dst netip.Addr) Way {
	switch from, to := m.Local(src), m.Local(dst); {
	case from && to:
		return Loop
	case from:
		return Out
	case to, dst.IsMulticast(), m.casts[dst], dst == limitedBroadcast:
		return In
	}
	return Forward
}

// onLink is the one interface in whose own network an address lies; "" for none,
// or several.
func (m *placeMap) onLink(a netip.Addr) (name string) {
	for _, l := range m.links {
		if l.Prefix.Contains(a) && l.Prefix.Bits() < a.BitLen() {
			if name != "" && name != l.Interface {
				return ""
			}
			name = l.Interface
		}
	}
	return name
}

// from is the interface through which packets from an address come. Where rules
// of routing choose the way back, those of a neighbour come by its own link all
// the same.
func (m *placeMap) from(a netip.Addr) string {
	if m.policy {
		if name := m.onLink(a); name != "" {
			return name
		}
	}
	return m.Toward(a)
}

// Broadcast is whether the address means everybody on a link.
func (m *placeMap) Broadcast(a netip.Addr) bool { return m.casts[a] || a == limitedBroadcast }

// limitedBroadcast means everybody on the link (RFC 919, section 7).
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Toward is the interface through which the address is reached, as the main
// routing table says; what comes from there is taken to come through it too.
func (m *placeMap) Toward(a netip.Addr) string {
	if m.policy {
		return verdict.SomeInterface
	}
	if m.only != "" {
		return m.only
	}
	w := nets.Of(a)
	for i, mask := range m.masks {
		if name, ok := m.routes[i][w.And(mask)]; ok {
			if name == "" {
				return verdict.SomeInterface
			}
			return name
		}
	}
	return verdict.SomeInterface
}
