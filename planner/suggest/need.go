package suggest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// DefaultEphemeral is the range from which the kernel takes the ports of
// connections that it opens (net.ipv4.ip_local_port_range).
var DefaultEphemeral = host.PortRange{From: 32768, To: 60999}

// unprivileged are the ports that any program may take.
var unprivileged = host.PortRange{From: 1024, To: 65535}

const (
	// maxRemotes is how many addresses of one service are named one by one.
	// With more, the block is as wide as today's rules are.
	maxRemotes = 8
	// maxPortEntries is how many ports and ranges one block names before they
	// become one range: a rule holds 15 (xt_multiport).
	maxPortEntries = 15
	ftpControl     = 21
	ftpData        = 20
)

// serviceKey tells apart what gets an entry of its own in an accept block.
type serviceKey struct {
	way       judge.Way
	proto     uint8
	initiator declared.Initiator
	iface     string
	lports    host.PortRange // of this side, or of who opens a routed connection; zero: any
	rports    host.PortRange // of the other side
	data      bool           // opened by a connection tracking helper
}

// needs are what a service needs in one family.
type needs struct {
	flows   int64
	sockets int                           // that listen, and are lost
	own     []host.PortRange              // ports of this side's clients, where they matter
	remotes map[netip.Prefix]netip.Prefix // the other side's: each address to the widest network that today's rules treat alike
	locals  map[netip.Prefix]bool         // this side's; the zero length is any
}

// cover collects what a plan would lose and makes accept blocks of it.
type cover struct {
	l         host.Live
	render    declared.Renderer
	ephemeral host.PortRange
	services  map[serviceKey]map[host.Family]*needs
	listens   map[protocol.Port]bool // sockets of this host
	clients   map[protocol.Port]bool // ports of this host that connections of its own have
	ifaces    map[string]bool        // beside lo
	loop      map[host.Family]int64
	icmp      map[icmpKey]bool
	counted   map[string]bool // connections that count already
	alike     map[alikeKey]bool
	named     map[host.Family][]netip.Prefix // networks that rules and interfaces name, the widest first
	shut      map[protocol.Port]bool         // ports that are listened on, and closed to strangers today
}

// icmpKey is ICMP of one family, to and from this host or through it.
type icmpKey struct {
	family  host.Family
	forward bool
}

func newCover(l host.Live, render declared.Renderer) *cover {
	c := &cover{
		l: l, render: render, ephemeral: l.Connections.Ephemeral, services: map[serviceKey]map[host.Family]*needs{}, listens: map[protocol.Port]bool{}, clients: map[protocol.Port]bool{}, ifaces: map[string]bool{},
		loop: map[host.Family]int64{}, icmp: map[icmpKey]bool{}, counted: map[string]bool{}, alike: map[alikeKey]bool{}, named: map[host.Family][]netip.Prefix{}, shut: map[protocol.Port]bool{},
	}
	if c.ephemeral.From == 0 || c.ephemeral.To < c.ephemeral.From {
		c.ephemeral = DefaultEphemeral
	}
	for _, s := range l.Connections.Sockets {
		if s.Listening {
			c.listens[protocol.Port{Protocol: s.Protocol, Port: s.Local.Port()}] = true
		}
	}
	for _, a := range l.Connections.Addresses {
		if a.Interface != "lo" {
			c.ifaces[a.Interface] = true
		}
		c.name(a.Prefix)
	}
	for i := range l.Rulesets {
		for k := range l.Rulesets[i].Tables {
			for n := range l.Rulesets[i].Tables[k].Rules {
				for _, dst := range []bool{false, true} {
					for p := range xtables.NetworksOf(l.Rulesets[i].Tables[k].Rules[n].Words, dst, l.Connections.Sets) {
						c.name(p)
					}
				}
			}
		}
	}
	for f := range c.named {
		slices.SortFunc(c.named[f], func(a, b netip.Prefix) int {
			return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
		})
		c.named[f] = slices.Compact(c.named[f])
	}
	return c
}

