package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// policed is a server whose policy is nftables' own, and which has no rule of
// iptables.
const policed = `
table inet filter {
	set bad { type ipv4_addr; elements = { 192.0.2.66 } }
	set seen { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ip saddr @bad counter drop
		ct state vmap { established : accept, related : accept, invalid : drop }
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 22, 80 } ct state new add @seen { ip saddr limit rate 10/second } accept comment "the doors"
		tcp dport 9000-9010 ct state new counter accept
		counter
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
	chain output {
		type filter hook output priority filter; policy accept;
	}
}
table ip6 more {
	chain in {
		type filter hook input priority 10; policy drop;
		ct state established accept
		meta l4proto ipv6-icmp accept
		tcp dport 23 reject with tcp reset
	}
}
`

// policedUntracked takes TCP out of tracking there.
const policedUntracked = `conntrack "web" {
  mode           = "notrack"
  stateful_rules = "remove"
  allow_risk     = ["exposed", "related"]

  notrack "tcp" { protocol = "tcp" }

  accept "doors" {
    protocol   = "tcp"
    local_port = [22, 80, "9000-9010"]
    initiator  = "remote"
  }
  accept "api" {
    protocol    = "tcp"
    remote      = ["192.0.2.1", "198.51.100.0/24", "2001:db8::1"]
    remote_port = 443
    initiator   = "local"
  }
}
`

func policedHost(t *testing.T) (h *host, config string) {
	t.Helper()
	h = newHost(t, live.NFT, "web-1")
	h.RunInput(policed, "nft", "-f", "-")
	return h, h.config(policedUntracked)
}

// ruleset is what nft lists, without what clocks and counters say.
func (h *host) ruleset() string {
	return regexp.MustCompile(` # handle \d+`).ReplaceAllString(h.sh("nft -s -a list ruleset"), "")
}

