package trace_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/providers/trace"
)

// Who ran a command by sudo, from a log of Debian.
func ExampleRead() {
	root, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(root)
	if err := os.MkdirAll(filepath.Join(root, "var/log"), 0o755); err != nil {
		panic(err)
	}
	log := "Mar  3 02:14:07 nat-1 sudo:      ada : TTY=pts/0 ; PWD=/home/ada ; USER=root ; COMMAND=/sbin/sysctl -w net.netfilter.nf_conntrack_max=65536\n"
	if err := os.WriteFile(filepath.Join(root, "var/log/auth.log"), []byte(log), 0o600); err != nil {
		panic(err)
	}
	e := trace.Read(context.Background(), trace.Query{Root: root, Runner: nothing{}, Now: time.Date(2026, 3, 3, 3, 0, 0, 0, time.UTC)})
	for _, c := range e.Commands {
		fmt.Println(c.Where, c.Text)
	}
	// Output:
	// /var/log/auth.log:1 sudo: ada : TTY=pts/0 ; PWD=/home/ada ; USER=root ; COMMAND=/sbin/sysctl -w net.netfilter.nf_conntrack_max=65536
}

// nothing is a host without the commands that are asked.
type nothing struct{}

func (nothing) Run(context.Context, run.Cmd) ([]byte, error) { return nil, errors.New("not found") }