func (c *cover) name(p netip.Prefix) {
	if p.IsValid() && p.Bits() > 0 && p.Bits() < p.Addr().BitLen() {
		f := host.IPv6
		if p.Addr().Is4() {
			f = host.IPv4
		}
		c.named[f] = append(c.named[f], p.Masked())
	}
}

// learn adds what the plan for d would lose. It reports whether there is
// anything that was not covered before.
func (c *cover) learn(d declared.Desired, l host.Live, plan planner.Plan) bool {
	judges := judge.Kernel(d, l, change.StepsOf(plan.Changes), nil)
	news := false
	for _, f := range host.Families {
		j := judges.Of(f)
		if j == nil || len(j.Stages) < 2 {
			continue
		}
		j.Each(1, nil, func(_, _ int, conn *judge.Connection) {
			fate, ok := impact.Decide(j, conn)
			if !ok || conn.Translated {
				return
			}
			switch {
			case fate.Result == impact.FlowLost:
			case fate.Result == impact.FlowUnknown && j.At(j.Stages[0], conn, false).Verdict == verdict.Accepted:
			default:
				return
			}
			news = c.flow(j, conn) || news
		})
		news = c.silent(j) || news
		news = c.helped(j) || news
		j.Knock(func(s *host.Socket, visits []judge.Visited) { news = c.socket(j, s, visits) || news })
	}
	return news
}

// service returns what is known of a service, and whether it is new.
func (c *cover) service(k serviceKey, f host.Family) (n *needs, news bool) {
	if c.services[k] == nil {
		c.services[k] = map[host.Family]*needs{}
	}
	if n = c.services[k][f]; n == nil {
		n, news = &needs{remotes: map[netip.Prefix]netip.Prefix{}, locals: map[netip.Prefix]bool{}}, true
		c.services[k][f] = n
	}
	return n, news
}

// add notes who uses a service.
func (n *needs) add(remote, wide, local netip.Prefix) (news bool) {
	if _, ok := n.remotes[remote]; !ok || !n.locals[local] {
		n.remotes[remote], n.locals[local] = wide, true
		return true
	}
	return false
}

// flow adds a connection. It reports whether that makes a difference.
func (c *cover) flow(j *judge.Judge, conn *judge.Connection) bool {
	id := fmt.Sprint(conn.Proto, conn)
	again := c.counted[id]
	c.counted[id] = true
	switch {
	case conn.Way == judge.Loop:
		c.loop[j.Family]++
		return !again
	case conn.Proto == protocol.ICMP || conn.Proto == protocol.ICMPv6:
		news := !c.icmp[icmpKey{j.Family, conn.Way == judge.Forward}]
		c.icmp[icmpKey{j.Family, conn.Way == judge.Forward}] = true
		return news
	}
	at := c.orient(conn)
	local, wide := c.width(j, &at)
	n, news := c.service(at.key, j.Family)
	if again && !news {
		return false // nothing more can be done for it
	}
	n.flows++
	if at.own != (host.PortRange{}) && !slices.Contains(n.own, at.own) {
		n.own = append(n.own, at.own)
	}
	n.add(netip.PrefixFrom(at.remote, at.remote.BitLen()), wide, local)
	return true
}

// oriented is a connection from the host's point of view.
type oriented struct {
	key           serviceKey
	open          host.Tuple     // from who opens it
	in, out       string         // interfaces of its first packet
	own           host.PortRange // of this side's end, where it is not in the key
	local, remote netip.Addr
}

