package vmtest

import (
	"fmt"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// TestClock sets the machine's clock back by decades, and then ahead, while a
// change waits for its confirmation: it has the time that was said, to be taken
// back or to be confirmed.
func TestClock(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.NFT)
	h.declare("notrack", removing...)
	before := h.files()
	const apply = "ctplan apply --auto-approve --confirm-within 15s host.hcl && cut -d. -f1 /proc/uptime > /run/began"
	at := func(second int) string {
		return fmt.Sprintf("while [ $(($(cut -d. -f1 /proc/uptime) - $(cat /run/began))) -lt %d ]; do sleep 0.1; done", second)
	}
	h.Run(apply)
	h.Run("date -s 2001-01-01")
	h.Run(at(10))
	h.Run("iptables-save | grep -q CTPLAN && ctplan history | grep -q 'waiting for confirmation'")
	h.Run(at(17))
	h.Run("for try in $(seq 100); do ctplan history | grep -q 'rolled back' && break; sleep 0.1; done") // a slow machine takes a while to go back
	h.Expect("iptables-save | grep CTPLAN || echo none", "none")
	h.Expect("ctplan history | grep -c 'rolled back: not confirmed within 15s'", "1")
	if now := h.files(); now != before {
		h.Fail("files are not as before:\n%s\nwere:\n%s", now, before)
	}
	h.Run(apply)
	h.Run("date -s 2035-01-01")
	h.Run(at(5))
	h.Run("ctplan confirm")
	h.Run(at(17))
	h.settled()
}

// TestRebootWaiting starts the machine anew, in order and by a power cut, while
// a change waits for its confirmation and a boot script runs ctplan recover:
// it comes up as it was before, and nobody can confirm the change any more.
func TestRebootWaiting(t *testing.T) {
	t.Parallel()
	for i, k := range vmlab.Kernels() {
		b := backends[i%2]
		t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, k, b)
			h.Write("/etc/init.d/ctplan-recover", "#!/bin/sh\nexec ctplan recover\n")
			h.Run("chmod 755 /etc/init.d/ctplan-recover; sync")
			h.Reboot()
			before := h.files()
			state := "iptables-save | grep ^-A; ip6tables-save | grep ^-A; sysctl -n net.netfilter.nf_conntrack_max; cat /sys/module/nf_conntrack/parameters/hashsize"
			was := h.Run(state)
			for n, mode := range [][]string{{"tuned"}, append([]string{"notrack"}, removing...), {"disabled"}} {
				h.declare(mode[0], mode[1:]...)
				h.Run("sync; ctplan apply --auto-approve --confirm-within 1h host.hcl")
				if n == 0 {
					h.VM.Reboot()
				} else {
					h.VM.PowerCut()
				}
				if failed := h.BootFailed(); failed != "" {
					h.Fail("%s: a step of the boot failed: %s\n%s", mode[0], failed, h.BootLog())
				}
				h.Expect(state, was)
				if now := h.files(); now != before {
					h.Fail("%s: files are not as before:\n%s\nwere:\n%s", mode[0], now, before)
				}
				h.Exits(1, "ctplan confirm")
				h.Expect("ctplan history | tail -n 1 | grep -c 'rolled back'", "1")
			}
		})
	}
}
