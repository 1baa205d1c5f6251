package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// TestManPages formats the manual page of each command: without a warning, with
// every flag and with the text that --help prints.
func TestManPages(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		testhost.Lacks(t, "needs groff (package groff-base)")
	}
	folder := t.TempDir()
	if status := run(context.Background(), []string{"man", folder}, &env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: os.Stderr}); status != 0 {
		t.Fatalf("ctplan man exits %d", status)
	}
	root := newRoot(&env{})
	pages, err := filepath.Glob(filepath.Join(folder, "*.8"))
	if err != nil || len(pages) != len(listed(root))+1 {
		t.Fatalf("%d pages (%v) for %d commands and ctplan itself", len(pages), err, len(listed(root)))
	}
	for _, page := range pages {
		text := formatted(t, page)
		for _, name := range strings.Split(strings.TrimSuffix(filepath.Base(page), ".8"), "-")[1:] {
			c, _, err := root.Find([]string{name})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range append(strings.Split(c.Long, "\n\n"), c.Short, c.UseLine(), c.Example) {
				want = strings.TrimPrefix(want, "Exit status:")
				if !strings.Contains(words(text), words(want)) {
					t.Errorf("%s does not say %q:\n%s", filepath.Base(page), want, text)
				}
			}
			c.Flags().VisitAll(func(f *pflag.Flag) {
				if _, usage := pflag.UnquoteUsage(f); !f.Hidden && (!strings.Contains(text, "--"+f.Name) || !strings.Contains(text, usage)) {
					t.Errorf("%s does not explain --%s:\n%s", filepath.Base(page), f.Name, text)
				}
			})
		}
	}
}

// formatted is a page as a terminal shows it, in one long line a paragraph.
func formatted(t *testing.T, page string) string {
	t.Helper()
	cmd := exec.Command("groff", "-man", "-Tutf8", "-P-c", "-ww", "-rLL=1000n", page)
	var warnings strings.Builder
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	if err != nil || warnings.Len() > 0 {
		t.Errorf("%s: %v %s", filepath.Base(page), err, warnings.String())
	}
	return overstruck.ReplaceAllString(string(out), "")
}

// TestManText has whatever a help text may hold come out as it is.
func TestManText(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		testhost.Lacks(t, "needs groff (package groff-base)")
	}
	const long = ".so a request?\n'no, \"quoted\" and C:\\new --flag x^2 ~root `date`"
	page := filepath.Join(t.TempDir(), "odd.8")
	c := &cobra.Command{Use: "odd", Short: "Odd", Long: long}
	if err := os.WriteFile(page, []byte(newManPage(c).String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if text := formatted(t, page); !strings.Contains(words(text), words(long)) {
		t.Errorf("%q came out as\n%s", long, text)
	}
}

// overstruck is how a terminal of old prints bold: each letter twice.
var overstruck = regexp.MustCompile(".\b")

// words is text without its layout.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }
