package judge

import (
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Leaves reports whether nothing of a tracked connection meets its entry any more
// when the rules stand as they will: no packet of either way, for sure.
func (j *Judge) Leaves(f *host.Flow) bool {
	if j.Desired.Mode == declared.Disabled && len(j.Stages) > 1 {
		return true // nothing asks for tracking
	}
	if len(j.Untracks) == 0 {
		return false
	}
	replied := *f // or what will answer is not asked about
	replied.Status |= host.StatusSeenReply
	var c Connection
	j.ofFlow(&c, &replied)
	end := j.End()
	for i := range c.Count {
		if !end.Verdict(&c.Packets[i]).Untracked {
			return false
		}
	}
	return true
}

// Passes reports whether a tracked connection is let through as the rules stand,
// whatever becomes of its translation.
func (j *Judge) Passes(f *host.Flow) bool {
	var c Connection
	j.ofFlow(&c, f)
	c.Translated = false
	return j.At(j.Stages[0], &c, false).Verdict == verdict.Accepted
}

// Entry is the entry that a connection without one shall have; ok is false where
// tracking looks at it already, or the rules, as they stand, do not surely let it
// through.
func (j *Judge) Entry(s *host.Socket) (f host.Flow, ok bool) {
	var c Connection
	j.ofSocket(&c, s)
	f = host.Flow{Protocol: c.Proto, Orig: c.Orig, Reply: host.Tuple{Src: c.Orig.Dst, Dst: c.Orig.Src, SrcPort: c.Orig.DstPort, DstPort: c.Orig.SrcPort}}
	return f, j.Untold(&c, j.At(j.Stages[0], &c, false))
}

// Untold reports whether tracking can be told of a connection before it looks at
// it: only a socket knows of it, and today's rules surely let it through, without
// tracking it.
func (j *Judge) Untold(c *Connection, today verdict.Decision) bool {
	return c.Untold && today.Verdict == verdict.Accepted && (today.Untracked || j.Stages[0].Joins() == verdict.No)
}

// Tracks reports whether anything will ask for tracking, as far as can be told.
func (j *Judge) Tracks() bool { return j.End().Joins() != verdict.No }

// Local reports whether one end of a tracked connection is this host.
func (j *Judge) Local(f *host.Flow) bool { return j.Places.Way(f.Orig.Src, f.Reply.Src) != Forward }

// carriedState is what tracking makes of the packets of a connection whose entry was put in.
const carriedState = verdict.StateEstablished

// CarryOver makes of a connection that only a socket knows of one whose entry
// was put in before the rules change.
func (c *Connection) CarryOver() {
	for i := range c.Count {
		p := &c.Packets[i]
		p.State, p.Known, p.Status = carriedState, p.Known|verdict.KnownStatus, host.StatusConfirmed|host.StatusSeenReply|host.StatusAssured
	}
}

// RoutedBegins reports whether a routed connection, of those that somebody may
// have, is let through untracked today and will be tracked: of those that are open
// nothing tells.
func (j *Judge) RoutedBegins() bool {
	if len(j.Stages) < 2 || !j.Routes() || !j.Tracks() {
		return false
	}
	for c := range j.Conversations() {
		if c.Way != Forward {
			continue
		}
		if today := j.Stages[0].Verdict(&c.Packets[0]); today.Untracked && today.Verdict == verdict.Accepted && !j.End().Verdict(&c.Packets[0]).Untracked {
			return true
		}
	}
	return false
}
