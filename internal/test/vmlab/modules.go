package vmlab

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// Modules lays out a root with a kernel's modules as its package installs them,
// as the running kernel's, for programs that look there and boot nothing. name is
// its release.
func (l *Lab) Modules(t testing.TB, k Kernel) (root, name string) {
	t.Helper()
	root = t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), prepareTime)
	defer cancel()
	var tree string
	err := l.cache.locked(ctx, func() (err error) {
		tree, err = l.cache.unpacked(ctx, k.bundle())
		return err
	})
	if err == nil {
		name, err = release(tree)
	}
	if err == nil {
		err = layModules(ctx, moduleFolder(tree, name), root, name)
	}
	if err != nil {
		t.Fatalf("laying out the modules of %s: %v", k, err)
	}
	return root, name
}

func layModules(ctx context.Context, from, root, release string) error {
	proc, to := filepath.Join(root, "proc/sys/kernel"), filepath.Join(root, "lib/modules", release)
	for _, dir := range []string{proc, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(proc, "osrelease"), []byte(release+"\n"), 0o644); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return command(ctx, "depmod", "-b", root, release).run()
}
