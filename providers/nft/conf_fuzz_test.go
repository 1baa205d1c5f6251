package nft

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// FuzzCut holds that of a file that nft loads, cutting out a rule leaves one that
// it loads too, and whose ruleset is the old one without that rule. As root: each
// file is loaded in a network namespace of its own.
func FuzzCut(f *testing.F) {
	for _, c := range []string{
		"table inet f { chain c { ct state new accept; drop; }; }\n",
		"table t {\n\tchain c {\n\t\ta;\\\n b\n}\n}\nadd rule t c drop # x\ninsert rule t c { accept }\n",
		"define a = 22\ntable t { chain c { tcp dport $a accept\ntcp dport { $a, 80 } accept; } ; }\nrule t c drop;rule t c accept",
		"table t {\n chain c {\n log prefix \"a;b\" ; ; drop # }\n\t}\n}\n",
	} {
		f.Add(c)
	}
	list := func(text string) (string, bool) {
		cmd := exec.Command("unshare", "-n", "sh", "-c", "nft -f - && nft -s list ruleset")
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.Output()
		return string(out), err == nil
	}
	f.Fuzz(func(t *testing.T, text string) {
		if os.Geteuid() != 0 || strings.Contains(text, "include") || strings.Contains(text, "list") || len(text) > 4000 {
			t.Skip()
		}
		files := []host.NFTFile{nftconf.Parse(host.File{Path: "/etc/nftables.conf", Exists: true, Content: text})}
		conf := nftconf.Load(nftconf.Defaults[:1], files)
		if conf.Doubt != "" {
			return
		}
		listing, ok := list(text)
		if !ok {
			return
		}
		cuts := 0
		for i := range conf.Tables {
			for _, c := range conf.Tables[i].Chains {
				if c.Doubt != "" {
					continue
				}
				for k, r := range c.Rules {
					var edits change.Edits
					if cuts++; cuts > 6 || len((nftconf.Edit{Cut: []host.NFTSite{r.Site}}).Apply(&conf, files, &edits)) > 0 {
						continue
					}
					after := nftconf.After(nftconf.Defaults[:1], files, edits)[0].Content
					want := without(listing, conf.Tables[i].Family, conf.Tables[i].Name, c.Name, k)
					if got, ok := list(after); !ok || got != want {
						t.Errorf("%q\nwithout %q of %s:\n%q\nloads %v\n%swant\n%s", text, r.Text, c.Name, after, ok, got, want)
					}
				}
			}
		}
	})
}

// FuzzConf: the reader and the editor take whatever there is. What they cut out is
// one stretch, and never a byte of another file.
func FuzzConf(f *testing.F) {
	names, err := os.ReadDir("../../planner/nftconf/testdata/conf")
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range names {
		a, err := txtar.ParseFile("../../planner/nftconf/testdata/conf/" + n.Name())
		if err != nil {
			f.Fatal(err)
		}
		second := ""
		if len(a.Files) > 1 {
			second = string(a.Files[1].Data)
		}
		f.Add(string(a.Files[0].Data), second)
	}
	f.Add("include \"/etc/nftables.conf\"\n", "{")
	f.Fuzz(func(t *testing.T, main, second string) {
		files := []host.NFTFile{
			nftconf.Parse(host.File{Path: "/etc/nftables.conf", Exists: true, Content: main}),
			nftconf.Parse(host.File{Path: "/etc/second.nft", Exists: true, Content: second}),
		}
		conf := nftconf.Load(nftconf.Defaults[:1], files)
		cuts := 0
		for i := range conf.Tables {
			for _, c := range conf.Tables[i].Chains {
				for _, r := range c.Rules {
					if cuts++; cuts > 20 {
						return
					}
					var edits change.Edits
					if len((nftconf.Edit{Cut: []host.NFTSite{r.Site}}).Apply(&conf, files, &edits)) > 0 {
						continue
					}
					after := nftconf.After(nftconf.Defaults[:1], files, edits)
					for _, f := range files {
						k := slices.IndexFunc(after, func(o host.NFTFile) bool { return o.Path == f.Path })
						if f.Path == r.Site.File && (after[k].Content == f.Content || !isCut(f.Content, after[k].Content)) || f.Path != r.Site.File && after[k].Content != f.Content {
							t.Errorf("%q became %q", f.Content, after[k].Content)
						}
					}
				}
			}
		}
	})
}
