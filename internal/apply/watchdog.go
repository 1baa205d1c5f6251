package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
)

// readyTimeout is how long StartWatchdog waits for the watchdog to stand on
// its own feet.
const readyTimeout = 10 * time.Second

// StartWatchdog starts the program at path with the arguments, to which it
// adds the transaction's number, as a process that outlives this one: in its
// own session, without a terminal, in the root folder, its output in the
// journal's folder. The program calls Watchdog. StartWatchdog returns when it
// says that it is watching.
func StartWatchdog(ctx context.Context, dir, path string, args []string, id int) error {
	log, err := os.OpenFile(filepath.Join(dir, "watchdog.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(path, append(args, strconv.Itoa(id))...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	go cmd.Wait() // it is reaped if it ends first
	said := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(ready, make([]byte, 1))
		said <- err
	}()
	timer := time.NewTimer(readyTimeout)
	defer timer.Stop()
	err = context.DeadlineExceeded
	select {
	case err = <-said:
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	if err != nil {
		cmd.Process.Kill()
		return fmt.Errorf("it did not come up (%w); it may say why in %s", err, log.Name())
	}
	return nil
}

// readyFD is where StartWatchdog listens.
const readyFD = 3

// Steps of the watchdog's clock.
const (
	tick = 100 * time.Millisecond
	// grace is what a transaction that is out of time gets to roll back by
	// itself before the watchdog ends it.
	grace = time.Second
)

// Watchdog watches one transaction until it is over, one way or the other,
// and takes it back when the time to confirm is over or the process that
// carries it out has died half way. It does not end on SIGHUP, SIGINT,
// SIGTERM or SIGPIPE, nor with the session or service that it was started in,
// and reads no clock that can be set.
//
// The process calls it that StartWatchdog started.
func Watchdog(ctx context.Context, env Env, id int) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	// A machine short of memory has better candidates. Root alone may.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	leaveService()
	store, err := journal.View(env.Dir)
	if err != nil {
		return err
	}
	if _, err := store.Load(id); err != nil {
		return err
	}
	if f := os.NewFile(readyFD, "ready"); f != nil {
		_, _ = f.Write([]byte{1})
		f.Close()
	}
	var t journal.Transaction
	var seen os.FileInfo
	for ; ; time.Sleep(tick) {
		info, err := os.Stat(store.Path(id))
		if errors.Is(err, os.ErrNotExist) {
			return nil // pruned: it is over
		}
		if err != nil {
			return err
		}
		if seen == nil || info.Size() != seen.Size() || info.ModTime() != seen.ModTime() {
			if t, err = store.Load(id); err != nil || t.Err != nil {
				return errors.Join(err, t.Err)
			}
			seen = info
		}
		if !t.Outcome.Open() {
			return nil
		}
		alive := running(t.Process)
		late := now() - t.Deadline
		switch {
		case t.Outcome == journal.Waiting && late < 0:
			continue
		case t.Outcome == journal.Waiting, !alive:
		case late > int64(grace) && t.Outcome == journal.Running:
			// Out of time and not even rolling back: it hangs.
			if err := kill(t.Process); err != nil {
				return fmt.Errorf("ending process %d, which hangs: %w", t.Process.PID, err)
			}
			continue
		default:
			continue
		}
		done, err := env.expire(ctx, store, id)
		if done {
			return err
		}
	}
}

// systemdGroups are where the cgroups stand by which systemd knows what belongs
// to a session or a service: all of v2, v2 beside v1, v1.
var systemdGroups = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"}

// leaveService moves this process out of the session or service that it was
// started in: systemd kills everything in there at its end, watchdogs too
// (KillMode= in systemd.kill(5), KillUserProcesses= in logind.conf(5)). Where
// this cannot be done, nothing is lost that was there before.
func leaveService() {
	for _, root := range systemdGroups {
		if f, err := os.OpenFile(filepath.Join(root, "cgroup.procs"), os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("0")
			f.Close()
		}
	}
}

// expire takes the transaction back if it is still to be taken back once the
// lock is held. done is false when another process is at it.
func (env Env) expire(ctx context.Context, store *journal.Store, id int) (done bool, err error) {
	l, err := lock.Acquire(ctx, env.LockPath, env.Command, 0)
	var held *lock.HeldError
	if errors.As(err, &held) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	defer l.Release()
	t, err := store.Load(id)
	if err != nil || t.Err != nil {
		return true, errors.Join(err, t.Err)
	}
	if !t.Outcome.Open() {
		return true, nil
	}
	if timeLeft(t) > 0 {
		return false, nil
	}
	cause := errCutOff
	if t.Outcome == journal.Waiting {
		cause = fmt.Errorf("not confirmed within %s", t.ConfirmWithin)
	}
	if env.Host == nil {
		env.Host = NewHost("")
	}
	_, err = env.rollback(ctx, store, id, cause, nil)
	return true, err
}

// kill ends a process, by a handle that cannot come to mean another one.
func kill(p journal.Process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !running(p) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
