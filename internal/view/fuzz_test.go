package view

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/ctplan/ctplan/planner"
)

var sgr = regexp.MustCompile(`\x1b\[(0|1|2|31|32|33|36)m`)

func stripSGR(s string) string { return sgr.ReplaceAllString(s, "") }

var seeds = []string{
	"", "plain", nasty, "`", "````", "```diff\n", "\x1b]0;t\a", "\u2028</summary>", " ` ", "a\tb\t",
	"@a", "www.x", "-->", "\xc2", "\\", "\\`", "&lt;", "&#64;x", "1. a", "# h", "- x", "> q", "---", "    code",
}

// FuzzText holds that no byte of a plan controls the terminal.
func FuzzText(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range []planner.Plan{hostilePlan(s), hostileBlocked(s)} {
			for _, v := range []Verb{Plan, Drift} {
				var b bytes.Buffer
				if err := Text(&b, p, Options{Verb: v, Color: true, Width: len(s) % 100}); err != nil {
					t.Fatal(err)
				}
				safe(t, stripSGR(b.String()))
				if err := JSON(&b, p, Options{Verb: v}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// safe fails on any character but printable ones and newlines.
func safe(t *testing.T, s string) {
	t.Helper()
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd") || r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q at byte %d of\n%q", r, i, s)
		}
	}
}

// FuzzJSON holds that JSON is JSON, prints safely, and carries UTF-8 as it was.
func FuzzJSON(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var b bytes.Buffer
		if err := JSON(&b, hostileBlocked(s), Options{}); err != nil {
			t.Fatal(err)
		}
		safe(t, b.String())
		var got planObject
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); utf8.ValidString(s) && got.Blocks[0].Why != want {
			t.Fatalf("got %q, want %q", got.Blocks[0].Why, want)
		}
	})
}

// FuzzMarkdown holds that what a plan carries stays where it was put: with
// code blocks and code spans taken out as a markdown parser would, only our
// own tags and structure are left, whatever the plan says.
func FuzzMarkdown(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range []planner.Plan{hostilePlan(s), hostileBlocked(s)} {
			var b bytes.Buffer
			if err := FleetMarkdown(&b, []planner.Plan{p, p}, Options{}); err != nil {
				t.Fatal(err)
			}
			safe(t, b.String())
			outside(t, b.String())
		}
	})
}

var (
	ownTags   = regexp.MustCompile(`</?details>|</?summary>|</?code>`)
	codeSpan  = regexp.MustCompile("`+")
	unescaped = regexp.MustCompile("(^|[^\\\\])((\\\\\\\\)*)[`<\\[\\]@]|://|www\\.")
)

// outside reads markdown line by line: fenced blocks by the rules of
// CommonMark, then code spans, and checks what remains.
func outside(t *testing.T, md string) {
	t.Helper()
	fence, details := "", 0
	for _, line := range strings.Split(md, "\n") {
		bare := strings.TrimLeft(line, " ")
		ticks := bare[:len(bare)-len(strings.TrimLeft(bare, "`"))]
		if fence != "" {
			// A fence that closes may stand behind up to three spaces.
			if len(line)-len(bare) <= 3 && len(ticks) >= len(fence) && strings.TrimSpace(bare[len(ticks):]) == "" {
				fence = ""
			}
			continue
		}
		if len(ticks) >= 3 && line == ticks+"diff" {
			fence = ticks
			continue
		}
		if strings.HasPrefix(line, "<details><summary>") {
			details++
		}
		if line == "</details>" {
			details--
		}
		if strings.HasPrefix(line, "<details>") {
			line = ownTags.ReplaceAllString(line, "")
			if strings.ContainsAny(line, "<>@") {
				t.Fatalf("html broke out: %q", line)
			}
			continue
		}
		if line == "</details>" {
			continue
		}
		rest := spans(line)
		if m := unescaped.FindString(strings.ReplaceAll(strings.TrimPrefix(rest, "> "), "**", "")); m != "" {
			t.Fatalf("%q broke out of %q", m, line)
		}
	}
	if fence != "" || details != 0 {
		t.Fatalf("a fence or <details> is left open in\n%s", md)
	}
}

// spans takes code spans out: a run of backticks up to the next run of the
// same length; a backslash before a backtick outside of a span escapes it.
func spans(line string) string {
	var out strings.Builder
	for i := 0; i < len(line); {
		switch {
		case line[i] == '\\' && i+1 < len(line):
			out.WriteString(line[i : i+2])
			i += 2
		case line[i] == '`':
			open := codeSpan.FindString(line[i:])
			end := -1
			for _, m := range codeSpan.FindAllStringIndex(line[i+len(open):], -1) {
				if m[1]-m[0] == len(open) {
					end = i + len(open) + m[1]
					break
				}
			}
			if end < 0 {
				out.WriteString(open)
				i += len(open)
				continue
			}
			i = end
		default:
			out.WriteByte(line[i])
			i++
		}
	}
	return out.String()
}
