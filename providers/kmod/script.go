package kmod

import (
	"errors"
	"path"
	"path/filepath"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/host"
)

// scripts run at boot and are known to load modules: rc.local, and the
// folder of the Red Hat family for that.
var scripts = []string{"/etc/rc.local", "/etc/rc.d/rc.local", "/etc/sysconfig/modules/*.modules"}

// initramfsModules is what Debian puts into the initramfs to be loaded there.
const initramfsModules = "/etc/initramfs-tools/modules"

// ScriptPaths lists the scripts of boot that may load modules and exist, seen
// from root, each file once.
func ScriptPaths(root string) ([]string, error) {
	var list []string
	seen := map[string]bool{}
	var errs []error
	for _, pattern := range scripts {
		found, err := filepath.Glob(root + pattern)
		errs = append(errs, err)
		for _, f := range found {
			name := strings.TrimPrefix(f, root)
			real, err := hostfile.Real(root, name)
			if err != nil || seen[real] || !hostfile.Exists(root, name) {
				continue
			}
			seen[real] = true
			list = append(list, name)
		}
	}
	return list, errors.Join(errs...)
}

// InitramfsPaths lists the files that name modules for the initramfs to load,
// in the language of ParseModulesLoad.
func InitramfsPaths(root string) []string {
	if hostfile.Exists(root, initramfsModules) {
		return []string{initramfsModules}
	}
	return nil
}

// ParseScript finds the commands of a shell script that load modules. It does
// not parse the shell: it goes by the words modprobe and insmod, and by what
// follows on the line.
func ParseScript(f host.File) host.BootScript {
	out := host.BootScript{File: f}
	line := 0
	for text := range strings.Lines(f.Content) {
		line++
		for _, command := range commandsOf(text) {
			out.Loads = append(out.Loads, loads(command, line, strings.TrimSpace(text))...)
		}
	}
	return out
}

// commandsOf splits a line where the shell would begin another command. A
// comment ends it.
func commandsOf(line string) []string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			line = line[:i]
			break
		}
	}
	return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(";|&{}\n", r) })
}

func loads(command string, line int, text string) []host.ScriptLoad {
	var out []host.ScriptLoad
	tool := ""
	past, removes := false, false // the install command of modprobe.d; modprobe -r
	// What a substitution prints may be the module: its words count as words.
	for _, w := range strings.FieldsFunc(command, func(r rune) bool { return strings.ContainsRune(" \t\r()`", r) }) {
		w = strings.Trim(w, `"'$`)
		switch name := path.Base(w); {
		case name == "modprobe" || name == "insmod":
			tool, past = name, name == "insmod"
		case tool == "" || w == "":
		case w == "--ignore-install":
			past = true
		case w == "--remove":
			removes = true
		case strings.HasPrefix(w, "-") && !strings.HasPrefix(w, "--"):
			past = past || strings.Contains(w, "i")
			removes = removes || strings.Contains(w, "r")
		case strings.HasPrefix(w, "-"), strings.Contains(w, "="), strings.HasPrefix(w, ">"), strings.HasPrefix(w, "2>"):
		default:
			module, _, _ := strings.Cut(name, ".ko")
			out = append(out, host.ScriptLoad{Module: underscores(module), Line: line, Text: text, Past: past})
		}
	}
	if removes {
		return nil
	}
	return out
}
