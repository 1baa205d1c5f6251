package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/verify"
	live "github.com/ctplan/ctplan/planner/host"
)

// verified is what verify found, by the names of the checks.
type verified struct {
	t      *testing.T
	report verify.Report
}

// verify runs verify. Meanwhile, with --wait, traffic passes.
func (h *host) verify(traffic func(), args ...string) verified {
	h.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if traffic != nil {
			traffic()
		}
	}()
	r := h.try(append([]string{"verify", "--json"}, args...)...)
	<-done
	v := verified{t: h.t}
	if err := json.Unmarshal([]byte(r.stdout), &v.report); err != nil {
		h.t.Fatalf("verify: exit status %d, %v\n%s\n%s", r.status, err, r.stdout, r.stderr)
	}
	want := exitOK
	if v.report.Summary.Fail > 0 {
		want = exitChanges
	}
	if r.status != want {
		h.t.Errorf("verify: exit status %d, want %d: %s", r.status, want, v.report.Summary.Text)
	}
	return v
}

// is expects these results, "NAME RESULT" each, and that nothing else fails.
func (v verified) is(what string, want ...string) {
	v.t.Helper()
	for _, c := range v.report.Checks {
		i := slices.IndexFunc(want, func(w string) bool { return strings.HasPrefix(w, c.Name+" ") })
		switch {
		case i >= 0 && want[i] != c.Name+" "+string(c.Result), i < 0 && c.Result == verify.Fail:
			v.t.Errorf("%s: %s: %s: %s %q", what, c.Name, c.Result, c.Text(), c.Evidence)
		}
		if i >= 0 {
			want = slices.Delete(slices.Clone(want), i, i+1)
		}
	}
	if len(want) > 0 {
		v.t.Errorf("%s: no check %q", what, want)
	}
}

// quiet is what follows from nothing having failed.
var quiet = []string{"declared pass", "table_full pass", "drop pass", "early_drop pass", "insert_failed pass", "chaintoolong pass"}

// datagrams sends one each to a hundred ports, after a moment.
func (h *host) datagrams() {
	h.Run("bash", "-c", "sleep 0.7; for p in {20000..20099}; do echo x > /dev/udp/127.0.0.1/$p; done 2>/dev/null; true")
}

// TestVerifyNotrack has NOTRACK in effect, and then breaks it in each way.
func TestVerifyNotrack(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "resolver-1")
			h.sh("iptables -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT")
			path := h.config(udpUntracked)
			h.datagrams() // these entries are from before
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			h.verify(nil, path).is("without traffic", append(quiet, "notrack.udp.rules pass", "notrack.udp.packets skip", "notrack.udp.entries skip")...)
			h.verify(nil, "--wait", "1s", path).is("watched without traffic", append(quiet, "notrack.udp.rules pass", "notrack.udp.packets skip")...)
			h.verify(h.datagrams, "--wait", "2s", path).is("with traffic", append(quiet, "notrack.udp.rules pass", "notrack.udp.packets pass", "notrack.udp.entries pass")...)
			h.verify(nil, path).is("after traffic", append(quiet, "notrack.udp.rules pass", "notrack.udp.packets pass")...)

			// Somebody's rule lets the packets by before they come to ours.
			h.sh("iptables -t raw -I OUTPUT -p udp -j ACCEPT")
			h.verify(h.datagrams, "--wait", "2s", path).is("passed by", "declared fail", "notrack.udp.rules pass", "notrack.udp.entries fail")
			h.sh("iptables -t raw -D OUTPUT -p udp -j ACCEPT; conntrack -F 2>/dev/null")
			h.verify(h.datagrams, "--wait", "2s", path).is("mended", append(quiet, "notrack.udp.packets pass", "notrack.udp.entries pass")...)

			h.sh("iptables -t raw -F CTPLAN-OUTPUT")
			h.verify(h.datagrams, "--wait", "2s", path).is("flushed", "declared fail", "notrack.udp.rules fail", "notrack.udp.entries fail")
			// Read once, the entries are found by how short they have waited.
			h.verify(nil, path).is("flushed, read once", "declared fail", "notrack.udp.rules fail", "notrack.udp.entries fail")
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			h.sh("iptables -t raw -D PREROUTING -j CTPLAN-PREROUTING")
			h.verify(nil, path).is("without the jump", "declared fail", "notrack.udp.rules fail")
		})
	}
}

