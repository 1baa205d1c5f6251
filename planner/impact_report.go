package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Addresses of nobody in particular (RFC 5737, RFC 3849): what a stranger is
// tried with.
var strangers = map[Family]netip.Addr{IPv4: netip.MustParseAddr("203.0.113.77"), IPv6: netip.MustParseAddr("2001:db8:ffff::77")}

// maxSources bounds the source addresses that a service is tried with.
const maxSources = 64

// services tries every listening socket with a first packet from whoever the
// rules name, and from a stranger.
func (j *judge) services(total *Impact) {
	j.knock(func(s *Socket, visits []visited) {
		group := FlowGroup{Result: FlowLost, Service: service(s.Protocol, s.Local.Port(), wayIn), Family: j.family, Examples: []string{}}
		for _, v := range visits {
			if v.today.Verdict != Accepted || v.end.Verdict != Dropped {
				continue
			}
			if group.Count++; len(group.Examples) < maxExamples {
				group.Examples = append(group.Examples, v.c.String())
			}
			group.Before, group.After = v.today.Rule.String(), v.end.Rule.String()
		}
		if group.Count > 0 {
			total.Services = append(total.Services, group)
		}
	})
}

// visited is the first packet that somebody sends to a listening socket.
type visited struct {
	c          connection
	today, end Decision
}

// knock tries every listening socket, at each address that it listens on, from
// each of the sources.
func (j *judge) knock(each func(s *Socket, visits []visited)) {
	conns := j.conns
	sources := j.sources()
	type door struct {
		proto uint8
		at    netip.AddrPort
	}
	seen := map[door]bool{}
	for i := range conns.Sockets {
		s := &conns.Sockets[i]
		if !s.Listening || s.Local.Addr().IsLoopback() {
			continue
		}
		for _, to := range j.listenAddresses(s) {
			d := door{s.Protocol, netip.AddrPortFrom(to.Prefix.Addr(), s.Local.Port())}
			if seen[d] {
				continue
			}
			seen[d] = true
			var visits []visited
			for _, from := range sources {
				c, ok := j.visit(s.Protocol, Tuple{from, to.Prefix.Addr(), 40000, s.Local.Port()}, to.Interface)
				if ok {
					visits = append(visits, visited{c, j.opens(j.stages[0], &c), j.opens(j.end(), &c)})
				}
			}
			each(s, visits)
		}
	}
}

// visit is the first packet of a connection to this host, with the answer.
func (j *judge) visit(proto uint8, t Tuple, iface string) (c connection, ok bool) {
	if j.places.local(t.Src) {
		return c, false
	}
	c = connection{proto: proto, orig: t, way: wayIn}
	first := Packet{Protocol: proto, State: StateNew, Tuple: t, Known: KnownReply | KnownTuples | KnownConnMark | KnownStatus}
	first.Orig, first.Reply = t, Tuple{t.Dst, t.Src, t.DstPort, t.SrcPort}
	back := first
	back.State, back.IsReply, back.Tuple, back.Status = StateEstablished, true, first.Reply, StatusSeenReply
	if proto == protoTCP {
		first.TCPFlags, back.TCPFlags = TCPSyn, TCPSyn|TCPAck
	}
	j.route(&c, first, back, true)
	if c.way != wayIn || c.n != 2 {
		return c, false
	}
	if iface != "" {
		c.packets[0].In, c.packets[1].Out = iface, iface
	}
	return c, true
}

// listenAddresses are those of the host's addresses that a socket listens on:
// one of each interface for a socket that takes all.
func (j *judge) listenAddresses(s *Socket) []Address {
	a := s.Local.Addr()
	if !a.IsUnspecified() {
		if a.Is4() != (j.family == IPv4) {
			return nil
		}
		for _, own := range j.conns.Addresses {
			if own.Prefix.Addr() == a {
				return []Address{own}
			}
		}
		return nil
	}
	if a.Is4() != (j.family == IPv4) && !s.Dual {
		return nil
	}
	var out []Address
	for _, own := range j.conns.Addresses {
		addr := own.Prefix.Addr()
		if own.Interface == "lo" || addr.Is4() != (j.family == IPv4) || addr.IsLinkLocalUnicast() ||
			slices.ContainsFunc(out, func(o Address) bool { return o.Interface == own.Interface }) {
			continue
		}
		out = append(out, own)
	}
	return out
}

