package kmod

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// maxAliases is how many aliases are taken of a tree: stock kernels have some
// two hundred.
const maxAliases = 2000

// ReadTrees reads what the kernels of this host say of the modules that need
// nf_conntrack: the one that runs, and where a newer one is installed, which the
// next boot may be into, that one. Kernels whose modules are not listed are left
// out.
func ReadTrees(root string) []host.ModuleTree {
	folder, err := tree(root)
	if err != nil {
		return nil
	}
	releases := []string{filepath.Base(folder)}
	listed, _ := filepath.Glob(filepath.Join(root, "/lib/modules/*/modules.dep"))
	newest := releases[0]
	for _, name := range listed {
		if r := filepath.Base(filepath.Dir(name)); newer(r, newest) {
			newest = r
		}
	}
	if newest != releases[0] {
		releases = append(releases, newest)
	}
	var out []host.ModuleTree
	for _, r := range releases {
		if t, ok := readTree(filepath.Join(root, "/lib/modules", r)); ok {
			t.Release = strings.ToValidUTF8(r, "\uFFFD")
			out = append(out, t)
		}
	}
	return out
}

// readTree reads one, by the files that depmod(8) makes.
func readTree(folder string) (t host.ModuleTree, ok bool) {
	deps, err := os.ReadFile(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return t, false
	}
	builtin, err := os.ReadFile(filepath.Join(folder, "modules.builtin"))
	if err == nil && listed(builtin, "nf_conntrack") {
		t.Builtin = true
	}
	tracks := map[string]bool{}
	for line := range bytes.Lines(deps) {
		if !bytes.Contains(line, []byte("/nf_conntrack.ko")) {
			continue // what a module needs is all on its line
		}
		if name := moduleOf(string(line)); isModuleName(name) {
			tracks[name] = true
			t.Tracks = append(t.Tracks, name)
		}
	}
	slices.Sort(t.Tracks)
	aliases, _ := os.ReadFile(filepath.Join(folder, "modules.alias"))
	for line := range bytes.Lines(aliases) {
		end := bytes.LastIndexByte(bytes.TrimRight(line, "\n"), ' ')
		if end < 0 || !tracks[underscores(string(bytes.TrimRight(line[end+1:], "\n")))] {
			continue
		}
		w := strings.Fields(string(line))
		if len(w) == 3 && w[0] == "alias" && len(w[1]) <= 255 && isPattern(w[1]) && len(t.Aliases) < maxAliases {
			t.Aliases = append(t.Aliases, host.ModuleAlias{Name: unbracketed(w[1]), Module: underscores(w[2])})
		}
	}
	return t, true
}

// isPattern holds for what can stand for names of modules that files name.
func isPattern(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-*?[]") == ""
}

// unbracketed writes "_" for "-", except between brackets (alias_normalize in
// shared/util.c of kmod).
func unbracketed(s string) string {
	out, inside := []byte(s), false
	for i, c := range out {
		switch {
		case c == '[', c == ']':
			inside = c == '['
		case c == '-' && !inside:
			out[i] = '_'
		}
	}
	return string(out)
}

// newer reports whether a kernel's release comes behind another, numbers by
// their values, as boot loaders sort them.
func newer(a, b string) bool {
	digits := func(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }
	for a != "" && b != "" {
		if m, n := digits(a), digits(b); m > 0 && n > 0 {
			x, y := strings.TrimLeft(a[:m], "0"), strings.TrimLeft(b[:n], "0")
			if len(x) != len(y) {
				return len(x) > len(y)
			}
			if x != y {
				return x > y
			}
			a, b = a[m:], b[n:]
			continue
		}
		if a[0] != b[0] {
			return a[0] > b[0]
		}
		a, b = a[1:], b[1:]
	}
	return a != ""
}
