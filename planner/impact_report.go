package planner

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// maxSources bounds the source addresses that a service is tried with.
const maxSources = 256

// services tries every listening socket with a first packet from whoever the
// rules name, and from a stranger.
func listening(j *judge, total *Impact, report *Report) {
	all := j.knock(func(s *Socket, visits []visited) {
		group := FlowGroup{Result: FlowLost, Service: service(s.Protocol, s.Local.Port(), wayIn), Family: j.family, Examples: []string{}}
		for _, v := range visits {
			if v.today.Verdict != Accepted || v.end.Verdict != Dropped { // of some, if not of all
				continue
			}
			if group.Count++; len(group.Examples) < maxExamples {
				group.Examples = append(group.Examples, v.c.String())
			}
			group.Before, group.After = j.name(v.today.Rule), j.name(v.end.Rule)
		}
		if group.Count > 0 {
			total.Services = append(total.Services, group)
		}
	})
	if !all {
		report.Warn("connections", fmt.Sprintf("rules name more than %d networks of %s that packets come from: services were tried from %[1]d of them", maxSources-1, j.family), Pos{})
	}
}

// visited is the first packet that somebody sends to a listening socket. Today
// is whether any is let in, where it depends on how many there are, or on what
// cannot be known of one.
type visited struct {
	c          connection
	today, end Decision
}

// knock tries every listening socket, at each address that it listens on, from
// each of the sources. It reports whether those are all that rules name.
func (j *judge) knock(each func(s *Socket, visits []visited)) (all bool) {
	conns := j.conns
	sources, all := j.sources()
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
					visits = append(visits, visited{c, j.opens(j.admitting, &c), j.opens(j.end(), &c)})
				}
			}
			each(s, visits)
		}
	}
	return all
}

// visit is the first packet of a connection to this host, with the answer.
func (j *judge) visit(proto uint8, t Tuple, iface string) (c connection, ok bool) {
	if j.places.local(t.Src) {
		return c, false
	}
	c = j.opening(proto, t)
	if c.way != wayIn || c.n != 2 {
		return c, false
	}
	if iface != "" {
		c.packets[0].In, c.packets[1].Out = iface, iface
	}
	return c, true
}

// routed is the same through this host, from one of its interfaces to another.
func (j *judge) routed(proto uint8, t Tuple) (c connection, ok bool) {
	c = j.opening(proto, t)
	p := &c.packets[0]
	return c, c.way == wayForward && p.In != p.Out
}

// opening is the first packet of a connection, with the answer.
func (j *judge) opening(proto uint8, t Tuple) connection {
	c := connection{proto: proto, orig: t}
	j.route(&c, Packet{Protocol: proto, Tuple: t}, Packet{Protocol: proto, Tuple: turned(t)}, true)
	c.begin()
	return c
}

// listenAddresses are those of the host's addresses that a socket listens on:
// its doors, for a socket that takes all.
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
	return j.doors()
}

// doors are the host's addresses that can be reached from outside, one for
// each that rules may treat in another way: by its interface, or by the
// networks of destinations that they name.
func (j *judge) doors() []Address {
	if j.entrances != nil {
		return j.entrances
	}
	named := j.namedNetworks(true)
	seen := map[string]bool{}
	out := []Address{}
	for _, own := range j.conns.Addresses {
		a := own.Prefix.Addr()
		if own.Interface == "lo" || a.Is4() != (j.family == IPv4) || a.IsLinkLocalUnicast() {
			continue
		}
		key := []byte(own.Interface + "\x00")
		for i, p := range named {
			if p.Contains(a) {
				key = strconv.AppendInt(append(key, ' '), int64(i), 10)
			}
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			out = append(out, own)
		}
	}
	j.entrances = out
	return out
}

// namedNetworks are those that rules name as sources, or as destinations, each
// once, in their order: by address, range or set, today's and those to come.
func (j *judge) namedNetworks(dst bool) []netip.Prefix {
	if out, ok := j.named[dst]; ok {
		return out
	}
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	add := func(words []string) {
		for p := range networksOf(words, dst, j.conns.Sets) {
			if p = p.Masked(); p.Addr().Is4() == (j.family == IPv4) && !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
	}
	for i := range j.l.Rulesets {
		r := &j.l.Rulesets[i]
		if r.Family != j.family {
			continue
		}
		for k := range r.Tables {
			for n := range r.Tables[k].Rules {
				add(r.Tables[k].Rules[n].Words)
			}
		}
	}
	for _, ch := range j.d.ChainsOf(j.family) {
		for _, r := range ch.Rules {
			add(r.Words)
		}
	}
	j.named[dst] = out
	return out
}

// sources are a stranger, a neighbour on each network, and one address of each
// network that rules name. It reports false where there are more.
func (j *judge) sources() (out []netip.Addr, all bool) {
	out, all = []netip.Addr{j.stranger()}, true
	seen := map[netip.Addr]bool{out[0]: true}
	add := func(p netip.Prefix) {
		a, _ := j.remote(prefixSet{prefix: p}, out[0])
		switch {
		case seen[a] || a.Is4() != (j.family == IPv4) || a.IsUnspecified() || a.IsMulticast():
		case len(out) == maxSources:
			all = false
		default:
			seen[a] = true
			out = append(out, a)
		}
	}
	for _, a := range j.conns.Addresses {
		if a.Interface != "lo" {
			add(a.Prefix)
		}
	}
	for _, p := range j.namedNetworks(false) {
		add(p)
	}
	return out, all
}

// blockImpact turns what is lost into reasons not to go on.
func blockImpact(d Desired, l Live, im *Impact, p *Report) {
	c := l.Connections
	if c.Total > int64(len(c.Flows)) {
		p.Warn("connections", fmt.Sprintf("of %d tracked connections %d were read, and judged", c.Total, len(c.Flows)), Pos{})
	}
	blocks := func(risk Risk, groups []FlowGroup, what func(FlowGroup) string, noun, nouns string) {
		n, more := 0, int64(0)
		for _, g := range groups {
			if g.Result != FlowLost {
				continue
			}
			if n++; n > MaxNamed {
				more += g.Count
				continue
			}
			p.Block(Block{
				Risk: risk, Address: string(g.Family) + "." + strings.ReplaceAll(g.Service, " ", "."),
				Where:    g.After,
				Why:      what(g),
				Remedy:   remedy(g) + fmt.Sprintf(`, or set allow_risk = ["%s"] to let it happen`, risk),
				Override: true, Source: d.Source,
			})
		}
		if n > MaxNamed {
			p.Block(Block{
				Risk: risk, Address: "connections", Where: fmt.Sprintf("%d more groups", n-MaxNamed), Why: "they would be lost too: " + plural(int(more), noun, nouns),
				Remedy: "see the impact part of the plan's JSON", Override: true, Source: d.Source,
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
		if n++; n <= MaxNamed {
			p.Warn(string(g.Family)+"."+strings.ReplaceAll(g.Service, " ", "."), fmt.Sprintf("whether %s survive cannot be told, because of this rule: %s (%s)", plural(int(g.Count), "connection", "connections"), g.After, join(g.Examples)), d.Source)
		}
	}
	for _, e := range im.Exposed {
		p.Warn("iptables."+string(e.Family)+".filter", fmt.Sprintf("%s. The rule %s lets it in, where today it meets: %s", e.What, e.Rule, e.Before), e.Source)
	}
}

// remedy says what would keep a service.
func remedy(g FlowGroup) string {
	if g.After == translationEnds.String() {
		return `leave this traffic tracked: narrow the notrack blocks, or use mode = "tuned"`
	}
	return "add an accept block for " + g.Service
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
