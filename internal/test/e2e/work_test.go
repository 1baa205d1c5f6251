package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestSYNProxy is a service behind a SYN proxy: its half of a NOTRACK pair is
// not called one, nothing that ctplan proposes takes it away, and what is declared
// takes it away with its own word alone.
func TestSYNProxy(t *testing.T) {
	const iptables = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack\nCOMMIT\n" +
		"*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p ICMP -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460\n" +
		"-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
	const native = "table inet guard {\n chain early {\n type filter hook prerouting priority raw\n tcp dport 80 tcp flags & (fin|syn|rst|ack) == syn notrack\n }\n" +
		" chain in {\n type filter hook input priority filter; policy drop\n icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n ct state established,related accept\n tcp dport 80 ct state new accept\n }\n}\n"
	for _, tt := range []struct {
		name    string
		backend live.Backend
		native  bool
	}{{"iptables", live.NFT, false}, {"iptables", live.Legacy, false}, {"nftables", live.NFT, true}} {
		t.Run(tt.name+"/"+string(tt.backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.backend, "proxied")
			here, near, _ := network(t, h)
			h.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0")
			if tt.native {
				h.RunInput(native, "nft", "-f", "-")
			} else {
				h.RunInput(strings.ReplaceAll(iptables, "ICMP", "icmp"), "iptables-restore")
				h.RunInput(strings.ReplaceAll(iptables, "ICMP", "ipv6-icmp"), "ip6tables-restore")
			}
			works := func(when string) {
				t.Helper()
				for _, f := range live.Families {
					if err := dial(t, near, here, nearHost[f], 80); err != nil {
						t.Errorf("%s, %s: %v\n%s", when, f, err, h.rules())
					}
				}
			}
			works("to begin with")
			config := func(risks, blocks string) string {
				return h.config(fmt.Sprintf("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n allow_risk = [%s]\n%s\n}\n", risks, blocks))
			}
			const all = "notrack \"all\" { }\n accept \"web\" {\n protocol = \"tcp\"\n local_port = 80\n }\n accept \"icmp\" { protocol = \"icmp\" }\n accept \"icmpv6\" { protocol = \"ipv6-icmp\" }\n"
			// With stateful_rules = "remove" alone it does not go.
			r := h.ctplan(exitBlocked, "plan", config("", all))
			if !strings.Contains(r.stdout, "BLOCKED by syn_proxy") || strings.Contains(r.stdout, "BLOCKED by one_sided") {
				t.Errorf("the plan says\n%s", r.stdout)
			}
			// Around it, all is well.
			udp := config("", "notrack \"udp\" { protocol = \"udp\" }\n accept \"dns\" {\n protocol = \"udp\"\n local_port = 53\n }\n")
			r = h.ctplan(exitOK, "plan", udp)
			if strings.Contains(r.stdout, "this rule takes") {
				t.Errorf("the proxy's half is called one-sided:\n%s", r.stdout)
			}
			// What is proposed keeps it, and what describes the host leaves it alone.
			for command, status := range map[string]int{"suggest": exitOK, "import": exitOK} {
				out := h.try(command).stdout
				if !regexp.MustCompile(`mode += "tuned"`).MatchString(out) || regexp.MustCompile(`(?m)^ +(allow_risk|notrack)`).MatchString(out) {
					t.Errorf("%s (%d):\n%s", command, status, out)
				}
				if command == "import" && !tt.native && !strings.Contains(strings.Join(strings.Fields(strings.ReplaceAll(out, "\n#", "")), " "), "Not declared, and left alone") {
					t.Errorf("import says nothing of the rule that it leaves:\n%s", out)
				}
			}
			h.ctplan(exitOK, "apply", "--auto-approve", udp)
			works("around it")
			if tt.native {
				return
			}
			h.ctplan(exitOK, "apply", "--auto-approve", config(`"syn_proxy"`, all))
			works("without it")
			if strings.Contains(h.rules(), "SYNPROXY") {
				t.Errorf("it is still there:\n%s", h.rules())
			}
		})
	}
}
