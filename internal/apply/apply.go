// Package apply changes a host as one transaction: all of it or none of it,
// whatever happens.
//
// It owns the order of events (lock, test, journal, steps, reading
// back, commit or undo), the recovery of a transaction that was cut off, the
// wait for a confirmation, and the history. What a step does to the host is
// the providers' business, behind the interfaces of Host; which steps there are and in which
// order is the planner's.
//
// It promises that the way back is tried before the first step, as far as the
// host allows; that before each step its undo is on the disk; that after a
// failure, a cancelled context, a crash or a loss of power the host is brought
// back to exactly the old state by the same process or by the next one; and
// that where this cannot be done, the error says in which state the host is
// and which commands finish it.
//
// Three things cannot be put back and are not: packet counters; a table of the
// legacy backend that did not exist before, which stays in place empty, because
// the kernel removes such tables only with their module; and the empty nat
// chains of iptables-nft, which go before their module is unloaded.
package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
)

// Env is where a transaction happens.
type Env struct {
	Host        *Host  // nil: NewHost("")
	Dir         string // journal.Dir on a real host
	LockPath    string // lock.Path on a real host
	LockTimeout time.Duration
	// Lock is the lock at LockPath where the caller has taken it already; Run
	// releases it. nil: Run takes it.
	Lock     *lock.Lock
	Command  string    // how the lock names this process: the command line
	Version  string    // ctplan's own
	Identity host.Host // with BootID
	// SSH are the connections that this process was reached over: flows.Reached.
	SSH []flows.SSH

	// Announce tells everybody on the host that a transaction could not be
	// taken back whole; Announce on a real host. nil: nobody is told.
	Announce func(*IncompleteError)

	// Watch starts the process that takes the transaction back when nobody
	// confirms; StartWatchdog on a real host. Only ConfirmWithin needs it.
	Watch func(ctx context.Context, id int) error

	// Rules reads the host, and judges by its rules as they stand: for the
	// connections that a way back carries over into tracking. nil: it carries none.
	Rules func(context.Context) (*carry.Rules, error)

	// Fault is nil outside tests. It is called at every point where a
	// transaction can be cut off; an error fails it there.
	Fault func(point string, index int) error
}

// Options is what a caller wants of one transaction.
type Options struct {
	Summary string // of the plan, one line: for the history
	Back    bool   // it takes other transactions back

	// ConfirmWithin makes the new state stay only if Confirm is called within
	// that time. 0: it stays.
	ConfirmWithin time.Duration

	// Carry has connections carried over into tracking before the rules change,
	// and entries that nothing meets any more taken out after, by the rules of the
	// plan; what takes the transaction back does the same. nil: the table of
	// connections is left alone.
	Carry *carry.Rules

	// Prepare is called under the lock when everything is tested, right before
	// the first step. It changes nothing that would have to be taken back.
	Prepare func(context.Context)
	// Verify is called under the lock after the last step, to read back what
	// is there. Its error fails the transaction.
	Verify func(context.Context) error
	// Progress is called before and after each step.
	Progress func(Event)
}

// Event is one thing that a transaction reports while it runs.
type Event struct {
	Index, Steps int      // which step, from 0, of how many
	Addresses    []string // the changes that it carries out
	Undo         bool     // it is being taken back
	Finished     bool     // false: it begins
	Took         time.Duration
	Err          error
}

// Result is how a transaction ended.
type Result struct {
	ID       int // 0 when nothing was changed and no journal was written
	Outcome  journal.Outcome
	Deadline time.Duration  // Waiting: how long there is to confirm
	Steps    []StepReport   // those that began
	Table    *journal.Table // what became of the kernel's table; nil: nothing
}

// StepReport is what became of one step.
type StepReport struct {
	Addresses []string
	State     StepState
	Err       error
}

// StepState is what became of a step.
type StepState string

// The states of steps.
const (
	Applied  StepState = "done"
	Reverted StepState = "undone"
	Left     StepState = "left"
)

// transaction is a journal being written and the steps in it.
type transaction struct {
	env      Env
	opts     Options
	j        *journal.Journal
	header   journal.Header
	began    []undo
	reports  []StepReport
	rebooted bool
	emptied  bool     // of entries that nothing meets any more
	carrier  *carrier // nil: the table of connections is left alone
}

