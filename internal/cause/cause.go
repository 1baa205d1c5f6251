// Package cause matches what differs on a host with what its records say, and
// names the likely causes of each difference, with the evidence.
//
// It owns which evidence explains which difference, and how sure that makes.
// It is pure: values in, values out; it reads nothing. It promises that every
// difference gets at least one cause, which says so where none is known, that
// a cause without evidence is never named, and that equal inputs give equal
// causes.
package cause

import (
	"cmp"
	"slices"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/trace"
)

// Kind is what sort of cause it is: a word for JSON and metrics.
type Kind string

// The kinds.
const (
	NeverApplied Kind = "never_applied" // ctplan has not made the host what is declared
	CutOff       Kind = "cut_off"       // an apply did not come to its end
	RolledBack   Kind = "rolled_back"   // an apply was taken back
	Declaration  Kind = "declaration"   // the host is as it was applied, and something else is declared since
	Package      Kind = "package"       // a package manager wrote a file anew
	Reboot       Kind = "reboot"        // the kernel started anew
	Service      Kind = "service"       // a service was started or stopped, which brings or takes rules and values
	Firewall     Kind = "firewall"      // ufw or firewalld
	Writer       Kind = "writer"        // another program that sets the same by itself
	Setting      Kind = "setting"       // a line of another configuration file
	Dependency   Kind = "dependency"    // something else that differs brings it along
	Hand         Kind = "hand"          // somebody ran a command
	Unknown      Kind = "unknown"
)

// Certainty is how sure a cause is.
type Certainty string

// The certainties. Unknown has none.
const (
	Likely   Certainty = "likely"   // it says of this object what is seen of it
	Possible Certainty = "possible" // it could have done it, and the time fits
)

// Cause is why an object differs.
type Cause struct {
	Kind     Kind
	Sure     Certainty
	Text     string // a sentence without a full stop; parts of it are hostile
	Evidence []trace.Record
}

// most is how many causes of one object are named.
const most = 4

// Facts are what causes are found from.
type Facts struct {
	Changes []change.Change
	Live    host.Live
	Past    []journal.Transaction // ctplan's own, newest first
	Journal func(id int) string   // where the journal of a transaction is
	Trace   trace.Evidence
}

// Since is when the host was last known to be as declared: the end of the
// newest transaction that stayed. The zero time where there is none.
func Since(past []journal.Transaction) time.Time {
	if t := newest(past); t != nil {
		return t.Ended
	}
	return time.Time{}
}

func newest(past []journal.Transaction) *journal.Transaction {
	i := slices.IndexFunc(past, func(t journal.Transaction) bool { return t.Outcome == journal.Committed })
	if i < 0 {
		return nil
	}
	return &past[i]
}

// Files are the paths of the files that differ.
func Files(changes []change.Change) (paths []string) {
	for _, c := range changes {
		if f, ok := c.(*change.FileChange); ok {
			if paths = append(paths, pathOf(f)); f.Before.Target != "" {
				paths = append(paths, f.Before.Target)
			}
		}
	}
	return paths
}

func pathOf(f *change.FileChange) string { return cmp.Or(f.Before.Path, f.After.Path) }

// Find returns the causes of each change, by its address: likely ones first,
// and of those the latest. There is at least one.
func Find(f Facts) map[string][]Cause {
	m := matcher{Facts: f, since: Since(f.Past)}
	causes := make(map[string][]Cause, len(f.Changes))
	for _, c := range f.Changes {
		causes[c.Meta().Address] = m.of(c)
	}
	return causes
}

type matcher struct {
	Facts
	since time.Time
}

func (m *matcher) of(c change.Change) []Cause {
	// What ctplan's own journals say needs no guess.
	if own := m.own(c); own != nil {
		return []Cause{*own}
	}
	var found []Cause
	switch c := c.(type) {
	case *change.FileChange:
		found = m.file(c)
	case *change.RulesChange:
		found = m.rules(c)
	case *change.SysctlChange:
		found = m.value(c.Key, c.Before)
	case *change.HashsizeChange:
		found = m.hashsize(c)
	case *change.ModuleChange:
		found = m.module(c)
	}
	switch c := c.(type) {
	case *change.FileChange: // no boot writes one by itself
	case *change.RulesChange:
		// A boot takes away what is not saved; what there is too much of, it
		// can have brought, from a file that others wrote.
		sure := Likely
		if len(minus(c.After, c.Before)) == 0 {
			sure = Possible
		}
		found = append(found, m.reboot(sure)...)
	default:
		found = append(found, m.reboot(Likely)...)
	}
	if !slices.ContainsFunc(found, func(c Cause) bool { return c.Sure == Likely }) {
		found = append(found, m.shells(c)...)
	}
	slices.SortStableFunc(found, func(a, b Cause) int {
		if a.Sure != b.Sure {
			if a.Sure == Likely {
				return -1
			}
			return 1
		}
		return b.at().Compare(a.at())
	})
	found = distinct(found)
	if len(found) == 0 {
		found = []Cause{m.unknown(c)}
	}
	return found[:min(len(found), most)]
}

// distinct names what happened again and again, as a cron job does, once: the
// last time.
func distinct(causes []Cause) (out []Cause) {
	for _, c := range causes {
		if !slices.ContainsFunc(out, func(o Cause) bool { return o.Kind == c.Kind && o.Text == c.Text }) {
			out = append(out, c)
		}
	}
	return out
}

// at is the latest time that the evidence speaks of.
func (c Cause) at() (t time.Time) {
	for _, r := range c.Evidence {
		if r.Time.After(t) {
			t = r.Time
		}
	}
	return t
}

// unknown says what is known all the same.
func (m *matcher) unknown(c change.Change) Cause {
	u := Cause{Kind: Unknown, Text: "cause not known"}
	if f, ok := c.(*change.FileChange); ok {
		if s, ok := m.Trace.Files[pathOf(f)]; ok && s.Changed.After(m.since) {
			u.Evidence = []trace.Record{{Where: pathOf(f), Text: "was last changed then", Time: s.Changed}}
		}
	}
	return u
}

// reboot is that the kernel has started since: what is not saved is gone, and
// boot sets what files say.
func (m *matcher) reboot(sure Certainty) []Cause {
	last := newest(m.Past)
	if last == nil || m.Trace.Booted.IsZero() {
		return nil
	}
	// The clock may have been set; the ID of a boot is never the same.
	if same := last.BootID == m.Live.Host.BootID; same || last.BootID == "" && !m.Trace.Booted.After(m.since) {
		return nil
	}
	return []Cause{{
		Kind: Reboot, Sure: sure, Text: "the host was restarted since the last apply: it is as boot leaves it",
		Evidence: []trace.Record{{Where: "/proc/stat", Text: "btime: the kernel started then", Time: m.Trace.Booted}},
	}}
}
