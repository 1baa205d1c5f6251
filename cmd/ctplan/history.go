package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

func newHistory(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history",
		Short: "List what ctplan changed on this host",
		Long:  `Lists the transactions of this host, the newest last: when, who, what the plan was, and what became of it. The last hundred are kept.`,
		Args:  atMost(0, "no argument"),
		RunE: func(*cobra.Command, []string) error {
			if err := e.needRoot("reading the history"); err != nil {
				return err
			}
			all, err := apply.History(e.stateDir())
			if err != nil {
				return err
			}
			if asJSON {
				return e.historyJSON(all)
			}
			return e.historyText(all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (e *env) historyText(all []journal.Transaction) error {
	if len(all) == 0 {
		e.progressf("ctplan has not changed this host yet")
		return nil
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tWHEN\tWHO\tRESULT\tPLAN")
	for _, t := range all {
		result := string(t.Outcome)
		if t.Err != nil {
			result += ": " + t.Err.Error()
		} else if t.Reason != "" {
			result += ": " + firstLine(t.Reason)
		}
		if t.Table != nil {
			if did := view.Table(t.Table); did != "" {
				result += "; " + did
			}
			if t.Table.Trouble != "" {
				result += "; not all carried over: " + firstLine(t.Table.Trouble)
			}
		}
		when := ""
		if !t.Time.IsZero() {
			when = t.Time.Local().Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", t.ID, when, view.Clean(whoText(t.Who)), view.Clean(result), view.Clean(t.Summary))
	}
	return w.Flush()
}

func firstLine(s string) string {
	const most = 80
	line, _, more := strings.Cut(s, "\n")
	if runes := []rune(line); len(runes) > most {
		line, more = string(runes[:most]), true
	}
	if more {
		line += "…"
	}
	return line
}

func whoText(w journal.Who) string {
	who := w.User
	if who == "" {
		who = "uid " + strconv.Itoa(w.UID)
	}
	if from, _, _ := strings.Cut(w.SSH, " "); from != "" {
		who += " from " + from
	}
	return who
}

// historyEntry is a transaction as history --json prints it: see docs/json.md.
type historyEntry struct {
	ID      int        `json:"id"`
	Time    time.Time  `json:"time"`
	Ended   *time.Time `json:"ended"`
	User    string     `json:"user"`
	UID     int        `json:"uid"`
	SSH     string     `json:"ssh"`
	Version string     `json:"ctplan_version"`
	Summary string     `json:"summary"`
	Outcome string     `json:"outcome"`
	Reason  string     `json:"reason"`

	// What became of the kernel's table of connections; absent where nothing did.
	Table *journal.Table `json:"table,omitempty"`
}

type historyReport struct {
	FormatVersion int            `json:"format_version"`
	Transactions  []historyEntry `json:"transactions"`
}

func (e *env) historyJSON(all []journal.Transaction) error {
	r := historyReport{FormatVersion: planner.FormatVersion, Transactions: []historyEntry{}}
	for _, t := range all {
		entry := historyEntry{
			ID: t.ID, Time: t.Time, User: t.Who.User, UID: t.Who.UID, SSH: t.Who.SSH, Version: t.Version,
			Summary: t.Summary, Outcome: string(t.Outcome), Reason: t.Reason, Table: t.Table,
		}
		if !t.Ended.IsZero() {
			entry.Ended = &t.Ended
		}
		if t.Err != nil {
			entry.Reason = t.Err.Error()
		}
		r.Transactions = append(r.Transactions, entry)
	}
	return view.EncodeJSON(e.stdout, r)
}

// rollbacker is one run of rollback.
type rollbacker struct {
	*env
	flags changeFlags
}

func newRollback(e *env) *cobra.Command {
	r := rollbacker{env: e}
	cmd := &cobra.Command{
		Use:   "rollback [ID]",
		Short: "Plan the way back, and go it",
		Long: `Takes back the last transaction, or with an ID, as history lists them, that one
and all since: the way back is a plan like any other, shown and approved.

A change that still waits for its confirmation is taken back at once.

Exit status: 0, 1 on errors or without a yes, 3 when blocked.`,
		Args: atMost(1, "the ID of one transaction"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := 0
			if len(args) > 0 {
				var err error
				if id, err = transactionID(args[0]); err != nil {
					return err
				}
			}
			return r.rollback(cmd.Context(), id)
		},
	}
	r.flags.register(cmd.Flags())
	return cmd
}

func (r *rollbacker) rollback(ctx context.Context, id int) error {
	if err := r.needRoot("changing this host"); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE)
	if err := r.flags.check(); err != nil {
		return err
	}
	env := r.transaction(host.Host{}, r.flags.lockTimeout)
	env.Command = "ctplan rollback"
	pending, err := apply.Pending(r.stateDir())
	if err != nil {
		return err
	}
	if pending != nil && pending.Left > 0 && (id == 0 || id == pending.Transaction.ID) {
		results, err := apply.Reject(ctx, env, r.progress())
		for _, res := range results {
			r.progressf("transaction %d was not confirmed: everything is as it was before it", res.ID)
		}
		return err
	}
	if err := r.recoverFirst(ctx, r.flags.lockTimeout); err != nil {
		return err
	}
	if err := r.canAsk(r.flags, "give --auto-approve"); err != nil {
		return err
	}
	// As in apply: where nobody is asked, one lock over reading and changing.
	held := &heldLock{env: r.env, timeout: r.flags.lockTimeout}
	defer held.release()
	if r.flags.autoApprove {
		if err := held.take(ctx); err != nil {
			return err
		}
	}
	back, err := r.wayBack(ctx, env, id)
	if err == nil && planner.NeedsConnections(back.plan) {
		back.snapshot.ReadConnections(r.root, r.getenv("SSH_CONNECTION"), 0)
		err = back.judge(r.flags)
	}
	switch {
	case errors.Is(err, apply.ErrNoTransaction) && id == 0:
		return r.say("nothing to take back: nothing was changed that was not taken back already")
	case errors.Is(err, apply.ErrNoTransaction):
		return hint(err, "ctplan history lists what was changed")
	case err != nil:
		return err
	case back.plan.Empty():
		return r.say("nothing to do: the host is as it was then")
	}
	o := view.Options{Verb: view.Apply, Color: r.colorFor(r.stdoutTerminal), Width: r.width, Full: r.flags.full}
	if err := view.Text(r.stdout, back.plan, o); err != nil {
		return fmt.Errorf("printing the plan: %w", err)
	}
	if back.plan.Blocked() {
		return status(exitBlocked)
	}
	r.warnRemote(r.flags.confirmWithin)
	if !r.flags.autoApprove {
		if back, err = r.approved(ctx, env, id, back, held); err != nil {
			return err
		}
	}
	env.Identity = back.snapshot.Host
	env.Lock = held.give()
	return r.change(ctx, env, back.steps, back.plan, r.flags, apply.Options{
		Carry: r.carrying(r.flags, declared.Desired{Mode: back.plan.Mode}, back.live, back.steps),
		Verify: func(ctx context.Context) error {
			left, err := r.wayBack(ctx, env, id)
			if err == nil && !left.plan.Empty() {
				err = fmt.Errorf("the host is not as it was then: %s", enumerate(addresses(left.plan)))
			}
			return err
		},
	})
}

// say prints a line as the result.
func (r *rollbacker) say(line string) error {
	_, err := fmt.Fprintln(r.stdout, line)
	return err
}

// wayBack is a way back, and the host that it was planned for.
type wayBack struct {
	plan     planner.Plan
	steps    []change.Step
	snapshot *snapshot.Snapshot
	live     host.Live
}

// judge adds what becomes of the connections that are open now.
func (b *wayBack) judge(f changeFlags) error {
	live, err := b.snapshot.Live()
	if err != nil {
		return err
	}
	b.live, b.plan = live, b.plan.Judged(declared.Desired{NoCarry: f.noCarry}, live, b.steps, iptables.Words)
	return nil
}

// wayBack reads the host and plans.
func (r *rollbacker) wayBack(ctx context.Context, env apply.Env, id int) (*wayBack, error) {
	s, err := snapshot.Read(ctx, snapshot.Options{Root: r.root})
	if err != nil {
		return nil, err
	}
	live, err := s.Live()
	if err != nil {
		return nil, err
	}
	plan, steps, err := apply.Back(env, id, live)
	if err != nil {
		return nil, err
	}
	return &wayBack{plan, steps, s, live}, nil
}

// approved waits for a yes, and plans once more under the lock: see
// applier.again.
func (r *rollbacker) approved(ctx context.Context, env apply.Env, id int, was *wayBack, held *heldLock) (*wayBack, error) {
	if err := r.ask(ctx, was.plan.Host.Name); err != nil {
		return nil, err
	}
	if err := held.take(ctx); err != nil {
		return nil, err
	}
	now, err := r.wayBack(ctx, env, id)
	if err != nil {
		return nil, err
	}
	changed := snapshot.Compare(was.snapshot, now.snapshot)
	if len(changed) == 0 {
		return was, nil
	}
	now.snapshot.Connections = was.snapshot.Connections
	if now.snapshot.Connections != nil {
		if err := now.judge(r.flags); err != nil {
			return nil, err
		}
	}
	return now, r.stillGood(changed, "while the plan was shown", planner.Made{Live: was.live, Plan: was.plan}, planner.Made{Live: now.live, Plan: now.plan})
}
