package nftables

import (
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

func TestOrigin(t *testing.T) {
	table := host.NFTTable{Family: "inet", Name: "fw", Chains: []host.NFTChain{{Name: "in", Rules: make([]host.NFTRule, 2)}}}
	chain := &table.Chains[0]
	files := func(chains ...host.NFTFileChain) []host.NFTFile {
		return []host.NFTFile{{File: host.File{Path: "/etc/other"}}, {File: host.File{Path: "/etc/nftables.conf"}, Chains: chains}}
	}
	head := host.NFTFileChain{Family: "inet", Table: "fw", Line: 3}
	in := host.NFTFileChain{Family: "inet", Table: "fw", Name: "in", Line: 4, Rules: []int{6, 9}}
	one, unsure := in, in
	one.Rules, unsure.Unsure = in.Rules[:1], true
	for name, tt := range map[string]struct {
		files []host.NFTFile
		index int
		want  string
	}{
		"a rule":                     {files(head, in), 1, "/etc/nftables.conf:9"},
		"a policy":                   {files(head, in), -1, "/etc/nftables.conf:4"},
		"other rules in the kernel":  {files(head, one), 0, "/etc/nftables.conf:4"},
		"an order that is not known": {files(head, unsure), 0, "/etc/nftables.conf:4"},
		"two files":                  {append(files(head, one), files(one)...), 0, "/etc/nftables.conf:4"},
		"a chain that is in no file": {files(head), 0, "/etc/nftables.conf:3"},
		"a table that is in no file": {files(host.NFTFileChain{Family: "ip", Table: "fw", Line: 1}), 0, ""},
	} {
		if got, exact := Origin(tt.files, &table, chain, tt.index); got != tt.want || exact != (name == "a rule") {
			t.Errorf("%s: %q, want %q; exact is %v", name, got, tt.want, exact)
		}
	}
	if got, _ := Origin(files(head, in), &table, nil, 0); got != "/etc/nftables.conf:3" {
		t.Errorf("the table: %q", got)
	}
}
