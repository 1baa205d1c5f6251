package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/term"

	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/schema"
)

// The rules of the user interface, for every command:
//
//   - stdout carries results and nothing else: plans, JSON, formatted files.
//   - stderr carries the rest, a line at a time, as "ctplan: error: …",
//     "ctplan: warning: …", "ctplan: hint: …" or, for progress, "ctplan: …".
//     Lower case, no full stop. HCL diagnostics come with their source lines.
//   - An error says what was being done, to what, what went wrong; a hint says
//     what to do now.
//   - Whatever comes from a host, a file or an argument goes through view.Clean.
//   - Colour only on a terminal, never under NO_COLOR or TERM=dumb, unless
//     --color says otherwise.
//   - Questions only on a terminal; "yes" and nothing else is yes.

// env is all that ctplan takes from the process around it.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	stdinTerminal  bool // both ends of a prompt: stdin and stderr
	stdoutTerminal bool
	stderrTerminal bool
	width          int                        // columns of stderr; 0 without a terminal
	stdoutSize     func() (columns, rows int) // of the terminal now; nil without one
	environ        []string
	euid           int
	root           string // prefix of all host paths; "" but for tests

	color    string      // the --color flag
	changing atomic.Bool // the host is being changed: no time to leave
}

func systemEnv() *env {
	e := &env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		stdoutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
		stderrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		environ:        os.Environ(),
		euid:           os.Geteuid(),
	}
	e.stdinTerminal = term.IsTerminal(int(os.Stdin.Fd())) && e.stderrTerminal
	if e.stderrTerminal {
		if w, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
			e.width = w
		}
	}
	if e.stdoutTerminal {
		e.stdoutSize = func() (columns, rows int) {
			columns, rows, _ = term.GetSize(int(os.Stdout.Fd())) // 0 and 0 where it cannot be told
			return columns, rows
		}
	}
	return e
}

// utf8Terminal reports whether what reads the output shows characters beyond
// ASCII, by the locale (locale(7)).
func (e *env) utf8Terminal() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(e.getenv(name)); v != "" {
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

func (e *env) getenv(name string) string {
	for _, kv := range e.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// colorFor decides about colour on a stream.
func (e *env) colorFor(terminal bool) bool {
	switch e.color {
	case "always":
		return true
	case "never":
		return false
	}
	return terminal && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"
}

func (e *env) say(label, code, text string) {
	if label != "" {
		if e.colorFor(e.stderrTerminal) {
			label = "\x1b[" + code + "m" + label + "\x1b[0m"
		}
		label += ": "
	}
	fmt.Fprintf(e.stderr, "ctplan: %s%s\n", label, view.Clean(text))
}

func (e *env) errorf(format string, args ...any) { e.say("error", "31", fmt.Sprintf(format, args...)) }
func (e *env) warnf(format string, args ...any) {
	e.say("warning", "33", fmt.Sprintf(format, args...))
}
func (e *env) hintf(format string, args ...any)     { e.say("hint", "36", fmt.Sprintf(format, args...)) }
func (e *env) progressf(format string, args ...any) { e.say("", "", fmt.Sprintf(format, args...)) }

// hinted is an error with what to do about it.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// report prints an error that ends a command. Joined errors get a line each.
func (e *env) report(err error) {
	for text := range strings.SplitSeq(err.Error(), "\n") {
		if text = strings.TrimSpace(text); text != "" {
			e.errorf("%s", text)
		}
	}
	var h *hinted
	if errors.As(err, &h) {
		e.hintf("%s", h.hint)
	}
}

// diagnose prints what schema has to say and returns the error status if there
// are errors.
func (e *env) diagnose(d schema.Diagnostics) error {
	width := e.width
	if width == 0 || width > 100 {
		width = 100
	}
	if err := d.WriteText(e.stderr, width, e.colorFor(e.stderrTerminal)); err != nil {
		return err
	}
	if !d.HasErrors() {
		return nil
	}
	n := 0
	for _, entry := range d.List() {
		if entry.Severity == "error" {
			n++
		}
	}
	if n == 1 {
		e.errorf("the configuration has 1 error")
	} else {
		e.errorf("the configuration has %d errors", n)
	}
	return status(exitError)
}

// oneOf checks a flag that takes one of several words.
func oneOf(flag, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	return fmt.Errorf("--%s %q: it should be one of %s", flag, value, strings.Join(words, ", "))
}
