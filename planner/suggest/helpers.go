package suggest

import (
	"net/netip"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/sides"
	"github.com/ctplan/ctplan/planner/verdict"
)

// helped adds the data connections that a helper lets in today and that
// nothing would, whether one is open or not: a control connection is enough.
func (c *cover) helped(j *judge.Judge) (news bool) {
	for _, h := range sides.Helpers {
		u, ok := sides.UsesHelper(j, h)
		if !ok || !u.Sure {
			continue
		}
		for _, w := range u.Ways {
			missing, _, _ := sides.DataLost(j, h, w)
			for _, d := range missing {
				news = c.data(j, h, d, w) || news
			}
		}
	}
	return news
}

// data adds one kind of data connection for everybody who may open the
// connection that the helper reads.
func (c *cover) data(j *judge.Judge, h sides.Helper, d sides.DataKind, w judge.Way) (news bool) {
	clients, servers := c.mayOpen(j, h, w)
	if clients == nil || servers == nil {
		return false
	}
	server := host.PortRange{From: d.Server, To: d.Server}
	k := serviceKey{way: w, proto: d.Proto, data: true}
	if d.FromServer && w != judge.Forward {
		k.way = map[judge.Way]judge.Way{judge.In: judge.Out, judge.Out: judge.In}[w]
	}
	if d.Proto == protocol.TCP {
		k.initiator = declared.LocalSide
		if k.way == judge.In {
			k.initiator = declared.RemoteSide
		}
	}
	locals, remotes := clients, servers // the local side of what is routed is who opens it
	switch {
	case w == judge.In:
		locals, remotes = servers, clients
	case w == judge.Forward && d.FromServer:
		locals, remotes = servers, clients
	}
	if protocol.CarriesPorts(d.Proto) {
		free := func(p host.PortRange, otherwise host.PortRange) host.PortRange {
			if p.From == 0 {
				return otherwise
			}
			return p
		}
		switch {
		case k.way == judge.In && !d.FromServer:
			k.lports = free(server, c.ephemeral)
		case k.way == judge.In:
			k.lports, k.rports = c.ephemeral, free(server, unprivileged)
		case d.FromServer:
			k.lports, k.rports = free(server, unprivileged), unprivileged
		default:
			k.rports = free(server, unprivileged)
		}
	}
	n, news := c.service(k, j.Family)
	for _, r := range remotes {
		for _, l := range locals {
			news = n.add(r, r, l) || news
		}
	}
	return news
}

// mayOpen are the networks from and to which today's rules let the helper's
// connection be opened: any, or those that they name. Nil where none is.
func (c *cover) mayOpen(j *judge.Judge, h sides.Helper, w judge.Way) (clients, servers []netip.Prefix) {
	own := []netip.Prefix{nets.All(j.Family)}
	named := append([]netip.Prefix{nets.All(j.Family)}, c.named[j.Family]...)
	q := alikeKey{family: j.Family, way: w, proto: h.Protos[0], sport: 40000, dport: h.Port, state: verdict.StateNew}
	ifaces := j.Doors()
	lets := func(from, to netip.Prefix) bool {
		q.from, q.to = from, to
		for _, a := range ifaces {
			switch w {
			case judge.In:
				q.in, q.to = a.Interface, nets.Single(a.Prefix.Addr())
			case judge.Out:
				q.out, q.from = a.Interface, nets.Single(a.Prefix.Addr())
			default:
				q.in, q.out = j.Towards(from), j.Towards(to)
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
	case judge.In:
		return widest(func(p netip.Prefix) bool { return lets(p, p) }), own
	case judge.Out:
		return own, widest(func(p netip.Prefix) bool { return lets(p, p) })
	}
	clients = widest(func(p netip.Prefix) bool { return lets(p, nets.All(j.Family)) })
	return clients, own
}
