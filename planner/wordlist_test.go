package planner

import (
	"strings"
	"testing"
)

func TestWordLists(t *testing.T) {
	list := func(content string) (*FileEdit, *WordList) {
		start := strings.IndexByte(content, '=') + 1
		if start < len(content) && strings.IndexByte(`("'`, content[start]) >= 0 {
			start++
		}
		end := strings.IndexAny(content[start:], `)"'`)
		if end < 0 {
			end = len(content) - start
		}
		l := &WordList{Inner: Span{start, start + end}}
		for at := start; at < start+end; {
			rest := content[at : start+end]
			trimmed := strings.TrimLeft(rest, " \t\n")
			at += len(rest) - len(trimmed)
			n := strings.IndexAny(trimmed+" ", " \t\n")
			if n == 0 || trimmed == "" {
				break
			}
			l.Words = append(l.Words, Word{trimmed[:n], Span{at, at + n}})
			at += n
		}
		return new(Edits).File(File{Content: content}, "file."), l
	}
	for in, want := range map[string]string{
		"A=(x_tables nf_nat nf_conntrack)":        "A=(x_tables)",
		"A=(nf_nat nf_conntrack x_tables)":        "A=(x_tables)",
		"A=( nf_nat  x_tables\tnf_conntrack  y )": "A=( x_tables  y )",
		"A=(\n  x_tables\n  nf_nat\n)":            "A=(\n  x_tables\n\n)",
		"A=(nf_conntrack)":                        "A=()",
		`A="nf_conntrack_ftp nf_nat_ftp"`:         `A=""`,
		"A=(x_tables)":                            "A=(x_tables)",
	} {
		w, l := list(in)
		dropWords(w, l, IsConntrackModule)
		if got := w.Edited(); got != want {
			t.Errorf("drop from %q: got %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"A=(x_tables)":                     "A=(x_tables nf_nat nf_conntrack)",
		"A=(x_tables nf_conntrack)":        "A=(x_tables nf_nat nf_conntrack)",
		"A=(x_tables nf_nat)":              "A=(x_tables nf_nat nf_conntrack)",
		"A=()":                             "A=(nf_nat nf_conntrack)",
		"A=(x_tables nf_nat nf_conntrack)": "A=(x_tables nf_nat nf_conntrack)",
		`A=""`:                             `A="nf_nat nf_conntrack"`,
		"A=x":                              `A="x nf_nat nf_conntrack"`,
		"A=":                               `A="nf_nat nf_conntrack"`,
	} {
		w, l := list(in)
		addWords(w, l, arrayWords)
		if got := w.Edited(); got != want {
			t.Errorf("add to %q: got %q, want %q", in, got, want)
		}
	}
}
