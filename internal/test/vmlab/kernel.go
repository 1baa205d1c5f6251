package vmlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is one of Debian's stock cloud kernels, by its series.
type Kernel string

// The kernels of bullseye, bookworm and trixie. All have conntrack as a module.
const (
	Kernel510 Kernel = "5.10"
	Kernel61  Kernel = "6.1"
	Kernel612 Kernel = "6.12"
)

// Kernels lists all, oldest first.
func Kernels() []Kernel { return []Kernel{Kernel510, Kernel61, Kernel612} }

var suites = map[Kernel]string{Kernel510: "bullseye", Kernel61: "bookworm", Kernel612: "trixie"}

func (k Kernel) bundle() bundle {
	return bundle{"linux-" + string(k), suites[k], []string{"linux-image-cloud-amd64:depends"}, false, false}
}

// release finds the one kernel in an unpacked package.
func release(tree string) (string, error) {
	found, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%s has %d kernels in boot, and one is wanted", tree, len(found))
	}
	return strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), nil
}

// moduleFolder is /lib/modules/RELEASE in a package, which trixie has in /usr.
func moduleFolder(tree, release string) string {
	for _, dir := range []string{"usr/lib/modules", "lib/modules"} {
		if name := filepath.Join(tree, dir, release); isDir(name) {
			return name
		}
	}
	return filepath.Join(tree, "lib/modules", release)
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// dependencies are the lines of modules.dep: each module's file with those
// that must be loaded before it, the last first.
type dependencies map[string][]string

// readDependencies runs depmod over a kernel's modules.
func readDependencies(ctx context.Context, folder, release string) (dependencies, error) {
	// depmod wants the release's folder under lib/modules.
	base := strings.TrimSuffix(folder, "/lib/modules/"+release)
	out, err := command(ctx, "depmod", "-n", "-b", base, release).output()
	if err != nil {
		return nil, fmt.Errorf("%w; depmod is in package kmod", err)
	}
	deps := dependencies{}
	for line := range strings.Lines(out) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || !strings.HasPrefix(file, "kernel/") {
			break // the other tables follow
		}
		deps[file] = strings.Fields(needs)
	}
	return deps, nil
}

// file finds a module's file, "" where it is built in.
func (d dependencies) file(module string) string {
	for file := range d {
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if strings.ReplaceAll(name, "-", "_") == module {
			return file
		}
	}
	return ""
}

// order lists the files of modules with what they need, as they must be loaded.
func (d dependencies) order(modules []string) []string {
	var files []string
	add := func(file string) {
		if !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	for _, module := range modules {
		file := d.file(module)
		if file == "" {
			continue
		}
		for _, need := range slices.Backward(d[file]) {
			add(need)
		}
		add(file)
	}
	return files
}

// copyModules takes the modules that a machine needs, and indexes them there.
func copyModules(ctx context.Context, from, to, release, root string) error {
	deps, err := readDependencies(ctx, from, release)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for file, needs := range deps {
		if slices.ContainsFunc(kept, func(prefix string) bool { return strings.HasPrefix(file, prefix) }) {
			wanted[file] = true
			for _, need := range needs {
				wanted[need] = true
			}
		}
	}
	for _, file := range deps.order(early) {
		wanted[file] = true
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		wanted[name] = true
	}
	for file := range wanted {
		content, err := os.ReadFile(filepath.Join(from, file))
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(file, "modules.") {
			continue
		}
		if err != nil {
			return err
		}
		name := filepath.Join(to, file)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	return command(ctx, "depmod", "-b", root, release).run()
}

// initramfs writes the first root: busybox, the modules for the disk, and the
// programs under test, which go to /run/vmlab.
func (l *Lab) initramfs(ctx context.Context, to, tree, release string, payload map[string]string) error {
	folder := moduleFolder(tree, release)
	deps, err := readDependencies(ctx, folder, release)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := cpioWriter{w: f}
	for _, dir := range []string{"bin", "dev", "disk", "modules", "payload"} {
		w.dir(dir)
	}
	busybox := filepath.Join(l.user, "bin/busybox")
	w.copy("bin/busybox", busybox)
	init, err := guest.ReadFile("guest/init")
	if err != nil {
		return err
	}
	w.file("init", init)
	for i, file := range deps.order(early) {
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		name = fmt.Sprintf("modules/%02d-%s.ko", i, name)
		switch from := filepath.Join(folder, file); filepath.Ext(file) {
		case ".ko":
			w.copy(name, from)
		case ".xz":
			content, err := command(ctx, busybox, "unxz", "-c", from).output()
			if err != nil {
				return err
			}
			w.file(name, []byte(content))
		default:
			return fmt.Errorf("module %s is compressed in a way that is not known here", file)
		}
	}
	for name, from := range payload {
		w.copy("payload/"+name, from)
	}
	if err := w.close(); err != nil {
		return fmt.Errorf("writing the initramfs: %w", err)
	}
	return f.Close()
}