// TestVerifyDisabled has nothing tracked, and then a rule that asks for it.
// Modules are for internal/test/vmtest.
func TestVerifyDisabled(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "web-1")
			path := h.example("disabled")
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			r := h.verify(nil, path)
			if kind := h.kind(); kind != live.ConntrackBuiltin {
				t.Skipf("conntrack is %q here: its modules may be in use elsewhere on this machine", kind)
			}
			r.is("in effect", append(quiet, "disabled.modules skip", "disabled.hooks pass", "disabled.autoload pass", "disabled.boot skip")...)
			h.sh("iptables -A INPUT -p udp -m state --state ESTABLISHED -j ACCEPT")
			h.verify(nil, path).is("a rule on state", "declared fail", "disabled.hooks fail")
			h.datagrams()
			h.sh("iptables -D INPUT -p udp -m state --state ESTABLISHED -j ACCEPT")
			if h.entries() == 0 {
				t.Fatal("the rule on state has made no entry")
			}
			h.verify(nil, path).is("entries are left", "disabled.hooks fail")
		})
	}
}

// kind is how this machine's kernel has connection tracking.
func (h *host) kind() live.ConntrackKind {
	h.t.Helper()
	var s struct{ Conntrack live.Conntrack }
	if err := json.Unmarshal([]byte(h.ctplan(exitOK, "snapshot").stdout), &s); err != nil {
		h.t.Fatal(err)
	}
	return s.Conntrack.Kind
}

// TestVerifyTuned has the sizes in force, and then changes each of them, in the
// kernel and in the files that a boot reads.
func TestVerifyTuned(t *testing.T) {
	const established = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
	nstest.Machine(t, established)
	h := newHost(t, live.NFT, "nat-1")
	h.initial = true
	path := h.config(`
conntrack "gateway" {
  mode     = "tuned"
  max      = 262100
  hashsize = 65536
  timeouts = { tcp_established = 86400 }
}
`)
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	passes := []string{"declared pass", "tuned.max pass", "tuned.boot.max pass", "tuned.buckets pass", "tuned.boot.buckets pass", "tuned.tcp_established pass", "tuned.boot.tcp_established pass"}
	if h.kind() == live.ConntrackBuiltin { // no option of modprobe.d sizes what is no module
		passes[4] = "tuned.boot.buckets fail"
	}
	h.verify(nil, path).is("in force", passes...)
	for _, c := range []struct {
		what, breaks, mends string
		want                []string
	}{
		{"max", "echo 65536 > " + nstest.Max, "echo 262100 > " + nstest.Max, []string{"declared fail", "tuned.max fail"}},
		{"hash size", "echo 1024 > " + nstest.Hashsize, "echo 65536 > " + nstest.Hashsize, []string{"declared fail", "tuned.buckets fail"}},
		{"timeout", "echo 432000 > " + established, "echo 86400 > " + established, []string{"declared fail", "tuned.tcp_established fail"}},
		{"sysctl.conf", "cp /etc/sysctl.conf /run/kept; sed -i 's/262100/1000/; s/= 86400/= 5/' /etc/sysctl.conf", "cat /run/kept > /etc/sysctl.conf",
			[]string{"declared fail", "tuned.max pass", "tuned.boot.max fail", "tuned.boot.tcp_established fail"}},
	} {
		h.sh(c.breaks)
		h.verify(nil, path).is(c.what, append(c.want, passes[4])...)
		h.sh(c.mends)
		h.verify(nil, path).is(c.what+" mended", passes...)
	}
}

