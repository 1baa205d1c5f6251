package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What the machine has once: all network namespaces share it.
var machineWide = []string{
	"/sys/module/nf_conntrack/parameters/hashsize",
	"/proc/sys/net/netfilter/nf_conntrack_max",
}

// lockMachine holds, until the test ends, the lock on what the machine has
// once, and has those values and the named ones put back. A child process does
// that when its standard input closes: at the end of the test, or when the test
// process dies in whatever way. It holds the lock too, so nobody gets in
// between.
func lockMachine(t *testing.T, more ...string) {
	t.Helper()
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "ctplan-machine.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // the child keeps the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	script := "trap '' INT TERM HUP; cat >/dev/null; status=0"
	was := map[string]string{}
	for _, path := range append(machineWide, more...) {
		value, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("reading a value to put back later: %v", err)
		}
		was[path] = string(value)
		script += fmt.Sprintf("; echo %s > %s || status=1", strings.TrimSpace(string(value)), path)
	}
	guard := exec.Command("/bin/sh", "-c", script+"; exit $status")
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	guard.ExtraFiles = []*os.File{lock}
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

// setMachine writes a value that the machine has once. The caller holds the lock.
func setMachine(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}
