// Package kmod knows how the kernel has connection tracking: as a module,
// built in, or not at all, with how large a hash table.
//
// It owns /proc/modules, /sys/module/nf_conntrack, the languages of
// modprobe.d(5) and modules-load.d(5), and loading and unloading one module.
// It starts no process to read, never edits a file (the planner splices the
// spans that the parsers return), and decides on no order: each call loads or
// unloads exactly the module it names.
//
// It promises that the parsers never fail and that their spans are exact, and
// that what SetHashsize, Load and Unload report as done has been read back.
package kmod

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

const (
	sysModule    = "/sys/module/nf_conntrack"
	hashsizeFile = sysModule + "/parameters/hashsize"
	procModules  = "/proc/modules"
	countFile    = "/proc/sys/net/netfilter/nf_conntrack_count"
)

// ReadConntrack reads the state of nf_conntrack, seen from root. The sizes
// are 0 where it is not loaded. With an error, the rest is as read.
func ReadConntrack(root string) (host.Conntrack, error) {
	var c host.Conntrack
	var errs []error
	kind, err := kindOf(root, "nf_conntrack")
	errs = append(errs, err)
	c.Kind = kind
	// A module has initstate from the moment when loading begins; built-in
	// code has a folder of parameters alone.
	c.Loaded = exists(root, sysModule)
	if !c.Loaded {
		// net.core.netdev_max_backlog exists in the initial namespace alone
		// (net/core/sysctl_net_core.c), whatever is loaded.
		c.InitialNetns = exists(root, "/proc/sys/net/core/netdev_max_backlog")
		return c, errors.Join(errs...)
	}
	c.InitialNetns = exists(root, "/proc/sys/net/nf_conntrack_max")
	number := func(name string) int64 {
		n, err := readNumber(root, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return n
	}
	c.Count = number(countFile)
	c.Max = number("/proc/sys/net/netfilter/nf_conntrack_max")
	c.Drops, c.EarlyDrops = readDrops(root)
	// sysfs says it exactly, but to root alone; the sysctl can be stale on
	// kernels before 5.11.
	c.Hashsize, err = readNumber(root, hashsizeFile)
	if err != nil {
		c.Hashsize = number("/proc/sys/net/netfilter/nf_conntrack_buckets")
	}
	if info, err := os.Stat(filepath.Join(root, hashsizeFile)); err == nil {
		c.HashsizeFixed = info.Mode()&0o222 == 0
	}
	return c, errors.Join(errs...)
}

// ReadCount reads how many entries this network namespace has.
func ReadCount(root string) (int64, error) { return readNumber(root, countFile) }

// readDrops reads how often the table has been full since boot: a line for each
// CPU, in hexadecimal, under a line of names (net/netfilter/nf_conntrack_standalone.c,
// ct_cpu_seq_show). Both are 0 where the kernel does not tell.
func readDrops(root string) (drops, early int64) {
	text, err := os.ReadFile(filepath.Join(root, "/proc/net/stat/nf_conntrack"))
	if err != nil {
		return 0, 0
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if names == nil {
			names = words
			continue
		}
		for i, w := range words {
			n, err := strconv.ParseUint(w, 16, 32)
			if err != nil || i >= len(names) {
				continue
			}
			switch names[i] {
			case "drop":
				drops += int64(n)
			case "early_drop":
				early += int64(n)
			}
		}
	}
	return drops, early
}

// There reports whether a module is loaded or built in. Where it is not, to ask
// the kernel for what it serves would load it, or be refused. It is not known
// where nothing says what is built in; then nothing can be loaded either.
func There(root, module string) (there, known bool) {
	if exists(root, "/sys/module/"+module) {
		return true, true
	}
	if !exists(root, procModules) || !hasTree(root) {
		return false, false
	}
	kind, err := kindOf(root, module)
	return kind == host.ConntrackBuiltin, err == nil
}

// kindOf tells what a module is to this kernel, loaded or not.
func kindOf(root, module string) (host.ConntrackKind, error) {
	if exists(root, "/sys/module/"+module) {
		if exists(root, "/sys/module/"+module+"/initstate") {
			return host.ConntrackModule, nil
		}
		return host.ConntrackBuiltin, nil
	}
	folder, err := tree(root)
	if err != nil {
		return host.ConntrackAbsent, err
	}
	for _, list := range []struct {
		file string
		kind host.ConntrackKind
	}{{"modules.builtin", host.ConntrackBuiltin}, {"modules.dep", host.ConntrackModule}} {
		text, err := os.ReadFile(filepath.Join(folder, list.file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return host.ConntrackAbsent, fmt.Errorf("looking for module %s: %w", module, err)
		}
		if listed(text, module) {
			return list.kind, nil
		}
	}
	if exists(root, procModules) && !hasTree(root) {
		return host.ConntrackModule, nil // a kernel of modules, whose files are gone: not loaded, and the next boot may
	}
	return host.ConntrackAbsent, nil
}

// tree is the folder of the running kernel's modules, whether it is there or not.
func tree(root string) (string, error) {
	release, err := os.ReadFile(filepath.Join(root, "/proc/sys/kernel/osrelease"))
	if err != nil {
		return "", fmt.Errorf("reading the kernel's release: %w", err)
	}
	return filepath.Join(root, "/lib/modules", strings.TrimSpace(string(release))), nil
}

// hasTree reports whether the running kernel's modules are listed there.
func hasTree(root string) bool {
	folder, err := tree(root)
	return err == nil && exists("", filepath.Join(folder, "modules.dep"))
}

// listed reports whether a line of modules.builtin or modules.dep is about
// the module: "…/NAME.ko", compressed or not, first on its line. The other
// names on a line of modules.dep are what it needs. File names may have "-"
// where the module's name has "_".
func listed(text []byte, module string) bool {
	for line := range bytes.Lines(text) {
		file, _, _ := bytes.Cut(bytes.TrimRight(line, "\n"), []byte(":"))
		name, _, ok := bytes.Cut(file[bytes.LastIndexByte(file, '/')+1:], []byte(".ko"))
		if ok && len(name) == len(module) && underscores(string(name)) == module {
			return true
		}
	}
	return false
}

// ReadModules reads /proc/modules; nil on a kernel without module support.
func ReadModules(root string) ([]host.Module, error) {
	text, err := os.ReadFile(filepath.Join(root, procModules))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the loaded modules: %w", err)
	}
	return ParseModules(string(text)), nil
}

// ParseModules reads the lines of /proc/modules: name, size, references, the
// modules that use it, and more (m_show in kernel/module/procfs.c). Refs is
// -1 where the kernel cannot unload modules, and By holds "[permanent]" for a
// module that it will not unload. The result is never nil.
func ParseModules(text string) []host.Module {
	modules := []host.Module{}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 3 {
			continue
		}
		m := host.Module{Name: w[0]}
		refs, err := strconv.ParseInt(w[2], 10, 64)
		if err != nil {
			refs = -1
		}
		m.Refs = refs
		if len(w) > 3 && w[3] != "-" {
			m.By = strings.FieldsFunc(w[3], func(r rune) bool { return r == ',' })
		}
		modules = append(modules, m)
	}
	return modules
}

// isModuleName holds for what can name a module, and is no option of modprobe.
func isModuleName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	return s != "" && len(s) <= 64 && s[0] != '-' && strings.Trim(s, letters) == ""
}

// underscores writes a module's name as the kernel does.
func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }

func exists(root, name string) bool {
	_, err := os.Lstat(filepath.Join(root, name))
	return err == nil
}

func readNumber(root, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", name, err)
	}
	return n, nil
}
