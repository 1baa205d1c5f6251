package sides

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Helper is a conntrack helper: it reads one connection, and lets in others
// that are agreed on there (net/netfilter/nf_conntrack_*.c).
type Helper struct {
	name    string // of the module behind nf_conntrack_, and of CT --helper
	aliases []string
	Protos  []uint8
	Port    uint16 // of the server of the connection that it reads
	data    []DataKind
}

// DataKind is a connection that a helper lets in. A port of 0 is one above 1023.
type DataKind struct {
	name       string
	Proto      uint8
	FromServer bool   // who opens it
	Server     uint16 // its port of the server
}

// Helpers are those that the kernel has.
var Helpers = []Helper{
	{"ftp", nil, []uint8{protocol.TCP}, 21, []DataKind{{"ftp-passive", protocol.TCP, false, 0}, {"ftp-active", protocol.TCP, true, 20}}},
	{"tftp", nil, []uint8{protocol.UDP}, 69, []DataKind{{"tftp-data", protocol.UDP, true, 0}}},
	{"sip", nil, []uint8{protocol.UDP, protocol.TCP}, 5060, []DataKind{{"sip-media", protocol.UDP, false, 0}}},
	{"irc", nil, []uint8{protocol.TCP}, 6667, []DataKind{{"irc-dcc", protocol.TCP, true, 0}}},
	{"h323", []string{"RAS", "Q.931", "H.245"}, []uint8{protocol.TCP}, 1720, []DataKind{{"h323-control", protocol.TCP, false, 0}, {"h323-media", protocol.UDP, false, 0}}},
	{"pptp", nil, []uint8{protocol.TCP}, 1723, []DataKind{{"pptp-gre", protocol.GRE, false, 0}}},
	{"amanda", nil, []uint8{protocol.UDP}, 10080, []DataKind{{"amanda-data", protocol.TCP, false, 0}}},
	{"sane", nil, []uint8{protocol.TCP}, 6566, []DataKind{{"sane-data", protocol.TCP, false, 0}}},
	{"netbios_ns", []string{"netbios-ns"}, []uint8{protocol.UDP}, 137, []DataKind{{"netbios-answers", protocol.UDP, true, 137}}},
	{"snmp", nil, []uint8{protocol.UDP}, 161, []DataKind{{"snmp-answers", protocol.UDP, true, 161}}},
}

// Use is what shows that a helper is at work here.
type Use struct {
	where string
	Sure  bool // it reads connections that are there, or a rule assigns it
	Ways  []judge.Way
}

// helpersInUse names the connections that a helper lets in today, and that
// nothing lets in once it no longer sees the connection that it reads.
func (p *stage) helpersInUse(judges []*judge.Judge) {
	for _, h := range Helpers {
		for _, w := range []judge.Way{judge.In, judge.Out, judge.Forward} {
			var missing []DataKind
			var found Use
			var cuts []owners.Cut
			var by *verdict.RuleRef
			var family host.Family
			for _, j := range judges {
				if len(j.Stages) < 2 || j.File != nil || len(missing) > 0 {
					continue
				}
				u, ok := UsesHelper(j, h)
				if !ok || !slices.Contains(u.Ways, w) {
					continue
				}
				if missing, cuts, by = DataLost(j, h, w); len(missing) > 0 {
					found, family = u, j.Family
				}
			}
			if len(missing) > 0 {
				p.reportHelper(h, w, family, found, missing, cuts, by)
			}
		}
	}
}

func (p *stage) reportHelper(h Helper, w judge.Way, f host.Family, u Use, missing []DataKind, cuts []owners.Cut, by *verdict.RuleRef) {
	var names, blocks []string
	for _, d := range missing {
		names = append(names, d.name)
		blocks = append(blocks, d.accept(w))
	}
	role := [...]string{"of clients of this host", "of this host's own calls", "that this host routes"}[w]
	why := fmt.Sprintf("the %s helper lets in the data connections %s today (%s): once %s leaves tracking it no longer reads what ports they use, and they are dropped by: %s",
		h.name, role, strings.Join(names, ", "), judge.ServiceName(h.Protos[0], h.Port, w), owners.Where(&p.in.Live, by, by.String()))
	remedy := owners.ToLetThrough(p.in.Desired, &p.in.Live, by, cuts, "add "+strings.Join(blocks, ", and "))
	if slices.ContainsFunc(cuts, func(c owners.Cut) bool { return c.Packets.Ports == anyPorts }) {
		remedy.Text += "; fewer ports will do where the server is told which to use"
	}
	if !u.Sure {
		p.Warn("iptables."+string(f)+".filter", fmt.Sprintf("%s: %s. Where it is used, %s", u.where, why, remedy.Text), p.in.Desired.Source, remedy.Commands...)
		return
	}
	p.Block(change.Block{
		Risk: declared.RiskRelated, Address: "iptables." + string(f) + ".filter", Where: u.where, Why: why,
		Remedy: remedy.Text, Override: true, Source: p.in.Desired.Source, Commands: remedy.Commands,
	})
}

