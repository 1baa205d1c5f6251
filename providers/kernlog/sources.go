package kernlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
)

const (
	// recordBytes is more than the kernel gives at once (PRINTKRB_RECORD_MAX
	// and CONSOLE_EXT_LOG_MAX in kernel/printk: 8 KiB).
	recordBytes = 16 << 10
	// maxRecords bounds what is read of /dev/kmsg, on a machine that logs while
	// it is read.
	maxRecords = 1 << 19
	// tailBytes is how much of the end of a text file is read.
	tailBytes = 64 << 20
	// lineBytes is how much of a line is looked at.
	lineBytes = 8 << 10
	// journalLines is how many messages of the kernel are read of the journal,
	// the newest: about 1 KiB each.
	journalLines = 20_000
	// journalTime is how long the journal may take.
	journalTime = 60 * time.Second
)

// readKmsg reads the ring in which the kernel keeps its messages since boot.
func readKmsg(ctx context.Context, o Options) Source {
	s := Source{Name: "/dev/kmsg"}
	fd, err := unix.Open(filepath.Join(o.Root, s.Name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.failed(os.NewSyscallError("open", err))
	}
	defer unix.Close(fd)
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		return s.failed(os.NewSyscallError("clock_gettime", err))
	}
	boot := o.Now.Add(-time.Duration(up.Nano()))
	t := tally{since: o.Since, netns: o.Netns, s: &s}
	whole := false // the ring still has the first message
	buf, pending := make([]byte, recordBytes), []byte(nil)
	for range maxRecords {
		if ctx.Err() != nil {
			return s.failed(ctx.Err())
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EPIPE): // overwritten meanwhile: the next read goes on behind
			whole = false
			continue
		case err != nil && !errors.Is(err, unix.EAGAIN):
			return s.failed(os.NewSyscallError("read", err))
		}
		if n <= 0 { // EAGAIN: no more yet
			break
		}
		pending = append(pending, buf[:n]...)
		for {
			record, rest, ok := bytes.Cut(pending, []byte("\n"))
			if !ok {
				break
			}
			if l, seq, ok := parseKmsg(string(record), boot); ok { // not so: lines of a record's dictionary
				whole = whole || seq == 0
				t.add(l)
			}
			pending = rest
		}
		pending = pending[:min(len(pending), recordBytes)]
	}
	if whole {
		s.From = boot
	}
	if !s.From.IsZero() {
		s.To = o.Now
	}
	return s
}

// readJournal reads the kernel's messages of all boots that the journal keeps.
// It asks twice: whether there is one from before, and for those since.
func readJournal(ctx context.Context, o Options) Source {
	s := Source{Name: "journal"}
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	lines := 0
	ask := func(t *tally, args ...string) error {
		lines = 0
		args = append(args, "--quiet", "--no-pager", "--output=json", "_TRANSPORT=kernel")
		take := func(piece []byte) {
			for text := range bytes.Lines(piece) {
				lines++
				if l, ok := parseJournal(text); ok {
					t.add(l)
				}
			}
		}
		rest, err := o.Runner.Run(ctx, run.Cmd{Path: "journalctl", Args: args, Follow: take})
		take(rest)
		return err
	}
	since := max(o.Since.Unix(), 0)
	before := Source{}
	err := ask(&tally{s: &before}, "--lines=1", fmt.Sprintf("--until=@%d", since))
	if err == nil {
		err = ask(&tally{since: o.Since, netns: o.Netns, s: &s}, fmt.Sprintf("--lines=%d", journalLines), fmt.Sprintf("--since=@%d", since))
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return s.absent("there is no journalctl")
	case err != nil:
		return s.failed(err)
	case before.From.IsZero() && s.From.IsZero():
		return s.absent("the journal has no message of the kernel")
	}
	if !before.From.IsZero() {
		s.To = later(s.To, before.To)
		if lines < journalLines {
			s.From = before.From
		}
	}
	// A journal that nobody writes any more says nothing of now.
	if _, err := os.Stat(filepath.Join(o.Root, journalSocket)); err == nil {
		s.To = o.Now
	}
	return s
}

// journalSocket is there while journald runs (systemd-journald.service(8)).
const journalSocket = "/run/systemd/journal/socket"

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// readText reads a file of syslogd, and before it the one that was rotated last.
// What a file has is known up to its last message of the kernel: whoever writes
// it may have stopped.
func readText(ctx context.Context, o Options, name string) Source {
	s := Source{Name: name}
	t := tally{since: o.Since, netns: o.Netns, s: &s}
	if rotated := lastRotated(o.Root, name); rotated != "" {
		// Without it the log begins later, which From says.
		_ = tail(ctx, filepath.Join(o.Root, rotated), o.Now, &t)
	}
	if err := tail(ctx, filepath.Join(o.Root, name), o.Now, &t); err != nil {
		return s.failed(err)
	}
	return s
}

// lastRotated is the file that logrotate moved away last: NAME.1, or with
// dateext NAME-20261231.
func lastRotated(root, name string) string {
	if _, err := os.Lstat(filepath.Join(root, name+".1")); err == nil {
		return name + ".1"
	}
	dated, err := filepath.Glob(filepath.Join(root, name+"-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]"))
	if err != nil || len(dated) == 0 {
		return ""
	}
	return filepath.Join(filepath.Dir(name), filepath.Base(slices.Max(dated)))
}

// tail reads the end of a text file.
func tail(ctx context.Context, file string, now time.Time, t *tally) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	cut := info.Size() > tailBytes
	if cut {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err
		}
	}
	r := bufio.NewReaderSize(io.LimitReader(f, tailBytes), lineBytes)
	for first := true; ; first = false {
		text, err := r.ReadSlice('\n')
		l, ok := parseSyslog(strings.TrimRight(string(text), "\r\n"), now)
		if ok && !(first && cut) {
			t.add(l)
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a long line
			_, err = r.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (s Source) failed(err error) Source {
	if errors.Is(err, fs.ErrNotExist) {
		return s.absent("it does not exist")
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the name is in Name
	}
	return Source{Name: s.Name, Unread: run.Printable(err.Error())}
}

func (s Source) absent(why string) Source {
	return Source{Name: s.Name, Unread: why, Absent: true}
}
