package textdiff

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

func TestUnified(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"equal", "a\nb\n", "a\nb\n", ""},
		{"both empty", "", "", ""},
		{"from nothing", "", "a\n", "--- o\n+++ n\n@@ -0,0 +1 @@\n+a\n"},
		{"to nothing", "a\nb\n", "", "--- o\n+++ n\n@@ -1,2 +0,0 @@\n-a\n-b\n"},
		{
			"newline gained", "a", "a\n",
			"--- o\n+++ n\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n",
		},
		{
			"context ends without newline", "a\nb\nc", "x\nb\nc",
			"--- o\n+++ n\n@@ -1,3 +1,3 @@\n-a\n+x\n b\n c\n\\ No newline at end of file\n",
		},
		{
			"two hunks", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\nx\n3\n4\n5\n6\n7\ny\n9\n",
			"--- o\n+++ n\n@@ -1,4 +1,4 @@\n 1\n-2\n+x\n 3\n 4\n@@ -6,4 +6,4 @@\n 6\n 7\n-8\n+y\n 9\n",
		},
		{
			"hunks that touch are one", "1\n2\n3\n4\n5\n6\n7\n", "1\nx\n3\n4\n5\n6\ny\n",
			"--- o\n+++ n\n@@ -1,7 +1,7 @@\n 1\n-2\n+x\n 3\n 4\n 5\n 6\n-7\n+y\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, Unified("o", "n", tt.old, tt.new, 2)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNegativeContextKeepsAll(t *testing.T) {
	h := Lines([]string{"a", "b", "c", "d", "e"}, []string{"a", "b", "c", "d", "f"}, -1)
	if len(h) != 1 || len(h[0].Lines) != 6 {
		t.Errorf("got %+v", h)
	}
}

// TestLarge pins what makes diffs of big files instant: trimmed ends, and
// lines left out that stand on one side only.
func TestLarge(t *testing.T) {
	var old, same, other []string
	for i := range 20_000 {
		old = append(old, fmt.Sprint("line ", i))
		other = append(other, fmt.Sprint("other ", i))
	}
	same = append(same, old...)
	same[10_000] = "changed"
	start := time.Now()
	if h := Lines(old, same, 3); len(h) != 1 || len(h[0].Lines) != 8 {
		t.Errorf("one line changed: %d hunks", len(h))
	}
	if h := Lines(old, other, 3); len(h) != 1 || h[0].OldLines != 20_000 || h[0].NewLines != 20_000 {
		t.Errorf("all lines changed: %d hunks", len(h))
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

// apply applies a unified diff, strictly: every context and deleted line, and
// every start, must be exactly what the header promises.
func apply(old, diff string) (string, error) {
	if diff == "" {
		return old, nil
	}
	src := Split(old)
	var out strings.Builder
	at, outLines := 0, 0
	lines := Split(diff)
	for i := 2; i < len(lines); {
		var a, b, c, d int
		head := strings.TrimSuffix(lines[i], "\n")
		if _, err := fmt.Sscanf(head, "@@ -%d,%d +%d,%d @@", &a, &b, &c, &d); err != nil {
			b, d = 1, 1
			if _, err := fmt.Sscanf(head, "@@ -%d +%d,%d @@", &a, &c, &d); err != nil {
				d = 1
				if _, err := fmt.Sscanf(head, "@@ -%d,%d +%d @@", &a, &b, &c); err != nil {
					b = 1
					if _, err := fmt.Sscanf(head, "@@ -%d +%d @@", &a, &c); err != nil {
						return "", fmt.Errorf("header %q", head)
					}
				}
			}
		}
		i++
		if b > 0 {
			a--
		}
		if d > 0 {
			c--
		}
		if a < at {
			return "", fmt.Errorf("hunk %q goes back", head)
		}
		for ; at < a; at++ {
			out.WriteString(src[at])
			outLines++
		}
		if outLines != c {
			return "", fmt.Errorf("hunk %q: new side stands at %d", head, outLines)
		}
		for b > 0 || d > 0 {
			op, text := lines[i][0], lines[i][1:]
			i++
			if i < len(lines) && lines[i] == NoNewline+"\n" {
				text = strings.TrimSuffix(text, "\n")
				i++
			}
			if op != '+' {
				if src[at] != text {
					return "", fmt.Errorf("line %d: have %q, diff says %q", at+1, src[at], text)
				}
				at++
				b--
			}
			if op != '-' {
				out.WriteString(text)
				outLines++
				d--
			}
		}
	}
	for ; at < len(src); at++ {
		out.WriteString(src[at])
	}
	return out.String(), nil
}

func FuzzUnified(f *testing.F) {
	f.Add("a\nb\n", "a\nc\n", uint8(3))
	f.Add("", "x", uint8(0))
	f.Add("x", "", uint8(1))
	f.Add("a\na\na\nb\na", "b\na\na\n\n", uint8(0))
	f.Add("\xff\x00\r\n\\ No newline at end of file\n", "@@ -1 +1 @@\n\xff", uint8(2))
	f.Fuzz(func(t *testing.T, old, new string, context uint8) {
		diff := Unified("o", "n", old, new, int(context%6)-1)
		if (diff == "") != (old == new) {
			t.Fatalf("diff %q for %q and %q", diff, old, new)
		}
		got, err := apply(old, diff)
		if err != nil {
			t.Fatalf("%v\n%s", err, diff)
		}
		if got != new {
			t.Fatalf("applied: %q, want %q\n%s", got, new, diff)
		}
	})
}

// TestPatch gives diffs of random texts to the real patch(1), and compares
// their length with what the real diff(1) finds: ours must not be longer.
func TestPatch(t *testing.T) {
	for _, tool := range []string{"patch", "diff"} {
		if _, err := exec.LookPath(tool); err != nil {
			testhost.Lacks(t, err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		n := r.IntN(30)
		for i := range n {
			fmt.Fprintf(&b, "%c", 'a'+r.IntN(6))
			if i < n-1 || r.IntN(3) > 0 {
				b.WriteByte('\n')
			}
		}
		return b.String()
	}
	dir := t.TempDir()
	oldPath, newPath, outPath := filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(dir, "out")
	for i := range 60 {
		old, new := text(), text()
		if old == new {
			continue
		}
		for path, s := range map[string]string{oldPath: old, newPath: new} {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		diff := Unified("old", "new", old, new, 3)
		cmd := exec.Command("patch", "--quiet", "--force", "--fuzz=0", "--output="+outPath, oldPath)
		cmd.Stdin = strings.NewReader(diff)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%d: patch: %v: %s\n%s", i, err, out, diff)
		}
		got, err := os.ReadFile(outPath)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != new {
			t.Fatalf("%d: patch made %q of %q, want %q\n%s", i, got, old, new, diff)
		}
		theirs, _ := exec.Command("diff", "-d", "-U0", oldPath, newPath).Output() // exits 1 when files differ
		if ours := changed([]byte(Unified("old", "new", old, new, 0))); ours > changed(theirs) {
			t.Errorf("%d: %d changed lines where diff finds %d", i, ours, changed(theirs))
		}
	}
}

func changed(diff []byte) int {
	n := 0
	for _, l := range bytes.Split(diff, []byte("\n"))[2:] {
		if len(l) > 0 && (l[0] == '+' || l[0] == '-') {
			n++
		}
	}
	return n
}
