package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	live "github.com/ctplan/ctplan/planner/host"
)

// natives are rulesets of nftables as people write them, each of which lets in
// what a crowd of connections needs.
var natives = map[string]string{
	"states": `
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state established,related accept
		ct state invalid drop
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 21, 22, 8080 } ct state new accept
		udp dport 53 ct state new accept
		ip protocol gre accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state vmap { established : accept, related : accept, invalid : drop }
		iifname "near" ct state new accept
	}
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain helpers {
		type filter hook prerouting priority filter
		tcp dport 21 ct helper set "ftp"
	}
	chain output {
		type filter hook output priority filter; policy accept;
	}
}`,
	"maps": `
table inet fw {
	set admins { type ipv4_addr; flags interval; elements = { 10.31.0.0/24, 10.99.0.0/16 } }
	set admins6 { type ipv6_addr; flags interval; elements = { fd31::/64 } }
	map services { type inet_proto . inet_service : verdict; elements = { tcp . 8080 : goto web, udp . 53 : accept, tcp . 21 : accept, tcp . 22 : goto admin } }
	chain web {
		ct state new,untracked accept
	}
	chain admin {
		ip saddr @admins accept
		ip6 saddr @admins6 accept
	}
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain helpers {
		type filter hook prerouting priority filter
		ct helper set tcp dport map { 21 : "ftp" }
	}
	chain input {
		type filter hook input priority 10; policy drop;
		ct state { established, related } accept
		iifname "lo" accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, echo-request } accept
		icmp type echo-request accept
		meta l4proto . th dport vmap @services
		ip protocol gre accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related counter accept
		meta iifname . meta oifname . meta l4proto { "near" . "far" . tcp, "near" . "far" . udp, "near" . "far" . icmp } ct state new accept
	}
}
table ip marks {
	chain prerouting {
		type filter hook prerouting priority mangle
		ct mark != 0 meta mark set ct mark
	}
	chain input {
		type filter hook input priority mangle
		tcp dport 8080 meta mark set 0x10 ct mark set meta mark
	}
}`,
}

// TestNativeKnowsWhatDies takes connections out of tracking under rulesets of
// native nftables, with ctplan's rules in either firewall: those that die are those
// that the plan has called lost.
func TestNativeKnowsWhatDies(t *testing.T) {
	for name, ruleset := range natives {
		for _, firewall := range []declared.Firewall{declared.IPTables, declared.NFTables} {
			t.Run(fmt.Sprint(name, " ", firewall), func(t *testing.T) { nativeKnowsWhatDies(t, ruleset, firewall) })
		}
	}
}

func nativeKnowsWhatDies(t *testing.T, ruleset string, firewall declared.Firewall) {
	h := newHost(t, live.NFT, "crossroads")
	here, near, far := network(t, h)
	h.RunInput(ruleset, "nft", "-f", "-")
	talks := crowd(t, h, here, near, far)
	before := living(talks)
	if all := total(before); all != len(talks) {
		t.Fatalf("of %d connections %d work under the ruleset: %v", len(talks), all, before)
	}
	config := h.config(`conntrack "x" {
  mode     = "notrack"
  firewall = "` + string(firewall) + `"

  allow_risk = ["stateful_rules", "lost_flows", "lost_services", "one_sided", "related", "connection_marks"]

` + servicesUntracked + `  notrack "syslog" {
    protocol = "udp"
    remote_port = 514
    direction = "forward"
  }
}
`)
	lost := willLose(t, h, config)
	t.Log(lost, h.try("plan", config).stdout)
	if total(lost) == 0 {
		t.Errorf("the plan loses nothing, so the test says nothing")
	}
	h.ctplan(exitOK, "apply", "--auto-approve", config)
	want := maps.Clone(before)
	for k, n := range lost {
		want[k] -= n
	}
	if after := living(talks); !maps.Equal(want, after) {
		t.Errorf("before: %v\nlost:   %v\nafter:  %v\n%s", before, lost, after, h.rules())
	}
}

// TestNativeSuggestLosesNothing applies what is suggested under the same, which
// keeps tracking on. Who asks for less is told what it would cut off.
func TestNativeSuggestLosesNothing(t *testing.T) {
	for name, ruleset := range natives {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, live.NFT, "crossroads")
			here, near, far := network(t, h)
			h.RunInput(ruleset, "nft", "-f", "-")
			talks := crowd(t, h, here, near, far)
			before := living(talks)
			suggested := h.ctplan(exitOK, "suggest").stdout
			if !strings.Contains(suggested, `"tuned"`) {
				t.Errorf("more than sizes is suggested:\n%s", suggested)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", h.config(suggested))
			if after := living(talks); !maps.Equal(before, after) {
				t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, suggested, h.rules())
			}
			for _, part := range []string{"To decide: blocked by lost_flows", " of inet "} {
				if less := h.try("suggest", "--mode", "notrack").stdout; !strings.Contains(less, part) {
					t.Errorf("notrack is suggested without %q:\n%s", part, less)
				}
			}
		})
	}
}
