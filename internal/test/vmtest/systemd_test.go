package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// TestSystemd takes Debians with systemd through the modes: what
// systemd-modules-load, systemd-sysctl and netfilter-persistent make of the
// files, in their own order, and the unit that recovers.
func TestSystemd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*host){
		"sizes": systemdSizes, "rules": systemdRules, "power cut": systemdPowerCut, "schedule": systemdSchedule, "verify": systemdVerify,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &host{open(t).Boot(t, vmlab.Kernel61, vmlab.Systemd()), t}
			h.Expect("ps -o comm= 1", "systemd")
			unit, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "systemd", "ctplan-recover.service"))
			if err != nil {
				t.Fatal(err)
			}
			h.Write("/etc/systemd/system/ctplan-recover.service", string(unit))
			h.Run("systemctl enable ctplan-recover.service")
			h.rules()
			test(h)
		})
	}
}

// systemdSizes shows what becomes of max and the hash size at boot.
func systemdSizes(h *host) {
	h.t.Helper()
	// A host that ctplan has not touched: state rules load the module when
	// netfilter-persistent restores them, too late for sysctl.
	h.Write("/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 99999\n")
	h.boot()
	h.Expect("iptables-save | grep -c -- --ctstate", "2")
	h.Expect("lsmod | grep -c '^nf_conntrack '", "1")
	if max := h.Run("sysctl -n net.netfilter.nf_conntrack_max"); max == "99999" {
		h.Fail("sysctl.conf alone sets max: nothing is left to show")
	}
	h.Run("set -- $(systemctl show -P ActiveEnterTimestampMonotonic systemd-modules-load systemd-sysctl netfilter-persistent); [ $1 -lt $2 ] && [ $2 -lt $3 ]")

	h.mode("tuned")
	h.apply()
	h.sized()
	h.boot()
	h.settled()
	h.sized()

	// Without its line in modules-load.d, max is lost: systemd-sysctl comes
	// before anything that loads the module.
	h.Run("rm /etc/modules-load.d/netfilter.conf")
	h.Exits(2, "ctplan plan --detailed-exitcode host.hcl")
	h.boot()
	h.Expect("sysctl -n net.netfilter.nf_conntrack_max; cat /sys/module/nf_conntrack/parameters/hashsize", "1048576\n131072")
	h.change()
	h.sized()

	// A file that is read later wins, and plan says so.
	h.Write("/etc/sysctl.d/99-zz.conf", "net.netfilter.nf_conntrack_max = 70000\n")
	h.says("/etc/sysctl.d/99-zz.conf:1")
	h.boot()
	h.Expect("sysctl -n net.netfilter.nf_conntrack_max", "70000")
	h.Run("rm /etc/sysctl.d/99-zz.conf")

	// systemd reads sysctl.conf by a link alone. Without it max is lost, and the
	// plan writes a file that is read.
	h.Run("rm /etc/sysctl.d/99-sysctl.conf")
	h.boot()
	h.Expect("sysctl -n net.netfilter.nf_conntrack_max", "1048576")
	h.change()
	h.Expect("grep -c ^net.netfilter.nf_conntrack_max /etc/sysctl.d/99-netfilter.conf", "1")
	h.boot()
	h.settled()
	h.sized()
}

// systemdRules shows what netfilter-persistent restores, and what it cannot.
func systemdRules(h *host) {
	h.t.Helper()
	h.boot() // with the saved rules
	h.mode("notrack")
	h.apply()
	h.untracked()
	h.Reboot()
	h.settled()
	h.untracked()

	h.mode("disabled")
	h.apply()
	h.unloaded()
	h.Reboot()
	h.settled()
	h.unloaded()
	h.Expect("systemctl is-active netfilter-persistent", "active")

	// One rule on state fails the restore of its whole family, as long as the
	// load is blocked: plan blocks before.
	rules := h.Run("iptables-save | grep ^-A")
	h.Run(`sed -i '/-A INPUT -i lo/i -A INPUT -m state --state ESTABLISHED -j ACCEPT' /etc/iptables/rules.v4`)
	h.declare("disabled", `stateful_rules = "remove"`, "")
	h.Exits(3, "ctplan plan host.hcl")
	h.Reboot()
	h.Expect("cat /run/vmlab/failed", "netfilter-persistent.service")
	h.Expect("iptables-save | grep ^-A || echo none", "none")
	h.mode("disabled")
	h.change()
	h.Run("systemctl restart netfilter-persistent")
	h.Expect("iptables-save | grep ^-A", rules)
}

// systemdPowerCut has the power fail while a change waits for its confirmation:
// deploy/systemd/ctplan-recover.service takes it back before the rules are restored.
func systemdPowerCut(h *host) {
	h.t.Helper()
	h.boot()
	before := h.state()
	h.mode("disabled")
	h.Run("ctplan apply --auto-approve --confirm-within 1h host.hcl")
	h.VM.PowerCut()
	if failed := h.BootFailed(); failed != "" {
		h.Fail("a step of the boot failed: %s\n%s", failed, h.BootLog())
	}
	h.Expect("systemctl is-active ctplan-recover netfilter-persistent", "active\nactive")
	h.Expect("ctplan history | tail -n 1 | grep -c 'rolled back'", "1")
	if now := h.state(); now != before {
		h.Fail("the host is not as before:\n%s", unlike(before, now))
	}
}

// boot reboots, and expects every unit of the boot to be well.
func (h *host) boot() {
	h.t.Helper()
	h.VM.Reboot()
	if failed := h.BootFailed(); failed != "" {
		h.Fail("a step of the boot failed: %s\n%s", failed, h.BootLog())
	}
}

// says expects words in what plan prints, lines joined.
func (h *host) says(words string) {
	h.t.Helper()
	r := h.Try("ctplan plan host.hcl")
	if !strings.Contains(strings.Join(strings.Fields(r.Stdout), " "), words) {
		h.Fail("plan says nothing of %s:\n%s%s", words, r.Stdout, r.Stderr)
	}
}
