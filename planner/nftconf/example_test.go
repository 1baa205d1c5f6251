package nftconf_test

import (
	"fmt"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// The lines of a rules file that need connection tracking, and what it includes.
func ExampleParse() {
	f := nftconf.Parse(host.File{Path: "/etc/nftables.conf", Exists: true, Content: `#!/usr/sbin/nft -f
include "/etc/nftables.d/*.nft"
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		tcp dport 22 accept comment "ct state in words only"
	}
}
`})
	for _, l := range f.Lines {
		fmt.Printf("line %d: %s\n", l.Line, l.Text)
	}
	for _, i := range f.Includes {
		fmt.Printf("line %d includes %s\n", i.Line, i.Path)
	}
	// Output:
	// line 6: ct state established,related accept
	// line 2 includes /etc/nftables.d/*.nft
}
