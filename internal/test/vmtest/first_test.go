package vmtest

import (
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// TestFirst has apply be the first that looks at a host's rules. Looking can
// load modules; that must not pass for somebody's change of the host.
func TestFirst(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, vmlab.Kernel61, b)
			h.declare("disabled")
			h.VM.Reboot() // without a look since
			h.Run("ctplan apply --auto-approve host.hcl")
			h.settled()

			h.Run("rm /etc/iptables/rules.v?")
			h.VM.Reboot() // not even rules
			h.declare("notrack", removing...)
			h.Run("ctplan plan --out change.ctplan host.hcl && ctplan apply change.ctplan")
			h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
		})
	}
}
