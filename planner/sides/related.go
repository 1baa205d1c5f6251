package sides

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// icmpErrors names the errors about the host's connections that come in as
// RELATED today, and would not about connections that are not tracked:
// without those that tell of the path MTU, large transfers hang.
func (p *stage) icmpErrors(j *judge.Judge) {
	if len(j.Stages) < 2 {
		return
	}
	kind, typ, code, proto := "fragmentation-needed", uint8(3), uint8(4), uint8(protocol.ICMP)
	block := `accept "icmp" with protocol = "icmp"`
	if j.Family == host.IPv6 {
		kind, typ, code, proto = "packet-too-big", 2, 0, protocol.ICMPv6
		block = `accept "icmpv6" with protocol = "ipv6-icmp"`
	}
	for _, routed := range []bool{false, true} {
		if !stopsTracking(j, routed) {
			continue
		}
		err, ok := fromStranger(j, routed, proto)
		if !ok {
			continue
		}
		err.ICMPType, err.ICMPCode = typ, code
		err.State = verdict.StateRelated
		today := j.Stages[0].Verdict(&err)
		err.State = verdict.StateInvalid
		end := j.End().Verdict(&err)
		if today.Verdict != verdict.Accepted || end.Verdict != verdict.Dropped {
			continue
		}
		whose, remedy := "this host's", block
		if routed {
			whose, remedy = "routed", strings.Replace(block, `" with `, `-routed" with `, 1)+`, direction = "forward"`
		}
		if p.once("icmp", string(j.Family), whose) {
			continue // the same in a saved file
		}
		advice := p.letThrough(end.Rule, owners.Packets{Family: j.Family, Forward: routed, Proto: proto, Types: []string{icmpName(kind)}}, "add "+remedy)
		p.Warn(addressOf(j, "filter"), fmt.Sprintf("ICMP errors about %s connections that are not tracked are not RELATED to anything: %s, which tells of the path MTU and without which large transfers hang, "+
			"is let through today by %s, and would be dropped by: %s. To let it through, %s", whose, kind, today.Rule, owners.Where(&p.in.Live, end.Rule, end.Rule.String()), advice.Text), p.in.Desired.Source, advice.Commands...)
	}
}

// icmpName is nft's name of the type of an error.
func icmpName(kind string) string {
	if kind == "fragmentation-needed" {
		return "destination-unreachable" // of which it is a code
	}
	return kind
}

// letThrough is how what the rule drops is let through: accept, where a block does.
func (p *stage) letThrough(rule *verdict.RuleRef, packets owners.Packets, accept string) owners.Advice {
	if owners.Accepts(p.in.Desired, &p.in.Live, rule) {
		return owners.Advice{Text: accept}
	}
	return owners.ToLetThrough(p.in.Desired, &p.in.Live, rule, []owners.Cut{{Rule: rule, Packets: packets}}, "")
}

// stopsTracking is whether connections of the host itself, or routed ones, are
// tracked today and will not be.
func stopsTracking(j *judge.Judge, routed bool) bool {
	if routed && !j.Routes() {
		return false
	}
	if j.Desired.Mode == declared.Disabled {
		return true
	}
	for _, ref := range j.Untracks {
		for _, x := range j.Examples(ref) {
			if (x.Way == judge.Forward) != routed {
				continue
			}
			packet := &x.Packets[x.Asked]
			if j.Stages[0].Verdict(packet).Tracked && j.End().Verdict(packet).Untracked {
				return true
			}
		}
	}
	return false
}

// fromStranger is a packet to this host, or through it, without ports.
func fromStranger(j *judge.Judge, routed bool, proto uint8) (verdict.Packet, bool) {
	from := j.Stranger()
	in := j.Places.Toward(from)
	if routed {
		return j.Packet(verdict.HookForward, proto, host.Tuple{Src: from, Dst: j.Another()}, in, in), true
	}
	to, _, ok := j.Own(xtables.PrefixSet{}, xtables.InterfaceSet{Name: in, Not: in == verdict.SomeInterface})
	if !ok {
		to, in, ok = j.Own(xtables.PrefixSet{}, xtables.InterfaceSet{})
	}
	return j.Packet(verdict.HookInput, proto, host.Tuple{Src: from, Dst: to}, in, ""), ok
}

func addressOf(j *judge.Judge, table string) string {
	if j.File != nil {
		return "file." + j.File.Path
	}
	return "iptables." + string(j.Family) + "." + table
}

// neighbours names neighbour discovery that no longer passes: without it
// there is no IPv6 at all. Tracking leaves it alone and calls it UNTRACKED
// (net/netfilter/nf_conntrack_proto_icmpv6.c), so that no rule for RELATED
// ever carried it; one for UNTRACKED may, until it goes.
func (p *stage) neighbours(j *judge.Judge) {
	if j.Family != host.IPv6 || len(j.Stages) < 2 {
		return
	}
	near, me := netip.MustParseAddr("fe80::77"), netip.MustParseAddr("fe80::1")
	for _, typ := range []uint8{135, 136} {
		for _, hook := range []verdict.Hook{verdict.HookInput, verdict.HookOutput} {
			t := host.Tuple{Src: near, Dst: me}
			if hook == verdict.HookOutput {
				t = judge.Turned(t)
			}
			nd := j.Packet(hook, protocol.ICMPv6, t, j.Places.Toward(near), j.Places.Toward(near))
			nd.ICMPType, nd.State = typ, verdict.StateUntracked
			today, end := j.Stages[0].Verdict(&nd), j.End().Verdict(&nd)
			if today.Verdict != verdict.Accepted || end.Verdict != verdict.Dropped {
				continue
			}
			if p.once("neighbours") {
				return
			}
			advice := p.letThrough(end.Rule, owners.Packets{Family: j.Family, Proto: protocol.ICMPv6, Types: []string{"nd-neighbor-solicit", "nd-neighbor-advert"}}, `add accept "icmpv6" with protocol = "ipv6-icmp"`)
			p.Block(change.Block{
				Risk: declared.RiskRelated, Address: addressOf(j, "filter"), Where: owners.Where(&p.in.Live, end.Rule, end.Rule.String()),
				Why:      fmt.Sprintf("neighbour discovery, without which nobody reaches this host over IPv6, is let through today by %s, and would be dropped", today.Rule),
				Remedy:   advice.Text,
				Override: true, Source: p.in.Desired.Source, Commands: advice.Commands,
			})
			return
		}
	}
}
