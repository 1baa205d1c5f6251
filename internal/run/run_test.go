package run_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/testhost"
)

func TestRun(t *testing.T) {
	ctx := t.Context()
	t.Setenv("CTPLAN_TEST", "leaked")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	out, err := run.Exec{}.Run(ctx, run.Cmd{Path: "sh", Args: []string{"-c", `cat; echo "$LC_ALL $CTPLAN_TEST"; ls /proc/self/fd | wc -l`}, Stdin: "in\n"})
	if err != nil || !strings.HasPrefix(string(out), "in\nC \n") {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestRunError(t *testing.T) {
	_, err := run.Exec{}.Run(t.Context(), run.Cmd{Path: "sh", Args: []string{"-c", `printf 'a\033[31mb\n' >&2; exit 3`}})
	var e *run.Error
	if !errors.As(err, &e) || e.Status != 3 || e.Stderr != "a\x1b[31mb\n" {
		t.Fatalf("got %#v", err)
	}
	if strings.Contains(e.Error(), "\x1b") {
		t.Errorf("the message carries an escape sequence: %q", e.Error())
	}
}

func TestRunBoundsStderr(t *testing.T) {
	_, err := run.Exec{}.Run(t.Context(), run.Cmd{Path: "sh", Args: []string{"-c", `head -c 1000000 /dev/zero >&2; exit 1`}})
	var e *run.Error
	if !errors.As(err, &e) || len(e.Stderr) != 16<<10 {
		t.Fatalf("kept %d bytes", len(e.Stderr))
	}
}

func TestRunNotFound(t *testing.T) {
	for _, name := range []string{"ctplan-no-such-command", "/nonexistent/command"} {
		if _, err := (run.Exec{}).Run(t.Context(), run.Cmd{Path: name}); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunSearchesSystemFolders(t *testing.T) {
	t.Setenv("PATH", ".:relative")
	if _, err := (run.Exec{}).Run(t.Context(), run.Cmd{Path: "true"}); err != nil {
		t.Error(err)
	}
}

func TestCancelKillsTheGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	// The grandchild keeps standard output open: only a kill of the group ends it.
	_, err := run.Exec{}.Run(ctx, run.Cmd{Path: "sh", Args: []string{"-c", "sleep 30 & wait"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > 800*time.Millisecond {
		t.Errorf("took %v", d)
	}
}

// BenchmarkRun reads about 1 MB that comes in pieces of 4 KiB.
func BenchmarkRun(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		out, err := run.Exec{}.Run(b.Context(), run.Cmd{Path: "seq", Args: []string{"150000"}})
		if err != nil || len(out) < 900_000 {
			b.Fatal(len(out), err)
		}
	}
}

// TestUnprivileged: a command that should only read cannot do more.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		testhost.Lacks(t, "needs root, to be something less")
	}
	out, err := run.Exec{}.Run(context.Background(), run.Cmd{Path: "sh", Args: []string{"-c", "id -u; id -g; id -G; grep CapEff /proc/self/status; touch /etc/ctplan-test 2>/dev/null || echo refused"}, Unprivileged: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := "65534\n65534\n65534\nCapEff:\t0000000000000000\nrefused\n"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
}
