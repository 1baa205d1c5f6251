package vmtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/planner/boot"
	live "github.com/ctplan/ctplan/planner/host"
)

// cutsEnv is the environment variable that says how often TestMatrix cuts the
// power on all machines together.
const cutsEnv = "CUTS"

// cutsDefault is how often without it.
const cutsDefault = 20

var backends = []live.Backend{live.NFT, live.Legacy}

// modes are the three modes, as a host is brought into them.
var modes = []string{"tuned", "notrack", "disabled"}

// TestMatrix takes a host into each mode, on each kernel with each backend: it
// cuts the power at a random instant of apply, recovers, applies, restarts the
// service that loads the rules, and reboots. Each is a cell of the table that
// TestMain prints. Every boot but that after the cut itself is held to its
// forecast: after recovery, and after apply and a restart to the one that plan
// made before anything was changed.
func TestMatrix(t *testing.T) {
	t.Parallel()
	cuts := cutsDefault
	machines := len(vmlab.Kernels()) * len(backends)
	if s := os.Getenv(cutsEnv); s != "" {
		var err error
		if cuts, err = strconv.Atoi(s); err != nil || cuts < machines*len(modes) {
			t.Fatalf("%s=%s: want a number of power cuts, at least %d: one on each of %d machines into each mode", cutsEnv, s, machines*len(modes), machines)
		}
	}
	n := 0
	for _, k := range vmlab.Kernels() {
		for _, b := range backends {
			share := (cuts + machines - 1 - n) / machines
			// Each machine begins elsewhere, and half go the other way around.
			order := slices.Concat(modes[n%3:], modes[:n%3])
			if n%2 == 1 {
				slices.Reverse(order)
			}
			n++
			t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
				t.Parallel()
				matrix(t, k, b, order, share)
			})
		}
	}
}

// matrix goes through the modes in their order, and again while cuts are left.
func matrix(t *testing.T, k vmlab.Kernel, b live.Backend, order []string, cuts int) {
	h := newHost(t, k, b)
	h.connect("tracked")
	h.Run("ctplan snapshot > /dev/null") // reading for the first time loads modules
	at := ""                             // the mode that the host is in
	for n := 0; n < cuts; n++ {
		mode := order[n%len(order)]
		run := func(s stage, fn func(*host) string) bool {
			return t.Run(fmt.Sprintf("%s/%s", mode, s), func(t *testing.T) {
				began, note := time.Now(), ""
				defer func() { record(cell{k, b, mode, s}, !t.Failed(), time.Since(began), note) }()
				note = fn(&host{h.With(t), t})
			})
		}
		ok := run(powerCut, func(h *host) string {
			// A cut before the first record or after the last was none in mid-apply:
			// the first into a mode is made to be one.
			made, outcome := 1, h.cut(at, mode)
			for ; n < len(order) && !outcome.mid; made++ {
				if made == 5 {
					h.t.Fatal("five cuts, and none in mid-apply")
				}
				if outcome.new {
					h.leave(at)
				}
				outcome = h.cut(at, mode)
			}
			return outcome.String()
		})
		if !ok {
			return
		}
		if n >= len(order) {
			h.enter(mode)
			at = mode
			continue
		}
		at = mode
		var after boot.Forecast
		foretold := func(h *host) {
			if now := h.forecast().Now; !reflect.DeepEqual(now, after) {
				h.Fail("the plan foretold that a boot comes to\n%+v\nand now the forecast is\n%+v", after, now)
			}
		}
		ok = run(applied, func(h *host) string {
			h.mode(mode)
			after = h.forecast().After
			h.enter(mode)
			h.holds(mode)
			foretold(h)
			if n == 0 {
				h.scripted()
			}
			return ""
		}) && run(serviceRestart, func(h *host) string {
			h.Run("iptables -F; ip6tables -F; /etc/init.d/netfilter-persistent restart")
			h.holds(mode)
			foretold(h)
			return ""
		}) && run(rebooted, func(h *host) string {
			h.Reboot()
			h.holds(mode)
			return ""
		})
		if !ok {
			return
		}
	}
}

// cutOutcome is what became of an apply that the power cut off.
type cutOutcome struct {
	mid bool   // steps had begun and not ended
	new bool   // the host is as declared; else as it was
	at  string // the instant
}

func (o cutOutcome) String() string {
	if o.new {
		return "new after " + o.at
	}
	return "old after " + o.at
}

