package nftconf

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Edit is what shall become of the files that nftables.service loads.
type Edit struct {
	// Cut are statements of others that go: the sites of rules and items. One that is
	// read more than once goes everywhere, so it must stand here as often.
	Cut []host.NFTSite
	// Own is what ctplan's own file shall say, loaded after all others; empty: there
	// shall be no such file.
	Own string

	Because string       // the reason of the edits
	Source  declared.Pos // what in the HCL asks for them
}

// Refusal says why a file cannot be edited safely. At is "FILE:LINE", or a path.
type Refusal struct{ At, Why string }

// OwnPath is where ctplan's own file stands: beside the last file that the service
// loads, with that one's name, so that it is seen next to it and no pattern of
// nftables.d takes it in once more. Empty: it is not known what the service loads.
func OwnPath(mains []string) string {
	main := lastMain(mains)
	if main == "" {
		return ""
	}
	ext := path.Ext(main)
	return strings.TrimSuffix(main, ext) + "-ctplan" + ext
}

// lastMain is the last file that the service loads; empty where it loads none, or
// what it does is not known.
func lastMain(mains []string) string {
	if len(mains) == 0 {
		return ""
	}
	main := mains[len(mains)-1]
	if !path.IsAbs(main) || strings.ContainsAny(main, " \t\r\n\"*?[") {
		return ""
	}
	return main
}

// Apply makes the edits, or none with the reasons. Of every file nothing but the
// statements that go and ctplan's include line changes. The edited files are read
// again: what comes of them must be what came of them before, without what was cut,
// and with ctplan's file behind it.
func (e Edit) Apply(conf *host.NFTConf, files []host.NFTFile, to *change.Edits) []Refusal {
	w := &work{Edit: e, conf: conf, files: files, own: OwnPath(conf.Mains)}
	if e.Own == "" && len(e.Cut) == 0 && !w.loadsOwn() && !w.file(w.own).Exists {
		return nil
	}
	if w.check(); len(w.refused) > 0 {
		return w.refused
	}
	edits := w.edits(false)
	if moved := w.edits(true); !w.loadsOwn() || e.Own != "" && !alike(w.load(edits), w.load(moved)) {
		edits = moved
	}
	if w.prove(w.load(edits)); len(w.refused) > 0 {
		return w.refused
	}
	to.Add(edits)
	return nil
}

// work is one Edit in the making.
type work struct {
	Edit
	conf    *host.NFTConf
	files   []host.NFTFile
	own     string
	refused []Refusal
}

func (w *work) refuse(at, format string, args ...any) {
	w.refused = append(w.refused, Refusal{at, fmt.Sprintf(format, args...)})
}

// file is a file as it was read; one that was not is not there.
func (w *work) file(name string) host.File {
	if i := slices.IndexFunc(w.files, func(f host.NFTFile) bool { return f.Path == name }); i >= 0 {
		return w.files[i].File
	}
	return host.File{Path: name}
}

// includes are the lines that load ctplan's own file.
func (w *work) includes() (out []host.NFTSite) {
	for _, l := range w.conf.Loads {
		if l.File == w.own && l.From.Line > 0 {
			out = append(out, l.From)
		}
	}
	return out
}

func (w *work) loadsOwn() bool { return len(w.includes()) > 0 }

// check finds what cannot be edited.
func (w *work) check() {
	main := lastMain(w.conf.Mains)
	switch {
	case main == "":
		w.refuse("nftables.service", "it is not known which file it loads")
	case !w.file(main).Exists:
		w.refuse(main, "nftables.service loads this file, and it is not there")
	case w.conf.Doubt != "":
		w.refuse(main, "what nftables.service loads is not known whole: %s", w.conf.Doubt)
	case !etc.Editable(w.file(main), ""):
		w.refuse(main, "nftables.service loads this file, which is not in /etc, so it is not the administrator's to edit")
	}
	for _, s := range w.Cut {
		switch at := nftables.Place(s); {
		case s.Fixed != "":
			w.refuse(at, "it cannot be cut out: %s", s.Fixed)
		case !etc.Editable(w.file(s.File), ""):
			w.refuse(at, "it cannot be cut out: the file is not in /etc, so it is not the administrator's to edit")
		case s.Times > w.times(s):
			w.refuse(at, "it cannot be cut out: it is loaded %d times, and not all of them shall go", s.Times)
		}
	}
	for _, s := range w.includes() {
		if text := w.file(s.File).Content; etc.IsGlob(text[s.Span.Start:s.Span.End]) {
			w.refuse(nftables.Place(s), "this pattern takes in ctplan's own file, %s", w.own)
		}
	}
}

