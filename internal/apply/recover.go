package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
)

// orphans is how long recovery waits for commands that a killed process left
// behind.
const orphans = 30 * time.Second

// errCutOff is why recovery takes a transaction back.
var errCutOff = errors.New("the transaction was cut off")

// errRefused is why Reject takes a transaction back.
var errRefused = errors.New("the transaction was not confirmed: rollback was asked for")

// Pending returns the newest transaction that is not finished, as an error to
// show; nil when there is none. It changes nothing and takes no lock, so one
// that is just running counts as unfinished too.
func Pending(dir string) (*PendingError, error) {
	store, err := journal.View(dir)
	if err != nil {
		return nil, err
	}
	var pending *PendingError
	if err := noneOpen(store); errors.As(err, &pending) {
		return pending, nil
	} else if err != nil {
		return nil, err
	}
	return nil, nil
}

// noneOpen returns a *PendingError for the newest transaction that is not finished.
func noneOpen(store *journal.Store) error {
	open, err := store.Unfinished()
	if err != nil || len(open) == 0 {
		return err
	}
	t := open[len(open)-1]
	return &PendingError{Transaction: t, Left: timeLeft(t), Running: t.Outcome != journal.Waiting && t.BootID == bootID() && running(t.Process)}
}

// timeLeft is how long there still is to confirm a transaction that waits for
// it; 0 when it does not wait.
func timeLeft(t journal.Transaction) time.Duration {
	if t.Outcome != journal.Waiting || t.BootID != bootID() {
		return 0
	}
	return max(0, time.Duration(t.Deadline-now()))
}

// Recover takes back every transaction that was cut off, newest first, and
// says what became of each. One that still waits for its confirmation gives a
// *PendingError and is left alone. Nothing to recover is no error.
//
// A transaction that cannot be taken back gives an *IncompleteError; others
// behind it are not touched then, because they lie deeper.
func Recover(ctx context.Context, env Env, progress func(Event)) ([]Result, error) {
	return env.takeBack(ctx, progress, func(t journal.Transaction) (error, error) {
		if left := timeLeft(t); left > 0 {
			return nil, &PendingError{Transaction: t, Left: left}
		}
		if t.Reason != "" {
			return errors.New(t.Reason), nil
		}
		return errCutOff, nil
	})
}

// Reject takes back the transaction that waits for confirmation, at once. It
// takes back one that was cut off as well.
func Reject(ctx context.Context, env Env, progress func(Event)) ([]Result, error) {
	return env.takeBack(ctx, progress, func(journal.Transaction) (error, error) { return errRefused, nil })
}

// takeBack rolls back the unfinished transactions; why gives the reason, or
// the error that leaves one alone.
func (env Env) takeBack(ctx context.Context, progress func(Event), why func(journal.Transaction) (cause, stop error)) ([]Result, error) {
	if env.Host == nil {
		env.Host = NewHost("")
	}
	store, err := journal.View(env.Dir)
	if err != nil {
		return nil, err
	}
	// Most runs find nothing: then there is no need for the lock.
	if open, err := store.Unfinished(); err != nil || len(open) == 0 {
		return nil, err
	}
	l, err := lock.Acquire(ctx, env.LockPath, env.Command, env.LockTimeout)
	if err != nil {
		return nil, err
	}
	defer l.Release()
	open, err := store.Unfinished()
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, t := range slices.Backward(open) {
		if t.Err != nil {
			return results, &PendingError{Transaction: t}
		}
		cause, stop := why(t)
		if stop != nil {
			return results, stop
		}
		r, err := env.rollback(ctx, store, t.ID, cause, progress)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

// rollback takes back one transaction of a process that has ended. The caller
// holds the lock.
func (env Env) rollback(ctx context.Context, store *journal.Store, id int, cause error, progress func(Event)) (Result, error) {
	j, t, err := store.Reopen(id, orphans)
	if err != nil {
		return Result{}, err
	}
	defer j.Close()
	rebooted := t.BootID != bootID()
	if here := netNS(); !rebooted && t.NetNS != here {
		return Result{}, &ElsewhereError{ID: id, There: t.NetNS, Here: here}
	}
	tx := &transaction{env: env, opts: Options{Progress: progress}, j: j, header: t.Header, rebooted: rebooted}
	for _, s := range t.Steps {
		tx.began = append(tx.began, undo{Step: s.Step, Before: s.Before, Undone: s.Undone})
		tx.reports = append(tx.reports, StepReport{Addresses: s.Addresses, State: Applied})
	}
	defer env.Host.hold(j.File())()
	r, err := tx.back(ctx, cause)
	var done *RolledBackError
	if errors.As(err, &done) {
		if done.Journal != nil {
			return r, fmt.Errorf("transaction %d: everything was put back as it was, but its journal could not be finished: %w", id, done.Journal)
		}
		return r, nil
	}
	return r, err
}

// netNS names the network namespace of this process.
func netNS() string {
	s, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return s
}