// Run carries out the steps in order, or none of them. It returns a
// *lock.HeldError when another ctplan is at work, a *PendingError when an
// earlier transaction is not finished (see Recover), a *RolledBackError when it
// failed and the old state is back, and an *IncompleteError when not even that
// could be done.
//
// A cancelled context ends the transaction after the current step and takes
// it back.
func Run(ctx context.Context, env Env, steps []change.Step, opts Options) (Result, error) {
	if len(steps) == 0 {
		return Result{Outcome: journal.Committed}, nil
	}
	if env.Host == nil {
		env.Host = NewHost("")
	}
	l := env.Lock
	if l == nil {
		var err error
		if l, err = lock.Acquire(ctx, env.LockPath, env.Command, env.LockTimeout); err != nil {
			return Result{}, err
		}
	}
	defer l.Release()

	store, err := journal.Open(env.Dir)
	if err != nil {
		return Result{}, err
	}
	if err := noneOpen(store); err != nil {
		return Result{}, err
	}
	if err := env.fault("test", 0); err != nil {
		return Result{}, err
	}
	conntrack, err := env.Host.observeModule() // before a test loads it
	if err != nil {
		return Result{}, err
	}
	if err := env.Host.test(ctx, steps); err != nil && !(opts.Back && wholeMayDo(err)) {
		env.Host.unloadTested(ctx, conntrack)
		return Result{}, fmt.Errorf("testing the rules: %w; nothing was changed", err)
	}
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("%w; nothing was changed", err)
	}
	if err := env.fault("create", 0); err != nil {
		return Result{}, err
	}
	h, err := header(env, len(steps), opts, conntrack)
	if err != nil {
		return Result{}, err
	}
	size, err := json.Marshal(steps)
	if err != nil {
		return Result{}, fmt.Errorf("writing the journal: %w", err)
	}
	j, err := store.Create(h, int64(len(size)))
	if err != nil {
		return Result{}, err
	}
	defer j.Close()
	h.ID = j.ID

	tx := &transaction{env: env, opts: opts, j: j, header: h}
	defer env.Host.hold(j.File())()
	if opts.Prepare != nil {
		opts.Prepare(ctx)
	}
	if opts.Carry != nil {
		if err := tx.carriesOver(opts.Carry); err != nil {
			return tx.back(ctx, err)
		}
	}
	deadline, err := tx.forward(ctx, steps)
	if err != nil {
		return tx.back(ctx, err)
	}
	result := Result{ID: j.ID, Outcome: journal.Committed, Steps: tx.reports, Table: tx.carrier.told()}
	if opts.ConfirmWithin > 0 {
		result.Outcome, result.Deadline = journal.Waiting, deadline
	}
	// What is kept of old transactions is no reason to fail a new one.
	_ = store.Prune(journal.Keep)
	return result, nil
}

// forward carries out the steps and makes their outcome last.
func (tx *transaction) forward(ctx context.Context, steps []change.Step) (left time.Duration, err error) {
	if tx.opts.ConfirmWithin > 0 {
		if tx.env.Watch == nil {
			return 0, errNoWatch
		}
		// Before the first step, so that a connection that the steps cut, or
		// a kill half way through them, is seen to as well.
		if err := tx.env.Watch(ctx, tx.j.ID); err != nil {
			return 0, fmt.Errorf("starting the process that would roll back: %w", err)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, tx.opts.ConfirmWithin, errTooSlow)
		defer cancel()
	}
	if err := tx.doAll(ctx, steps); err != nil {
		return 0, err
	}
	if err := tx.env.fault("verify", 0); err != nil {
		return 0, err
	}
	if tx.opts.Verify != nil {
		reading, cancel := context.WithTimeout(ctx, 2*childTime)
		defer cancel()
		if err := tx.opts.Verify(reading); err != nil {
			return 0, fmt.Errorf("reading back: %w", err)
		}
	}
	if err := tx.takeOut(ctx); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err := tx.env.fault("commit", 0); err != nil {
		return 0, err
	}
	last := journal.Record{Kind: journal.Commit, Table: tx.carrier.told()}
	if within := tx.opts.ConfirmWithin; within > 0 {
		last = journal.Record{Kind: journal.Armed, Deadline: now() + int64(within), Table: tx.carrier.told()}
	}
	if err := tx.j.Append(last, true); err != nil {
		return 0, err
	}
	// From here on the new state stays: a failure changes nothing any more.
	_ = tx.env.fault("committed", 0)
	return tx.opts.ConfirmWithin, nil
}

