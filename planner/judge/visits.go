package judge

import (
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Visited is the first packet that somebody sends to a listening socket. Today
// is whether any is let in, where it depends on how many there are, or on what
// cannot be known of one.
type Visited struct {
	Conn       Connection
	Today, End verdict.Decision
}

// Knock tries every listening socket, at each address that it listens on, from
// each of the sources. It reports whether those are all that rules name.
func (j *Judge) Knock(each func(s *host.Socket, visits []Visited)) (all bool) {
	conns := j.Connections
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
		for _, to := range j.ListenAddresses(s) {
			d := door{s.Protocol, netip.AddrPortFrom(to.Prefix.Addr(), s.Local.Port())}
			if seen[d] {
				continue
			}
			seen[d] = true
			var visits []Visited
			for _, from := range sources {
				c, ok := j.Visit(s.Protocol, host.Tuple{Src: from, Dst: to.Prefix.Addr(), SrcPort: 40000, DstPort: s.Local.Port()}, to.Interface)
				if ok {
					visits = append(visits, Visited{c, j.Opens(j.Admitting, &c), j.Opens(j.End(), &c)})
				}
			}
			each(s, visits)
		}
	}
	return all
}

// Visit is the first packet of a connection to this host, with the answer.
func (j *Judge) Visit(proto uint8, t host.Tuple, iface string) (c Connection, ok bool) {
	if j.Places.Local(t.Src) {
		return c, false
	}
	c = j.opening(proto, t)
	if c.Way != In || c.Count != 2 {
		return c, false
	}
	if iface != "" {
		if c.Packets[0].In != iface {
			c.Packets[0].Known &^= verdict.KnownWayBack
		}
		c.Packets[0].In, c.Packets[1].Out = iface, iface
	}
	return c, true
}

// Routed is the same through this host, from one of its interfaces to another.
func (j *Judge) Routed(proto uint8, t host.Tuple) (c Connection, ok bool) {
	c = j.opening(proto, t)
	p := &c.Packets[0]
	return c, c.Way == Forward && p.In != p.Out
}

// opening is the first packet of a connection, with the answer.
func (j *Judge) opening(proto uint8, t host.Tuple) Connection {
	c := Connection{Proto: proto, Orig: t}
	j.route(&c, verdict.Packet{Protocol: proto, Tuple: t}, verdict.Packet{Protocol: proto, Tuple: Turned(t)}, true)
	c.begin()
	return c
}

// First is the first packet of a connection that passes the host this way,
// through these interfaces.
func (j *Judge) First(w Way, proto uint8, t host.Tuple, in, out string) verdict.Packet {
	p := verdict.Packet{Protocol: proto, Tuple: t}
	j.passing(&p, [...]verdict.Hook{In: verdict.HookInput, Out: verdict.HookOutput, Forward: verdict.HookForward}[w], in, out)
	begin(&p, t, false)
	return p
}

// ListenAddresses are those of the host's addresses that a socket listens on:
// its doors, for a socket that takes all.
func (j *Judge) ListenAddresses(s *host.Socket) []host.Address {
	a := s.Local.Addr()
	if !a.IsUnspecified() {
		if a.Is4() != (j.Family == host.IPv4) {
			return nil
		}
		for _, own := range j.Connections.Addresses {
			if own.Prefix.Addr() == a {
				return []host.Address{own}
			}
		}
		return nil
	}
	if a.Is4() != (j.Family == host.IPv4) && !s.Dual {
		return nil
	}
	return j.Doors()
}

