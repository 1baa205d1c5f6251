package planner

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// helper is a conntrack helper: it reads one connection, and lets in others
// that are agreed on there (net/netfilter/nf_conntrack_*.c).
type helper struct {
	name    string // of the module behind nf_conntrack_, and of CT --helper
	aliases []string
	protos  []uint8
	port    uint16 // of the server of the connection that it reads
	data    []dataKind
}

// dataKind is a connection that a helper lets in. A port of 0 is one above 1023.
type dataKind struct {
	name       string
	proto      uint8
	fromServer bool   // who opens it
	server     uint16 // its port of the server
}

var helpers = []helper{
	{"ftp", nil, []uint8{protoTCP}, 21, []dataKind{{"ftp-passive", protoTCP, false, 0}, {"ftp-active", protoTCP, true, 20}}},
	{"tftp", nil, []uint8{protoUDP}, 69, []dataKind{{"tftp-data", protoUDP, true, 0}}},
	{"sip", nil, []uint8{protoUDP, protoTCP}, 5060, []dataKind{{"sip-media", protoUDP, false, 0}}},
	{"irc", nil, []uint8{protoTCP}, 6667, []dataKind{{"irc-dcc", protoTCP, true, 0}}},
	{"h323", []string{"RAS", "Q.931", "H.245"}, []uint8{protoTCP}, 1720, []dataKind{{"h323-control", protoTCP, false, 0}, {"h323-media", protoUDP, false, 0}}},
	{"pptp", nil, []uint8{protoTCP}, 1723, []dataKind{{"pptp-gre", protoGRE, false, 0}}},
	{"amanda", nil, []uint8{protoUDP}, 10080, []dataKind{{"amanda-data", protoTCP, false, 0}}},
	{"sane", nil, []uint8{protoTCP}, 6566, []dataKind{{"sane-data", protoTCP, false, 0}}},
	{"netbios_ns", []string{"netbios-ns"}, []uint8{protoUDP}, 137, []dataKind{{"netbios-answers", protoUDP, true, 137}}},
	{"snmp", nil, []uint8{protoUDP}, 161, []dataKind{{"snmp-answers", protoUDP, true, 161}}},
}

// use is what shows that a helper is at work here.
type use struct {
	where string
	sure  bool // it reads connections that are there, or a rule assigns it
	ways  []way
}

// helpersInUse names the connections that a helper lets in today, and that
// nothing lets in once it no longer sees the connection that it reads.
func (p *stageSides) helpersInUse(judges []*judge) {
	for _, h := range helpers {
		for _, w := range []way{wayIn, wayOut, wayForward} {
			var missing []dataKind
			var found use
			var by *RuleRef
			var family Family
			for _, j := range judges {
				if len(j.stages) < 2 || j.file != nil || len(missing) > 0 {
					continue
				}
				u, ok := usesHelper(j, h)
				if !ok || !slices.Contains(u.ways, w) {
					continue
				}
				if missing, by = dataLost(j, h, w); len(missing) > 0 {
					found, family = u, j.family
				}
			}
			if len(missing) > 0 {
				p.reportHelper(h, w, family, found, missing, by)
			}
		}
	}
}

func (p *stageSides) reportHelper(h helper, w way, f Family, u use, missing []dataKind, by *RuleRef) {
	var names, blocks []string
	for _, d := range missing {
		names = append(names, d.name)
		blocks = append(blocks, d.accept(w))
	}
	role := [...]string{"of clients of this host", "of this host's own calls", "that this host routes"}[w]
	why := fmt.Sprintf("the %s helper lets in the data connections %s today (%s): once %s leaves tracking it no longer reads what ports they use, and they are dropped by: %s",
		h.name, role, strings.Join(names, ", "), service(h.protos[0], h.port, w), by)
	remedy := "add " + strings.Join(blocks, ", and ")
	if !u.sure {
		p.Warn("iptables."+string(f)+".filter", fmt.Sprintf("%s: %s. Where it is used, %s", u.where, why, remedy), p.in.Desired.Source)
		return
	}
	p.Block(Block{
		Risk: RiskRelated, Address: "iptables." + string(f) + ".filter", Where: u.where, Why: why,
		Remedy: remedy, Override: true, Source: p.in.Desired.Source,
	})
}

