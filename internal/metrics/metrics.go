// Package metrics writes what ctplan knows of a host in Prometheus' text
// format, for the textfile collector of node_exporter.
//
// It owns the names, the help and the labels of all metrics: Descriptions
// lists them, and tests hold the documentation, the alerts and the dashboard
// of deploy/prometheus to that list. It reads nothing.
//
// It promises that what is not known is absent and never 0, that the text is
// valid whatever is in an address or a cause, and that equal states give equal
// text.
package metrics

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/ctplan/ctplan/internal/view"
)

// MaxSeries is how many series one metric has at most: what a host of ours
// can drift in is no reason to flood the database of all hosts.
const MaxSeries = 300

// maxLabel bounds the value of a label, in bytes.
const maxLabel = 500

// Description says what a metric is.
type Description struct {
	Name    string
	Type    string // "gauge" or "counter"
	Help    string
	Labels  []string
	Command string // which command writes it: "drift", "verify" or "status"
}

// Descriptions lists every metric that there can be, in the order of the text.
func Descriptions() []Description {
	var list []Description
	for _, m := range all() {
		list = append(list, m.Description)
	}
	return list
}

// Text returns the metrics of what is known.
func Text(s State) ([]byte, error) {
	var b bytes.Buffer
	for _, m := range all() {
		f := m.family(s)
		if len(f.GetMetric()) == 0 {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, fmt.Errorf("writing the metric %s: %w", m.Name, err)
		}
	}
	return b.Bytes(), nil
}

// metric is a metric with where its values come from.
type metric struct {
	Description
	values func(State) []sample
}

// sample is one value, with the values of the labels in their order.
type sample struct {
	value  float64
	labels []string
}

// family is the metric with its values, each set of labels once: two of a kind
// would have node_exporter refuse the whole file.
func (m metric) family(s State) *dto.MetricFamily {
	f := &dto.MetricFamily{Name: &m.Name, Help: &m.Help, Type: dto.MetricType_GAUGE.Enum()}
	if m.Type == counter {
		f.Type = dto.MetricType_COUNTER.Enum()
	}
	seen := map[string]bool{}
	for _, v := range m.values(s) {
		var labels []*dto.LabelPair
		var key strings.Builder
		for i, name := range m.Labels {
			value := label(v.labels[i])
			fmt.Fprintf(&key, "%q", value)
			if value != "" { // to Prometheus an empty label is none
				labels = append(labels, &dto.LabelPair{Name: &name, Value: &value})
			}
		}
		if seen[key.String()] || len(seen) == MaxSeries {
			continue
		}
		seen[key.String()] = true
		one := &dto.Metric{Label: labels}
		if m.Type == counter {
			one.Counter = &dto.Counter{Value: &v.value}
		} else {
			one.Gauge = &dto.Gauge{Value: &v.value}
		}
		f.Metric = append(f.Metric, one)
	}
	return f
}

// label makes a value fit for a label: one line of printable characters of
// bounded length. Quotes and backslashes are the format's to escape.
func label(s string) string {
	s = view.Clean(s)
	if len(s) > maxLabel {
		s = strings.ToValidUTF8(s[:maxLabel], "") + "…"
	}
	return s
}

const (
	gauge   = "gauge"
	counter = "counter"
)

// all are the metrics, by the command that writes them.
func all() []metric {
	return slices.Concat(ofDrift(), ofApply(), ofTable(), ofVerify(), ofGrowth())
}

func ofDrift() []metric {
	about := func(name, help string, values func(*Drift) []sample, labels ...string) metric {
		return metric{Description{name, gauge, help, labels, "drift"}, func(s State) []sample { return of(s.Drift, values) }}
	}
	found := func(name, help string, values func(*Found) []sample, labels ...string) metric {
		return about(name, help, func(d *Drift) []sample { return of(d.Found, values) }, labels...)
	}
	return []metric{
		about("ctplan_drift_success", "Whether the last ctplan drift could read the host and the configuration.",
			func(d *Drift) []sample { return truth(d.Found != nil) }),
		about("ctplan_drift_last_run_timestamp_seconds", "When ctplan drift last ran, in seconds since 1970.",
			func(d *Drift) []sample { return at(d.Time) }),
		found("ctplan_drift_objects", "Objects that differ from what the configuration declares.",
			func(f *Found) []sample { return number(len(f.Objects)) }),
		found("ctplan_drift_blocks", "Safety checks that would keep ctplan apply from mending the drift.",
			func(f *Found) []sample { return number(f.Blocks) }),
		found("ctplan_drift_object", "An object that differs, with what apply would do about it and what has likely changed it.",
			func(f *Found) (v []sample) {
				for _, o := range f.Objects {
					v = append(v, sample{1, []string{o.Address, o.Action, o.Cause}})
				}
				return v
			}, "address", "action", "cause"),
	}
}

