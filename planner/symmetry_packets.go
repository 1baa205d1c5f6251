package planner

import (
	"net/netip"
	"strings"
)

// Addresses that stand for this host where its own are not known (RFC 5737,
// RFC 3849).
var placeholders = map[Family]netip.Addr{IPv4: netip.MustParseAddr("198.51.100.7"), IPv6: netip.MustParseAddr("2001:db8:fffe::7")}

// example is a made-up connection: what opens it, and the answer.
type example struct {
	connection
	mine int // which of the two packets is the one that was asked for
}

// examples are connections of which one packet is one that the rule of a raw
// table matches, as far as its matches tell: to this host or from it, and
// routed where this host routes.
func (j *judge) examples(ref RuleRef) []*example {
	q := packetsOf(j.specs[ref])
	var out []*example
	add := func(x *example) {
		if x != nil {
			out = append(out, x)
		}
	}
	add(j.example(q, wayIn))
	add(j.example(q, wayOut))
	if j.routes() {
		ends := j.ends()
		for _, from := range ends {
			for _, to := range ends {
				add(j.between(q, wayForward, from, to))
			}
		}
	}
	return out
}

// ends are addresses that routed connections may have: two strangers', and one
// behind each interface.
func (j *judge) ends() []netip.Addr {
	out := []netip.Addr{j.stranger(), j.another()}
	for _, a := range j.conns.Addresses {
		if len(out) == 6 || a.Interface == "lo" || a.Prefix.Addr().Is4() != (j.family == IPv4) || a.Prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		if near, ok := j.remote(prefixSet{prefix: a.Prefix}, netip.Addr{}); ok {
			out = append(out, near)
		}
	}
	return out
}

// example makes the connection whose packet of q passes the host this way;
// nil where there can be none.
func (j *judge) example(q packets, w way) *example {
	return j.between(q, w, j.stranger(), j.another())
}

// between is example with the addresses of others where q names none.
func (j *judge) between(q packets, w way, from, to netip.Addr) *example {
	if q.in.name == "lo" && !q.in.not || q.out.name == "lo" && !q.out.not {
		return nil // over lo, a packet is tracked or not as it goes out
	}
	proto, ok := uint8(protoTCP), true
	if q.proto != "" && !q.notProto {
		proto, ok = ProtocolNumber(q.proto)
	} else if q.notProto && q.proto == "6" {
		proto = protoUDP
	}
	if !ok {
		return nil
	}
	t := Tuple{SrcPort: 40000, DstPort: 80}
	var in, out string
	var okSrc, okDst bool
	switch w {
	case wayIn:
		t.Src, okSrc = j.remote(q.src, from)
		t.Dst, in, okDst = j.own(q.dst, q.in)
	case wayOut:
		t.Src, out, okSrc = j.own(q.src, q.out)
		t.Dst, okDst = j.remote(q.dst, from)
	default:
		t.Src, okSrc = j.remote(q.src, from)
		t.Dst, okDst = j.remote(q.dst, to)
		in, out = j.through(q.in, t.Src), j.through(ifaceSet{}, t.Dst)
	}
	if !okSrc || !okDst || t.Src == t.Dst {
		return nil
	}
	reply := len(q.sports.ranges) > 0 && !q.sports.not && (len(q.dports.ranges) == 0 || q.dports.not)
	if reply {
		t.SrcPort, t.DstPort = 80, 40000
	}
	if len(q.sports.ranges) > 0 && !q.sports.not {
		t.SrcPort = q.sports.ranges[0].From
	}
	if len(q.dports.ranges) > 0 && !q.dports.not {
		t.DstPort = q.dports.ranges[0].From
	}
	if !carriesPorts(proto) {
		t.SrcPort, t.DstPort = 0, 0
	}
	hooks := map[way][2]Hook{wayIn: {HookInput, HookOutput}, wayOut: {HookOutput, HookInput}, wayForward: {HookForward, HookForward}}[w]
	if w == wayIn {
		out = in
	} else if w == wayOut {
		in = out
	}
	mine := j.packet(hooks[0], proto, t, in, out)
	answer := j.packet(hooks[1], proto, turned(t), out, in)
	x := &example{connection: connection{proto: proto, way: w, n: 2}}
	if reply {
		x.mine, x.orig = 1, turned(t)
		x.packets[0], x.packets[1] = answer, mine
	} else {
		x.orig = t
		x.packets[0], x.packets[1] = mine, answer
	}
	x.begin()
	return x
}

