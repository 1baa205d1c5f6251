package vmtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
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
		status := m.Run()
		if flag.Lookup("test.list").Value.String() != "" {
			return status
		}
		all := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == ""
		if text, ran, ok := tableText(); all || ran {
			fmt.Print(text)
			if all && !ok {
				return max(status, 1)
			}
		}
		return status
	}())
}

func open(t testing.TB) *vmlab.Lab {
	t.Helper()
	return vmlab.Open(t, built)
}
