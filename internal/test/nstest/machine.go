package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// What the machine has once: all network namespaces share it.
const (
	Hashsize = "/sys/module/nf_conntrack/parameters/hashsize"
	Max      = "/proc/sys/net/netfilter/nf_conntrack_max"
)

// Machine lets the test set Hashsize, Max and the other files named, which the
// machine has once. Until the test ends no other test of any package stands in
// namespaces, because ctplan would see the host change under it. Then the values
// are put back: by a child process, when its standard input closes, so that a
// test process that is killed leaves nothing behind either.
//
// It must be called before New, and not from parallel tests.
func Machine(t testing.TB, more ...string) {
	t.Helper()
	need(t)
	lock, err := room.enter(syscall.LOCK_EX)
	if err != nil {
		t.Fatalf("locking the machine's values: %v", err)
	}
	t.Cleanup(room.leave)

	script := "trap '' INT TERM HUP; cat >/dev/null; status=0"
	was := map[string]string{}
	for _, path := range append([]string{Hashsize, Max}, more...) {
		value, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("reading a value to put back later: %v", err)
		}
		was[path] = string(value)
		script += fmt.Sprintf("; echo %s > %s || status=1", strings.TrimSpace(string(value)), path)
	}
	guard := exec.Command("/bin/sh", "-c", script+"; exit $status")
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	guard.ExtraFiles = []*os.File{lock} // so it is held until all is as it was
	guard.Stderr = os.Stderr
	stdin, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := guard.Wait(); err != nil {
			t.Errorf("putting back the machine's values: %v", err)
		}
		for path, value := range was {
			if now, _ := os.ReadFile(path); string(now) != value {
				t.Errorf("%s was %q and is %q", path, value, now)
			}
		}
	})
}

// share keeps the machine's values from being set while the test runs.
func share(t testing.TB) {
	t.Helper()
	if _, err := room.enter(syscall.LOCK_SH); err != nil {
		t.Fatalf("sharing the machine's values: %v", err)
	}
	t.Cleanup(room.leave)
}

// room is this process's hold on the lock: shared by its tests, or exclusive.
var room hold

type hold struct {
	mu    sync.Mutex
	users int
	file  *os.File
}

// enter takes the lock unless this process has it already. Whoever waits holds
// the gate, so that a test which wants the room for itself is not passed by.
func (h *hold) enter(how int) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users == 0 {
		gate, err := flock("ctplan-machine.gate", syscall.LOCK_EX)
		if err != nil {
			return nil, err
		}
		defer gate.Close()
		if h.file, err = flock("ctplan-machine.lock", how); err != nil {
			return nil, err
		}
	} else if how == syscall.LOCK_EX {
		return nil, fmt.Errorf("the test has namespaces already: call Machine first")
	}
	h.users++
	return h.file, nil
}

func (h *hold) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users--; h.users == 0 {
		h.file.Close()
	}
}

func flock(name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return f, nil
}
