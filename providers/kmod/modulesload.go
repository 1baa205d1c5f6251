package kmod

import (
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// loadFolders are those of modules-load.d(5); an earlier one masks a later one.
var loadFolders = []string{"/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d", "/lib/modules-load.d"}

// etcModules is Debian's list, which a link in modules-load.d leads to.
const etcModules = "/etc/modules"

// ModulesLoadPaths lists the files that name modules for boot to load, seen
// from root, in the order of their names; /etc/modules once, as itself. file
// is the one that ctplan writes, "" meaning planner.DefaultModulesLoadFile;
// it is listed even where it does not exist. With an error, the list has what
// could be listed.
func ModulesLoadPaths(root, file string) ([]hostfile.Conf, error) {
	if file == "" {
		file = etc.DefaultModulesLoadFile
	}
	list, err := hostfile.Confs(root, loadFolders)
	if hostfile.Exists(root, etcModules) {
		list = hostfile.Place(root, list, loadFolders, etcModules)
	}
	return hostfile.Place(root, list, loadFolders, file), err
}

// ParseModulesLoad reads a list of modules, one a line, "#" and ";" beginning
// comments.
func ParseModulesLoad(f host.File) host.ModulesLoadFile {
	file := host.ModulesLoadFile{File: f}
	line, at := 0, 0
	for text := range strings.Lines(f.Content) {
		line++
		w := strings.Fields(text)
		if len(w) > 0 && w[0][0] != '#' && w[0][0] != ';' {
			file.Entries = append(file.Entries, host.ModulesLoadEntry{
				Module: underscores(w[0]),
				Params: strings.Join(w[1:], " "),
				Line:   line,
				Span:   host.Span{Start: at, End: at + len(text)},
			})
		}
		at += len(text)
	}
	return file
}
