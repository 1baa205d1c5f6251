package internal_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// TestLinks holds that what a page points at within the repository is there:
// the file, and the heading behind a #.
func TestLinks(t *testing.T) {
	checked := 0
	for name, page := range texts(t, ".md", ".yml") {
		for _, link := range links(page) {
			checked++
			if err := follow(name, link); err != nil {
				t.Error(err)
			}
		}
	}
	if checked < 20 {
		t.Errorf("%d links found in all pages; the test looks in the wrong place", checked)
	}
}

// TestPagesNamed holds that the pages that code, help, messages and other pages
// name are there.
func TestPagesNamed(t *testing.T) {
	page := regexp.MustCompile(`\bdocs/[a-z-]+\.md`)
	named := 0
	for name, text := range texts(t, ".go", ".hcl", ".md", ".yml", ".service") {
		for _, doc := range page.FindAllString(text, -1) {
			named++
			if _, err := os.Stat(filepath.Join("..", doc)); err != nil {
				t.Errorf("%s names %s, which is not there", name, doc)
			}
		}
	}
	if named < 10 {
		t.Errorf("pages are named %d times; the test looks in the wrong place", named)
	}
}

// TestLinksFinds shows that a dead link is found, and a good one is not.
func TestLinksFinds(t *testing.T) {
	page := "# A\n[one](none.md), [two](README.md#no-such-heading) and\n[three](#b--c)\n```sh\n[four](none.md)\n```\n`[five](none.md)` " +
		"![six](none.png) [seven](https://example.com/none) [eight](README.md#exit-statuses) [nine](https://github.com/ctplan/ctplan/blob/main/NONE.md)\n"
	var dead []string
	for _, link := range links(page) {
		if follow("LICENSE", link) != nil {
			dead = append(dead, link)
		}
	}
	want := []string{"none.md", "README.md#no-such-heading", "#b--c", "none.png", "https://github.com/ctplan/ctplan/blob/main/NONE.md"}
	if !slices.Equal(dead, want) {
		t.Errorf("dead are %q, want %q", dead, want)
	}
	got := anchors("# A\n## B & C, `d_e`: (f)\n## B & C, `d_e`: (f)\n```\n# not one\n```\n")
	if want := []string{"a", "b--c-d_e-f", "b--c-d_e-f-1"}; !slices.Equal(got, want) {
		t.Errorf("anchors are %q, want %q", got, want)
	}
}

// texts returns the repository's files with these endings by their path. What
// tests are held against is no text of the project.
func texts(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git"):
			return fs.SkipDir
		case d.Type().IsRegular() && slices.Contains(endings, filepath.Ext(path)):
			text, err := os.ReadFile(path)
			found[strings.TrimPrefix(path, "../")] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// links returns the targets of a page's inline links and images.
func links(page string) []string {
	target := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	code := regexp.MustCompile("`[^`]*`")
	var found []string
	for _, line := range prose(page) {
		for _, m := range target.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
			found = append(found, m[1])
		}
	}
	return found
}

// follow goes to a link of the page name, where it stays in the repository.
func follow(name, link string) error {
	path, anchor, _ := strings.Cut(link, "#")
	file := filepath.Join(filepath.Dir(name), path)
	if rest, ok := strings.CutPrefix(path, "https://"+module+"blob/main/"); ok {
		file = rest
	} else if strings.Contains(path, "://") {
		return nil
	}
	if path == "" {
		file = name
	}
	if anchor == "" {
		if _, err := os.Stat(filepath.Join("..", file)); err != nil {
			return fmt.Errorf("%s links to %s, which is not there", name, link)
		}
		return nil
	}
	page, err := os.ReadFile(filepath.Join("..", file))
	if err != nil || !slices.Contains(anchors(string(page)), anchor) {
		return fmt.Errorf("%s links to %s, and there is no such heading", name, link)
	}
	return nil
}

// anchors returns the names that GitHub gives a page's headings.
func anchors(page string) []string {
	var found []string
	seen := map[string]int{}
	for _, line := range prose(page) {
		heading := strings.TrimLeft(line, "#")
		if n := len(line) - len(heading); n < 1 || n > 6 || !strings.HasPrefix(heading, " ") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(heading))
		if n := seen[name]; n > 0 {
			found = append(found, fmt.Sprintf("%s-%d", name, n))
		} else {
			found = append(found, name)
		}
		seen[name]++
	}
	return found
}

// prose returns the lines of a page outside of its fenced code.
func prose(page string) []string {
	var lines []string
	fenced := false
	for line := range strings.Lines(page) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		} else if !fenced {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	return lines
}
