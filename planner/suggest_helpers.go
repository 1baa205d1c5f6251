package planner

import "net/netip"

// helped adds the data connections that a helper lets in today and that
// nothing would, whether one is open or not: a control connection is enough.
func (c *cover) helped(j *judge) (news bool) {
	for _, h := range helpers {
		u, ok := usesHelper(j, h)
		if !ok || !u.sure {
			continue
		}
		for _, w := range u.ways {
			missing, _ := dataLost(j, h, w)
			for _, d := range missing {
				news = c.data(j, h, d, w) || news
			}
		}
	}
	return news
}

// data adds one kind of data connection for everybody who may open the
// connection that the helper reads.
func (c *cover) data(j *judge, h helper, d dataKind, w way) (news bool) {
	clients, servers := c.mayOpen(j, h, w)
	if clients == nil || servers == nil {
		return false
	}
	server := PortRange{d.server, d.server}
	k := serviceKey{way: w, proto: d.proto, data: true}
	if d.fromServer && w != wayForward {
		k.way = map[way]way{wayIn: wayOut, wayOut: wayIn}[w]
	}
	if d.proto == protoTCP {
		k.initiator = LocalSide
		if k.way == wayIn {
			k.initiator = RemoteSide
		}
	}
	locals, remotes := clients, servers // the local side of what is routed is who opens it
	switch {
	case w == wayIn:
		locals, remotes = servers, clients
	case w == wayForward && d.fromServer:
		locals, remotes = servers, clients
	}
	if carriesPorts(d.proto) {
		free := func(p PortRange, otherwise PortRange) PortRange {
			if p.From == 0 {
				return otherwise
			}
			return p
		}
		switch {
		case k.way == wayIn && !d.fromServer:
			k.lports = free(server, c.ephemeral)
		case k.way == wayIn:
			k.lports, k.rports = c.ephemeral, free(server, unprivileged)
		case d.fromServer:
			k.lports, k.rports = free(server, unprivileged), unprivileged
		default:
			k.rports = free(server, unprivileged)
		}
	}
	n, news := c.service(k, j.family)
	for _, r := range remotes {
		for _, l := range locals {
			news = n.add(r, r, l) || news
		}
	}
	return news
}

// mayOpen are the networks from and to which today's rules let the helper's
// connection be opened: any, or those that they name. Nil where none is.
func (c *cover) mayOpen(j *judge, h helper, w way) (clients, servers []netip.Prefix) {
	own := []netip.Prefix{anyOf(j.family)}
	named := append([]netip.Prefix{anyOf(j.family)}, c.named[j.family]...)
	q := alikeKey{family: j.family, way: w, proto: h.protos[0], sport: 40000, dport: h.port, state: StateNew}
	ifaces := j.doors()
	lets := func(from, to netip.Prefix) bool {
		q.from, q.to = from, to
		for _, a := range ifaces {
			switch w {
			case wayIn:
				q.in, q.to = a.Interface, host(a.Prefix.Addr())
			case wayOut:
				q.out, q.from = a.Interface, host(a.Prefix.Addr())
			default:
				q.in, q.out = j.towards(from), j.towards(to)
			}
			if c.lets(j, q) {
				return true
			}
		}
		return false
	}
	widest := func(passes func(netip.Prefix) bool) (out []netip.Prefix) {
		for _, p := range named {
			if passes(p) {
				out = append(out, p)
			}
			if p.Bits() == 0 && len(out) > 0 {
				return out
			}
		}
		return reduced(out)
	}
	switch w {
	case wayIn:
		return widest(func(p netip.Prefix) bool { return lets(p, p) }), own
	case wayOut:
		return own, widest(func(p netip.Prefix) bool { return lets(p, p) })
	}
	clients = widest(func(p netip.Prefix) bool { return lets(p, anyOf(j.family)) })
	return clients, own
}
