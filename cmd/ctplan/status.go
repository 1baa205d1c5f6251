package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/suggest"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/kernlog"
	"github.com/ctplan/ctplan/providers/kmod"
)

// Bounds of the flags of status.
const (
	mostTop       = 100
	longestSample = time.Hour
	leastInterval = 500 * time.Millisecond
)

func newStatus(e *env) *cobra.Command {
	var asJSON, watch bool
	var interval, sample time.Duration
	var top int
	var metricsFile string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how full the table is, what fills it, and when it will be full",
		Long: `Shows connection tracking as it is on this host, on one screen: the mode, whether
the kernel tracks and which rules ask for it; how full the table is, how fast it
grows and when it will be full; how long entries wait; what was dropped; what the
next boot brings; the entries by protocol and state, by service, by the hosts
that open connections and those that are called, and what taking a service out
of tracking would free; the packets that each of ctplan's chains has treated.

It needs no configuration and changes nothing. The growth is what happens while
it looks, for about half a second; --sample looks longer, and --watch goes on.
On a host that does not track, nothing is asked that would load a module.`,
		Args: atMost(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case sample < 0 || sample > longestSample:
				return hint(fmt.Errorf("--sample %s: it should be between 0 and %s", sample, longestSample), "0, the default, is as long as it takes to look")
			case top < 1 || top > mostTop:
				return fmt.Errorf("--top %d: it should be between 1 and %d", top, mostTop)
			case watch && asJSON:
				return hint(errors.New("--watch draws on a terminal, --json is for programs"), "run ctplan status --json again and again")
			case !watch && cmd.Flags().Changed("interval"):
				return hint(errors.New("--interval is for --watch"), "ctplan status --watch --interval %s", interval)
			case watch && interval < leastInterval:
				return hint(fmt.Errorf("--interval %s is too short", interval), "listing the table is work for the kernel: take %s or more", leastInterval)
			case watch && metricsFile != "":
				return hint(errors.New("--watch draws on a terminal, --metrics-file is for a schedule"), "run ctplan status --metrics-file %s again and again", metricsFile)
			case watch && !e.stdoutTerminal:
				return hint(errors.New("--watch redraws a terminal, and standard output is none"), "leave --watch out, and run ctplan status again and again")
			}
			if watch && e.getenv("TERM") == "dumb" {
				return hint(errors.New("--watch redraws a terminal, and TERM=dumb says that this one cannot be redrawn"), "leave --watch out, and run ctplan status again and again")
			}
			if err := e.needRoot("reading the rules of this host"); err != nil {
				return err
			}
			r := &statusReader{env: e, sample: sample, top: top}
			if watch {
				return e.watchStatus(cmd.Context(), r, interval)
			}
			s, err := r.read(cmd.Context())
			if err != nil {
				return err
			}
			if metricsFile != "" {
				if err := writeMetrics(metricsFile, growthMetrics(s)); err != nil {
					return err
				}
			}
			if asJSON {
				return view.EncodeJSON(e.stdout, s)
			}
			columns, _ := e.terminalSize()
			return view.StatusText(e.stdout, *s, e.statusOptions(columns))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "redraw the screen until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "with --watch, how long to wait between two screens")
	cmd.Flags().DurationVar(&sample, "sample", 0, "watch the growth for this `DURATION`, at least")
	cmd.Flags().StringVar(&metricsFile, "metrics-file", "", metricsUsage)
	cmd.Flags().IntVar(&top, "top", 5, "list so many services and hosts")
	return cmd
}

// terminalSize is that of standard output, or what is fit for a pipe.
func (e *env) terminalSize() (columns, rows int) {
	if e.stdoutSize != nil {
		columns, rows = e.stdoutSize()
	}
	if columns <= 0 {
		columns = 80
	}
	if rows <= 0 {
		rows = 24
	}
	return columns, rows
}

func (e *env) statusOptions(columns int) view.Options {
	return view.Options{Color: e.colorFor(e.stdoutTerminal), Width: min(columns, 120), ASCII: !e.utf8Terminal()}
}

// statusReader reads a status, once or again and again.
type statusReader struct {
	*env
	sample time.Duration // 0: about as long as the rest takes
	top    int

	sampler            *sampler
	windows            [][]suggest.Reading // that the sampler has watched before
	stats              *flows.Stats        // as they were at statsRead
	log                *view.LogStatus     // of the kernel, as it was at logRead
	statsRead, logRead time.Time
}

