package view

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
)

// How much of one change is shown unless Options.Full asks for all of it.
const (
	context  = 3
	maxRun   = 40   // lines of one kind in a row; past that the first runHead and the last runTail
	runHead  = 20   //
	runTail  = 3    //
	maxLines = 400  // lines of one change
	maxWidth = 1000 // characters of a line
)

// mark is what stands in front of a line of a change's body.
type mark byte

// The marks: those of a diff, a hunk's header, and words of our own.
const (
	same   mark = ' '
	gone   mark = '-'
	added  mark = '+'
	header mark = '@'
	elided mark = '.'
)

// row is one line of a change's body, safe to print.
type row struct {
	mark mark
	text string
	note string // the place in the HCL that asked for it, or how a twin compares with its rule
}

// body returns the lines that show what a change does to its object; none
// where the headline has said it.
func body(c change.Change, full bool) []row {
	var rows []row
	switch c := c.(type) {
	case *change.RulesChange:
		rows = diffBody(c.Before, c.After, c.Origin, twinNotes(c))
	case *change.NFTChange:
		rows = diffBody(c.Before, c.After, c.Origin, nil)
	case *change.FileChange:
		rows = fileBody(c)
	}
	if full {
		return rows
	}
	return shorten(rows)
}

// diffBody is a diff of a table as iptables-save prints it, or nft.
func diffBody(before, after []string, origin map[string]declared.Pos, twins map[string]string) []row {
	var rows []row
	at := 0 // lines of Before that have been accounted for
	for _, h := range textdiff.Lines(before, after, context) {
		start := h.OldStart
		if h.OldLines > 0 {
			start--
		}
		rows = unchanged(rows, start-at)
		at = start + h.OldLines
		for _, l := range h.Lines {
			r := row{mark: mark(l.Op), text: Clean(l.Text)}
			if pos, ok := origin[l.Text]; ok && l.Op == textdiff.Insert {
				r.note = Clean(pos.String())
			}
			if note := twins[l.Text]; note != "" && l.Op == textdiff.Insert {
				r.note = Clean(note)
			}
			rows = append(rows, r)
		}
	}
	if len(rows) > 0 {
		rows = unchanged(rows, len(before)-at)
	}
	return rows
}

// twinNotes say of the twins of rules on state how they compare with them: of the
// first of each rule, why too.
func twinNotes(c *change.RulesChange) map[string]string {
	notes := map[string]string{}
	for _, t := range c.Twins {
		for i, line := range t.Twins {
			if notes[line] != "" {
				continue
			}
			notes[line] = t.Grade
			if i == 0 && len(t.Why) > 0 {
				notes[line] += ": " + strings.Join(t.Why, "; ")
			}
		}
	}
	return notes
}

func unchanged(rows []row, n int) []row {
	if n == 0 {
		return rows
	}
	return append(rows, row{mark: elided, text: count(n, "line") + " unchanged"})
}

// fileBody is a unified diff of a file.
func fileBody(c *change.FileChange) []row {
	var rows []row
	for _, h := range textdiff.Lines(textdiff.Split(c.Before.Content), textdiff.Split(c.After.Content), context) {
		rows = append(rows, row{mark: header, text: h.Header()})
		for _, l := range h.Lines {
			text, ended := strings.CutSuffix(l.Text, "\n")
			rows = append(rows, row{mark: mark(l.Op), text: cleanLine(text)})
			if !ended {
				rows = append(rows, row{mark: elided, text: strings.TrimPrefix(textdiff.NoNewline, `\ `)})
			}
		}
	}
	return rows
}

// shorten cuts what would drown a reader, and says what it cut.
func shorten(rows []row) []row {
	var out []row
	for i := 0; i < len(rows); {
		j := i
		for j < len(rows) && rows[j].mark == rows[i].mark {
			j++
		}
		run := rows[i:j]
		if len(run) > maxRun {
			out = append(out, run[:runHead]...)
			out = append(out, more(len(run)-runHead-runTail, run[0].mark))
			run = run[len(run)-runTail:]
		}
		out = append(out, run...)
		i = j
	}
	if len(out) > maxLines {
		out = append(out[:maxLines:maxLines], more(len(out)-maxLines, same))
	}
	for i, r := range out {
		if n := utf8.RuneCountInString(r.text); n > maxWidth {
			text := []rune(r.text)[:maxWidth]
			out[i].text = fmt.Sprintf("%s… %d more characters (--full shows all)", string(text), n-maxWidth)
		}
	}
	return out
}

func more(n int, m mark) row {
	kind := "more lines"
	switch m {
	case added:
		kind = "more lines added like these"
	case gone:
		kind = "more lines removed like these"
	}
	return row{mark: elided, text: fmt.Sprintf("%d %s (--full shows all)", n, kind)}
}

// effect is what a change does where that takes a few words, such as
// "65536 -> 524288". It is clean.
func effect(c change.Change) string {
	switch c := c.(type) {
	case *change.RulesChange:
		if c.Backend == "" {
			return ""
		}
		return "(" + Clean(string(c.Backend)) + ")"
	case *change.SysctlChange:
		if c.Before == c.After {
			return value(c.After) + ", set again"
		}
		return value(c.Before) + " -> " + value(c.After)
	case *change.HashsizeChange:
		return fmt.Sprintf("%d -> %d buckets", c.Before, c.After)
	case *change.ModuleChange:
		if c.Load {
			return "load"
		}
		return "unload"
	case *change.FileChange:
		return fileEffect(c)
	case *change.ServiceChange:
		var commands []string
		for _, words := range c.Step.Commands {
			commands = append(commands, Clean(strings.Join(words, " ")))
		}
		return strings.Join(commands, ", ")
	}
	return ""
}

func value(s string) string {
	if s == "" {
		return "(not set)"
	}
	return Clean(strings.ReplaceAll(s, "\t", " ")) // the kernel puts tabs between numbers
}

// fileEffect is everything about a file but its content.
func fileEffect(c *change.FileChange) string {
	var parts []string
	b, a := c.Before, c.After
	switch {
	case !b.Exists:
		parts = append(parts, fmt.Sprintf("new, mode %04o, owner %d:%d", a.Mode, a.UID, a.GID))
	case !a.Exists:
		parts = append(parts, "removed")
	default:
		if b.Mode != a.Mode {
			parts = append(parts, fmt.Sprintf("mode %04o -> %04o", b.Mode, a.Mode))
		}
		if b.UID != a.UID || b.GID != a.GID {
			parts = append(parts, fmt.Sprintf("owner %d:%d -> %d:%d", b.UID, b.GID, a.UID, a.GID))
		}
	}
	if b.Target != "" {
		parts = append(parts, "a link to "+Clean(b.Target))
	}
	return strings.Join(parts, ", ")
}
