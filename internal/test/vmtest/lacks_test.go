package vmtest

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// takeAway moves modules out of the kernel's tree and out of the kernel, and
// returns the script that puts them back.
func (h *host) takeAway(modules ...string) (back string) {
	h.t.Helper()
	h.Run(`mkdir -p /root/away; cd /lib/modules/$(uname -r); for m in ` + strings.Join(modules, " ") + `; do
		rmmod $m 2>/dev/null; f=$(find . -name "$m.ko*"); mkdir -p "/root/away/${f%/*}"; mv "$f" "/root/away/$f"; done; depmod`)
	return `cd /lib/modules/$(uname -r) && cp -r /root/away/. . && rm -r /root/away && depmod`
}

// blockedBy expects plan and apply to be refused for a reason, and the plan from a
// snapshot too, without anything being changed.
func (h *host) blockedBy(risk, where string) {
	h.t.Helper()
	const state = "iptables-save | grep -v '^#'; cat /etc/iptables/* /etc/modprobe.d/* 2>/dev/null || true"
	before := h.Run(state)
	for _, command := range []string{"ctplan plan host.hcl", "ctplan apply --auto-approve host.hcl", "ctplan snapshot | ctplan plan --snapshot - host.hcl"} {
		if got := h.Exits(3, command); !strings.Contains(got, risk) || !strings.Contains(got, where) {
			h.Fail("%s is not blocked by %s at %q:\n%s", command, risk, where, got)
		}
	}
	if after := h.Run(state); after != before {
		h.Fail("something was changed:\n%s\n%s", before, after)
	}
}

// quiet expects cron to have nothing to mail.
func (h *host) quiet() {
	h.t.Helper()
	h.Expect("ctplan drift --quiet host.hcl 2>&1", "")
}

// listens has something listen on TCP 22 and 80, and a session on 22 that is open.
func (h *host) listens() {
	h.t.Helper()
	h.Run(`mkfifo /run/hold; exec 4<>/run/hold
		for p in 22 80; do nc -l -p $p <&4 4>&- >/dev/null 2>&1 & done
		until grep -q ':0016 .* 0A ' /proc/net/tcp*; do sleep 0.2; done
		bash -c 'exec 3<>/dev/tcp/127.0.0.1/22; exec sleep 9999' </dev/null >/dev/null 2>&1 4>&- &
		until grep -q ':0016 .* 01 ' /proc/net/tcp*; do sleep 0.2; done`)
}

// TestLacks takes away what a kernel may lack, part by part and together: what is
// known all the same is said, what is not is said to be unknown, and what cannot
// be done is refused by the plan.
func TestLacks(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.Legacy)
	h.listens()
	untrack := func(more ...string) { h.declare("notrack", append(more, removing...)...) }
	untrack()

	// The rules of a host without nf_tables cannot be of iptables-nft.
	h.takeAway("nft_compat", "nf_tables")
	h.Expect("ctplan plan host.hcl 2>&1 | grep -i nft || echo silent", "silent")
	h.Expect("ctplan suggest 2>&1 | grep -i 'nft' || echo silent", "silent")

	// Without inet_diag, and without ctnetlink, /proc tells who is connected.
	const impact = "ctplan plan --json host.hcl 2>/dev/null | tr -d '\\n ' | sed 's/.*\"impact\":{\\([^[]*\\).*/\\1/'"
	seen := h.Run(impact)
	if !strings.Contains(seen, `"kept":`) || strings.HasPrefix(seen, `"lost":0,"unknown":0,"gained":0,"kept":0`) {
		h.Fail("nobody is connected, so nothing is tried: %s", seen)
	}
	h.takeAway("tcp_diag", "udp_diag", "inet_diag", "nf_conntrack_netlink")
	h.Expect(impact, seen)
	h.Run("ctplan status --json | grep -q '\"entries\"'")

	// Comments only say who asked for a rule.
	h.takeAway("xt_comment")
	h.apply()
	h.quiet()
	h.Expect("iptables-save -t raw | grep ^-A", `
		-A PREROUTING -j CTPLAN-PREROUTING
		-A OUTPUT -j CTPLAN-OUTPUT
		-A CTPLAN-OUTPUT -p tcp -j CT --notrack
		-A CTPLAN-PREROUTING -p tcp -j CT --notrack`)
	h.Run("ctplan rollback --auto-approve")

	// What untracking itself needs is another thing.
	back := h.takeAway("xt_CT")
	h.blockedBy("no_module", "xt_CT")
	h.Run(back)

	// With the comments back, rules that came without them are as declared.
	h.takeAway("xt_comment")
	untrack()
	h.change()
	h.Run(`cd /lib/modules/$(uname -r) && cp -r /root/away/. . && rm -r /root/away && depmod`)
	h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
	h.quiet()
	h.Run("ctplan rollback --auto-approve")

	// An upgrade takes the running kernel's tree away.
	h.Run("for m in iptable_raw ip6table_raw xt_CT xt_comment; do rmmod $m 2>/dev/null; done; mv /lib/modules/$(uname -r) /lib/modules/gone")
	h.Expect("ctplan plan host.hcl 2>&1 | grep -i nft || echo silent", "silent")
	h.blockedBy("no_module", "xt_CT")
	h.blockedBy("no_module", "is gone, as after an upgrade")
	h.declare("tuned")
	h.apply()
	h.quiet()
	h.Run("ctplan rollback --auto-approve")
	h.Run("mv /lib/modules/gone /lib/modules/$(uname -r)")

	// Hardening guides set this; it stays until the next boot.
	h.Run("modprobe -a xt_multiport xt_comment; echo 1 > /proc/sys/kernel/modules_disabled")
	untrack()
	h.Expect(impact, seen)
	h.blockedBy("no_module", "kernel.modules_disabled")
	h.declare("disabled")
	h.blockedBy("module_held", "kernel.modules_disabled = 1")
	h.declare("disabled", `mode = "disabled"`, "mode = \"disabled\"\n  allow_risk = [\"module_held\"]")
	h.apply()
	h.quiet()
	h.Run("lsmod | grep -q '^nf_conntrack '")
	h.Reboot()
	h.unloaded()
	h.change() // what keeps fragments joined can be loaded now
	h.unloaded()
	h.quiet()
}

// TestNoTree is a host of iptables-nft whose kernel's tree is gone before
// anything of netfilter was loaded: nothing can be, and the plan says so.
func TestNoTree(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel612, live.NFT)
	h.Run("rm /etc/iptables/rules.v?; sync")
	h.Reboot()
	h.Run("mv /lib/modules/$(uname -r) /lib/modules/gone")
	h.declare("notrack")
	h.blockedBy("no_module", "nf_tables")
	h.declare("tuned")
	h.blockedBy("no_module", "nf_conntrack")
	h.Write("/root/host.hcl", "conntrack \"off\" {\n  mode = \"disabled\"\n}\n")
	h.Run("ctplan apply --auto-approve host.hcl")
	h.quiet()
	h.Run("mv /lib/modules/gone /lib/modules/$(uname -r); sync")
	h.Reboot()
	h.unloaded()
	h.quiet()
}
