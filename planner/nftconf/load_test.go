package nftconf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// loaded is what the files come to, one chain a line. The first is the main one.
func loaded(contents ...string) (host.NFTConf, []host.NFTFile) {
	var files []host.NFTFile
	for i, c := range contents {
		files = append(files, host.NFTFile{File: host.File{Path: string(rune('a'+i)) + ".nft", Exists: true, Content: c}})
		files[i].Path = "/etc/" + files[i].Path
	}
	return Load([]string{"/etc/a.nft"}, files), files
}

func text(c host.NFTConf) string {
	var b strings.Builder
	for _, t := range c.Tables {
		fmt.Fprintf(&b, "%s %s:%d\n", t.Family, t.Name, t.Site.Line)
		for _, i := range t.Items {
			fmt.Fprintf(&b, "  %s %s:%d\n", i.Kind, i.Name, i.Site.Line)
		}
		for _, c := range t.Chains {
			fmt.Fprintf(&b, "  %s:%d %s", c.Name, c.Site.Line, c.Base)
			if c.Policy != "" {
				b.WriteString(" " + c.Policy)
			}
			if c.Doubt != "" {
				b.WriteString(" (" + c.Doubt + ")")
			}
			b.WriteString("\n")
			for _, r := range c.Rules {
				fmt.Fprintf(&b, "    %s:%d %s", strings.TrimPrefix(r.Site.File, "/etc/"), r.Site.Line, r.Text)
				if r.Vague {
					b.WriteString(" (vague)")
				}
				if r.Site.Fixed != "" {
					b.WriteString(" (" + r.Site.Fixed + ")")
				}
				if r.Site.Times != 1 {
					fmt.Fprintf(&b, " (%d times)", r.Site.Times)
				}
				b.WriteString("\n")
			}
		}
	}
	if c.Doubt != "" {
		b.WriteString("doubt: " + c.Doubt + "\n")
	}
	return b.String()
}

