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
				// Half of the cuts wait for a record of the journal, since reading
				// and planning take most of the time.
				record, when := 0, time.Duration(rand.Int64N(int64(span)))
				if n%2 == 0 {
					record, when = 1+rand.IntN(25), time.Duration(rand.Int64N(int64(50*time.Millisecond)))
				}
				what := fmt.Sprintf("%s to %s, cut %v after record %d", from, to, when, record)
				h.Run(fmt.Sprintf(`sync; cd /var/lib/ctplan; last=$(ls *.journal | tail -n 1); last=${last%%.journal}
					next=$(printf %%06d $((10#$last + 1))).journal
					setsid ctplan apply --auto-approve ~/host.hcl > /run/apply.log 2>&1 & pid=$!
					[ %[1]d = 0 ] || while kill -0 $pid 2>/dev/null; do
						records=(); [ ! -e $next ] || mapfile -t records < $next
						[ ${#records[@]} -lt %[1]d ] || break
						sleep 0.005
					done`, record))
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
