package planner

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// A talk is the packets of a conversation in order; one that is refused ends it.
type talk []verdict.Packet

// fate is what becomes of a conversation: how many packets of it pass, and what
// stops it.
func fate(e *verdict.Evaluator, list talk) (int, verdict.Decision) {
	for i := range list {
		if d := e.Verdict(&list[i]); d.Verdict != verdict.Accepted {
			return i, d
		}
	}
	return len(list), verdict.Decision{Verdict: verdict.Accepted}
}

// conversations draws those that keep to their protocol, to, from and through a
// host. Those of one class differ in nothing that the rules at hand tell apart:
// addresses lie in the same of the networks that rules name, ports between the
// same of the ports.
type conversations struct {
	family    host.Family
	here      netip.Addr
	peers     []netip.Addr
	peerClass []uint16 // by index of the peer
	ifaces    []string
	portClass []uint16 // by port
	shapes    []shape
}

// conversation is one of them: the peer and another one behind the host, by their
// index, the interfaces, the ports and the shape.
type conversation struct {
	way         verdict.Hook
	peer, other int
	in, out     int
	from, to    uint16
	shape       int
}

// shape is what a conversation consists of.
type shape struct {
	class string // of protocols, as grades name them: tcp, udp, icmp, other
	parts []piece
}

type piece struct {
	proto, typ, flags uint8
	back              bool
	state             verdict.State
}

// localAddress is the host's own.
var localAddress = map[host.Family]string{host.IPv4: "192.0.2.1", host.IPv6: "2001:db8:ff::1"}

// shapesOf are the conversations of TCP, UDP, ICMP and others, with errors about
// them.
func shapesOf(f host.Family) (out []shape) {
	const est, ack = verdict.StateEstablished, verdict.TCPAck
	request, answer, errors, icmp := uint8(8), uint8(0), []uint8{3, 5, 11, 12}, uint8(protocol.ICMP)
	if f == host.IPv6 {
		request, answer, errors, icmp = 128, 129, []uint8{1, 2, 3, 4}, protocol.ICMPv6
	}
	fails := func(n int) piece {
		return piece{proto: icmp, typ: errors[n%4], back: n/4%2 == 0, state: verdict.StateRelated}
	}
	for i, middle := range [][]piece{nil, {{flags: ack}}, {{flags: ack | verdict.TCPPsh, back: true}}, {{flags: ack | verdict.TCPUrg}, {flags: ack, back: true}}} {
		for k, last := range []uint8{verdict.TCPFin | ack, verdict.TCPRst, verdict.TCPRst | ack, verdict.TCPFin | ack | verdict.TCPUrg} {
			side := (i + k) % 2
			opens := uint8(verdict.TCPSyn)
			if k == 3 {
				opens |= verdict.TCPUrg
			}
			parts := slices.Concat([]piece{{flags: opens, state: verdict.StateNew}, {flags: verdict.TCPSyn | ack, back: true}, {flags: ack}}, middle, []piece{{flags: last, back: side == 1}})
			for n := range parts {
				if parts[n].proto = protocol.TCP; parts[n].state == 0 {
					parts[n].state = est
				}
			}
			out = append(out, shape{"tcp", append(parts, fails(i+2*k))})
		}
	}
	for n := range 4 {
		out = append(out, shape{"udp", []piece{{proto: protocol.UDP, state: verdict.StateNew}, {proto: protocol.UDP, back: true, state: est}, {proto: protocol.UDP, state: est}, fails(n)}})
	}
	out = append(out, shape{"icmp", []piece{{proto: icmp, typ: request, state: verdict.StateNew}, {proto: icmp, typ: answer, back: true, state: est}, {proto: icmp, typ: request, state: est}}})
	for _, proto := range []uint8{protocol.GRE, 50, protocol.SCTP} {
		out = append(out, shape{"other", []piece{{proto: proto, state: verdict.StateNew}, {proto: proto, back: true, state: est}}})
	}
	return out
}

