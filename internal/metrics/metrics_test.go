package metrics

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/golden"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// full is a state of which everything is known.
func full() State {
	now := time.Unix(1700000000, 0)
	changed := now.Add(-48 * time.Hour)
	return State{
		Drift: &Drift{Time: now, Found: &Found{Blocks: 1, Objects: []Object{
			{"sysctl.net.netfilter.nf_conntrack_max", "update", "reboot"},
			{"iptables.ipv4.raw", "create", ""},
		}}},
		Apply: &Apply{Last: &changed, Waiting: true},
		Table: &Table{
			Entries: ptr(int64(249000)), Max: ptr(int64(262144)), Buckets: ptr(int64(65536)),
			Drops: ptr(uint64(12)), EarlyDrops: ptr(uint64(3456)), InsertFailed: ptr(uint64(7)), ChainTooLong: ptr(uint64(8)),
		},
		Growth: &Growth{Time: now, PerSecond: ptr(2.5), FullIn: ptr(5400.0)},
		Verify: &Verify{Time: now, TableFull: ptr(int64(42)), Checks: []Check{{"max", "pass"}, {"next boot", "fail"}, {"drops", "skip"}}},
	}
}

func ptr[T any](v T) *T { return &v }

func text(t testing.TB, s State) string {
	t.Helper()
	b, err := Text(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// parse reads a text as Prometheus does.
func parse(t testing.TB, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return families
}

// TestText holds the text of a host of which everything is known.
func TestText(t *testing.T) {
	got := text(t, full())
	path := filepath.Join("testdata", "full.prom")
	if *golden.Update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got; go test ./internal/metrics -update:\n%s", diff)
	}
	families := parse(t, got)
	for _, d := range Descriptions() {
		f := families[d.Name]
		if f == nil {
			t.Errorf("%s has no value", d.Name)
			continue
		}
		if f.GetHelp() != d.Help || strings.ToLower(f.GetType().String()) != d.Type {
			t.Errorf("%s is written as %s, %q", d.Name, f.GetType(), f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(d.Labels, l.GetName()) {
					t.Errorf("%s has a label %s that its description lacks", d.Name, l.GetName())
				}
			}
		}
	}
	if len(families) != len(Descriptions()) {
		t.Errorf("%d metrics are written, %d described", len(families), len(Descriptions()))
	}
}

// TestUnknown leaves out what is not known, and nothing else.
func TestUnknown(t *testing.T) {
	now := time.Unix(1700000000, 0)
	for name, test := range map[string]struct {
		state State
		want  []string
	}{
		"nothing":          {State{}, nil},
		"drift failed":     {State{Drift: &Drift{Time: now}}, []string{"ctplan_drift_last_run_timestamp_seconds", "ctplan_drift_success"}},
		"no drift":         {State{Drift: &Drift{Time: now, Found: &Found{}}}, []string{"ctplan_drift_blocks", "ctplan_drift_last_run_timestamp_seconds", "ctplan_drift_objects", "ctplan_drift_success"}},
		"never changed":    {State{Apply: &Apply{}}, []string{"ctplan_apply_cut_off", "ctplan_apply_waiting"}},
		"no counters":      {State{Table: &Table{Entries: ptr(int64(0))}}, []string{"ctplan_conntrack_entries"}},
		"verify failed":    {State{Verify: &Verify{Time: now}}, []string{"ctplan_verify_last_run_timestamp_seconds", "ctplan_verify_success"}},
		"growth unknown":   {State{Growth: &Growth{Time: now}}, []string{"ctplan_status_last_run_timestamp_seconds"}},
		"no log, no check": {State{Verify: &Verify{Time: now, Checks: []Check{}}}, []string{"ctplan_verify_last_run_timestamp_seconds", "ctplan_verify_success"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.Sorted(maps.Keys(parse(t, text(t, test.state))))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// TestSuccess tells a check that found nothing from one that could not look.
func TestSuccess(t *testing.T) {
	value := func(s State, name string) float64 {
		return parse(t, text(t, s))[name].GetMetric()[0].GetGauge().GetValue()
	}
	if got := value(State{Drift: &Drift{}}, "ctplan_drift_success"); got != 0 {
		t.Errorf("a drift that failed has success %v", got)
	}
	if got := value(State{Drift: &Drift{Found: &Found{}}}, "ctplan_drift_success"); got != 1 {
		t.Errorf("a drift that found nothing has success %v", got)
	}
	if got := value(State{Verify: &Verify{}}, "ctplan_verify_success"); got != 0 {
		t.Errorf("a verify that failed has success %v", got)
	}
}

// TestDuplicates writes a set of labels once, and no more series than there
// may be: node_exporter refuses a file with two of a kind.
func TestDuplicates(t *testing.T) {
	f := &Found{Objects: []Object{{"file./a\nb", "update", ""}, {`file./a\nb`, "update", ""}, {"file./a", "update", "reboot"}, {"file./a", "update", ""}}}
	series := func() int {
		return len(parse(t, text(t, State{Drift: &Drift{Found: f}}))["ctplan_drift_object"].GetMetric())
	}
	if n := series(); n != 3 {
		t.Errorf("%d series, want 3", n)
	}
	for i := range 2 * MaxSeries {
		f.Objects = append(f.Objects, Object{Address: strings.Repeat("x", i)})
	}
	if n := series(); n != MaxSeries {
		t.Errorf("%d series, want %d", n, MaxSeries)
	}
	if got := text(t, State{Drift: &Drift{Found: f}}); !strings.Contains(got, "\nctplan_drift_objects 604\n") {
		t.Errorf("the number of objects is cut off too:\n%s", got[:400])
	}
}

// FuzzText puts anything into labels: the text stays what Prometheus reads, with
// the one series, printable and of bounded length.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "file./etc/x", "a\"} 1\nevil 1\n#", `a\`, "\x00\xff\u202e", "{}", `\n`, strings.Repeat("é", 400), "a\r\nb"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, address, cause string) {
		got := text(t, State{
			Drift:  &Drift{Found: &Found{Objects: []Object{{address, "update", cause}}}},
			Verify: &Verify{Checks: []Check{{address, cause}}},
		})
		families := parse(t, got)
		for name, labels := range map[string][]string{"ctplan_drift_object": {address, "update", cause}, "ctplan_verify_check": {address, cause}} {
			f := families[name]
			if len(f.GetMetric()) != 1 || f.GetMetric()[0].GetGauge().GetValue() != 1 {
				t.Fatalf("%s is not one series of value 1:\n%s", name, got)
			}
			var want []string
			for _, l := range labels {
				if l = label(l); l != "" {
					want = append(want, l)
				}
			}
			var values []string
			for _, l := range f.GetMetric()[0].GetLabel() {
				values = append(values, l.GetValue())
				if len(l.GetValue()) > maxLabel+len("…") || strings.ContainsFunc(l.GetValue(), func(r rune) bool { return r < ' ' }) {
					t.Errorf("label %q", l.GetValue())
				}
			}
			slices.Sort(values)
			slices.Sort(want)
			if !slices.Equal(values, want) {
				t.Errorf("%s has the labels %q, want %q", name, values, want)
			}
		}
		if len(families) != 8 {
			t.Errorf("%d metrics:\n%s", len(families), got)
		}
	})
}
