package iptables

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/ctplan/ctplan/internal/run"
)

// What callers branch on.
var (
	ErrNotInstalled = errors.New("iptables is not installed; install the package iptables (on some systems iptables-nft)")
	ErrNotPermitted = errors.New("the kernel's rules are root's alone; run ctplan as root")
)

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
	switch {
	case failed.Status < 0:
		e.Problem = strings.Join(append(said, "it was ended by a signal"), "; ")
	case e.Problem == "":
		e.Problem = fmt.Sprintf("exit status %d", failed.Status)
	}
	return e
}
