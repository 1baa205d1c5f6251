package nftconf

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// TestCutSpan cuts the rule that says "drop".
func TestCutSpan(t *testing.T) {
	for content, want := range map[string]string{
		"a\n\tdrop\n\tb\n":             "a\n\tb\n",
		"a\n\tdrop;\n\tb\n":            "a\n\tb\n",
		"a\n\tdrop # why\n\tb\n":       "a\n\tb\n",
		"a\n\tdrop ; # why\r\n\tb\r\n": "a\n\tb\r\n",
		"a; drop; b\n":                 "a; b\n",
		"a; drop\n":                    "a;\n",
		"a; drop;\n":                   "a;\n",
		"a;drop;b":                     "a;b",
		"a; drop # c\n":                "a;  # c\n",
		"c { drop; }; }\n":             "c { }; }\n",
		"c { drop }\n":                 "c {  }\n",
		"c { drop\n }\n":               "c {\n }\n",
		"a; \\\n drop\nb":              "a; \\\n\nb",
		"drop":                         "",
		"\tdrop \\\n\nb":               "\t \\\n\nb",
	} {
		at := strings.Index(content, "drop")
		s := CutSpan(content, host.Span{Start: at, End: at + len("drop")})
		if got := content[:s.Start] + content[s.End:]; got != want {
			t.Errorf("%q became %q, want %q", content, got, want)
		}
	}
}

// site is where a rule stands, by its text.
func sites(conf *host.NFTConf, text string) (out []host.NFTSite) {
	for _, t := range conf.Tables {
		for _, c := range t.Chains {
			for _, r := range c.Rules {
				if r.Text == text {
					out = append(out, r.Site)
				}
			}
		}
	}
	return out
}

func TestRefusals(t *testing.T) {
	const fw = "table t { chain c { drop; }; }\n"
	for name, tt := range map[string]struct {
		main, other string
		cut         string
		own         string
		want        string
	}{
		"as it should be":    {fw, "", "drop", "table x\n", "[]"},
		"in two files":       {"table t { chain c { include \"/etc/b.nft\"\naccept; }; }\n", "drop", "drop accept", "", "[{/etc/b.nft:1 it cannot be cut out: it is written in two files}]"},
		"once of two":        {"table t { chain c { include \"/etc/b.nft\"\n }; chain d { include \"/etc/b.nft\"\n }; }\n", "drop\n", "once drop", "", "[{/etc/b.nft:1 it cannot be cut out: it is loaded 2 times, and not all of them shall go}]"},
		"both":               {"table t { chain c { include \"/etc/b.nft\"\n }; chain d { include \"/etc/b.nft\"\n }; }\n", "drop\n", "drop", "", "[]"},
		"a package's":        {"include \"/usr/share/b.nft\"\n", fw, "drop", "", "[{/usr/share/b.nft:1 it cannot be cut out: the file is not in /etc, so it is not the administrator's to edit}]"},
		"by index":           {fw + "add rule t c return\ninsert rule t c index 1 accept\n", "", "drop", "", "[{/etc/a.nft the edited files would load something else than they do, and not only what is asked for}]"},
		"by an index":        {fw + "add rule t c return\nadd rule t c log\ninsert rule t c index 1 accept\n", "", "drop", "", "[{/etc/a.nft the edited files would load something else than they do, and not only what is asked for}]"},
		"a file not there":   {fw + "include \"/etc/c.nft\"\n", "", "drop", "", "[{/etc/a.nft what nftables.service loads is not known whole: /etc/a.nft:2: it includes /etc/c.nft, which was not read}]"},
		"a pattern takes it": {"include \"/etc/*-ctplan.nft\"\n" + fw, "own", "", "table x\n", "[{/etc/a-ctplan.nft this file would be loaded 2 times}]"},
	} {
		other := "/etc/b.nft"
		switch {
		case strings.Contains(tt.main, "/usr/share"):
			other = "/usr/share/b.nft"
		}
		files := []host.NFTFile{Parse(host.File{Path: "/etc/a.nft", Exists: true, Content: tt.main})}
		if tt.other != "" && tt.other != "own" {
			files = append(files, Parse(host.File{Path: other, Exists: true, Content: tt.other}))
		}
		conf := Load([]string{"/etc/a.nft"}, files)
		e := Edit{Own: tt.own}
		if cut, once := strings.CutPrefix(tt.cut, "once "); tt.cut != "" {
			e.Cut = sites(&conf, cut)
			if once {
				e.Cut = e.Cut[:1]
			}
			if len(e.Cut) == 0 {
				t.Fatalf("%s: no such rule\n%s", name, text(conf))
			}
		}
		var edits change.Edits
		if got := fmt.Sprint(e.Apply(&conf, files, &edits)); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		} else if got != "[]" && len(edits.Changes()) > 0 {
			t.Errorf("%s: there are edits", name)
		}
	}
}

// TestInclude: ctplan's include line comes last, and is moved there where what
// follows would undo it, and only then.
func TestInclude(t *testing.T) {
	const fw, own = "flush ruleset\ntable t { chain c { drop; }; }\n", "add rule t c log\n"
	const line = "include \"/etc/a-ctplan.nft\"\n"
	for before, after := range map[string]string{
		fw:                         fw + line,
		fw + line:                  fw + line,
		fw + line + "\n# more\n\n": fw + line + "\n# more\n\n",
		line + fw:                  fw + line,
		fw + line + "table t { chain c { accept; }; }\n": fw + "table t { chain c { accept; }; }\n" + line,
		fw + line + "table u { chain c { accept; }; }\n": fw + line + "table u { chain c { accept; }; }\n",
		strings.TrimSuffix(fw, "\n"):                     fw + line,
		strings.ReplaceAll(fw, "\n", "\r\n"):             strings.ReplaceAll(fw+line, "\n", "\r\n"),
	} {
		files := []host.NFTFile{Parse(host.File{Path: "/etc/a.nft", Exists: true, Content: before}), Parse(host.File{Path: "/etc/a-ctplan.nft", Exists: true, Content: own})}
		for range 2 {
			conf := Load([]string{"/etc/a.nft"}, files)
			var edits change.Edits
			if refused := (Edit{Own: own}).Apply(&conf, files, &edits); len(refused) > 0 {
				t.Errorf("%q: %v", before, refused)
			}
			files = After([]string{"/etc/a.nft"}, files, edits)
			i := slices.IndexFunc(files, func(f host.NFTFile) bool { return f.Path == "/etc/a.nft" })
			if got := files[i].Content; got != after {
				t.Errorf("%q became %q, want %q", before, got, after)
			}
		}
	}
}
