// Package verify judges whether a mode is in effect on a host, and not only
// configured: from what the kernel has, counts and logs, and from what the next
// boot comes to.
//
// It owns the checks, what each of them takes for a proof, and their wording. It
// reads nothing and knows no clock: everything is given to it, and equal inputs
// give equal checks.
//
// It promises that a check passes only on evidence. What could not be read, what
// no traffic has shown yet, and what this kernel does not tell is skipped, with
// the reason; and that each check says what it holds, in one sentence.
package verify

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/kernlog"
)

// Result is what a check came to.
type Result string

// The results.
const (
	Pass Result = "pass"
	Fail Result = "fail"
	Skip Result = "skip" // it could not be told; Why says why
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"` // "tuned.max", "notrack.dns.entries", "table_full": the same for every host
	Result Result `json:"result"`
	What   string `json:"what"`          // what is held: a sentence without a full stop
	Why    string `json:"why,omitempty"` // what was found, or why nothing could be: the same
	// Evidence is what it was found in, line by line; anyone may have written
	// parts of it.
	Evidence []string `json:"evidence"`
}

// Input is all that the checks are made from.
type Input struct {
	Desired declared.Desired
	Live    host.Live
	Plan    planner.Plan // what apply would do
	Askers  []census.Asker

	Change Change
	// Boot is when the kernel began to count, for which the machine's boot
	// stands. Nothing is older.
	Boot    time.Time
	Watched time.Duration // between the two readings; 0: there is one

	Blocks []BlockSeen // of Desired.Notrack, in order
	Peak   int64       // the most entries that were seen at once

	Log *kernlog.Full // since Since
	// Stats are the kernel's counters in the end, and Before as the watching
	// began; nil where they were not read, for the reason StatsErr.
	Stats, Before *flows.Stats
	StatsErr      string
}

// Change is what ctplan did last on this host. The zero Change is none that is
// known.
type Change struct {
	ID     int       // of the transaction
	Time   time.Time // when its last step was done
	OldMax string    // nf_conntrack_max before it, where it set that; "" where it did not
}

// Text is the check in one sentence.
func (c Check) Text() string {
	switch {
	case c.Why == "":
		return c.What
	case c.Result == Fail:
		return c.What + ", but " + c.Why
	case c.Result == Skip:
		return c.What + "? " + c.Why
	}
	return c.What + ": " + c.Why
}

// logSlack is how long after a change messages are still taken for older: times
// of a text log are in whole seconds.
const logSlack = time.Second

// Since is from when on the log is asked: since the change, or since boot.
func (in *Input) Since() time.Time {
	if in.Change.Time.IsZero() {
		return in.Boot
	}
	return in.Change.Time.Add(logSlack)
}

// Checks makes them, those of the mode first. Their names do not depend on what
// they come to.
func Checks(in Input) []Check {
	c := &checker{in: in}
	if in.Desired.Mode != declared.Unmanaged {
		c.declared()
	}
	switch in.Desired.Mode {
	case declared.Disabled:
		c.disabled()
	case declared.Notrack:
		c.notrack()
		c.bootRules()
	case declared.Tuned:
		c.tuned()
	}
	c.log()
	c.counters()
	return c.out
}

// checker collects checks.
type checker struct {
	in  Input
	out []Check
}

func (c *checker) add(name string, r Result, what, why string, evidence ...string) {
	if evidence == nil {
		evidence = []string{}
	}
	c.out = append(c.out, Check{Name: name, Result: r, What: what, Why: why, Evidence: evidence})
}

// passes adds a check that passes if ok and fails otherwise.
func (c *checker) passes(ok bool, name, what, why string, evidence ...string) {
	r := Fail
	if ok {
		r = Pass
	}
	c.add(name, r, what, why, evidence...)
}

// declared is what drift says.
func (c *checker) declared() {
	const name, what = "declared", "the host is as declared"
	var evidence []string
	for _, ch := range c.in.Plan.Changes {
		evidence = append(evidence, ch.Meta().Address+" differs")
	}
	differ := plural(len(evidence), "object differs", "objects differ")
	for _, b := range c.in.Plan.Blocks {
		evidence = append(evidence, cmp.Or(b.Address, string(b.Risk))+": "+b.Why)
	}
	switch {
	case len(evidence) == 0:
		c.add(name, Pass, what, "")
	case c.in.Plan.Blocked():
		c.add(name, Fail, what, differ+", and a safety check holds apply back: ctplan plan shows why", evidence...)
	default:
		c.add(name, Fail, what, differ+": ctplan drift shows how", evidence...)
	}
}

// plural is a count with its noun.
func plural[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(n) + " " + many
}

// number writes thousands apart.
func number[N int | int64 | uint64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// stamp is a time as history prints it.
func stamp(t time.Time) string { return t.Format("2006-01-02 15:04:05") }

// span is a duration as a person says it.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
}
