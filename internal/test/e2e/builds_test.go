package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// between makes the host one whose rules match on connection state between
// others, in both families: what takes them away has to put them back where
// they stood.
func between(h *host) {
	h.t.Helper()
	const rules = `*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state INVALID -j DROP
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 443 -m state --state NEW -m comment --comment "it's \"new\"" -j ACCEPT
-A INPUT -j MINE
-A MINE -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
`
	h.write("/run/test/rules", rules)
	h.sh("for f in iptables ip6tables; do $f-restore < /run/test/rules; done; mkdir -p /etc/iptables; iptables-save > /etc/iptables/rules.v4; ip6tables-save > /etc/iptables/rules.v6")
}

const untrackedWeb = `conntrack "web" {
  mode           = "notrack"
  stateful_rules = "remove"
  allow_risk     = ["one_sided", "related"]

  notrack "all" {}

  accept "https" {
    protocol   = "tcp"
    local_port = 443
    initiator  = "remote"
  }
}
`

// TestBuilds goes there and back through each release of iptables at hand: by
// itself, with tampering hands, unconfirmed, and cut off at every step.
func TestBuilds(t *testing.T) {
	own := []nstest.Build{nstest.Own("nft"), nstest.Own("legacy")}
	for _, b := range append(own, nstest.Builds(t)...) {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b.Backend, "web-1")
			h.UseBuild(b)
			between(h)
			if b.Backend == "legacy" { // a table that was used stays
				h.sh("for f in iptables ip6tables; do for t in raw mangle nat; do $f -t $t -S >/dev/null; done; done")
			}
			path := h.config(untrackedWeb)
			before := h.state()

			h.ctplan(exitOK, "snapshot", "-o", "host.json", path)
			planned := h.ctplan(exitChanges, "plan", "--detailed-exitcode", path)
			same(t, "plan differs from plan --snapshot", planned.stdout, h.ctplan(exitOK, "plan", "--snapshot", "host.json", path).stdout)
			h.write("/run/test/snapshot.sh", h.ctplan(exitOK, "snapshot", "--script").stdout)
			h.write("/run/test/printed", finish(t, h.commandOf("dash", "/run/test/snapshot.sh")).stdout)
			same(t, "plan differs from that of a script's snapshot", planned.stdout, h.ctplan(exitOK, "plan", "--snapshot", "printed", path).stdout)
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			after := h.state()
			h.settled(path)
			for _, hand := range []string{
				"iptables -t raw -F CTPLAN-OUTPUT",
				"ip6tables -F CTPLAN-INPUT",
				"iptables -I CTPLAN-INPUT -p udp -j ACCEPT",
			} {
				h.sh(hand)
				if status, found := h.addresses(path); status != exitChanges || len(found) != 1 {
					t.Errorf("after %s drift exits %d and names %q", hand, status, found)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				same(t, "what was mended is not as it was applied", after, h.state())
			}
			h.ctplan(exitOK, "rollback", "--auto-approve", "1")
			same(t, "rolled back, the host is not as it was", bare(before), bare(h.state()))

			if !slices.Contains(own, b) { // see TestPlanScripts
				h.ctplan(exitOK, "plan", "--out", "/run/test/change.ctplan", path)
				h.write("/run/test/plan.sh", h.ctplan(exitOK, "show", "--format", "sh", "/run/test/change.ctplan").stdout)
				for _, verb := range []string{"apply", "undo"} {
					if r := finish(t, h.commandOf("dash", "/run/test/plan.sh", verb)); r.status != 0 {
						t.Fatalf("the plan's script exits with %d: %s", r.status, r.stderr)
					}
					if verb == "apply" {
						same(t, "the plan's script does not do what apply does", bare(after), bare(h.state()))
						h.settled(path)
					}
				}
				same(t, "taken back by the script, the host is not as it was", bare(before), bare(h.state()))
			}

			before = h.state()
			unconfirmed := h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "5s", path)
			for begun := time.Now(); !strings.Contains(h.ctplan(exitOK, "history").stdout, "rolled back"); time.Sleep(100 * time.Millisecond) {
				if time.Since(begun) > 30*time.Second {
					t.Fatalf("not confirmed, it was not taken back:\n%s\n%s", unconfirmed.stderr, h.ctplan(exitOK, "history").stdout)
				}
			}
			same(t, "not confirmed, the host is not as it was", bare(before), bare(h.state()))

			if slices.Contains(own, b) {
				return // see TestFaults
			}
			h.sh("rm -rf /var/lib/ctplan")
			h.ctplan(exitOK, "plan", "--out", "/run/test/plan", path)
			h.faults(string(b.Backend))
		})
	}
}

// settled holds the host to what was declared: a second plan is empty.
func (h *host) settled(path string) {
	h.t.Helper()
	if again := h.ctplan(exitOK, "plan", "--detailed-exitcode", path); !strings.Contains(again.stdout, "no changes") {
		h.t.Errorf("a plan right after apply says:\n%s", again.stdout)
	}
	h.ctplan(exitOK, "drift", path)
}
