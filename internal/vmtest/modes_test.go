package vmtest

import (
	"fmt"
	"testing"

	"github.com/ctplan/ctplan/internal/vmlab"
	"github.com/ctplan/ctplan/planner"
)

// TestModes takes one host through the modes, on each kernel with each
// backend, and reboots in every mode; every other time the power fails
// instead.
func TestModes(t *testing.T) {
	for _, k := range vmlab.Kernels() {
		for _, b := range []planner.Backend{planner.NFT, planner.Legacy} {
			t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, k, b)

				h.connect("tracked")
				h.declare("tuned")
				h.apply()
				h.sized()
				h.connect("tracked")
				h.Reboot()
				h.settled()
				h.sized()
				h.connect("tracked")

				h.declare("notrack", removing...)
				h.apply()
				h.untracked()
				h.PowerCut()
				h.settled()
				h.untracked()

				h.declare("disabled")
				h.apply()
				h.unloaded()
				h.Reboot()
				h.unloaded()
				h.settled()

				h.declare("tuned")
				h.apply()
				h.sized()
				h.PowerCut()
				h.settled()
				h.sized()

				h.declare("disabled")
				h.apply()
				h.unloaded()
				h.PowerCut()
				h.unloaded()
				h.settled()
			})
		}
	}
}
