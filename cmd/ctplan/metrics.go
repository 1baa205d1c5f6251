package main

import (
	"time"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/metrics"
	"github.com/ctplan/ctplan/internal/snapshot"
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
