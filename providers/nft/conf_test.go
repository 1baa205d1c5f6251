package nft

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// TestParseConf looks at one line at a time.
func TestParseConf(t *testing.T) {
	for line, want := range map[string]bool{
		"ct state established,related accept":          true,
		"\ttcp dport 22 ct state new accept # first":   true,
		"ct helper ftp { type \"ftp\" protocol tcp; }": true,
		"udp dport 53 notrack":                         true,
		"oifname \"eth0\" masquerade":                  true,
		"tcp dport 80 redirect to :8080":               true,
		"tcp dport 80 redirect":                        true,
		"dnat to 10.0.0.1":                             true,
		"snat ip to 10.0.0.1":                          true,
		"type nat hook postrouting priority 100;":      true,
		"flowtable f { hook ingress priority 0; }":     true,
		"ip protocol tcp flow add @f":                  true,
		"tcp dport 80 synproxy mss 1460":               true,
		"add @s { ip saddr ct count over 10 } drop":    true,

		"# ct state new accept":                      false,
		"tcp dport 22 accept # no ct state":          false,
		"tcp dport 22 accept comment \"ct state x\"": false,
		"log prefix \"masquerade \" drop":            false,
		"icmp type redirect drop":                    false,
		"icmp type { echo-request, redirect } drop":  false,
		"icmp type { redirect, echo-request } drop":  false,
		"type filter hook input priority 0;":         false,
		"meta nfproto ipv4 accept":                   false,
		"iifname $ct accept":                         false,
		"define nat = 3":                             false,
		"":                                           false,
	} {
		f := ParseConf(host.File{Content: "\n" + line})
		if got := len(f.Lines) == 1 && f.Lines[0].Line == 2 && f.Lines[0].Text == strings.TrimSpace(line); got != want || len(f.Lines) > 1 {
			t.Errorf("%q: %+v, want %v", line, f.Lines, want)
		}
	}
}

// TestConfPaths follows includes, patterns and loops among them, and no further.
func TestConfPaths(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/nftables.conf":     "flush ruleset\ninclude \"/etc/nftables.d/*.nft\"\ninclude \"own.nft\"\ninclude \"/missing\"\n# include \"/etc/no.nft\"\n",
		"/etc/nftables.d/a.nft":  "include \"/etc/nftables.conf\"\n",
		"/etc/nftables.d/b.nft":  "ct state new accept\n",
		"/etc/nftables.d/c.text": "ct state new accept\n",
		"/etc/own.nft":           "",
		"/etc/no.nft":            "",
	})
	got, err := ConfPaths(root)
	if want := []string{"/etc/nftables.conf", "/etc/nftables.d/a.nft", "/etc/nftables.d/b.nft", "/etc/own.nft"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %q, want %q", err, got, want)
	}
}

func FuzzParseConf(f *testing.F) {
	f.Add("table inet f { chain c { ct state new accept; } }\ninclude \"/etc/x\"\n")
	f.Add("table t { chain c { a; b { c } d\n\te } }\nadd rule t c x; insert rule t c y\n}}{")
	f.Add("\"ct\" # ct\n\"ct state\nredirect\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := strings.Split(text, "\n")
		got := ParseConf(host.File{Content: text})
		for _, l := range got.Lines {
			if l.Line < 1 || l.Line > len(lines) || strings.TrimSpace(lines[l.Line-1]) != l.Text {
				t.Errorf("line %d is not %q", l.Line, l.Text)
			}
		}
		for _, i := range got.Includes {
			if i.Path == "" || i.Path[0] != '/' || !strings.Contains(lines[i.Line-1], "include") {
				t.Errorf("%+v", i)
			}
		}
		for _, c := range got.Chains {
			if len(c.Texts) != len(c.Rules) {
				t.Errorf("%d rules and %d texts", len(c.Rules), len(c.Texts))
			}
			for i, line := range c.Rules {
				if line < 1 || line > len(lines) || i > 0 && line < c.Rules[i-1] {
					t.Errorf("rules at lines %v", c.Rules)
				}
			}
		}
		// What a comment says means nothing.
		if c := ParseConf(host.File{Content: "#" + strings.ReplaceAll(text, "\n", "\n#")}); len(c.Lines)+len(c.Includes)+len(c.Chains) > 0 {
			t.Errorf("commented out: %+v", c)
		}
	})
}
