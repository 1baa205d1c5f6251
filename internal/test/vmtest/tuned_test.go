package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestTuned holds sizes to surviving what hosts have already: options of the
// module in another file, a sysctl file that is read earlier, and a module
// that is unloaded and comes back by a rule.
func TestTuned(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel612, live.NFT)
	h.Write("/etc/modprobe.d/aa.conf", "# of this site\noptions nf_conntrack acct=1 hashsize=4096\n")
	h.Write("/etc/sysctl.d/50-vendor.conf", "net.netfilter.nf_conntrack_max=1000\n")
	h.Write("/etc/modules-load.d/site.conf", "nf_conntrack_ftp\n")
	h.declare("tuned")
	h.apply()
	h.sized()
	h.Expect("cat /etc/modprobe.d/*", "# of this site\noptions nf_conntrack acct=1 hashsize=131072")
	h.Reboot()
	h.settled()
	h.sized()
	h.Expect("cat /proc/sys/net/netfilter/nf_conntrack_acct", "1")

	// A load without sysctl leaves the kernel's own max, 8 for each bucket:
	// drift, and nothing else of it.
	h.Run(`iptables -F; ip6tables -F; modprobe -r nf_conntrack_ftp; for m in nft_ct xt_conntrack nf_conntrack; do rmmod $m 2>/dev/null; done
		iptables -A INPUT -m state --state ESTABLISHED -j ACCEPT`)
	h.Expect("cat /sys/module/nf_conntrack/parameters/hashsize /proc/sys/net/netfilter/nf_conntrack_max", "131072\n1048576")
	drift := h.Exits(2, "ctplan drift host.hcl")
	if !strings.Contains(drift, "sysctl.net.netfilter.nf_conntrack_max  1048576 -> 524288") || strings.Contains(drift, "hashsize  ") {
		h.Fail("drift is not about max alone:\n%s", drift)
	}
	h.change()
	h.sized()
}

// TestAbsent is a kernel without conntrack: disabled has nothing to unload or
// to block, everything else is refused with the reason.
func TestAbsent(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.Legacy)
	h.Run(`rm /etc/iptables/rules.v?; cd /lib/modules/$(uname -r) && rm kernel/net/netfilter/nf_conntrack.ko* && depmod && sync`)
	h.Reboot()
	h.Exits(1, "modprobe nf_conntrack")
	for _, example := range []string{"tuned", "notrack"} {
		h.declare(example)
		blocked := h.Exits(3, "ctplan plan host.hcl")
		if !strings.Contains(blocked, "BLOCKED by no_conntrack") {
			h.Fail("%s is blocked for another reason:\n%s", example, blocked)
		}
	}
	h.declare("disabled")
	plan := h.Exits(2, "ctplan plan --detailed-exitcode host.hcl")
	if strings.Contains(plan, "module.") || strings.Contains(plan, "modprobe.d") {
		h.Fail("there is no module, and the plan is about it:\n%s", plan)
	}
	h.change()
	h.unloaded()
}
