// Package testhost is what tests of many packages need of a host: a tree of
// files, and a word on what this machine lacks. Tests alone import it.
package testhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Tree makes a temporary folder with these files, by their path below it, and
// returns its path. A content of "-> TARGET" makes a symbolic link.
func Tree(t testing.TB, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	Lay(t, root, files)
	return root
}

// Lay writes files below root as Tree does. A file that is there is written anew.
func Lay(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Lacks ends a test that this machine cannot run, for the reason why. On a
// laptop it is skipped; under CI=true it fails, so that nothing goes untested.
func Lacks(t testing.TB, why ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}
