package vmtest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	"github.com/ctplan/ctplan/internal/verify"
)

// verified runs verify and expects these checks to fail, and no other; and none
// to be skipped but those that unknown names, and tuned.room.
func (h *host) verified(unknown string, fails ...string) {
	h.t.Helper()
	status := 0
	if len(fails) > 0 {
		status = 2
	}
	var r verify.Report
	if err := json.Unmarshal([]byte(h.Exits(status, "ctplan verify --json host.hcl")), &r); err != nil {
		h.t.Fatal(err)
	}
	var found []string
	for _, c := range r.Checks {
		switch {
		case c.Result == verify.Fail:
			found = append(found, c.Name)
		case c.Result == verify.Skip && !slices.Contains(strings.Fields(unknown+" tuned.room"), c.Name):
			h.Fail("skipped: %s: %s", c.Name, c.Text())
		}
	}
	if got, want := strings.Join(found, " "), strings.Join(fails, " "); got != want {
		text := h.Try("ctplan verify host.hcl").Stdout
		h.Fail("verify fails %q, want %q\n%s", got, want, text)
	}
}

// TestVerify holds verify to what only a machine has: modules, what a boot
// loads and restores, and the log of a kernel that drops.
func TestVerify(t *testing.T) {
	t.Parallel()
	for i, b := range backends {
		kernel := []vmlab.Kernel{vmlab.Kernel510, vmlab.Kernel612}[i]
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, kernel, b)
			unknown := ""
			if kernel == vmlab.Kernel510 { // before 5.15
				unknown = "chaintoolong"
			}
			h.declare("tuned")
			h.apply()
			h.verified(unknown)
			h.Run("sed -i s/hashsize=131072/hashsize=1024/ /etc/modprobe.d/netfilter.conf")
			h.verified(unknown, "declared", "tuned.boot.buckets")
			h.change()
			h.Run("sed -i s/524288/1000/ /etc/sysctl.conf; echo 1000 > /proc/sys/net/netfilter/nf_conntrack_max")
			h.verified(unknown, "declared", "tuned.max", "tuned.boot.max")
			h.change()
			// Whatever comes of it, what was before the change is no failure of it.
			h.verified(unknown)

			h.fills()
			h.loggedIn("/dev/kmsg")

			h.Run("iptables-save > /etc/iptables/rules.v4; ip6tables-save > /etc/iptables/rules.v6")
			h.declare("disabled")
			h.apply()
			h.verified(unknown)
			h.Reboot()
			unknown += " table_full" // nothing keeps the log of the boot before
			h.verified(unknown)
			h.Disable("netfilter-persistent")
			h.verified(unknown, "boot.rules")
			h.Enable("netfilter-persistent")
			h.Run("echo nf_conntrack > /etc/modules-load.d/zz.conf; mv /etc/modprobe.d/netfilter.conf /root/")
			h.verified(unknown, "declared", "disabled.autoload", "disabled.boot")
			h.Run("modprobe nf_conntrack")
			h.verified(unknown, "declared", "disabled.modules", "disabled.autoload", "disabled.boot")
			h.Run("iptables -A INPUT -m state --state NEW; ping -c 1 127.0.0.1 >/dev/null")
			h.verified(unknown, "declared", "disabled.modules", "disabled.hooks", "disabled.autoload", "disabled.boot")
		})
	}
}

// fills has the table of this kernel fill, later than in the second of the
// change before.
func (h *host) fills() {
	h.t.Helper()
	h.Run(`sleep 1.1; sysctl -qw net.netfilter.nf_conntrack_max=20
		for p in $(seq 2000 2200); do echo x > /dev/udp/127.0.0.1/$p; done 2>/dev/null
		sysctl -qw net.netfilter.nf_conntrack_max=524288`)
}

// loggedIn expects verify to find the full table, and nothing else wrong, and
// the messages in this place; returns what it found in all.
func (h *host) loggedIn(place string) []string {
	h.t.Helper()
	var r verify.Report
	if err := json.Unmarshal([]byte(h.Exits(2, "ctplan verify --json host.hcl")), &r); err != nil {
		h.t.Fatal(err)
	}
	var evidence []string
	for _, c := range r.Checks {
		if (c.Name == "table_full") != (c.Result == verify.Fail) {
			h.Fail("after the table was full: %s: %s: %s %q", c.Name, c.Result, c.Text(), c.Evidence)
		}
		if c.Name == "table_full" {
			evidence = c.Evidence
		}
	}
	if !slices.ContainsFunc(evidence, func(e string) bool {
		return strings.HasPrefix(e, place+": ") && !strings.HasPrefix(e, place+": 0 ") && strings.Contains(e, " read from ")
	}) {
		h.Fail("nothing was found in %s: %q", place, evidence)
	}
	return evidence
}

// systemdVerify has the journal remember a full table over a reboot, which
// /dev/kmsg does not.
func systemdVerify(h *host) {
	h.t.Helper()
	h.Run("mkdir -p /var/log/journal; systemctl restart systemd-journald; journalctl --flush; sync")
	h.boot()
	h.mode("tuned")
	h.apply()
	h.verified("")
	h.fills()
	h.loggedIn("/dev/kmsg")
	h.loggedIn("journal")
	h.Run("journalctl --sync; sync")
	h.boot()
	if kmsg := h.loggedIn("journal")[0]; !strings.HasPrefix(kmsg, "/dev/kmsg: 0 messages") {
		h.Fail("the message outlived the boot in the kernel: %s", kmsg)
	}
	// A change later, it is of the past, and the journal reaches back to then.
	h.Run("sed -i s/524288/1000/ /etc/sysctl.conf")
	h.change()
	h.verified("")
	h.boot()
	h.verified("")
}
