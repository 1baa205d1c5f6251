// Package sysctl reads and sets the kernel's connection tracking parameters,
// and reads the files from which boot sets them.
//
// It owns the language of sysctl.conf(5) and sysctl.d(5), the order in which
// boot applies the files, and the keys net.netfilter.nf_conntrack_* and
// net.nf_conntrack_max under /proc/sys. It sets no other key, and never edits
// a file: the planner splices the spans that Parse returns.
//
// It promises that Parse's spans are exact, that Parse never fails, and that
// Write sets a key by one write(2) and has read it back.
package sysctl

import (
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// folders are those of sysctl.d(5); an earlier one masks a later one.
var folders = []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"}

// Paths lists the files that set sysctls, seen from root, in the order in
// which boot applies them, so that a later one overrides: sysctl.d in the
// order of names, /etc/sysctl.conf where a link of sysctl.d leads to it (as
// on Debian), else last (as "sysctl --system" does). file is the one that
// ctplan writes, "" meaning planner.DefaultSysctlFile; it is listed even
// where it does not exist.
//
// With an error, the list has what could be listed.
func Paths(root, file string) ([]hostfile.Conf, error) {
	list, err := hostfile.Confs(root, folders)
	if file == "" || hostfile.Exists(root, etc.DefaultSysctlFile) {
		list = hostfile.Place(root, list, folders, etc.DefaultSysctlFile)
	}
	if file != "" {
		list = hostfile.Place(root, list, folders, file)
	}
	return list, err
}

// blanks are what both readers of the language take off around keys and
// values; a line of a CRLF file loses its carriage return this way.
const blanks = " \t\r\v\f"

// Parse reads the language of sysctl.conf. Comments and lines without a key
// yield nothing; of the lines without "=", only "-key" means something.
func Parse(f host.File) host.SysctlFile {
	file := host.SysctlFile{File: f}
	line, start := 0, 0
	for start < len(f.Content) {
		line++
		end := len(f.Content)
		if i := strings.IndexByte(f.Content[start:], '\n'); i >= 0 {
			end = start + i + 1
		}
		if e, ok := parseLine(f.Content[start:end]); !ok {
			if key := excluded(f.Content[start:end]); key != "" {
				file.Excluded = append(file.Excluded, host.SysctlExclusion{Key: key, Line: line})
			}
		} else {
			e.Line = line
			e.Span = host.Span{Start: start, End: end}
			e.ValueSpan.Start += start
			e.ValueSpan.End += start
			file.Entries = append(file.Entries, e)
		}
		start = end
	}
	return file
}

// parseLine reads one line; its ValueSpan counts from the line's start. An
// empty value stands right behind the "=".
func parseLine(line string) (host.SysctlEntry, bool) {
	line = strings.TrimRight(line, blanks+"\n")
	key, _, ok := strings.Cut(line, "=")
	if !ok {
		return host.SysctlEntry{}, false
	}
	e := host.SysctlEntry{Value: strings.TrimLeft(line[len(key)+1:], blanks)}
	e.ValueSpan = host.Span{Start: len(line) - len(e.Value), End: len(line)}

	key = strings.Trim(key, blanks)
	if key == "" || key[0] == '#' || key[0] == ';' {
		return host.SysctlEntry{}, false
	}
	if key[0] == '-' {
		e.IgnoreErr = true
		key = strings.TrimLeft(key[1:], blanks)
	}
	e.Key = dotted(key)
	return e, e.Key != ""
}

// excluded is the key of a line "-key".
func excluded(line string) string {
	key, ok := strings.CutPrefix(strings.Trim(line, blanks+"\n"), "-")
	if !ok || strings.Contains(key, "=") {
		return ""
	}
	return dotted(strings.Trim(key, blanks))
}

// dotted writes a key with dots. The first separator decides (sysctl.d(5)):
// after a slash, a dot is part of a name, and the other way round.
func dotted(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		key = swap.Replace(key)
	}
	return strings.TrimLeft(key, ".")
}

var swap = strings.NewReplacer(".", "/", "/", ".")
