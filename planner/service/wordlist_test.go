package service

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
)

func TestWordLists(t *testing.T) {
	list := func(content string) (*change.FileEdit, *host.WordList) {
		start := strings.IndexByte(content, '=') + 1
		if start < len(content) && strings.IndexByte(`("'`, content[start]) >= 0 {
			start++
		}
		end := strings.IndexAny(content[start:], `)"'`)
		if end < 0 {
			end = len(content) - start
		}
		l := &host.WordList{Inner: host.Span{Start: start, End: start + end}}
		for at := start; at < start+end; {
			rest := content[at : start+end]
			trimmed := strings.TrimLeft(rest, " \t\n")
			at += len(rest) - len(trimmed)
			n := strings.IndexAny(trimmed+" ", " \t\n")
			if n == 0 || trimmed == "" {
				break
			}
			l.Words = append(l.Words, host.Word{Text: trimmed[:n], Span: host.Span{Start: at, End: at + n}})
			at += n
		}
		return new(change.Edits).File(host.File{Content: content}, "file."), l
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
		dropWords(w, l, modules.IsConntrack)
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
