package vmtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/vmlab"
	"github.com/ctplan/ctplan/planner"
)

// cutsEnv is the environment variable that says how often TestCuts cuts the
// power on all machines together.
const cutsEnv = "CUTS"

// TestCuts cuts the power at random instants of apply, between all modes. The
// machine then boots without a failing step, and is as before or as declared
// once ctplan has recovered: never something in between.
func TestCuts(t *testing.T) {
	cuts := 9
	if s := os.Getenv(cutsEnv); s != "" {
		var err error
		if cuts, err = strconv.Atoi(s); err != nil || cuts < 1 {
			t.Fatalf("%s=%s: want a number of cuts", cutsEnv, s)
		}
	}
	kernels := vmlab.Kernels()
	for i, k := range kernels {
		b := []planner.Backend{planner.NFT, planner.Legacy}[i%2]
		t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, k, b)
			modes := [][]string{{"tuned"}, append([]string{"notrack"}, removing...), {"disabled"}}
			declare := func(n int) string {
				mode := modes[n%len(modes)]
				h.declare(mode[0], mode[1:]...)
				return mode[0]
			}
			h.Run("ctplan snapshot > /dev/null") // reading for the first time loads modules
			declare(0)
			began := time.Now()
			h.Run("ctplan apply --auto-approve host.hcl")
			span := time.Since(began)
			at, outcomes := 0, map[string]int{}
			for n := range (cuts + len(kernels) - 1 - i) / len(kernels) {
				old := h.files()
				from, to := declare(at), declare(at+1)
				when := time.Duration(rand.Int64N(int64(span * 6 / 5)))
				what := fmt.Sprintf("%s to %s, cut after %v", from, to, when)
				h.Run("sync; setsid ctplan apply --auto-approve host.hcl > /run/apply.log 2>&1 &")
				if n%2 == 0 { // every other time, reading does not count
					what += " from the first step"
					h.Run(`until grep -qs '\[1/' /run/apply.log || ! pidof ctplan > /dev/null; do sleep 0.01; done`)
				}
				time.Sleep(when)
				h.PowerCut()
				if failed := h.BootFailed(); failed != "" {
					h.Fail("%s: a step of the boot failed: %s\n%s", what, failed, h.BootLog())
				}
				if out := h.Try("ctplan recover"); out.Status != 0 {
					h.Fail("%s: recovering: %s%s", what, out.Stdout, out.Stderr)
					return
				} else if strings.Contains(out.Stderr, "cut off") {
					outcomes["recovered"]++
				}
				declare(at)
				before := h.Try("ctplan plan --detailed-exitcode host.hcl")
				declare(at + 1)
				after := h.Try("ctplan plan --detailed-exitcode host.hcl")
				switch {
				case after.Status == 0:
					at++
					outcomes["new"]++
				case before.Status == 0:
					outcomes["old"]++
					if now := h.files(); now != old {
						h.Fail("%s: files are not as before:\n%s\nwere:\n%s", what, now, old)
					}
					h.Run("ctplan apply --auto-approve host.hcl")
					h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
					at++
				default:
					h.Fail("%s: the host is neither as before:\n%s%s\nnor as declared:\n%s%s", what, before.Stdout, before.Stderr, after.Stdout, after.Stderr)
					return
				}
			}
			t.Logf("apply takes %v; after the cuts: %v", span.Round(time.Millisecond), outcomes)
		})
	}
}