// Doors are the host's addresses that can be reached from outside, one for
// each that rules may treat in another way: by its interface, or by the
// networks of destinations that they name.
func (j *Judge) Doors() []host.Address {
	if j.entrances != nil {
		return j.entrances
	}
	named := j.namedNetworks(true)
	seen := map[string]bool{}
	out := []host.Address{}
	for _, own := range j.Connections.Addresses {
		a := own.Prefix.Addr()
		if own.Interface == "lo" || a.Is4() != (j.Family == host.IPv4) || a.IsLinkLocalUnicast() {
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
func (j *Judge) namedNetworks(dst bool) []netip.Prefix {
	if out, ok := j.named[dst]; ok {
		return out
	}
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	add := func(words []string) {
		for p := range xtables.NetworksOf(words, dst, j.Connections.Sets) {
			if p = p.Masked(); p.Addr().Is4() == (j.Family == host.IPv4) && !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
	}
	for p := range nft.Networks(j.native, j.Family, dst) {
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	for words := range j.rules(false) {
		add(words)
	}
	j.named[dst] = out
	return out
}

// sources are a stranger, a neighbour on each network, and one address of each
// network that rules name. It reports false where there are more.
func (j *Judge) sources() (out []netip.Addr, all bool) {
	out, all = []netip.Addr{j.Stranger()}, true
	seen := map[netip.Addr]bool{out[0]: true}
	add := func(p netip.Prefix) {
		a, _ := j.Remote(xtables.PrefixSet{Prefix: p}, out[0])
		switch {
		case seen[a] || a.Is4() != (j.Family == host.IPv4) || a.IsUnspecified() || a.IsMulticast():
		case len(out) == MaxSources:
			all = false
		default:
			seen[a] = true
			out = append(out, a)
		}
	}
	for _, a := range j.Connections.Addresses {
		if a.Interface != "lo" {
			add(a.Prefix)
		}
	}
	for _, p := range j.namedNetworks(false) {
		add(p)
	}
	return out, all
}

// MaxSources bounds the source addresses that a service is tried with.
const MaxSources = 256

// batch is how many tracked connections one goroutine takes at a time.
const batch = 512

// behind is how many have to be left for one more goroutine to help.
const behind = 16 * batch

// Each calls visit with every connection of the family: what is tracked, from
// that many goroutines at once and with their numbers, then, numbered last,
// what only a socket knows of. n says which it is, for Nth; to one goroutine
// they come in that order. A connection is gone when visit returns.
//
// What is tracked is shown to like before, unless that is nil: where it says that
// it knows the connection, that is not made.
//
// It begins with those that are there while others are still being read.
func (j *Judge) Each(workers int, like func(worker, n int, f *host.Flow) bool, visit func(worker, n int, c *Connection)) {
	conns := j.Connections
	known := make(map[socketKey]bool, len(conns.Sockets))
	for _, s := range conns.Sockets {
		if !s.Listening {
			known[socketKey{s.Protocol, s.Local, s.Remote}] = false
		}
	}
	var mu sync.Mutex
	taken := 0
	// While more come than are left to do, one keeps up alone: a second is for
	// when the first has fallen behind, or there are no more to come.
	take := func(w int) (list []host.Flow, first int) {
		for {
			mu.Lock()
			first = taken
			mu.Unlock()
			list, all := conns.Beyond(first + w*behind)
			mu.Lock()
			first = taken
			if first < len(list) {
				taken = min(first+batch, len(list))
				list = list[first:taken]
				mu.Unlock()
				return list, first
			}
			mu.Unlock()
			if all {
				return nil, first
			}
		}
	}
	tracked := make([][]socketKey, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			var c Connection
			for list, first := take(w); len(list) > 0; list, first = take(w) {
				for i := range list {
					f := &list[i]
					if f.Orig.Src.Is4() != (j.Family == host.IPv4) || over(f) {
						continue
					}
					if len(known) > 0 {
						for _, key := range socketsOf(f) {
							if _, ok := known[key]; ok {
								tracked[w] = append(tracked[w], key)
							}
						}
					}
					if like != nil && like(w, first+i, f) {
						continue
					}
					j.ofFlow(&c, f)
					visit(w, first+i, &c)
				}
			}
		})
	}
	wg.Wait()
	for _, keys := range tracked {
		for _, k := range keys {
			known[k] = true
		}
	}
	var c Connection
	for i := range conns.Sockets {
		s := &conns.Sockets[i]
		if s.Listening || s.Local.Addr().Is4() != (j.Family == host.IPv4) || known[socketKey{s.Protocol, s.Local, s.Remote}] {
			continue
		}
		j.ofSocket(&c, s)
		visit(workers, taken+i, &c)
	}
}

// Nth makes the connection that Each numbers so.
func (j *Judge) Nth(c *Connection, n int) {
	if flows := j.Connections.All(); n < len(flows) {
		j.ofFlow(c, &flows[n])
	} else {
		j.ofSocket(c, &j.Connections.Sockets[n-len(flows)])
	}
}

// ServiceName names what a connection is for.
func ServiceName(proto uint8, port uint16, w Way) string {
	name := protocol.Name(proto)
	if proto == protocol.ICMPv6 {
		name = "icmpv6"
	}
	switch {
	case !protocol.CarriesPorts(proto):
	case port == HighPorts:
		name += "/high ports"
	default:
		name += "/" + strconv.Itoa(int(port))
	}
	return name + " " + [...]string{"in", "out", "forward", "lo"}[w]
}

func (j *Judge) strangers() []netip.Addr {
	if j.nobody != nil {
		return j.nobody
	}
	named := j.namedNetworks(false)
	first := netip.AddrFrom4([4]byte{203, 0, 113, 77})
	next := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{i, 77, 77, 77}) }
	from, to := byte(1), byte(223)
	if j.Family == host.IPv6 {
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

// Stranger is an address of nobody in particular: one that rules name no network
// of, so that a rule about some is not taken for one about all. Where they name
// the whole world in parts, it is one that nobody has (RFC 5737, RFC 3849).
func (j *Judge) Stranger() netip.Addr { return j.strangers()[0] }

// Another is a second stranger.
func (j *Judge) Another() netip.Addr { return j.strangers()[1] }

// Towards is the interface that leads to a network; for any, to strangers.
func (j *Judge) Towards(p netip.Prefix) string {
	if p.Bits() == 0 {
		return j.Places.Toward(j.Stranger())
	}
	return j.Places.Toward(p.Addr())
}
