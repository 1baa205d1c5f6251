package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/internal/planfile"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/host"
)

// applier is one run of apply.
type applier struct {
	*env
	vars  varFlags
	flags changeFlags
}

func newApply(e *env) *cobra.Command {
	a := applier{env: e}
	cmd := &cobra.Command{
		Use:   "apply [PLANFILE|PATH]",
		Short: "Change the host as planned, as one transaction",
		Long: `Plans, shows the plan, asks for a yes and changes the host: all of it or, when
anything fails, none of it. A saved plan needs no yes, because it was reviewed.
Where the host changed since, ctplan plans again: it goes on if that gives the
same changes and hurts nobody else, and refuses if not.

Without a terminal to ask on, apply needs a saved plan or --auto-approve.

With --confirm-within, everything is taken back after that time unless ctplan
confirm comes, run over a new connection: by a process of its own, even if this
one is killed or the connection is cut.

Exit status: 0, 1 on errors or without a yes, 3 when blocked.`,
		Example: `  ctplan apply
  ctplan apply --confirm-within 60s
  ctplan plan --out change.ctplan && ctplan apply change.ctplan`,
		Args: atMost(1, "one saved plan or path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), args)
		},
	}
	a.vars.register(cmd.Flags())
	a.flags.register(cmd.Flags())
	return cmd
}

func (a *applier) run(ctx context.Context, args []string) error {
	if err := a.needRoot("changing this host"); err != nil {
		return err
	}
	// A reader that goes away must not kill ctplan between two steps.
	signal.Ignore(syscall.SIGPIPE)
	if err := a.flags.check(); err != nil {
		return err
	}
	saved := len(args) > 0 && planfile.Looks(args[0])
	if !saved {
		if err := a.canAsk(a.flags, "save and review a plan first: ctplan plan --out FILE, then ctplan apply FILE; or give --auto-approve"); err != nil {
			return err
		}
	}
	// The HCL is read before anything happens, recovery included.
	var c *config
	var file *planfile.Plan
	var p *planned
	var err error
	if saved {
		if file, p, err = a.openPlan(args[0]); err != nil {
			return err
		}
	} else if c, err = openConfig(a.env, args, a.vars); err != nil {
		return err
	}
	if err := a.recoverFirst(ctx, a.flags.lockTimeout); err != nil {
		return err
	}
	return a.carryOut(ctx, c, file, p)
}

// carryOut plans by c, shows the plan, asks where somebody is to be asked, and
// carries it out; or a saved plan, where file and p are not nil.
func (a *applier) carryOut(ctx context.Context, c *config, file *planfile.Plan, p *planned) error {
	saved := file != nil
	// Where nobody is asked, nothing else happens between reading and
	// changing: one lock over both, and the host need not be read again.
	held := &heldLock{env: a.env, timeout: a.flags.lockTimeout}
	defer held.release()
	if !saved {
		if a.flags.autoApprove {
			if err := held.take(ctx); err != nil {
				return err
			}
		}
		var err error
		if p, err = a.planNow(ctx, c); err != nil {
			return err
		}
	}
	p.desired.NoCarry = a.flags.noCarry
	// What is open now counts, not what was when a saved plan was made.
	if err := a.judge(p); err != nil {
		return err
	}
	if err := a.showPlans([]*planned{p}, view.Apply, formatFlags{format: "text", full: a.flags.full}); err != nil {
		return err
	}
	if p.plan.Blocked() {
		return status(exitBlocked)
	}
	if p.plan.Empty() && !saved {
		return nil
	}
	if !p.plan.Empty() {
		a.warnRemote(a.flags.confirmWithin)
		if !saved && !a.flags.autoApprove {
			if err := a.ask(ctx, p.plan.Host.Name); err != nil {
				return err
			}
		}
	}
	if held.lock == nil {
		if err := held.take(ctx); err != nil {
			return err
		}
		var err error
		if p, err = a.again(ctx, p, file); err != nil || p.plan.Empty() { // "nothing to change" holds for the host that was planned for
			return err
		}
	}
	where := a.transaction(p.snapshot.Host, a.flags.lockTimeout)
	where.Lock = held.give()
	where.Host.Seen(p.live.Rulesets)
	steps := planner.Steps(p.plan)
	return a.change(ctx, where, steps, p.plan, a.flags, apply.Options{
		Carry:  a.carrying(a.flags, p.desired, p.live, steps),
		Verify: func(ctx context.Context) error { return a.readBack(ctx, p) },
	})
}

// heldLock is the lock of this host from reading it to changing it.
type heldLock struct {
	env     *env
	timeout time.Duration
	lock    *lock.Lock
}

func (h *heldLock) take(ctx context.Context) (err error) {
	where := h.env.transaction(host.Host{}, h.timeout)
	h.lock, err = lock.Acquire(ctx, where.LockPath, where.Command, where.LockTimeout)
	return err
}

// give hands the lock to who releases it.
func (h *heldLock) give() *lock.Lock {
	l := h.lock
	h.lock = nil
	return l
}

func (h *heldLock) release() {
	if l := h.give(); l != nil {
		l.Release()
	}
}

func lockTimeoutFlag(flags *pflag.FlagSet, d *time.Duration) {
	flags.DurationVar(d, "lock-timeout", 0, "how long to wait for another ctplan to finish: 30s, 2m")
}

// planNow reads the host and plans for it.
func (a *applier) planNow(ctx context.Context, c *config) (*planned, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, err := snapshot.Start(ctx, a.root, nil)
	if err != nil {
		return nil, err
	}
	return c.planHost(reader)
}

