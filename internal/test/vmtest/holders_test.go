package vmtest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// block is a reason not to apply, as plan --json has it.
type block struct {
	Risk, Where string
	Commands    []string
}

// blocks expects the plan to be blocked, and apply with it.
func (h *host) blocks() []block {
	h.t.Helper()
	var plan struct{ Blocks []block }
	if err := json.Unmarshal([]byte(h.Exits(3, "ctplan plan --json host.hcl 2>/dev/null")), &plan); err != nil {
		h.Fail("%v", err)
	}
	h.Exits(3, "ctplan apply --auto-approve host.hcl")
	return plan.Blocks
}

// names expects each of the texts in one of the blocks.
func (h *host) names(blocks []block, want ...string) {
	h.t.Helper()
	for _, w := range want {
		found := false
		for _, b := range blocks {
			found = found || strings.Contains(b.Where, w)
		}
		if !found {
			h.Fail("no block names %q: %+v", w, blocks)
		}
	}
}

// TestHolders holds nf_conntrack by everything that ctplan does not change: in
// native nftables, and in network namespaces of both backends. The plan names
// each; what it says to run about them is all that it takes.
func TestHolders(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, map[live.Backend]vmlab.Kernel{live.NFT: vmlab.Kernel61, live.Legacy: vmlab.Kernel510}[b], b)
			h.Write("/root/fw.nft", `
				table inet fw {
					ct helper ftp { type "ftp" protocol tcp; }
					chain input { type filter hook input priority 10; ct state established,related accept; tcp dport 21 ct helper set "ftp"; }
					chain raw { type filter hook prerouting priority -300; udp dport 53 notrack; }
					chain po { type nat hook postrouting priority 100; oifname "nowhere" masquerade; }
				}
				`)
			h.Run("nft -f /root/fw.nft")
			// What iptables leaves behind in nat is empty, and holds its module all the same.
			h.Run("iptables -t nat -A POSTROUTING -j MASQUERADE; iptables -t nat -F")
			for _, backend := range []string{"nft", "legacy"} {
				h.Run("unshare -n sh -c 'iptables-" + backend + " -A INPUT -m state --state NEW -j ACCEPT && iptables-" + backend +
					" -t nat -A OUTPUT -p tcp --dport 9 -j REDIRECT --to-ports 10 && exec sleep 9999' >/dev/null 2>&1 & sleep 2")
			}
			h.declare("disabled")
			// Reading sockets loads the modules that show them, as ss does.
			const state = "lsmod | grep -v _diag | sort; iptables-save | grep -v '^#'; nft list ruleset; cat /etc/modprobe.d/* || true"
			before := h.Run(state)

			blocks := h.blocks()
			h.names(blocks, "rule inet fw input handle", "ct state established,related accept", "udp dport 53 notrack", `oifname "nowhere" masquerade`,
				`ct helper set "ftp"`, "ct helper inet fw ftp", "chain inet fw po",
				"iptables-legacy -t filter -A INPUT -m state --state NEW -j ACCEPT", "iptables-legacy -t nat -A OUTPUT", `rule ip filter INPUT handle`, `xt target "REDIRECT"`, "sleep)")
			if now := h.Run(state); now != before {
				h.Fail("a blocked plan changed something:\n%s\n%s", before, now)
			}
			for _, b := range blocks {
				if b.Risk != "module_held" || len(b.Commands) == 0 {
					h.Fail("%+v", b)
				}
				for _, c := range b.Commands {
					h.Run(c)
				}
			}
			h.apply()
			h.unloaded()
			h.Reboot()
			h.unloaded()
			h.settled()
		})
	}
}

// TestHoldersAccepted leaves a native rule as it is: its module and those
// below stay, the others go.
func TestHoldersAccepted(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel612, live.NFT)
	h.Run(`nft 'add table inet fw; add chain inet fw in { type filter hook input priority 10; }; add rule inet fw in ct state new'`)
	h.declare("disabled", `mode = "disabled"`, "mode = \"disabled\"\n  allow_risk = [\"module_held\"]")
	h.apply()
	h.Expect("lsmod | grep -o '^nft_ct\\|^nf_conntrack \\|^xt_conntrack' | sort | tr -d ' '", "nf_conntrack\nnft_ct")
	h.Run("nft list table inet fw | grep -q 'ct state new'")
}

// TestLoaders has connection tracking loaded again by everything that a host
// may have for it: what can be planned away is, the rest is named by file and
// line, and after the reboot none of it has loaded anything.
func TestLoaders(t *testing.T) {
	t.Parallel()
	h := newHost(t, vmlab.Kernel61, live.NFT)
	h.Write("/etc/modprobe.d/aaa.conf", "install nf_conntrack /sbin/modprobe --ignore-install nf_conntrack && /sbin/sysctl -q net.netfilter.nf_conntrack_max=9000\n"+
		"softdep dummy pre: nf_conntrack\n")
	h.Write("/etc/modules-load.d/ct.conf", "nf_conntrack\nnf_nat\n")
	h.Write("/etc/modules", "nf_conntrack\n")
	h.Write("/etc/rc.local", "#!/bin/sh\nmodprobe nf_conntrack\ninsmod $(find /lib/modules -name nf_conntrack.ko)\n")
	h.Write("/etc/nftables.conf", "table inet saved {\n\tchain in {\n\t\ttype filter hook input priority 20;\n\t\tct state new accept\n\t}\n}\n")
	h.Run("mkdir -p /etc/rc2.d && ln -sf ../init.d/nftables /etc/rc2.d/S20nftables")
	h.Write("/etc/init.d/nftables", "#!/bin/sh\n[ \"$1\" = start ] && exec nft -f /etc/nftables.conf\n")
	h.Run("chmod 755 /etc/init.d/nftables /etc/rc.local")
	h.declare("disabled")
	blocks := h.blocks()
	h.names(blocks, "/etc/rc.local:3: insmod", "/etc/nftables.conf:4: ct state new accept")
	if len(blocks) != 2 {
		h.Fail("%d blocks: %+v", len(blocks), blocks)
	}
	h.Run("sed -i /insmod/d /etc/rc.local; sed -i 's/ct state new //' /etc/nftables.conf")
	plan := strings.Join(strings.Fields(h.Run("ctplan plan host.hcl")), " ")
	for _, want := range []string{"/etc/rc.local:2: modprobe nf_conntrack", "/etc/modprobe.d/aaa.conf:2: a load of dummy asks for nf_conntrack", "~ file./etc/modprobe.d/aaa.conf"} {
		if !strings.Contains(plan, want) {
			h.Fail("the plan does not say %q:\n%s", want, plan)
		}
	}
	h.apply()
	h.unloaded()
	h.Reboot()
	h.settled()
	h.unloaded()
	h.Run("nft list table inet saved") // the boot did load it
	h.Run("modprobe dummy; lsmod | grep -q ^dummy; sh /etc/rc.local; service nftables start || sh /etc/init.d/nftables start")
	h.unloaded()
}