// TestNFTables plans, applies, tampers, mends and goes back where nftables carries
// the rules. Each tampering is found at its table, and mended with nothing else
// changed.
func TestNFTables(t *testing.T) {
	h, config := policedHost(t)
	before := h.ruleset()
	plan := h.ctplan(exitOK, "plan", config).stdout
	for _, part := range []string{
		"nftables holds this host's policy", "+         jump CTPLAN-input", "tcp dport { 22, 80, 9000-9010 } accept comment \"doors\"", "- ", "it does not survive a reboot",
	} {
		if !strings.Contains(plan, part) {
			t.Errorf("the plan has no %q:\n%s", part, plan)
		}
	}
	if h.ctplan(exitOK, "plan", config); h.ruleset() != before {
		t.Errorf("a plan has changed the ruleset:\n%s", h.ruleset())
	}
	h.ctplan(exitOK, "apply", "--auto-approve", config)
	applied := h.ruleset()
	again := h.ctplan(exitOK, "plan", "--detailed-exitcode", config).stdout
	h.ctplan(exitOK, "drift", config)
	if !strings.Contains(again, "no changes") || h.ruleset() != applied {
		t.Errorf("a second plan:\n%s", again)
	}
	h.ctplan(exitOK, "rollback", "--auto-approve", "1")
	if after := h.ruleset(); after != before {
		t.Errorf("after the way back:\n%s\nit was\n%s", after, before)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", config)
	for _, tt := range []struct{ name, tamper, address string }{
		{"a rule of ours", "nft flush chain inet filter CTPLAN-input", "nftables.inet.filter"},
		{"the jump", "nft delete rule inet filter input handle $(nft -a list chain inet filter input | sed -n 's/.*jump CTPLAN.*handle //p')", "nftables.inet.filter"},
		{"a jump too many", "nft add rule inet filter input jump CTPLAN-input", "nftables.inet.filter"},
		{"a jump from elsewhere", "nft add rule inet filter output jump CTPLAN-input", "nftables.inet.filter"},
		{"a rule that swallows", "nft insert rule inet filter input tcp dport 1-65535 drop", ""},
		{"a rule of another in our chain", "nft add rule inet filter CTPLAN-input udp dport 1 accept", "nftables.inet.filter"},
		{"what is not tracked", "nft flush chain inet ctplan CTPLAN-output", "nftables.inet.ctplan"},
		{"our table", "nft delete table inet ctplan", "nftables.inet.ctplan"},
		{"a chain of ours that nothing wants", "nft add chain ip6 more CTPLAN-x", "nftables.ip6.more"},
		{"another comment", "nft flush chain inet ctplan CTPLAN-output; nft add rule inet ctplan CTPLAN-output meta l4proto tcp notrack comment other", "nftables.inet.ctplan"},
	} {
		h.sh(tt.tamper)
		var found struct {
			Changes []struct{ Address string }
		}
		if err := json.Unmarshal([]byte(h.try("drift", "--json", config).stdout), &found); err != nil {
			t.Fatal(err)
		}
		if tt.address == "" { // it is the operator's, who may do so
			h.sh("nft delete rule inet filter input handle $(nft -a list chain inet filter input | sed -n 's/.*1-65535 drop.*handle //p')")
			continue
		}
		if len(found.Changes) != 1 || found.Changes[0].Address != tt.address {
			t.Errorf("%s: found are %+v, want %s", tt.name, found.Changes, tt.address)
		}
		h.ctplan(exitOK, "apply", "--auto-approve", config)
		if now := h.ruleset(); inTables(now) != inTables(applied) {
			t.Errorf("%s: mended it is\n%s\nwant\n%s", tt.name, now, applied)
		}
	}
	h.ctplan(exitOK, "rollback", "--auto-approve", "3")
	if after := h.ruleset(); strings.Contains(after, "notrack") || strings.Contains(after, "jump CTPLAN") || !strings.Contains(after, "ct state new") {
		t.Errorf("after the way back over all that was mended:\n%s", after)
	}
}

// inTables is a listing with its tables and chains in order: one that was made
// again is the last.
func inTables(list string) string {
	tables := strings.Split(strings.TrimSpace(list), "\n}")
	for i, table := range tables {
		chains := strings.Split(strings.TrimSpace(table), "\n\n")
		for k := range chains {
			chains[k] = strings.TrimSpace(chains[k])
		}
		slices.Sort(chains[1:])
		tables[i] = strings.Join(chains, "\n")
	}
	slices.Sort(tables)
	return strings.Join(tables, "\n")
}

// TestNFTablesFaults is TestFaults where nftables carries the rules.
func TestNFTablesFaults(t *testing.T) {
	h, config := policedHost(t)
	h.ctplan(exitOK, "plan", "--out", "/run/test/plan", config)
	if c := h.faults(string(live.NFT), "nftables"); c.Cases < 10 {
		t.Errorf("%+v", c)
	}
}

// TestNFTablesConfirm has a change go back by itself, and one that was made for a
// ruleset that is another by now refused.
func TestNFTablesConfirm(t *testing.T) {
	h, config := policedHost(t)
	before := h.ruleset()
	h.ctplan(exitOK, "plan", "--out", "/run/test/plan", config)
	h.sh("nft insert rule inet filter input tcp dport 1 drop")
	if r := h.try("apply", "--auto-approve", "/run/test/plan"); r.status == exitOK {
		h.ctplan(exitOK, "rollback", "--auto-approve", "1") // planning again gives the same
	}
	h.sh("nft delete rule inet filter input handle $(nft -a list chain inet filter input | sed -n 's/.*dport 1 drop.*handle //p')")
	h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "5s", config)
	h.sh("for i in $(seq 200); do nft list table inet ctplan > /run/test/none 2>&1 || exit 0; sleep 0.1; done; exit 1")
	if after := h.ruleset(); after != before {
		t.Errorf("%s", fmt.Sprintf("without a word it is\n%s\nit was\n%s", after, before))
	}
}