// orient tells the service from who uses it. Connections that were picked up
// in the middle can stand the wrong way round in the table: a port of this host
// that something listens on is the service then.
func (c *cover) orient(conn *judge.Connection) oriented {
	first := &conn.Packets[0]
	at := oriented{key: serviceKey{way: conn.Way, proto: conn.Proto}, open: conn.Orig, in: first.In, out: first.Out}
	src, dst := conn.Orig.SrcPort, conn.Orig.DstPort
	listens := func(port uint16) bool { return c.listens[protocol.Port{Protocol: conn.Proto, Port: port}] }
	data := first.Known&verdict.KnownStatus != 0 && first.Status&host.StatusExpected != 0
	turned := false
	switch {
	case data || !protocol.CarriesPorts(conn.Proto):
	case conn.Way == judge.In:
		turned = !listens(dst) && c.isEphemeral(dst) && !c.isEphemeral(src)
	case conn.Way == judge.Out:
		turned = listens(src) && c.isEphemeral(dst) && src < dst && (conn.Proto == protocol.TCP || src < unprivileged.From)
	}
	if turned {
		at.open = host.Tuple{Src: conn.Orig.Dst, Dst: conn.Orig.Src, SrcPort: dst, DstPort: src}
		src, dst = dst, src
		at.in, at.out = at.out, at.in
		at.key.way = map[judge.Way]judge.Way{judge.In: judge.Out, judge.Out: judge.In}[conn.Way]
	}
	k := &at.key
	k.data = data
	at.local, at.remote, k.iface = at.open.Src, at.open.Dst, at.out
	if k.way == judge.In {
		at.local, at.remote, k.iface = at.open.Dst, at.open.Src, at.in
	}
	if conn.Proto == protocol.TCP {
		k.initiator = declared.LocalSide
		if k.way == judge.In {
			k.initiator = declared.RemoteSide
		}
	}
	switch {
	case !protocol.CarriesPorts(conn.Proto):
	case k.way == judge.In:
		k.lports = c.servicePort(dst, data)
		if data {
			c.clients[protocol.Port{Protocol: conn.Proto, Port: dst}] = true // nobody else's business
		}
		if data && src == ftpData {
			k.rports = host.PortRange{From: ftpData, To: ftpData}
		}
	default:
		k.rports = c.servicePort(dst, data)
		if k.rports == c.ephemeral {
			k.rports = unprivileged // the other side's range is its own
		}
		switch {
		case data && src == ftpData:
			k.lports = host.PortRange{From: ftpData, To: ftpData}
		case conn.Proto == protocol.TCP: // initiator keeps others out
		case src < unprivileged.From:
			at.own = host.PortRange{From: src, To: src}
		case c.isEphemeral(src) && k.way == judge.Out:
			at.own = c.ephemeral
		default:
			at.own = unprivileged
		}
		if k.way == judge.Out {
			c.clients[protocol.Port{Protocol: conn.Proto, Port: src}] = true
		}
	}
	return at
}

func (c *cover) isEphemeral(p uint16) bool { return p >= c.ephemeral.From && p <= c.ephemeral.To }

// servicePort is the port, or the range that it was taken from by chance.
func (c *cover) servicePort(p uint16, chance bool) host.PortRange {
	switch {
	case !chance || p < unprivileged.From:
		return host.PortRange{From: p, To: p}
	case c.isEphemeral(p):
		return c.ephemeral
	}
	return unprivileged
}

// socket adds a listening service that strangers, or some network, would no
// longer reach.
func (c *cover) socket(j *judge.Judge, s *host.Socket, visits []judge.Visited) bool {
	port := host.PortRange{From: s.Local.Port(), To: s.Local.Port()}
	at := protocol.Port{Protocol: s.Protocol, Port: s.Local.Port()}
	if s.Protocol != protocol.TCP && at.Port >= unprivileged.From && c.clients[at] {
		return false // an unconnected socket of a client
	}
	news := false
	for _, v := range visits {
		from := v.Conn.Orig.Src
		if v.Today.Verdict == verdict.Dropped && from == j.Stranger() {
			c.shut[at] = true
		}
		if v.Today.Verdict != verdict.Accepted || v.End.Verdict != verdict.Dropped {
			continue
		}
		o := oriented{key: serviceKey{way: judge.In, proto: s.Protocol, iface: v.Conn.Packets[0].In, lports: port}, open: v.Conn.Orig, in: v.Conn.Packets[0].In, local: v.Conn.Orig.Dst, remote: from}
		if s.Protocol == protocol.TCP {
			o.key.initiator = declared.RemoteSide
		}
		local, wide := c.width(j, &o)
		n, fresh := c.service(o.key, j.Family)
		n.sockets = 1
		news = n.add(netip.PrefixFrom(from, from.BitLen()), wide, local) || fresh || news
	}
	return news
}