// sources are a stranger, a neighbour, and one address of each network that
// the rules for incoming packets name.
func (j *judge) sources() []netip.Addr {
	out := []netip.Addr{strangers[j.family]}
	add := func(p netip.Prefix) {
		a := p.Masked().Addr()
		if p.Bits() < p.Addr().BitLen() {
			a = a.Next() // not the network itself
		}
		for j.places.local(a) && p.Contains(a.Next()) {
			a = a.Next()
		}
		if len(out) < maxSources && !slices.Contains(out, a) && a.Is4() == (j.family == IPv4) && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a)
		}
	}
	for _, a := range j.conns.Addresses {
		if a.Interface != "lo" {
			add(a.Prefix)
		}
	}
	for i := range j.p.l.Rulesets {
		r := &j.p.l.Rulesets[i]
		if r.Family != j.family {
			continue
		}
		for k := range r.Tables {
			for n := range r.Tables[k].Rules {
				words := r.Tables[k].Rules[n].Words
				for w := 0; w+1 < len(words) && len(out) < maxSources; w++ {
					var set prefixSet
					if words[w] == "-s" && set.set(false, words[w+1]) {
						add(set.prefix)
					}
				}
			}
		}
	}
	return out
}

// exposures tries what the accepts declared for this host let in, as somebody
// who opens a connection, against what is let in today.
func (j *judge) exposures(total *Impact) {
	last := len(j.stages) - 1
	named := map[string]bool{}
	for _, ch := range j.p.wanted(j.family) {
		if ch.Table != "filter" || ch.Hook != "INPUT" {
			continue
		}
		for _, r := range ch.Rules {
			s := parseSpec(r.Words)
			q := packetsOf(s)
			proto, ok := ProtocolNumber(q.proto)
			if q.proto == "" {
				proto, ok = protoTCP, true
			}
			if !ok || q.notProto || named[r.Text] {
				continue
			}
			from := strangers[j.family]
			if q.src.prefix.IsValid() && !q.src.not {
				from = q.src.prefix.Addr()
				if q.src.prefix.Bits() < from.BitLen() {
					from = from.Next()
				}
			}
			for _, to := range j.listenAddresses(&Socket{Local: netip.AddrPortFrom(anyAddress(j.family), 1)}) {
				if q.dst.prefix.IsValid() && !q.dst.not {
					if !q.dst.prefix.Contains(to.Prefix.Addr()) {
						continue
					}
				}
				if q.in.name != "" && !q.in.not && !strings.HasSuffix(q.in.name, "+") && q.in.name != to.Interface {
					continue
				}
				t := Tuple{from, to.Prefix.Addr(), 40000, 9}
				if !carriesPorts(proto) {
					t.SrcPort, t.DstPort = 0, 0
				}
				if len(q.sports.ranges) > 0 && !q.sports.not {
					t.SrcPort = q.sports.ranges[0].From
				}
				if len(q.dports.ranges) > 0 && !q.dports.not {
					t.DstPort = q.dports.ranges[0].From
				}
				c, ok := j.visit(proto, t, to.Interface)
				if !ok {
					continue
				}
				c.n = 1 // getting in is enough
				c.packets[0].ICMPType = echo(proto, false)
				today, end := j.at(j.stages[0], &c, false), j.at(j.stages[last], &c, true)
				if today.Verdict != Dropped || end.Verdict != Accepted || named[r.Text] {
					continue
				}
				named[r.Text] = true
				total.Exposed = append(total.Exposed, Exposure{
					Family: j.family, Rule: "-A " + ch.Name + " " + r.Text, Before: today.Rule.String(), Source: r.Source,
					What: exposes(proto, q, from),
				})
			}
		}
	}
}

// looseStates tries strangers against foreign rules that mean untracked
// packets without saying so: one for everything that is ! --ctstate NEW lets
// in whatever leaves tracking.
func (j *judge) looseStates(total *Impact) {
	for _, proto := range []uint8{protoTCP, protoUDP} {
		for _, to := range j.listenAddresses(&Socket{Local: netip.AddrPortFrom(anyAddress(j.family), 1)}) {
			c, ok := j.visit(proto, Tuple{strangers[j.family], to.Prefix.Addr(), 40000, 9}, to.Interface)
			if !ok {
				continue
			}
			c.n = 1 // getting in is enough
			today, end := j.at(j.stages[0], &c, false), j.at(j.end(), &c, true)
			if today.Verdict != Dropped || end.Verdict != Accepted || !end.Untracked || end.Rule == nil || end.Rule.Text == "" || isOwn(end.Rule.Chain) {
				continue
			}
			name, _, _ := strings.Cut(service(proto, highPorts, wayIn), "/")
			total.Exposed = append(total.Exposed, Exposure{
				Family: j.family, Rule: end.Rule.String(), Before: today.Rule.String(), Source: j.p.d.Source,
				What: fmt.Sprintf("anybody may now open %s connections to every port of this host: packets that are not tracked are in state UNTRACKED, which the rule does not leave out", name),
			})
			break
		}
	}
}

