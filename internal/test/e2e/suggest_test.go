package e2e

import (
	"maps"
	"strings"
	"testing"
)

// TestSuggestLosesNothing has ctplan suggest a configuration for a host with
// more than 200 live connections of many kinds, and applies it: its plan names
// no connection that would be lost, and nothing that it opens, and none dies.
func TestSuggestLosesNothing(t *testing.T) {
	for _, mode := range []string{"notrack", ""} {
		for _, b := range backends {
			t.Run(mode+"/"+string(b), func(t *testing.T) {
				h, talks, before := crossroads(t, b)
				var flags []string
				if mode != "" {
					flags = []string{"--mode", mode}
				}
				suggested := h.ctplan(exitOK, append([]string{"suggest"}, flags...)...)
				t.Log(suggested.stdout, suggested.stderr)
				if !strings.Contains(suggested.stdout, `stateful_rules = "translate"`) || strings.Contains(suggested.stdout, "accept \"") {
					t.Error("rules on connection state have exact twins, and blocks are written for them")
				}
				h.ctplan(exitOK, "snapshot", "-o", "/run/test/host.json")
				if again := h.ctplan(exitOK, append([]string{"suggest", "--snapshot", "/run/test/host.json"}, flags...)...); again.stdout != suggested.stdout {
					same(t, "suggested from a snapshot", suggested.stdout, again.stdout)
				}
				config := h.config(suggested.stdout)
				h.ctplan(exitOK, "fmt", "--check", config)
				if r := h.ctplan(exitOK, "validate", config); r.stderr != "" {
					t.Errorf("validate has something to say:\n%s", r.stderr)
				}
				if gone := willLose(t, h, config); len(gone) > 0 {
					t.Errorf("the plan for the suggestion loses %v", gone)
				}
				if planned := h.ctplan(exitOK, "plan", "--json", config); !strings.Contains(planned.stdout, `"exposed": []`) {
					t.Errorf("the plan for the suggestion opens something:\n%s", planned.stdout)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", config)
				if after := living(talks); !maps.Equal(before, after) {
					t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, suggested.stdout, h.rules())
				}
				if opened := h.ctplan(exitOK, "plan", "--json", config); !strings.Contains(opened.stdout, `"changes": []`) {
					t.Errorf("something is left to do:\n%s", opened.stdout)
				}
				h.ctplan(exitOK, "drift", config)
			})
		}
	}
}
