package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// entry is a service as an accept block would have it.
type entry struct {
	t       declared.Traffic
	key     serviceKey
	flows   int64
	sockets int
	users   int // addresses of the other side
	kind    remoteKind
	ports   []portCount
}

type portCount struct {
	port  host.PortRange
	flows int64
}

// remoteKind is where a block's remote comes from.
type remoteKind int

const (
	remoteAny    remoteKind = iota // today's rules let anybody
	remoteNet                      // they let these networks
	remoteNow                      // who is connected now
	remoteMany                     // too many to name, and today's rules let them
	remoteSummed                   // too many to name, held in networks
)

// blocks are the accept blocks for all that was learnt, with their comments.
func (c *cover) blocks() ([]declared.Traffic, map[string][]string) {
	var entries []entry
	for k, families := range c.services {
		var list []entry
		for _, f := range host.Families {
			if n := families[f]; n != nil {
				list = append(list, c.entry(k, f, n))
			}
		}
		if len(list) == 2 {
			if both, ok := joinFamilies(list[0], list[1]); ok {
				list = []entry{both}
			}
		}
		entries = append(entries, list...)
	}
	slices.SortFunc(entries, compareEntries)
	entries = c.fewest(joinPorts(entries))
	slices.SortFunc(entries, compareEntries)

	var out []declared.Traffic
	notes := map[string][]string{}
	used := map[string]int{}
	add := func(t declared.Traffic, text ...string) {
		if used[t.Name]++; used[t.Name] > 1 {
			t.Name = fmt.Sprintf("%s-%d", t.Name, used[t.Name])
		}
		out = append(out, t)
		notes["accept "+t.Name] = text
	}
	if len(c.loop) > 0 {
		var n int64
		for _, count := range c.loop {
			n += count
		}
		add(declared.Traffic{Name: "loopback", Interface: "lo", Direction: declared.Both, Families: familiesIn(c.loop)}, fmt.Sprintf("Stands for %s of this host to itself.", words.Plural(int(n), "connection", "connections")))
	}
	for _, e := range entries {
		add(e.t, e.comment())
	}
	for _, f := range host.Families {
		for _, forward := range []bool{false, true} {
			if !c.icmp[icmpKey{f, forward}] {
				continue
			}
			t := declared.Traffic{Name: "icmp", Protocol: "icmp", Direction: declared.Both, Families: []host.Family{f}}
			text := "Errors such as \"fragmentation needed\" were let in by the state of the connection that they are about; dropped, they make large transfers hang. Ping too."
			if f == host.IPv6 {
				t.Name, t.Protocol = "icmpv6", "ipv6-icmp"
				text = "\"Packet too big\" and its like, and the neighbour discovery without which there is no IPv6."
			}
			if forward {
				t.Name, t.Direction = t.Name+"-forward", declared.Forward
				text = "The same for those whose packets are routed."
			}
			add(t, text)
		}
	}
	return out, notes
}

// maxCompared is how many blocks are compared with each other.
const maxCompared = 200

// fewest leaves out the entries of which another one lets all through.
func (c *cover) fewest(entries []entry) []entry {
	if len(entries) > maxCompared {
		return entries
	}
	chains := make([][]declared.Chain, len(entries))
	specs := make([][][]xtables.Packets, len(entries))
	for i, e := range entries {
		d := declared.Desired{Accept: []declared.Traffic{e.t}, Families: host.Families}
		c.render(&d, c.l)
		chains[i] = d.Chains
		for _, ch := range chains[i] {
			var list []xtables.Packets
			for _, r := range ch.Rules {
				list = append(list, xtables.PacketsOf(xtables.Parse(r.Words)))
			}
			specs[i] = append(specs[i], list)
		}
	}
	covers := func(a, b int) bool {
		for n, ch := range chains[b] {
			at := slices.IndexFunc(chains[a], func(o declared.Chain) bool { return o.Family == ch.Family && o.Hook == ch.Hook })
			if at < 0 || slices.ContainsFunc(specs[b][n], func(q xtables.Packets) bool {
				return !slices.ContainsFunc(specs[a][at], func(p xtables.Packets) bool { return p.Covers(q) })
			}) {
				return false
			}
		}
		return true
	}
	gone := make([]bool, len(entries))
	for b := range entries {
		for a := range entries {
			if a != b && !gone[a] && covers(a, b) {
				gone[b] = true
				entries[a].flows, entries[a].sockets = entries[a].flows+entries[b].flows, entries[a].sockets+entries[b].sockets
				entries[a].ports = append(entries[a].ports, entries[b].ports...)
				break
			}
		}
	}
	var out []entry
	for i, e := range entries {
		if !gone[i] {
			out = append(out, e)
		}
	}
	return out
}

func familiesIn[V any](m map[host.Family]V) []host.Family {
	var out []host.Family
	for _, f := range host.Families {
		if _, ok := m[f]; ok {
			out = append(out, f)
		}
	}
	return out
}

