package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
)

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

// maxSources bounds the source addresses that a service is tried with.
const maxSources = 256

// each calls visit with every connection of the family: what is tracked, from
// that many goroutines at once and with their numbers, then, numbered last,
// what only a socket knows of. A connection is gone when visit returns.
func (j *judge) each(workers int, visit func(worker int, c *connection)) {
	conns := j.conns
	known := make(map[socketKey]bool, len(conns.Sockets))
	listens := map[portKey]bool{}
	for _, s := range conns.Sockets {
		if s.Listening {
			listens[portKey{s.Protocol, s.Local.Port()}] = true
		} else {
			known[socketKey{s.Protocol, s.Local, s.Remote}] = false
		}
	}
	tracked := make([][]socketKey, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			var c connection
			for i := len(conns.Flows) * w / workers; i < len(conns.Flows)*(w+1)/workers; i++ {
				f := &conns.Flows[i]
				if f.Orig.Src.Is4() != (j.family == IPv4) || !j.ofFlow(&c, f) {
					continue
				}
				for _, key := range c.sockets(f) {
					if _, ok := known[key]; ok {
						tracked[w] = append(tracked[w], key)
					}
				}
				visit(w, &c)
			}
		})
	}
	wg.Wait()
	for _, keys := range tracked {
		for _, k := range keys {
			known[k] = true
		}
	}
	var c connection
	for i := range conns.Sockets {
		s := &conns.Sockets[i]
		if s.Listening || s.Local.Addr().Is4() != (j.family == IPv4) || known[socketKey{s.Protocol, s.Local, s.Remote}] {
			continue
		}
		j.ofSocket(&c, s, listens[portKey{s.Protocol, s.Local.Port()}])
		visit(workers, &c)
	}
}

// service names what a connection is for.
func service(proto uint8, port uint16, w way) string {
	name := fmt.Sprint(proto)
	switch proto {
	case protoTCP:
		name = "tcp"
	case protoUDP:
		name = "udp"
	case protoICMP:
		name = "icmp"
	case protoICMPv6:
		name = "icmpv6"
	case protoSCTP:
		name = "sctp"
	case protoDCCP:
		name = "dccp"
	case protoUDPLite:
		name = "udplite"
	}
	switch {
	case !carriesPorts(proto):
	case port == highPorts:
		name += "/high ports"
	default:
		name += fmt.Sprintf("/%d", port)
	}
	return name + " " + [...]string{"in", "out", "forward", "lo"}[w]
}

func (j *judge) strangers() []netip.Addr {
	if j.nobody != nil {
		return j.nobody
	}
	named := j.namedNetworks(false)
	first := netip.AddrFrom4([4]byte{203, 0, 113, 77})
	next := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{i, 77, 77, 77}) }
	from, to := byte(1), byte(223)
	if j.family == IPv6 {
		first = netip.MustParseAddr("2001:db8:ffff::77")
		next = func(i byte) netip.Addr { return netip.AddrFrom16([16]byte{0: i, 1: 0x77, 15: 0x77}) }
		from, to = 0x20, 0x3f
	}
	unnamed := func(a netip.Addr) bool {
		return !a.IsPrivate() && !a.IsLoopback() && !slices.ContainsFunc(named, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
	}
	for a, i := first, from; len(j.nobody) < 2 && i <= to; a, i = next(i), i+1 {
		if !unnamed(a) {
			continue
		}
		j.nobody = append(j.nobody, a)
		if a = a.Next(); len(j.nobody) < 2 && unnamed(a) {
			j.nobody = append(j.nobody, a)
		}
	}
	for a := first; len(j.nobody) < 2; a = a.Next() {
		j.nobody = append(j.nobody, a)
	}
	return j.nobody
}

// stranger is an address of nobody in particular: one that rules name no network
// of, so that a rule about some is not taken for one about all. Where they name
// the whole world in parts, it is one that nobody has (RFC 5737, RFC 3849).
func (j *judge) stranger() netip.Addr { return j.strangers()[0] }

// another is a second stranger.
func (j *judge) another() netip.Addr { return j.strangers()[1] }

// towards is the interface that leads to a network; for any, to strangers.
func (j *judge) towards(p netip.Prefix) string {
	if p.Bits() == 0 {
		return j.places.toward(j.stranger())
	}
	return j.places.toward(p.Addr())
}
