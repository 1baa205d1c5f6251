package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
)

// kind is a kind of packets by what tracking makes of them.
type kind struct {
	proto   string // its class
	name    string
	answers bool
	later   bool // goes the way of what begins the conversation
	errors  bool // of ICMP
	isICMP  bool
	strays  bool // of no conversation
}

// difference is what twins match that the rule did not, and what they do not.
type difference struct{ wider, narrower []kind }

func names(kinds []kind) string {
	var out []string
	for _, k := range kinds {
		if !slices.Contains(out, k.name) {
			out = append(out, k.name)
		}
	}
	return listed(out)
}

// listed is a list as people say it.
func listed(names []string) string {
	if n := len(names) - 1; n > 0 {
		return strings.Join(names[:n], ", ") + " and " + names[n]
	}
	return strings.Join(names, "")
}

// sample is a packet of a kind.
type sample struct {
	kind
	verdict.Packet
}

// compare holds twins against the rule: with tracking, which knows the state of
// each packet, and without. What can be compared apart from the rest of the rule
// is; addresses and ports take part where they show what tracking knew.
func (t *Translator) compare(w *work, twins []host.Rule) difference {
	wide := len(w.ask.tuples) > 0 || w.ask.way != eitherWay
	rule := essence(&w.l, wide)
	key := string(w.in.Family) + "\n" + rule
	var stateless []string
	for i := range twins {
		l, _ := layoutOf(&twins[i])
		s := essence(&l, wide)
		stateless = append(stateless, s)
		key += "\n" + s
	}
	for _, c := range w.touched {
		key += "\n " + c.proto
	}
	if !w.full || w.errors != nil {
		key += fmt.Sprintf("\npart %t", w.errors != nil)
	}
	d, ok := t.proved[key]
	if !ok {
		d = w.difference(rule, stateless, wide)
		t.proved[key] = d
	}
	return difference{slices.Clone(d.wider), slices.Clone(d.narrower)}
}

// essence is what of a rule is compared, as a rule that accepts.
func essence(l *layout, wide bool) string {
	e := layout{tail: "-j ACCEPT"}
	for _, p := range l.head {
		if p.Name == "-p" || wide && (p.Name == "-s" || p.Name == "-d") {
			e.head = append(e.head, p)
		}
	}
	for _, g := range l.groups {
		if !g.isState() && !ofProtocol(g.module) && !(wide && g.module == "multiport") {
			continue
		}
		kept := group{module: g.module}
		for _, p := range g.parts {
			if wide || p.Name != "--sport" && p.Name != "--dport" && p.Name != "--tcp-option" {
				kept.parts = append(kept.parts, p)
			}
		}
		if len(kept.parts) > 0 {
			e.groups = append(e.groups, kept)
		}
	}
	return e.text()
}

// difference tries every kind of packet on the rule and on the twins.
func (w *work) difference(rule string, twins []string, wide bool) (d difference) {
	before := judges(w.in.Family, []string{rule})
	if !w.full {
		twins = append(slices.Clip(twins), rule) // which sees errors about what is not tracked as INVALID
	}
	after := judges(w.in.Family, twins)
	for _, s := range w.samples(wide) {
		p := s.Packet
		had := before.Verdict(&p).Verdict == verdict.Accepted
		if p.State = verdict.StateUntracked; w.partly(s.kind) {
			p.State = verdict.StateInvalid
		}
		has := after.Verdict(&p).Verdict == verdict.Accepted
		switch {
		case has && !had && !s.strays && !slices.Contains(d.wider, s.kind):
			d.wider = append(d.wider, s.kind)
		case had && !has && !slices.Contains(d.narrower, s.kind):
			d.narrower = append(d.narrower, s.kind)
		}
	}
	return d
}

// partly is whether packets of the kind are still tracked though others of the
// rule are not: errors of ICMP about those.
func (w *work) partly(k kind) bool {
	return k.errors && w.errors != nil
}

// judges compiles rules as a chain that drops the rest.
func judges(f host.Family, rules []string) *verdict.Evaluator {
	table := host.Table{Name: "filter", Chains: []host.ChainDecl{{Name: "INPUT", Policy: "DROP"}}}
	for _, text := range rules {
		r := layout{tail: text}
		table.Rules = append(table.Rules, r.rule("INPUT"))
	}
	c := verdict.NewCompiler(f, verdict.Facts{}, false)
	return c.Evaluator([]*verdict.Table{c.Table(verdict.TableID{Table: "filter"}, xt.XTables(f), xt.Sources("filter", []*host.Table{&table}))})
}

const (
	answered = host.StatusSeenReply | host.StatusConfirmed
	assured  = answered | host.StatusAssured
)

// samples are packets of every kind that the rule may match and that leave
// tracking.
func (w *work) samples(wide bool) (out []sample) {
	for _, ends := range w.conversations(wide) {
		add := func(k kind, p verdict.Packet, state verdict.State, back bool, status uint32) {
			p.State, p.IsReply, p.Status = state, back, status
			p.Known = verdict.KnownReply | verdict.KnownStatus | verdict.KnownTuples
			p.Orig, p.Reply = ends, host.Tuple{Src: ends.Dst, Dst: ends.Src, SrcPort: ends.DstPort, DstPort: ends.SrcPort}
			if p.Tuple = p.Orig; back {
				p.Tuple = p.Reply
			}
			out = append(out, sample{k, p})
		}
		for _, c := range w.touched {
			w.ofProtocol(c.proto, add)
		}
		if w.errors != nil {
			w.icmpErrors(add)
		}
	}
	return out
}