// entry is one family's share of a service.
func (c *cover) entry(k serviceKey, f host.Family, n *needs) entry {
	e := entry{key: k, flows: n.flows, sockets: n.sockets, users: len(n.remotes)}
	e.t = declared.Traffic{Protocol: protocol.Name(k.proto), Interface: k.iface, Initiator: k.initiator, Direction: declared.Both, Families: []host.Family{f}}
	if k.way == judge.Forward {
		e.t.Direction = declared.Forward
	}
	addresses := slices.Collect(maps.Keys(n.remotes))
	wide := slices.Collect(maps.Values(n.remotes))
	named := k.way == judge.In && !(k.data && k.rports != host.PortRange{}) // who comes in is who may come in
	switch {
	case !named && len(addresses) <= maxRemotes && !c.l.Connections.Anonymised:
		if e.t.Remote, e.kind = reduced(addresses), remoteNow; e.t.Remote == nil {
			e.kind = remoteAny
		}
	default:
		e.t.Remote = reduced(wide)
		switch {
		case e.t.Remote == nil && !named && len(addresses) > maxRemotes:
			e.kind = remoteMany
		case e.t.Remote == nil:
			e.kind = remoteAny
		case len(e.t.Remote) > maxNetworks:
			e.t.Remote, e.kind = summarised(e.t.Remote), remoteSummed
		case slices.ContainsFunc(e.t.Remote, func(p netip.Prefix) bool { return p.IsSingleIP() }):
			e.kind = remoteNow
		default:
			e.kind = remoteNet
		}
	}
	e.t.Local = summarised(slices.Collect(maps.Keys(n.locals)))
	if k.lports != (host.PortRange{}) {
		e.t.LocalPorts = []host.PortRange{k.lports}
	}
	if k.rports != (host.PortRange{}) {
		e.t.RemotePorts = []host.PortRange{k.rports}
	}
	if len(n.own) > 0 && e.t.LocalPorts == nil {
		e.t.LocalPorts = mergePorts(n.own)
	}
	if k.way != judge.Forward {
		e.t.LocalPorts = c.without(k.proto, e.t.LocalPorts)
	}
	if port, ok := e.port(); ok {
		e.ports = []portCount{{port, e.flows}}
	}
	return e
}

// without takes ports out of ranges that clients' ports come from, where
// something listens that today's rules keep shut.
func (c *cover) without(proto uint8, ranges []host.PortRange) []host.PortRange {
	var shut []uint16
	for k := range c.shut {
		if k.Protocol == proto && !c.clients[k] {
			shut = append(shut, k.Port)
		}
	}
	slices.Sort(shut)
	var out []host.PortRange
	for _, r := range ranges {
		if r.From == r.To {
			out = append(out, r)
			continue
		}
		from := int(r.From)
		for _, p := range shut {
			if int(p) < from || p > r.To {
				continue
			}
			if int(p) > from {
				out = append(out, host.PortRange{From: uint16(from), To: p - 1})
			}
			from = int(p) + 1
		}
		if from <= int(r.To) {
			out = append(out, host.PortRange{From: uint16(from), To: r.To})
		}
	}
	return out
}

// port is the service's.
func (e *entry) port() (host.PortRange, bool) {
	r := e.key.rports
	if e.key.way == judge.In {
		r = e.key.lports
	}
	return r, r != host.PortRange{}
}

func mergePorts(list []host.PortRange) []host.PortRange {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b host.PortRange) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	var out []host.PortRange
	for _, r := range list {
		if n := len(out); n > 0 && int(r.From) <= int(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

// joinFamilies makes one entry of two that differ in the family alone.
func joinFamilies(a, b entry) (entry, bool) {
	alike := (a.t.Remote == nil) == (b.t.Remote == nil) && (a.t.Local == nil) == (b.t.Local == nil) && slices.Equal(a.t.LocalPorts, b.t.LocalPorts)
	if !alike {
		return a, false
	}
	a.t.Remote, a.t.Local = slices.Concat(a.t.Remote, b.t.Remote), slices.Concat(a.t.Local, b.t.Local)
	a.t.Families = slices.Clone(host.Families)
	a.flows, a.sockets, a.users, a.kind = a.flows+b.flows, max(a.sockets, b.sockets), a.users+b.users, max(a.kind, b.kind)
	for i := range a.ports {
		a.ports[i].flows = a.flows
	}
	return a, true
}

// joinPorts makes one entry of those that differ in the service's port alone.
func joinPorts(entries []entry) []entry {
	at := map[string]int{}
	var out []entry
	for _, e := range entries {
		port, ok := e.port()
		if !ok {
			out = append(out, e)
			continue
		}
		rest := e.t
		if e.key.way == judge.In {
			rest.LocalPorts = nil
		} else {
			rest.RemotePorts = nil
		}
		key := fmt.Sprint(e.key.way, e.key.data, e.key.initiator, rest.Protocol, rest.Local, rest.Remote, rest.LocalPorts, rest.RemotePorts, rest.Interface, rest.Direction, rest.Initiator, rest.Families)
		i, known := at[key]
		if !known {
			at[key] = len(out)
			out = append(out, e)
			continue
		}
		o := &out[i]
		if e.key.way == judge.In {
			o.t.LocalPorts = mergePorts(slices.Concat(o.t.LocalPorts, e.t.LocalPorts))
		} else {
			o.t.RemotePorts = mergePorts(append(o.t.RemotePorts, port))
		}
		o.flows, o.sockets, o.users, o.kind = o.flows+e.flows, o.sockets+e.sockets, max(o.users, e.users), max(o.kind, e.kind)
		o.ports = append(o.ports, portCount{port, e.flows})
	}
	for i := range out {
		e := &out[i]
		if e.key.way != judge.In && len(e.t.RemotePorts) > maxPortEntries {
			kept := slices.DeleteFunc(slices.Clone(e.t.RemotePorts), func(r host.PortRange) bool { return r.From >= unprivileged.From })
			if e.t.RemotePorts = mergePorts(append(kept, unprivileged)); len(kept) >= maxPortEntries && e.key.initiator == declared.LocalSide {
				e.t.RemotePorts = nil // whoever calls so many ports calls any
			}
		}
		e.t.Name = e.name()
	}
	return out
}

func compareEntries(a, b entry) int {
	port := func(e entry) host.PortRange { p, _ := e.port(); return p }
	bool2int := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.key.way, b.key.way), cmp.Compare(bool2int(a.key.data), bool2int(b.key.data)), cmp.Compare(a.key.proto, b.key.proto),
		cmp.Compare(port(a).From, port(b).From), cmp.Compare(port(a).To, port(b).To), strings.Compare(fmt.Sprint(a.t), fmt.Sprint(b.t)))
}

