package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

const cannotUnload = "nf_conntrack is built into this kernel and cannot be unloaded: disabled means that no rule asks for tracking"

// TestBuiltin brings a host to disabled whose kernel has connection tracking
// built in: inactive is all that it can be, and plan says so. Plan, status and
// drift agree, and the kernel does track nothing any more.
//
// On a machine that has it as a module, what plan says is shown with a snapshot
// in which that one fact is another; what apply does there is shown in
// internal/test/vmtest.
func TestBuiltin(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "web-1")
			h.sh("ip link set lo up")
			path := h.example("disabled")
			var snapshot map[string]any
			if err := json.Unmarshal([]byte(h.ctplan(0, "snapshot").stdout), &snapshot); err != nil {
				t.Fatal(err)
			}
			conntrack := snapshot["conntrack"].(map[string]any)
			kind := conntrack["kind"]
			conntrack["kind"], conntrack["loaded"] = live.ConntrackBuiltin, true
			text, err := json.Marshal(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			h.write("/run/test/builtin.json", string(text))
			h.inactive(h.ctplan(0, "plan", "--snapshot", "builtin.json", path))
			if kind != string(live.ConntrackBuiltin) {
				t.Logf("conntrack is %q here: planned with a snapshot alone", kind)
				return
			}

			h.sh("iptables -A INPUT -m state --state ESTABLISHED -j ACCEPT; ip6tables -A INPUT -m state --state ESTABLISHED -j ACCEPT")
			send := "ping -c 1 -W 1 127.0.0.1 >/dev/null 2>&1 || bash -c 'echo x > /dev/udp/127.0.0.1/9'; conntrack -C"
			if h.sh(send) == "0\n" {
				t.Fatal("nothing is tracked before: nothing is left to show")
			}
			h.inactive(h.ctplan(2, "plan", "--detailed-exitcode", path))
			h.ctplan(0, "apply", "--auto-approve", path)
			h.inactive(h.ctplan(0, "plan", "--detailed-exitcode", path))
			h.ctplan(0, "drift", path)
			h.sh("conntrack -F 2>/dev/null")
			if n := strings.TrimSpace(h.sh(send)); n != "0" {
				t.Errorf("%s connections are tracked in disabled", n)
			}
			if out := h.ctplan(0, "status").stdout; !strings.Contains(out, "tracking  built in, idle: ") || !strings.Contains(out, " 0 of ") {
				t.Errorf("status says:\n%s", out)
			}

			h.sh("iptables -A INPUT -m state --state NEW -j ACCEPT")
			if r := h.ctplan(2, "drift", path); !strings.Contains(r.stdout, "--state NEW") {
				t.Errorf("drift does not name the rule that asks for tracking again:\n%s", r.stdout)
			}
		})
	}
}

// inactive expects a plan to say that disabled is inactive, and not to try more.
func (h *host) inactive(r result) {
	h.t.Helper()
	if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), cannotUnload) {
		h.t.Errorf("plan does not say that disabled means inactive:\n%s", r.stdout)
	}
	for line := range strings.Lines(r.stdout) {
		if strings.HasPrefix(line, "- module.") || strings.HasPrefix(line, "+ module.") {
			h.t.Errorf("plan would load or unload what is built in: %s", line)
		}
	}
}
