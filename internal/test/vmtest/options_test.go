package vmtest

import (
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestOptions writes options of nf_conntrack as guides and people write them,
// and holds each forecast to what modprobe makes of the line, before the plan
// and, on one kernel each, after it.
func TestOptions(t *testing.T) {
	t.Parallel()
	lines := []string{
		"hashsize = 262144", "hashsize= 262144", "hashsize", "hashsize=262144;", "hashsize=256k", "hashsize=262,144", `hashsize="262144"`, "hashsize=0",
		"hashsize=0x4000", "hashsize=08", "acct=maybe", "acct = 1", "no_such=1 hashsize=8192", "hashsize 8192", "hashsize=-1",
	}
	kernels := vmlab.Kernels()
	for n, k := range kernels {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, k, live.NFT)
			h.Run("iptables -F; ip6tables -F; rm /etc/iptables/rules.v?")
			h.Write("/etc/modules-load.d/first.conf", "nf_conntrack\n")
			const load = "for m in xt_conntrack xt_state nft_ct nf_conntrack; do rmmod $m 2>/dev/null; done; modprobe nf_conntrack 2>/dev/null && cat /sys/module/nf_conntrack/parameters/hashsize || echo refused"
			h.declare("tuned")
			for i, line := range lines {
				h.Write("/etc/modprobe.d/site.conf", "options nf_conntrack "+line+"\n")
				h.Run("rm -f /etc/modprobe.d/netfilter.conf")
				came := h.Run(load)
				f := h.forecast().Now
				foretold := string(f.Module.State)
				switch {
				case f.Module.State == "unloaded" && strings.Contains(f.Module.Source, "/etc/modprobe.d/site.conf:1"):
					foretold = "refused"
				case f.Hashsize != nil && f.Hashsize.Known:
					foretold = strconv.FormatInt(f.Hashsize.Value, 10)
				}
				if came != foretold {
					h.Fail("%q: foretold %s (%s), and it is %s", line, foretold, f.Module.Source, came)
				}
				if i%len(kernels) != n { // each line is mended on one kernel
					continue
				}
				h.Run("ctplan apply --auto-approve host.hcl")
				if got := h.Run(load); got != "131072" {
					h.Fail("%q: after the plan the module's hash size is %s; the line is %s", line, got, h.Run("cat /etc/modprobe.d/*"))
				}
			}
		})
	}
}
