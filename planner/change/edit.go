package change

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// splice replaces a span of a file's content. An insertion has an empty span.
type splice struct {
	host.Span
	text string
	line bool // a line at the end, which ends the last one first if need be
}

// FileEdit collects the edits of one file. Nothing but the spans changes.
type FileEdit struct {
	file    host.File
	edits   []splice
	reasons []string
	sources []declared.Pos
	prefix  string // of the address: "file." or "initscript."
	gone    bool   // the file is taken away
}

// Content is what the edits start from.
func (w *FileEdit) Content() string { return w.file.Content }

// Replace puts text in the place of a span.
func (w *FileEdit) Replace(s host.Span, text string) {
	w.edits = append(w.edits, splice{Span: s, text: text})
}

// Insert puts text at an offset.
func (w *FileEdit) Insert(at int, text string) { w.Replace(host.Span{Start: at, End: at}, text) }

// AppendLine adds a line at the end. It is the line without its newline.
func (w *FileEdit) AppendLine(line string) {
	end := len(w.file.Content)
	w.edits = append(w.edits, splice{host.Span{Start: end, End: end}, line + "\n", true})
}

// Remove takes the file away.
func (w *FileEdit) Remove() { w.gone = true }

// Because gives a reason for the edits, and what in the HCL asked for them.
func (w *FileEdit) Because(reason string, source declared.Pos) {
	if !slices.Contains(w.reasons, reason) {
		w.reasons = append(w.reasons, reason)
	}
	w.askedAt(source)
}

func (w *FileEdit) askedAt(source declared.Pos) {
	if source != (declared.Pos{}) && !slices.Contains(w.sources, source) {
		w.sources = append(w.sources, source)
	}
}

// Edited is the file with all edits made. Edits at one place stand in the
// order in which they were asked for.
func (w *FileEdit) Edited() string {
	edits := slices.Clone(w.edits)
	slices.SortStableFunc(edits, func(a, b splice) int { return cmp.Compare(a.Start, b.Start) })
	content := w.file.Content
	var b strings.Builder
	at, appended := 0, false
	for _, e := range edits {
		b.WriteString(content[at:max(at, e.Start)])
		if e.line && !appended {
			b.WriteString(lineEnd(content))
			appended = true
		}
		b.WriteString(e.text)
		at = max(at, e.End)
	}
	b.WriteString(content[at:])
	return b.String()
}

// lineEnd is what must come between content and a new line. A last line that
// ends in a backslash would take the new one in, so an empty line comes between
// them.
func lineEnd(content string) string {
	lead := ""
	if content != "" && !strings.HasSuffix(content, "\n") {
		lead = "\n"
	}
	if strings.HasSuffix(strings.TrimSuffix(content, "\n"), `\`) {
		lead += "\n"
	}
	return lead
}

// change returns the file's change, or nil when the edits come to nothing.
func (w *FileEdit) change() *FileChange {
	if w.gone {
		if !w.file.Exists {
			return nil
		}
		return &FileChange{
			M:      Meta{Address: w.prefix + w.file.Path, Action: Delete, Reasons: w.reasons, Sources: SortPos(w.sources)},
			Before: w.file, After: host.File{Path: w.file.Path},
		}
	}
	after := w.file
	after.Content = w.Edited()
	if after.Content == w.file.Content {
		return nil
	}
	action := Update
	if !w.file.Exists {
		action = Create
		after.Exists, after.Mode = true, 0o644
	}
	return &FileChange{
		M:      Meta{Address: w.prefix + w.file.Path, Action: action, Reasons: w.reasons, Sources: SortPos(w.sources)},
		Before: w.file,
		After:  after,
	}
}

// Edits are those of several files, by path, in the order in which the files
// were first edited.
type Edits struct {
	files []*FileEdit
}

// File collects the edits of a file, whose address begins with the prefix:
// "file." or "initscript.".
func (s *Edits) File(f host.File, prefix string) *FileEdit {
	for _, w := range s.files {
		if w.file.Path == f.Path {
			return w
		}
	}
	w := &FileEdit{file: f, prefix: prefix}
	s.files = append(s.files, w)
	return w
}

// Add takes in the edits of another stage, which come behind these where they
// are of one file.
func (s *Edits) Add(more Edits) {
	for _, m := range more.files {
		w := s.File(m.file, m.prefix)
		w.edits = append(w.edits, m.edits...)
		w.gone = w.gone || m.gone
		for _, r := range m.reasons {
			w.Because(r, declared.Pos{})
		}
		for _, p := range m.sources {
			w.askedAt(p)
		}
	}
}

// Changes are those of the files, without the ones whose edits come to nothing.
func (s *Edits) Changes() []Change {
	var out []Change
	for _, w := range s.files {
		if c := w.change(); c != nil {
			out = append(out, c)
		}
	}
	return out
}
