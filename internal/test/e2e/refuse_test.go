package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
)

// refused fails the test unless r is an error that says all of texts in one
// go, without a stack trace, and nothing on the host has changed.
func (h *host) refused(before string, r result, status int, texts ...string) {
	h.t.Helper()
	if r.status != status {
		h.t.Errorf("exit status %d, want %d\nstdout:\n%s\nstderr:\n%s", r.status, status, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			h.t.Errorf("the error does not say %q:\n%s%s", text, r.stdout, r.stderr)
		}
	}
	if strings.Contains(r.stderr, "goroutine ") {
		h.t.Errorf("ctplan crashed:\n%s", r.stderr)
	}
	same(h.t, "the host changed", before, h.state())
}

func TestNotRoot(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	h.ctplan(exitOK, "snapshot", "-o", "host.json")
	h.sh("chmod 0644 host.json")
	before := h.state()
	nobody := func(args ...string) result {
		return finish(t, h.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "/run/test/ctplan"}, args...)...))
	}
	for _, command := range [][]string{{"plan"}, {"apply", "--auto-approve"}, {"drift"}, {"snapshot"}} {
		h.refused(before, nobody(append(command, path)...), exitError, "root")
	}
	// What code review needs works for everybody.
	for _, args := range [][]string{{"validate", path}, {"fmt", "--check", path}, {"plan", "--snapshot", "host.json", path}} {
		if r := nobody(args...); r.status != exitOK {
			t.Errorf("ctplan %s as nobody: exit status %d\n%s", strings.Join(args, " "), r.status, r.stderr)
		}
	}
}

// TestIptablesMissing: rules of iptables cannot be read without it; where it has
// none, nftables does.
func TestIptablesMissing(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	h.sh("iptables -A INPUT -i lo -j ACCEPT")
	before := h.state()
	h.sh("mount --bind /dev/null /usr/sbin/xtables-nft-multi; mount --bind /dev/null /usr/sbin/xtables-legacy-multi")
	plan, apply := h.try("plan", path), h.try("apply", "--auto-approve", path)
	h.sh("umount /usr/sbin/xtables-nft-multi; umount /usr/sbin/xtables-legacy-multi")
	h.refused(before, plan, exitError, "iptables", "install")
	h.refused(before, apply, exitError, "iptables", "install")

	h.sh("nft flush ruleset; mount --bind /dev/null /usr/sbin/xtables-nft-multi; mount --bind /dev/null /usr/sbin/xtables-legacy-multi")
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	if again := h.ctplan(exitOK, "plan", "--detailed-exitcode", path); !strings.Contains(again.stdout, "no changes") {
		t.Errorf("a second plan:\n%s", again.stdout)
	}
	if rules := h.sh("nft list ruleset"); !strings.Contains(rules, "notrack comment") {
		t.Errorf("nftables has\n%s", rules)
	}
}

// TestXtablesLockHeld has another process hold the lock that legacy iptables
// takes: ctplan waits a while, names who to wait for, and gives up whole.
func TestXtablesLockHeld(t *testing.T) {
	h := newHost(t, "legacy", "web-1")
	path := h.config(webUntracked)
	before := h.state()
	holder := h.Command("flock", "/run/xtables.lock", "sh", "-c", "echo ready; exec cat")
	stop := nstest.Start(t, holder)
	start := time.Now()
	r := h.try("apply", "--auto-approve", path)
	waited := time.Since(start)
	stop()
	h.refused(before, r, exitError, "/run/xtables.lock")
	if !strings.Contains(r.stderr, "cat") && !strings.Contains(r.stderr, "flock") {
		t.Errorf("the error does not name the process that holds the lock:\n%s", r.stderr)
	}
	if waited < time.Second {
		t.Errorf("ctplan gave up after %v without waiting", waited)
	}
	t.Logf("gave up after %v:\n%s", waited.Round(time.Millisecond), r.stderr)

	// A lock that comes free in time is no error.
	brief := h.Command("flock", "/run/xtables.lock", "sh", "-c", "echo ready; sleep 1")
	nstest.Start(t, brief)
	h.ctplan(exitOK, "apply", "--auto-approve", path)
}

// TestCtplanLockHeld has another ctplan at work.
func TestCtplanLockHeld(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	before := h.state()
	stop := nstest.Start(t, h.Command("flock", "/run/ctplan.lock", "sh", "-c", "echo ready; exec cat"))
	r := h.try("apply", "--auto-approve", path)
	stop()
	h.refused(before, r, exitError, "/run/ctplan.lock")
}

func TestReadOnlySysctls(t *testing.T) {
	nstest.Machine(t)
	h := newHost(t, "nft", "nat-1")
	h.initial = true
	path := h.config(`
conntrack "gateway" {
  mode     = "tuned"
  max      = 262100
  hashsize = 65536
}
`)
	before := h.state()
	cmd := h.Command("unshare", "--mount", "sh", "-ec",
		`mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; exec nsenter --net="$0" -- /run/test/ctplan apply --auto-approve "$1"`,
		fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), path)
	r := finish(t, cmd)
	h.refused(before, r, exitBlocked, "nf_conntrack_max", "read-only")
}

// TestSizesInNamespace has ctplan run where nf_conntrack_max is read-only: in a
// network namespace that is not the machine's.
func TestSizesInNamespace(t *testing.T) {
	h := newHost(t, "nft", "nat-1")
	path := h.example("tuned")
	before := h.state()
	h.refused(before, h.try("plan", path), exitBlocked, "nf_conntrack_max", "read_only_sysctl")
	h.refused(before, h.try("apply", "--auto-approve", path), exitBlocked, "nf_conntrack_max")
}

