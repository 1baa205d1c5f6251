package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestScripts does without the binary on a machine: a snapshot by the script is
// the binary's, and plans by their scripts size the table, unload the modules, and
// come back.
func TestScripts(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.NFT)
	h.Run("ctplan snapshot --script > /root/snapshot.sh")
	// Who is connected and how often a module is in use changes while one looks.
	const stable = ` | sed -e '/"connections": {/,$d' -e '/"refs":/d'`
	h.Run("ctplan snapshot > /dev/null; ctplan snapshot" + stable + " > /root/by-binary") // the first look loads what lists sockets
	for _, shell := range []string{"bash --posix", "busybox ash"} {
		h.Run(shell + " -s < /root/snapshot.sh > /root/printed && ctplan snapshot --from /root/printed" + stable + " > /root/by-script")
		h.Expect("diff /root/by-binary /root/by-script || true", "")
	}
	const state = "iptables-save | grep -v '^#' | sed 's/\\[.*\\]//'; sysctl net.netfilter | grep -v count; cat /sys/module/nf_conntrack/parameters/hashsize; lsmod | grep -o '^nf_conntrack '"
	before, files := h.Run(state), h.files()
	for _, example := range []string{"tuned", "disabled"} {
		h.declare(example)
		h.Run("rm -f p; ctplan plan --snapshot /root/printed --out p host.hcl && ctplan show --format sh p > plan.sh")
		h.Run("busybox ash plan.sh check && busybox ash plan.sh apply")
		h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
		if example == "tuned" {
			h.sized()
		} else {
			h.Expect("lsmod | grep ^nf_conntrack || echo none", "none")
		}
		h.Run("busybox ash plan.sh undo")
		if after := h.Run(state); after != before {
			h.Fail("%s: the way back does not lead back:\n%s\n%s", example, before, after)
		}
		if after := h.files(); after != files {
			h.Fail("%s: the way back leaves other files:\n%s\n%s", example, files, after)
		}
	}
	if !strings.Contains(before, "nf_conntrack") {
		h.Fail("nothing is tried: %s", before)
	}
}
