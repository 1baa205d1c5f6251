package lock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSecondNamesHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Acquire(t.Context(), path, "ctplan apply \x1b[2Jweb.hcl", 0)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_, err = Acquire(t.Context(), path, "ctplan apply", 0)
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("second: got %v, want a *HeldError", err)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("without a timeout it waited %s", took)
	}
	if held.Holder.PID != os.Getpid() || held.Holder.Command != "ctplan apply ?[2Jweb.hcl" {
		t.Errorf("holder: got %+v", held.Holder)
	}
	if !strings.Contains(err.Error(), "--lock-timeout") {
		t.Errorf("no advice in %q", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := Acquire(t.Context(), path, "ctplan apply", 0)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	second.Release()
}

func TestWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Acquire(t.Context(), path, "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(t.Context(), path, "b", 120*time.Millisecond); !strings.Contains(err.Error(), "waited 120ms") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Acquire(ctx, path, "b", time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { first.Release() })
	second, err := Acquire(t.Context(), path, "b", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	second.Release()
}

// A command that a killed holder was just starting keeps the lock for a
// moment; that is not another ctplan.
func TestDeadHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	child := exec.Command("true")
	if err := child.Run(); err != nil {
		t.Fatal(err)
	}
	first, err := Acquire(t.Context(), path, "x", 0)
	if err != nil {
		t.Fatal(err)
	}
	writeHolder(path, Holder{PID: child.Process.Pid, Command: "x"})
	time.AfterFunc(100*time.Millisecond, func() { first.Release() })
	second, err := Acquire(t.Context(), path, "y", 0)
	if err != nil {
		t.Fatal(err)
	}
	second.Release()
}

// At no time do two hold it.
func TestExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			l, err := Acquire(t.Context(), path, "x", time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			if n := inside.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(time.Millisecond)
			inside.Add(-1)
			l.Release()
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held it at once", most.Load())
	}
}

func TestHostileLockFile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	os.WriteFile(target, []byte("precious"), 0o600)
	link := filepath.Join(dir, "link")
	os.Symlink(target, link)
	if _, err := Acquire(t.Context(), link, "x", 0); err == nil {
		t.Error("took a lock through a symbolic link")
	}
	if data, _ := os.ReadFile(target); string(data) != "precious" {
		t.Errorf("the link's target is now %q", data)
	}
	for _, text := range []string{"", "\x00\x00", `{"pid":"x"}`, strings.Repeat("x", 1<<20)} {
		path := filepath.Join(dir, "lock")
		os.WriteFile(path, []byte(text), 0o600)
		if h := readHolder(path); h != (Holder{}) {
			t.Errorf("%.20q: got %+v", text, h)
		}
	}
}
