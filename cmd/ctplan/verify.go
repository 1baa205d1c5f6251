package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/verify"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kernlog"
	"github.com/ctplan/ctplan/providers/kmod"
)

func newVerify(e *env) *cobra.Command {
	v := verifier{env: e}
	cmd := &cobra.Command{
		Use:   "verify [PATH]",
		Short: "Tell whether the mode is in effect, and not only configured",
		Long: `Checks that the declared mode works on this host: that no module is left, or
that NOTRACK takes the declared packets and they leave no entries, or that the
sizes are in force, now and at the next boot; and that since the last change the
kernel has neither logged a full table nor counted what failed. Changes nothing.

Each check passes, fails, or is skipped with the reason. Without traffic some
cannot be told: --wait 60s watches counters and the table for that long.

Exit status: 0 when no check fails, 1 on errors, 2 when one fails.`,
		Example: `  ctplan verify
  ctplan verify --wait 60s /etc/ctplan`,
		Args: atMost(1, "one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.verify(cmd.Context(), args)
		},
	}
	v.vars.register(cmd.Flags())
	cmd.Flags().DurationVar(&v.wait, "wait", 0, "watch for this `TIME`: 60s, 5m")
	cmd.Flags().BoolVar(&v.asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&v.metrics, "metrics-file", "", metricsUsage)
	cmd.Flags().BoolVar(&v.full, "full", false, "show what passing checks found, too")
	return cmd
}

// verifier is one run of verify.
type verifier struct {
	*env
	vars         varFlags
	wait         time.Duration
	asJSON, full bool
	metrics      string
}

func (v *verifier) verify(ctx context.Context, args []string) error {
	if v.wait < 0 || v.wait > longestWait {
		return hint(fmt.Errorf("--wait %s: it should be between 0 and %s", v.wait, longestWait), "try --wait 60s")
	}
	in, err := v.look(ctx, args)
	var report *verify.Report
	if err == nil {
		report = verify.NewReport(*in)
	}
	if v.metrics != "" {
		if werr := writeMetrics(v.metrics, verifyMetrics(in, report, time.Now())); werr != nil && err == nil {
			err = werr
		}
	}
	if err != nil {
		return err
	}
	if v.asJSON {
		err = view.EncodeJSON(v.stdout, report)
	} else {
		err = view.Verify(v.stdout, report, view.Options{Color: v.colorFor(v.stdoutTerminal), Width: v.width, Full: v.full})
	}
	if err != nil {
		return fmt.Errorf("printing what was verified: %w", err)
	}
	if report.Summary.Fail > 0 {
		return status(exitChanges)
	}
	return nil
}

