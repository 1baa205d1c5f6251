package nft

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

func outlineText(chains []host.NFTFileChain) string {
	var b strings.Builder
	for _, c := range chains {
		fmt.Fprintf(&b, "%s %s %s:%d %v %s %s %q", c.Family, c.Table, c.Name, c.Line, c.Rules, c.Base, c.Policy, c.Texts)
		if c.Unsure {
			b.WriteString(" unsure")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestOutline(t *testing.T) {
	const file = `#!/usr/sbin/nft -f
flush ruleset
define web = { 80, 443 }
table inet fw {
	set s { type ipv4_addr; elements = { 1.2.3.4,
		5.6.7.8 } }
	chain in {
		type filter hook input priority 0; policy drop;
		comment "the { way } in"
		iif lo accept; ct state vmap { established : accept,
			invalid : drop } comment "x"
		tcp dport $web \
			accept # }
		jump { tcp dport 1 accept; tcp dport 2 drop; }
	}
	chain two { include "x.nft"
		accept
	}
}
table t { chain c { drop; } }
add rule inet fw in drop
add chain ip6 six c { type filter hook input priority 0; }; add rule ip6 six c tcp dport { 1, 2 } accept
insert rule t c accept
add rule $x c accept
table ip6 six
}
`
	const want = `inet fw :4 []   []
inet fw in:7 [10 10 12 14 21] filter input 0 drop ["iif lo accept" "ct state vmap {established : accept,invalid : drop}" "tcp dport $web accept" "jump {tcp dport 1 accept ; tcp dport 2 drop ;}" "drop"]
inet fw two:16 [17]   ["accept"] unsure
ip t :20 []   []
ip t c:20 [20]   ["drop"] unsure
ip6 six c:22 [22] filter input 0  ["tcp dport {1,2} accept"]
`
	chains, _ := outline(file)
	if got := outlineText(chains); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestOutlineTakenAway: what a file takes away again, it does not load.
func TestOutlineTakenAway(t *testing.T) {
	chains, flush := outline("table t { chain c { drop; }; }\ntable u { chain c { drop; }; }\nflush ruleset\nadd table ip t\ndelete table ip t; table ip t { chain c { accept; }; chain d { accept; }; }\nflush chain t d\ndelete chain t x\n")
	const want = "ip t :5 []   []\nip t c:5 [5]   [\"accept\"]\nip t d:5 []   []\n"
	if got := outlineText(chains); got != want || flush != 3 {
		t.Errorf("flushed at %d\n%swant\n%s", flush, got, want)
	}
}

// TestOutlineOfCorpus holds the places of rules against what nft has made of the
// same file.
func TestOutlineOfCorpus(t *testing.T) {
	ruleset, err := os.ReadFile(corpus)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(ruleset), "\n")
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.RunInput(string(ruleset), "nft", "-f", "-")
		tables, err := Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		places := map[string]host.NFTFileChain{}
		chains, _ := outline(string(ruleset))
		for _, c := range chains {
			places[c.Family+" "+c.Table+" "+c.Name] = c
		}
		for _, table := range tables {
			for _, c := range table.Chains {
				at := places[table.Family+" "+table.Name+" "+c.Name]
				if len(at.Rules) != len(c.Rules) || !strings.Contains(lines[max(0, at.Line-1)], "chain "+c.Name+" {") {
					t.Errorf("%s %s %s: %d rules in the file and %d in the kernel, line %d", table.Family, table.Name, c.Name, len(at.Rules), len(c.Rules), at.Line)
				}
			}
		}
	})
}
