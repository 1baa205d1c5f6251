package judge

import (
	"net/netip"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Addresses that stand for this host where its own are not known (RFC 5737,
// RFC 3849).
var placeholders = map[host.Family]netip.Addr{host.IPv4: netip.MustParseAddr("198.51.100.7"), host.IPv6: netip.MustParseAddr("2001:db8:fffe::7")}

// Example is a made-up connection: what opens it, and the answer.
type Example struct {
	Connection
	Asked int // which of the two packets is the one that was asked for
}

// Examples are connections of which one packet is one that a rule of Untracks
// matches, as far as its matches tell: to this host or from it, and
// routed where this host routes.
func (j *Judge) Examples(ref verdict.RuleRef) []*Example {
	q := j.matched[ref]
	var out []*Example
	add := func(x *Example) {
		if x != nil {
			out = append(out, x)
		}
	}
	add(j.Example(q, In))
	add(j.Example(q, Out))
	if j.Routes() {
		ends := j.Ends()
		for _, from := range ends {
			for _, to := range ends {
				add(j.between(q, Forward, from, to))
			}
		}
	}
	return out
}

// Ends are addresses that routed connections may have: two strangers', and one
// behind each interface.
func (j *Judge) Ends() []netip.Addr {
	out := []netip.Addr{j.Stranger(), j.Another()}
	for _, a := range j.Connections.Addresses {
		if len(out) == 6 || a.Interface == "lo" || a.Prefix.Addr().Is4() != (j.Family == host.IPv4) || a.Prefix.Addr().IsLinkLocalUnicast() {
			continue
		}
		if near, ok := j.Remote(xtables.PrefixSet{Prefix: a.Prefix}, netip.Addr{}); ok {
			out = append(out, near)
		}
	}
	return out
}

// Example makes the connection whose packet of q passes the host this way;
// nil where there can be none.
func (j *Judge) Example(q xtables.Packets, w Way) *Example {
	return j.between(q, w, j.Stranger(), j.Another())
}

// between is example with the addresses of others where q names none.
func (j *Judge) between(q xtables.Packets, w Way, from, to netip.Addr) *Example {
	if q.In.Name == "lo" && !q.In.Not || q.Out.Name == "lo" && !q.Out.Not {
		return nil // over lo, a packet is tracked or not as it goes out
	}
	proto, ok := uint8(protocol.TCP), true
	if q.Proto != "" && !q.NotProto {
		proto, ok = protocol.Number(q.Proto)
	} else if q.NotProto && q.Proto == "6" {
		proto = protocol.UDP
	}
	if !ok {
		return nil
	}
	t := host.Tuple{SrcPort: 40000, DstPort: 80}
	var in, out string
	var okSrc, okDst bool
	switch w {
	case In:
		t.Src, okSrc = j.Remote(q.Src, from)
		t.Dst, in, okDst = j.Own(q.Dst, q.In)
	case Out:
		t.Src, out, okSrc = j.Own(q.Src, q.Out)
		t.Dst, okDst = j.Remote(q.Dst, from)
	default:
		t.Src, okSrc = j.Remote(q.Src, from)
		t.Dst, okDst = j.Remote(q.Dst, to)
		in, out = j.through(q.In, t.Src), j.through(xtables.InterfaceSet{}, t.Dst)
	}
	if !okSrc || !okDst || t.Src == t.Dst {
		return nil
	}
	reply := len(q.SrcPorts.Ranges) > 0 && !q.SrcPorts.Not && (len(q.DstPorts.Ranges) == 0 || q.DstPorts.Not)
	if reply {
		t.SrcPort, t.DstPort = 80, 40000
	}
	if len(q.SrcPorts.Ranges) > 0 && !q.SrcPorts.Not {
		t.SrcPort = q.SrcPorts.Ranges[0].From
	}
	if len(q.DstPorts.Ranges) > 0 && !q.DstPorts.Not {
		t.DstPort = q.DstPorts.Ranges[0].From
	}
	if !protocol.CarriesPorts(proto) {
		t.SrcPort, t.DstPort = 0, 0
	}
	hooks := map[Way][2]verdict.Hook{In: {verdict.HookInput, verdict.HookOutput}, Out: {verdict.HookOutput, verdict.HookInput}, Forward: {verdict.HookForward, verdict.HookForward}}[w]
	if w == In {
		out = in
	} else if w == Out {
		in = out
	}
	mine := j.Packet(hooks[0], proto, t, in, out)
	answer := j.Packet(hooks[1], proto, Turned(t), out, in)
	x := &Example{Connection: Connection{Proto: proto, Way: w, Count: 2}}
	if reply {
		x.Asked, x.Orig = 1, Turned(t)
		x.Packets[0], x.Packets[1] = answer, mine
	} else {
		x.Orig = t
		x.Packets[0], x.Packets[1] = mine, answer
	}
	x.begin()
	return x
}

// Turned is the tuple of what answers.
func Turned(t host.Tuple) host.Tuple {
	return host.Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort}
}

// begin makes the two packets the first of a connection and its answer.
func (x *Connection) begin() {
	for i := range x.Count {
		begin(&x.Packets[i], x.Orig, i == 1)
	}
}

// begin makes a packet one of those that a conversation begins with: the first,
// or the answer.
func begin(p *verdict.Packet, orig host.Tuple, answer bool) {
	p.Known |= verdict.KnownReply | verdict.KnownTuples | verdict.KnownConnMark | verdict.KnownStatus
	p.Orig, p.Reply = orig, Turned(orig)
	p.ICMPType = echo(p.Protocol, answer)
	if p.State = verdict.StateNew; answer {
		// The table has it by then, with a mark that rules may have given it.
		p.State, p.IsReply, p.Status = verdict.StateEstablished, true, host.StatusConfirmed|host.StatusSeenReply
		p.Known &^= verdict.KnownConnMark
	}
	if p.Protocol == protocol.TCP {
		p.TCPFlags = verdict.TCPSyn
		if answer {
			p.TCPFlags = verdict.TCPSyn | verdict.TCPAck
		}
	}
}

// Packet is a made-up one, with the interfaces that its hook has.
func (j *Judge) Packet(hook verdict.Hook, proto uint8, t host.Tuple, in, out string) verdict.Packet {
	p := verdict.Packet{Hook: hook, Protocol: proto, Tuple: t, PktType: verdict.PktHost, Known: verdict.KnownPktType}
	if hook != verdict.HookOutput {
		p.In = in
	}
	if hook != verdict.HookInput {
		p.Out = out
	}
	if j.Connections.Addresses != nil && !j.Connections.Bridged {
		p.Known |= verdict.KnownUnbridged
	}
	return p
}

// Remote is an address of the set that is not this host's.
func (j *Judge) Remote(s xtables.PrefixSet, otherwise netip.Addr) (netip.Addr, bool) {
	if !s.Prefix.IsValid() || s.Not || s.Prefix.Bits() == 0 {
		return otherwise, !s.Not || !s.Prefix.Contains(otherwise)
	}
	a := s.Prefix.Masked().Addr()
	if s.Prefix.Bits() < a.BitLen() {
		a = a.Next() // not the network itself
	}
	for j.Places.Local(a) && s.Prefix.Contains(a.Next()) {
		a = a.Next()
	}
	return a, !j.Places.Local(a) && !a.IsMulticast()
}

// Own is one of this host's addresses in the set, with its interface.
func (j *Judge) Own(s xtables.PrefixSet, i xtables.InterfaceSet) (netip.Addr, string, bool) {
	if j.Connections.Addresses == nil {
		// Which of the world's are this host's is not known: none that is named.
		a := placeholders[j.Family]
		return a, j.through(i, a), !s.Prefix.IsValid() || s.Prefix.Contains(a) != s.Not
	}
	for _, own := range j.Connections.Addresses {
		a := own.Prefix.Addr()
		switch {
		case a.Is4() != (j.Family == host.IPv4), own.Interface == "lo", a.IsLinkLocalUnicast(), s.Prefix.IsValid() && s.Prefix.Contains(a) == s.Not:
		case i.Name != "" && xtables.InterfaceCovers(i.Name, own.Interface) == i.Not:
		default:
			return a, own.Interface, true
		}
	}
	return netip.Addr{}, "", false
}

// through is the interface that a packet from the address comes in by, or the
// one that the rule asks for.
func (j *Judge) through(i xtables.InterfaceSet, a netip.Addr) string {
	if i.Name != "" && !i.Not && !strings.HasSuffix(i.Name, "+") {
		return i.Name
	}
	return j.Places.Toward(a)
}

// Routes is whether there are signs that this host routes what is not its own:
// connections that it routes now, blocks or rules about them, or a bridge whose
// frames meet the rules of IP as they pass between its ports, whatever ip_forward
// says (net/bridge/br_netfilter_hooks.c).
func (j *Judge) Routes() bool { return j.rulesRoute() || j.Seen().Forward }

// rulesRoute is the same but for its connections, which it does not wait for.
func (j *Judge) rulesRoute() bool {
	key := host.SysctlBridged4
	if j.Family == host.IPv6 {
		key = host.SysctlBridged6
	}
	if j.Connections.Bridged && j.Live.Sysctls[key].Value == "1" {
		return true
	}
	for _, list := range [][]declared.Traffic{j.Desired.Notrack, j.Desired.Accept} {
		for _, t := range list {
			if t.Direction == declared.Forward {
				return true
			}
		}
	}
	for i := range j.Live.Rulesets {
		for _, s := range j.Live.Rulesets[i].Sections("filter") {
			for k := range s.Rules {
				if r := &s.Rules[k]; r.Chain == "FORWARD" && xtables.OwnTarget(r.Words) == "" {
					if t := xtables.Parse(r.Words).Target; t != "DROP" && t != "REJECT" && t != "LOG" {
						return true
					}
				}
			}
		}
	}
	return false
}
