package planner

import (
	"fmt"
	"net/netip"
	"strings"
)

// icmpErrors names the errors about the host's connections that come in as
// RELATED today, and would not about connections that are not tracked:
// without those that tell of the path MTU, large transfers hang.
func (p *stageSides) icmpErrors(j *judge) {
	if len(j.stages) < 2 {
		return
	}
	kind, typ, code, proto := "fragmentation-needed", uint8(3), uint8(4), uint8(protoICMP)
	block := `accept "icmp" with protocol = "icmp"`
	if j.family == IPv6 {
		kind, typ, code, proto = "packet-too-big", 2, 0, protoICMPv6
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
		err.State = StateRelated
		today := j.stages[0].Verdict(&err)
		err.State = StateInvalid
		end := j.end().Verdict(&err)
		if today.Verdict != Accepted || end.Verdict != Dropped {
			continue
		}
		whose, remedy := "this host's", block
		if routed {
			whose, remedy = "routed", strings.Replace(block, `" with `, `-routed" with `, 1)+`, direction = "forward"`
		}
		if p.once("icmp", string(j.family), whose) {
			continue // the same in a saved file
		}
		p.Warn(addressOf(j, "filter"), fmt.Sprintf("ICMP errors about %s connections that are not tracked are not RELATED to anything: %s, which tells of the path MTU and without which large transfers hang, "+
			"is let through today by %s, and would be dropped by: %s. To let it through, add %s", whose, kind, today.Rule, end.Rule, remedy), p.in.Desired.Source)
	}
}

// stopsTracking is whether connections of the host itself, or routed ones, are
// tracked today and will not be.
func stopsTracking(j *judge, routed bool) bool {
	if routed && !j.routes() {
		return false
	}
	if j.d.Mode == Disabled {
		return true
	}
	for _, ref := range j.untracks {
		for _, x := range j.examples(ref) {
			if (x.way == wayForward) != routed {
				continue
			}
			packet := &x.packets[x.mine]
			if j.stages[0].Verdict(packet).Tracked && j.end().Verdict(packet).Untracked {
				return true
			}
		}
	}
	return false
}

// fromStranger is a packet to this host, or through it, without ports.
func fromStranger(j *judge, routed bool, proto uint8) (Packet, bool) {
	from := j.stranger()
	in := j.places.toward(from)
	if routed {
		return j.packet(HookForward, proto, Tuple{Src: from, Dst: j.another()}, in, in), true
	}
	to, _, ok := j.own(prefixSet{}, ifaceSet{name: in, not: in == SomeInterface})
	if !ok {
		to, in, ok = j.own(prefixSet{}, ifaceSet{})
	}
	return j.packet(HookInput, proto, Tuple{Src: from, Dst: to}, in, ""), ok
}

func addressOf(j *judge, table string) string {
	if j.file != nil {
		return "file." + j.file.Path
	}
	return "iptables." + string(j.family) + "." + table
}

// neighbours names neighbour discovery that no longer passes: without it
// there is no IPv6 at all. Tracking leaves it alone and calls it UNTRACKED
// (net/netfilter/nf_conntrack_proto_icmpv6.c), so that no rule for RELATED
// ever carried it; one for UNTRACKED may, until it goes.
func (p *stageSides) neighbours(j *judge) {
	if j.family != IPv6 || len(j.stages) < 2 {
		return
	}
	near, me := netip.MustParseAddr("fe80::77"), netip.MustParseAddr("fe80::1")
	for _, typ := range []uint8{135, 136} {
		for _, hook := range []Hook{HookInput, HookOutput} {
			t := Tuple{Src: near, Dst: me}
			if hook == HookOutput {
				t = turned(t)
			}
			nd := j.packet(hook, protoICMPv6, t, j.places.toward(near), j.places.toward(near))
			nd.ICMPType, nd.State = typ, StateUntracked
			today, end := j.stages[0].Verdict(&nd), j.end().Verdict(&nd)
			if today.Verdict != Accepted || end.Verdict != Dropped {
				continue
			}
			if p.once("neighbours") {
				return
			}
			p.Block(Block{
				Risk: RiskRelated, Address: addressOf(j, "filter"), Where: end.Rule.String(),
				Why:      fmt.Sprintf("neighbour discovery, without which nobody reaches this host over IPv6, is let through today by %s, and would be dropped", today.Rule),
				Remedy:   `add accept "icmpv6" with protocol = "ipv6-icmp"`,
				Override: true, Source: p.in.Desired.Source,
			})
			return
		}
	}
}
