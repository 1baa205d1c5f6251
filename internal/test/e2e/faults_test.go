package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// TestFaults applies each example and goes back, on each backend, and has every
// step fail and be killed, before and after it did its work. Each time the host
// must be what it was before or, once the transaction is committed, what it
// should become: all rules, files with their metadata, and sysctls.
func TestFaults(t *testing.T) {
	total := 0
	counts := make(chan faultCount, 2*len(roles))
	each := func(t *testing.T, initial bool) {
		for _, role := range roles {
			if role.initial != initial {
				continue
			}
			for _, backend := range backends {
				t.Run(strings.Join([]string{role.example, role.host, string(backend)}, "/"), func(t *testing.T) {
					if initial {
						const timeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"
						nstest.Machine(t, timeout+"established", timeout+"time_wait")
					} else {
						t.Parallel()
					}
					h := newHost(t, backend, role.host)
					h.initial = initial
					role.furnish(h)
					h.ctplan(exitOK, "plan", "--out", "/run/test/plan", h.example(role.example))
					counts <- h.faults(string(backend))
				})
			}
		}
	}
	t.Run("namespaces", func(t *testing.T) { each(t, false) })
	t.Run("machine", func(t *testing.T) { each(t, true) })
	close(counts)
	runs := 0
	for c := range counts {
		total += c.Cases
		runs++
	}
	t.Logf("%d cases on %d hosts: every one left the old state or the new one", total, runs)
	if runs == len(roles)*len(backends) && total < 500 {
		t.Errorf("%d cases are fewer than 500", total)
	}
}

// faults runs the child of that name on the host.
func (h *host) faults(backend string, more ...string) faultCount {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	words := append([]string{backend}, more...)
	if h.initial {
		words = append(words, "machine")
	}
	cmd := h.commandOf(self, words...)
	cmd.Env = append(cmd.Env, childEnv+"=faults")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("%v", err)
	}
	var c faultCount
	if err := json.Unmarshal(out, &c); err != nil {
		h.t.Fatal(err)
	}
	h.t.Logf("%d steps there and %d back, %d cases: %v", c.There, c.Back, c.Cases, c.Kinds)
	return c
}
