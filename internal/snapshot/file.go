package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
)

// ErrForeign is the cause when ReplaceJSON would replace something else.
var ErrForeign = errors.New("exists and is not a file of this kind: name another, or remove it")

// ReplaceJSON writes one of ctplan's JSON files, whole or not at all, with
// mode 0600: a host's rules are nobody else's business. What stands at path is
// replaced when it is empty or looks like the same kind, which means that it
// begins with format_version and names field within its first KiB; this guards
// against a slip of the hand such as "-o main.hcl".
func ReplaceJSON(path string, data []byte, field string) error {
	if err := replaceable(path, field); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return WriteAtomic(path, data, 0o600)
}

// WriteAtomic leaves either what stood at path or the whole of data, with
// exactly this mode, whatever the umask and the mode of the old file.
func WriteAtomic(path string, data []byte, mode fs.FileMode) error {
	// Not renameio.WriteFile: that keeps the old file's mode.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	defer f.Cleanup()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return nil
}

func replaceable(path, field string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return ErrForeign
	case info.Size() == 0:
		return nil
	}
	head, err := Head(path)
	if err != nil {
		return err
	}
	// White space does not count: somebody may have run the file through jq.
	head = bytes.Join(bytes.Fields(head), nil)
	if !bytes.HasPrefix(head, []byte(`{"format_version":`)) || !bytes.Contains(head, []byte(`"`+field+`":`)) {
		return ErrForeign
	}
	return nil
}

// Head returns the first KiB of a regular file.
func Head(path string) ([]byte, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

// OpenRegular opens a file for reading. It neither hangs on a FIFO nor starts
// a device. Its error does not name the path.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// WriteFile writes the snapshot to path with mode 0600.
func (s *Snapshot) WriteFile(path string) error {
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return ReplaceJSON(path, buf.Bytes(), "host")
}

// ReadFile reads a snapshot file; "-" is stdin.
func ReadFile(path string, stdin io.Reader) (*Snapshot, error) {
	if path == "-" {
		s, err := Decode(stdin)
		if err != nil {
			return nil, fmt.Errorf("reading a snapshot from standard input: %w", err)
		}
		return s, nil
	}
	f, err := OpenRegular(path)
	if err != nil {
		return nil, fmt.Errorf("reading the snapshot %q: %w", path, err)
	}
	defer f.Close()
	s, err := Decode(f)
	if err != nil {
		return nil, fmt.Errorf("reading the snapshot %q: %w", path, err)
	}
	return s, nil
}
