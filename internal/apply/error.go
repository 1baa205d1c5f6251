package apply

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
)

// errTooSlow ends a transaction that is not done when its confirmation is due.
var errTooSlow = errors.New("the steps were not done within the time to confirm")

// errNoWatch is a caller's mistake.
var errNoWatch = errors.New("nothing would roll back without a confirmation: Env.Watch is not set")

// errBelow is why a step is not taken back.
var errBelow = errors.New("not tried, since a later step that builds on it could not be taken back")

// RolledBackError says that a transaction failed and the old state is back.
type RolledBackError struct {
	ID      int
	Cause   error
	Journal error // why the journal could not be finished; nil when it was
}

func (e *RolledBackError) Error() string {
	s := fmt.Sprintf("%v; everything was put back as it was", e.Cause)
	if e.Journal != nil {
		s += fmt.Sprintf(", but the journal could not be finished (%v): the next apply finds nothing to undo and finishes it", e.Journal)
	}
	return s
}

func (e *RolledBackError) Unwrap() error { return e.Cause }

// LeftStep is a step that could not be taken back.
type LeftStep struct {
	Step     change.Step
	Err      error
	Commands []string // shell commands that take it back
}

// IncompleteError says that a transaction failed and that not everything could
// be put back. The journal stays open, and the next apply tries again.
type IncompleteError struct {
	ID    int
	Cause error      // what failed first
	Left  []LeftStep // what is not as it was, in the order to finish it
}

func (e *IncompleteError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v; rolling back is incomplete: the host is between the old state and the new one", e.Cause)
	for _, l := range e.Left {
		fmt.Fprintf(&b, "\n  %s is not back as it was: %v", describe(l.Step), l.Err)
	}
	b.WriteString("\nto try again: ctplan recover; to finish by hand, in this order:")
	for _, l := range e.Left {
		for _, c := range l.Commands {
			b.WriteString("\n  " + strings.ReplaceAll(c, "\n", "\n  "))
		}
	}
	return b.String()
}

func (e *IncompleteError) Unwrap() error { return e.Cause }

// PendingError says that an earlier transaction is not finished.
type PendingError struct {
	Transaction journal.Transaction
	// Left is how long there still is to confirm it; 0 when it was cut off.
	Left time.Duration
	// Running is whether the process that carries it out is still there.
	Running bool
}

func (e *PendingError) Error() string {
	t := e.Transaction
	if t.Err != nil {
		return fmt.Sprintf("transaction %d may be unfinished: %v; put it right or move the file away", t.ID, t.Err)
	}
	if e.Left > 0 {
		return fmt.Sprintf("transaction %d waits for confirmation for another %s: ctplan confirm keeps it, ctplan rollback takes it back", t.ID, e.Left.Round(time.Second))
	}
	if e.Running {
		return fmt.Sprintf("transaction %d is being carried out right now, by process %d: what is seen here may be half way", t.ID, t.Process.PID)
	}
	return fmt.Sprintf("transaction %d of %s was cut off after %d of %d steps: the next ctplan apply, or ctplan recover, takes it back", t.ID, t.Time.Format(time.RFC3339), len(t.Steps), t.Header.Steps)
}

// ElsewhereError says that an unfinished transaction belongs to another
// network namespace, from where its rules cannot be reached.
type ElsewhereError struct {
	ID          int
	There, Here string // as readlink /proc/self/ns/net prints them
}

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("transaction %d was cut off in another network namespace (%s; this one is %s): run ctplan recover there", e.ID, e.There, e.Here)
}

// describe names a step for a message.
func describe(s change.Step) string {
	if len(s.Addresses) == 0 {
		return "a step"
	}
	return strings.Join(s.Addresses, ", ")
}
