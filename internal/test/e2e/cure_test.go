package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// udpUntracked is a cure for a host that drowns in datagrams.
const udpUntracked = `
conntrack "datagrams" {
  mode = "notrack"

  notrack "udp" { protocol = "udp" }
  accept  "udp" { protocol = "udp" }
}
`

// TestCure fills the table of a host for real, and then takes the traffic out
// of tracking: flows fail by the thousand before apply, and not once after it.
func TestCure(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			nstest.Machine(t)
			h := newHost(t, backend, "resolver-1")
			// One rule on connection state makes the namespace track. It concerns
			// TCP, so it stays, and tracking with it: what helps is NOTRACK.
			h.sh("iptables -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT")
			if err := os.WriteFile(nstest.Max, []byte("2000"), 0); err != nil {
				t.Fatal(err)
			}

			before := h.flood()
			t.Logf("tracked:   %s", before)
			if before.Failed < 10_000 {
				t.Errorf("a table of 2,000 entries took %d of %d flows: the test does not fill it", before.Sent, floodFlows)
			}
			if n := h.entries(); n < 1000 {
				t.Errorf("%d entries in the table: the namespace does not track", n)
			}

			h.ctplan(exitOK, "apply", "--auto-approve", h.config(udpUntracked))
			h.sh("conntrack -F 2>/dev/null")
			after := h.flood()
			t.Logf("untracked: %s", after)
			if after.Failed != 0 || after.Received != floodFlows {
				t.Errorf("of %d untracked flows %d failed and %d arrived, want none and all", floodFlows, after.Failed, after.Received)
			}
			if n := h.entries(); n != 0 {
				t.Errorf("%d entries in the table after %d untracked flows, want none", n, floodFlows)
			}
			if !strings.Contains(h.rules(), "--state RELATED,ESTABLISHED") {
				t.Error("the TCP rule on connection state is gone: the namespace may not track at all")
			}
		})
	}
}

func (f flooded) String() string {
	s := fmt.Sprintf("%d flows sent, %d failed, %d arrived", f.Sent, f.Failed, f.Received)
	if f.Error != "" {
		s += " (" + f.Error + ")"
	}
	return s
}

func (h *host) flood() flooded {
	h.t.Helper()
	out, err := h.child("flood").Output()
	if err != nil {
		h.t.Fatalf("flood: %v", err)
	}
	var f flooded
	if err := json.Unmarshal(out, &f); err != nil {
		h.t.Fatal(err)
	}
	return f
}

// entries is how full the host's table is.
func (h *host) entries() int {
	h.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(h.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}