// name is a label: "tcp-22-in", "tcp-out" for several ports, "ftp-data-in".
func (e *entry) name() string {
	w := [...]string{"in", "out", "forward", "lo"}[e.key.way]
	proto := e.t.Protocol
	if strings.Trim(proto, "0123456789") == "" {
		proto = "protocol-" + proto
	}
	if e.key.data {
		return "ftp-data-" + w
	}
	if len(e.ports) == 1 {
		return proto + "-" + words.Ports(e.ports[0].port) + "-" + w
	}
	return proto + "-" + w
}

// comment says what a block stands for, and how wide it is and why.
func (e *entry) comment() string {
	var b strings.Builder
	switch {
	case e.flows == 0 && e.sockets == 0:
		b.WriteString("Stands for what a connection tracking helper lets in today; no such connection is open.")
	case e.flows == 0:
		fmt.Fprintf(&b, "Stands for %s with no connection open.", words.Plural(e.sockets, "listening service", "listening services"))
	default:
		fmt.Fprintf(&b, "Stands for %s", words.Plural(int(e.flows), "open connection", "open connections"))
		if n := len(e.ports); n > 1 {
			slices.SortFunc(e.ports, func(a, b portCount) int {
				return cmp.Or(cmp.Compare(b.flows, a.flows), cmp.Compare(a.port.From, b.port.From))
			})
			var list []string
			for _, p := range e.ports[:min(n, 10)] {
				list = append(list, fmt.Sprintf("%s: %d", words.Ports(p.port), p.flows))
			}
			if n > 10 {
				list = append(list, "…")
			}
			fmt.Fprintf(&b, " (%s)", strings.Join(list, ", "))
		}
		b.WriteString(".")
	}
	switch {
	case e.key.way == judge.In && e.key.initiator == declared.LocalSide:
		b.WriteString(" Today's rules let nobody open another one: this lets in what is open, and no first packet.")
	case e.kind == remoteAny && e.key.way != judge.In:
		b.WriteString(" Today's rules let it go anywhere.")
	case e.kind == remoteAny:
		b.WriteString(" Today's rules let anybody in here.")
	case e.kind == remoteNet:
		b.WriteString(" Today's rules let these networks do so.")
	case e.kind == remoteNow && e.key.way == judge.In:
		b.WriteString(" Only who is connected now: today's rules do not say who else may.")
	case e.kind == remoteNow:
		b.WriteString(" The addresses are those of now; leave remote out for any.")
	case e.kind == remoteMany:
		b.WriteString(" To too many addresses to name them; today's rules let it go anywhere.")
	case e.kind == remoteSummed:
		fmt.Fprintf(&b, " %s, held in as few networks as will do: check them.", words.Plural(e.users, "address", "addresses"))
	}
	switch {
	case !e.key.data:
	case e.key.way == judge.In && e.key.rports == (host.PortRange{}):
		b.WriteString(" Passive FTP: set the server to a small range of ports, such as pasv_min_port and pasv_max_port of vsftpd, and write the same range here.")
	case e.key.lports == host.PortRange{From: ftpData, To: ftpData} || e.key.rports == host.PortRange{From: ftpData, To: ftpData}:
		b.WriteString(" Active FTP, which calls back.")
	default:
		b.WriteString(" Opened by a connection tracking helper, such as that of FTP.")
	}
	if e.key.initiator == declared.EitherSide && e.key.way == judge.Out && e.t.Remote == nil && protocol.CarriesPorts(e.key.proto) {
		b.WriteString(" Nothing in such packets shows who began.")
	}
	return b.String()
}
