package view

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// TestImpactNotKnown: where something could not be read, the impact says so in
// its place, and never that nobody is touched.
func TestImpactNotKnown(t *testing.T) {
	for _, kept := range []int64{0, 3} {
		p := planner.Plan{Host: host.Host{Name: "h"}, Impact: &impact.Impact{Kept: kept, NotKnown: []string{"the sockets (no such\x1b[2J file)"}}}
		for name, write := range map[string]func(*strings.Builder) error{
			"text":     func(b *strings.Builder) error { return Text(b, p, Options{Verb: Plan}) },
			"markdown": func(b *strings.Builder) error { return Markdown(b, p, Options{Verb: Plan}) },
		} {
			var b strings.Builder
			if err := write(&b); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(strings.Fields(b.String()), " ")
			if !strings.Contains(got, "not known, since these could not be read: the sockets") || strings.Contains(got, "no open connections") || strings.Contains(got, "\x1b") ||
				strings.Contains(got, "3 kept") != (kept > 0) {
				t.Errorf("%s, %d kept: %s", name, kept, got)
			}
		}
	}
}
