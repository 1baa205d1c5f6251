package nftconf

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// TestParse looks at one line at a time.
func TestParse(t *testing.T) {
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
		f := Parse(host.File{Content: "\n" + line})
		if got := len(f.Lines) == 1 && f.Lines[0].Line == 2 && f.Lines[0].Text == strings.TrimSpace(line); got != want || len(f.Lines) > 1 {
			t.Errorf("%q: %+v, want %v", line, f.Lines, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("table inet f { chain c { ct state new accept; } }\ninclude \"/etc/x\"\n")
	f.Add("table t { chain c { a; b { c } d\n\te } }\nadd rule t c x; insert rule t c y\n}}{")
	f.Add("\"ct\" # ct\n\"ct state\nredirect\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := strings.Split(text, "\n")
		got := Parse(host.File{Content: text})
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
		// What a comment says means nothing.
		if c := Parse(host.File{Content: "#" + strings.ReplaceAll(text, "\n", "\n#")}); len(c.Lines)+len(c.Includes) > 0 {
			t.Errorf("commented out: %+v", c)
		}
	})
}
