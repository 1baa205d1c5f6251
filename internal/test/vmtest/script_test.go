package vmtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// scripted takes a snapshot by the script, in the machine's busybox, and holds it
// to the binary's.
func (h *host) scripted() {
	h.t.Helper()
	// Who is connected and how often a module is in use changes while one looks.
	const stable = ` | sed -e '/"connections": {/,$d' -e '/"refs":/d'`
	h.Expect(`ctplan snapshot --script > /root/snapshot.sh; ctplan snapshot > /dev/null # the first look loads what lists sockets
		ctplan snapshot`+stable+` > /root/by-binary
		busybox ash -s < /root/snapshot.sh > /root/printed && ctplan snapshot --from /root/printed`+stable+` > /root/by-script
		diff /root/by-binary /root/by-script || true`, "")
}

// TestPlanScripts carries out plans by their scripts on a machine, from snapshots
// by the script: the host comes to what apply comes to, and back, from wherever
// the script was cut off too.
func TestPlanScripts(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.NFT)
	h.scripted()
	before := h.state()
	back := func(what string) {
		t.Helper()
		h.Run("busybox ash plan.sh undo")
		if after := h.state(); after != before {
			h.Fail("%s: the way back does not lead back:\n%s", what, unlike(before, after))
		}
	}
	for _, c := range []struct {
		example, name string
		replace       []string
		cuts          int
	}{
		{"tuned", "vm", nil, 1}, {"notrack", "vm", removing, 1}, {"ftp", "vm", removing, 0},
		{"disabled", "vm", nil, 2}, {"fleet", "api-1", []string{`mode  = "notrack"`, "mode = \"notrack\"\n  stateful_rules = \"remove\""}, 0},
	} {
		what := c.example + "/" + c.name
		h.Run("hostname " + c.name)
		h.declare(c.example, c.replace...)
		h.Run("busybox ash -s < snapshot.sh > printed; rm -f p; ctplan plan --snapshot printed --out p host.hcl && ctplan show --format sh p > plan.sh")
		h.Run("busybox ash plan.sh check && busybox ash plan.sh apply")
		h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
		done := h.state()
		back(what)
		if c.cuts == 0 {
			continue
		}
		h.Run("ctplan apply --auto-approve host.hcl")
		if applied := h.state(); applied != done {
			h.Fail("%s: the script does not do what apply does:\n%s", what, unlike(applied, done))
		}
		h.Run("ctplan rollback --auto-approve")
		if after := h.state(); after != before {
			h.Fail("%s: rolled back:\n%s", what, unlike(before, after))
		}
		// bash calls this before each command of the script itself.
		const cut = `bash -c 'at=%d cuts=0; cut() { cuts=$((cuts + 1)); [ $cuts != $at ] || kill -9 $$; }
			set -T; trap cut DEBUG; set -- apply; . ./plan.sh >/dev/null 2>&1; trap - DEBUG; echo $cuts'; true`
		var points int
		if _, err := fmt.Sscan(h.Run(fmt.Sprintf(cut, 0)), &points); err != nil || points < 50 {
			h.Fail("%s: %d points: %v", what, points, err)
		}
		back(what)
		for range c.cuts {
			at := 1 + rand.IntN(points)
			h.Run(fmt.Sprintf(cut, at))
			back(fmt.Sprintf("%s, cut off at command %d of %d", what, at, points))
		}
	}
	if !strings.Contains(before, "nf_conntrack") {
		h.Fail("nothing is tried: %s", before)
	}
}