// openPlan reads a saved plan that this ctplan made.
func (a *applier) openPlan(path string) (*planfile.Plan, *planned, error) {
	file, p, err := loadPlan(path)
	if err != nil {
		return nil, nil, err
	}
	if v := readBuild().String(); file.CtplanVersion != v {
		return nil, nil, hint(fmt.Errorf("the plan %q was made by ctplan %s, and this is %s, which may plan otherwise", path, file.CtplanVersion, v),
			"make the plan again")
	}
	return file, p, nil
}

// recoverFirst takes back what an earlier run was cut off in.
func (e *env) recoverFirst(ctx context.Context, lockTimeout time.Duration) error {
	e.changing.Store(true)
	defer e.changing.Store(false)
	results, err := apply.Recover(ctx, e.transaction(host.Host{}, lockTimeout), e.progress())
	for _, r := range results {
		e.warnf("transaction %d had been cut off: everything was put back as it was before it", r.ID)
		e.tellTable(r.Table)
	}
	return err
}

// warnPending says that an earlier run was cut off, and that its changes are
// part of what is being looked at.
func (e *env) warnPending() {
	if pending, err := apply.Pending(e.stateDir()); err != nil {
		e.warnf("looking for unfinished transactions: %v", err)
	} else if pending != nil {
		e.warnf("%v", pending)
	}
}

// again reads the host once more, under the lock, and plans again where it is
// not what the plan was made from. It refuses to go on if that gives another
// plan or hurts somebody else; what differs besides is told.
func (a *applier) again(ctx context.Context, p *planned, file *planfile.Plan) (*planned, error) {
	now, err := a.read(ctx, p)
	if err != nil {
		return nil, err
	}
	now.Connections = p.snapshot.Connections // who is hurt is to differ by what the host is alone
	changed := snapshot.Compare(p.snapshot, now)
	if was, is := p.snapshot.Host, now.Host; was.Name != is.Name {
		return nil, hint(fmt.Errorf("the plan is for host %s, and this is %s: nothing was changed", was.Name, is.Name), "apply it there")
	} else if was.MachineID != is.MachineID {
		return nil, hint(fmt.Errorf("the plan is for another machine named %s (host.machine_id differs): nothing was changed", was.Name), "apply it there")
	}
	if len(changed) == 0 { // nor would the plan
		live, err := now.Live()
		p.live.Rulesets = live.Rulesets
		return p, err
	}
	fresh, err := diff(p.desired, p.digest, now)
	if err != nil {
		return nil, err
	}
	since := "while the plan was shown"
	if file != nil {
		since = "since the plan was made (" + age(file.Created, time.Now()) + ")"
	}
	return fresh, a.stillGood(changed, since, planner.Made{Desired: p.desired, Live: p.live, Plan: p.plan}, planner.Made{Desired: p.desired, Live: fresh.live, Plan: fresh.plan})
}

// stillGood refuses where the facts that changed make now another plan than
// was, or a worse one, and tells of them where they do not.
func (e *env) stillGood(changed []string, since string, was, now planner.Made) error {
	worse := planner.Worse(was, now)
	for _, address := range changed {
		if snapshot.Declared(address) {
			worse = append(worse, "the configuration can say otherwise where "+address+" does")
		}
	}
	if len(worse) > 0 {
		return hint(fmt.Errorf("the host changed %s: %s; planned again, %s; nothing was changed by ctplan", since, enumerate(changed), view.Clean(few(worse, 3, "; "))),
			"plan again, and look at what is different")
	}
	e.progressf("%s changed %s: planned again, the changes are the same, and nobody else is hurt", enumerate(changed), since)
	return nil
}

// readBack holds the host against what was declared once more.
func (a *applier) readBack(ctx context.Context, p *planned) error {
	now, err := a.read(ctx, p)
	if err != nil {
		return err
	}
	after, err := draft(p.desired, p.digest, now)
	if err != nil {
		return err
	}
	if after.plan.Empty() {
		return nil
	}
	return fmt.Errorf("the host is not as planned: %s", enumerate(addresses(after.plan)))
}

func (a *applier) read(ctx context.Context, p *planned) (*snapshot.Snapshot, error) {
	return snapshot.Read(ctx, snapshot.Options{
		Root: a.root, Files: p.desired.Files, InitScripts: p.desired.InitScripts,
	})
}

// ask waits for a yes.
func (e *env) ask(ctx context.Context, host string) error {
	fmt.Fprintf(e.stderr, "\nApply this to %s? Only \"yes\" does: ", view.Clean(host))
	answers := make(chan string, 1)
	go func() {
		answer, err := bufio.NewReader(io.LimitReader(e.stdin, 1<<10)).ReadString('\n')
		if err != nil {
			answer = ""
		}
		answers <- strings.TrimSpace(answer)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(e.stderr)
		return fmt.Errorf("waiting for approval: %w; nothing was changed", ctx.Err())
	case answer := <-answers:
		if answer != "yes" {
			return errors.New("not approved: nothing was changed")
		}
		return nil
	}
}

// enumerate lists a few of many addresses.
func enumerate(addresses []string) string { return few(addresses, 8, ", ") }

// few are at most n of many, and how many more there are.
func few(items []string, n int, separator string) string {
	if len(items) <= n {
		return strings.Join(items, separator)
	}
	return strings.Join(items[:n], separator) + fmt.Sprintf(" and %d more", len(items)-n)
}

func newRecover(e *env) *cobra.Command {
	var lockTimeout time.Duration
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Take back a change that was cut off",
		Long:  `Puts everything back as it was before a transaction that a crash or a power failure cut off. apply does the same before it begins.`,
		Args:  atMost(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.needRoot("changing this host"); err != nil {
				return err
			}
			signal.Ignore(syscall.SIGPIPE)
			return e.recoverFirst(cmd.Context(), lockTimeout)
		},
	}
	lockTimeoutFlag(cmd.Flags(), &lockTimeout)
	return cmd
}
