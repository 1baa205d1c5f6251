package differential

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"golang.org/x/sys/unix"
)

// probe is a packet that was sent, and what the evaluator says of it.
type probe struct {
	id       uint32
	src      netip.Addr
	proto    uint8
	packets  []verdict.Packet // one, or the two of a packet over lo
	decision verdict.Decision
	unknown  bool // to the evaluator, if not to the test
	local    bool // it shall arrive in the host
	seen     bool
	whole    []byte // before it was taken apart
}

// ofConn is a packet of a connection.
func (l *lab) ofConn(c conn, reply bool, flags uint8) verdict.Packet {
	p := verdict.Packet{Hook: c.from, Protocol: c.proto, State: verdict.StateEstablished, Tuple: c.orig, Orig: c.orig, Reply: c.reply, IsReply: reply, TCPFlags: flags}
	fromNear := c.fromNear
	if reply {
		p.Hook, p.Tuple, fromNear = c.to, c.reply, !c.fromNear
	}
	p.Status = host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed
	p.Known = verdict.KnownStatus | verdict.KnownTuples | verdict.KnownReply
	if c.proto == unix.IPPROTO_UDP {
		p.Known &^= verdict.KnownStatus // assured after a while
	}
	l.sides(&p, fromNear)
	return p
}

// sides sets the interfaces of a packet that comes from the near side, or goes
// from the host towards the other one.
func (l *lab) sides(p *verdict.Packet, fromNear bool) {
	in, out := inside, outside
	if !fromNear {
		in, out = out, in
	}
	switch p.Hook {
	case verdict.HookInput:
		p.In = in
	case verdict.HookForward:
		p.In, p.Out = in, out
	default:
		p.Out = outside
		if p.Dst == near(host.IPv4, 0) || slices.ContainsFunc([]int{0, 1, 2, 3}, func(i int) bool { return p.Dst == near(host.IPv4, i) || p.Dst == near(host.IPv6, i) }) {
			p.Out = inside
		}
	}
}

// send builds the packet and sends it the way of its hook.
func (l *lab) send(p *verdict.Packet, data []byte) {
	ip := l.made(p, data)
	p.Length = uint32(len(ip))
	if p.Hook == verdict.HookOutput {
		l.emit(p.Dst, ip)
		return
	}
	l.inject(p.In == inside, p.Src.Is6(), ip)
}

// made builds the packet, of which then all is known.
func (l *lab) made(p *verdict.Packet, data []byte) (ip []byte) {
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		ip = tcp(p.Src, p.Dst, p.SrcPort, p.DstPort, p.TCPFlags, data)
	case unix.IPPROTO_UDP:
		ip = udp(p.Src, p.Dst, p.SrcPort, p.DstPort, data)
	case unix.IPPROTO_ICMP, icmpv6:
		ip = icmp(p.Src, p.Dst, p.ICMPType, p.ICMPCode, l.port(), data)
	default:
		ip = build(p.Protocol, p.Src, p.Dst, data, -1)
	}
	p.Known |= verdict.KnownLength | verdict.KnownMark | verdict.KnownPktType | verdict.KnownUnbridged
	if p.Hook == verdict.HookOutput {
		p.Known |= verdict.KnownUID | verdict.KnownGID
		return ip
	}
	p.Known |= verdict.KnownMAC
	if l.comesFrom(p.Src) == p.In {
		p.Known |= verdict.KnownWayBack
	}
	p.MAC = l.peerIn
	if p.In == outside {
		p.MAC = l.peerOut
	}
	return ip
}

// comesFrom is the interface that leads to one of the peers' addresses.
func (l *lab) comesFrom(a netip.Addr) string {
	for i := range peers {
		for _, f := range host.Families {
			switch a {
			case near(f, i):
				return inside
			case far(f, i):
				return outside
			}
		}
	}
	return ""
}

