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
	"github.com/ctplan/ctplan/planner/host"
)

func newConfirm(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep what apply --confirm-within changed",
		Long: `Makes the change stay that waits for its confirmation. Run it over a new
connection: that it can be run there is what it confirms.

Exit status: 0, 1 when nothing waits or the time is over.`,
		Args: atMost(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.needRoot("confirming a change"); err != nil {
				return err
			}
			where := e.transaction(host.Host{}, 0)
			where.Command = "ctplan confirm"
			t, err := apply.Confirm(cmd.Context(), where)
			switch {
			case errors.Is(err, apply.ErrNothingToConfirm):
				return hint(err, "ctplan history shows what became of the last one")
			case err != nil:
				return err
			}
			_, err = fmt.Fprintf(e.stdout, "confirmed: transaction %d stays (%s)\n", t.ID, t.Summary)
			return err
		},
	}
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
	if within == 0 && e.overSSH() {
		e.warnf("this is an SSH session: with --confirm-within 60s a change that cuts it takes itself back")
	}
}

// overSSH reports whether this process belongs to an SSH session. sudo drops
// SSH_CONNECTION, so the processes above it are asked too.
func (e *env) overSSH() bool {
	if e.getenv("SSH_CONNECTION") != "" {
		return true
	}
	for pid, depth := os.Getppid(), 0; pid > 1 && depth < 64; depth++ {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		// "PID (comm) state PPID …", where comm may hold anything.
		text := string(data)
		open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		if open < 0 || end < open {
			return false
		}
		if strings.HasPrefix(text[open+1:end], "sshd") {
			return true
		}
		fields := strings.Fields(text[end+1:])
		if len(fields) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false
		}
	}
	return false
}