// accept is the accept block that lets the data connections through.
func (d DataKind) accept(w judge.Way) string {
	if d.Proto == protocol.GRE {
		if w == judge.Forward {
			return fmt.Sprintf(`accept %q with protocol = "gre" and direction = "forward"`, d.name)
		}
		return fmt.Sprintf(`accept %q with protocol = "gre"`, d.name)
	}
	attrs := []string{`protocol = "tcp"`}
	if d.Proto == protocol.UDP {
		attrs[0] = `protocol = "udp"`
	}
	server, client := "local_port", "remote_port"
	if w != judge.In {
		server, client = client, server
	}
	note := ""
	switch {
	case d.Server != 0:
		attrs = append(attrs, fmt.Sprintf("%s = %d", server, d.Server), client+` = "1024-65535"`)
	case w == judge.In && !d.FromServer:
		attrs = append(attrs, server+` = "49152-65535"`)
		note = " (the ports that the server is told to hand out)"
	default:
		attrs = append(attrs, server+` = "1024-65535"`)
		if d.FromServer {
			attrs = append(attrs, client+` = "1024-65535"`)
		}
	}
	switch {
	case w == judge.Forward:
		attrs = append(attrs, `direction = "forward"`)
	case d.Proto != protocol.TCP:
	case d.FromServer == (w == judge.In):
		attrs = append(attrs, `initiator = "local"`)
	default:
		attrs = append(attrs, `initiator = "remote"`)
	}
	return fmt.Sprintf("accept %q with %s%s", d.name, strings.Join(attrs, ", "), note)
}

// UsesHelper looks for a helper's traces: a rule that assigns it, its module
// where tracking assigns it by itself, and connections to its port.
func UsesHelper(j *judge.Judge, h Helper) (Use, bool) {
	var u Use
	way := func(w judge.Way) {
		if !slices.Contains(u.Ways, w) {
			u.Ways = append(u.Ways, w)
		}
	}
	for _, s := range j.Connections.Sockets {
		if s.Listening && s.Local.Port() == h.Port && slices.Contains(h.Protos, s.Protocol) {
			u.where = fmt.Sprintf("a service that listens on %s", judge.ServiceName(s.Protocol, h.Port, judge.In))
			way(judge.In)
		}
	}
	for _, proto := range h.Protos {
		for _, w := range j.Seen().Ways(proto, h.Port) {
			u.where = "connections that are open on " + judge.ServiceName(proto, h.Port, w)
			way(w)
		}
	}
	expected := j.Seen().Expected
	seen := len(u.Ways) > 0
	if rule, chain := assigns(j, h); rule != "" {
		u.where, u.Sure = rule, true
		if chain != "OUTPUT" {
			if !j.Routes() {
				way(judge.In)
			} else {
				way(judge.Forward)
			}
		}
		if chain != "PREROUTING" {
			way(judge.Out)
		}
		return u, true
	}
	module, where := helperModule(j.Live, h)
	automatic := automaticHelpers(j.Live)
	switch {
	case automatic && seen && (module || j.Live.Conntrack.Kind == host.ConntrackBuiltin), expected && seen:
		u.Sure = true
		return u, true
	case automatic && module:
		u.where, u.Ways = where, nil
		way(judge.In)
		way(judge.Out)
		return u, true
	}
	return u, false
}

// assigns is the first live rule that assigns the helper, and its chain.
func assigns(j *judge.Judge, h Helper) (rule, chain string) {
	for i := range j.Live.Rulesets {
		r := &j.Live.Rulesets[i]
		if r.Family != j.Family {
			continue
		}
		for _, t := range r.Sections("raw") {
			for k := range t.Rules {
				if !xtables.MayNeed("raw", t.Rules[k].Words) {
					continue
				}
				for _, o := range xtables.Parse(t.Rules[k].Words).TargetOptions {
					if o.Name == "--helper" && len(o.Args) == 1 && h.is(o.Args[0]) {
						return xtables.Where(r, &t.Rules[k]), t.Rules[k].Chain
					}
				}
			}
		}
	}
	for i := range j.Live.NFT {
		t := &j.Live.NFT[i]
		for k := range t.Items {
			if t.Items[k].Kind == "ct helper" && h.is(t.Items[k].Text) {
				return nftables.Describe(*t, t.Items[k]), ""
			}
		}
	}
	return "", ""
}

func (h Helper) is(name string) bool { return name == h.name || slices.Contains(h.aliases, name) }