// doAll carries out the steps, and sees to the table of connections between them.
func (tx *transaction) doAll(ctx context.Context, steps []change.Step) error {
	first, last := -1, -1 // that change rules
	for i, s := range steps {
		if s.Rules != nil || s.NFT != nil {
			if last = i; first < 0 {
				first = i
			}
		}
	}
	for i, s := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i == first && tx.carrier != nil {
			if err := errors.Join(tx.env.fault("carry", 0), tx.carryIn(ctx)); err != nil {
				return err
			}
		}
		if s.Module != nil && !s.Module.Load {
			if err := tx.takeOut(ctx); err != nil { // the table goes with its module
				return err
			}
		}
		if err := tx.do(ctx, i, len(steps), s); err != nil {
			return fmt.Errorf("%s: %w", describe(s), err)
		}
		if i == last && tx.carrier != nil {
			tx.carrier.trouble(tx.carrier.stay(ctx))
		}
	}
	return nil
}

// takeOut takes out what nothing meets any more, once. What goes wrong there is
// told, and undoes nothing: the entries that are left expire.
func (tx *transaction) takeOut(ctx context.Context) error {
	if tx.carrier == nil || tx.emptied {
		return nil
	}
	tx.emptied = true
	if err := tx.env.fault("out", 0); err != nil {
		return err
	}
	tx.carrier.trouble(tx.carrier.out(ctx, tx.opts.Carry))
	tx.carrier.trouble(tx.carrier.letGo(ctx))
	return nil
}

// do carries out one step, its undo on the disk before.
func (tx *transaction) do(ctx context.Context, i, n int, s change.Step) (err error) {
	begun := time.Now()
	event := Event{Index: i, Steps: n, Addresses: s.Addresses}
	tx.progress(event)
	defer func() {
		event.Finished, event.Took, event.Err = true, time.Since(begun), err
		tx.progress(event)
	}()
	// The step is finished once it began: half of it would only be more to undo.
	ctx = context.WithoutCancel(ctx)
	if err := tx.env.fault("observe", i); err != nil {
		return err
	}
	s, err = tx.env.Host.keepNative(s)
	if err != nil {
		return err
	}
	before, err := tx.env.Host.observe(ctx, s)
	if err != nil {
		return err
	}
	if err := tx.env.fault("intent", i); err != nil {
		return err
	}
	if err := tx.j.Append(journal.Record{Kind: journal.Intent, Index: i, Step: &s, Before: &before}, true); err != nil {
		return err
	}
	tx.began = append(tx.began, undo{Step: s, Before: before})
	tx.reports = append(tx.reports, StepReport{Addresses: s.Addresses, State: Applied})
	if err := tx.env.fault("step", i); err != nil {
		return err
	}
	err = tx.env.Host.do(ctx, s, before)
	if tx.opts.Back && s.Rules != nil {
		err = tx.env.Host.insist(ctx, s.Rules, before, err)
	}
	if err != nil {
		return err
	}
	if err := tx.env.fault("stepped", i); err != nil {
		return err
	}
	// Not synced: recovery looks at the host, not at this record.
	return tx.j.Append(journal.Record{Kind: journal.Done, Index: i}, false)
}