// look reads the host and the configuration.
func (v *verifier) look(ctx context.Context, args []string) (*verify.Input, error) {
	if err := v.needRoot("verifying this host"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, err := snapshot.Start(ctx, v.root, nil)
	if err != nil {
		return nil, err
	}
	c, err := openConfig(v.env, args, v.vars)
	if err != nil {
		return nil, err
	}
	v.warnPending()
	p, err := c.planHost(reader)
	if err != nil {
		return nil, err
	}
	return v.read(ctx, c, p)
}

// read reads what the checks are made from; with --wait, twice.
func (v *verifier) read(ctx context.Context, c *config, p *planned) (*verify.Input, error) {
	now := time.Now()
	in := &verify.Input{Desired: p.desired, Live: p.live, Plan: p.plan, Change: v.lastChange(), Boot: bootTime(now)}
	first := v.sight(ctx, p.desired, p.live)
	last := first
	var observer *verify.Observer
	addresses, err := flows.Addresses()
	if err == nil {
		observer = verify.NewObserver(p.desired, p.live, addresses)
	}
	tableErr := err
	if v.wait > 0 {
		if tableErr == nil {
			tableErr = v.entries(ctx, first.tracked, observer.Remember)
		}
		begun := time.Now() // a reading takes a while: no entry was watched for longer
		v.progressf("watching for %s …", v.wait)
		if in.Peak, err = v.watch(ctx); err != nil {
			return nil, err
		}
		in.Watched = time.Since(begun)
		if p, err = v.again(ctx, c); err != nil {
			return nil, err
		}
		in.Live, in.Plan = p.live, p.plan
		last = v.sight(ctx, p.desired, p.live)
		in.Before = first.stats
	}
	in.Stats, in.StatsErr = last.stats, last.statsErr
	if tableErr == nil {
		since := time.Duration(0)
		if !in.Change.Time.IsZero() {
			since = time.Since(in.Change.Time)
		}
		tableErr = v.entries(ctx, last.tracked, func(e *flows.Entry) { observer.Sort(e, in.Watched, since) })
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for i, t := range in.Desired.Notrack {
		seen := verify.BlockSeen{Before: first.packets[t.Name], Packets: last.packets[t.Name]}
		if tableErr != nil {
			seen.EntriesErr = tableErr.Error()
		} else {
			seen.Entries = observer.Entries(i)
		}
		in.Blocks = append(in.Blocks, seen)
	}
	in.Askers = census.Askers(in.Live)
	in.Log = kernlog.Read(ctx, kernlog.Options{Root: v.root, Since: in.Since(), Netns: networkNamespace()})
	return in, ctx.Err()
}

// again reads the host once more.
func (v *verifier) again(ctx context.Context, c *config) (*planned, error) {
	reader, err := snapshot.Start(ctx, v.root, nil)
	if err != nil {
		return nil, err
	}
	return c.planHost(reader)
}

// sighting is what the kernel has counted at one moment.
type sighting struct {
	tracked  bool // there is a table to read
	stats    *flows.Stats
	statsErr string
	packets  map[string]uint64 // that the NOTRACK rules of each block took
}

func (v *verifier) sight(ctx context.Context, d declared.Desired, live host.Live) sighting {
	s := sighting{tracked: live.Conntrack.Loaded, packets: map[string]uint64{}}
	if s.tracked {
		var err error
		if s.stats, err = flows.ReadStats(v.root); err != nil {
			s.statsErr = err.Error()
		}
	}
	for _, rs := range live.Rulesets {
		for _, t := range rs.Tables {
			if rs.Primary && t.Name == "raw" && ctx.Err() == nil {
				v.count(d, rs.Family, t, s.packets)
			}
		}
	}
	return s
}

// count adds what the NOTRACK rules of each block have taken in a table.
func (v *verifier) count(d declared.Desired, f host.Family, t host.Table, packets map[string]uint64) {
	for _, chain := range t.Chains {
		if !strings.HasPrefix(chain.Name, declared.OwnPrefix) {
			continue
		}
		counters, err := (iptables.Tools{}).Counters(f, t.Name, chain.Name)
		if err != nil { // it went meanwhile
			v.warnf("%v", err)
			continue
		}
		for _, n := range counters {
			words := iptables.Words(n.Rule)
			for _, block := range d.Notrack {
				if verify.Named(words, block.Name) {
					packets[block.Name] += n.Packets
				}
			}
		}
	}
}

// entries reads the table, where there is one.
func (v *verifier) entries(ctx context.Context, tracked bool, take func(*flows.Entry)) error {
	if !tracked {
		return nil
	}
	return flows.Each(ctx, func(e *flows.Entry) error { take(e); return nil })
}

// sampling is how often the number of entries is read while watching.
const sampling = 200 * time.Millisecond

// watch waits, and returns the most entries that it saw.
func (v *verifier) watch(ctx context.Context) (peak int64, err error) {
	end := time.NewTimer(v.wait)
	defer end.Stop()
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for {
		if n, err := kmod.ReadCount(v.root); err == nil { // else it is not loaded
			peak = max(peak, n)
		}
		select {
		case <-ctx.Done():
			return peak, ctx.Err()
		case <-end.C:
			return peak, nil
		case <-tick.C:
		}
	}
}

// lastChange is what ctplan did last, and what it made of the maximum.
func (v *verifier) lastChange() verify.Change {
	all, err := apply.History(v.stateDir())
	if err != nil {
		v.warnf("%v: the time of the last change is not known", err)
		return verify.Change{}
	}
	var c verify.Change
	for _, t := range all {
		if t.Outcome != journal.Committed && t.Outcome != journal.Waiting || t.Changed.IsZero() {
			continue
		}
		c.ID, c.Time = t.ID, t.Changed.Local()
		for _, s := range t.Steps {
			if s.Sysctl != nil && s.Done && strings.HasSuffix(s.Sysctl.Key, ".nf_conntrack_max") {
				c.OldMax = s.Sysctl.Before
			}
		}
	}
	return c
}

// bootTime is when this machine was started.
func bootTime(now time.Time) time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	return now.Add(-time.Duration(up.Nano()))
}

// networkNamespace is the inode number of this process's; 0 where it has none.
func networkNamespace() uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		return 0
	}
	return st.Ino
}
