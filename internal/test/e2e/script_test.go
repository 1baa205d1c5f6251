package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
)

// scripted has a saved plan written as a script, and lints it.
func (h *host) scripted(path string) string {
	h.t.Helper()
	h.ctplan(exitOK, "plan", "--out", "/run/test/change.ctplan", path)
	text := h.ctplan(exitOK, "show", "--format", "sh", "/run/test/change.ctplan").stdout
	h.write("/run/test/plan.sh", text)
	if _, err := exec.LookPath("shellcheck"); err != nil {
		testhost.Lacks(h.t, "needs shellcheck")
	}
	if out, err := exec.Command("shellcheck", "-s", "sh", h.Path("/run/test/plan.sh")).CombinedOutput(); err != nil {
		h.t.Errorf("shellcheck: %v\n%s", err, out)
	}
	return "/run/test/plan.sh"
}

// bareTable is a table that holds nothing and lets everything pass: iptables
// makes such tables, and has no command that takes them away.
var bareTable = regexp.MustCompile(`(?m)^\*\w+\n(:\w+ ACCEPT\n)*COMMIT\n`)

// stands is the host's state without such tables.
func (h *host) stands() string { return bareTable.ReplaceAllString(h.state(), "") }

// TestPlanScripts makes the change of each example by its script, in each shell:
// the host is as apply would have it, and the way back brings what was.
func TestPlanScripts(t *testing.T) {
	shells := [][]string{{"dash"}, {"busybox", "ash"}, {"bash", "--posix"}, {"bash", "-O", "compat41"}}
	n := 0
	for i, role := range roles {
		for j, backend := range backends {
			if i > 0 && i%len(backends) != j {
				continue
			}
			shell := shells[n%len(shells)]
			n++
			t.Run(strings.Join([]string{role.example, role.host, string(backend), shell[0]}, "/"), func(t *testing.T) {
				if role.initial {
					const timeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_"
					nstest.Machine(t, timeout+"established", timeout+"time_wait")
				}
				h := newHost(t, backend, role.host)
				h.initial = role.initial
				role.furnish(h)
				path := h.example(role.example)
				script := h.scripted(path)
				run := func(status int, args ...string) result {
					t.Helper()
					words := slices.Concat(shell[1:], []string{script}, args)
					r := finish(t, h.commandOf(shell[0], words...))
					if r.status != status {
						t.Fatalf("%v %v exits with %d:\n%s%s", shell, args, r.status, r.stdout, r.stderr)
					}
					return r
				}
				before := h.stands()
				run(0, "check")
				same(t, "check changed the host", before, h.stands())
				run(0, "apply")
				h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
				if again := h.ctplan(exitOK, "plan", "--detailed-exitcode", path); !strings.Contains(again.stdout, "no changes") {
					t.Errorf("a plan right after the script says:\n%s", again.stdout)
				}
				done := h.stands()
				run(1, "apply")
				same(t, "a second apply changed the host", done, h.stands())
				run(0, "undo")
				same(t, "the way back", before, h.stands())
				run(0, "undo")
				same(t, "the way back of nothing", before, h.stands())

				// It is what apply comes to.
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				same(t, "the script does not do what apply does", h.stands(), done)
				run(1, "check")
			})
		}
	}
}

// cuts is how many of the points a script is cut off at, unless
// CTPLAN_SCRIPT_CUTS says otherwise; 0 means all.
const cuts = 10

