package census

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

func TestAskers(t *testing.T) {
	for rule, want := range map[string]bool{
		"-j ACCEPT":                                   false,
		"-p tcp -m tcp --dport 22 -j ACCEPT":          false,
		"-m state --state ESTABLISHED -j ACCEPT":      true,
		"-m conntrack --ctstate NEW -j DROP":          true,
		"-m connlimit --connlimit-above 20 -j REJECT": true,
		"-m comment --comment -m -j ACCEPT":           false,
		"-m comment --comment conntrack -j ACCEPT":    false,
		"-m comment --comment state -j CT --notrack":  false,
		"-j NOTRACK":                 false,
		"-j CT --zone 1":             true,
		"-j CONNMARK --restore-mark": true,
		"-o eth0 -j MASQUERADE":      true,
		"-p tcp -m tcp --dport 80 -j DNAT --to 10.0.0.1":   true,
		"-m state --state UNTRACKED -j CT --notrack":       true,
		"-m set --match-set known src -j ACCEPT":           false,
		"-m tcp -p tcp -m multiport --dports 1,2 -g OTHER": false,
	} {
		l := host.Live{Rulesets: []host.Ruleset{{Family: host.IPv4, Tables: []host.Table{{
			Name: "filter", Rules: []host.Rule{{Chain: "INPUT", Words: strings.Fields(rule), Text: rule}},
		}}}}}
		got := Askers(l)
		if (len(got) == 1) != want || want && got[0] != (Asker{"ipv4 filter INPUT", rule}) {
			t.Errorf("%s: %+v", rule, got)
		}
	}
	for use, want := range map[string]bool{
		"ct": true, "notrack": false, "masq": true, "chain nat": false, "flowtable": false, "flow_offload": true,
		"target NOTRACK": false, "match conntrack": true, "payload": false, "ct timeout": true,
	} {
		l := host.Live{NFT: []host.NFTTable{{Family: "inet", Name: "fw", Items: []host.NFTItem{{Kind: "rule", Chain: "in", Text: "rule", Uses: []string{"cmp", use}}}}}}
		if got := Askers(l); (len(got) == 1) != want || want && got[0] != (Asker{"inet fw in", "rule"}) {
			t.Errorf("nft %s: %+v", use, got)
		}
	}
	object := host.Live{NFT: []host.NFTTable{{Family: "ip", Name: "x", Items: []host.NFTItem{{Kind: "ct helper", Name: "ftp", Text: "ftp", Uses: []string{"ct helper"}}}}}}
	if got := Askers(object); !slices.Equal(got, []Asker{{"ip x", "ct helper ftp"}}) {
		t.Errorf("an object: %+v", got)
	}
	if got := Askers(host.Live{}); got == nil || len(got) > 0 {
		t.Errorf("nothing: %+v", got)
	}
}