func ofApply() []metric {
	about := func(name, help string, values func(*Apply) []sample) metric {
		return metric{Description{name, gauge, help, nil, "drift"}, func(s State) []sample { return of(s.Apply, values) }}
	}
	return []metric{
		about("ctplan_apply_last_change_timestamp_seconds", "When ctplan last changed this host for good, in seconds since 1970.",
			func(a *Apply) []sample { return of(a.Last, func(t *time.Time) []sample { return at(*t) }) }),
		about("ctplan_apply_waiting", "Whether a change waits for ctplan confirm.",
			func(a *Apply) []sample { return truth(a.Waiting) }),
		about("ctplan_apply_cut_off", "Whether a change was cut off and waits for ctplan recover.",
			func(a *Apply) []sample { return truth(a.CutOff) }),
	}
}

func ofTable() []metric {
	about := func(name, kind, help string, values func(*Table) []sample) metric {
		return metric{Description{name, kind, help, nil, "drift"}, func(s State) []sample { return of(s.Table, values) }}
	}
	size := func(name, help string, field func(*Table) *int64) metric {
		return about(name, gauge, help, func(t *Table) []sample { return known(field(t)) })
	}
	count := func(name, help string, field func(*Table) *uint64) metric {
		return about(name, counter, help, func(t *Table) []sample { return known(field(t)) })
	}
	return []metric{
		size("ctplan_conntrack_entries", "Tracked connections.", func(t *Table) *int64 { return t.Entries }),
		size("ctplan_conntrack_max", "Most connections that the kernel will track; 0 is no limit.", func(t *Table) *int64 { return t.Max }),
		size("ctplan_conntrack_buckets", "Buckets of the hash table.", func(t *Table) *int64 { return t.Buckets }),
		count("ctplan_conntrack_drops_total", "Packets dropped because no entry could be made for them, a full table above all.", func(t *Table) *uint64 { return t.Drops }),
		count("ctplan_conntrack_early_drops_total", "Entries given up before their time to make room for others.", func(t *Table) *uint64 { return t.EarlyDrops }),
		count("ctplan_conntrack_insert_failed_total", "Entries that could not be put into the table.", func(t *Table) *uint64 { return t.InsertFailed }),
		count("ctplan_conntrack_chain_too_long_total", "Entries refused because their hash chain was too long.", func(t *Table) *uint64 { return t.ChainTooLong }),
	}
}

func ofVerify() []metric {
	about := func(name, help string, values func(*Verify) []sample, labels ...string) metric {
		return metric{Description{name, gauge, help, labels, "verify"}, func(s State) []sample { return of(s.Verify, values) }}
	}
	return []metric{
		about("ctplan_verify_success", "Whether the last ctplan verify could read the host and the configuration.",
			func(v *Verify) []sample { return truth(v.Checks != nil) }),
		about("ctplan_verify_last_run_timestamp_seconds", "When ctplan verify last ran, in seconds since 1970.",
			func(v *Verify) []sample { return at(v.Time) }),
		about("ctplan_verify_check", "What came of a check: pass, fail or skip.",
			func(v *Verify) (s []sample) {
				for _, c := range v.Checks {
					s = append(s, sample{1, []string{c.Name, c.Result}})
				}
				return s
			}, "check", "result"),
		about("ctplan_conntrack_table_full_messages", "Messages of a full table in the logs since the last change.",
			func(v *Verify) []sample { return known(v.TableFull) }),
	}
}

func ofGrowth() []metric {
	about := func(name, help string, values func(*Growth) []sample) metric {
		return metric{Description{name, gauge, help, nil, "status"}, func(s State) []sample { return of(s.Growth, values) }}
	}
	return []metric{
		about("ctplan_status_last_run_timestamp_seconds", "When ctplan status last ran, in seconds since 1970.",
			func(g *Growth) []sample { return at(g.Time) }),
		about("ctplan_conntrack_growth_per_second", "Entries by which the table grew a second while status looked; below 0 it shrank.",
			func(g *Growth) []sample { return known(g.PerSecond) }),
		about("ctplan_conntrack_full_in_seconds", "Seconds until the table is full at that growth; absent while it does not grow.",
			func(g *Growth) []sample { return known(g.FullIn) }),
	}
}

// of returns the values of what is known, and none of what is not.
func of[T any](known *T, values func(*T) []sample) []sample {
	if known == nil {
		return nil
	}
	return values(known)
}

func number[N int | int64 | uint64 | float64](n N) []sample { return []sample{{value: float64(n)}} }

// known is number for what may not be known.
func known[N int64 | uint64 | float64](n *N) []sample {
	return of(n, func(n *N) []sample { return number(*n) })
}

func at(t time.Time) []sample { return number(t.Unix()) }

func truth(b bool) []sample {
	if b {
		return number(1)
	}
	return number(0)
}
