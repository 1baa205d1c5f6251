package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// TestSaved shows what one rule that needs connection tracking does in a saved
// file while loading nf_conntrack is blocked: the next boot has no rules at all.
// Plan blocks before that and names the line; with leave to remove the rule,
// boot is sound again.
func TestSaved(t *testing.T) {
	t.Parallel()
	const removes = `stateful_rules = "remove"`
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, vmlab.Kernel61, b)
			h.declare("disabled")
			h.apply()
			sound := h.Run("iptables-save | grep ^-A")
			for _, left := range []struct {
				rule          string
				put           string   // into a saved file, a sed script
				refuse, leave []string // replaced in the declaration
			}{
				{"-A INPUT -m state --state ESTABLISHED -j ACCEPT", `/-A INPUT -i lo/i RULE`,
					[]string{removes, ""}, nil},
				{"-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE", `1i *nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nRULE\nCOMMIT`,
					nil, []string{removes, removes + "\n  allow_risk = [\"nat\"]"}},
				{"-A PREROUTING -p udp -m udp --dport 53 -j NOTRACK", `1i *raw\n:PREROUTING ACCEPT [0:0]\nRULE\nCOMMIT`,
					[]string{removes, ""}, nil},
			} {
				h.Run("sed -i '" + strings.ReplaceAll(left.put, "RULE", left.rule) + "' /etc/iptables/rules.v4")
				h.declare("disabled", left.refuse...)
				blocked := strings.Join(strings.Fields(h.Exits(3, "ctplan plan host.hcl")), " ") // it wraps lines
				for _, want := range []string{"/etc/iptables/rules.v4:", left.rule} {
					if !strings.Contains(blocked, want) {
						h.Fail("the plan is blocked without a word about %s:\n%s", want, blocked)
					}
				}
				h.Exits(3, "ctplan apply --auto-approve host.hcl")

				h.Reboot()
				if !strings.Contains(h.BootLog(), "/etc/iptables/rules.v4 was not restored") || h.BootFailed() == "" {
					h.Fail("with %s the boot went well, so plan need not have blocked\n%s", left.rule, h.BootLog())
				}
				h.Expect("iptables-save | grep ^-A || echo none", "none")

				h.declare("disabled", left.leave...)
				h.change()
				h.Reboot()
				h.settled()
				h.Expect("iptables-save | grep ^-A", sound)
				h.unloaded()
			}
		})
	}
}

// TestByHand takes away what disabled has put in the way and adds a rule on
// state: drift names the file, the rule and the module, and apply mends all.
func TestByHand(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
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
