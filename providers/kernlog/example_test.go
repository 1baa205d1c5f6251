package kernlog_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/providers/kernlog"
)

// What a text log says, on a host that has nothing else.
func ExampleRead() {
	root, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(root)
	if err := os.MkdirAll(filepath.Join(root, "var/log"), 0o755); err != nil {
		panic(err)
	}
	log := `Mar  3 02:10:00 nat-1 kernel: [ 100.000000] eth0: link up
Mar  3 02:14:07 nat-1 kernel: [ 347.000000] nf_conntrack: nf_conntrack: table full, dropping packet
Mar  3 02:14:09 nat-1 kernel: [ 349.000000] nf_conntrack: nf_conntrack: table full, dropping packet
`
	if err := os.WriteFile(filepath.Join(root, "var/log/kern.log"), []byte(log), 0o644); err != nil {
		panic(err)
	}
	full := kernlog.Read(context.Background(), kernlog.Options{Root: root, Runner: noJournal{}, Now: time.Date(2026, 3, 3, 3, 0, 0, 0, time.UTC)})
	fmt.Println(full.Messages, "from", full.First.Format(time.TimeOnly), "to", full.Last.Format(time.TimeOnly))
	for _, s := range full.Sources {
		fmt.Println(s.Name, s.Unread == "")
	}
	// Output:
	// 2 from 02:14:07 to 02:14:09
	// /dev/kmsg false
	// journal false
	// /var/log/messages false
	// /var/log/kern.log true
	// /var/log/syslog false
}

// noJournal is a host without journalctl.
type noJournal struct{}

func (noJournal) Run(context.Context, run.Cmd) ([]byte, error) { return nil, errors.New("not found") }