// cut cuts the power while the host goes from one mode to another, "" being
// none. The machine boots without a failing step; once ctplan has recovered it
// is as before or as declared, never something in between, and boots into that.
func (h *host) cut(from, to string) cutOutcome {
	h.t.Helper()
	old := h.state()
	h.mode(to)
	// Most cuts wait for a record of the journal: reading, planning and trying take
	// most of the time of an apply, and few of its dangers. What is to be cut there
	// is stopped there, or a little later, since it is over before the power is off.
	permille, when := rand.IntN(1000), time.Duration(rand.Int64N(int64(20*time.Millisecond)))*time.Duration(rand.IntN(2))
	if rand.IntN(6) == 0 {
		permille, when = -1, time.Duration(rand.Int64N(int64(6*time.Second)))
	}
	instant := h.Run(fmt.Sprintf(`sync; mkdir -p /var/lib/ctplan; chmod 700 /var/lib/ctplan; cd /var/lib/ctplan
		last=$(ls | sed -n 's/\.journal$//p' | tail -n 1); next=$(printf %%06d $((10#0$last + 1))).journal
		setsid ctplan apply --auto-approve ~/host.hcl > /run/apply.log 2>&1 & pid=$!
		[ %[1]d -ge 0 ] || { echo 'of the command'; exit; }
		most=; records=(); exec {nap}<> <(:) # no process is started to look and wait
		while kill -0 $pid 2>/dev/null; do
			[ ! -e $next ] || mapfile -t records < $next
			[[ -n $most || ! ${records[0]-} =~ \"steps\":([0-9]+) ]] || most=${BASH_REMATCH[1]}
			[ -z "$most" ] || [ ${#records[@]} -lt $((1 + 2 * most * %[1]d / 1000)) ] || break
			read -t 0.001 -u $nap
		done
		[ %[2]d = 0 ] || read -t 0.%03[2]d -u $nap
		kill -STOP $pid 2>/dev/null
		echo "of record ${#records[@]} of $((2 * most + 2))"`, permille, when.Milliseconds()))
	if permille < 0 {
		time.Sleep(when)
	}
	h.VM.PowerCut()
	out := cutOutcome{at: fmt.Sprintf("%v %s", when.Round(time.Millisecond), instant)}
	what := fmt.Sprintf("%s to %s, cut %s", from, to, out.at)
	if failed := h.BootFailed(); failed != "" {
		h.Fail("%s: a step of the boot failed: %s\n%s", what, failed, h.BootLog())
	}
	recovered := h.Try("ctplan recover")
	if recovered.Status != 0 {
		h.t.Fatalf("%s: recovering: %s%s", what, recovered.Stdout, recovered.Stderr)
	}
	out.mid = strings.Contains(recovered.Stderr, "cut off")
	planned := h.Try("ctplan plan --detailed-exitcode host.hcl")
	out.new = planned.Status == 0
	if now := h.state(); !out.new && now != old {
		h.t.Fatalf("%s: the host is neither as before:\n%s\nnor as declared:\n%s%s", what,
			unlike(old, now), planned.Stdout, planned.Stderr)
	}
	files := h.files()
	if !out.new && from != "" {
		h.mode(from)
		h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
	}
	h.Reboot()
	if now := h.files(); now != files {
		h.Fail("%s: a reboot changes files:\n%s", what, unlike(files, now))
	}
	if out.new || from != "" {
		h.settled()
	}
	return out
}

// unlike is how two states differ.
func unlike(before, now string) string { return textdiff.Unified("before", "now", before, now, 1) }

// mode declares a mode, by the example for it.
func (h *host) mode(mode string) {
	h.t.Helper()
	if mode == "notrack" {
		h.declare(mode, removing...)
		return
	}
	h.declare(mode)
}

// enter brings the host into a mode, in which it may be already.
func (h *host) enter(mode string) {
	h.t.Helper()
	h.mode(mode)
	h.Run("ctplan apply --auto-approve host.hcl")
}

// TestThereAndBack takes a host through all modes and back to what it was
// before ctplan, with a reboot behind each step.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	for i, k := range vmlab.Kernels() {
		b := backends[(i+1)%2]
		t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, k, b)
			h.VM.Reboot()
			unmanaged := h.state()
			for _, mode := range []string{"disabled", "tuned", "notrack", "disabled"} {
				h.mode(mode)
				h.change()
				h.holds(mode)
				h.Reboot()
				h.holds(mode)
			}
			h.Run("ctplan rollback --auto-approve 1")
			as := func(after string) {
				if now := h.state(); now != unmanaged {
					h.Fail("after %s the host is not as it was before ctplan:\n%s", after, unlike(unmanaged, now))
				}
			}
			as("rollback")
			h.Reboot()
			as("rollback and a reboot")
			if failed := h.BootFailed(); failed != "" {
				h.Fail("a step of the boot failed: %s\n%s", failed, h.BootLog())
			}
		})
	}
}

// leave brings the host back to the mode that it was in, "" being none.
func (h *host) leave(from string) {
	h.t.Helper()
	if from == "" {
		h.Run("ctplan rollback --auto-approve")
		return
	}
	h.enter(from)
}

// holds expects everything that a mode promises, and that the last boot went
// well.
func (h *host) holds(mode string) {
	h.t.Helper()
	h.settled()
	switch mode {
	case "tuned":
		h.sized()
		if h.tracks() {
			h.connect("tracked")
		} else {
			h.connect("untracked")
		}
	case "notrack":
		h.untracked()
	case "disabled":
		h.unloaded()
	}
}

// state is what the host's files, rules, module and values are. Empty tables
// come and go with those who look at them.
func (h *host) state() string {
	h.t.Helper()
	return h.files() + "\n" + h.Run(`{ iptables-save; ip6tables-save; } | sed '/^[#*C]/d; /^:.* ACCEPT /d; s/ \[[0-9:]*\]$//'
		lsmod | grep -c '^nf_conntrack '; cat /sys/module/nf_conntrack/parameters/hashsize 2>/dev/null
		sysctl -a 2>/dev/null | grep -E '^net\.(netfilter\.)?nf_conntrack' | grep -v -e _count -e _frag6_; true`)
}
