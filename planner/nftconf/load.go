package nftconf

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Defaults are the files that nftables.service loads: Debian's, and the Red Hat
// family's.
var Defaults = []string{"/etc/nftables.conf", "/etc/sysconfig/nftables.conf"}

// Of is what the host's boot makes of its files.
func Of(b *host.Boot, files []host.NFTFile) host.NFTConf {
	if b != nil && b.NFTables != nil {
		return Load(b.NFTables, files)
	}
	return Load(slices.DeleteFunc(slices.Clone(Defaults), func(p string) bool {
		return !slices.ContainsFunc(files, func(f host.NFTFile) bool { return f.Path == p })
	}), files)
}

// Load is what nft makes of the files when it loads mains, one after the other,
// into an empty ruleset. Files are those that are known to exist; one that they
// include and that is not among them is a doubt.
func Load(mains []string, files []host.NFTFile) host.NFTConf {
	l := newLoader(mains, files)
	for _, main := range mains {
		l.tokens, l.at, l.defined = nil, 0, []map[string][]token{{}}
		l.open(main, host.NFTSite{}, 0)
		for l.at < len(l.tokens) {
			l.statement()
		}
	}
	l.finish()
	return l.conf
}

// token is one of a file, by its index.
type token struct {
	nftables.Token
	file int32
}

func (t *token) ends() bool { return t.Text == "\n" || t.Text == ";" }

// spot is where a statement begins.
type spot struct{ file, start int32 }

type loader struct {
	files   []host.NFTFile
	lexed   [][]nftables.Token
	conf    host.NFTConf
	tokens  []token // of a main file, with those of what it includes in their places
	at      int
	defined []map[string][]token // by scope, the innermost last
	read    map[spot]int         // how often each statement was read
	rules   int
}

func newLoader(mains []string, files []host.NFTFile) *loader {
	return &loader{files: files, conf: host.NFTConf{Mains: mains}, lexed: make([][]nftables.Token, len(files)), read: map[spot]int{}}
}

// doubt is the first reason alone: what comes after it may follow from it.
func (l *loader) doubt(t *token, format string, args ...any) {
	if l.conf.Doubt == "" {
		l.conf.Doubt = l.place(t) + ": " + fmt.Sprintf(format, args...)
	}
}

func (l *loader) place(t *token) string {
	return etc.Place(l.files[t.file].Path, int(t.Line))
}

func (l *loader) peek() string {
	if l.at < len(l.tokens) {
		return l.tokens[l.at].Text
	}
	return ""
}

// separators skips what ends statements.
func (l *loader) separators() {
	for l.at < len(l.tokens) && l.tokens[l.at].ends() {
		l.at++
	}
}

// header goes to the brace that opens a body, or to the end of the statement.
func (l *loader) header() (words []token) {
	start := l.at
	for l.at < len(l.tokens) {
		if t := &l.tokens[l.at]; t.ends() || t.Text == "{" || t.Text == "}" {
			break
		}
		l.at++
	}
	return l.tokens[start:l.at]
}

// take goes to the end of a statement, with all braces in it. inner is whether
// statements stand in those.
func (l *loader) take() (all []token, inner bool) {
	start, depth := l.at, 0
	for ; l.at < len(l.tokens); l.at++ {
		switch t := &l.tokens[l.at]; {
		case t.Text == "{":
			depth++
		case t.Text == "}" && depth == 0:
			return l.tokens[start:l.at], inner
		case t.Text == "}":
			depth--
		case t.ends() && depth == 0:
			if t.Odd {
				l.doubt(t, "releases of nft do not agree whether the line goes on")
			}
			return l.tokens[start:l.at], inner
		case t.Text == ";":
			inner = true
		}
	}
	if depth > 0 {
		l.doubt(&l.tokens[start], "what opens here is closed nowhere")
	}
	return l.tokens[start:l.at], inner
}

// body goes through the statements in braces, the first of which comes next.
// They have definitions of their own.
func (l *loader) body(each func()) {
	open := &l.tokens[l.at]
	l.at++
	l.defined = append(l.defined, map[string][]token{})
	defer func() { l.defined = l.defined[:len(l.defined)-1] }()
	for {
		l.separators()
		switch {
		case l.at >= len(l.tokens):
			l.doubt(open, "what opens here is closed nowhere")
			return
		case l.peek() == "}":
			l.at++
			return
		case l.define():
		default:
			before := l.at
			each()
			if l.at == before { // it took nothing: a brace where none can be
				l.doubt(&l.tokens[l.at], "ctplan cannot follow this")
				l.take()
				l.at = max(l.at, before+1)
			}
		}
	}
}

// reads is site of a rule or an item, which it counts.
func (l *loader) reads(tokens []token) host.NFTSite {
	l.read[spot{tokens[0].file, tokens[0].Start}]++
	return l.site(tokens)
}

// site is where tokens stand, from the first to the last.
func (l *loader) site(tokens []token) host.NFTSite {
	first, end := tokens[0], tokens[len(tokens)-1]
	s := host.NFTSite{File: l.files[first.file].Path, Line: int(first.Line), Span: host.Span{Start: int(first.Start), End: int(end.End)}, Times: 1}
	if slices.ContainsFunc(tokens, func(t token) bool { return t.file != first.file }) {
		s.Fixed = "it is written in two files"
		s.Span.End = int(first.End)
	}
	return s
}

