package apply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// hanging are rules whose command never ends, and has children that do not either.
type hanging struct {
	fakeRules
	runner  run.Runner
	command string
}

func (h hanging) Commit(ctx context.Context, _ host.Family, _ host.Backend, _ []change.Section) error {
	_, err := h.runner.Run(ctx, run.Cmd{Path: h.command, Stdin: "*raw\n"})
	return err
}

// TestCommandHangs: a command that does not end is ended, said to be, and all is
// taken back.
func TestCommandHangs(t *testing.T) {
	command := filepath.Join(t.TempDir(), "iptables-restore")
	if err := os.WriteFile(command, []byte("#!/bin/sh\ntrap '' TERM INT HUP\nsleep 3600 & sleep 3600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	w := worlds()["notrack"]
	f := w.make()
	env := Env{Host: f.host(), Dir: filepath.Join(t.TempDir(), "state"), LockPath: filepath.Join(t.TempDir(), "lock"), Command: "ctplan test"}
	r := &holder{limit: 300 * time.Millisecond}
	env.Host.Rules, env.Host.Hold = hanging{fakeRules{f}, r, command}, r.hold
	steps := append([]change.Step{sysctlStep("net.x", "1", "2")}, w.steps...)
	f.sysctls["net.x"] = "1"
	before := f.String()
	begun := time.Now()
	result, err := Run(t.Context(), env, steps, Options{})
	var back *RolledBackError
	if !errors.As(err, &back) || !strings.Contains(err.Error(), "iptables-restore had not ended after 300ms, and was ended") || result.Outcome != journal.WasUndone {
		t.Errorf("%q: %v", result.Outcome, err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if now := f.String(); now != before {
		t.Errorf("the host is not as it was:\n%s\nwas:\n%s", now, before)
	}
}
