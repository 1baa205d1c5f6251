package judge

import (
	"slices"

	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// ComesApart is whether datagrams of the connection may pass rules in parts, at
// some stage: the kernel does not join them at all of them. Segments of TCP are
// made to fit.
func (j *Judge) ComesApart(c *Connection) bool {
	if c.Proto == protocol.TCP || c.Way == Out && c.Count == 1 || c.Way == Loop {
		return false
	}
	return slices.ContainsFunc(j.Stages, func(s Stage) bool { return s.Joins() != verdict.Yes })
}

// Parts is the verdict of datagrams of the connection that come to this host in
// parts: that of the part that fares worst.
func (j *Judge) Parts(s Stage, c *Connection) verdict.Decision {
	worst := verdict.Decision{Verdict: verdict.Accepted}
	first := true
	for i := range c.Count {
		p := c.Packets[i]
		if p.Hook == verdict.HookOutput {
			continue // taken apart behind all hooks
		}
		p.Known &^= verdict.KnownLength
		for _, p.Fragment = range []verdict.Fragment{verdict.FirstFragment, verdict.MiddleFragment, verdict.LastFragment} {
			worst = worse(first, worst, s.Verdict(&p))
			first = false
		}
	}
	return worst
}
