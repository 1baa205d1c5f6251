package census

import (
	"math"
	"time"

	"github.com/ctplan/ctplan/planner/suggest"
)

// Growth is how fast the number of entries changes.
type Growth struct {
	Seconds   float64 `json:"seconds"`    // for which it was watched
	PerSecond float64 `json:"per_second"` // below 0: it shrinks
	// Error is how far off PerSecond may be: two standard errors, from how
	// evenly the number grew, and at least one entry in the time watched.
	Error float64 `json:"error"`
}

// Measure works out the growth from readings of the number of entries. Between
// windows it was not watched, and what happened to it then does not count. It
// reports false where no window holds two readings.
func Measure(windows ...[]suggest.Reading) (Growth, bool) {
	type piece struct{ seconds, entries float64 }
	var pieces []piece
	var seconds, entries float64
	for _, w := range windows {
		for i := 1; i < len(w); i++ {
			p := piece{(w[i].After - w[i-1].After).Seconds(), float64(w[i].Count - w[i-1].Count)}
			if p.seconds <= 0 {
				continue
			}
			pieces = append(pieces, p)
			seconds += p.seconds
			entries += p.entries
		}
	}
	if len(pieces) == 0 {
		return Growth{}, false
	}
	g := Growth{Seconds: seconds, PerSecond: entries / seconds}
	// Entries come and go by themselves, so the differences vary: that of the
	// sum is the sum of theirs.
	var squares float64
	for _, p := range pieces {
		off := p.entries - g.PerSecond*p.seconds
		squares += off * off
	}
	if n := float64(len(pieces)); n > 1 {
		squares *= n / (n - 1)
	}
	g.Error = max(2*math.Sqrt(squares), 1) / seconds
	return g, true
}

// Grows reports whether the table grows for sure, and Shrinks whether it does
// the opposite. Where neither holds, what was seen may be chance.
func (g Growth) Grows() bool { return g.PerSecond > g.Error }

// Shrinks is the opposite of Grows.
func (g Growth) Shrinks() bool { return -g.PerSecond > g.Error }

// farthest is the longest that Full looks ahead: what goes on for ten years is
// no growth.
const farthest = 10 * 365 * 24 * time.Hour

// Full is when a table with so many entries will have max, if it grows on as it
// did. It reports false where it does not grow, or has no limit. A table that
// is full is full after 0.
//
// It takes no account of entries that time out later than they were watched:
// where all that grows is short-lived, the table may level off before it is
// full.
func (g Growth) Full(entries, max int64) (time.Duration, bool) {
	switch {
	case max <= 0:
		return 0, false
	case entries >= max:
		return 0, true
	case !g.Grows():
		return 0, false
	}
	seconds := float64(max-entries) / g.PerSecond
	if seconds > farthest.Seconds() {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}