// random makes a packet of any kind. pad is what stands ahead of the mark.
func (l *lab) random(f host.Family) (p verdict.Packet, pad []byte) {
	pad = make([]byte, []int{0, 0, 20, 40, 100}[l.r.IntN(5)])
	if l.r.IntN(5) < 2 {
		c := l.conns[f][l.r.IntN(len(l.conns[f]))]
		p = l.ofConn(c, l.r.IntN(2) == 0, []uint8{verdict.TCPAck, verdict.TCPAck | verdict.TCPPsh}[l.r.IntN(2)])
		if l.r.IntN(6) == 0 {
			return l.related(f, c)
		}
		return p, pad
	}
	return l.fresh(f), pad
}

// fresh is a packet of no connection that tracking knows.
func (l *lab) fresh(f host.Family) (p verdict.Packet) {
	p.Hook = verdict.Hook(l.r.IntN(3))
	fromNear := l.r.IntN(2) == 0
	i := l.r.IntN(peers)
	a, b, own := near(f, i), far(f, l.r.IntN(peers)), hostIn[f]
	if !fromNear {
		a, b, own = b, a, hostOut[f]
	}
	p.Tuple = host.Tuple{Src: a, Dst: b, SrcPort: l.port(), DstPort: uint16(servicePorts[l.r.IntN(len(servicePorts))] + l.r.IntN(2))}
	switch p.Hook {
	case verdict.HookInput:
		p.Dst = own
	case verdict.HookOutput:
		p.Src, p.Dst = own, a
	}
	l.sides(&p, fromNear)
	p.State = verdict.StateNew
	switch l.r.IntN(10) {
	case 0, 1, 2, 3:
		p.Protocol, p.TCPFlags = unix.IPPROTO_TCP, verdict.TCPSyn
		if l.r.IntN(3) == 0 {
			p.TCPFlags = []uint8{verdict.TCPAck, verdict.TCPFin | verdict.TCPAck, 0, verdict.TCPSyn | verdict.TCPFin, verdict.TCPRst, verdict.TCPSyn | verdict.TCPAck}[l.r.IntN(6)]
			p.State = verdict.StateInvalid
		}
	case 4, 5, 6:
		p.Protocol = unix.IPPROTO_UDP
	case 7:
		p.Protocol = 253
		if p.Hook != verdict.HookForward {
			p.Protocol = unix.IPPROTO_UDP
		} else {
			p.SrcPort, p.DstPort = 0, 0
			p.State |= verdict.StateEstablished // nothing tells one such connection from the next
		}
	default:
		p.SrcPort, p.DstPort = 0, 0
		if f == host.IPv6 {
			p.Protocol, p.ICMPType = icmpv6, 128
		} else {
			p.Protocol, p.ICMPType = unix.IPPROTO_ICMP, 8
		}
		if l.r.IntN(4) == 0 { // an answer to nothing
			p.State = verdict.StateInvalid
			if p.ICMPType++; f == host.IPv4 {
				p.ICMPType = 0
			}
		}
	}
	p.Orig = p.Tuple
	p.Reply = host.Tuple{Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort}
	p.Known |= verdict.KnownTuples | verdict.KnownReply | verdict.KnownStatus | verdict.KnownConnMark
	if p.Protocol == icmpv6 || p.Protocol == unix.IPPROTO_ICMP || p.Protocol == 253 {
		p.Known &^= verdict.KnownTuples // their tuples have no ports, or ids in their place
	}
	if p.State&verdict.StateEstablished != 0 {
		p.Known = 0
	}
	return p
}

