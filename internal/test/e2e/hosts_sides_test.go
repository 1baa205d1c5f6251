package e2e

import (
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestHostsSides holds plans against rules of nftables' own that take one way of
// connections out of tracking, that translate, and that ask for one family to be
// tracked.
func TestHostsSides(t *testing.T) {
	h := newHost(t, live.NFT, "crossroads")
	here, near, _ := network(t, h)
	open(t, near, here, "tcp", "", nearHost[live.IPv4], 8080, 1, "")
	open(t, near, here, "tcp", "", nearHost[live.IPv6], 8080, 1, "")
	said := func(status int, config string, parts ...string) {
		t.Helper()
		r := h.ctplan(status, "plan", h.config(config))
		for _, part := range parts {
			if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), part) {
				t.Errorf("not said: %q\n%s", part, r.stdout)
			}
		}
	}
	tuned := "conntrack \"x\" {\n  mode = \"tuned\"\n  hashsize = 262144\n  max = 262144\n}\n"
	const untracks = "conntrack \"x\" {\n  mode = \"notrack\"\n  firewall = \"iptables\"\n  notrack \"web\" {\n    protocol = \"tcp\"\n    local_port = 8080\n%s  }\n  accept \"web\" {\n    protocol = \"tcp\"\n    local_port = 8080\n  }\n}\n"

	h.RunInput(`
table inet early {
	chain prerouting {
		type filter hook prerouting priority raw;
		tcp dport 9090 notrack
	}
}
table ip zones {
	chain prerouting {
		type filter hook prerouting priority -290;
		udp dport 5000 ct zone set 7
	}
}`, "nft", "-f", "-")
	said(exitOK, tuned, "this rule takes packets to this host out of tracking, and not their answers, which pass hook output", "inet early prerouting handle", "write a notrack block that takes both ways", "add the rule's mirror image to a chain of hook output with priority raw",
		"this rule sorts packets to this host into a zone of tracking, and not into the same zone their answers", "ip zones prerouting handle")

	h.RunInput(`
flush ruleset
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		tcp sport 8080 oifname "far" masquerade
		udp sport 53 oifname "far" masquerade
	}
}`, "nft", "-f", "-")
	said(exitOK, strings.Replace(untracks, "%s", "", 1), "ip nat postrouting handle 2", "no longer translates connections that begin at a port which the notrack blocks name")
	said(exitBlocked, strings.Replace(untracks, "local_port = 8080\n%s", "remote_port = 8080\n    direction = \"forward\"\n", 1), "BLOCKED by nat", "ip nat postrouting handle 2", "packets that are not tracked are not translated")
	if r := h.try("plan", h.config(strings.Replace(untracks, "%s", "", 1))); strings.Contains(r.stdout, "udp sport 53") {
		t.Errorf("a rule about other traffic is named:\n%s", r.stdout)
	}

	h.RunInput(`
flush ruleset
table inet filter {
	chain input {
		type filter hook input priority filter;
		ct state invalid drop
	}
}`, "nft", "-f", "-")
	said(exitOK, strings.Replace(untracks, "%s", "    families = [\"ipv4\"]\n", 1), "over ipv6, tcp/8080 in stays tracked, as inet filter input handle 2: ct state invalid drop asks for")
}
