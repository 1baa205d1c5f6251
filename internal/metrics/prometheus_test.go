package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// prometheus is where the alerts and the dashboard are.
var prometheus = filepath.Join("..", "..", "deploy", "prometheus")

// promtool runs Prometheus' own checker, from PATH or from where scripts/setup
// puts it.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		cache, cacheErr := os.UserCacheDir()
		if tool = filepath.Join(cache, "ctplan-tools", "promtool"); cacheErr != nil || !exists(tool) {
			testhost.Lacks(t, err, "scripts/setup gets it")
		}
	}
	cmd := exec.Command(tool, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestPromtool has Prometheus judge the text and the alerts, and try these out.
func TestPromtool(t *testing.T) {
	hostile := State{Drift: &Drift{Found: &Found{Objects: []Object{{"a\"} 1\n\\evil{", "update", "\x1b[2J\u202e\xff"}}}}}
	for _, s := range []State{full(), hostile} {
		promtool(t, text(t, s), "check", "metrics")
	}
	promtool(t, "", "check", "rules", filepath.Join(prometheus, "ctplan.rules.yml"))
	promtool(t, "", "test", "rules", filepath.Join(prometheus, "ctplan.rules.test.yml"))
}

// TestAlerts holds the alerts to metrics that exist, and to being tested and
// documented.
func TestAlerts(t *testing.T) {
	rules, tests := read(t, prometheus, "ctplan.rules.yml"), read(t, prometheus, "ctplan.rules.test.yml")
	docs := read(t, "..", "..", "docs", "monitoring.md")
	exported(t, rules)
	exported(t, tests)
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if len(alerts) < 10 {
		t.Errorf("%d alerts found", len(alerts))
	}
	for _, a := range alerts {
		if !regexp.MustCompile(`alertname: ` + a[1] + `\n +exp_alerts:\n +- exp_labels`).MatchString(tests) {
			t.Errorf("no test has %s fire", a[1])
		}
		if !strings.Contains(docs, "| "+a[1]+" |") {
			t.Errorf("docs/monitoring.md says nothing of %s", a[1])
		}
	}
	for _, name := range regexp.MustCompile(`\| (Ctplan\w+) \|`).FindAllStringSubmatch(docs, -1) {
		if !strings.Contains(rules, "- alert: "+name[1]+"\n") {
			t.Errorf("docs/monitoring.md has %s, which is no alert", name[1])
		}
	}
}

// TestDashboard asks all queries of the dashboard of a host of which
// everything is known. Each must have an answer, so each names metrics and
// labels that there are.
func TestDashboard(t *testing.T) {
	content := read(t, prometheus, "dashboard.json")
	exported(t, content)
	var dashboard any
	if err := json.Unmarshal([]byte(content), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := expressions(dashboard)
	if len(queries) < 20 {
		t.Errorf("%d queries found", len(queries))
	}
	var b strings.Builder
	b.WriteString("evaluation_interval: 5m\ntests:\n  - interval: 5m\n    input_series:\n")
	for line := range strings.Lines(text(t, full())) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if value == "" {
			series, value, _ = strings.Cut(series, " ")
			series += "{"
		} else {
			series += ","
		}
		// From the beginning on, to have something to grow by.
		fmt.Fprintf(&b, "      - {series: %q, values: '0+1x11 %sx20'}\n", series+`instance="web-1"}`, value)
	}
	b.WriteString("    promql_expr_test:\n")
	for _, q := range queries {
		// A 0 for nothing would be an answer to a query of nothing.
		q = strings.NewReplacer("$instance", ".*", " or vector(0)", "").Replace(q)
		fmt.Fprintf(&b, "      - {expr: %q, eval_time: 65m, exp_samples: [{labels: '{}', value: 1}]}\n", "count("+q+") > bool 0")
	}
	file := filepath.Join(t.TempDir(), "dashboard.test.yml")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, "", "test", "rules", file)

	// Nothing that is written goes unseen.
	for _, d := range Descriptions() {
		if !strings.Contains(content, d.Name) {
			t.Errorf("the dashboard does not show %s", d.Name)
		}
	}
}

// expressions are the queries in a dashboard.
func expressions(v any) []string {
	var found []string
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if expr, ok := v[key].(string); ok && key == "expr" {
				found = append(found, expr)
			}
			found = append(found, expressions(v[key])...)
		}
	case []any:
		for _, e := range v {
			found = append(found, expressions(e)...)
		}
	}
	return found
}

// TestDocs holds docs/monitoring.md to the list of metrics.
func TestDocs(t *testing.T) {
	docs := read(t, "..", "..", "docs", "monitoring.md")
	var want strings.Builder
	want.WriteString("| metric | type | written by | what it tells |\n| --- | --- | --- | --- |\n")
	for _, d := range Descriptions() {
		name := d.Name
		if len(d.Labels) > 0 {
			name += "{" + strings.Join(d.Labels, ", ") + "}"
		}
		fmt.Fprintf(&want, "| `%s` | %s | `%s` | %s |\n", name, d.Type, d.Command, d.Help)
	}
	got := regexp.MustCompile(`(?m)^\| metric \|.*\n(\|.*\n)*`).FindString(docs)
	if got == "" {
		t.Fatal("docs/monitoring.md has no table of metrics")
	}
	if *golden.Update {
		docs = strings.Replace(docs, got, want.String(), 1)
		if err := os.WriteFile(filepath.Join("..", "..", "docs", "monitoring.md"), []byte(docs), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want.String(), got); diff != "" {
		t.Errorf("docs/monitoring.md, -want +got; go test ./internal/metrics -update:\n%s", diff)
	}
	exported(t, docs)
}

// exported reports names of metrics in a text that no command writes.
func exported(t *testing.T, text string) {
	t.Helper()
	known := map[string]bool{}
	for _, d := range Descriptions() {
		known[d.Name] = true
	}
	found := regexp.MustCompile(`\b(ctplan|node)_\w+`).FindAllString(text, -1)
	if len(found) == 0 {
		t.Error("no names found")
	}
	for _, name := range found {
		if !known[name] && name != "node_exporter" {
			t.Errorf("%s is no metric of ctplan's", name)
		}
	}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
