// Package lock keeps two ctplans from changing one host at the same time.
//
// It owns one file, and what is written in it: who holds the lock. It never
// removes the file (a lock on a removed file is no lock) and never breaks a
// lock: the kernel frees it when its holder ends, however it ends.
//
// It promises that at most one process holds a lock, and that a process that
// does not get it learns who has it.
package lock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// Path is where the lock is on a real host.
const Path = "/run/ctplan.lock"

// poll is how often a waiting process tries again.
const poll = 50 * time.Millisecond

// maxHolder bounds what is read from a lock file, in bytes.
const maxHolder = 4 << 10

// Holder is who holds a lock, as the lock file tells it.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

// HeldError says that another process holds the lock.
type HeldError struct {
	Path   string
	Holder Holder        // the zero Holder when the file does not tell
	Waited time.Duration // how long this process waited for it
}

func (e *HeldError) Error() string {
	s := "another ctplan is at work on this host"
	if e.Holder.PID > 0 {
		s += fmt.Sprintf(": process %d (%s)", e.Holder.PID, e.Holder.Command)
	}
	s += ", which holds " + e.Path
	if e.Waited > 0 {
		return s + fmt.Sprintf("; waited %s for it", e.Waited)
	}
	return s + "; try again when it is done, or wait for it with --lock-timeout"
}

// Lock is a lock that this process holds.
type Lock struct{ f *flock.Flock }

// Acquire takes the lock at path and writes into it who took it. A lock that
// another process still holds after timeout gives a *HeldError; with timeout 0
// it tries once.
func Acquire(ctx context.Context, path, command string, timeout time.Duration) (*Lock, error) {
	// 0600, because whoever can open the file can lock it.
	f := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW), flock.SetPermissions(0o600))
	begun := time.Now()
	for {
		ok, err := f.TryLock()
		if err != nil {
			return nil, fmt.Errorf("taking the lock %s: %w", path, err)
		}
		if ok {
			break
		}
		left := timeout - time.Since(begun)
		if left <= 0 {
			h := holder(path)
			if left = lastBreath(h.PID) - time.Since(begun); left <= 0 {
				return nil, &HeldError{Path: path, Holder: h, Waited: timeout}
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock %s: %w", path, ctx.Err())
		case <-time.After(min(poll, left)):
		}
	}
	// Who holds it is a courtesy to others: a full /run must not stop the holder.
	_ = writeHolder(path, Holder{PID: os.Getpid(), Command: command})
	return &Lock{f: f}, nil
}

// Release frees the lock.
func (l *Lock) Release() error {
	if err := os.Truncate(l.f.Path(), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("clearing the lock %s: %w", l.f.Path(), err), l.f.Unlock())
	}
	return l.f.Unlock()
}

func writeHolder(path string, h Holder) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}

// holder is who holds the lock. Between taking it and writing so a holder needs
// a moment.
func holder(path string) Holder {
	for range 5 {
		if h := readHolder(path); h.PID > 0 {
			return h
		}
		time.Sleep(poll / 5)
	}
	return Holder{}
}

// lastBreath is how long a lock may outlive its holder. A killed process may
// have been starting a command, which has the lock open until it runs; one
// that wrote no name is just taking the lock or giving it back.
func lastBreath(pid int) time.Duration {
	switch {
	case pid <= 0:
		return 500 * time.Millisecond
	case errors.Is(unix.Kill(pid, 0), unix.ESRCH):
		return 5 * time.Second
	}
	return 0
}

func readHolder(path string) Holder {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Holder{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHolder))
	if err != nil {
		return Holder{}
	}
	var h Holder
	if json.Unmarshal(data, &h) != nil {
		return Holder{}
	}
	h.Command = Printable(h.Command, 200)
	return h
}

// Printable makes text from a file safe for one line of a terminal: control
// and direction-changing characters become "?", and what is longer than limit
// runes ends in "…".
func Printable(s string, limit int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == limit {
			b.WriteRune('…')
			break
		}
		n++
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e,
			r >= 0x2060 && r <= 0x206f, r == 0xfeff, r == 0xfffd:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
