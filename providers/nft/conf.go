package nft

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// maxConfs bounds how many files are followed.
const maxConfs = 256

// ConfPaths lists the rules files of nft that exist, seen from root: mains, those
// that they include, and ctplan's own.
func ConfPaths(root string, mains []string) ([]string, error) {
	var list []string
	queue := append(slices.Clone(mains), nftconf.OwnPath(mains))
	for len(queue) > 0 && len(list) < maxConfs {
		name := queue[0]
		queue = queue[1:]
		if slices.Contains(list, name) || !hostfile.Exists(root, name) {
			continue
		}
		list = append(list, name)
		f, err := hostfile.Read(root, name)
		if err != nil {
			return list, err
		}
		for _, i := range nftconf.Parse(f).Includes {
			queue = append(queue, matches(root, i.Path)...)
		}
	}
	return list, nil
}

// matches are the files that an include names: it may be a pattern.
func matches(root, pattern string) []string {
	if !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}
	}
	found, err := filepath.Glob(root + pattern)
	if err != nil {
		return nil
	}
	for i := range found {
		found[i] = strings.TrimPrefix(found[i], root)
	}
	return slices.DeleteFunc(found, func(f string) bool { return !nftconf.Matches(pattern, f) })
}

// unitFolders are where units are looked for, the first first (systemd.unit(5)).
var unitFolders = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// Mains are the files that nftables.service loads, in order, seen from root: what
// its unit says, with what is dropped in; without a unit, those that Debian's and
// the Red Hat family's load, where they exist. A command of the unit that loads
// none in a way that is known stands for itself.
func Mains(root string) []string {
	var starts []string
	found := false
	for _, folder := range unitFolders {
		if unit := path.Join(folder, "nftables.service"); !found && hostfile.Exists(root, unit) {
			found = true
			starts = execStarts(root, unit, nil)
		}
	}
	if !found {
		return slices.DeleteFunc(slices.Clone(nftconf.Defaults), func(p string) bool { return !hostfile.Exists(root, p) })
	}
	folders := slices.Clone(unitFolders)
	for i := range folders {
		folders[i] = path.Join(folders[i], "nftables.service.d")
	}
	dropIns, _ := hostfile.Confs(root, folders)
	for _, c := range dropIns {
		starts = execStarts(root, c.Path, starts)
	}
	mains := []string{}
	for _, s := range starts {
		mains = append(mains, loads(s)...)
	}
	return mains
}

// execStarts adds the ExecStart= lines of a unit's file; an empty one takes back
// those before it (systemd.service(5)).
func execStarts(root, name string, list []string) []string {
	f, err := hostfile.Read(root, name)
	if err != nil {
		return append(list, name)
	}
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(f.Content, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case section != "[Service]" || !ok || strings.TrimSpace(key) != "ExecStart":
		case strings.TrimSpace(value) == "":
			list = nil
		default:
			list = append(list, strings.TrimSpace(value))
		}
	}
	return list
}

// loads are the files that a command loads.
func loads(command string) (files []string) {
	words := strings.Fields(strings.TrimLeft(command, "-@:+!"))
	if len(words) == 0 || path.Base(words[0]) != "nft" {
		return []string{command}
	}
	for i, w := range words[1:] {
		name, long := strings.CutPrefix(w, "--file=")
		switch {
		case long:
		case (w == "-f" || w == "--file") && i+2 < len(words):
			name = words[i+2]
		default:
			continue
		}
		if name = strings.Trim(name, `"'`); !path.IsAbs(name) {
			return []string{command}
		}
		files = append(files, path.Clean(name))
	}
	if len(files) == 0 {
		return []string{command}
	}
	return files
}
