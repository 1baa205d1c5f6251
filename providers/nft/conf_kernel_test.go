package nft

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// confs are rules files as people write them. Where its comment begins with
// "crlf", lines end so; with "chop", no file ends in a newline.
const confs = "../../planner/nftconf/testdata/conf/*.txtar"

// savedConf is one of them.
type savedConf struct {
	name  string
	main  string
	crlf  bool
	files []host.NFTFile
}

func savedConfs(t *testing.T) (out []savedConf) {
	names, err := filepath.Glob(confs)
	if err != nil || len(names) < 20 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c := savedConf{name: strings.TrimSuffix(filepath.Base(name), ".txtar"), crlf: strings.HasPrefix(string(a.Comment), "crlf")}
		for _, f := range a.Files {
			content := string(f.Data)
			if c.crlf {
				content = strings.ReplaceAll(content, "\n", "\r\n")
			}
			if strings.HasPrefix(string(a.Comment), "chop") {
				content = strings.TrimSuffix(content, "\n")
			}
			c.files = append(c.files, nftconf.Parse(host.File{Path: "/" + f.Name, Exists: true, Content: content}))
		}
		c.main = c.files[0].Path
		out = append(out, c)
	}
	return out
}

// confHost has such files, and loads them.
type confHost struct {
	t       *testing.T
	ns      *nstest.NS
	written []string
}

// load is what stands once the files are loaded, as often as told.
func (h *confHost) load(c *savedConf, files []host.NFTFile, times int) string {
	h.t.Helper()
	for _, w := range h.written {
		os.Remove(w)
	}
	h.written = nil
	for _, f := range files {
		content := f.Content
		if c.crlf { // releases before 1.1.2 do not take it
			content = strings.ReplaceAll(content, "\r\n", "\n")
		}
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(f.Path, []byte(content), 0o644); err != nil {
			h.t.Fatal(err)
		}
		h.written = append(h.written, f.Path)
	}
	h.ns.Run("nft", "flush", "ruleset")
	for range times {
		if out, err := h.ns.Command("nft", "-f", c.main).CombinedOutput(); err != nil {
			h.t.Errorf("%s: nft -f: %v\n%s", c.name, err, out)
			return "it does not load"
		}
	}
	return h.ns.Run("nft", "-s", "list", "ruleset")
}

// without is a listing without a rule, by its index in its chain.
func without(listing, family, table, chain string, index int) string {
	lines := strings.SplitAfter(listing, "\n")
	var out []string
	in, depth := "", 0
	for _, l := range lines {
		text := strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "table "):
			in = strings.TrimSuffix(text, " {")
		case strings.HasPrefix(l, "\tchain "):
			in, _, _ = strings.Cut(in, " chain ")
			in += " " + strings.TrimSuffix(text, " {")
			depth = 0
		case in == "table "+family+" "+table+" chain "+chain && strings.HasPrefix(l, "\t\t") && !strings.HasPrefix(text, "type ") && (depth > 0 || !strings.HasPrefix(text, "comment ")):
			first := depth == 0
			depth += strings.Count(l, "{") - strings.Count(l, "}")
			if strings.Contains(l, `"`) {
				depth = 0
			}
			if index == 0 {
				if depth == 0 {
					index--
				}
				continue
			}
			if first && depth == 0 || !first && depth == 0 {
				index--
			}
		}
		out = append(out, l)
	}
	return strings.Join(out, "")
}

const ownRules = "table inet ctplan {\n\tchain own {\n\t\tcounter\n\t}\n}\n"

