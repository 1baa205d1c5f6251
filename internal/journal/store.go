package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where journals are on a real host.
const Dir = "/var/lib/ctplan"

// Keep is how many journals are kept.
const Keep = 100

// suffix ends the names of journals.
const suffix = ".journal"

// tail is how much of a journal's end is read to see whether it is finished,
// in bytes; the records that finish one are shorter.
const tail = 4 << 10

// Store is a folder of journals.
type Store struct{ dir string }

// Open opens the folder to write in it, and makes it if it is not there.
func Open(dir string) (*Store, error) {
	_, err := os.Stat(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for journals: %w", err)
	}
	if missing { // or a loss of power could take it, and what was written in it
		if err := (&Store{dir: filepath.Dir(dir)}).sync(); err != nil {
			return nil, fmt.Errorf("making the folder for journals: %w", err)
		}
	}
	return View(dir)
}

// View opens the folder to read it. A folder that is not there has no journals.
func View(dir string) (*Store, error) {
	f, err := os.Open(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Store{dir: dir}, nil
	case err != nil:
		return nil, fmt.Errorf("opening the folder of journals: %w", err)
	}
	defer f.Close()
	if err := trusted(f); err != nil {
		return nil, fmt.Errorf("opening the folder of journals: %w", err)
	}
	return &Store{dir: dir}, nil
}

// trusted says why what f names could have been written by others.
func trusted(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user %d and not to %d, so what it says cannot be trusted", f.Name(), st.Uid, uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o), so what it says cannot be trusted; after a look at it: chmod go-w %[1]s", f.Name(), st.Mode&0o7777)
	}
	return nil
}

// Load reads one journal. What cannot be read gives a Transaction with Err;
// one that does not exist, an error that wraps fs.ErrNotExist.
func (s *Store) Load(id int) (Transaction, error) {
	data, err := s.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return Transaction{}, fmt.Errorf("there is no transaction %d: %w", id, err)
	}
	t, _ := Parse(data)
	if err != nil {
		t = Transaction{Outcome: Unreadable, Err: err}
	}
	if t.ID = id; t.Err != nil {
		t.Err = fmt.Errorf("journal %s: %w", s.path(id), t.Err)
	}
	return t, nil
}

// All reads every journal, oldest first.
func (s *Store) All() ([]Transaction, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	return s.load(ids)
}

// Newest reads up to n journals, newest first.
func (s *Store) Newest(n int) ([]Transaction, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	ids = ids[max(0, len(ids)-n):]
	slices.Reverse(ids)
	return s.load(ids)
}

// Unfinished reads the journals that did not end, oldest first. Of the others
// it reads the last line alone.
func (s *Store) Unfinished() ([]Transaction, error) {
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	return s.load(slices.DeleteFunc(ids, s.ended))
}

// LastCommit returns when the newest transaction whose new state stayed ended;
// the zero Time when there is none. Of each journal it reads the last line alone.
func (s *Store) LastCommit() (time.Time, error) {
	ids, err := s.ids()
	if err != nil {
		return time.Time{}, err
	}
	for _, id := range slices.Backward(ids) {
		if r := s.last(id); r.Kind == Commit {
			return r.Time, nil
		}
	}
	return time.Time{}, nil
}

func (s *Store) load(ids []int) ([]Transaction, error) {
	var all []Transaction
	for _, id := range ids {
		t, err := s.Load(id)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// Prune removes the oldest finished journals beyond keep.
func (s *Store) Prune(keep int) error {
	ids, err := s.ids()
	if err != nil || len(ids) <= keep {
		return err
	}
	for _, id := range ids[:len(ids)-keep] {
		if !s.ended(id) {
			continue
		}
		if err := os.Remove(s.path(id)); err != nil {
			return fmt.Errorf("removing an old journal: %w", err)
		}
	}
	return s.sync()
}

// Path is where the journal of a transaction is.
func (s *Store) Path(id int) string { return s.path(id) }

func (s *Store) path(id int) string { return filepath.Join(s.dir, fmt.Sprintf("%06d%s", id, suffix)) }

// ids lists the journals' numbers in order.
func (s *Store) ids() ([]int, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing journals: %w", err)
	}
	var ids []int
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		id, err := strconv.Atoi(name)
		if ok && err == nil && id > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// ended reports whether a journal's last record ends the transaction.
func (s *Store) ended(id int) bool {
	r := s.last(id)
	return r.Kind == Commit || r.Kind == RolledBack
}

// last is a journal's last record, as far as it is one that can end it; else
// the zero Record.
func (s *Store) last(id int) Record {
	f, err := s.open(id)
	if err != nil {
		return Record{}
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Record{}
	}
	end := make([]byte, min(tail, size))
	if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
		return Record{}
	}
	end, ok := bytes.CutSuffix(end, []byte("\n"))
	var r Record
	if !ok || json.Unmarshal(end[bytes.LastIndexByte(end, '\n')+1:], &r) != nil {
		return Record{}
	}
	return r
}

func (s *Store) open(id int) (*os.File, error) {
	f, err := os.OpenFile(s.path(id), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := trusted(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Store) read(id int) ([]byte, error) {
	f, err := s.open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// sync makes the folder's names durable.
func (s *Store) sync() error {
	f, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
