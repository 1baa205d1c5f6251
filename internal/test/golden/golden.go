// Package golden holds what tests made against files that a person has read.
// Tests alone import it; their -update flag, Update, is that of this package.
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctplan/ctplan/internal/textdiff"
)

// Update is whether files are written anew instead of being compared with.
var Update = flag.Bool("update", false, "write the golden files anew; read the difference before you commit it")

// Check compares with testdata/name, or writes it.
func Check(t testing.TB, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *Update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; -update writes it", err)
	}
	if diff := textdiff.Unified(path, "now", string(want), string(got), 2); diff != "" {
		t.Errorf("%s differs; read it, then run with -update\n%s", path, diff)
	}
}
