// Package pages reads the documentation, so that tests can do what it says.
// Tests alone import it. CONTRIBUTING.md says what the words of a block mean.
package pages

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// VM is the host of console blocks that want a whole machine: kernel 6.1 with
// its modules, as vmtest boots it.
const VM = "vm"

// A Block is a code block of a page.
type Block struct {
	Language string
	Word     string // a host, or the name of a file
	NotRun   string // why it is not run
	Text     string // what stands in it, whole lines
}

var fence = regexp.MustCompile("(?ms)^```([^`\n]+)\n(.*?)^```$")

func blockOf(match []string) Block {
	b := Block{Text: match[2]}
	var rest string
	b.Language, rest, _ = strings.Cut(match[1], " ")
	if why, ok := strings.CutPrefix(rest, "not run: "); ok {
		b.NotRun = why
	} else {
		b.Word = rest
	}
	return b
}

// All are README.md and everything under docs, by their path below root.
func All(t testing.TB, root string) []string {
	t.Helper()
	found := []string{"README.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			path, err = filepath.Rel(root, path)
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Read is the text of a page.
func Read(t testing.TB, root, page string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Blocks are the code blocks of a page, in order.
func Blocks(content string) (blocks []Block) {
	for _, match := range fence.FindAllStringSubmatch(content, -1) {
		blocks = append(blocks, blockOf(match))
	}
	return blocks
}

// Rewrite returns the page with what become says in place of each block's text.
func Rewrite(content string, become func(Block) string) string {
	return fence.ReplaceAllStringFunc(content, func(text string) string {
		match := fence.FindStringSubmatch(text)
		return "```" + match[1] + "\n" + become(blockOf(match)) + "```"
	})
}

// Prose is a page without its code blocks.
func Prose(content string) string { return fence.ReplaceAllString(content, "") }

// A Step is a command of a console block and what is shown below it.
type Step struct{ Command, Shown string }

// Steps are the commands of a console block: lines that begin with "$ ", with
// further ones where a backslash ends them.
func Steps(text string) (steps []Step) {
	for step := range strings.SplitSeq(strings.TrimPrefix(text, "$ "), "\n$ ") {
		command, shown, _ := strings.Cut(strings.TrimSuffix(step, "\n"), "\n")
		for strings.HasSuffix(command, `\`) {
			more, rest, _ := strings.Cut(shown, "\n")
			command, shown = command+"\n"+more, rest
		}
		steps = append(steps, Step{command, shown})
	}
	return steps
}
