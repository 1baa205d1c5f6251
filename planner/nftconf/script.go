package nftconf

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Script is what one command of the service loads as a text without includes.
type Script struct {
	Text  string
	lines []host.NFTSite // where each of its lines begins
}

// Scripts are what the service loads, in order: each main file with what it
// includes in the places where nft reads it. Files that are not there are left out.
func Scripts(mains []string, files []host.NFTFile) (out []Script) {
	for _, main := range mains {
		w := &scripter{files: files}
		w.file(main, 0)
		out = append(out, Script{w.b.String(), w.lines})
	}
	return out
}

// Place is "FILE:LINE" of a line of the text, from 1; empty where it has no such
// line.
func (s *Script) Place(line int) string {
	if line < 1 || line > len(s.lines) {
		return ""
	}
	return nftables.Place(s.lines[line-1])
}

type scripter struct {
	files []host.NFTFile
	b     strings.Builder
	lines []host.NFTSite
	fresh bool // a line begins, whose place is known already
}

// put writes a stretch of a file that begins at a line of it.
func (w *scripter) put(file, text string, line int) {
	for l := range strings.Lines(text) {
		if !w.fresh {
			w.lines = append(w.lines, host.NFTSite{File: file, Line: line})
		}
		w.b.WriteString(l)
		w.fresh = !strings.HasSuffix(l, "\n")
		line++
	}
}

func (w *scripter) file(name string, depth int) {
	i := slices.IndexFunc(w.files, func(f host.NFTFile) bool { return f.Path == name })
	if i < 0 || depth >= mostDepth || w.b.Len() > 64<<20 {
		return
	}
	content := w.files[i].Content
	tokens, _ := nftables.Tokens(content)
	at, line := 0, 1
	for k := 0; k+1 < len(tokens); k++ {
		t, named := &tokens[k], &tokens[k+1]
		if t.Text != "include" || !strings.HasPrefix(named.Text, `"`) {
			continue
		}
		w.put(name, content[at:t.Start], line)
		at, line = int(named.End), int(named.Line)
		if k+2 < len(tokens) { // what ends the line comes before what it includes
			end := int(tokens[k+2].End)
			w.put(name, content[at:end], line)
			if at = end; tokens[k+2].Text == "\n" {
				line++
			}
		}
		k++
		for _, f := range matching(resolve(named.Text[1:]), w.files) {
			w.file(f, depth+1)
		}
	}
	w.put(name, content[at:], line)
	if w.fresh { // the next file's words are none of this one's last
		w.b.WriteByte(' ')
	}
}