// TestConfs: of rules files as people write them, the reader knows what nft makes
// of them, and each rule of each can be cut out, and ctplan's file put in, so that
// what is loaded differs by that alone.
func TestConfs(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		h := &confHost{t: t, ns: ns}
		rules, same := 0, 0
		for _, c := range savedConfs(t) {
			conf := nftconf.Load([]string{c.main}, c.files)
			listing := h.load(&c, c.files, 1)
			if conf.Doubt != "" {
				t.Errorf("%s: doubt: %s", c.name, conf.Doubt)
			}
			tables, err := Read(nil)
			if err != nil {
				t.Fatal(err)
			}
			n, s := compareConf(t, c.name, &conf, tables)
			rules, same = rules+n, same+s
			twice := h.load(&c, c.files, 2) == listing
			h.script(&c, listing)
			for i := range conf.Tables {
				for _, chain := range conf.Tables[i].Chains {
					for k, r := range chain.Rules {
						h.cut(&c, &conf, r, without(listing, conf.Tables[i].Family, conf.Tables[i].Name, chain.Name, k), twice && k == 0)
					}
				}
			}
			h.ownAlone(&c, &conf, listing)
		}
		t.Logf("%d rules, of which %d read as nft has them", rules, same)
		if same*100 < rules*85 {
			t.Errorf("of %d rules only %d read as nft has them", rules, same)
		}
	}, "/etc")
}

// script loads the files as one text without includes.
func (h *confHost) script(c *savedConf, listing string) {
	s := nftconf.Scripts([]string{c.main}, c.files)[0]
	h.ns.Run("nft", "flush", "ruleset")
	h.ns.RunInput(strings.ReplaceAll(s.Text, "\r\n", "\n"), "nft", "-f", "-")
	if got := h.ns.Run("nft", "-s", "list", "ruleset"); got != listing {
		h.t.Errorf("%s: as one text\n%s", c.name, got)
	}
	for i, l := range strings.Split(strings.TrimSuffix(s.Text, "\n"), "\n") {
		name, line, _ := strings.Cut(s.Place(i+1), ":")
		n, _ := strconv.Atoi(line)
		f := slices.IndexFunc(c.files, func(f host.NFTFile) bool { return f.Path == name })
		if f < 0 || n < 1 {
			h.t.Errorf("%s: line %d is at %q", c.name, i+1, s.Place(i+1))
		} else if said := strings.Split(c.files[f].Content, "\n")[n-1]; !strings.Contains(said, "include") && !strings.HasPrefix(l, said) {
			h.t.Errorf("%s: line %d, %q, is at %s: %q", c.name, i+1, l, s.Place(i+1), said)
		}
	}
}

// compareConf holds what the reader says against the kernel, and counts the rules,
// and those whose texts are the kernel's.
func compareConf(t *testing.T, name string, conf *host.NFTConf, tables []host.NFTTable) (rules, same int) {
	if len(conf.Tables) != len(tables) {
		t.Errorf("%s: %d tables, in the kernel %d", name, len(conf.Tables), len(tables))
	}
	for i := range tables {
		live := &tables[i]
		for k := range live.Chains {
			c := &live.Chains[k]
			if strings.HasPrefix(c.Name, "__chain") {
				continue
			}
			_, said := nftables.Find(conf, live.Family, live.Name, c.Name)
			if said == nil {
				t.Errorf("%s: no chain %s", name, c.Name)
				continue
			}
			base := ""
			if c.Base() {
				base = nftables.BaseOf(c.Type, c.Hook, c.Priority)
			}
			if said.Base != base || c.Base() && nftables.Policy(said.Policy) != c.Policy || !slices.Equal(said.Devices, c.Devices) || len(said.Rules) != len(c.Rules) || said.Doubt != "" {
				t.Errorf("%s: chain %s is %q %s %q with %d rules, in the kernel %q %s %q with %d; %s", name, c.Name,
					said.Base, said.Policy, said.Devices, len(said.Rules), base, c.Policy, c.Devices, len(c.Rules), said.Doubt)
				continue
			}
			for n := range c.Rules {
				rules++
				if text := nftables.Canonical(nftables.Words(c.Rules[n].Text)); text == said.Rules[n].Text {
					same++
				} else {
					t.Logf("%s: %s\n\tin the kernel: %s", name, said.Rules[n].Text, text)
				}
			}
		}
	}
	return rules, same
}

