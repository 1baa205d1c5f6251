package nftables

import (
	"slices"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// saved is a chain as a file has it, with its rules at the lines 6, 7, ….
func saved(rules ...string) *host.NFTConf {
	c := host.NFTConfChain{Name: "in", Site: host.NFTSite{File: "/etc/nftables.conf", Line: 4}}
	for i, r := range rules {
		c.Rules = append(c.Rules, host.NFTConfRule{Site: host.NFTSite{File: "/etc/nftables.conf", Line: 6 + i}, Text: Canonical(Words(r))})
	}
	return &host.NFTConf{Tables: []host.NFTConfTable{{Family: "inet", Name: "fw", Site: host.NFTSite{File: "/etc/nftables.conf", Line: 3}, Chains: []host.NFTConfChain{c}}}}
}

func chain(rules ...string) *host.NFTChain {
	c := &host.NFTChain{Name: "in"}
	for _, r := range rules {
		c.Rules = append(c.Rules, host.NFTRule{Text: r})
	}
	return c
}

func TestOrigin(t *testing.T) {
	for name, tt := range map[string]struct {
		conf  *host.NFTConf
		live  *host.NFTChain
		index int
		want  string
		exact bool
	}{
		"a rule":                     {saved("iif lo accept", "drop"), chain(`iif "lo" accept`, "drop"), 1, "/etc/nftables.conf:7", true},
		"a rule behind one by hand":  {saved("iif lo accept", "drop"), chain(`iif "lo" accept`, "udp dport 53 accept", "drop"), 2, "/etc/nftables.conf:7", true},
		"a rule by hand":             {saved("iif lo accept", "drop"), chain(`iif "lo" accept`, "udp dport 53 accept", "drop"), 1, "/etc/nftables.conf:4", false},
		"the second of a kind":       {saved("drop", "accept", "drop"), chain("drop", "accept", "drop"), 2, "/etc/nftables.conf:8", true},
		"a policy":                   {saved("drop"), chain("drop"), -1, "/etc/nftables.conf:4", false},
		"a chain that is in no file": {saved(), &host.NFTChain{Name: "out"}, -1, "/etc/nftables.conf:3", false},
		"a table that is in no file": {&host.NFTConf{}, chain("drop"), 0, "", false},
	} {
		table := &host.NFTTable{Family: "inet", Name: "fw"}
		if got, exact := Origin(tt.conf, table, tt.live, tt.index); got != tt.want || exact != tt.exact {
			t.Errorf("%s: %q %v, want %q", name, got, exact, tt.want)
		}
		if got, _ := Origin(tt.conf, table, nil, -1); len(tt.conf.Tables) > 0 && got != "/etc/nftables.conf:3" {
			t.Errorf("%s: the table: %q", name, got)
		}
	}
}

func TestAlign(t *testing.T) {
	for name, tt := range map[string]struct {
		file, live []string
		want       []int
	}{
		"the same":      {[]string{"accept", "drop"}, []string{"accept", "drop"}, []int{0, 1}},
		"one by hand":   {[]string{"accept", "drop"}, []string{"accept", "log", "drop"}, []int{0, -1, 1}},
		"one is gone":   {[]string{"accept", "log", "drop"}, []string{"accept", "drop"}, []int{0, 2}},
		"one is other":  {[]string{"accept", "log", "drop"}, []string{"accept", "queue", "drop"}, []int{0, -1, 2}},
		"twins":         {[]string{"log", "accept", "log"}, []string{"log", "log"}, []int{0, 2}},
		"nothing saved": {nil, []string{"drop"}, []int{-1}},
		"moved":         {[]string{"tcp dport 1", "tcp dport 2", "tcp dport 3"}, []string{"tcp dport 3", "tcp dport 1", "tcp dport 2"}, []int{2, -1, -1}},
	} {
		conf := saved(tt.file...)
		if got := Align(&conf.Tables[0].Chains[0], chain(tt.live...)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestCanonical: what people write, and what nft makes of it.
func TestCanonical(t *testing.T) {
	for written, printed := range map[string]string{
		"iif lo accept":                              `iif "lo" accept`,
		"tcp dport {443,80} accept":                  "tcp dport { 80, 443 } accept",
		"tcp dport ssh counter accept":               "tcp dport 22 counter packets 1 bytes 2 accept",
		"tcp dport { ssh, http } ct state new":       "tcp dport { 22, 80 } ct state new",
		"tcp dport != ssh drop":                      "tcp dport != 22 drop",
		"ct state related,established accept":        "ct state established,related accept",
		"ct state { related, established } accept":   "ct state { established, related } accept",
		"meta iifname eth* drop":                     `iifname "eth*" drop`,
		"reject with icmpx type port-unreachable":    "reject",
		"reject with icmpx type admin-prohibited":    "reject with icmpx admin-prohibited",
		"limit rate 10/second accept":                "limit rate 10/second burst 5 packets accept",
		"ip saddr 192.0.2.1/32 drop comment \"x y\"": "ip saddr 192.0.2.1 drop",
		"tcp dport vmap { ssh : accept, 80 : drop }": "tcp dport vmap { 22 : accept, 80 : drop }",
	} {
		if a, b := Canonical(Words(written)), Canonical(Words(printed)); a != b {
			t.Errorf("%q and %q, of %q", a, b, written)
		}
	}
	for _, pair := range [][2]string{
		{"tcp dport 22 accept", "tcp sport 22 accept"}, {"ct state new", "ct state { new }"}, {`log prefix "ssh"`, `log prefix "22"`}, {"ip saddr { 192.0.2.1, 192.0.2.2 }", "ip saddr 192.0.2.1"},
		{"iif lo accept", "iifname lo accept"}, {"drop", ""},
	} {
		if Canonical(Words(pair[0])) == Canonical(Words(pair[1])) {
			t.Errorf("%q is %q", pair[0], pair[1])
		}
	}
}
