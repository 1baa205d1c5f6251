package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// entriesName is the file of what was taken out of the kernel's table.
const entriesName = "entries.saved"

// SaveEntries replaces the file of entries that were taken out of the kernel's
// table, which write fills. It is on the disk when SaveEntries returns. at is
// nanoseconds of CLOCK_BOOTTIME of the boot that bootID names.
func (s *Store) SaveEntries(bootID string, at int64, write func(io.Writer) error) (err error) {
	tmp := filepath.Join(s.dir, ".entries")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("saving entries: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(tmp)
			err = fmt.Errorf("saving entries in %s: %w", s.dir, err)
		}
	}()
	if _, err := fmt.Fprintf(f, "%s %d\n", bootID, at); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, entriesName)); err != nil {
		return err
	}
	return s.sync()
}

// SavedEntries opens that file, behind its first line; nil where there is none, or
// it is of another boot, whose connections have ended. age is since when the
// entries were out, by the clock now.
func (s *Store) SavedEntries(bootID string, now int64) (r io.ReadCloser, age time.Duration, err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, entriesName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if err := trusted(f); err != nil {
		f.Close()
		return nil, 0, err
	}
	in := bufio.NewReader(f)
	line, err := in.ReadString('\n')
	var boot string
	var at int64
	if n, _ := fmt.Sscan(line, &boot, &at); err != nil || n != 2 || boot != bootID || at > now {
		return nil, 0, f.Close()
	}
	return struct {
		io.Reader
		io.Closer
	}{in, f}, time.Duration(now - at), nil
}

// DropEntries removes the file.
func (s *Store) DropEntries() error {
	err := os.Remove(filepath.Join(s.dir, entriesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