func TestLoad(t *testing.T) {
	for name, tt := range map[string]struct {
		files []string
		want  string
	}{
		"as people write": {[]string{`#!/usr/sbin/nft -f
flush ruleset
define web = { 80, 443 }
table inet fw {
	set s { type ipv4_addr; elements = { 1.2.3.4, # the office
		5.6.7.8 } }
	ct helper ftp { type "ftp" protocol tcp; }
	chain in {
		type filter hook input priority 0; policy drop;
		comment "the { way } in"
		iif lo accept; ct state vmap { established : accept,
			invalid : drop } comment "x"
		tcp dport { $web, 22 } \
			accept # }
		jump { tcp dport 1 accept; tcp dport 2 drop; }
	}
	chain two { accept
	}
}
table t { chain c { drop; } }
add rule inet fw in drop
add chain ip6 six c { type filter hook input priority filter - 5; }; add rule ip6 six c tcp dport { 1, 2 } accept
ip t c log`}, `inet fw:4
  set s:5
  ct helper ftp:7
  in:8 filter input 0 drop
    a.nft:11 iif lo accept
    a.nft:11 ct state vmap {established : accept,invalid : drop}
    a.nft:13 tcp dport {22,443,80} accept
    a.nft:15 jump {tcp dport 1 accept ; tcp dport 2 drop ;} (vague)
    a.nft:21 drop
  two:17 
    a.nft:17 accept
ip t:20
  c:20 
    a.nft:20 drop
    a.nft:23 log
ip6 six:22
  c:22 filter input -5
    a.nft:22 tcp dport {1,2} accept
`},
		"taken away": {[]string{"table t { chain c { drop; }; }\ntable u { chain c { drop; }; }\nflush ruleset\nadd table ip t\ndelete table ip t; table ip t { chain c { accept; }; chain d { accept; }; }\nflush chain t d\ndelete chain t x\n"},
			"ip t:5\n  c:5 \n    a.nft:5 accept\n  d:5 \n"},
		"families": {[]string{"table t { chain c { drop; }; }\ntable ip6 t { chain c { drop; }; }\nflush ruleset ip\n"}, "ip6 t:2\n  c:2 \n    a.nft:2 drop\n"},
		"by index": {[]string{"table t { chain c { accept; drop; }; }\ninsert rule t c index 1 counter log\nadd rule t c index 0 return\ninsert rule t c continue\n"},
			"ip t:1\n  c:1 \n    a.nft:4 continue\n    a.nft:1 accept\n    a.nft:3 return\n    a.nft:2 log\n    a.nft:1 drop\n"},
		"by handle": {[]string{"table t { chain c { accept; }; }\ninsert rule t c handle 4 drop\n"},
			"ip t:1\n  c:1  (/etc/a.nft:2: a rule whose place is not known)\n    a.nft:1 accept\n"},
		"includes": {[]string{"define p = 22\ninclude \"./etc/b.nft\"\ntable t { chain c { include \"c.nft\"\ntcp dport $p log; }; }\ninclude \"/etc/[d]*\"\ninclude \"/nothing/*\"\n",
			"table t { chain c { tcp dport $p accept; }; }", "drop", "add rule t c return\n"},
			"ip t:1\n  c:1 \n    b.nft:1 tcp dport 22 accept\n    c.nft:1 drop tcp dport 22 log (it is written in two files)\n    d.nft:1 return\n"},
		"an include at the end":               {[]string{"include \"/nothing/*\""}, "doubt: /etc/a.nft:1: an include that no newline ends: nft does not load it\n"},
		"an include behind what is not ended": {[]string{"include \"b.nft\"\ninclude \"b.nft\"\n", "table t"}, "ip t:1\ndoubt: /etc/a.nft:2: an include where none can be: what comes before it is not ended\n"},
		"twice": {[]string{"table t { chain c { include \"b.nft\"\n }; chain d { include \"b.nft\"\n }; }\n", "drop\n"},
			"ip t:1\n  c:1 \n    b.nft:1 drop (2 times)\n  d:2 \n    b.nft:1 drop (2 times)\n"},
		"a loop":          {[]string{"include \"a.nft\"\n"}, "doubt: /etc/a.nft:1: includes that go too deep\n"},
		"a file not read": {[]string{"include \"x.nft\"\ntable t\n"}, "ip t:2\ndoubt: /etc/a.nft:1: it includes /etc/x.nft, which was not read\n"},
		"no such name":    {[]string{"define a = $b\ntable t { chain c { ip saddr $a drop; }; }\n"}, "ip t:2\n  c:2 \n    a.nft:2 ip saddr $a drop (vague)\n"},
		"scopes": {[]string{"table t { define a = 1\nchain c { tcp dport $a drop; }; }\ntable t { chain c { tcp dport $a drop; }; }\ndefine a = 2\nredefine a = 3\ntable t { chain c { tcp dport $a-$a drop\nundefine a\nip saddr @$a drop; }; }\n"},
			"ip t:1\n  c:2 \n    a.nft:2 tcp dport 1 drop\n    a.nft:3 tcp dport $a drop (vague)\n    a.nft:6 tcp dport $a-$a drop (vague)\n    a.nft:8 ip saddr @$a drop (vague)\n"},
		"devices": {[]string{"table netdev n { chain c { type filter hook ingress devices = { b, a } priority -500; }; }\n"}, "netdev n:1\n  c:1 filter ingress -500\n"},
		"open":    {[]string{"table t { chain c { drop\n"}, "ip t:1\n  c:1 \n    a.nft:1 drop\ndoubt: /etc/a.nft:1: what opens here is closed nowhere\n"},
		"closed":  {[]string{"} table t\n"}, "ip t:1\ndoubt: /etc/a.nft:1: a brace where none can be\n"},
		"string":  {[]string{"table t { chain c { log prefix \"x\n"}, "ip t:1\n  c:1 \n    a.nft:1 log prefix x\n\ndoubt: /etc/a.nft:2: a string, or a comment, that nothing ends: nft does not load it\n"},
		"comment": {[]string{"# x"}, "doubt: /etc/a.nft:1: a string, or a comment, that nothing ends: nft does not load it\n"},
		"a string of two lines": {[]string{"table t { comment \"a {\n;\"; chain c { drop; }; }\n"},
			"ip t:1\n  c:2 \n    a.nft:2 drop\n"},
		"a comment goes on": {[]string{"table t { chain c { tcp dport 1 \\\n# one\ndrop\n }; }\n"},
			"ip t:1\n  c:1 \n    a.nft:1 tcp dport 1\n    a.nft:3 drop\ndoubt: /etc/a.nft:2: releases of nft do not agree whether the line goes on\n"},
		"ends of lines": {[]string{"table t {\r\n\tchain c {\r\n\t\ttcp dport 22 \\\r\n accept # x\r\n\t}\r\n}"}, "ip t:1\n  c:2 \n    a.nft:3 tcp dport 22 accept\n"},
		"a name":        {[]string{"add rule $x c accept\n"}, "ip $x:1\n  c:1 \n    a.nft:1 accept\ndoubt: /etc/a.nft:1: ctplan cannot read this name\n"},
		"renamed":       {[]string{"table t { chain c { drop; }; }\nrename chain t c d\n"}, "ip t:1\n  d:1 \n    a.nft:1 drop\n"},
		"sets":          {[]string{"table t\nadd set t s { type ipv4_addr; }\nadd element t s { 1.2.3.4 }\nadd counter t n\ndelete counter t n\ndelete set t handle 7\n"}, "ip t:1\n  set s:2\ndoubt: /etc/a.nft:6: ctplan cannot follow this\n"},
		"it only lists": {[]string{"list ruleset\ntable t\nreset counters\n"}, "ip t:2\n"},
	} {
		conf, _ := loaded(tt.files...)
		if got := text(conf); got != tt.want {
			t.Errorf("%s: got\n%swant\n%s", name, got, tt.want)
		}
	}
}
