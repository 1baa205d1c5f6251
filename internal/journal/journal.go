package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// slack is reserved beside what the steps need, in bytes: for the short
// records, among them those that a rollback writes.
const slack = 64 << 10

// perStep is what the short records about one step need at most, in bytes.
const perStep = 4 << 10

// maxReason bounds a reason, so that a journal's last line stays short.
const maxReason = 1 << 10

// Journal is a journal that this process writes.
type Journal struct {
	ID   int
	f    *os.File
	size int64
}

// Create begins a journal and gives it its number, which is set in h. It
// reserves space for all records of a transaction whose steps take size bytes
// as JSON, so that a full disk shows here and not half way.
func (s *Store) Create(h Header, size int64) (_ *Journal, err error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	h.ID = 1
	if n := len(ids); n > 0 {
		h.ID = ids[n-1] + 1
	}
	h.FormatVersion = FormatVersion
	tmp := filepath.Join(s.dir, ".new")
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("beginning a journal: %w", err)
	}
	j := &Journal{ID: h.ID, f: f}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(tmp)
			err = fmt.Errorf("beginning a journal in %s: %w; nothing was changed", s.dir, err)
		}
	}()
	reserve := size + slack + int64(h.Steps)*perStep
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, reserve); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("reserving %d KiB: %w", reserve>>10, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	if err := j.Append(Record{Kind: Begin, Header: &h}, true); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, s.path(h.ID)); err != nil {
		return nil, err
	}
	if err := s.sync(); err != nil {
		return nil, errors.Join(err, os.Remove(s.path(h.ID)))
	}
	return j, nil
}

// Reopen goes on with a journal. The process that wrote it has ended; commands
// that it started may live on and still change the host, so Reopen waits for
// them to end, for at most the given time.
func (s *Store) Reopen(id int, wait time.Duration) (_ *Journal, _ Transaction, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the journal of transaction %d: %w", id, err)
		}
	}()
	f, err := os.OpenFile(s.path(id), os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, Transaction{}, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := trusted(f); err != nil {
		return nil, Transaction{}, err
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, Transaction{}, err
		}
		if time.Since(begun) > wait {
			return nil, Transaction{}, fmt.Errorf("%s is still held by a command of the process that was cut off; waited %s for it to end (see who by: fuser %[1]s)", f.Name(), wait)
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, Transaction{}, err
	}
	t, whole := Parse(data)
	if t.Err != nil {
		return nil, Transaction{}, t.Err
	}
	// A read-only or full disk must not keep the host from being put back.
	if whole < int64(len(data)) {
		_ = f.Truncate(whole)
	}
	return &Journal{ID: id, f: f, size: whole}, t, nil
}

// Append writes a record. With sync it is on the disk when Append returns. A
// record that could not be written whole is taken off again.
func (j *Journal) Append(r Record, sync bool) error {
	if r.Time.IsZero() {
		r.Time = time.Now().UTC()
	}
	if len(r.Reason) > maxReason {
		r.Reason = r.Reason[:maxReason] + "…"
	}
	line, err := marshal(r)
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	line = append(line, '\n')
	n, err := j.f.Write(line)
	if err == nil && sync {
		err = unix.Fdatasync(int(j.f.Fd()))
	}
	if err != nil {
		if n > 0 {
			_ = j.f.Truncate(j.size)
		}
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.size += int64(len(line))
	return nil
}

// File is the journal's open file. A command that inherits it keeps Reopen
// waiting until it ends.
func (j *Journal) File() *os.File { return j.f }

// Close gives back what was reserved and lets others open the journal.
func (j *Journal) Close() error {
	_ = j.f.Truncate(j.size)
	return j.f.Close()
}

// Parse reads a journal and says how many of its bytes are whole records. A
// last line that a crash cut off is left out. What is not a journal gives a
// Transaction with Err and the outcome Unreadable.
func Parse(data []byte) (Transaction, int64) {
	var t Transaction
	whole := int64(0)
	fail := func(err error) (Transaction, int64) {
		t.Err = fmt.Errorf("not a journal that this ctplan can read: %w", err)
		t.Outcome = Unreadable
		return t, whole
	}
	for n := 1; ; n++ {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			break
		}
		var r Record
		if err := unmarshal(line, &r); err != nil {
			// Power loss can leave a last line of the right length without
			// its content; nothing was done after it.
			if len(rest) == 0 && n > 1 {
				break
			}
			return fail(fmt.Errorf("line %d: %w", n, err))
		}
		if err := t.take(r); err != nil {
			return fail(fmt.Errorf("line %d: %w", n, err))
		}
		data = rest
		whole += int64(len(line)) + 1
	}
	if whole == 0 {
		return fail(errors.New("it has no header"))
	}
	return t, whole
}

// take adds what the next record says.
func (t *Transaction) take(r Record) error {
	if (t.ID == 0) != (r.Kind == Begin) {
		return fmt.Errorf("a %q record where it cannot stand", r.Kind)
	}
	if t.ID != 0 && !t.Outcome.Open() {
		return fmt.Errorf("a %q record after the end", r.Kind)
	}
	step := func() (*Step, error) {
		if r.Index < 0 || r.Index >= len(t.Steps) {
			return nil, fmt.Errorf("a %q record about step %d, which never began", r.Kind, r.Index)
		}
		return &t.Steps[r.Index], nil
	}
	switch r.Kind {
	case Begin:
		switch {
		case r.Header == nil || r.Header.ID < 1:
			return errors.New("a header without a number")
		case r.Header.FormatVersion != FormatVersion:
			return fmt.Errorf("format version %d; this ctplan knows version %d", r.Header.FormatVersion, FormatVersion)
		}
		t.Header, t.Outcome, t.Deadline = *r.Header, Running, r.Header.Deadline
	case Intent:
		if r.Step == nil || r.Index != len(t.Steps) {
			return fmt.Errorf("step %d out of order", r.Index)
		}
		s := Step{Step: *r.Step}
		if r.Before != nil {
			s.Before = *r.Before
		}
		t.Steps = append(t.Steps, s)
	case Done, Undone, Stuck:
		s, err := step()
		if err != nil {
			return err
		}
		s.Done = s.Done || r.Kind == Done
		if r.Kind == Done {
			t.Changed = r.Time
		}
		s.Undone = r.Kind == Undone
	case Armed:
		t.Outcome, t.Deadline, t.Table = Waiting, r.Deadline, r.Table
	case Rollback:
		t.Outcome, t.Reason = Undoing, r.Reason
	case Commit:
		t.Outcome, t.Ended = Committed, r.Time
		if r.Table != nil {
			t.Table = r.Table
		}
	case RolledBack:
		t.Outcome, t.Ended, t.Table = WasUndone, r.Time, r.Table
	default:
		return fmt.Errorf("a record of unknown kind %q", r.Kind)
	}
	return nil
}
