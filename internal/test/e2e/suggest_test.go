package e2e

import (
	"maps"
	"regexp"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestSuggestLosesNothing has ctplan suggest a configuration for a host with
// more than 200 live connections of many kinds, and applies it: its plan names
// no connection that would be lost, and nothing that it opens, and none dies.
func TestSuggestLosesNothing(t *testing.T) {
	for _, mode := range []string{"notrack", ""} {
		for _, b := range backends {
			t.Run(mode+"/"+string(b), func(t *testing.T) {
				h, talks, before := crossroads(t, b)
				var flags []string
				if mode != "" {
					flags = []string{"--mode", mode}
				}
				suggested := h.ctplan(exitOK, append([]string{"suggest"}, flags...)...)
				t.Log(suggested.stdout, suggested.stderr)
				if !strings.Contains(suggested.stdout, `stateful_rules = "translate"`) || strings.Contains(suggested.stdout, "accept \"") {
					t.Error("rules on connection state have exact twins, and blocks are written for them")
				}
				h.ctplan(exitOK, "snapshot", "-o", "/run/test/host.json")
				if again := h.ctplan(exitOK, append([]string{"suggest", "--snapshot", "/run/test/host.json"}, flags...)...); again.stdout != suggested.stdout {
					same(t, "suggested from a snapshot", suggested.stdout, again.stdout)
				}
				config := h.config(suggested.stdout)
				h.ctplan(exitOK, "fmt", "--check", config)
				if r := h.ctplan(exitOK, "validate", config); r.stderr != "" {
					t.Errorf("validate has something to say:\n%s", r.stderr)
				}
				if gone := willLose(t, h, config); len(gone) > 0 {
					t.Errorf("the plan for the suggestion loses %v", gone)
				}
				if planned := h.ctplan(exitOK, "plan", "--json", config); !strings.Contains(planned.stdout, `"exposed": []`) {
					t.Errorf("the plan for the suggestion opens something:\n%s", planned.stdout)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", config)
				if after := living(talks); !maps.Equal(before, after) {
					t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, suggested.stdout, h.rules())
				}
				if opened := h.ctplan(exitOK, "plan", "--json", config); !strings.Contains(opened.stdout, `"changes": []`) {
					t.Errorf("something is left to do:\n%s", opened.stdout)
				}
				h.ctplan(exitOK, "drift", config)
			})
		}
	}
}

// TestSuggestAround has ctplan suggest for hosts on which rules have tracking do
// what nothing else can, for one service: the others leave the table around it,
// the rules stay and work, and no connection dies.
func TestSuggestAround(t *testing.T) {
	const synproxy = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack\nCOMMIT\n"
	for _, tt := range []struct {
		name         string
		before, rule string // tables ahead of filter, and a rule at its head
		keeps        string // what is there afterwards
		stays        string // of the table, on the notrack block
	}{
		{"a SYN proxy", synproxy, "-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460", "-j SYNPROXY", "tcp/80"},
		{"a limit of connections", "", "-A INPUT -p tcp -m tcp --dport 80 -m connlimit --connlimit-above 50 --connlimit-mask 128 --connlimit-saddr -j REJECT", "--connlimit-above 50", "tcp/80"},
		{"marks of UDP", "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -p udp -m udp --dport 53 -j CONNMARK --set-xmark 0x1/0xffffffff\nCOMMIT\n", "-A INPUT -p udp -m udp --dport 53 -m connmark --mark 0x1 -j ACCEPT", "-j CONNMARK --set-xmark 0x1", "notrack \"tcp\""},
		{"a mark of everything", "*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j CONNMARK --set-xmark 0x1/0xffffffff\nCOMMIT\n", "", "-j CONNMARK --set-xmark 0x1", ""},
	} {
		for _, b := range backends {
			t.Run(tt.name+"/"+string(b), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, b, "around")
				here, near, _ := network(t, h)
				h.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0")
				for family, tool := range map[live.Family]string{live.IPv4: "iptables-restore", live.IPv6: "ip6tables-restore"} {
					words := map[live.Family][2]string{live.IPv4: {"icmp", "--connlimit-mask 32"}, live.IPv6: {"ipv6-icmp", "--connlimit-mask 128"}}[family]
					h.RunInput(strings.NewReplacer("ICMP", words[0], "--connlimit-mask 128", words[1]).Replace(tt.before+"*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p ICMP -j ACCEPT\n"+tt.rule+
						"\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT\n-A INPUT -p udp -m multiport --dports 53,123 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"), tool)
				}
				var talks []*talk
				for _, f := range live.Families {
					talks = append(talks, open(t, near, here, "tcp", nearAddr[f], nearHost[f], 443, 12, "tcp/443 in")...)
					talks = append(talks, open(t, near, here, "udp", nearAddr[f], nearHost[f], 53, 2, "udp/53 in")...)
					talks = append(talks, open(t, near, here, "udp", nearAddr[f], nearHost[f], 123, 2, "udp/123 in")...)
				}
				before := living(talks)
				suggested := h.ctplan(exitOK, "suggest").stdout
				mode := "notrack"
				if tt.stays == "" {
					mode = "tuned"
				}
				if !regexp.MustCompile(`mode += "`+mode+`"`).MatchString(suggested) || !strings.Contains(suggested, tt.stays) || regexp.MustCompile(`(?m)^ +allow_risk|To decide`).MatchString(suggested) {
					t.Errorf("suggested:\n%s", suggested)
				}
				if mode == "tuned" {
					return // sizes are the machine's
				}
				config := h.config(suggested)
				if gone := willLose(t, h, config); len(gone) > 0 {
					t.Errorf("the plan for the suggestion loses %v", gone)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", config)
				if after := living(talks); !maps.Equal(before, after) {
					t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, suggested, h.rules())
				}
				if n := strings.Count(h.rules(), tt.keeps); n != 2 {
					t.Errorf("%d rules with %q are left:\n%s", n, tt.keeps, h.rules())
				}
				for _, f := range live.Families {
					if tt.stays != "tcp/80" {
						break // nothing listened there
					}
					if err := dial(t, near, here, nearHost[f], 80); err != nil {
						t.Errorf("a new connection: %v\n%s", err, h.rules())
					}
				}
			})
		}
	}
}