func turned(t Tuple) Tuple { return Tuple{t.Dst, t.Src, t.DstPort, t.SrcPort} }

// begin makes the two packets the first of a connection and its answer.
func (x *connection) begin() {
	for i := range x.n {
		p := &x.packets[i]
		p.Known |= KnownReply | KnownTuples | KnownConnMark | KnownStatus
		p.Orig, p.Reply = x.orig, turned(x.orig)
		p.ICMPType = echo(x.proto, i == 1)
		if p.State = StateNew; i == 1 {
			// The table has it by then, with a mark that rules may have given it.
			p.State, p.IsReply, p.Status = StateEstablished, true, StatusConfirmed|StatusSeenReply
			p.Known &^= KnownConnMark
		}
		if x.proto == protoTCP {
			p.TCPFlags = TCPSyn
			if i == 1 {
				p.TCPFlags = TCPSyn | TCPAck
			}
		}
	}
}

// packet is a made-up one, with the interfaces that its hook has.
func (j *judge) packet(hook Hook, proto uint8, t Tuple, in, out string) Packet {
	p := Packet{Hook: hook, Protocol: proto, Tuple: t, PktType: PktHost, Known: KnownPktType}
	if hook != HookOutput {
		p.In = in
	}
	if hook != HookInput {
		p.Out = out
	}
	if j.conns.Addresses != nil && !j.conns.Bridged {
		p.Known |= KnownUnbridged
	}
	return p
}

// remote is an address of the set that is not this host's.
func (j *judge) remote(s prefixSet, otherwise netip.Addr) (netip.Addr, bool) {
	if !s.prefix.IsValid() || s.not || s.prefix.Bits() == 0 {
		return otherwise, !s.not || !s.prefix.Contains(otherwise)
	}
	a := s.prefix.Masked().Addr()
	if s.prefix.Bits() < a.BitLen() {
		a = a.Next() // not the network itself
	}
	for j.places.local(a) && s.prefix.Contains(a.Next()) {
		a = a.Next()
	}
	return a, !j.places.local(a) && !a.IsMulticast()
}

// own is one of this host's addresses in the set, with its interface.
func (j *judge) own(s prefixSet, i ifaceSet) (netip.Addr, string, bool) {
	if j.conns.Addresses == nil {
		a := placeholders[j.family]
		if s.prefix.IsValid() && !s.not && s.prefix.Bits() > 0 {
			if a = s.prefix.Addr(); s.prefix.Bits() < a.BitLen() {
				a = a.Next()
			}
		}
		return a, j.through(i, a), !a.IsMulticast()
	}
	for _, own := range j.conns.Addresses {
		a := own.Prefix.Addr()
		switch {
		case a.Is4() != (j.family == IPv4), own.Interface == "lo", a.IsLinkLocalUnicast(), s.prefix.IsValid() && s.prefix.Contains(a) == s.not:
		case i.name != "" && ifaceCovers(i.name, own.Interface) == i.not:
		default:
			return a, own.Interface, true
		}
	}
	return netip.Addr{}, "", false
}

// through is the interface that a packet from the address comes in by, or the
// one that the rule asks for.
func (j *judge) through(i ifaceSet, a netip.Addr) string {
	if i.name != "" && !i.not && !strings.HasSuffix(i.name, "+") {
		return i.name
	}
	return j.places.toward(a)
}

// routes is whether there are signs that this host routes what is not its own:
// connections that it routes now, blocks or rules about them.
func (j *judge) routes() bool {
	for _, list := range [][]Traffic{j.d.Notrack, j.d.Accept} {
		for _, t := range list {
			if t.Direction == Forward {
				return true
			}
		}
	}
	for i := range j.l.Rulesets {
		for _, s := range j.l.Rulesets[i].Sections("filter") {
			for k := range s.Rules {
				if r := &s.Rules[k]; r.Chain == "FORWARD" && ownTarget(r.Words) == "" {
					if t := parseSpec(r.Words).target; t != "DROP" && t != "REJECT" && t != "LOG" {
						return true
					}
				}
			}
		}
	}
	for _, f := range j.conns.Flows {
		if f.Orig.Src.Is4() == (j.family == IPv4) && j.places.way(f.Orig.Src, f.Reply.Src) == wayForward {
			return true
		}
	}
	return false
}