// conversationsOf are those that the rules of sets are held against.
func conversationsOf(r *rand.Rand, f host.Family, sets ...host.Ruleset) *conversations {
	c := &conversations{family: f, here: netip.MustParseAddr(localAddress[f]), shapes: shapesOf(f), ifaces: []string{"other0"}}
	var nets []netip.Prefix
	edges := make([]bool, 1<<16+1)
	port := func(text string) {
		from, to, span := strings.Cut(text, ":")
		if a, err := strconv.ParseUint(from, 10, 16); err == nil {
			b := a
			if n, err := strconv.ParseUint(to, 10, 16); span && err == nil {
				b = n
			}
			edges[a], edges[b+1] = true, true
		}
	}
	for _, set := range sets {
		for _, s := range set.Sections("filter") {
			for i := range s.Rules {
				for _, p := range xtables.Pieces(s.Rules[i].Words) {
					if len(p.Args) == 0 {
						continue
					}
					switch p.Name {
					case "-s", "-d":
						if n, err := netip.ParsePrefix(p.Args[0]); err == nil && !slices.Contains(nets, n) {
							nets = append(nets, n.Masked())
						}
					case "-i", "-o":
						if name := strings.Replace(p.Args[0], "+", "7", 1); !slices.Contains(c.ifaces, name) {
							c.ifaces = append(c.ifaces, name)
						}
					case "--sport", "--dport", "--sports", "--dports", "--ports":
						for one := range strings.SplitSeq(p.Args[0], ",") {
							port(one)
						}
					}
				}
			}
		}
	}
	class := uint16(0)
	for p := range 1 << 16 {
		if edges[p] {
			class++
		}
		c.portClass = append(c.portClass, class)
	}
	within := map[string]uint16{}
	add := func(a netip.Addr) {
		if a == c.here || a.IsMulticast() {
			return
		}
		var in []byte
		for i, n := range nets {
			if n.Contains(a) {
				in = binary.AppendUvarint(in, uint64(i))
			}
		}
		if _, ok := within[string(in)]; !ok {
			within[string(in)] = uint16(len(within))
		}
		c.peers, c.peerClass = append(c.peers, a), append(c.peerClass, within[string(in)])
	}
	anywhere := netip.MustParsePrefix("0.0.0.0/0")
	if f == host.IPv6 {
		anywhere = netip.MustParsePrefix("2000::/3")
	}
	for _, n := range nets {
		add(n.Addr())
		for range 4 {
			add(drawFrom(r, n))
		}
	}
	for range 16 {
		add(drawFrom(r, anywhere))
	}
	return c
}

// drawFrom is an address of a network by chance.
func drawFrom(r *rand.Rand, n netip.Prefix) netip.Addr {
	b := n.Addr().AsSlice()
	for i := n.Bits(); i < n.Addr().BitLen(); i++ {
		b[i/8] |= uint8(r.IntN(2)) << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// draw is one by chance. Ports that rules name are drawn more often than others.
func (c *conversations) draw(r *rand.Rand) conversation {
	v := conversation{
		way: verdict.HookInput, peer: r.IntN(len(c.peers)), other: r.IntN(len(c.peers)), in: r.IntN(len(c.ifaces)), out: r.IntN(len(c.ifaces)),
		from: uint16(32768 + r.IntN(28000)), to: uint16(1 + r.IntN(65535)), shape: r.IntN(len(c.shapes)),
	}
	switch r.IntN(3) {
	case 1:
		v.way = verdict.HookOutput
	case 2:
		v.way = verdict.HookForward
	}
	if r.IntN(2) == 0 {
		v.to = usual[r.IntN(len(usual))]
	}
	return v
}

var usual = []uint16{22, 25, 53, 68, 80, 123, 443, 5353, 5432, 8003, 8080}

// class is equal for conversations that differ in nothing that rules name.
type class struct {
	way            verdict.Hook
	in, out, shape uint8
	peer, other    uint16
	from, to       uint16
}

func (c *conversations) class(v conversation) class {
	k := class{way: v.way, in: uint8(v.in), shape: uint8(v.shape), peer: c.peerClass[v.peer]}
	if v.way == verdict.HookForward {
		k.out, k.other = uint8(v.out), c.peerClass[v.other]
	}
	if s := c.shapes[v.shape].class; s == "tcp" || s == "udp" {
		k.from, k.to = c.portClass[v.from], c.portClass[v.to]
	}
	return k
}

// packets are those of a conversation.
func (c *conversations) packets(v conversation) (list talk) {
	t := host.Tuple{Src: c.peers[v.peer], Dst: c.here, SrcPort: v.from, DstPort: v.to}
	switch v.way {
	case verdict.HookOutput:
		t.Src, t.Dst = t.Dst, t.Src
	case verdict.HookForward:
		t.Dst = c.peers[v.other]
	}
	turned := host.Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort}
	for _, part := range c.shapes[v.shape].parts {
		p := verdict.Packet{
			Hook: v.way, State: part.state, Tuple: t, Orig: t, Reply: turned, IsReply: part.back, Protocol: part.proto, TCPFlags: part.flags, ICMPType: part.typ,
			Known: verdict.KnownReply | verdict.KnownTuples | verdict.KnownStatus | verdict.KnownUnbridged,
		}
		if part.back {
			p.Tuple = turned
			switch v.way {
			case verdict.HookInput:
				p.Hook = verdict.HookOutput
			case verdict.HookOutput:
				p.Hook = verdict.HookInput
			}
		}
		switch p.Hook {
		case verdict.HookInput:
			p.In = c.ifaces[v.in]
		case verdict.HookOutput:
			p.Out = c.ifaces[v.in]
		case verdict.HookForward:
			if p.In, p.Out = c.ifaces[v.in], c.ifaces[v.out]; part.back {
				p.In, p.Out = p.Out, p.In
			}
		}
		list = append(list, p)
	}
	return list
}
