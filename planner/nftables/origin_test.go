package nftables

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// TestOrigin: the file has the rules ssh, http and drop on the lines 6, 9 and 11
// of a chain at line 4, in a table at line 3.
func TestOrigin(t *testing.T) {
	const ssh, http, drop = "tcp dport 22 accept", "tcp dport { 80, 443 } counter accept", "drop"
	type edit func(*host.NFTConfChain)
	files := func(edits ...edit) *host.NFTConf {
		c := host.NFTConfChain{Name: "in", Site: host.NFTSite{Line: 4}}
		for i, text := range []string{ssh, http, drop} {
			c.Rules = append(c.Rules, host.NFTConfRule{Site: host.NFTSite{Line: []int{6, 9, 11}[i]}, Text: Canonical(Words(text))})
		}
		for _, e := range edits {
			e(&c)
		}
		return &host.NFTConf{Tables: []host.NFTConfTable{{Family: "inet", Name: "fw", Site: host.NFTSite{Line: 3}, Chains: []host.NFTConfChain{c}}}}
	}
	first := func(text string, vague bool) edit {
		return func(c *host.NFTConfChain) { c.Rules[0].Text, c.Rules[0].Vague = text, vague }
	}
	all := files()
	unknown := files()
	unknown.Doubt = "/etc/nftables.conf:1: it includes what was not read"
	for name, tt := range map[string]struct {
		files  *host.NFTConf
		kernel []string
		index  int
		want   Origin
	}{
		"a rule":                        {all, []string{ssh, http, drop}, 1, Origin{At: "9", Exact: true}},
		"counted":                       {all, []string{ssh, "tcp dport { 443, 80 } counter packets 1 bytes 2 accept", drop}, 1, Origin{At: "9", Exact: true}},
		"a rule beside another":         {all, []string{"udp dport 53 accept", ssh, http, drop}, 1, Origin{At: "6", Exact: true}},
		"one that was added":            {all, []string{"udp dport 53 accept", ssh, http, drop}, 0, Origin{At: "4", Added: true}},
		"added between":                 {all, []string{ssh, "udp dport 53 accept", http, drop}, 1, Origin{At: "4", Added: true}},
		"added last":                    {all, []string{ssh, http, drop, "accept"}, 3, Origin{At: "4", Added: true}},
		"added where one was deleted":   {all, []string{"ip saddr 192.0.2.1 drop", http, drop}, 0, Origin{At: "4"}},
		"spelled otherwise":             {files(first("tcp dport shell accept", false)), []string{ssh, http, drop}, 0, Origin{At: "6", Exact: true}},
		"spelled so, and one added":     {files(first("tcp dport shell accept", false)), []string{ssh, "tcp dport 23 accept", http, drop}, 1, Origin{At: "4"}},
		"the same twice, once in it":    {all, []string{ssh, drop, http, drop}, 1, Origin{At: "4"}},
		"the same twice in both":        {files(first(drop, false)), []string{drop, http, drop}, 2, Origin{At: "11", Exact: true}},
		"in another order":              {all, []string{http, "accept", ssh, drop}, 1, Origin{At: "4"}},
		"a policy":                      {all, nil, -1, Origin{At: "4"}},
		"a policy that was set":         {files(func(c *host.NFTConfChain) { c.Policy = "drop" }), nil, -1, Origin{At: "4", Added: true}},
		"an order that is not known":    {files(func(c *host.NFTConfChain) { c.Doubt = "by handle" }), []string{"accept"}, 0, Origin{At: "4"}},
		"files that are not all known":  {unknown, []string{"accept"}, 0, Origin{At: "4"}},
		"a name that nothing defines":   {files(first("tcp dport $p accept", true)), []string{"udp dport 53 accept", ssh, http, drop}, 0, Origin{At: "4"}},
		"a chain that is in no file":    {files(func(c *host.NFTConfChain) { c.Name = "out" }), []string{ssh}, 0, Origin{At: "3", Added: true}},
		"a table that is in no file":    {&host.NFTConf{}, []string{ssh}, 0, Origin{}},
		"a file whose rules are not it": {files(func(c *host.NFTConfChain) { c.Rules = nil }), []string{ssh}, 0, Origin{At: "4", Added: true}},
	} {
		table := host.NFTTable{Family: "inet", Name: "fw", Chains: []host.NFTChain{{Name: "in"}}}
		chain := &table.Chains[0]
		for _, text := range tt.kernel {
			chain.Rules = append(chain.Rules, host.NFTRule{Text: text})
		}
		got := OriginOf(tt.files, &table, chain, tt.index)
		got.At = strings.TrimPrefix(got.At, ":")
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
		if got := OriginOf(tt.files, &table, nil, 0); got.Added || got.Exact {
			t.Errorf("%s: the table is %+v", name, got)
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
