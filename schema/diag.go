package schema

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/mitchellh/go-wordwrap"
	"github.com/zclconf/go-cty/cty"
)

// Diagnostics are errors and warnings about sources and variable values, in
// the order of the files. The zero value is empty.
type Diagnostics struct {
	list  hcl.Diagnostics
	files map[string]*hcl.File
}

// Diagnostic is one error or warning, as JSON shows it. Lines and columns
// begin at 1; File is empty where the message is about no file.
type Diagnostic struct {
	Severity  string `json:"severity"` // "error" or "warning"
	Summary   string `json:"summary"`
	Detail    string `json:"detail,omitempty"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	Column    int    `json:"column,omitempty"`
	EndLine   int    `json:"end_line,omitempty"`
	EndColumn int    `json:"end_column,omitempty"` // one past the last column
}

// HasErrors reports whether there is anything worse than a warning.
func (d Diagnostics) HasErrors() bool { return d.list.HasErrors() }

// Err returns the first error and how many more there are, on one line, or
// nil. WriteText says more.
func (d Diagnostics) Err() error {
	errs := 0
	var first Diagnostic
	for _, diag := range d.List() {
		if diag.Severity != "error" {
			continue
		}
		if errs++; errs == 1 {
			first = diag
		}
	}
	if errs == 0 {
		return nil
	}
	text := first.Summary
	if first.Detail != "" {
		text += ": " + strings.ReplaceAll(first.Detail, "\n", " ")
	}
	if first.File != "" {
		text = fmt.Sprintf("%s:%d: %s", first.File, first.Line, text)
	}
	if errs > 1 {
		text += fmt.Sprintf(" (and %d more)", errs-1)
	}
	return errors.New(text)
}

// List returns the diagnostics with everything in them that could move a
// terminal's cursor or hide text made visible.
func (d Diagnostics) List() []Diagnostic {
	out := make([]Diagnostic, 0, len(d.list))
	for _, diag := range d.list {
		entry := Diagnostic{Severity: "error", Summary: visible(diag.Summary), Detail: visible(clipTo(diag.Detail, maxDetail))}
		if diag.Severity == hcl.DiagWarning {
			entry.Severity = "warning"
		}
		if r := diag.Subject; r != nil {
			entry.File = visible(r.Filename)
			entry.Line, entry.Column = r.Start.Line, r.Start.Column
			entry.EndLine, entry.EndColumn = r.End.Line, r.End.Column
		}
		out = append(out, entry)
	}
	return out
}

// maxDetail is the length in bytes of the longest detail.
const maxDetail = 4000

// maxShown is how many diagnostics WriteText shows.
const maxShown = 200

// maxSnippet is the length in bytes of the longest source line shown.
const maxSnippet = 1000

// WriteText writes the diagnostics for people: severity, file and line, the
// line itself with carets below what is meant, the values involved, and what
// to do. Text is wrapped at width columns; 0 does not wrap.
func (d Diagnostics) WriteText(w io.Writer, width int, color bool) error {
	var b bytes.Buffer
	shown := d
	shown.list = d.list[:min(len(d.list), maxShown)]
	for i, entry := range shown.List() {
		diag := d.list[i]
		label, code := "Error", "\x1b[31m"
		if entry.Severity == "warning" {
			label, code = "Warning", "\x1b[33m"
		}
		if color {
			label = code + label + "\x1b[0m"
		}
		fmt.Fprintf(&b, "%s: %s\n\n", label, entry.Summary)
		if diag.Subject != nil {
			d.writeSnippet(&b, diag, entry, color, code)
			writeValues(&b, diag)
		}
		if entry.Detail != "" {
			detail := entry.Detail
			if width > 0 {
				detail = wordwrap.WrapString(detail, uint(width))
			}
			fmt.Fprintf(&b, "%s\n\n", detail)
		}
	}
	if more := len(d.list) - maxShown; more > 0 {
		fmt.Fprintf(&b, "%d more are not shown.\n\n", more)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// writeSnippet shows the first line of the diagnostic's subject.
func (d Diagnostics) writeSnippet(b *bytes.Buffer, diag *hcl.Diagnostic, entry Diagnostic, color bool, code string) {
	fmt.Fprintf(b, "  on %s line %d", entry.File, entry.Line)
	file := d.files[diag.Subject.Filename]
	at := diag.Subject.Start.Byte
	if file == nil || at > len(file.Bytes) {
		b.WriteString("\n\n")
		return
	}
	if nav, ok := file.Nav.(interface{ ContextString(int) string }); ok {
		if context := nav.ContextString(at); context != "" {
			fmt.Fprintf(b, ", in %s", visible(context))
		}
	}
	b.WriteString(":\n")

	begin := bytes.LastIndexByte(file.Bytes[:at], '\n') + 1
	end := len(file.Bytes)
	if n := bytes.IndexByte(file.Bytes[at:], '\n'); n >= 0 {
		end = at + n
	}
	if end-begin > maxSnippet {
		fmt.Fprintf(b, "%4d: (a line of %d bytes)\n\n", entry.Line, end-begin)
		return
	}
	line := strings.TrimRight(string(file.Bytes[begin:end]), "\r")
	before := visible(string(file.Bytes[begin:at]))
	marked := string(file.Bytes[at:max(at, min(diag.Subject.End.Byte, end))])
	fmt.Fprintf(b, "%4d: %s\n      %s", entry.Line, visible(line), blank(before))
	carets := strings.Repeat("^", max(1, columns(visible(strings.TrimRight(marked, "\r")))))
	if color {
		carets = code + carets + "\x1b[0m"
	}
	fmt.Fprintf(b, "%s\n\n", carets)
}

// writeValues shows what the references in a failed expression stood for.
func writeValues(b *bytes.Buffer, diag *hcl.Diagnostic) {
	if diag.Expression == nil || diag.EvalContext == nil {
		return
	}
	var lines []string
	for _, traversal := range diag.Expression.Variables() {
		val, diags := traversal.TraverseAbs(diag.EvalContext)
		if diags.HasErrors() || !val.IsKnown() || val.IsNull() || !val.Type().IsPrimitiveType() {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s is %s", traversalText(traversal), valueText(val)))
	}
	slices.Sort(lines)
	for _, line := range slices.Compact(lines) {
		fmt.Fprintf(b, "  %s\n", visible(line))
	}
	if len(lines) > 0 {
		b.WriteByte('\n')
	}
}

// traversalText writes a reference as the source does.
func traversalText(traversal hcl.Traversal) string {
	var b strings.Builder
	for _, step := range traversal {
		switch step := step.(type) {
		case hcl.TraverseRoot:
			b.WriteString(step.Name)
		case hcl.TraverseAttr:
			b.WriteString("." + step.Name)
		case hcl.TraverseIndex:
			b.WriteString("[" + valueText(step.Key) + "]")
		}
	}
	return b.String()
}

// valueText writes a value briefly, as HCL would.
func valueText(val cty.Value) string {
	switch {
	case val.IsNull():
		return "null"
	case !val.IsKnown():
		return "not known without a host"
	case val.Type() == cty.String:
		s := val.AsString()
		if len(s) > 80 {
			s = s[:77] + "..."
		}
		return fmt.Sprintf("%q", s)
	case isHugeNumber(val) && !val.AsBigFloat().IsInf():
		return "a number of over a thousand digits"
	case val.Type() == cty.Number:
		return clip(val.AsBigFloat().Text('g', -1))
	case val.Type() == cty.Bool && val.True():
		return "true"
	case val.Type() == cty.Bool:
		return "false"
	default:
		return "a value of type " + val.Type().FriendlyName()
	}
}

// visible replaces control characters, and marks that change the direction of
// text, by a replacement character. Tabs and newlines stay.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || !hidden(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// hidden reports whether r acts on its surroundings rather than being seen.
func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

// blank is white space as wide as s.
func blank(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return r
		case unicode.Is(unicode.Mn, r):
			return -1
		}
		return ' '
	}, s)
}

func columns(s string) int {
	n := 0
	for _, r := range s {
		if !unicode.Is(unicode.Mn, r) {
			n++
		}
	}
	return n
}

// didYouMean returns " Did you mean …?" for the option closest to given, or
// for those of which it is a part ("port": local_port, remote_port), or "".
func didYouMean(given string, options []string) string {
	if len(given) > 100 {
		return ""
	}
	var wholes []string
	for _, option := range options {
		if slices.Contains(strings.Split(option, "_"), strings.TrimSuffix(strings.ToLower(given), "s")) && option != given {
			wholes = append(wholes, fmt.Sprintf("%q", option))
		}
	}
	if len(wholes) == 2 {
		return fmt.Sprintf(" Did you mean %s or %s?", wholes[0], wholes[1])
	}
	best, bestDist := "", min(max(2, len(given)/3)+1, len(given))
	for _, option := range options {
		if dist := levenshtein.Distance(strings.ToLower(given), option, nil); dist < bestDist {
			best, bestDist = option, dist
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", best)
}

// newDiagnostics orders diagnostics by file, then by place. HCL reports
// unknown names in the order of a map.
func newDiagnostics(list hcl.Diagnostics, files map[string]*hcl.File, order []string) Diagnostics {
	rank := func(d *hcl.Diagnostic) int {
		if d.Subject == nil {
			return -1
		}
		if i := slices.Index(order, d.Subject.Filename); i >= 0 {
			return i
		}
		return len(order)
	}
	start := func(d *hcl.Diagnostic) int {
		if d.Subject == nil {
			return 0
		}
		return d.Subject.Start.Byte
	}
	name := func(d *hcl.Diagnostic) string {
		if d.Subject == nil {
			return ""
		}
		return d.Subject.Filename
	}
	slices.SortStableFunc(list, func(a, b *hcl.Diagnostic) int {
		if c := rank(a) - rank(b); c != 0 {
			return c
		}
		if c := strings.Compare(name(a), name(b)); c != 0 {
			return c
		}
		return start(a) - start(b)
	})
	return Diagnostics{list: list, files: files}
}
