package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/pages"
	live "github.com/ctplan/ctplan/planner/host"
)

const repository = "../../.."

// TestDocs runs what README.md and the pages under docs say: each command on a
// host of the kind that the page is about, and each piece of HCL.
func TestDocs(t *testing.T) {
	for _, page := range pages.All(t, repository) {
		t.Run(strings.TrimSuffix(page, ".md"), func(t *testing.T) {
			content := pages.Read(t, repository, page)
			blocks := pages.Blocks(content)
			if n := strings.Count("\n"+content, "\n```"); n != 2*len(blocks) {
				t.Errorf("%d lines begin or end code blocks, of which %d say in the line what they are: text, if nothing else", n, len(blocks))
			}
			for _, b := range blocks {
				if slices.Contains(machines, b.Word) {
					nstest.Machine(t, timeoutEstablished)
					break
				}
			}
			r := reader{t: t, session: map[string]*host{}, files: map[string]string{}}
			got := pages.Rewrite(content, r.follow)
			if *golden.Update {
				if err := os.WriteFile(filepath.Join(repository, page), []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			same(t, page+" does not show what commands print; go test ./internal/test/e2e -run TestDocs -update", content, got)
		})
	}
}

// reader does what one page says, from top to bottom.
type reader struct {
	t       *testing.T
	session map[string]*host  // hosts that console blocks work on
	current string            // the name of the last one
	files   map[string]string // shown so far
	seen    []string          // variables and locals of the page, for fragments
	bare    *host             // plans HCL
}

// follow does what a block says and returns the block as it should be.
func (r *reader) follow(b pages.Block) string {
	r.t.Helper()
	switch {
	case b.NotRun != "", b.Word == pages.VM:
	case b.Language == "hcl":
		r.plans(b.Text)
		if b.Word != "" {
			r.files[b.Word] = b.Text
		}
	case b.Language == "console":
		return r.console(r.host(b.Word, true), b.Text)
	case b.Language == "sh":
		r.recipe(b.Word, b.Text)
	case b.Language == "cron":
		// Five fields of time, the user, the command.
		for line := range strings.Lines(b.Text) {
			if words := strings.Fields(line); len(words) > 6 && words[0] != "#" {
				words[6] = filepath.Base(words[6]) // wherever pages have it installed
				r.recipe(b.Word, strings.Join(words[6:], " "))
			}
		}
	case slices.Contains([]string{"text", "json", "ini", "yaml"}, b.Language) && b.Word == "":
	default:
		r.t.Errorf("nobody knows what to do with a block %q", strings.TrimSpace(b.Language+" "+b.Word))
	}
	return b.Text
}

// recipe runs a script on a host of its own, which is not yet as declared: no
// command of it may fail. That something differs is no failure.
func (r *reader) recipe(name, script string) {
	r.t.Helper()
	strict := fmt.Sprintf("trap '[ $? = %d ] || exit 1' ERR\n%s\nexit 0", exitChanges, script)
	if out, err := r.host(name, false).shell(strict).CombinedOutput(); err != nil {
		r.t.Errorf("%v of\n%s\n%s", err, script, out)
	}
}

// host is a host of docHosts with the files that the page has shown; a name of
// "" is the one before. A session goes on with the host that it has.
func (r *reader) host(name string, session bool) *host {
	r.t.Helper()
	if name == "" {
		name = r.current
	}
	if name == "" {
		name = "web-1"
	}
	r.current = name
	h := r.session[name]
	if h == nil || !session {
		furnish, ok := docHosts[name]
		if !ok {
			r.t.Fatalf("there is no host %q; there are %q", name, slices.Sorted(maps.Keys(docHosts)))
		}
		h = furnish(r.t, name)
		h.belongings()
	}
	if session {
		r.session[name] = h
	}
	for file, text := range r.files {
		h.write(filepath.Join("/run/test", file), text)
	}
	if !session && len(r.files) == 0 {
		h.write("/run/test/main.hcl", webConfig)
	}
	return h
}

// console runs the commands of a block and returns the block as it should be. A
// file that is shown by cat is made from what is shown.
func (r *reader) console(h *host, text string) string {
	r.t.Helper()
	var out strings.Builder
	for _, step := range pages.Steps(text) {
		if file, ok := strings.CutPrefix(step.Command, "cat "); ok && !strings.HasPrefix(file, "/") {
			r.files[file] = step.Shown + "\n"
			h.write("/run/test/"+file, step.Shown+"\n")
		}
		// What ctplan says on the way, of time and progress, is no result.
		output, _ := h.shell("exec 2>/dev/null; " + step.Command).Output() // drift exits 2
		out.WriteString("$ " + step.Command + "\n" + string(output))
	}
	return out.String()
}

var (
	blockHead  = regexp.MustCompile(`(?m)^(conntrack|variable|locals)\b`)
	declares   = regexp.MustCompile(`(?ms)^(variable "|locals ).*?^}$`)
	hostGlobs  = regexp.MustCompile(`(?m)^\s*hosts\s*=\s*\["([^"]+)"`)
	modeOf     = regexp.MustCompile(`(?m)^\s*mode\s*=`)
	sizesOf    = regexp.MustCompile(`(?m)^\s*(max|hashsize|timeouts|reload)\s*=`)
	maxOf      = regexp.MustCompile(`(?m)^\s*max\s*=`)
	notrackOf  = regexp.MustCompile(`(?m)^\s*notrack "`)
	exitsOfHCL = []int{exitOK, exitBlocked}
)

// plans checks and plans a piece of HCL on a bare host that it is for. What is
// no whole configuration stands inside a conntrack block.
func (r *reader) plans(text string) {
	r.t.Helper()
	if r.bare == nil {
		r.bare = newHost(r.t, live.NFT, "bare-1")
	}
	whole := text
	if !blockHead.MatchString(text) {
		switch {
		case modeOf.MatchString(text):
		case sizesOf.MatchString(text):
			text += "mode = \"tuned\"\n"
			if !maxOf.MatchString(text) {
				text += "max = 262144\n"
			}
		default:
			text += "mode = \"notrack\"\n"
			if !notrackOf.MatchString(text) {
				text += "notrack \"all\" {}\n"
			}
		}
		whole = "conntrack \"fragment\" {\n" + text + "}\n"
	}
	for _, d := range r.seen {
		if name := d[:strings.IndexAny(d, "{")]; !strings.Contains(whole, name) {
			whole = d + "\n" + whole
		}
	}
	r.seen = append(r.seen, declares.FindAllString(text, -1)...)
	if !strings.Contains(whole, "conntrack ") {
		whole += "conntrack \"any\" {\n  mode = \"tuned\"\n  max  = 262144\n}\n"
	}
	r.bare.name = "bare-1"
	if globs := hostGlobs.FindStringSubmatch(whole); globs != nil {
		r.bare.name = strings.ReplaceAll(globs[1], "*", "1")
	}
	path := r.bare.config(whole)
	r.bare.ctplan(exitOK, "validate", path)
	if p := r.bare.try("plan", path); !slices.Contains(exitsOfHCL, p.status) || strings.Contains(p.stderr, "matches") {
		r.t.Errorf("plan exits %d for\n%s\n%s", p.status, whole, p.stderr)
	}
}

// TestDocsNotRun holds the list of what no test runs, so that it does not grow
// unseen.
func TestDocsNotRun(t *testing.T) {
	var list strings.Builder
	for _, page := range pages.All(t, repository) {
		for _, b := range pages.Blocks(pages.Read(t, repository, page)) {
			if b.NotRun != "" {
				first, _, _ := strings.Cut(b.Text, "\n")
				fmt.Fprintf(&list, "%s: %s (%s)\n", page, first, b.NotRun)
			}
		}
	}
	golden.Check(t, "docs-not-run.txt", []byte(list.String()))
}

var (
	inline   = regexp.MustCompile("`ctplan ([a-z]+)([^`\n]*)`")
	flagName = regexp.MustCompile(`--[a-z][a-z-]*`)
	link     = regexp.MustCompile(`\]\(([^)#\s]+)(?:#([^)\s]+))?\)`)
)

// TestDocsNames holds every command and flag that running text names against
// what there is, and every link.
func TestDocsNames(t *testing.T) {
	h := newHost(t, live.NFT, "web-1")
	help := map[string]string{}
	for _, page := range pages.All(t, repository) {
		content := pages.Read(t, repository, page)
		for _, match := range inline.FindAllStringSubmatch(content, -1) {
			name := match[1]
			if _, ok := help[name]; !ok {
				r := h.try(name, "--help")
				if r.status != exitOK {
					t.Errorf("%s: there is no ctplan %s", page, name)
				}
				help[name] = r.stdout
			}
			for _, flag := range flagName.FindAllString(match[2], -1) {
				if !strings.Contains(help[name], flag) {
					t.Errorf("%s: ctplan %s has no flag %s", page, name, flag)
				}
			}
		}
		for _, match := range link.FindAllStringSubmatch(pages.Prose(content), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			target := filepath.Join(filepath.Dir(page), match[1])
			if _, err := os.Stat(filepath.Join(repository, target)); err != nil {
				t.Errorf("%s: a link leads to %s, which is not there", page, target)
			} else if match[2] != "" && !slices.Contains(anchors(pages.Read(t, repository, target)), match[2]) {
				t.Errorf("%s: %s has no heading #%s", page, target, match[2])
			}
		}
	}
}

var heading = regexp.MustCompile(`(?m)^#+ (.*)$`)

// anchors are the names that GitHub gives to a page's headings.
func anchors(content string) (names []string) {
	for _, match := range heading.FindAllStringSubmatch(content, -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z':
				return r
			}
			return -1
		}, strings.ToLower(match[1]))
		names = append(names, name)
	}
	return names
}
