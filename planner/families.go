package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// oneFamily names blocks that cover one family of addresses only, where the
// other has the same traffic: accepts without which it no longer passes, and
// notrack blocks that leave it in the table.
func (p *stageSides) oneFamily(judges []*judge) {
	has := map[Pos][2]bool{} // rules of which families a block has
	for _, ch := range p.in.Desired.Chains {
		f := slices.Index(Families, ch.Family)
		for _, r := range ch.Rules {
			of := has[r.Source]
			of[f] = true
			has[r.Source] = of
		}
	}
	for i := range p.in.Desired.Accept {
		t := &p.in.Desired.Accept[i]
		if j := uncovered(t, has[t.Source], judges); j != nil {
			p.acceptsOneFamily(t, j)
		}
	}
	for i := range p.in.Desired.Notrack {
		t := &p.in.Desired.Notrack[i]
		if j := uncovered(t, has[t.Source], judges); j != nil {
			p.untracksOneFamily(t, j)
		}
	}
}

// uncovered judges the family that the block has no rules for. A block that
// names who is at the other end, or traffic that one family alone has, means
// just that.
func uncovered(t *Traffic, has [2]bool, judges []*judge) *judge {
	if has[0] == has[1] || ofOneFamily(t) {
		return nil
	}
	for _, j := range judges {
		if j.file == nil && len(j.stages) > 1 && !has[slices.Index(Families, j.family)] {
			return j
		}
	}
	return nil
}

func ofOneFamily(t *Traffic) bool {
	if len(t.Remote) > 0 && !slices.ContainsFunc(t.Remote, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return true
	}
	switch n, _ := ProtocolNumber(t.Protocol); n {
	case protoICMP, protoICMPv6:
		return true
	}
	for _, list := range [][]PortRange{t.LocalPorts, t.RemotePorts} {
		for _, r := range list {
			switch r.From { // DHCP and DHCPv6
			case 67, 68, 546, 547:
				return true
			}
		}
	}
	return false
}

// tries are connections that the block is about, in the judge's family.
func tries(j *judge, t *Traffic) []*example {
	in := packets{proto: t.Protocol, dports: portSet{ranges: t.LocalPorts}, sports: portSet{ranges: t.RemotePorts}}
	out := packets{proto: t.Protocol, dports: portSet{ranges: t.RemotePorts}, sports: portSet{ranges: t.LocalPorts}}
	if in.proto != "" {
		in.proto = canonicalProtocol(t.Protocol)
		out.proto = in.proto
	}
	in.in.name, out.out.name = t.Interface, t.Interface
	var list []*example
	add := func(q packets, w way) {
		if x := j.example(q, w); x != nil {
			list = append(list, x)
		}
	}
	switch {
	case t.Direction == Forward:
		out.out.name = ""
		add(out, wayForward)
		return list
	case t.Initiator == LocalSide, len(t.RemotePorts) > 0 && len(t.LocalPorts) == 0:
		add(out, wayOut)
	case t.Initiator == RemoteSide, len(t.LocalPorts) > 0:
		add(in, wayIn)
	default:
		add(in, wayIn)
		add(out, wayOut)
	}
	return list
}

func (p *stageSides) acceptsOneFamily(t *Traffic, j *judge) {
	for _, x := range tries(j, t) {
		today, end := j.opens(j.stages[0], &x.connection), j.opens(j.end(), &x.connection)
		name := service(x.proto, servicePort(x.proto, x.orig.DstPort), x.way)
		if today.Verdict != Accepted || end.Verdict != Dropped || p.impactNamesService(j.family, name) {
			continue
		}
		p.Warn("iptables."+string(j.family)+".filter", fmt.Sprintf("accept %q covers %s alone: over %s, %s is let through today by %s, and would be dropped by: %s. %s",
			t.Name, otherOf(j.family), j.family, name, today.Rule, end.Rule, widen(t, j.family)), t.Source)
		return
	}
}

func widen(t *Traffic, f Family) string {
	if !slices.Contains(t.Families, f) {
		return fmt.Sprintf("To keep it, add %q to the block's families", f)
	}
	name := "IPv4"
	if f == IPv6 {
		name = "IPv6"
	}
	return fmt.Sprintf("To keep it, name %s addresses in the block too", name)
}

func otherOf(f Family) Family { return Families[1-slices.Index(Families, f)] }

func (p *stageSides) impactNamesService(f Family, service string) bool {
	named := func(g FlowGroup) bool { return g.Result == FlowLost && g.Family == f && g.Service == service }
	return p.in.Impact != nil && (slices.ContainsFunc(p.in.Impact.Groups, named) || slices.ContainsFunc(p.in.Impact.Services, named))
}

// untracksOneFamily says so where the other family has a service for the same
// traffic, and a rule that asks for tracking.
func (p *stageSides) untracksOneFamily(t *Traffic, j *judge) {
	rule := p.asksForTracking(j.family)
	if rule == nil {
		return
	}
	for _, x := range tries(j, t) {
		end := j.end()
		if !end.Verdict(&x.packets[0]).Tracked || !end.Verdict(&x.packets[1]).Tracked || !hasTraffic(j, t, x) {
			continue
		}
		name := strings.TrimSuffix(service(x.proto, servicePort(x.proto, x.orig.DstPort), x.way), "/high ports "+[...]string{"in", "out", "forward", "lo"}[x.way])
		if len(t.LocalPorts)+len(t.RemotePorts) == 0 {
			name, _, _ = strings.Cut(name, "/")
		}
		p.Warn("iptables."+string(j.family)+".raw", fmt.Sprintf("notrack %q covers %s alone: over %s, %s stays tracked, as %s asks for, and can still fill the table. %s",
			t.Name, otherOf(j.family), j.family, name, rule, strings.Replace(widen(t, j.family), "To keep it", "To take it out too", 1)), t.Source)
		return
	}
}

// asksForTracking is a live rule of the family on connection state.
func (p *stageSides) asksForTracking(f Family) *RuleRef {
	for i := range p.in.Live.Rulesets {
		r := &p.in.Live.Rulesets[i]
		for k := range r.Tables {
			t := &r.Tables[k]
			for n := range t.Rules {
				if need := needsOf(t.Name, t.Rules[n].Words); r.Family == f && need >= needState {
					return &RuleRef{Family: f, Backend: r.Backend, Table: t.Name, Chain: t.Rules[n].Chain, Text: t.Rules[n].Text}
				}
			}
		}
	}
	return nil
}

// hasTraffic is whether something listens for the connection in the judge's
// family, or one of its protocol is open.
func hasTraffic(j *judge, t *Traffic, x *example) bool {
	inPorts := func(ranges []PortRange, port uint16) bool { return len(ranges) == 0 || inPorts(ranges, port) }
	listens := func(s Socket) bool {
		return s.Listening && s.Protocol == x.proto && !s.Local.Addr().IsLoopback() && len(j.listenAddresses(&s)) > 0 && inPorts(t.LocalPorts, s.Local.Port())
	}
	open := func(f Flow) bool {
		return f.Protocol == x.proto && f.Orig.Src.Is4() == (j.family == IPv4) && !f.Orig.Src.IsLoopback() && inPorts(t.RemotePorts, f.Reply.SrcPort) && len(t.LocalPorts) == 0
	}
	return x.way != wayForward && slices.ContainsFunc(j.conns.Sockets, listens) || slices.ContainsFunc(j.conns.Flows, open)
}
