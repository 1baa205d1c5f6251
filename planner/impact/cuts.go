package impact

import (
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Cuts are what rules of nftables drop of a connection that is lost: which of
// its packets, each by the first rule that does. by is the rule that the verdict
// names.
func Cuts(j *judge.Judge, rules *verdict.Evaluator, c *judge.Connection, by *verdict.RuleRef) []owners.Cut {
	var out []owners.Cut
	for i := range c.Count {
		d := rules.Verdict(&c.Packets[i])
		if d.Verdict == verdict.Dropped && d.Rule.NativeChain() != "" {
			out = append(out, owners.Cut{Rule: d.Rule, Packets: packets(j, c, &c.Packets[i], d.Untracked)})
		}
	}
	if len(out) == 0 && by.NativeChain() != "" {
		// Tracking sees half of it, so what follows is dropped, if not the first.
		out = append(out, owners.Cut{Rule: by, Packets: packets(j, c, &c.Packets[0], false)})
	}
	return out
}

// packets are those of the connection's service that pass as this one does.
func packets(j *judge.Judge, c *judge.Connection, p *verdict.Packet, untracked bool) owners.Packets {
	there := p.Tuple.Src == c.Orig.Src && p.Tuple.SrcPort == c.Orig.SrcPort
	q := owners.Packets{
		Family: j.Family, Forward: p.Hook == verdict.HookForward, Proto: c.Proto, ToPort: there, Answers: !there,
		Untracked: untracked && j.Desired.Mode != declared.Disabled,
	}
	switch {
	case !protocol.CarriesPorts(c.Proto):
	case c.Port == judge.HighPorts:
		q.Ports = host.PortRange{From: judge.FirstHigh, To: 65535}
	default:
		q.Ports = host.PortRange{From: c.Port, To: c.Port}
	}
	return q
}
