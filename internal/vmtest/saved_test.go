package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/vmlab"
	"github.com/ctplan/ctplan/planner"
)

// TestSaved shows what one rule on state does in a saved file while loading
// nf_conntrack is blocked: the next boot has no rules at all. Plan blocks
// before that and names the line; with leave to remove it, boot is sound again.
func TestSaved(t *testing.T) {
	for _, b := range []planner.Backend{planner.NFT, planner.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, vmlab.Kernel61, b)
			h.declare("disabled")
			h.apply()
			rules := h.Run("iptables-save | grep ^-A")

			h.Run(`sed -i '/-A INPUT -i lo/i -A INPUT -m state --state ESTABLISHED -j ACCEPT' /etc/iptables/rules.v4`)
			h.declare("disabled", `stateful_rules = "remove"`, "")
			blocked := strings.Join(strings.Fields(h.Exits(3, "ctplan plan host.hcl")), " ") // it wraps lines
			for _, want := range []string{"/etc/iptables/rules.v4:", "-A INPUT -m state --state ESTABLISHED -j ACCEPT"} {
				if !strings.Contains(blocked, want) {
					h.Fail("the plan is blocked without a word about %s:\n%s", want, blocked)
				}
			}
			h.Exits(3, "ctplan apply --auto-approve host.hcl")

			h.Reboot()
			if !strings.Contains(h.BootLog(), "/etc/iptables/rules.v4 was not restored") || h.BootFailed() == "" {
				h.Fail("the boot went well, so plan need not have blocked\n%s", h.BootLog())
			}
			h.Expect("iptables-save | grep ^-A || echo none", "none")

			h.declare("disabled")
			h.change()
			h.Reboot()
			h.settled()
			h.Expect("iptables-save | grep ^-A", rules)
			h.unloaded()
		})
	}
}

// TestByHand takes away what disabled has put in the way and adds a rule on
// state: drift names the file, the rule and the module, and apply mends all.
func TestByHand(t *testing.T) {
	for _, b := range []planner.Backend{planner.NFT, planner.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, vmlab.Kernel510, b)
			h.declare("disabled")
			h.apply()
			h.Exits(0, "ctplan drift host.hcl")
			before := h.Run("iptables-save | grep ^-A; cat /etc/modprobe.d/*")

			h.Run("rm /etc/modprobe.d/netfilter.conf && iptables -A INPUT -m state --state NEW -j ACCEPT")
			drift := h.Exits(2, "ctplan drift host.hcl")
			for _, want := range []string{"-A INPUT -m state --state NEW -j ACCEPT", "module.nf_conntrack", "file./etc/modprobe.d/netfilter.conf"} {
				if !strings.Contains(drift, want) {
					h.Fail("drift does not name %s:\n%s", want, drift)
				}
			}
			h.Run("ctplan apply --auto-approve host.hcl")
			h.Expect("iptables-save | grep ^-A; cat /etc/modprobe.d/*", before)
			h.unloaded()
			h.settled()
		})
	}
}