// TestPlanScriptCut kills a script at many of its commands: from each, its undo
// brings back what was.
func TestPlanScriptCut(t *testing.T) {
	limit := cuts
	if text := os.Getenv("CTPLAN_SCRIPT_CUTS"); text != "" {
		limit, _ = strconv.Atoi(text)
	}
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			h := newHost(t, backend, "api-1")
			debian(h)
			path := h.example("notrack")
			script := h.scripted(path)
			before := h.stands()
			// bash calls this before each command, in functions and subshells too.
			h.write("/run/test/cut.sh", `cut_at=$1; cuts=0; main=$BASHPID
				cut() { cuts=$((cuts + 1)); if [ $BASHPID = $main ] && [ $cuts = $cut_at ]; then kill -9 $$; fi; }
				set -T; trap cut DEBUG; set -- apply; . `+script+`; trap - DEBUG; echo $cuts`)
			whole := finish(t, h.commandOf("bash", "/run/test/cut.sh", "0"))
			points, err := strconv.Atoi(strings.TrimSpace(whole.stdout))
			if err != nil || whole.status != 0 {
				t.Fatalf("%d: %s%s", whole.status, whole.stdout, whole.stderr)
			}
			undo := func(at string) {
				t.Helper()
				if r := finish(t, h.commandOf("dash", script, "undo")); r.status != 0 {
					t.Fatalf("%s: the way back fails: %s", at, r.stderr)
				}
				same(t, at, before, h.stands())
			}
			undo("whole")
			if limit == 0 || limit > points {
				limit = points
			}
			for i := range limit {
				k := (i*points + points/2) / limit
				if r := finish(t, h.commandOf("bash", "/run/test/cut.sh", fmt.Sprint(k+1))); r.status == 0 && k+1 < points {
					t.Errorf("command %d of %d: it was not cut off", k+1, points)
				}
				undo(fmt.Sprintf("cut off at command %d of %d", k+1, points))
			}
		})
	}
}

// TestPlanScriptRefuses: what is not as planned, what fails half way, and what
// somebody changed since.
func TestPlanScriptRefuses(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			h := newHost(t, backend, "api-1")
			debian(h)
			script := h.scripted(h.example("notrack"))
			run := func(status int, say string, args ...string) {
				t.Helper()
				if r := finish(t, h.commandOf("dash", append([]string{script}, args...)...)); r.status != status || !strings.Contains(r.stderr, say) {
					t.Errorf("%v exits with %d, want %d, and says, without %q:\n%s", args, r.status, status, say, r.stderr)
				}
			}
			before := h.stands()
			for _, hand := range []string{"iptables -I INPUT 1 -s 192.0.2.77 -j DROP", "echo '# x' >> /etc/iptables/rules.v4"} {
				h.sh("cp -a /etc/iptables /run/test/saved")
				h.sh(hand)
				changed := h.stands()
				run(1, "not as the plan was made for", "apply")
				same(t, "a refused script changed the host", changed, h.stands())
				h.sh("iptables -D INPUT -s 192.0.2.77 -j DROP 2>/dev/null || true; cp -a /run/test/saved/. /etc/iptables/; rm -r /run/test/saved")
			}
			same(t, "the test's own way back", before, h.stands())

			// A file that cannot be written fails the last steps.
			h.sh("mount --bind /etc/iptables /etc/iptables && mount -o remount,ro,bind /etc/iptables")
			run(1, "taking everything back", "apply")
			h.sh("umount /etc/iptables")
			same(t, "a failure half way", before, h.stands())

			run(0, "sh "+script+" undo", "apply")
			h.sh("iptables -A CTPLAN-INPUT -s 192.0.2.78 -j DROP")
			run(1, "somebody has changed", "undo")
			run(0, "taken back", "undo", "--force")
			same(t, "taken back by force", before, h.stands())

			run(0, "confirm", "apply", "--confirm-within", "2")
			h.sh("for i in $(seq 60); do [ -e /var/lib/ctplan-script/*/began ] || exit 0; sleep 0.5; done; exit 1")
			same(t, "nobody confirmed", before, h.stands())
			run(0, "confirm", "apply", "--confirm-within", "3")
			run(0, "it stays", "confirm")
			h.sh("sleep 4; ls /var/lib/ctplan-script/*/began")
			run(0, "taken back", "undo")
			same(t, "taken back after all", before, h.stands())
		})
	}
}