const (
	shownAskers = 2
	// usualSample is how long the growth is watched, less what listing the table
	// will take, but no shorter than leastSample.
	usualSample = 400 * time.Millisecond
	leastSample = 100 * time.Millisecond
	perEntry    = 1600 * time.Nanosecond // for the kernel to list one entry

	// The kernel's log grows slowly, and asking for it can be slow.
	logEvery    = 30 * time.Second
	logWithin   = 24 * time.Hour
	logPatience = time.Second
)

// read reads the status. What cannot be read besides the rules and files is a
// note in it.
func (r *statusReader) read(ctx context.Context) (*view.Status, error) {
	begun := time.Now()
	ct, err := kmod.ReadConntrack(r.root)
	if err != nil {
		return nil, err
	}
	if ct.Loaded && r.sampler == nil {
		r.sampler = startSampler(r.root)
	}
	if ct.Loaded && r.stats == nil {
		r.readDrops(nil)
	}
	log := r.readLog(ctx, ct.Loaded)
	snap, err := snapshot.Read(ctx, snapshot.Options{Root: r.root})
	if err != nil {
		return nil, err
	}
	live, err := snap.Live()
	if err != nil {
		return nil, err
	}
	s := &view.Status{
		FormatVersion: planner.FormatVersion, Time: begun,
		Host: live.Host.Name, Kernel: live.Host.Kernel,
		Conntrack: live.Conntrack.Kind, Loaded: live.Conntrack.Loaded, Max: live.Conntrack.Max, Buckets: live.Conntrack.Hashsize,
		HeldBy: heldBy(live), Forecast: boot.Foresee(live), Chains: []view.ChainStatus{}, Notes: append([]string{}, live.Notes...),
	}
	s.Mode, s.ModeSource = modeOf(live, func() ([]journal.Transaction, error) { return apply.History(r.stateDir()) })
	if err := readChains(live, s); err != nil {
		return nil, err
	}
	if s.Loaded {
		if err := r.readTable(ctx, live, s); err != nil {
			return nil, err
		}
		s.Log = <-log
	}
	track(live, s)
	return s, nil
}

// readTable reads what changes by the moment: first how fast the table grows,
// then what is in it, since listing it takes out what has timed out.
func (r *statusReader) readTable(ctx context.Context, live host.Live, s *view.Status) error {
	addresses, err := flows.Addresses()
	if err != nil {
		s.Notes = append(s.Notes, err.Error()+": who opened a connection is not told")
	}
	if r.sampler == nil { // loaded a moment ago, by a rule
		r.sampler = startSampler(r.root)
	}
	sample := r.sample
	if sample == 0 {
		sample = max(leastSample, usualSample-time.Duration(live.Conntrack.Count)*perEntry)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("watching the growth: %w", ctx.Err())
	case <-time.After(time.Until(r.sampler.begun.Add(sample))):
	}
	r.windows = recent(append(r.windows, r.sampler.stop()))
	r.sampler = nil
	r.readDrops(s)
	if s.Entries, err = kmod.ReadCount(r.root); err != nil {
		s.Notes = append(s.Notes, fmt.Sprintf("reading the number of entries: %v: it is as it was before", err))
		s.Entries = live.Conntrack.Count
	}
	s.MemoryBytes = sizes.TableBytes(s.Entries, s.Buckets, live.Host.PointerSize)
	if s.Max > 0 {
		s.FullBytes = sizes.TableBytes(s.Max, s.Buckets, live.Host.PointerSize)
	}
	if s.Buckets > 0 {
		s.ChainLength = 2 * float64(s.Entries) / float64(s.Buckets) // an entry stands in two chains, one for each way
	}
	if g, ok := census.Measure(r.windows...); ok {
		s.Growth = &view.GrowthStatus{Growth: g}
		if in, ok := g.Full(s.Entries, s.Max); ok {
			seconds := in.Seconds()
			s.Growth.FullIn = &seconds
		}
	}
	s.Time = time.Now()
	counter := census.New(addresses)
	var listErr error
	if s.Entries > 0 { // a list walks every bucket of the machine, empty or not
		listErr = flows.Each(ctx, func(e *flows.Entry) error {
			counter.Add(&e.Flow, e.Timeout)
			return nil
		})
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reading the table of tracked connections: %w", ctx.Err())
	case listErr != nil:
		s.Notes = append(s.Notes, listErr.Error()+": what fills it is not told")
	default:
		t := counter.Table(r.top, r.top)
		t.TimedOut = max(0, s.Entries-t.Entries)
		s.Table = &t
		if s.Growth != nil && s.Growth.FullIn != nil {
			if level, ok := counter.LevelsOff(s.Growth.Growth); ok && level < s.Max {
				s.Growth.LevelsOff = &level
			}
		}
	}
	return nil
}

