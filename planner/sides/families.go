package sides

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/xtables"
)

// oneFamily names blocks that cover one family of addresses only, where the
// other has the same traffic: accepts without which it no longer passes, and
// notrack blocks that leave it in the table.
func (p *stage) oneFamily(judges []*judge.Judge) {
	has := map[declared.Pos][2]bool{} // rules of which families a block has
	for _, ch := range p.in.Desired.Chains {
		f := slices.Index(host.Families, ch.Family)
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
func uncovered(t *declared.Traffic, has [2]bool, judges []*judge.Judge) *judge.Judge {
	if has[0] == has[1] || ofOneFamily(t) {
		return nil
	}
	for _, j := range judges {
		if j.File == nil && len(j.Stages) > 1 && !has[slices.Index(host.Families, j.Family)] {
			return j
		}
	}
	return nil
}

func ofOneFamily(t *declared.Traffic) bool {
	if len(t.Remote) > 0 && !slices.ContainsFunc(t.Remote, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return true
	}
	switch n, _ := protocol.Number(t.Protocol); n {
	case protocol.ICMP, protocol.ICMPv6:
		return true
	}
	for _, list := range [][]host.PortRange{t.LocalPorts, t.RemotePorts} {
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
func tries(j *judge.Judge, t *declared.Traffic) []*judge.Example {
	in := xtables.Packets{Proto: t.Protocol, DstPorts: xtables.PortSet{Ranges: t.LocalPorts}, SrcPorts: xtables.PortSet{Ranges: t.RemotePorts}}
	out := xtables.Packets{Proto: t.Protocol, DstPorts: xtables.PortSet{Ranges: t.RemotePorts}, SrcPorts: xtables.PortSet{Ranges: t.LocalPorts}}
	if in.Proto != "" {
		in.Proto = protocol.Canonical(t.Protocol)
		out.Proto = in.Proto
	}
	in.In.Name, out.Out.Name = t.Interface, t.Interface
	var list []*judge.Example
	add := func(q xtables.Packets, w judge.Way) {
		if x := j.Example(q, w); x != nil {
			list = append(list, x)
		}
	}
	switch {
	case t.Direction == declared.Forward:
		out.Out.Name = ""
		add(out, judge.Forward)
		return list
	case t.Initiator == declared.LocalSide, len(t.RemotePorts) > 0 && len(t.LocalPorts) == 0:
		add(out, judge.Out)
	case t.Initiator == declared.RemoteSide, len(t.LocalPorts) > 0:
		add(in, judge.In)
	default:
		add(in, judge.In)
		add(out, judge.Out)
	}
	return list
}

func (p *stage) acceptsOneFamily(t *declared.Traffic, j *judge.Judge) {
	for _, x := range tries(j, t) {
		today, end := j.Opens(j.Stages[0], &x.Connection), j.Opens(j.End(), &x.Connection)
		name := judge.ServiceName(x.Proto, judge.ServicePort(x.Proto, x.Orig.DstPort), x.Way)
		if today.Verdict != verdict.Accepted || end.Verdict != verdict.Dropped || p.impactNamesService(j.Family, name) {
			continue
		}
		p.Warn("iptables."+string(j.Family)+".filter", fmt.Sprintf("accept %q covers %s alone: over %s, %s is let through today by %s, and would be dropped by: %s. %s",
			t.Name, otherOf(j.Family), j.Family, name, today.Rule, end.Rule, widen(t, j.Family)), t.Source)
		return
	}
}

func widen(t *declared.Traffic, f host.Family) string {
	if !slices.Contains(t.Families, f) {
		return fmt.Sprintf("To keep it, add %q to the block's families", f)
	}
	name := "IPv4"
	if f == host.IPv6 {
		name = "IPv6"
	}
	return fmt.Sprintf("To keep it, name %s addresses in the block too", name)
}

func otherOf(f host.Family) host.Family { return host.Families[1-slices.Index(host.Families, f)] }

func (p *stage) impactNamesService(f host.Family, service string) bool {
	named := func(g impact.FlowGroup) bool {
		return g.Result == impact.FlowLost && g.Family == f && g.Service == service
	}
	return p.in.Impact != nil && (slices.ContainsFunc(p.in.Impact.Groups, named) || slices.ContainsFunc(p.in.Impact.Services, named))
}

// untracksOneFamily says so where the other family has a service for the same
// traffic, and a rule that asks for tracking.
func (p *stage) untracksOneFamily(t *declared.Traffic, j *judge.Judge) {
	rule := p.asksForTracking(j.Family)
	if rule == nil {
		return
	}
	for _, x := range tries(j, t) {
		end := j.End()
		if !end.Verdict(&x.Packets[0]).Tracked || !end.Verdict(&x.Packets[1]).Tracked || !hasTraffic(j, t, x) {
			continue
		}
		name := strings.TrimSuffix(judge.ServiceName(x.Proto, judge.ServicePort(x.Proto, x.Orig.DstPort), x.Way), "/high ports "+[...]string{"in", "out", "forward", "lo"}[x.Way])
		if len(t.LocalPorts)+len(t.RemotePorts) == 0 {
			name, _, _ = strings.Cut(name, "/")
		}
		p.Warn("iptables."+string(j.Family)+".raw", fmt.Sprintf("notrack %q covers %s alone: over %s, %s stays tracked, as %s asks for, and can still fill the table. %s",
			t.Name, otherOf(j.Family), j.Family, name, rule, strings.Replace(widen(t, j.Family), "To keep it", "To take it out too", 1)), t.Source)
		return
	}
}

// asksForTracking is a live rule of the family on connection state.
func (p *stage) asksForTracking(f host.Family) *verdict.RuleRef {
	for i := range p.in.Live.Rulesets {
		r := &p.in.Live.Rulesets[i]
		for k := range r.Tables {
			t := &r.Tables[k]
			for n := range t.Rules {
				if need := xtables.Needs(t.Name, t.Rules[n].Words); r.Family == f && need >= xtables.NeedState {
					return &verdict.RuleRef{Family: f, Backend: r.Backend, Table: t.Name, Chain: t.Rules[n].Chain, Text: t.Rules[n].Text}
				}
			}
		}
	}
	if rules := nft.Rules(p.in.Live.NFT, f, nft.AsksForTracking); len(rules) > 0 {
		return &rules[0].Ref
	}
	return nil
}

// hasTraffic is whether something listens for the connection in the judge's
// family, or one of its protocol is open.
func hasTraffic(j *judge.Judge, t *declared.Traffic, x *judge.Example) bool {
	inPorts := func(ranges []host.PortRange, port uint16) bool {
		return len(ranges) == 0 || host.InRanges(ranges, port)
	}
	listens := func(s host.Socket) bool {
		return s.Listening && s.Protocol == x.Proto && !s.Local.Addr().IsLoopback() && len(j.ListenAddresses(&s)) > 0 && inPorts(t.LocalPorts, s.Local.Port())
	}
	open := func(f host.Flow) bool {
		return f.Protocol == x.Proto && f.Orig.Src.Is4() == (j.Family == host.IPv4) && !f.Orig.Src.IsLoopback() && inPorts(t.RemotePorts, f.Reply.SrcPort) && len(t.LocalPorts) == 0
	}
	return x.Way != judge.Forward && slices.ContainsFunc(j.Connections.Sockets, listens) || slices.ContainsFunc(j.Connections.All(), open)
}
