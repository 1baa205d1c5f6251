package view

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes a string from a host, a file or the HCL fit for a terminal: one
// line without control characters, escape sequences, characters that turn or
// hide text, or broken UTF-8. Such bytes show as \n, \t, \x1b or \u202e; all
// else, backslashes included, stays as it is. Whatever ctplan prints that it
// did not write itself goes through here.
func Clean(s string) string {
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteString(s[i : i+size])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		i += size
	}
	return b.String()
}

func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// cleanLine is Clean for a line of a file, where tabs are no surprise: they
// become spaces up to the next stop.
func cleanLine(s string) string {
	if !strings.Contains(s, "\t") {
		return Clean(s)
	}
	var b strings.Builder
	col := 0
	for i, part := range strings.Split(s, "\t") {
		if i > 0 {
			n := 8 - col%8
			b.WriteString(strings.Repeat(" ", n))
			col += n
		}
		part = Clean(part)
		b.WriteString(part)
		col += utf8.RuneCountInString(part)
	}
	return b.String()
}
