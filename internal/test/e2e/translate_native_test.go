package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// nativeGateway is closedGateway in nft's words, as one table for both families.
const nativeGateway = `table inet fw {
	chain in {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state vmap { invalid : drop, established : accept, related : accept }
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		ip saddr 10.31.0.0/24 tcp dport { 5432, 8080 } ct state new counter accept
		ip6 saddr fd31::/64 tcp dport 5432 ct state { new } accept
		ip6 saddr fd31::/64 tcp dport 8000-8100 ct state new accept comment "the web"
		tcp dport 22 ct state new jump guard
		icmp type echo-request ct state new accept
		icmpv6 type echo-request ct state new accept
		udp dport 5300 ct state new accept
	}
	chain guard {
		tcp dport 22 accept
	}
	chain through {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		iifname "near" oifname "far" tcp dport != { 443, 8443 } ct state new log prefix "no " drop
		iifname "far" oifname "near" tcp dport != 25 ct state != established,related reject with tcp reset
	}
}
`

// TestTranslateNative has a router whose policy is nftables' own do without
// tracking for TCP. The plan gives the lines that stand for its rules on state:
// without them it is blocked, with them real nft takes them, connections live,
// others can be opened, strangers stay out.
func TestTranslateNative(t *testing.T) {
	h := newHost(t, live.NFT, "gateway")
	here, near, far := network(t, h)
	h.write("/run/test/fw.nft", nativeGateway)
	h.sh("nft -f /run/test/fw.nft")
	c := gatewayCrowd(t, here, near, far)
	c.open(t)
	c.hold(t, h, "before")
	path := h.config("conntrack \"x\" {\n mode = \"notrack\"\n firewall = \"iptables\"\n stateful_rules = \"translate\"\n notrack \"tcp\" { protocol = \"tcp\" }\n notrack \"through\" {\n protocol = \"tcp\"\n direction = \"forward\"\n }\n}\n")
	type document struct {
		Warnings []struct {
			Text     string   `json:"text"`
			Commands []string `json:"commands"`
		} `json:"warnings"`
	}
	lines := func(status int) (commands []string) {
		t.Helper()
		var plan document
		r := h.ctplan(status, "plan", "--json", path)
		if err := json.Unmarshal([]byte(r.stdout), &plan); err != nil {
			t.Fatal(err)
		}
		for _, w := range plan.Warnings {
			if strings.HasPrefix(w.Text, "rules of nftables that match on connection state") {
				commands = append(commands, w.Commands...)
			}
		}
		return commands
	}
	commands := lines(exitBlocked)
	if len(commands) < 20 {
		t.Fatalf("%d lines: %q", len(commands), commands)
	}
	for _, command := range commands {
		h.sh(command)
	}
	c.hold(t, h, "with the lines")
	if again := lines(exitOK); len(again) > 0 {
		t.Errorf("what stands is told again: %q", again)
	}
	before := h.sh("nft list ruleset")
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	h.sh("conntrack -D -p tcp >/dev/null 2>&1 || true")
	c.hold(t, h, "translated\n"+before)
	if n := strings.TrimSpace(h.sh("conntrack -L -p tcp 2>/dev/null | wc -l")); n != "0" {
		t.Errorf("%s connections of TCP are tracked", n)
	}
}
