package iptables_test

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// stateRules are rules on connection state in all the ways in which
// iptables-save writes them.
var stateRules = []string{
	`-m state --state RELATED,ESTABLISHED -m comment --comment "it\'s \"q\" \\ back; $x #" -j ACCEPT`,
	`-p tcp -m conntrack ! --ctstate INVALID,NEW ! --ctproto 6 -m multiport ! --dports 1,2:5 -j ACCEPT`,
	`-p tcp -m state --state NEW -m recent --set --name SSH --mask 255.255.255.255 --rsource`,
	`-p tcp -m conntrack --ctstate NEW -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource -j DROP`,
	`! -s 10.0.0.0/8 ! -d 192.0.2.1/32 ! -i eth+ ! -p tcp -m conntrack --ctstate NEW -m hashlimit --hashlimit-above 10/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name hl -j DROP`,
	`-m conntrack --ctstate RELATED,ESTABLISHED -m limit --limit 5/min -m comment --comment "" -j LOG --log-prefix "a \"b\" -- "`,
	`-p tcp -m conntrack --ctstate NEW -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr -j REJECT --reject-with tcp-reset`,
	`-m conntrack --ctstate DNAT -m mark --mark 0x1/0xff -m statistic --mode random --probability 0.50000000000 -j ACCEPT`,
	`-m conntrack --ctorigdstport 5:7 --ctdir ORIGINAL -j ACCEPT`,
	`-m conntrack --ctstate NEW -m string --string "a b\"c" --algo bm -j ACCEPT`,
	`-m connmark --mark 0x1 -j ACCEPT`,
	`-m helper --helper ftp -j ACCEPT`,
	`-p icmp -m icmp --icmp-type 8 -m state --state NEW -j ACCEPT`,
	`-m state --state UNTRACKED -m u32 --u32 "0x0&0xf=0x5" -j ACCEPT`,
	`-m state --state NEW -m limit --limit 3/hour --limit-burst 7 -j CTPLAN-OTHER`,
}

// defaulted are options that iptables-save prints where nobody wrote them.
var defaulted = strings.NewReplacer(" --mask 255.255.255.255 --rsource", "", " --connlimit-mask 32 --connlimit-saddr", "", " --limit-burst 5", "")

// TestDeleteBySpec deletes each state rule by what iptables-save prints for
// it, from between two others, and puts it back where it stood: as the rule
// was loaded from a saved file, and as somebody wrote it.
func TestDeleteBySpec(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		const head = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:CTPLAN-OTHER - [0:0]\n"
		for _, b := range backends {
			ns.Use(b)
			for _, how := range []func(string) string{func(s string) string { return s }, defaulted.Replace} {
				text := head
				for _, r := range stateRules {
					text += "-A INPUT " + r + "\n"
				}
				text += "COMMIT\n"
				ns.RunInput(how(text), "iptables-restore", "-w", "5")
				var tools iptables.Tools
				now := func() string {
					t.Helper()
					raws, _, err := tools.Read(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					return raws[0].Text
				}
				if got := now(); got != text {
					t.Fatalf("%s prints them otherwise:\n%s", b, got)
				}
				for i, r := range stateRules {
					op := change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: i + 1, Rule: r}
					secs := []change.Section{{Table: "filter", Ops: []change.RuleOp{op}}}
					if err := tools.Test(t.Context(), host.IPv4, b, secs); err != nil {
						t.Errorf("%s: %v", b, err)
					}
					if err := tools.Commit(t.Context(), host.IPv4, b, secs); err != nil {
						t.Errorf("%s: %v", b, err)
						continue
					}
					if got, want := now(), strings.Replace(text, "-A INPUT "+r+"\n", "", 1); got != want {
						t.Fatalf("%s: deleting %s left\n%s", b, r, got)
					}
					secs[0].Ops[0] = op.Inverse()
					if err := tools.Commit(t.Context(), host.IPv4, b, secs); err != nil {
						t.Errorf("%s: %v", b, err)
					}
					if got := now(); got != text {
						t.Fatalf("%s: putting back %s gave\n%s", b, r, got)
					}
				}
				ns.Run("iptables", "-F")
				ns.Run("iptables", "-X")
			}
		}
	})
}