func anyAddress(f Family) netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// exposes says in words what an accept lets in.
func exposes(proto uint8, q packets, from netip.Addr) string {
	who := "anybody"
	if q.src.prefix.IsValid() && q.src.prefix.Bits() > 0 && !q.src.not {
		who = q.src.prefix.String()
	}
	name := strings.TrimSuffix(service(proto, highPorts, wayIn), "/high ports in")
	name = strings.TrimSuffix(name, " in")
	if len(q.sports.ranges) > 0 && len(q.dports.ranges) == 0 {
		text := fmt.Sprintf("%s may now open %s connections to every port of this host, as long as they come from source port %s", who, name, rangeText(q.sports.ranges[0]))
		if proto == protoTCP {
			text += `; initiator = "local" in the accept block keeps them out`
		}
		return text
	}
	if len(q.dports.ranges) > 0 {
		text := fmt.Sprintf("%s may now open %s connections to port %s", who, name, rangeText(q.dports.ranges[0]))
		if len(q.sports.ranges) > 0 {
			text += " from source port " + rangeText(q.sports.ranges[0])
		}
		return text
	}
	text := fmt.Sprintf("%s may now send %s to this host that no connection of its own asked for", who, name)
	if proto == protoTCP {
		text += `; initiator = "local" in the accept block keeps it out`
	}
	return text
}

func rangeText(r PortRange) string {
	if r.From == r.To {
		return fmt.Sprint(r.From)
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// blockImpact turns what is lost into reasons not to go on.
func (p *planning) blockImpact(im *Impact) {
	c := p.l.Connections
	if c.Total > int64(len(c.Flows)) {
		p.warn("connections", fmt.Sprintf("of %d tracked connections %d were read, and judged", c.Total, len(c.Flows)), Pos{})
	}
	blocks := func(risk Risk, groups []FlowGroup, what func(FlowGroup) string, noun, nouns string) {
		n, more := 0, int64(0)
		for _, g := range groups {
			if g.Result != FlowLost {
				continue
			}
			if n++; n > maxNamed {
				more += g.Count
				continue
			}
			p.block(Block{
				Risk: risk, Address: string(g.Family) + "." + strings.ReplaceAll(g.Service, " ", "."),
				Where:    g.After,
				Why:      what(g),
				Remedy:   fmt.Sprintf(`add an accept block for %s, or set allow_risk = ["%s"] to let it happen`, g.Service, risk),
				Override: true, Source: p.d.Source,
			})
		}
		if n > maxNamed {
			p.block(Block{
				Risk: risk, Address: "connections", Where: fmt.Sprintf("%d more groups", n-maxNamed), Why: "they would be lost too: " + plural(int(more), noun, nouns),
				Remedy: "see the impact part of the plan's JSON", Override: true, Source: p.d.Source,
			})
		}
	}
	blocks(RiskLostFlows, im.Groups, whyLost, "connection", "connections")
	blocks(RiskLostServices, im.Services, func(g FlowGroup) string {
		return fmt.Sprintf("a service listens on %s, which %s reach today and could no longer; today this lets them through: %s", g.Service, join(g.Examples), g.Before)
	}, "way in", "ways in")
	n := 0
	for _, g := range im.Groups {
		if g.Result != FlowUnknown {
			continue
		}
		if n++; n <= maxNamed {
			p.warn(string(g.Family)+"."+strings.ReplaceAll(g.Service, " ", "."), fmt.Sprintf("whether %s survive cannot be told, because of this rule: %s (%s)", plural(int(g.Count), "connection", "connections"), g.After, join(g.Examples)), p.d.Source)
		}
	}
	for _, e := range im.Exposed {
		p.warn("iptables."+string(e.Family)+".filter", fmt.Sprintf("%s. The rule %s lets it in, where today it meets: %s", e.What, e.Rule, e.Before), e.Source)
	}
}

func whyLost(g FlowGroup) string {
	who := plural(int(g.Count), "connection that is open now", "connections that are open now") + " would be cut off"
	if g.Operator {
		who = "the session that you are working through would be cut off"
	}
	text := who + " (" + join(g.Examples) + ")"
	if g.Stage != "" {
		text += ", while " + g.Stage + " is changed"
	}
	if g.Before != "" {
		text += "; today this lets them through: " + g.Before
	}
	return text
}

// join lists examples, at most three.
func join(list []string) string {
	if len(list) > 3 {
		return strings.Join(list[:3], ", ") + ", …"
	}
	return strings.Join(list, ", ")
}
