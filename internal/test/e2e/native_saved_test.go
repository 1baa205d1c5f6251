package e2e

import (
	"slices"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// savedNative is a host whose rules are nftables' own, which nftables.service
// loads at boot from two files.
func savedNative(t *testing.T) *host {
	h := newHost(t, live.NFT, "web-1")
	h.sh(`
		mkdir -p /run/systemd/system /etc/systemd/system/sysinit.target.wants
		ln -s /lib/systemd/system/nftables.service /etc/systemd/system/sysinit.target.wants/nftables.service
		mkdir -p /etc/nftables.d`)
	h.write("/etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n\ninclude \"/etc/nftables.d/*.nft\" # all of them\n")
	h.write("/etc/nftables.d/10-host.nft", `table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;

		# what the host talks to itself
		iif lo accept
		ct state established,related accept   # what was open
		ct state invalid drop

		tcp dport ssh ct state new accept; icmp type echo-request accept
	}
	chain output { type filter hook output priority filter; }
}
`)
	h.sh("nft -f /etc/nftables.conf")
	return h
}

// TestNativeSaved: what boots is what runs, and the way back gives every byte.
func TestNativeSaved(t *testing.T) {
	h := savedNative(t)
	files := func() string { return h.sh("cat /etc/nftables.conf /etc/nftables.d/*; ls /etc/nftables*") }
	listing := func() string { return sortedTables(h.sh("nft -s list ruleset")) }
	before, rules := files(), listing()
	config := h.config("conntrack \"x\" {\n  mode           = \"notrack\"\n  stateful_rules = \"remove\"\n\n  notrack \"all\" {}\n\n" +
		"  accept \"web\" {\n    protocol   = \"tcp\"\n    local_port = [22, 80]\n  }\n" +
		// More than a listing of rules of others shows.
		"  accept \"more\" {\n    protocol   = \"tcp\"\n    local_port = [for n in range(20) : 1000 + 2 * n]\n  }\n}\n")
	if said := h.ctplan(exitOK, "plan", config).stdout; strings.Contains(said, "a boot does not load") || strings.Contains(said, ", …") {
		t.Errorf("the plan of a boot that is what runs:\n%s", said)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", config)
	ran := listing()
	if strings.Contains(ran, "ct state") || !strings.Contains(ran, "jump CTPLAN-input") {
		t.Errorf("not as declared:\n%s", ran)
	}
	// A boot, and a reload.
	if booted := sortedTables(h.sh("unshare -n sh -c 'nft -f /etc/nftables.conf && nft -f /etc/nftables.conf && nft -s list ruleset'")); booted != ran {
		t.Errorf("booted\n%s\nran\n%s", booted, ran)
	}
	h.ctplan(exitOK, "plan", "--detailed-exitcode", config)
	h.ctplan(exitOK, "rollback", "--auto-approve")
	if after := files(); after != before {
		t.Errorf("the files are\n%s\nnot\n%s", after, before)
	}
	if after := listing(); after != rules {
		t.Errorf("the rules are\n%s\nnot\n%s", after, rules)
	}
}

// TestNativeNotSaved: what cannot be edited safely blocks, with its place.
func TestNativeNotSaved(t *testing.T) {
	h := savedNative(t)
	config := h.config("conntrack \"x\" {\n  mode           = \"notrack\"\n  stateful_rules = \"remove\"\n\n  notrack \"all\" {}\n\n" +
		"  accept \"web\" {\n    protocol   = \"tcp\"\n    local_port = [22, 80]\n  }\n}\n")
	h.sh("sed -i 's/^\\tchain output.*/&\\n\\tinclude \"\\/etc\\/gone.nft\"/' /etc/nftables.d/10-host.nft")
	if out := h.ctplan(exitBlocked, "plan", config).stdout; !strings.Contains(out, "/etc/nftables.d/10-host.nft:13") {
		t.Errorf("the plan does not say where:\n%s", out)
	}
}

// sortedTables is a listing whose tables stand in the order of their names.
func sortedTables(listing string) string {
	parts := strings.SplitAfter(listing, "\n}\n")
	slices.Sort(parts)
	return strings.Join(parts, "")
}
