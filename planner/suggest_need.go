package planner

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// DefaultEphemeral is the range from which the kernel takes the ports of
// connections that it opens (net.ipv4.ip_local_port_range).
var DefaultEphemeral = PortRange{32768, 60999}

// unprivileged are the ports that any program may take.
var unprivileged = PortRange{1024, 65535}

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
	way       way
	proto     uint8
	initiator Initiator
	iface     string
	lports    PortRange // of this side, or of who opens a routed connection; zero: any
	rports    PortRange // of the other side
	data      bool      // opened by a connection tracking helper
}

// needs are what a service needs in one family.
type needs struct {
	flows   int64
	sockets int                           // that listen, and are lost
	own     []PortRange                   // ports of this side's clients, where they matter
	remotes map[netip.Prefix]netip.Prefix // the other side's: each address to the widest network that today's rules treat alike
	locals  map[netip.Prefix]bool         // this side's; the zero length is any
}

// cover collects what a plan would lose and makes accept blocks of it.
type cover struct {
	l         Live
	render    Renderer
	ephemeral PortRange
	services  map[serviceKey]map[Family]*needs
	listens   map[portKey]bool // sockets of this host
	clients   map[portKey]bool // ports of this host that connections of its own have
	ifaces    map[string]bool  // beside lo
	loop      map[Family]int64
	icmp      map[icmpKey]bool
	counted   map[string]bool // connections that count already
	alike     map[alikeKey]bool
	named     map[Family][]netip.Prefix // networks that rules and interfaces name, the widest first
	shut      map[portKey]bool          // ports that are listened on, and closed to strangers today
}

// icmpKey is ICMP of one family, to and from this host or through it.
type icmpKey struct {
	family  Family
	forward bool
}

