package main

import (
	"time"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/metrics"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/verify"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/providers/flows"
)

// metricsUsage is the help of --metrics-file, wherever there is one.
const metricsUsage = "write Prometheus metrics to `FILE`, for node_exporter's textfile collector"

// writeMetrics replaces a file with what is known, whole or not at all.
func writeMetrics(path string, s metrics.State) error {
	text, err := metrics.Text(s)
	if err != nil {
		return err
	}
	// Not 0600: node_exporter does not run as root, and addresses are no secret.
	return snapshot.WriteAtomic(path, text, 0o644)
}

// driftMetrics is what drift knows of the host; with a nil p, that it could not
// look.
func (e *env) driftMetrics(p *planned, now time.Time) metrics.State {
	s := metrics.State{Drift: &metrics.Drift{Time: now}, Apply: e.applyMetrics()}
	if p == nil {
		return s
	}
	s.Drift.Found = &metrics.Found{Blocks: len(p.plan.Blocks)}
	for _, c := range p.plan.Changes {
		o := metrics.Object{Address: c.Meta().Address, Action: c.Meta().Action.String()}
		if causes := p.causes[o.Address]; len(causes) > 0 {
			o.Cause = string(causes[0].Kind) // the likeliest
		}
		s.Drift.Found.Objects = append(s.Drift.Found.Objects, o)
	}
	s.Table = e.tableMetrics(p.snapshot)
	return s
}

// applyMetrics is what the journals tell; nil where they cannot be read, which
// drift warns about.
func (e *env) applyMetrics() *metrics.Apply {
	last, err := apply.LastChange(e.stateDir())
	if err != nil {
		return nil
	}
	pending, err := apply.Pending(e.stateDir())
	if err != nil {
		return nil
	}
	a := &metrics.Apply{}
	if !last.IsZero() {
		a.Last = &last
	}
	if pending != nil {
		a.Waiting = pending.Left > 0
		a.CutOff = !a.Waiting && !pending.Running
	}
	return a
}

// tableMetrics is the table of tracked connections; nil where there is none.
func (e *env) tableMetrics(s *snapshot.Snapshot) *metrics.Table {
	c := s.Conntrack
	if !c.Loaded {
		return nil
	}
	t := &metrics.Table{Entries: &c.Count, Max: &c.Max}
	if c.Hashsize > 0 {
		t.Buckets = &c.Hashsize
	}
	stats, err := flows.ReadStatsQuietly(e.root)
	if err != nil || stats == nil {
		return t
	}
	total := stats.Total()
	counter := func(name string) *uint64 {
		if n, ok := total[name]; ok {
			return &n
		}
		return nil
	}
	t.Drops, t.EarlyDrops = counter("drop"), counter("early_drop")
	t.InsertFailed, t.ChainTooLong = counter("insert_failed"), counter("chaintoolong")
	return t
}

// verifyMetrics is what verify found; with a nil report, that it could not look.
func verifyMetrics(in *verify.Input, r *verify.Report, now time.Time) metrics.State {
	v := &metrics.Verify{Time: now}
	if r == nil {
		return metrics.State{Verify: v}
	}
	v.Checks = []metrics.Check{}
	for _, c := range r.Checks {
		v.Checks = append(v.Checks, metrics.Check{Name: c.Name, Result: string(c.Result)})
	}
	// No message in a log that does not reach back so far tells nothing.
	if in.Log.Messages > 0 || in.Log.Covers(in.Since()) {
		v.TableFull = &in.Log.Messages
	}
	return metrics.State{Verify: v}
}

// growthMetrics is what status knows of how fast the table fills.
func growthMetrics(s *view.Status) metrics.State {
	g := &metrics.Growth{Time: s.Time}
	if s.Growth != nil {
		g.PerSecond, g.FullIn = &s.Growth.PerSecond, s.Growth.FullIn
	}
	return metrics.State{Growth: g}
}
