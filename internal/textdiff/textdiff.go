// Package textdiff compares texts line by line and prints unified diffs.
//
// It owns the format: hunks as diff -u and git print them, which patch(1)
// takes. It promises that a hunk list, applied to the old text, gives the new
// one byte for byte, whatever the bytes are, and that equal inputs give equal
// diffs. It knows nothing of files, terminals or colours, and it does not
// sanitise: whoever shows a diff does.
package textdiff

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sergi/go-diff/diffmatchpatch"
)

// Op says what a line of a hunk is; its value is the mark in column one.
type Op byte

// The kinds of line.
const (
	Equal  Op = ' '
	Delete Op = '-'
	Insert Op = '+'
)

// Line is one line of a hunk, as it was given.
type Line struct {
	Op   Op
	Text string
}

// Hunk is a run of changes with the lines around them. Starts count from 1;
// where a side has no lines, its start is the line before, so 0 at the top.
type Hunk struct {
	OldStart, OldLines int
	NewStart, NewLines int
	Lines              []Line
}

// Header is the hunk's "@@ -1,3 +1,4 @@" without a newline.
func (h Hunk) Header() string {
	return "@@ -" + span(h.OldStart, h.OldLines) + " +" + span(h.NewStart, h.NewLines) + " @@"
}

// span leaves out a count of one, as diff does.
func span(start, lines int) string {
	if lines == 1 {
		return fmt.Sprint(start)
	}
	return fmt.Sprintf("%d,%d", start, lines)
}

// Unified returns the unified diff from old to new with context lines around
// each change (all lines if context is negative), or "" where the texts are
// equal. The names go into the header as they are.
func Unified(oldName, newName, old, new string, context int) string {
	hunks := Lines(Split(old), Split(new), context)
	if len(hunks) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "--- %s\n+++ %s\n", oldName, newName)
	for _, h := range hunks {
		b.WriteString(h.Header() + "\n")
		for _, l := range h.Lines {
			b.WriteByte(byte(l.Op))
			b.WriteString(l.Text)
			if !strings.HasSuffix(l.Text, "\n") {
				b.WriteString("\n" + NoNewline + "\n")
			}
		}
	}
	return b.String()
}

// NoNewline is the line that follows a last line without a newline.
const NoNewline = `\ No newline at end of file`

// Split cuts a text into lines that keep their newline. Only the last may
// lack one; an empty text has no lines.
func Split(text string) []string {
	lines := strings.SplitAfter(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// Lines compares two lists of lines and returns the hunks between them, with
// context equal lines around each change; a negative context keeps them all.
// Lines are equal when their bytes are, a newline included.
func Lines(old, new []string, context int) []Hunk {
	return hunks(script(old, new), context)
}

// script returns every line of both sides in order, each with what happens to
// it; of a changed region the deleted lines come first.
func script(old, new []string) []Line {
	prefix := 0
	for prefix < len(old) && prefix < len(new) && old[prefix] == new[prefix] {
		prefix++
	}
	suffix := 0
	for suffix < len(old)-prefix && suffix < len(new)-prefix && old[len(old)-1-suffix] == new[len(new)-1-suffix] {
		suffix++
	}
	s := make([]Line, 0, max(len(old), len(new)))
	emit := func(op Op, lines []string) {
		for _, l := range lines {
			s = append(s, Line{op, l})
		}
	}
	emit(Equal, old[:prefix])
	a, b := old[prefix:len(old)-suffix], new[prefix:len(new)-suffix]
	i, j := 0, 0
	for _, m := range match(a, b) {
		emit(Delete, a[i:m.old])
		emit(Insert, b[j:m.new])
		emit(Equal, a[m.old:m.old+1])
		i, j = m.old+1, m.new+1
	}
	emit(Delete, a[i:])
	emit(Insert, b[j:])
	emit(Equal, old[len(old)-suffix:])
	return s
}

// pair is a line of the old side that stays as a line of the new one.
type pair struct{ old, new int }

// match finds the lines that stay. Lines that stand on one side only cannot,
// so they are left out first: a text rewritten from top to bottom then costs
// nothing, where the algorithm would be quadratic.
func match(a, b []string) []pair {
	// Each distinct line of the old side becomes one rune: go-diff compares
	// runes, and hands them back as a string, which holds no surrogates.
	runes := make(map[string]rune)
	next := rune(1)
	onBoth := make(map[string]bool)
	for _, l := range a {
		onBoth[l] = false
	}
	for _, l := range b {
		if _, ok := onBoth[l]; ok {
			onBoth[l] = true
		}
	}
	intern := func(lines []string) (seq []rune, at []int) {
		for i, l := range lines {
			if !onBoth[l] {
				continue
			}
			r, ok := runes[l]
			if !ok {
				if next > utf8.MaxRune {
					// Past a million different lines the rest counts as changed.
					continue
				}
				r = next
				runes[l] = r
				if next++; next == 0xD800 {
					next = 0xE000
				}
			}
			seq, at = append(seq, r), append(at, i)
		}
		return seq, at
	}
	seqA, atA := intern(a)
	seqB, atB := intern(b)

	dmp := diffmatchpatch.New()
	dmp.DiffTimeout = 0 // a deadline would make the diff depend on the machine's load
	var pairs []pair
	i, j := 0, 0
	for _, d := range dmp.DiffMainRunes(seqA, seqB, false) {
		n := utf8.RuneCountInString(d.Text)
		switch d.Type {
		case diffmatchpatch.DiffDelete:
			i += n
		case diffmatchpatch.DiffInsert:
			j += n
		case diffmatchpatch.DiffEqual:
			for range n {
				pairs = append(pairs, pair{atA[i], atB[j]})
				i, j = i+1, j+1
			}
		}
	}
	return pairs
}

// hunks cuts a script into hunks. Changes that have at most twice the context
// between them share one.
func hunks(s []Line, context int) []Hunk {
	if context < 0 || context > len(s) {
		context = len(s)
	}
	var out []Hunk
	oldLine, newLine := 0, 0 // lines of each side before s[done]
	done := 0
	for i := 0; i < len(s); {
		if s[i].Op == Equal {
			i++
			continue
		}
		start := max(i-context, done)
		end, equal := i, 0 // end is behind the last change that belongs to the hunk
		for k := i; k < len(s) && equal <= 2*context; k++ {
			if s[k].Op == Equal {
				equal++
				continue
			}
			end, equal = k+1, 0
		}
		stop := min(end+context, len(s))

		// Lines between hunks are equal, so they count on both sides.
		oldLine, newLine = oldLine+start-done, newLine+start-done
		h := Hunk{Lines: s[start:stop:stop]}
		for _, l := range h.Lines {
			if l.Op != Insert {
				h.OldLines++
			}
			if l.Op != Delete {
				h.NewLines++
			}
		}
		h.OldStart, h.NewStart = oldLine, newLine
		if h.OldLines > 0 {
			h.OldStart++
		}
		if h.NewLines > 0 {
			h.NewStart++
		}
		out = append(out, h)
		oldLine, newLine = oldLine+h.OldLines, newLine+h.NewLines
		done, i = stop, stop
	}
	return out
}