// related is an error about a packet of a connection, sent back along it.
func (l *lab) related(f host.Family, c conn) (verdict.Packet, []byte) {
	about := c.orig
	p := verdict.Packet{Hook: c.to, Protocol: unix.IPPROTO_ICMP, ICMPType: 3, ICMPCode: 3, State: verdict.StateRelated, Tuple: host.Tuple{Src: about.Dst, Dst: about.Src}}
	if f == host.IPv6 {
		p.Protocol, p.ICMPType, p.ICMPCode = icmpv6, 1, 4
	}
	l.sides(&p, !c.fromNear)
	var inner []byte
	if c.proto == unix.IPPROTO_TCP {
		inner = tcp(about.Src, about.Dst, about.SrcPort, about.DstPort, verdict.TCPAck, nil)
	} else {
		inner = udp(about.Src, about.Dst, about.SrcPort, about.DstPort, nil)
	}
	return p, inner
}

// headers are what stands ahead of a packet's payload.
func headers(p *verdict.Packet) []byte {
	n := 20
	if p.Src.Is6() {
		n = 40
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		n += 20
	case 253:
	default:
		n += 8
	}
	return make([]byte, n)
}

func (l *lab) probe(f host.Family) *probe {
	l.nextID++
	q := &probe{id: l.nextID}
	p, pad := l.random(f)
	data := append(append([]byte(nil), pad...), payload(0, q.id)...)
	if l.r.IntN(20) == 0 && p.Protocol != 253 { // over lo: it goes out and comes in
		a := netip.MustParseAddr("127.0.0.1")
		if f == host.IPv6 {
			a = netip.IPv6Loopback()
		}
		out := verdict.Packet{Hook: verdict.HookOutput, Protocol: unix.IPPROTO_UDP, State: verdict.StateNew, Out: "lo", Tuple: host.Tuple{Src: a, Dst: a, SrcPort: l.port(), DstPort: 1003}}
		l.send(&out, data)
		in := out
		in.Hook, in.In, in.Out = verdict.HookInput, "lo", ""
		in.Known &^= verdict.KnownMark | verdict.KnownUID | verdict.KnownGID // what OUTPUT has set stays
		q.packets = []verdict.Packet{out, in}
	} else {
		l.send(&p, data)
		q.packets = []verdict.Packet{p}
	}
	last := &q.packets[len(q.packets)-1]
	q.src, q.proto, q.local = last.Src, last.Protocol, last.Hook == verdict.HookInput
	return q
}

// again sends a packet once more, and reports whether it arrives now.
func (l *lab) again(q *probe) bool {
	for i := range q.packets {
		if p := q.packets[i]; p.In != "lo" {
			l.send(&p, payload(int(p.Length)-len(headers(&p))-8, q.id))
		}
	}
	l.collect(map[uint32]*probe{q.id: q})
	return q.seen
}

// arrives is whether the packet shall come to whom it is sent: what a SYN proxy
// answers in that one's place does not.
func (q *probe) arrives() bool {
	return q.decision.Verdict == verdict.Accepted && q.decision.Proxied == nil
}

func (q *probe) decide(e *verdict.Evaluator) { q.decision = q.by(e) }

// by asks the evaluator; a packet over lo must pass twice.
func (q *probe) by(e *verdict.Evaluator) (d verdict.Decision) {
	open := false
	for i := range q.packets {
		d = e.Verdict(&q.packets[i])
		if d.Verdict == verdict.Dropped {
			return d
		}
		open = open || d.Verdict == verdict.Unknown
	}
	if open {
		d.Verdict = verdict.Unknown
	}
	return d
}

// collect waits for the packets that should arrive, and a little longer.
func (l *lab) collect(probes map[uint32]*probe) {
	note := func(local bool) func(uint32, uint8, netip.Addr) {
		return func(id uint32, proto uint8, src netip.Addr) {
			if q := probes[id]; q != nil && q.local == local && q.src == src && q.proto == proto {
				q.seen = true
			}
		}
	}
	for wait := range 30 {
		l.seen(note(false), note(true))
		missing := false
		for _, q := range probes {
			missing = missing || q.arrives() && !q.seen
		}
		if !missing && wait > 0 {
			return
		}
		time.Sleep(time.Duration(wait) * time.Millisecond)
	}
}
