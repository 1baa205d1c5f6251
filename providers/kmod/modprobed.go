package kmod

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// modprobeFolders are those of modprobe.d(5); an earlier one masks a later one.
var modprobeFolders = []string{"/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"}

// ModprobePaths lists the files that configure modprobe, seen from root, in
// the order in which it reads them. file is the one that ctplan writes, ""
// meaning planner.DefaultModprobeFile; it is listed even where it does not
// exist. With an error, the list has what could be listed.
func ModprobePaths(root, file string) ([]hostfile.Conf, error) {
	if file == "" {
		file = etc.DefaultModprobeFile
	}
	list, err := hostfile.Confs(root, modprobeFolders, ".alias")
	return hostfile.Place(root, list, modprobeFolders, file), err
}

// commands are those that modprobe obeys; other lines it ignores.
var commands = []string{"alias", "blacklist", "install", "options", "remove", "softdep", "weakdep"}

// char is one byte of a logical line, with the bytes of the file that it
// stands for: a backslash is dropped, and one before a newline joins lines.
type char struct {
	b          byte
	start, end int
}

// ParseModprobe reads the language of modprobe.d as kmod does
// (libkmod/libkmod-config.c): a "#" in the first column makes a comment of
// the whole logical line, blanks are spaces and tabs only. In the arguments
// of options, double quotes hold blanks together, as for the kernel.
func ParseModprobe(f host.File) host.ModprobeFile {
	file := host.ModprobeFile{File: f}
	line, at := 1, 0
	var chars []char // of one line after the other
	for at < len(f.Content) {
		var next int
		chars, next = logicalLine(chars[:0], f.Content, at)
		if e, ok := parseCommand(f.Content, chars); ok {
			e.Line = line
			e.Span = host.Span{Start: at, End: next}
			file.Entries = append(file.Entries, e)
		}
		line += strings.Count(f.Content[at:next], "\n")
		at = next
	}
	return file
}

// logicalLine appends to chars what stands from at to the next newline that no
// backslash precedes.
func logicalLine(chars []char, text string, at int) (_ []char, next int) {
	for i := at; i < len(text); i++ {
		switch {
		case text[i] == '\n':
			return chars, i + 1
		case text[i] != '\\':
			chars = append(chars, char{text[i], i, i + 1})
		case i+1 == len(text):
		case text[i+1] == '\n':
			i++
		default:
			chars = append(chars, char{text[i+1], i, i + 2})
			i++
		}
	}
	return chars, len(text)
}

func parseCommand(text string, chars []char) (host.ModprobeEntry, bool) {
	var e host.ModprobeEntry
	if len(chars) == 0 || chars[0].b == '#' {
		return e, false
	}
	command, chars := nextWord(chars, false)
	module, chars := nextWord(chars, false)
	if !slices.Contains(commands, command.Text) || module.Text == "" {
		return e, false
	}
	e.Command = command.Text
	e.Module = underscores(module.Text)
	e.End = module.Span.End
	for {
		var arg host.ModprobeArg
		arg, chars = nextWord(chars, e.Command == "options")
		if arg.Text == "" {
			return e, true
		}
		e.Args = append(e.Args, arg)
		e.End = arg.Span.End
	}
}

// nextWord takes the next word off a logical line; its text is without the
// backslashes. Text is empty at the end of the line.
func nextWord(chars []char, quotes bool) (host.ModprobeArg, []char) {
	blank := func(c char) bool { return c.b == ' ' || c.b == '\t' }
	start := slices.IndexFunc(chars, func(c char) bool { return !blank(c) })
	if start < 0 {
		return host.ModprobeArg{}, nil
	}
	var text []byte
	quoted := false
	end := start
	for ; end < len(chars) && (quoted || !blank(chars[end])); end++ {
		if quotes && chars[end].b == '"' {
			quoted = !quoted
		}
		text = append(text, chars[end].b)
	}
	span := host.Span{Start: chars[start].start, End: chars[end-1].end}
	return host.ModprobeArg{Text: string(text), Span: span}, chars[end:]
}
