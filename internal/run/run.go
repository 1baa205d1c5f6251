// Package run starts the commands that ctplan cannot do without.
//
// It owns how a command is started: which folders are searched, which
// environment it sees, how its output is read and how it is stopped. It knows
// nothing of what commands mean, and never goes through a shell.
//
// It promises that a command's meaning does not depend on the caller's
// environment (only PATH is taken over, absolute folders alone), that messages
// come in English, and that a cancelled context leaves no child behind.
package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxStderr bounds what is kept of a command's standard error, in bytes.
const maxStderr = 16 << 10

// Cmd is one command to run.
type Cmd struct {
	Path  string   // a name to look up, or a path
	Args  []string // without the name of the command
	Stdin string

	// Follow, when set, may be given the beginning of the standard output
	// while the command runs, in pieces of whole lines that it must not keep.
	// Run then returns the rest alone: what was not given is never lost, and a
	// Runner may give nothing.
	Follow func(lines []byte)

	// Unprivileged runs it as nobody, without any capability, where ctplan runs
	// as root: for what should be able to read alone.
	Unprivileged bool
}

// nobody is the user and the group that own nothing (kernel.overflowuid).
const nobody = 65534

func (c Cmd) String() string { return strings.Join(append([]string{c.Path}, c.Args...), " ") }

// Runner runs a command to its end and returns what it printed on standard
// output, without what it gave to Follow. A command that ran and failed gives an *Error; one that is not
// installed gives an error that wraps exec.ErrNotFound.
type Runner interface {
	Run(ctx context.Context, c Cmd) ([]byte, error)
}

// Error is a command that ran and failed.
type Error struct {
	Path   string
	Args   []string
	Status int    // exit status; -1 when a signal ended it
	Stderr string // the first 16 KiB, as the command wrote it: not safe for a terminal
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: exit status %d", filepath.Base(e.Path), e.Status)
	if e.Status < 0 {
		s = fmt.Sprintf("%s: ended by a signal", filepath.Base(e.Path))
	}
	if msg := strings.TrimSpace(e.Stderr); msg != "" {
		s += ": " + Printable(msg)
	}
	return s
}

// Exec is the Runner that starts processes.
type Exec struct {
	// Keep, when set, stays open in every command until it ends: a lock on it
	// outlives this process if a command does.
	Keep *os.File
}

// Run implements Runner.
func (e Exec) Run(ctx context.Context, c Cmd) ([]byte, error) {
	path, err := LookPath(c.Path)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Env = []string{"PATH=" + strings.Join(searchPath(), ":"), "LC_ALL=C"}
	if c.Stdin != "" {
		cmd.Stdin = strings.NewReader(c.Stdin)
	}
	stdout, err := scratch()
	if err != nil {
		return nil, fmt.Errorf("running %s: making room for its output: %w", filepath.Base(path), err)
	}
	defer stdout.Close()
	stderr := bounded{max: maxStderr}
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	// A group of its own: Ctrl-C at the terminal reaches ctplan alone, which
	// decides whether the child may finish, and a kill reaches all children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Unprivileged && os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if e.Keep != nil {
		cmd.ExtraFiles = []*os.File{e.Keep}
	}

	var given int64
	if err = cmd.Start(); err == nil {
		stop := func() int64 { return 0 }
		if c.Follow != nil {
			stop = follow(stdout, c.Follow)
		}
		err = cmd.Wait()
		given = stop()
	}
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("running %s: %w", filepath.Base(path), ctx.Err())
	}
	out, readErr := contents(stdout, given)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, &Error{Path: path, Args: c.Args, Status: exit.ExitCode(), Stderr: string(stderr.buf)}
	}
	if err = cmp.Or(err, readErr); err != nil {
		return nil, fmt.Errorf("running %s: %w", filepath.Base(path), err)
	}
	return out, nil
}

// scratch is a file without a name. Commands write a few kilobytes at a time;
// into memory they do so without waking us for each, which a pipe would.
func scratch() (*os.File, error) {
	fd, err := unix.MemfdCreate("stdout", unix.MFD_CLOEXEC)
	if err == nil {
		return os.NewFile(uintptr(fd), "stdout"), nil
	}
	// Kernels before 3.17 have no memfd_create.
	f, err := os.CreateTemp("", "ctplan-*")
	if err == nil {
		err = os.Remove(f.Name())
	}
	return f, err
}

// contents reads a file from an offset to its end, in one piece.
func contents(f *os.File, from int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == from {
		return nil, err
	}
	out := make([]byte, info.Size()-from)
	n, err := f.ReadAt(out, from)
	return out[:n], err
}

// LookPath finds a command in PATH, and behind it in the folders where system
// tools live, which an ordinary user's PATH leaves out. A name with a slash
// is taken as it is. Not found is an error that wraps exec.ErrNotFound.
func LookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		if executable(name) {
			return name, nil
		}
		return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
	}
	for _, dir := range searchPath() {
		if p := filepath.Join(dir, name); executable(p) {
			return p, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// searchPath is PATH without relative folders, from which a privileged
// process must run nothing, and with the system's.
func searchPath() []string {
	dirs := slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(d string) bool { return !filepath.IsAbs(d) })
	for _, d := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// bounded keeps the first max bytes written to it and swallows the rest, so
// that a chatty command is neither stopped nor remembered whole.
type bounded struct {
	buf []byte
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.buf = append(b.buf, p[:min(len(p), b.max-len(b.buf))]...)
	return len(p), nil
}

// Printable makes text that others wrote safe for one line of a terminal:
// line breaks become spaces, other control and bidirectional characters "?".
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069):
			return '?'
		}
		return r
	}, s)
}