// TestUnmatchedHost is a host that no block names: not an error, but said, and
// what is left of ctplan there comes with the commands that take it away.
func TestUnmatchedHost(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			h := newHost(t, backend, "web-1")
			clean := h.rules()
			h.ctplan(exitOK, "apply", "--auto-approve", h.config(webUntracked))
			path := h.config(strings.Replace(webUntracked, "mode ", `hosts = ["db-*"]`+"\n  mode ", 1))
			for _, command := range [][]string{{"plan", "--detailed-exitcode"}, {"apply", "--auto-approve"}, {"drift"}} {
				r := h.ctplan(exitOK, append(command, path)...)
				if !strings.Contains(r.stdout+r.stderr, "web-1") {
					t.Errorf("ctplan %s does not say which host no block matches:\n%s%s", command[0], r.stdout, r.stderr)
				}
			}
			// Do what the warnings say.
			commands := h.remedies(path)
			for _, command := range commands {
				h.sh(command)
			}
			// A jump to delete, a chain to flush and to delete: two in each of two tables, twice.
			if len(commands) != 24 || strings.Contains(h.rules(), "CTPLAN") {
				t.Errorf("after %q from the warnings there is:\n%s", commands, h.rules())
			}
			same(t, "what is left of the rules", withoutEmptyTables(clean), withoutEmptyTables(h.rules()))
		})
	}
}

// withoutEmptyTables takes away tables that hold nothing: they stay once they
// have been used.
func withoutEmptyTables(rules string) string {
	var kept strings.Builder
	for table := range strings.SplitSeq(rules, "COMMIT\n") {
		if strings.Contains(table, "-A ") {
			kept.WriteString(table)
		}
	}
	return kept.String()
}

// TestSavedPlan applies a plan that was saved and reviewed, and refuses it once
// the host is not the one that it was made from.
func TestSavedPlan(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	planned := h.ctplan(exitOK, "plan", "--out", "change.ctplan", path)
	same(t, "show differs from plan", planned.stdout, h.ctplan(exitOK, "show", "change.ctplan").stdout)

	h.sh("iptables -A INPUT -p udp -j DROP")
	before := h.state()
	h.refused(before, h.try("apply", "change.ctplan"), exitError, "changed")
	h.sh("iptables -D INPUT -p udp -j DROP")

	h.ctplan(exitOK, "apply", "change.ctplan")
	h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
}

// TestNoTerminal has apply ask for a decision where nobody can answer.
func TestNoTerminal(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	h.refused(h.state(), h.try("apply", path), exitError, "--auto-approve")
}

// TestBadInput gives ctplan what is no configuration.
func TestBadInput(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	before := h.state()
	block := func(body string) string { return "conntrack \"x\" {\n" + body + "\n}\n" }
	tuned := func(line string) string { return block("mode = \"tuned\"\n" + line) }
	notrack := func(line string) string { return block("mode = \"notrack\"\nnotrack \"x\" {\n" + line + "\n}") }
	for name, c := range map[string]struct{ hcl, says string }{
		"not HCL":               {"conntrack {{{", "main.hcl"},
		"unknown attribute":     {tuned("maxx = 5"), `"max"`},
		"wrong type":            {tuned(`max = ["a"]`), "main.hcl:3"},
		"fraction":              {tuned("max = 1.5"), "main.hcl:3"},
		"negative":              {tuned("max = -1"), "main.hcl:3"},
		"too large":             {tuned("max = 9223372036854775808"), "main.hcl:3"},
		"hashsize 0":            {tuned("max = 1000\nhashsize = 0"), "main.hcl:4"},
		"bad address":           {notrack(`remote = "10.0.0.256"`), "main.hcl:4"},
		"inverted ports":        {notrack("protocol = \"tcp\"\nlocal_port = \"90-80\""), "main.hcl:5"},
		"ports without a place": {notrack("protocol = \"icmp\"\nlocal_port = 80"), "main.hcl:5"},
		"two blocks":            {block(`mode = "disabled"`) + strings.Replace(block(`mode = "disabled"`), `"x"`, `"y"`, 1), `"y"`},
		"unknown variable":      {tuned("max = var.nowhere"), "main.hcl:3"},
		"newline in a name":     {block("mode = \"notrack\"\nnotrack \"a\\nCOMMIT\" {}"), "main.hcl:3"},
		"quote in an interface": {notrack(`interface = "e\" -j ACCEPT"`), "main.hcl:4"},
		"binary":                {"\x7fELF\x00\x01\xff\xfe", "main.hcl"},
		"10 MB":                 {strings.Repeat("# filler\n", 10<<20/9), "main.hcl"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			path := h.config(c.hcl)
			for _, command := range []string{"validate", "plan", "apply"} {
				args := []string{command, path}
				if command == "apply" {
					args = append(args, "--auto-approve")
				}
				r := h.try(args...)
				if name == "10 MB" && r.status == exitOK { // large, but only comments
					continue
				}
				if r.status != exitError || !strings.Contains(r.stderr, strings.Split(c.says, ":")[0]) {
					t.Errorf("%s: exit status %d, want %d and an error that says %q:\n%s", command, r.status, exitError, c.says, r.stderr)
				}
				if _, line, ok := strings.Cut(c.says, ":"); ok && !strings.Contains(r.stderr, "line "+line) && !strings.Contains(r.stderr, c.says) {
					t.Errorf("%s: the error does not name line %s:\n%s", command, line, r.stderr)
				}
			}
		})
	}
	same(t, "the host changed", before, h.state())
}