type adder func(k kind, p verdict.Packet, state verdict.State, back bool, status uint32)

// ofProtocol are the packets of one conversation of a protocol, and strays.
func (w *work) ofProtocol(proto string, add adder) {
	switch proto {
	case "tcp":
		p := verdict.Packet{Protocol: protocol.TCP}
		for n := range 32 {
			p.TCPFlags = flagsAt(n)
			switch {
			case !validFlags(p.TCPFlags):
				add(kind{proto: proto, name: "flags that no TCP sends", strays: true}, p, verdict.StateInvalid, false, 0)
			case p.TCPFlags&(verdict.TCPSyn|verdict.TCPAck) == verdict.TCPSyn:
				add(kind{proto: proto, name: "what opens connections of TCP"}, p, verdict.StateNew, false, 0)
			case p.TCPFlags&verdict.TCPSyn != 0:
				add(kind{proto: proto, name: "the first answer of TCP", answers: true}, p, verdict.StateEstablished, true, answered)
			default:
				add(kind{proto: proto, name: "open connections of TCP", answers: true}, p, verdict.StateEstablished, false, assured)
				add(kind{proto: proto, name: "open connections of TCP", answers: true}, p, verdict.StateEstablished, true, assured)
			}
		}
	case "icmp", "ipv6-icmp":
		types := icmpTypesOf(w.in.Family)
		p := verdict.Packet{Protocol: protocol.ICMP}
		if w.in.Family == host.IPv6 {
			p.Protocol = protocol.ICMPv6
		}
		for _, t := range types.asks {
			p.ICMPType = t
			add(kind{proto: proto, name: "pings", isICMP: true}, p, verdict.StateNew, false, 0)
			add(kind{proto: proto, name: "all pings but the first", answers: true, later: true, isICMP: true}, p, verdict.StateEstablished, false, answered)
		}
		for _, t := range types.answers {
			p.ICMPType = t
			add(kind{proto: proto, name: "answers to pings", answers: true, isICMP: true}, p, verdict.StateEstablished, true, answered)
		}
		w.icmpErrors(add)
		if w.in.Family == host.IPv6 {
			for t := uint8(133); t <= 137; t++ {
				p.ICMPType = t
				add(kind{proto: proto, name: "neighbour discovery", isICMP: true}, p, verdict.StateUntracked, false, 0)
			}
		}
	default:
		number, ok := protocol.Number(proto)
		name := strings.ToUpper(proto)
		if !ok {
			number, name = 47, "protocols other than TCP, UDP and ICMP"
		}
		begins := "what begins a conversation of " + name
		answer := "answers of " + name
		if !ok {
			begins, answer = name, name
		}
		p := verdict.Packet{Protocol: number}
		add(kind{proto: proto, name: begins}, p, verdict.StateNew, false, 0)
		add(kind{proto: proto, name: answer, answers: true}, p, verdict.StateEstablished, true, answered)
	}
}

// icmpErrors are those about a conversation.
func (w *work) icmpErrors(add adder) {
	p := verdict.Packet{Protocol: protocol.ICMP}
	if w.in.Family == host.IPv6 {
		p.Protocol = protocol.ICMPv6
	}
	for _, t := range icmpTypesOf(w.in.Family).errors {
		p.ICMPType = t
		add(kind{proto: icmpName(w.in.Family), name: "errors of ICMP", errors: true, isICMP: true}, p, verdict.StateRelated, false, assured)
	}
}

// conversations are between addresses and ports that the rule names and others,
// where they take part, opened by either side. A port below servers is that of
// who is called.
func (w *work) conversations(wide bool) []host.Tuple {
	hosts := []netip.Addr{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("198.51.100.77")}
	if w.in.Family == host.IPv6 {
		hosts = []netip.Addr{netip.MustParseAddr("2001:db8:ffff::77"), netip.MustParseAddr("2001:db8:fffe::77")}
	}
	ports := []uint16{443}
	if !wide {
		return []host.Tuple{{Src: hosts[0], Dst: hosts[1], SrcPort: 40000, DstPort: ports[0]}}
	}
	clients := []uint16{40000}
	port := func(list string) {
		for one := range strings.SplitSeq(list, ",") {
			from, _, _ := strings.Cut(one, ":")
			if n, err := strconv.ParseUint(from, 10, 16); err == nil {
				ports = append(ports, uint16(n))
				if n >= servers {
					clients = append(clients, uint16(n))
				}
			}
		}
	}
	address := func(text string) {
		if p, err := netip.ParsePrefix(text); err == nil {
			hosts = append(hosts, p.Addr())
		} else if a, err := netip.ParseAddr(text); err == nil {
			hosts = append(hosts, a)
		}
	}
	for _, name := range []string{"-s", "-d"} {
		if o := w.l.option_(name); len(o.Args) == 1 {
			address(o.Args[0])
		}
	}
	for _, name := range []string{"--sport", "--dport", "--sports", "--dports"} {
		if o := w.l.option_(name); len(o.Args) == 1 {
			port(o.Args[0])
		}
	}
	for _, t := range w.ask.tuples {
		if t.port {
			port(t.arg)
		} else {
			address(t.arg)
		}
	}
	var out []host.Tuple
	for _, a := range hosts {
		for _, b := range hosts {
			for _, from := range clients {
				for _, to := range ports {
					if a != b {
						out = append(out, host.Tuple{Src: a, Dst: b, SrcPort: from, DstPort: to})
					}
				}
			}
		}
	}
	return out
}
