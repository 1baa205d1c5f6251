package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
)

// What legacy iptables commands lock against each other (iptables' xshared.c):
// since 1.6.0 the file, before that an abstract socket of the network namespace.
const (
	lockPath   = "/run/xtables.lock"
	lockSocket = "@xtables"
)

// lockPause is how long lockOut sleeps between two tries.
const lockPause = 50 * time.Millisecond

// lockOut keeps other iptables commands out while a restore works that takes
// no lock by itself. It takes both locks, whichever the others look for, and
// waits for them as long as a restore would. Its error is a *LockedError.
func (t Tools) lockOut(ctx context.Context) (release func(), err error) {
	deadline := time.Now().Add(t.wait())
	// As iptables opens it, and never through a link that somebody laid.
	fd, err := unix.Open(lockPath, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("taking the xtables lock %s: %w", lockPath, err)
	}
	file := os.NewFile(uintptr(fd), lockPath)
	err = t.await(ctx, deadline, lockPath, func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		file.Close()
		return nil, err
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("taking the xtables lock %s: %w", lockSocket, err)
	}
	err = t.await(ctx, deadline, lockSocket, func() error { return unix.Bind(socket, &unix.SockaddrUnix{Name: lockSocket}) })
	if err != nil {
		unix.Close(socket)
		file.Close()
		return nil, err
	}
	return func() {
		unix.Close(socket)
		file.Close()
	}, nil
}

// await tries to take one lock until the deadline.
func (t Tools) await(ctx context.Context, deadline time.Time, name string, take func() error) error {
	for {
		err := take()
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("taking the xtables lock %s: %w", name, err)
		}
		if time.Now().After(deadline) {
			return &LockedError{Path: name, Waited: t.wait(), Holder: lockHolder(name)}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the xtables lock %s: %w", name, ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

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