// TestVerifyTableFull has the kernel drop packets of a host that ctplan has
// just changed.
func TestVerifyTableFull(t *testing.T) {
	nstest.Machine(t)
	h := newHost(t, live.NFT, "resolver-1")
	h.sh("iptables -A INPUT -p udp -m state --state RELATED,ESTABLISHED -j ACCEPT")
	path := h.config(`
conntrack "web" {
  mode   = "notrack"
  notrack "web" {
    protocol   = "tcp"
    local_port = 80
  }
  accept "web" {
    protocol   = "tcp"
    local_port = 80
  }
}
`)
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	h.verify(nil, path).is("before", quiet...)
	if err := os.WriteFile(nstest.Max, []byte("100"), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // what is logged in the second of the change is taken for older
	full := h.verify(func() {
		time.Sleep(700 * time.Millisecond)
		h.Run("bash", "-c", "for p in {20000..20999}; do echo x > /dev/udp/127.0.0.1/$p; done 2>/dev/null; true")
	}, "--wait", "4s", path)
	want := []string{"declared pass", "drop fail", "table_full fail"}
	if !logReadable() {
		want[2] = "table_full skip"
	}
	for _, c := range full.report.Checks { // which of both it counts depends on the kernel
		if c.Name == "early_drop" && c.Result == verify.Fail {
			want = append(want, "early_drop fail")
		}
	}
	full.is("full", want...)
	once := h.verify(nil, path)
	once.is("read once", "table_full "+strings.Fields(want[2])[1], "drop skip")
	if text := h.try("verify", path).stdout; logReadable() && !strings.Contains(text, `fail  table_full`) {
		t.Errorf("verify does not name it:\n%s", text)
	}
}

// logReadable is whether the kernel's log can be read on this machine.
func logReadable() bool {
	f, err := os.Open("/dev/kmsg")
	if err == nil {
		f.Close()
	}
	return err == nil
}

func (v verified) check(name string) verify.Check {
	v.t.Helper()
	i := slices.IndexFunc(v.report.Checks, func(c verify.Check) bool { return c.Name == name })
	if i < 0 {
		v.t.Fatalf("no check %q", name)
	}
	return v.report.Checks[i]
}

// foretold fills the table evenly, and holds status to the moment at which it is
// full: within a quarter of the time that it has still to go.
func (h *host) foretold(max int) {
	h.t.Helper()
	stop := nstest.Start(h.t, h.child("drip"))
	defer stop()
	time.Sleep(500 * time.Millisecond)
	var s struct {
		Time   time.Time
		Growth struct {
			FullIn *float64 `json:"full_in_seconds"`
		}
	}
	if err := json.Unmarshal([]byte(h.ctplan(exitOK, "status", "--json", "--sample", "2s").stdout), &s); err != nil {
		h.t.Fatal(err)
	}
	if s.Growth.FullIn == nil {
		h.t.Fatal("status does not see that the table fills")
	}
	foretold := time.Duration(*s.Growth.FullIn * float64(time.Second))
	for h.entries() < max-dripRate/20 {
		if time.Since(s.Time) > 3*foretold+10*time.Second {
			h.t.Fatalf("the table has %d entries after %s: foretold to be full in %s", h.entries(), time.Since(s.Time), foretold)
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(s.Time)
	h.t.Logf("foretold to be full in %s, was full in %s", foretold.Round(time.Millisecond), took.Round(time.Millisecond))
	if off := (took - foretold).Abs(); off > foretold/4 {
		h.t.Errorf("foretold to be full in %s, was full in %s", foretold, took)
	}
}

// TestStory is a host's night: its table fills, status has foretold when, the
// kernel says so, verify names it, apply cures it either way, and verify shows that it did.
func TestStory(t *testing.T) {
	const small = 2000
	for _, c := range []struct {
		name, hcl string
		initial   bool // sizes are set from the machine's own network namespace
	}{
		{"notrack", udpUntracked, false},
		{"tuned", `
conntrack "datagrams" {
  mode     = "tuned"
  max      = 262144
  hashsize = 65536
}
`, true},
	} {
		for _, backend := range backends {
			t.Run(c.name+"/"+string(backend), func(t *testing.T) {
				nstest.Machine(t)
				h := newHost(t, backend, "resolver-1")
				h.sh("iptables -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT")
				if err := os.WriteFile(nstest.Max, []byte(fmt.Sprint(small)), 0); err != nil {
					t.Fatal(err)
				}
				path := h.config(c.hcl)
				h.foretold(small)
				if before := h.flood(); before.Failed == 0 {
					t.Fatalf("the table does not fill: %s", before)
				}
				night := h.verify(nil, path)
				if logReadable() {
					if full := night.check("table_full"); full.Result != verify.Fail || !strings.Contains(full.Why, "packets were dropped for want of room") {
						t.Errorf("verify says of the full table: %s: %s", full.Result, full.Text())
					}
				}
				for _, name := range []string{"declared", "drop"} {
					if got := night.check(name); got.Result != verify.Fail {
						t.Errorf("before: %s: %s: %s", name, got.Result, got.Text())
					}
				}

				h.initial = c.initial
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				h.initial = false
				var after flooded
				morning := h.verify(func() { time.Sleep(1500 * time.Millisecond); after = h.flood() }, "--wait", "8s", path)
				if after.Failed != 0 || after.Received != floodFlows {
					t.Errorf("after: %s", after)
				}
				want := slices.Clone(quiet)
				if !logReadable() {
					want = slices.DeleteFunc(want, func(s string) bool { return s == "table_full pass" })
				}
				if c.name == "tuned" {
					want = append(want, "tuned.max pass", "tuned.buckets pass", "tuned.room pass")
				} else {
					want = append(want, "notrack.udp.rules pass", "notrack.udp.packets pass", "notrack.udp.entries pass")
				}
				morning.is("after", want...)
				switch n := h.entries(); {
				case c.name == "tuned" && n <= small:
					t.Errorf("%d entries after: the count does not go past the old maximum of %d", n, small)
				case c.name == "notrack" && n > small:
					t.Errorf("%d entries after, want what is left from before", n)
				}
				for _, c := range morning.report.Checks {
					t.Logf("%s  %s", c.Result, c.Text())
				}
			})
		}
	}
}
