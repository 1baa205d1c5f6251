package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/providers/flows"
)

// confirmLock is how long Confirm waits for the lock: somebody may be reading
// under it.
const confirmLock = 5 * time.Second

// What Confirm cannot do.
var (
	// ErrNothingToConfirm says that no transaction waits for confirmation.
	ErrNothingToConfirm = errors.New("no transaction waits for confirmation")
	// ErrTooLate says that the time to confirm is over.
	ErrTooLate = errors.New("the time to confirm is over: the transaction is being rolled back, or was already")
)

// TakenBackError says that a transaction cannot be confirmed any more.
type TakenBackError struct {
	ID     int
	Reason string // as the journal has it: not safe for a terminal
}

func (e *TakenBackError) Error() string {
	return fmt.Sprintf("transaction %d was taken back, and cannot be confirmed any more: %s", e.ID, e.Reason)
}

// OldConnectionError says that a confirmation came over a connection that was
// there before the change, and so proves nothing about new ones.
type OldConnectionError struct {
	Transaction journal.Transaction
	Client      string        // address and port of the connection's other end; "" where that is not known
	Same        bool          // it is the connection that apply ran in
	Left        time.Duration // how long there still is to confirm
}

func (e *OldConnectionError) Error() string {
	what := "the SSH connection"
	if e.Client != "" {
		what += " from " + e.Client
	}
	why := "was open before the change was made"
	if e.Same {
		why = "is the one that apply ran in"
	}
	return fmt.Sprintf("not confirmed: %s %s, and says nothing about whether a new one comes up; transaction %d is taken back in %s",
		what, why, e.Transaction.ID, e.Left.Round(time.Second))
}

// Confirmation is what Confirm found and did.
type Confirmation struct {
	journal.Transaction
	Already bool // it stayed already
	// Unproven is that apply ran in an SSH connection, and whether this one is
	// another could not be told.
	Unproven bool
}

// Confirm makes the new state of a transaction stay that waits for it: of the
// one with the ID, or with 0 of the one that waits. One that stays already is
// left as it is.
//
// It returns ErrNothingToConfirm or ErrTooLate where there is none any more, a
// *TakenBackError, and an *OldConnectionError where apply ran in an SSH
// connection and all of env.SSH were there before the change.
func Confirm(ctx context.Context, env Env, id int) (Confirmation, error) {
	l, err := lock.Acquire(ctx, env.LockPath, env.Command, max(env.LockTimeout, confirmLock))
	if err != nil {
		return Confirmation{}, err
	}
	defer l.Release()
	store, err := journal.View(env.Dir)
	if err != nil {
		return Confirmation{}, err
	}
	t, err := toConfirm(store, id)
	if err == nil && t.Outcome == journal.Committed {
		err = goneBack(store, t)
		return Confirmation{Transaction: t, Already: true}, err
	}
	if err != nil {
		return Confirmation{Transaction: t}, err
	}
	left := timeLeft(t)
	if left == 0 {
		return Confirmation{Transaction: t}, ErrTooLate
	}
	c := Confirmation{}
	switch client, age := judge(t, env.SSH); age {
	case ranApply, older:
		return Confirmation{Transaction: t}, &OldConnectionError{Transaction: t, Client: client, Same: age == ranApply, Left: left}
	case untold:
		c.Unproven = true
	}
	j, t, err := store.Reopen(t.ID, 0)
	if err != nil {
		return c, err
	}
	defer j.Close()
	if err := j.Append(journal.Record{Kind: journal.Commit}, true); err != nil {
		return c, fmt.Errorf("confirming transaction %d: %w; it will be rolled back", t.ID, err)
	}
	t.Outcome = journal.Committed
	c.Transaction = t
	return c, nil
}

// toConfirm returns the transaction that is to be confirmed, waiting for it or
// committed already.
func toConfirm(store *journal.Store, id int) (journal.Transaction, error) {
	if id == 0 {
		open, err := store.Unfinished()
		if err != nil {
			return journal.Transaction{}, err
		}
		if len(open) == 0 {
			return journal.Transaction{}, ErrNothingToConfirm
		}
		t := open[len(open)-1]
		switch {
		case t.Outcome == journal.Waiting:
			return t, nil
		case t.ConfirmWithin > 0:
			return t, ErrTooLate
		}
		return t, ErrNothingToConfirm
	}
	t, err := store.Load(id)
	if err == nil {
		err = t.Err
	}
	switch {
	case err != nil:
		return t, fmt.Errorf("confirming transaction %d: %w", id, err)
	case t.Outcome == journal.WasUndone:
		return t, &TakenBackError{ID: id, Reason: t.Reason}
	case t.Outcome == journal.Waiting || t.Outcome == journal.Committed:
		return t, nil
	case t.ConfirmWithin > 0:
		return t, ErrTooLate
	}
	return t, fmt.Errorf("transaction %d: %w", id, ErrNothingToConfirm)
}

// goneBack returns a *TakenBackError where a rollback took back a transaction
// that had stayed: one that came next. What a later one took back beside others
// the journals do not say.
func goneBack(store *journal.Store, t journal.Transaction) error {
	all, err := store.All()
	if err != nil {
		return err
	}
	for _, next := range all {
		if next.ID <= t.ID || next.Outcome != journal.Committed {
			continue
		}
		if next.Back {
			return &TakenBackError{ID: t.ID, Reason: fmt.Sprintf("by transaction %d, a rollback", next.ID)}
		}
		return nil
	}
	return nil
}

// age is what a connection is to a change.
type age int

const (
	fresh    age = iota // it came up after the change, or apply ran in none
	untold              // it cannot be told
	older               // it was there before the change
	ranApply            // apply ran in it
)

// clockTick is the resolution of flows.SSH.Began.
const clockTick = 10 * time.Millisecond

// judge holds the connections that a confirmation may have come over against
// those that apply ran in. A good change must not be taken back for a doubt: all
// of them have to be known and old. client is one that is.
func judge(t journal.Transaction, over []flows.SSH) (client string, found age) {
	before := t.Over
	if s, ok := flows.ParseConnection(t.Who.SSH); ok && len(before) == 0 { // an older version's
		before = []string{s.Remote.String()}
	}
	if len(before) == 0 {
		return "", fresh
	}
	if len(over) == 0 {
		return "", untold
	}
	armed := time.Duration(t.Deadline) - t.ConfirmWithin
	for i, from := range clients(over) {
		switch {
		case from != "" && slices.Contains(before, from):
			client, found = from, ranApply
		case over[i].Began > 0 && over[i].Began+clockTick <= armed:
			if found != ranApply {
				client, found = from, older
			}
		case from == "" && over[i].Began == 0, over[i].Began == 0 && slices.Contains(before, ""):
			return "", untold
		default:
			return "", fresh
		}
	}
	return client, found
}

// clients are the other ends of SSH connections, "" for one that is not known.
func clients(over []flows.SSH) []string {
	out := make([]string, len(over))
	for i, c := range over {
		if c.Remote.IsValid() {
			out[i] = c.Remote.String()
		}
	}
	return out
}

// Waiting returns how long there still is to confirm the transaction, and how
// it stands: for a countdown.
func Waiting(dir string, id int) (left time.Duration, outcome journal.Outcome, err error) {
	store, err := journal.View(dir)
	if err != nil {
		return 0, "", err
	}
	t, err := store.Load(id)
	if err == nil {
		err = t.Err
	}
	return timeLeft(t), t.Outcome, err
}
