package vmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctplan/ctplan/internal/vmlab"
)

// built is the binary under test; TestMain fills it in.
var built string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getenv(vmlab.Enable) != "1" {
			return m.Run() // which skips
		}
		dir, err := os.MkdirTemp("", "ctplan-vmtest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "ctplan")
		if err := vmlab.Build(context.Background(), "github.com/ctplan/ctplan/cmd/ctplan", built); err != nil {
			fmt.Fprintf(os.Stderr, "building ctplan: %v\n", err)
			return 1
		}
		return m.Run()
	}())
}

func open(t testing.TB) *vmlab.Lab {
	t.Helper()
	return vmlab.Open(t, built)
}