func newCover(l Live, render Renderer) *cover {
	c := &cover{
		l: l, render: render, ephemeral: l.Connections.Ephemeral, services: map[serviceKey]map[Family]*needs{}, listens: map[portKey]bool{}, clients: map[portKey]bool{}, ifaces: map[string]bool{},
		loop: map[Family]int64{}, icmp: map[icmpKey]bool{}, counted: map[string]bool{}, alike: map[alikeKey]bool{}, named: map[Family][]netip.Prefix{}, shut: map[portKey]bool{},
	}
	if c.ephemeral.From == 0 || c.ephemeral.To < c.ephemeral.From {
		c.ephemeral = DefaultEphemeral
	}
	for _, s := range l.Connections.Sockets {
		if s.Listening {
			c.listens[portKey{s.Protocol, s.Local.Port()}] = true
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
					for p := range networksOf(l.Rulesets[i].Tables[k].Rules[n].Words, dst, l.Connections.Sets) {
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
		f := IPv6
		if p.Addr().Is4() {
			f = IPv4
		}
		c.named[f] = append(c.named[f], p.Masked())
	}
}

// learn adds what the plan for d would lose. It reports whether there is
// anything that was not covered before.
func (c *cover) learn(d Desired, l Live, plan Plan) bool {
	judges := KernelJudges(d, l, StepsOf(plan.Changes), nil)
	news := false
	for _, f := range Families {
		j := judges.Of(f)
		if j == nil || len(j.stages) < 2 {
			continue
		}
		j.each(1, func(_ int, conn *connection) {
			fate, ok := decide(j, conn)
			if !ok || conn.translated {
				return
			}
			switch {
			case fate.result == FlowLost:
			case fate.result == FlowUnknown && j.at(j.stages[0], conn, false).Verdict == Accepted:
			default:
				return
			}
			news = c.flow(j, conn) || news
		})
		news = c.silent(j) || news
		news = c.helped(j) || news
		j.knock(func(s *Socket, visits []visited) { news = c.socket(j, s, visits) || news })
	}
	return news
}

// service returns what is known of a service, and whether it is new.
func (c *cover) service(k serviceKey, f Family) (n *needs, news bool) {
	if c.services[k] == nil {
		c.services[k] = map[Family]*needs{}
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
func (c *cover) flow(j *judge, conn *connection) bool {
	id := fmt.Sprint(conn.proto, conn)
	again := c.counted[id]
	c.counted[id] = true
	switch {
	case conn.way == wayLoop:
		c.loop[j.family]++
		return !again
	case conn.proto == protoICMP || conn.proto == protoICMPv6:
		news := !c.icmp[icmpKey{j.family, conn.way == wayForward}]
		c.icmp[icmpKey{j.family, conn.way == wayForward}] = true
		return news
	}
	at := c.orient(conn)
	local, wide := c.width(j, &at)
	n, news := c.service(at.key, j.family)
	if again && !news {
		return false // nothing more can be done for it
	}
	n.flows++
	if at.own != (PortRange{}) && !slices.Contains(n.own, at.own) {
		n.own = append(n.own, at.own)
	}
	n.add(netip.PrefixFrom(at.remote, at.remote.BitLen()), wide, local)
	return true
}

// oriented is a connection from the host's point of view.
type oriented struct {
	key           serviceKey
	open          Tuple     // from who opens it
	in, out       string    // interfaces of its first packet
	own           PortRange // of this side's end, where it is not in the key
	local, remote netip.Addr
}

// orient tells the service from who uses it. Connections that were picked up
// in the middle can stand the wrong way round in the table: a port of this host
// that something listens on is the service then.
func (c *cover) orient(conn *connection) oriented {
	first := &conn.packets[0]
	at := oriented{key: serviceKey{way: conn.way, proto: conn.proto}, open: conn.orig, in: first.In, out: first.Out}
	src, dst := conn.orig.SrcPort, conn.orig.DstPort
	listens := func(port uint16) bool { return c.listens[portKey{conn.proto, port}] }
	data := first.Known&KnownStatus != 0 && first.Status&StatusExpected != 0
	turned := false
	switch {
	case data || !carriesPorts(conn.proto):
	case conn.way == wayIn:
		turned = !listens(dst) && c.isEphemeral(dst) && !c.isEphemeral(src)
	case conn.way == wayOut:
		turned = listens(src) && c.isEphemeral(dst) && src < dst && (conn.proto == protoTCP || src < unprivileged.From)
	}
	if turned {
		at.open = Tuple{conn.orig.Dst, conn.orig.Src, dst, src}
		src, dst = dst, src
		at.in, at.out = at.out, at.in
		at.key.way = map[way]way{wayIn: wayOut, wayOut: wayIn}[conn.way]
	}
	k := &at.key
	k.data = data
	at.local, at.remote, k.iface = at.open.Src, at.open.Dst, at.out
	if k.way == wayIn {
		at.local, at.remote, k.iface = at.open.Dst, at.open.Src, at.in
	}
	if conn.proto == protoTCP {
		k.initiator = LocalSide
		if k.way == wayIn {
			k.initiator = RemoteSide
		}
	}
	switch {
	case !carriesPorts(conn.proto):
	case k.way == wayIn:
		k.lports = c.servicePort(dst, data)
		if data {
			c.clients[portKey{conn.proto, dst}] = true // nobody else's business
		}
		if data && src == ftpData {
			k.rports = PortRange{ftpData, ftpData}
		}
	default:
		k.rports = c.servicePort(dst, data)
		if k.rports == c.ephemeral {
			k.rports = unprivileged // the other side's range is its own
		}
		switch {
		case data && src == ftpData:
			k.lports = PortRange{ftpData, ftpData}
		case conn.proto == protoTCP: // initiator keeps others out
		case src < unprivileged.From:
			at.own = PortRange{src, src}
		case c.isEphemeral(src) && k.way == wayOut:
			at.own = c.ephemeral
		default:
			at.own = unprivileged
		}
		if k.way == wayOut {
			c.clients[portKey{conn.proto, src}] = true
		}
	}
	return at
}

func (c *cover) isEphemeral(p uint16) bool { return p >= c.ephemeral.From && p <= c.ephemeral.To }

// servicePort is the port, or the range that it was taken from by chance.
func (c *cover) servicePort(p uint16, chance bool) PortRange {
	switch {
	case !chance || p < unprivileged.From:
		return PortRange{p, p}
	case c.isEphemeral(p):
		return c.ephemeral
	}
	return unprivileged
}

// socket adds a listening service that strangers, or some network, would no
// longer reach.
func (c *cover) socket(j *judge, s *Socket, visits []visited) bool {
	port := PortRange{s.Local.Port(), s.Local.Port()}
	at := portKey{s.Protocol, s.Local.Port()}
	if s.Protocol != protoTCP && at.port >= unprivileged.From && c.clients[at] {
		return false // an unconnected socket of a client
	}
	news := false
	for _, v := range visits {
		from := v.c.orig.Src
		if v.today.Verdict == Dropped && from == j.stranger() {
			c.shut[at] = true
		}
		if v.today.Verdict != Accepted || v.end.Verdict != Dropped {
			continue
		}
		o := oriented{key: serviceKey{way: wayIn, proto: s.Protocol, iface: v.c.packets[0].In, lports: port}, open: v.c.orig, in: v.c.packets[0].In, local: v.c.orig.Dst, remote: from}
		if s.Protocol == protoTCP {
			o.key.initiator = RemoteSide
		}
		local, wide := c.width(j, &o)
		n, fresh := c.service(o.key, j.family)
		n.sockets = 1
		news = n.add(netip.PrefixFrom(from, from.BitLen()), wide, local) || fresh || news
	}
	return news
}

// silent adds what no connection shows: errors of ICMP, which belong to other
// connections, and neighbour discovery.
func (c *cover) silent(j *judge) bool {
	related, discovery, proto := []uint8{3, 11}, []uint8(nil), uint8(protoICMP)
	if j.family == IPv6 {
		related, discovery, proto = []uint8{2, 1, 3}, []uint8{133, 134, 135, 136}, protoICMPv6
	}
	loses := func(forward bool, tries func(Packet) []Packet, kinds []uint8, state State) bool {
		for _, kind := range kinds {
			for _, p := range tries(Packet{Protocol: proto, State: state, ICMPType: kind, ICMPCode: fragmentationNeeded(proto, kind)}) {
				if j.stages[0].Verdict(&p).Verdict == Accepted && j.stages[len(j.stages)-1].Verdict(&p).Verdict == Dropped {
					c.icmp[icmpKey{j.family, forward}] = true
					return true
				}
			}
		}
		return false
	}
	owns := j.doors()
	mine := func(p Packet) (out []Packet) {
		for _, own := range owns {
			in, back := p, p
			in.Src, in.Dst, in.In, in.Hook = j.stranger(), own.Prefix.Addr(), own.Interface, HookInput
			back.Src, back.Dst, back.Out, back.Hook = in.Dst, in.Src, own.Interface, HookOutput
			out = append(out, in, back)
		}
		return out
	}
	through := func(p Packet) (out []Packet) {
		for _, from := range owns {
			for _, to := range owns {
				if from.Interface != to.Interface {
					p.Src, p.Dst, p.In, p.Out, p.Hook = j.stranger(), to.Prefix.Addr().Next(), from.Interface, to.Interface, HookForward
					out = append(out, p)
				}
			}
		}
		return out
	}
	news := false
	if !c.icmp[icmpKey{j.family, false}] {
		news = loses(false, mine, related, StateRelated) || loses(false, mine, discovery, StateUntracked)
	}
	if !c.icmp[icmpKey{j.family, true}] && c.forwards(j.family) {
		news = loses(true, through, related, StateRelated) || news
	}
	return news
}

func fragmentationNeeded(proto, kind uint8) uint8 {
	if proto == protoICMP && kind == 3 {
		return 4
	}
	return 0
}

// forwards reports whether routed connections of the family are to be covered.
func (c *cover) forwards(f Family) bool {
	for k, families := range c.services {
		if k.way == wayForward && families[f] != nil {
			return true
		}
	}
	return false
}

// seen says in a sentence what the proposal was made from.
func (c *cover) seen(p Plan) string {
	var flows, sockets int64
	for _, f := range c.l.Connections.Flows {
		if f.Protocol != protoTCP || f.TCPState != ctTimeWait && f.TCPState != ctClose {
			flows++
		}
	}
	for k := range c.listens {
		if k.proto == protoTCP {
			sockets++
		}
	}
	text := fmt.Sprintf("Made from %s and %s.", plural(int(flows), "tracked connection", "tracked connections"), plural(int(sockets), "listening TCP port", "listening TCP ports"))
	if p.Impact != nil {
		text = strings.TrimSuffix(text, ".") + fmt.Sprintf("; under its plan %d are kept, %d lost.", p.Impact.Kept, p.Impact.Lost)
	}
	return text + " What was silent at that moment is not covered: think of DNS, NTP, DHCP, backups and cron jobs, and read the plan before you apply it."
}