// accept is the accept block that lets the data connections through.
func (d dataKind) accept(w way) string {
	if d.proto == protoGRE {
		if w == wayForward {
			return fmt.Sprintf(`accept %q with protocol = "gre" and direction = "forward"`, d.name)
		}
		return fmt.Sprintf(`accept %q with protocol = "gre"`, d.name)
	}
	attrs := []string{`protocol = "tcp"`}
	if d.proto == protoUDP {
		attrs[0] = `protocol = "udp"`
	}
	server, client := "local_port", "remote_port"
	if w != wayIn {
		server, client = client, server
	}
	note := ""
	switch {
	case d.server != 0:
		attrs = append(attrs, fmt.Sprintf("%s = %d", server, d.server), client+` = "1024-65535"`)
	case w == wayIn && !d.fromServer:
		attrs = append(attrs, server+` = "49152-65535"`)
		note = " (the ports that the server is told to hand out)"
	default:
		attrs = append(attrs, server+` = "1024-65535"`)
		if d.fromServer {
			attrs = append(attrs, client+` = "1024-65535"`)
		}
	}
	switch {
	case w == wayForward:
		attrs = append(attrs, `direction = "forward"`)
	case d.proto != protoTCP:
	case d.fromServer == (w == wayIn):
		attrs = append(attrs, `initiator = "local"`)
	default:
		attrs = append(attrs, `initiator = "remote"`)
	}
	return fmt.Sprintf("accept %q with %s%s", d.name, strings.Join(attrs, ", "), note)
}

// usesHelper looks for a helper's traces: a rule that assigns it, its module
// where tracking assigns it by itself, and connections to its port.
func usesHelper(j *judge, h helper) (use, bool) {
	var u use
	way := func(w way) {
		if !slices.Contains(u.ways, w) {
			u.ways = append(u.ways, w)
		}
	}
	for _, s := range j.conns.Sockets {
		if s.Listening && s.Local.Port() == h.port && slices.Contains(h.protos, s.Protocol) {
			u.where = fmt.Sprintf("a service that listens on %s", service(s.Protocol, h.port, wayIn))
			way(wayIn)
		}
	}
	expected := false
	for i := range j.conns.Flows {
		f := &j.conns.Flows[i]
		expected = expected || f.Status&StatusExpected != 0
		if f.Reply.SrcPort == h.port && slices.Contains(h.protos, f.Protocol) && f.Orig.Src.Is4() == (j.family == IPv4) {
			w := j.places.way(f.Orig.Src, f.Reply.Src)
			u.where = "connections that are open on " + service(f.Protocol, h.port, w)
			way(w)
		}
	}
	seen := len(u.ways) > 0
	if rule, chain := assigns(j, h); rule != "" {
		u.where, u.sure = rule, true
		if chain != "OUTPUT" {
			if !j.routes() {
				way(wayIn)
			} else {
				way(wayForward)
			}
		}
		if chain != "PREROUTING" {
			way(wayOut)
		}
		return u, true
	}
	module, where := helperModule(j.l, h)
	automatic := automaticHelpers(j.l)
	switch {
	case automatic && seen && (module || j.l.Conntrack.Kind == ConntrackBuiltin), expected && seen:
		u.sure = true
		return u, true
	case automatic && module:
		u.where, u.ways = where, nil
		way(wayIn)
		way(wayOut)
		return u, true
	}
	return u, false
}

// assigns is the first live rule that assigns the helper, and its chain.
func assigns(j *judge, h helper) (rule, chain string) {
	for i := range j.l.Rulesets {
		r := &j.l.Rulesets[i]
		if r.Family != j.family {
			continue
		}
		for _, t := range r.Sections("raw") {
			for k := range t.Rules {
				if !mayNeed("raw", t.Rules[k].Words) {
					continue
				}
				for _, o := range parseSpec(t.Rules[k].Words).topts {
					if o.name == "--helper" && len(o.args) == 1 && h.is(o.args[0]) {
						return Where(r, &t.Rules[k]), t.Rules[k].Chain
					}
				}
			}
		}
	}
	return "", ""
}

func (h helper) is(name string) bool { return name == h.name || slices.Contains(h.aliases, name) }