// times is how often a site stands among those that go.
func (w *work) times(s host.NFTSite) (n int) {
	for _, o := range w.Cut {
		if o.File == s.File && o.Span == s.Span {
			n++
		}
	}
	return n
}

// edits are all of them, with ctplan's include line where it is, or moved to the
// end of the last file. What is loaded is written before what loads it, and taken
// away after.
func (w *work) edits(move bool) change.Edits {
	var out change.Edits
	own := w.file(w.own)
	if w.Own != "" {
		out.File(own, "file.").Replace(host.Span{End: len(own.Content)}, w.Own)
		out.File(own, "file.").Because(w.Because, w.Source)
	}
	if main := w.file(lastMain(w.conf.Mains)); move && w.Own != "" {
		line := "include \"" + w.own + "\""
		if strings.HasSuffix(main.Content, "\r\n") {
			line += "\r"
		}
		if isOpen(main.Path, w.files) {
			line = "\n" + line
		}
		f := out.File(main, "file.")
		f.AppendLine(line)
		f.Because(w.Because, w.Source)
	}
	cut := w.Cut
	if move || w.Own == "" {
		cut = slices.Concat(cut, w.includes())
	}
	done := map[string]bool{}
	for _, s := range cut {
		if id := fmt.Sprint(s.File, s.Span); !done[id] {
			done[id] = true
			f := out.File(w.file(s.File), "file.")
			f.Replace(CutSpan(f.Content(), s.Span), "")
			f.Because(w.Because, w.Source)
		}
	}
	if w.Own == "" && own.Exists {
		out.File(own, "file.").Remove()
		out.File(own, "file.").Because(w.Because, w.Source)
	}
	return out
}

// load is what comes of the edited files.
func (w *work) load(edits change.Edits) host.NFTConf {
	return Load(w.conf.Mains, After(w.conf.Mains, w.files, edits))
}

// After are the files as edits make them, ctplan's own among them; edits of other
// files are none of theirs.
func After(mains []string, files []host.NFTFile, edits change.Edits) []host.NFTFile {
	out := slices.Clone(files)
	for _, c := range edits.Changes() {
		f := c.(*change.FileChange).After
		if f.Path != OwnPath(mains) && !slices.ContainsFunc(files, func(o host.NFTFile) bool { return o.Path == f.Path }) {
			continue
		}
		out = slices.DeleteFunc(out, func(o host.NFTFile) bool { return o.Path == f.Path })
		if f.Exists {
			out = append(out, Parse(f))
		}
	}
	return out
}

// prove holds what comes of the edited files against what shall.
func (w *work) prove(got host.NFTConf) {
	if got.Doubt != "" {
		w.refuse(lastMain(w.conf.Mains), "what would be loaded is not known whole: %s", got.Doubt)
		return
	}
	want := w.wanted()
	for i := range got.Tables {
		t := &got.Tables[i]
		t.Chains = slices.DeleteFunc(t.Chains, func(c host.NFTConfChain) bool { return w.isOwn(c.Site) })
		t.Items = slices.DeleteFunc(t.Items, func(i host.NFTConfItem) bool { return w.isOwn(i.Site) })
		for k := range t.Chains {
			t.Chains[k].Rules = slices.DeleteFunc(t.Chains[k].Rules, func(r host.NFTConfRule) bool { return w.isOwn(r.Site) })
		}
	}
	got.Tables = slices.DeleteFunc(got.Tables, func(t host.NFTConfTable) bool { return w.isOwn(t.Site) })
	if !alike(got, want) {
		w.refuse(lastMain(w.conf.Mains), "the edited files would load something else than they do, and not only what is asked for")
	}
	n := 0
	for _, l := range got.Loads {
		if l.File == w.own {
			n++
		}
	}
	if w.Own != "" && n != 1 {
		w.refuse(w.own, "this file would be loaded %d times", n)
	}
}