// silent adds what no connection shows: errors of ICMP, which belong to other
// connections, and neighbour discovery.
func (c *cover) silent(j *judge.Judge) bool {
	related, discovery, proto := []uint8{3, 11}, []uint8(nil), uint8(protocol.ICMP)
	if j.Family == host.IPv6 {
		related, discovery, proto = []uint8{2, 1, 3}, []uint8{133, 134, 135, 136}, protocol.ICMPv6
	}
	loses := func(forward bool, tries func(verdict.Packet) []verdict.Packet, kinds []uint8, state verdict.State) bool {
		for _, kind := range kinds {
			for _, p := range tries(verdict.Packet{Protocol: proto, State: state, ICMPType: kind, ICMPCode: fragmentationNeeded(proto, kind)}) {
				if j.Stages[0].Verdict(&p).Verdict == verdict.Accepted && j.Stages[len(j.Stages)-1].Verdict(&p).Verdict == verdict.Dropped {
					c.icmp[icmpKey{j.Family, forward}] = true
					return true
				}
			}
		}
		return false
	}
	owns := j.Doors()
	mine := func(p verdict.Packet) (out []verdict.Packet) {
		for _, own := range owns {
			in, back := p, p
			in.Src, in.Dst, in.In, in.Hook = j.Stranger(), own.Prefix.Addr(), own.Interface, verdict.HookInput
			back.Src, back.Dst, back.Out, back.Hook = in.Dst, in.Src, own.Interface, verdict.HookOutput
			out = append(out, in, back)
		}
		return out
	}
	through := func(p verdict.Packet) (out []verdict.Packet) {
		for _, from := range owns {
			for _, to := range owns {
				if from.Interface != to.Interface {
					p.Src, p.Dst, p.In, p.Out, p.Hook = j.Stranger(), to.Prefix.Addr().Next(), from.Interface, to.Interface, verdict.HookForward
					out = append(out, p)
				}
			}
		}
		return out
	}
	news := false
	if !c.icmp[icmpKey{j.Family, false}] {
		news = loses(false, mine, related, verdict.StateRelated) || loses(false, mine, discovery, verdict.StateUntracked)
	}
	if !c.icmp[icmpKey{j.Family, true}] && c.forwards(j.Family) {
		news = loses(true, through, related, verdict.StateRelated) || news
	}
	return news
}

func fragmentationNeeded(proto, kind uint8) uint8 {
	if proto == protocol.ICMP && kind == 3 {
		return 4
	}
	return 0
}

// forwards reports whether routed connections of the family are to be covered.
func (c *cover) forwards(f host.Family) bool {
	for k, families := range c.services {
		if k.way == judge.Forward && families[f] != nil {
			return true
		}
	}
	return false
}

// seen says in a sentence what the proposal was made from.
func (c *cover) seen(p planner.Plan, stateful declared.StatefulPolicy) string {
	var flows, sockets int64
	for _, f := range c.l.Connections.All() {
		if f.Protocol != protocol.TCP || f.TCPState != judge.TCPTimeWait && f.TCPState != judge.TCPClose {
			flows++
		}
	}
	for k := range c.listens {
		if k.Protocol == protocol.TCP {
			sockets++
		}
	}
	text := fmt.Sprintf("Made from %s and %s.", words.Plural(int(flows), "tracked connection", "tracked connections"), words.Plural(int(sockets), "listening TCP port", "listening TCP ports"))
	if p.Impact != nil {
		text = strings.TrimSuffix(text, ".") + fmt.Sprintf("; under its plan %d are kept, %d lost.", p.Impact.Kept, p.Impact.Lost)
	}
	if stateful == declared.TranslateStateful && !p.Blocked() && len(c.l.NFT) == 0 {
		return text + " The rules on connection state are translated exactly, so that what was silent at that moment goes on as well. Read the plan before you apply it."
	}
	return text + " What was silent at that moment is not covered: think of DNS, NTP, DHCP, backups and cron jobs, and read the plan before you apply it."
}