// finish counts how often each statement was read, now that all have been.
func (l *loader) finish() {
	index := map[string]int32{}
	for i := range l.files {
		index[l.files[i].Path] = int32(i)
	}
	count := func(s *host.NFTSite) {
		if s.Line > 0 {
			s.Times = l.read[spot{index[s.File], int32(s.Span.Start)}]
		}
	}
	for i := range l.conf.Tables {
		t := &l.conf.Tables[i]
		for k := range t.Chains {
			for r := range t.Chains[k].Rules {
				count(&t.Chains[k].Rules[r].Site)
			}
		}
		for k := range t.Items {
			count(&t.Items[k].Site)
		}
	}
}

func (l *loader) table(family, name string, words []token) *host.NFTConfTable {
	if strings.ContainsAny(name, `$"`) {
		l.doubt(&words[0], "ctplan cannot read this name")
	}
	for i := range l.conf.Tables {
		if t := &l.conf.Tables[i]; t.Family == family && t.Name == name {
			return t
		}
	}
	l.conf.Tables = append(l.conf.Tables, host.NFTConfTable{Family: family, Name: name, Site: l.site(words)})
	return &l.conf.Tables[len(l.conf.Tables)-1]
}

func (l *loader) chain(t *host.NFTConfTable, name string, words []token) *host.NFTConfChain {
	if c := chainOf(t, name); c != nil {
		return c
	}
	if strings.ContainsAny(name, `$"`) {
		l.doubt(&words[0], "ctplan cannot read this name")
	}
	t.Chains = append(t.Chains, host.NFTConfChain{Name: name, Site: l.site(words)})
	return &t.Chains[len(t.Chains)-1]
}

func chainOf(t *host.NFTConfTable, name string) *host.NFTConfChain {
	if i := slices.IndexFunc(t.Chains, func(c host.NFTConfChain) bool { return c.Name == name }); i >= 0 {
		return &t.Chains[i]
	}
	return nil
}

// inTable takes one statement in a table's braces.
func (l *loader) inTable(t *host.NFTConfTable) {
	start := l.at
	words := l.header()
	switch {
	case len(words) == 0:
		return
	case l.peek() != "{" || words[0].Text != "chain":
		l.at = start
		all, _ := l.take()
		switch words[0].Text {
		case "flags", "comment":
			if slices.ContainsFunc(all, func(w token) bool { return w.Text == "dormant" }) {
				l.doubt(&all[0], "a table that sleeps")
			}
		default:
			l.item(t, texts(words), all)
		}
	case len(words) == 2:
		c := l.chain(t, words[1].Text, words)
		l.body(func() { l.inChain(t.Family, c) })
	default:
		l.doubt(&words[0], "ctplan cannot follow this")
		l.at = start
		l.take()
	}
}

// item takes a set or an object by the words before its braces: its kind, and its
// name.
func (l *loader) item(t *host.NFTConfTable, words []string, all []token) {
	n := len(words) - 1
	if n < 1 {
		l.doubt(&all[0], "ctplan cannot follow this")
		return
	}
	t.Items = append(t.Items, host.NFTConfItem{Kind: strings.Join(words[:n], " "), Name: words[n], Site: l.reads(all)})
}

// inChain takes one statement in a chain's braces.
func (l *loader) inChain(family string, c *host.NFTConfChain) {
	all, inner := l.take()
	if len(all) == 0 {
		return
	}
	switch all[0].Text {
	case "comment", "flags":
	case "type", "policy", "devices", "device":
		l.hook(family, c, all)
	default:
		if r, ok := l.rule(all, all, inner); ok {
			c.Rules = append(c.Rules, r)
		}
	}
}

// hook takes what declares a base chain: where the kernel calls it, its policy.
func (l *loader) hook(family string, c *host.NFTConfChain, all []token) {
	words, known := l.expand(all)
	if words[0] == "policy" {
		if c.Policy = words[len(words)-1]; !known {
			c.Doubt = l.place(&all[0]) + ": a policy that is not known"
		}
		return
	}
	base, devices, ok := nftables.Base(family, words)
	if words[0] != "type" {
		base, ok = c.Base, len(devices) > 0
	}
	if !known || !ok || c.Base != "" && c.Base != base {
		c.Doubt = l.place(&all[0]) + ": where the kernel calls the chain is not known"
	}
	c.Base, c.Devices = base, append(c.Devices, devices...)
	slices.Sort(c.Devices)
}

// mostRules bounds how many rules are kept.
const mostRules = 200_000

// rule is one that says what, in the statement all.
func (l *loader) rule(all, what []token, inner bool) (host.NFTConfRule, bool) {
	if l.rules++; l.rules > mostRules {
		l.doubt(&all[0], "there are more than %d rules", mostRules)
		return host.NFTConfRule{}, false
	}
	words, known := l.expand(what)
	return host.NFTConfRule{Site: l.reads(all), Text: nftables.Canonical(words), Vague: inner || !known}, true
}

func texts(tokens []token) []string {
	out := make([]string, len(tokens))
	for i := range tokens {
		out[i] = tokens[i].Text
	}
	return out
}
