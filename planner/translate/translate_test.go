package translate

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

func rule(text string) *host.Rule {
	return &host.Rule{Chain: "INPUT", Text: text, Words: xtables.Words(text)}
}

func TestX(t *testing.T) {
	tr := New()
	tcpOnly := func(p string) (bool, bool) { return p == "tcp", p == "tcp" }
	for _, text := range strings.Split(strings.TrimSpace(`
-m state --state RELATED,ESTABLISHED -j ACCEPT
-p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
-m state --state INVALID -j DROP
-p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j DROP
-p icmp -m icmp --icmp-type 8 -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT
-m conntrack ! --ctstate INVALID -j ACCEPT
-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
-i eth1 -m state --state NEW,ESTABLISHED -j ACCEPT
-p tcp -m conntrack --ctstate NEW --ctorigsrc 10.0.0.0/8 -m tcp --dport 80 -j ACCEPT
-p tcp -m conntrack --ctstate ESTABLISHED --ctdir ORIGINAL -m tcp --dport 80 -j ACCEPT
-p tcp -m conntrack --ctdir REPLY -j ACCEPT
-p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource -j DROP
-m connlimit --connlimit-above 3 -j DROP
-p tcp -m conntrack --ctstatus ASSURED -j ACCEPT
`), "\n") {
		for name, scope := range map[string]Scope{"all": {Family: host.IPv4}, "tcp": {Family: host.IPv4, Untracks: tcpOnly}} {
			got, touched := tr.Rule(rule(text), scope)
			t.Logf("%s: %s\n  touched %v stays %v %s why %q note %q none %q", name, text, touched, got.Stays, got.Grade, got.Why, got.Note, got.None)
			for _, r := range got.Twins {
				t.Logf("    %s", r.Text)
				o, ok := Original(&r)
				if !ok || xtables.Key(o.Words) != xtables.Key(rule(text).Words) {
					t.Errorf("original %v %q", ok, o.Text)
				}
			}
		}
	}
}
