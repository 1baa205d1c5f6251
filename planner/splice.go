package planner

import (
	"cmp"
	"slices"
	"strings"
)

// splice replaces a span of a file's content. An insertion has an empty span.
type splice struct {
	Span
	text string
}

// fileWork collects the edits of one file. Nothing but the spans changes.
type fileWork struct {
	file    File
	edits   []splice
	reasons []string
	sources []Pos
	prefix  string // of the address: "file." or "initscript."

	appended bool // a line has been added at the end, so the last one is ended
}

func (w *fileWork) replace(s Span, text string) {
	w.edits = append(w.edits, splice{s, text})
}

func (w *fileWork) insert(at int, text string) { w.replace(Span{at, at}, text) }

// appendLine adds a line at the end, ending the last one first if need be. A
// last line that ends in a backslash would take the new one in, so an empty
// line comes between them.
func (w *fileWork) appendLine(line string) {
	content := w.file.Content
	lead := ""
	if content != "" && !w.appended {
		if !strings.HasSuffix(content, "\n") {
			lead = "\n"
		}
		if strings.HasSuffix(strings.TrimSuffix(content, "\n"), `\`) {
			lead += "\n"
		}
	}
	w.appended = true
	w.insert(len(content), lead+line+"\n")
}

func (w *fileWork) because(reason string, source Pos) {
	if !slices.Contains(w.reasons, reason) {
		w.reasons = append(w.reasons, reason)
	}
	if source != (Pos{}) && !slices.Contains(w.sources, source) {
		w.sources = append(w.sources, source)
	}
}

// content is the file with all edits made. Edits at one place stand in the
// order in which they were asked for.
func (w *fileWork) content() string {
	edits := slices.Clone(w.edits)
	slices.SortStableFunc(edits, func(a, b splice) int { return cmp.Compare(a.Start, b.Start) })
	var b strings.Builder
	at := 0
	for _, e := range edits {
		b.WriteString(w.file.Content[at:max(at, e.Start)])
		b.WriteString(e.text)
		at = max(at, e.End)
	}
	b.WriteString(w.file.Content[at:])
	return b.String()
}

// change returns the file's change, or nil when the edits come to nothing.
func (w *fileWork) change() *FileChange {
	after := w.file
	after.Content = w.content()
	if after.Content == w.file.Content {
		return nil
	}
	action := Update
	if !w.file.Exists {
		action = Create
		after.Exists, after.Mode = true, 0o644
	}
	return &FileChange{
		M:      Meta{Address: w.prefix + w.file.Path, Action: action, Reasons: w.reasons, Sources: sortedPos(w.sources)},
		Before: w.file,
		After:  after,
	}
}

// fileSet holds the edits of all files, by path, in the order in which files
// were first edited.
type fileSet struct {
	works []*fileWork
}

func (s *fileSet) edit(f File, prefix string) *fileWork {
	for _, w := range s.works {
		if w.file.Path == f.Path {
			return w
		}
	}
	w := &fileWork{file: f, prefix: prefix}
	s.works = append(s.works, w)
	return w
}