func (w *work) isOwn(s host.NFTSite) bool { return s.File == w.own }

// wanted is what came of the files without what is cut, and without ctplan's own.
func (w *work) wanted() host.NFTConf {
	out := *w.conf
	out.Tables = nil
	goes := func(s host.NFTSite) bool { return w.isOwn(s) || w.times(s) > 0 }
	for _, t := range w.conf.Tables {
		if w.isOwn(t.Site) {
			continue
		}
		t.Items = slices.DeleteFunc(slices.Clone(t.Items), func(i host.NFTConfItem) bool { return goes(i.Site) })
		t.Chains = slices.DeleteFunc(slices.Clone(t.Chains), func(c host.NFTConfChain) bool { return w.isOwn(c.Site) })
		for k := range t.Chains {
			t.Chains[k].Rules = slices.DeleteFunc(slices.Clone(t.Chains[k].Rules), func(r host.NFTConfRule) bool { return goes(r.Site) })
		}
		out.Tables = append(out.Tables, t)
	}
	return out
}

// alike reports whether two readings come to the same ruleset, wherever in the
// files each statement stands.
func alike(a, b host.NFTConf) bool {
	return a.Doubt == b.Doubt && (a.Flush.Line > 0) == (b.Flush.Line > 0) && slices.EqualFunc(a.Tables, b.Tables, func(x, y host.NFTConfTable) bool {
		return x.Family == y.Family && x.Name == y.Name &&
			slices.EqualFunc(x.Items, y.Items, func(i, j host.NFTConfItem) bool { return i.Kind == j.Kind && i.Name == j.Name }) &&
			slices.EqualFunc(x.Chains, y.Chains, func(c, d host.NFTConfChain) bool {
				return c.Name == d.Name && c.Base == d.Base && slices.Equal(c.Devices, d.Devices) && c.Policy == d.Policy && (c.Doubt == "") == (d.Doubt == "") &&
					slices.EqualFunc(c.Rules, d.Rules, func(r, s host.NFTConfRule) bool { return r.Text == s.Text && r.Vague == s.Vague })
			})
	})
}

// CutSpan is what goes from a file so that the statement at a span goes: its lines,
// with a comment at their end, where it stands there alone; else its words, with
// the semicolon that ends it.
func CutSpan(content string, s host.Span) host.Span {
	blank := func(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }
	skip := func(i int) int {
		for i < len(content) && blank(content[i]) {
			i++
		}
		return i
	}
	start, end := s.Start, s.End
	before := start
	for before > 0 && (content[before-1] == ' ' || content[before-1] == '\t') {
		before--
	}
	above := strings.TrimSuffix(strings.TrimSuffix(content[:before], "\n"), "\r")
	first := before == 0 || content[before-1] == '\n' && !strings.HasSuffix(above, `\`)
	after := skip(end)
	ended := after < len(content) && content[after] == ';'
	if ended {
		end = after + 1
		after = skip(end)
	}
	lineEnd := len(content)
	if n := strings.IndexByte(content[after:], '\n'); n >= 0 {
		lineEnd = after + n + 1
	}
	atEnd := after == len(content) || content[after] == '\n'
	comment := !atEnd && content[after] == '#'
	switch {
	case first && (atEnd || comment):
		return host.Span{Start: before, End: lineEnd}
	case atEnd: // what stands before it on the line ends there
		return host.Span{Start: before, End: end}
	case ended && !comment:
		return host.Span{Start: start, End: after}
	}
	return host.Span{Start: start, End: end}
}
