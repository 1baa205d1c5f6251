package iptables

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
)

// What callers branch on.
var (
	ErrNotInstalled = errors.New("iptables is not installed; install the package iptables (on some systems iptables-nft)")
	ErrNotPermitted = errors.New("the kernel's rules are root's alone; run ctplan as root")
)

// lockPath is the file that legacy iptables commands lock against each other
// (XT_LOCK_NAME in iptables' xshared.h).
const lockPath = "/run/xtables.lock"

// LockedError is a restore that waited in vain for the xtables lock.
type LockedError struct {
	Path   string
	Waited time.Duration
	Holder string // "pid 123 (name: command line)", safe to print; empty when it cannot be told
}

func (e *LockedError) Error() string {
	who := "a process that cannot be seen from here"
	if e.Holder != "" {
		who = e.Holder
	}
	return fmt.Sprintf("waited %v for the xtables lock %s, which is held by %s; try again when it has ended", e.Waited, e.Path, who)
}

// RestoreError is an input that iptables-restore refused.
type RestoreError struct {
	Command string
	Test    bool
	Line    int    // of the script, from 1; 0 when it was not told
	Text    string // that line
	Problem string // what the command said, safe to print
}

func (e *RestoreError) Error() string {
	doing := "loading rules"
	if e.Test {
		doing = "testing rules"
	}
	s := fmt.Sprintf("%s: %s refused them: %s", doing, e.Command, e.Problem)
	if e.Line > 0 {
		s += fmt.Sprintf(": line %d: %s", e.Line, run.Printable(e.Text))
	}
	return s
}

// failedLine finds the line number in "line 3 failed", "Error occurred at
// line: 3" and "COMMIT expected at line 3".
var failedLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\bline:? ([0-9]+)`) })

func newRestoreError(name, script string, test bool, failed *run.Error) *RestoreError {
	e := &RestoreError{Command: filepath.Base(name), Test: test}
	if m := failedLine().FindStringSubmatch(failed.Stderr); m != nil {
		lines := strings.Split(script, "\n")
		if n, err := strconv.Atoi(m[1]); err == nil && n >= 1 && n <= len(lines) {
			e.Line, e.Text = n, lines[n-1]
		}
	}
	var said []string
	for line := range strings.Lines(failed.Stderr) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Try `") || strings.HasPrefix(line, "Error occurred at line") {
			continue
		}
		said = append(said, run.Printable(line))
	}
	e.Problem = strings.Join(said, "; ")
	if e.Problem == "" {
		e.Problem = fmt.Sprintf("exit status %d", failed.Status)
	}
	return e
}

// lockHolder says which process holds a flock, from /proc/locks
// ("1: FLOCK  ADVISORY  WRITE pid major:minor:inode 0 EOF", numbers of the
// device in hexadecimal).
func lockHolder(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	stat := info.Sys().(*syscall.Stat_t)
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
	f, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// Waiters have "->" as their second field.
		w := strings.Fields(s.Text())
		if len(w) < 6 || w[1] != "FLOCK" || w[5] != want {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return process(pid)
		}
	}
	return ""
}

func process(pid int) string {
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	line := strings.TrimSpace(strings.ReplaceAll(string(cmdline[:min(len(cmdline), 200)]), "\x00", " "))
	return fmt.Sprintf("pid %d (%s: %s)", pid, run.Printable(strings.TrimSpace(string(comm))), run.Printable(line))
}