// back takes back every step that began, and reports what came of it.
func (tx *transaction) back(ctx context.Context, cause error) (Result, error) {
	ctx = context.WithoutCancel(ctx)
	// A journal that cannot be written must not keep the host from being put
	// back. It stays open then, and the next run finds nothing left to undo.
	_ = tx.j.Append(journal.Record{Kind: journal.Rollback, Reason: cause.Error()}, false)
	var left []LeftStep
	stuck, carried := map[string]bool{}, false
	for _, i := range undoOrder(tx.began) {
		u := tx.began[i]
		if (u.Step.Rules != nil || u.Step.NFT != nil) && !u.Undone && !carried {
			carried = true
			tx.carryBack(ctx)
		}
		if u.Undone && !tx.rebooted {
			tx.reports[i].State = Reverted
			continue
		}
		err := errBelow
		if !stuck[layer(u.Step)] {
			err = tx.undo(ctx, i, u)
		}
		if err != nil {
			if u.Step.Rules != nil || u.Step.NFT != nil || u.Step.Module != nil {
				stuck[layer(u.Step)] = true
			}
			tx.reports[i].State, tx.reports[i].Err = Left, err
			left = append(left, LeftStep{Step: u.Step, Err: err, Commands: tx.env.Host.manual(ctx, u, tx.aside(), i)})
			_ = tx.j.Append(journal.Record{Kind: journal.Stuck, Index: i, Reason: err.Error()}, false)
			continue
		}
		tx.reports[i].State = Reverted
	}
	if len(left) == 0 {
		left = tx.settle(ctx)
	}
	tx.backDone(ctx)
	result := Result{ID: tx.j.ID, Outcome: journal.WasUndone, Steps: tx.reports, Table: tx.carrier.told()}
	if len(left) > 0 {
		result.Outcome = journal.Undoing
		err := &IncompleteError{ID: tx.j.ID, Cause: cause, Left: left}
		if tx.env.Announce != nil {
			tx.env.Announce(err)
		}
		return result, err
	}
	_ = os.RemoveAll(tx.aside()) // of an earlier try
	err := tx.env.fault("end", 0)
	if err == nil {
		err = tx.j.Append(journal.Record{Kind: journal.RolledBack, Reason: cause.Error(), Table: tx.carrier.told()}, true)
	}
	return result, &RolledBackError{ID: tx.j.ID, Cause: cause, Journal: err}
}

// aside is the folder of what an operator needs to finish by hand.
func (tx *transaction) aside() string {
	return filepath.Join(tx.env.Dir, fmt.Sprintf("by-hand-%d", tx.j.ID))
}

// undoOrder is the order in which to take steps back, as indices: the reverse,
// but files first. Files change nothing while the machine runs, a module that
// comes back must find modprobe's old configuration, and a machine that stops
// half way through starts with its old files.
func undoOrder(began []undo) []int {
	var files, rest []int
	for i := len(began) - 1; i >= 0; i-- {
		if began[i].Step.File != nil {
			files = append(files, i)
		} else {
			rest = append(rest, i)
		}
	}
	return append(files, rest...)
}

// layer names what a step builds on: while a later rules step on the same
// rules stands, an earlier one cannot come off, and values cannot be put back
// into a module that is not.
func layer(s change.Step) string {
	switch {
	case s.Rules != nil:
		return string(s.Rules.Family) + string(s.Rules.Backend)
	case s.NFT != nil:
		return "nftables"
	case s.File != nil:
		return s.File.Before.Path
	case s.Service != nil:
		return "service"
	default:
		return "modules"
	}
}

func (tx *transaction) undo(ctx context.Context, i int, u undo) (err error) {
	begun := time.Now()
	event := Event{Index: i, Steps: tx.header.Steps, Addresses: u.Step.Addresses, Undo: true}
	tx.progress(event)
	defer func() {
		event.Finished, event.Took, event.Err = true, time.Since(begun), err
		tx.progress(event)
	}()
	if err := tx.env.fault("undo", i); err != nil {
		return err
	}
	u.Rebooted = tx.rebooted
	if err := tx.env.Host.undo(ctx, u); err != nil {
		return err
	}
	if err := tx.env.fault("undone", i); err != nil {
		return err
	}
	_ = tx.j.Append(journal.Record{Kind: journal.Undone, Index: i}, false)
	return nil
}

func (tx *transaction) progress(e Event) {
	if tx.opts.Progress != nil {
		tx.opts.Progress(e)
	}
}

func (env Env) fault(point string, index int) error {
	if env.Fault == nil {
		return nil
	}
	return env.Fault(point, index)
}
