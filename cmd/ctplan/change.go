package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
)

// changeFlags are the flags of the commands that change the host.
type changeFlags struct {
	full          bool
	autoApprove   bool
	noCarry       bool
	lockTimeout   time.Duration
	confirmWithin time.Duration
}

func (f *changeFlags) register(flags *pflag.FlagSet) {
	flags.BoolVar(&f.full, "full", false, "show long changes in full")
	flags.BoolVar(&f.autoApprove, "auto-approve", false, "do not ask")
	flags.BoolVar(&f.noCarry, "no-carry", false, "leave the kernel's table of connections as it is: tell tracking of none that is open, take no entry out")
	flags.DurationVar(&f.confirmWithin, "confirm-within", 0, "take everything back after this `TIME` unless ctplan confirm comes: 60s, 5m")
	lockTimeoutFlag(flags, &f.lockTimeout)
}

// Confirmation within less than this is out of a person's reach, and beyond
// more than that nobody remembers.
const (
	shortestWait = 5 * time.Second
	longestWait  = 24 * time.Hour
)

func (f *changeFlags) check() error {
	if f.confirmWithin != 0 && (f.confirmWithin < shortestWait || f.confirmWithin > longestWait) {
		return hint(fmt.Errorf("--confirm-within %s: it should be between %s and %s", f.confirmWithin, shortestWait, longestWait), "try --confirm-within 60s")
	}
	if f.lockTimeout < 0 {
		return fmt.Errorf("--lock-timeout %s: it should not be negative", f.lockTimeout)
	}
	return nil
}

// canAsk refuses where a yes would be needed and nobody can give it.
func (e *env) canAsk(f changeFlags, otherwise string) error {
	if f.autoApprove || e.stdinTerminal {
		return nil
	}
	return hint(errors.New("there is no terminal to ask for approval on"), "%s", otherwise)
}

// change carries out steps that have been shown and approved. o says how to
// check and read back; the rest of it is set here.
func (e *env) change(ctx context.Context, where apply.Env, steps []change.Step, plan planner.Plan, f changeFlags, o apply.Options) error {
	where.Watch = e.watch
	where.SSH = flows.Reached(e.root)
	o.Summary = view.Summary(plan, view.Plan)
	o.Back = plan.Mode == declared.GoingBack
	o.ConfirmWithin = f.confirmWithin
	o.Progress = e.progress()
	o.Prepare = func(context.Context) { e.loosen(plan.Impact) }
	e.changing.Store(true)
	result, err := apply.Run(ctx, where, steps, o)
	e.changing.Store(false)
	if err != nil {
		return err
	}
	e.tellTable(result.Table)
	_, err = fmt.Fprintln(e.stdout, view.Summary(plan, view.Applied))
	if err != nil && !errors.Is(err, syscall.EPIPE) { // the change is made, whoever listens
		return err
	}
	if result.Outcome == journal.Waiting {
		return e.awaitConfirmation(ctx, result.ID, result.Deadline)
	}
	return nil
}

// loosen has connections that leave tracking find back, whenever they are
// tracked again.
func (e *env) loosen(impact *impact.Impact) {
	if impact == nil {
		return
	}
	if err := flows.Loosen(impact.Leaving); err != nil {
		e.warnf("%v: connections that are open now may break if they are tracked again later", err)
	}
}

// carrying are the rules by which a change carries connections over; nil where
// it does not: what is tracked stays the same, or somebody said so.
func (e *env) carrying(f changeFlags, d declared.Desired, l host.Live, steps []change.Step) *carry.Rules {
	if f.noCarry || e.root != "" || l.Connections == nil || !apply.TouchesTracking(steps) {
		return nil
	}
	return planner.Carrying(d, l, steps, iptables.Words)
}

// tellTable says what became of the kernel's table of connections.
func (e *env) tellTable(t *journal.Table) {
	if t == nil {
		return
	}
	if text := view.Table(t); text != "" {
		e.progressf("%s", text)
	}
	if t.Trouble != "" {
		e.warnf("not all connections could be carried over: %s; those may be cut off", view.Clean(t.Trouble))
	}
}

// slow is how long a step may take without a word about it.
const slow = 500 * time.Millisecond

// progress reports the steps that take long, and whatever goes wrong. It is
// called for one event after the other.
func (e *env) progress() func(apply.Event) {
	var timer *time.Timer
	return func(ev apply.Event) {
		what := enumerate(ev.Addresses)
		step := fmt.Sprintf("[%d/%d] %s", ev.Index+1, ev.Steps, what)
		if ev.Undo {
			step = "taking back " + what
		}
		if !ev.Finished {
			timer = time.AfterFunc(slow, func() { e.progressf("%s …", step) })
			return
		}
		if timer != nil {
			timer.Stop()
		}
		switch {
		case ev.Err != nil && ev.Undo:
			e.warnf("could not take back %s: %v", what, ev.Err)
		case ev.Err != nil:
			e.warnf("%s failed: taking everything back", step)
		case ev.Took >= slow:
			e.progressf("%s done in %s", step, ev.Took.Round(100*time.Millisecond))
		}
	}
}

func addresses(p planner.Plan) []string {
	var out []string
	for _, c := range p.Changes {
		out = append(out, c.Meta().Address)
	}
	for _, b := range p.Blocks {
		out = append(out, b.Address+" ("+b.Why+")")
	}
	return out
}
