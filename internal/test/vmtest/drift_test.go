package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestDriftReads holds drift to loading no module: on a machine that has never
// had a rule, where to ask nftables or a table would load them, and after a
// boot, which drift names as the cause of what is gone.
func TestDriftReads(t *testing.T) {
	for _, backend := range []live.Backend{live.NFT, live.Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := &host{open(t).Boot(t, vmlab.Kernel61), t}
			h.Use(backend)
			const modules = "lsmod | cut -d' ' -f1 | sort"
			h.Write("/root/host.hcl", "conntrack \"x\" {\n  mode     = \"notrack\"\n  families = [\"ipv4\"]\n  notrack \"dns\" {\n    protocol    = \"udp\"\n    remote_port = 53\n  }\n}\n")
			before := h.Run(modules)
			for _, m := range []string{"nf_tables", "ip_tables", "nf_conntrack"} {
				if strings.Contains(before, m+"\n") {
					h.Fail("%s is loaded before anything was done:\n%s", m, before)
				}
			}
			h.Exits(2, "ctplan drift host.hcl")
			if after := h.Run(modules); after != before {
				h.Fail("drift loads modules: before\n%s\nafter\n%s", before, after)
			}

			h.Run("ctplan apply --auto-approve host.hcl")
			h.Exits(0, "ctplan drift --quiet host.hcl")
			h.Reboot() // nothing saves its rules
			before = h.Run(modules)
			drift := h.Exits(2, "ctplan drift host.hcl")
			if !strings.Contains(drift, "likely cause: the host was restarted since the last apply") {
				h.Fail("drift does not name the reboot:\n%s", drift)
			}
			if after := h.Run(modules); after != before {
				h.Fail("drift loads modules after a boot: before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// TestDriftSystemd holds the evidence of a service's start to what systemd and
// its journal really leave behind.
func TestDriftSystemd(t *testing.T) {
	t.Parallel()
	h := &host{open(t).Boot(t, vmlab.Kernel61, vmlab.Systemd()), t}
	h.Write("/etc/iptables/rules.v4", "*raw\nCOMMIT\n")
	h.Write("/root/host.hcl", "conntrack \"x\" {\n  mode     = \"notrack\"\n  families = [\"ipv4\"]\n  notrack \"dns\" {\n    protocol    = \"udp\"\n    remote_port = 53\n  }\n}\n")
	h.Run("ctplan apply --auto-approve host.hcl; sleep 1; ctplan drift --quiet host.hcl")
	h.Write("/etc/iptables/rules.v4", "*raw\nCOMMIT\n")
	h.Run("systemctl restart netfilter-persistent")
	drift := strings.Join(strings.Fields(h.Exits(2, "ctplan drift host.hcl")), " ") // lines joined
	for _, want := range []string{
		"likely cause: the service netfilter-persistent was started since the last apply",
		"/run/systemd/units/invocation:netfilter-persistent.service, ",
		"journal, ",
	} {
		if !strings.Contains(drift, want) {
			h.Fail("drift says nothing of %q:\n%s", want, drift)
		}
	}
}