// helperModule is whether the helper's module is loaded, or will be at boot.
func helperModule(l host.Live, h Helper) (bool, string) {
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
func automaticHelpers(l host.Live) bool {
	if v, ok := l.Sysctls["net.netfilter.nf_conntrack_helper"]; ok {
		return v.Value == "1"
	}
	return host.KernelBefore(l.Host.Kernel, 4, 7)
}

// DataLost are the data connections that pass today and will not, what of them
// rules of nftables drop, and the rule that drops the first.
func DataLost(j *judge.Judge, h Helper, w judge.Way) (missing []DataKind, cuts []owners.Cut, by *verdict.RuleRef) {
	control := j.Example(xtables.Packets{Proto: strconv.Itoa(int(h.Protos[0])), DstPorts: ports(h.Port)}, w)
	if control == nil || !j.Stages[0].Verdict(&control.Packets[0]).Tracked || j.Opens(j.Stages[0], &control.Connection).Verdict == verdict.Dropped {
		return nil, nil, nil
	}
	sees := j.Desired.Mode != declared.Disabled && j.End().Verdict(&control.Packets[0]).Tracked && j.End().Verdict(&control.Packets[1]).Tracked
	for _, d := range h.data {
		var drop *verdict.RuleRef
		var dropped *judge.Connection
		passes := false
		for _, port := range dataPorts(j, d) {
			c := dataConnection(j, d, w, port)
			if c == nil {
				continue
			}
			c.Packets[0].State = verdict.StateRelated
			if j.At(j.Stages[0], c, false).Verdict == verdict.Dropped {
				passes = true // it does not pass today: nothing is lost
				break
			}
			if !sees {
				c.Packets[0].State = verdict.StateNew
			}
			end := j.Opens(j.End(), c)
			if end.Verdict != verdict.Dropped {
				passes = true
				break
			}
			if drop == nil {
				drop, dropped = end.Rule, c
			}
		}
		if !passes && drop != nil {
			missing = append(missing, d)
			cuts = append(cuts, d.cuts(j, dropped, drop)...)
			if by == nil {
				by = drop
			}
		}
	}
	return missing, cuts, by
}

// anyPorts are those that whoever opens a connection of data may choose.
var anyPorts = host.PortRange{From: 1024, To: 65535}

// cuts are what rules of nftables drop of such a connection, at whatever ports.
func (d DataKind) cuts(j *judge.Judge, c *judge.Connection, by *verdict.RuleRef) []owners.Cut {
	out := impact.Cuts(j, j.End().Evaluator, c, by)
	for i := range out {
		q := &out[i].Packets
		switch {
		case !protocol.CarriesPorts(d.Proto):
		case d.Server == 0:
			q.Ports = anyPorts
		default:
			q.Ports = host.PortRange{From: d.Server, To: d.Server}
			q.ToPort = q.ToPort != d.FromServer // the server opens it from there
		}
	}
	return out
}

func ports(list ...uint16) xtables.PortSet {
	var s xtables.PortSet
	for _, p := range list {
		s.Ranges = append(s.Ranges, host.PortRange{From: p, To: p})
	}
	return s
}

// dataConnection is one of the kind, of which the server is at the far side
// unless connections to this host are meant.
func dataConnection(j *judge.Judge, d DataKind, w judge.Way, port uint16) *judge.Connection {
	q := xtables.Packets{Proto: strconv.Itoa(int(d.Proto)), DstPorts: ports(port), SrcPorts: ports(40001)}
	data := w
	if d.FromServer {
		q.DstPorts, q.SrcPorts = q.SrcPorts, q.DstPorts
		data = map[judge.Way]judge.Way{judge.In: judge.Out, judge.Out: judge.In, judge.Forward: judge.Forward}[w]
	}
	x := j.Example(q, data)
	if x == nil {
		return nil
	}
	return &x.Connection
}

// dataPorts are ports to try for the server's: its fixed one, or one that is
// chosen freely, and one of each range that the accepts name, which may be
// what the server is told to use.
func dataPorts(j *judge.Judge, d DataKind) []uint16 {
	if d.Server != 0 {
		return []uint16{d.Server}
	}
	out := []uint16{40000}
	if !protocol.CarriesPorts(d.Proto) {
		return out
	}
	for _, ch := range j.Desired.ChainsOf(j.Family) {
		if ch.Table != "filter" {
			continue
		}
		for _, r := range ch.Rules {
			q := xtables.PacketsOf(xtables.Parse(r.Words))
			for _, s := range []xtables.PortSet{q.SrcPorts, q.DstPorts} {
				for _, ports := range s.Ranges {
					if !s.Not && ports.From < ports.To && ports.To >= 1024 && !slices.Contains(out, max(ports.From, 1024)) {
						out = append(out, max(ports.From, 1024))
					}
				}
			}
		}
	}
	return out
}