// cut takes a rule out and puts ctplan's file in.
func (h *confHost) cut(c *savedConf, conf *host.NFTConf, r host.NFTConfRule, want string, twice bool) {
	at := c.name + ": " + nftables.Place(r.Site)
	var edits change.Edits
	edit := nftconf.Edit{Own: ownRules}
	for range r.Site.Times {
		edit.Cut = append(edit.Cut, r.Site)
	}
	if refused := edit.Apply(conf, c.files, &edits); len(refused) > 0 {
		h.t.Errorf("%s: %v", at, refused)
		return
	}
	files := slices.Clone(c.files)
	own := nftconf.OwnPath(conf.Mains)
	for _, ch := range edits.Changes() {
		before, after := ch.(*change.FileChange).Before, ch.(*change.FileChange).After
		i := slices.IndexFunc(files, func(f host.NFTFile) bool { return f.Path == after.Path })
		if i < 0 {
			if after.Path != own || after.Content != ownRules {
				h.t.Errorf("%s: %s is new:\n%s", at, after.Path, after.Content)
			}
			files = append(files, nftconf.Parse(after))
			continue
		}
		files[i] = nftconf.Parse(after)
		kept := after.Content
		if after.Path == c.main {
			line := "include \"" + own + "\"\n"
			if c.crlf {
				line = "include \"" + own + "\"\r\n"
			}
			var ok bool
			if kept, ok = strings.CutSuffix(kept, line); !ok {
				h.t.Errorf("%s: the include line is not the last:\n%s", at, after.Content)
			}
		}
		if !isCut(before.Content, kept) {
			h.t.Errorf("%s: more than one place changed:\n%s", at, after.Content)
		}
	}
	want += ownRules
	if got := h.load(c, files, 1); got != want {
		h.t.Errorf("%s: loaded\n%swant\n%s", at, got, want)
	}
	if twice {
		if got := h.load(c, files, 2); got != want {
			h.t.Errorf("%s: loaded twice\n%swant\n%s", at, got, want)
		}
	}
}

// isCut is whether after is before without one stretch of it; a last line gets its
// newline.
func isCut(before, after string) bool {
	cut := func(before string) bool {
		n := len(before) - len(after)
		at := 0
		if n < 0 {
			return false
		}
		for at < len(after) && before[at] == after[at] {
			at++
		}
		return before[at+n:] == after[at:]
	}
	return cut(before) || cut(before+"\n") || cut(before+"\n\n")
}

// ownAlone puts ctplan's file in, changes it, and takes it out again.
func (h *confHost) ownAlone(c *savedConf, conf *host.NFTConf, listing string) {
	files := c.files
	step := func(own string, changes int) string {
		conf := nftconf.Load([]string{c.main}, files)
		var edits change.Edits
		if refused := (nftconf.Edit{Own: own}).Apply(&conf, files, &edits); len(refused) > 0 {
			h.t.Errorf("%s: %v", c.name, refused)
		}
		if n := len(edits.Changes()); n != changes {
			h.t.Errorf("%s: %d files change, not %d", c.name, n, changes)
		}
		files = nftconf.After(conf.Mains, files, edits)
		return h.load(c, files, 1)
	}
	if got := step(ownRules, 2); got != listing+ownRules {
		h.t.Errorf("%s: with ctplan's file\n%s", c.name, got)
	}
	step(ownRules, 0)
	if got := step(strings.Replace(ownRules, "counter", "accept", 1), 1); got != listing+strings.Replace(ownRules, "counter", "accept", 1) {
		h.t.Errorf("%s: with another\n%s", c.name, got)
	}
	if got := step("", 2); got != listing {
		h.t.Errorf("%s: without it again\n%s", c.name, got)
	}
	for _, f := range c.files {
		i := slices.IndexFunc(files, func(o host.NFTFile) bool { return o.Path == f.Path })
		// A line that is added ends the one before it, and stays apart from a backslash.
		if i < 0 || files[i].Content != f.Content && (c.name != "nonewline" && c.name != "comments" || strings.TrimRight(files[i].Content, "\n") != strings.TrimRight(f.Content, "\n")) {
			h.t.Errorf("%s: %s is not what it was", c.name, f.Path)
		}
	}
	if len(files) != len(c.files) {
		h.t.Errorf("%s: %d files, not %d", c.name, len(files), len(c.files))
	}
}