// readLog reads what the kernel has logged of a full table, beside all else.
func (r *statusReader) readLog(ctx context.Context, loaded bool) <-chan *view.LogStatus {
	out := make(chan *view.LogStatus, 1)
	switch {
	case !loaded:
		out <- nil
	case r.log != nil && time.Since(r.logRead) < logEvery:
		out <- r.log
	default:
		r.logRead = time.Now()
		go func() {
			ctx, cancel := context.WithTimeout(ctx, logPatience)
			defer cancel()
			o := kernlog.Options{Root: r.root, Since: r.logRead.Add(-logWithin), Now: r.logRead}
			o.Netns = netnsInode()
			r.log = newLog(kernlog.Read(ctx, o))
			out <- r.log
		}()
	}
	return out
}

func newLog(f *kernlog.Full) *view.LogStatus {
	l := &view.LogStatus{Messages: f.Messages, Sources: []string{}}
	if !f.Last.IsZero() {
		l.Last = &f.Last
	}
	if !f.Reach.IsZero() {
		l.Since = &f.Reach
	}
	for _, s := range f.Sources {
		if s.Unread == "" {
			l.Sources = append(l.Sources, s.Name)
		}
	}
	return l
}

// readDrops reads what was lost, and how much of it since it was read before.
// The first time there is no status to tell.
func (r *statusReader) readDrops(s *view.Status) {
	now := time.Now()
	stats, err := flows.ReadStats(r.root)
	if s != nil {
		if err != nil {
			s.Notes = append(s.Notes, err.Error())
		} else {
			s.Drops = &view.DropStatus{DropCounts: dropCounts(stats.Total()), Source: stats.From}
			if r.stats != nil {
				recent := dropCounts(stats.Since(r.stats))
				s.Drops.Recent, s.Drops.Seconds = &recent, now.Sub(r.statsRead).Seconds()
			}
		}
	}
	r.stats, r.statsRead = stats, now // nil after an error
}

func dropCounts(c flows.Counters) view.DropCounts {
	known := func(name string) *uint64 {
		if n, ok := c[name]; ok {
			return &n
		}
		return nil
	}
	return view.DropCounts{Drop: known("drop"), EarlyDrop: known("early_drop"), InsertFailed: known("insert_failed"), ChainTooLong: known("chaintoolong")}
}

// readChains reads the counters of ctplan's chains.
func readChains(live host.Live, s *view.Status) error {
	for _, rs := range live.Rulesets {
		if !rs.Primary {
			continue // counters are read through plain iptables
		}
		for _, t := range rs.Tables {
			for _, c := range t.Chains {
				if !strings.HasPrefix(c.Name, declared.OwnPrefix) {
					continue
				}
				counters, err := (iptables.Tools{}).Counters(rs.Family, t.Name, c.Name)
				if err != nil {
					return err
				}
				cs := view.ChainStatus{Family: string(rs.Family), Table: t.Name, Chain: c.Name, Rules: len(counters)}
				for _, n := range counters {
					cs.Packets += n.Packets
					cs.Bytes += n.Bytes
				}
				s.Chains = append(s.Chains, cs)
			}
		}
	}
	return nil
}

// track says whether the kernel tracks here, and why.
func track(live host.Live, s *view.Status) {
	askers := census.Askers(live)
	s.AskersAll = len(askers)
	s.Askers = askers[:min(len(askers), shownAskers)]
	hidden := slices.ContainsFunc(live.Rulesets, func(r host.Ruleset) bool { return len(r.Incompatible) > 0 })
	switch {
	case s.Conntrack == host.ConntrackAbsent:
		s.Tracking = view.TrackingAbsent
	case !s.Loaded:
		s.Tracking = view.TrackingUnloaded
	case len(askers) > 0:
		s.Tracking = view.TrackingActive
	case s.Entries > 0 || hidden || len(live.Notes) > 0:
		s.Tracking = view.TrackingUnknown
	default:
		s.Tracking = view.TrackingIdle
	}
}

// heldBy are the modules that use nf_conntrack.
func heldBy(live host.Live) []string {
	for _, m := range live.Modules {
		if m.Name == "nf_conntrack" {
			return append([]string{}, m.By...)
		}
	}
	return []string{}
}

// netnsInode is the number of the network namespace; 0 where it cannot be told.
func netnsInode() uint64 {
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	var inode uint64
	if n, _ := fmt.Sscanf(link, "net:[%d]", &inode); n != 1 {
		return 0
	}
	return inode
}