// helperModule is whether the helper's module is loaded, or will be at boot.
func helperModule(l Live, h helper) (bool, string) {
	for _, m := range l.Modules {
		if m.Name == "nf_conntrack_"+h.name || m.Name == "ip_conntrack_"+h.name {
			return true, "the module " + m.Name
		}
	}
	for _, c := range l.InitConfigs {
		if c.Modules == nil {
			continue
		}
		for _, w := range c.Modules.Words {
			if name := strings.ReplaceAll(w.Text, "-", "_"); name == "nf_conntrack_"+h.name || name == "ip_conntrack_"+h.name {
				return true, fmt.Sprintf("%s:%d: %s", c.Path, c.Modules.Line, w.Text)
			}
		}
	}
	return false, ""
}

// automaticHelpers is whether tracking assigns helpers by port: while the sysctl
// says so, where it is there (until 6.0), and else by default before 4.7.
func automaticHelpers(l Live) bool {
	if v, ok := l.Sysctls["net.netfilter.nf_conntrack_helper"]; ok {
		return v.Value == "1"
	}
	var major, minor int
	n, _ := fmt.Sscanf(l.Host.Kernel, "%d.%d", &major, &minor)
	return n == 2 && (major < 4 || major == 4 && minor < 7)
}

// dataLost are the data connections that pass today and will not, and the rule
// that drops the first of them.
func dataLost(j *judge, h helper, w way) (missing []dataKind, by *RuleRef) {
	control := j.example(packets{proto: strconv.Itoa(int(h.protos[0])), dports: ports(h.port)}, w)
	if control == nil || !j.stages[0].Verdict(&control.packets[0]).Tracked || j.opens(j.stages[0], &control.connection).Verdict == Dropped {
		return nil, nil
	}
	sees := j.d.Mode != Disabled && j.end().Verdict(&control.packets[0]).Tracked && j.end().Verdict(&control.packets[1]).Tracked
	for _, d := range h.data {
		var drop *RuleRef
		passes := false
		for _, port := range dataPorts(j, d) {
			c := dataConnection(j, d, w, port)
			if c == nil {
				continue
			}
			c.packets[0].State = StateRelated
			if j.at(j.stages[0], c, false).Verdict == Dropped {
				passes = true // it does not pass today: nothing is lost
				break
			}
			if !sees {
				c.packets[0].State = StateNew
			}
			end := j.opens(j.end(), c)
			if end.Verdict != Dropped {
				passes = true
				break
			}
			if drop == nil {
				drop = end.Rule
			}
		}
		if !passes && drop != nil {
			missing = append(missing, d)
			if by == nil {
				by = drop
			}
		}
	}
	return missing, by
}

func ports(list ...uint16) portSet {
	var s portSet
	for _, p := range list {
		s.ranges = append(s.ranges, PortRange{p, p})
	}
	return s
}

// dataConnection is one of the kind, of which the server is at the far side
// unless connections to this host are meant.
func dataConnection(j *judge, d dataKind, w way, port uint16) *connection {
	q := packets{proto: strconv.Itoa(int(d.proto)), dports: ports(port), sports: ports(40001)}
	data := w
	if d.fromServer {
		q.dports, q.sports = q.sports, q.dports
		data = map[way]way{wayIn: wayOut, wayOut: wayIn, wayForward: wayForward}[w]
	}
	x := j.example(q, data)
	if x == nil {
		return nil
	}
	return &x.connection
}

// dataPorts are ports to try for the server's: its fixed one, or one that is
// chosen freely, and one of each range that the accepts name, which may be
// what the server is told to use.
func dataPorts(j *judge, d dataKind) []uint16 {
	if d.server != 0 {
		return []uint16{d.server}
	}
	out := []uint16{40000}
	if !carriesPorts(d.proto) {
		return out
	}
	for _, ch := range j.d.ChainsOf(j.family) {
		if ch.Table != "filter" {
			continue
		}
		for _, r := range ch.Rules {
			q := packetsOf(parseSpec(r.Words))
			for _, s := range []portSet{q.sports, q.dports} {
				for _, ports := range s.ranges {
					if !s.not && ports.From < ports.To && ports.To >= 1024 && !slices.Contains(out, max(ports.From, 1024)) {
						out = append(out, max(ports.From, 1024))
					}
				}
			}
		}
	}
	return out
}
