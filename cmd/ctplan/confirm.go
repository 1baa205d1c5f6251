package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
)

func newConfirm(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [ID]",
		Short: "Keep what apply --confirm-within changed",
		Long: `Makes the change stay that waits for its confirmation: with an ID, as history
lists them, that one alone, and one that stays already is no error.

Run it over a new SSH connection: that one comes up is what it confirms. Where
apply ran over SSH, the connection that it ran in is refused, and any other that
was open before the change was made, behind sudo and in tmux too. A connection
that ssh shares (ControlMaster, which Ansible sets) is the old one:

  ssh -o ControlPath=none HOST ctplan confirm

Exit status: 0, 1 when nothing waits, the time is over, or the connection is old.`,
		Example: `  ctplan confirm
  ctplan confirm 12`,
		Args: atMost(1, "the ID of one transaction"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := 0
			if len(args) > 0 {
				var err error
				if id, err = transactionID(args[0]); err != nil {
					return err
				}
			}
			return e.confirm(cmd.Context(), id)
		},
	}
}

// transactionID reads the number of a transaction.
func transactionID(text string) (int, error) {
	id, err := strconv.Atoi(text)
	if err != nil || id < 1 {
		return 0, hint(fmt.Errorf("%q is not the number of a transaction", text), "ctplan history lists them")
	}
	return id, nil
}

func (e *env) confirm(ctx context.Context, id int) error {
	if err := e.needRoot("confirming a change"); err != nil {
		return err
	}
	where := e.transaction(host.Host{}, 0)
	where.Command = "ctplan confirm"
	where.SSH = flows.Reached(e.root)
	c, err := apply.Confirm(ctx, where, id)
	var old *apply.OldConnectionError
	var gone *apply.TakenBackError
	switch {
	case errors.Is(err, apply.ErrNothingToConfirm):
		return hint(err, "ctplan history shows what became of the last one")
	case errors.As(err, &old):
		name := old.Transaction.Host.Name
		if name == "" {
			name = "HOST"
		}
		return hint(err, "open a new one: ssh -o ControlPath=none %s ctplan confirm %d", view.Clean(name), old.Transaction.ID)
	case errors.As(err, &gone):
		return errors.New(view.Clean(gone.Error()))
	case err != nil:
		return err
	}
	if c.Unproven {
		e.warnf("apply ran over SSH, and whether this is another connection cannot be told: see to it that a new one comes up")
	}
	said := "confirmed"
	if c.Already {
		said = "confirmed already"
	}
	_, err = fmt.Fprintf(e.stdout, "%s: transaction %d stays (%s)\n", said, c.ID, view.Clean(c.Summary))
	return err
}

// newWatchdog is the process that apply --confirm-within leaves behind.
func newWatchdog(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "watchdog ID",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("the number of a transaction: %w", err)
			}
			where := e.transaction(host.Host{}, 0)
			where.Command = "ctplan watchdog"
			return apply.Watchdog(cmd.Context(), where, id)
		},
	}
}

// watch starts the watchdog of a transaction: this program, as it runs now.
func (e *env) watch(ctx context.Context, id int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return apply.StartWatchdog(ctx, e.stateDir(), self, []string{"watchdog"}, id)
}

// awaitConfirmation says how to confirm. On a terminal it counts down until the
// transaction is over, one way or the other; the count can be left with
// Ctrl-C, which confirms nothing.
func (e *env) awaitConfirmation(ctx context.Context, id int, within time.Duration) error {
	e.progressf("transaction %d is taken back in %s unless somebody runs, over a new connection: ctplan confirm", id, within.Round(time.Second))
	if !e.stderrTerminal {
		return nil
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	wipe := "\r" + strings.Repeat(" ", 40) + "\r"
	for {
		left, outcome, err := apply.Waiting(e.stateDir(), id)
		if err != nil {
			return err
		}
		switch outcome {
		case journal.Committed:
			fmt.Fprint(e.stderr, wipe)
			e.progressf("confirmed: transaction %d stays", id)
			return nil
		case journal.WasUndone:
			fmt.Fprint(e.stderr, wipe)
			return fmt.Errorf("nobody confirmed transaction %d: everything is as it was before", id)
		case journal.Undoing:
			fmt.Fprintf(e.stderr, "%staking everything back", wipe)
		default:
			fmt.Fprintf(e.stderr, "\r%4d s left to confirm ", int(left.Seconds()+0.5))
		}
		select {
		case <-ctx.Done():
			fmt.Fprint(e.stderr, wipe)
			e.warnf("not waiting any longer; transaction %d is still taken back unless somebody runs ctplan confirm", id)
			return nil
		case <-tick.C:
		}
	}
}

// warnRemote tells somebody who is about to change a host over the connection
// that the change may cut.
func (e *env) warnRemote(within time.Duration) {
	if within == 0 && (e.getenv("SSH_CONNECTION") != "" || len(flows.Reached(e.root)) > 0) {
		e.warnf("this is an SSH session: with --confirm-within 60s a change that cuts it takes itself back")
	}
}
