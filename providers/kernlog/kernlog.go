// Package kernlog finds in the kernel's log what it says of a full table:
// "nf_conntrack: table full, dropping packet".
//
// It owns /dev/kmsg, the kernel's messages in the systemd journal, and
// /var/log/messages, kern.log and syslog with the file that was rotated last. It
// reads, in bounded memory, and never writes, clears or follows a log.
//
// It promises not to take silence for an answer: what was read is named, and from
// when on; what could not be read too, with the reason. The kernel writes at most
// ten such messages in five seconds (net_ratelimit), so their number says that
// packets were dropped, not how many.
package kernlog

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/ctplan/ctplan/internal/run"
)

// Options say where to look, and for what.
type Options struct {
	Root   string     // prefix of all paths, for tests
	Runner run.Runner // runs journalctl; nil: run.Exec
	Since  time.Time  // of older messages nothing is said; zero: all there are
	Now    time.Time  // zero: time.Now(). Its location is that of times without one

	// Netns is the inode number of the network namespace that is asked about:
	// recent kernels name it, except for the initial one. Messages that name
	// another count as Elsewhere. 0: all count.
	Netns uint64
}

// Full is what the log says of a full table since then.
type Full struct {
	Messages    int64     // in the source that has most: the same message is in several
	Suppressed  int64     // messages held back beside them; others of the network's may be among these
	Elsewhere   int64     // messages that name another network namespace
	First, Last time.Time // of Messages; zero without one

	// Reach is from when on the log was read without a gap until now; zero
	// where nothing could be read that reaches until now.
	Reach   time.Time
	Sources []Source // in the order in which they were asked
}

// Source is a place where the kernel's messages are kept.
type Source struct {
	Name   string // "/dev/kmsg", "journal", "/var/log/kern.log"
	Unread string // why it could not be read; empty where it was
	Absent bool   // Unread because there is none, which is usual

	Messages, Suppressed, Elsewhere int64
	First, Last                     time.Time

	// From and To are between when it has messages of the kernel; zero without.
	From, To time.Time
}

// Covers is whether the log was read without a gap from t on, so that no message
// since t means that there was none.
func (f *Full) Covers(t time.Time) bool { return !f.Reach.IsZero() && !f.Reach.After(t) }

// Read reads the logs. What cannot be read is in Sources; a cancelled ctx leaves
// the rest unread.
func Read(ctx context.Context, o Options) *Full {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	o.Now = o.Now.Round(0) // times of logs have no monotonic part
	if o.Runner == nil {
		o.Runner = run.Exec{}
	}
	f := &Full{Sources: []Source{readKmsg(ctx, o), readJournal(ctx, o)}}
	for _, name := range []string{"/var/log/messages", "/var/log/kern.log", "/var/log/syslog"} {
		f.Sources = append(f.Sources, readText(ctx, o, name))
	}
	f.merge(o.Now)
	return f
}

// merge sums up the sources.
func (f *Full) merge(now time.Time) {
	for _, s := range f.Sources {
		f.Messages = max(f.Messages, s.Messages)
		f.Suppressed = max(f.Suppressed, s.Suppressed)
		f.Elsewhere = max(f.Elsewhere, s.Elsewhere)
		if s.Messages == 0 {
			continue
		}
		if f.First.IsZero() || s.First.Before(f.First) {
			f.First = s.First
		}
		f.Last = later(f.Last, s.Last)
	}
	// From now back, as far as one source takes over from the other.
	byEnd := slices.SortedFunc(slices.Values(f.Sources), func(a, b Source) int {
		return cmp.Or(b.To.Compare(a.To), a.From.Compare(b.From))
	})
	reach := now
	for _, s := range byEnd {
		if s.Unread == "" && !s.From.IsZero() && !s.To.Before(reach) && s.From.Before(reach) {
			reach = s.From
		}
	}
	if reach.Before(now) {
		f.Reach = reach
	}
}
