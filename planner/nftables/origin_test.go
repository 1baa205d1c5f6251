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
	head := host.NFTFileChain{Family: "inet", Table: "fw", Line: 3}
	in := host.NFTFileChain{Family: "inet", Table: "fw", Name: "in", Line: 4, Rules: []int{6, 9, 11}, Texts: []string{Canonical(Words(ssh)), Canonical(Words(http)), drop}}
	edit := func(c host.NFTFileChain, e func(*host.NFTFileChain)) host.NFTFileChain { e(&c); return c }
	files := func(chains ...host.NFTFileChain) []host.NFTFile {
		return []host.NFTFile{{File: host.File{Path: "/etc/other"}}, {File: host.File{Path: "/etc/nftables.conf"}, Chains: chains}}
	}
	all := files(head, in)
	for name, tt := range map[string]struct {
		files  []host.NFTFile
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
		"spelled otherwise":             {files(head, edit(in, func(c *host.NFTFileChain) { c.Texts = []string{"tcp dport ssh accept", in.Texts[1], drop} })), []string{ssh, http, drop}, 0, Origin{At: "6", Exact: true}},
		"spelled so, and one added":     {files(head, edit(in, func(c *host.NFTFileChain) { c.Texts = []string{"tcp dport ssh accept", in.Texts[1], drop} })), []string{ssh, "tcp dport 23 accept", http, drop}, 1, Origin{At: "4"}},
		"the same twice, once in it":    {all, []string{ssh, drop, http, drop}, 1, Origin{At: "4"}},
		"the same twice in both":        {files(head, edit(in, func(c *host.NFTFileChain) { c.Texts = []string{drop, in.Texts[1], drop} })), []string{drop, http, drop}, 2, Origin{At: "11", Exact: true}},
		"in another order":              {all, []string{http, "accept", ssh, drop}, 1, Origin{At: "4"}},
		"a policy":                      {all, nil, -1, Origin{At: "4"}},
		"a policy that was set":         {files(head, edit(in, func(c *host.NFTFileChain) { c.Policy = "drop" })), nil, -1, Origin{At: "4", Added: true}},
		"an order that is not known":    {files(head, edit(in, func(c *host.NFTFileChain) { c.Unsure = true })), []string{"accept"}, 0, Origin{At: "4"}},
		"two files":                     {append(files(head, in), files(in)...), []string{"accept"}, 0, Origin{At: "4"}},
		"a chain that is in no file":    {files(head), []string{ssh}, 0, Origin{At: "3", Added: true}},
		"a table that is in no file":    {files(host.NFTFileChain{Family: "ip", Table: "fw", Line: 1}), []string{ssh}, 0, Origin{}},
		"a file whose rules are not it": {files(head, edit(in, func(c *host.NFTFileChain) { c.Rules, c.Texts = nil, nil })), []string{ssh}, 0, Origin{At: "4", Added: true}},
	} {
		table := host.NFTTable{Family: "inet", Name: "fw", Chains: []host.NFTChain{{Name: "in"}}}
		chain := &table.Chains[0]
		for _, text := range tt.kernel {
			chain.Rules = append(chain.Rules, host.NFTRule{Text: text})
		}
		got := OriginOf(tt.files, &table, chain, tt.index)
		got.At = strings.TrimPrefix(got.At, "/etc/nftables.conf:")
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
		if got := OriginOf(tt.files, &table, nil, 0); got.Added || got.Exact {
			t.Errorf("%s: the table is %+v", name, got)
		}
	}
}
