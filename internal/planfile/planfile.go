// Package planfile keeps a plan between `plan --out` and `apply`.
//
// It owns the file's format and the rules by which a file is trusted. A plan
// file holds what a plan is made from, the desired state and the snapshot, and
// never the plan itself: that is always planner.Diff of the two, so no file can
// ask for a change that ctplan would not have planned. It never looks at the
// host.
//
// It promises that Write leaves either the old file or the whole new one, with
// mode 0600, and replaces nothing but plan files; that Read takes no file that
// somebody other than root or the caller could have written.
package planfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner/declared"
)

// Plan is the content of a plan file.
type Plan struct {
	FormatVersion int                `json:"format_version"`
	CtplanVersion string             `json:"ctplan_version"`
	Created       time.Time          `json:"created"`       // RFC 3339, UTC, whole seconds
	ConfigDigest  string             `json:"config_digest"` // of the HCL and its variables
	Desired       declared.Desired   `json:"desired"`
	Snapshot      *snapshot.Snapshot `json:"snapshot"`
}

// Looks reports whether path is to be taken for a plan file, not for HCL: a
// regular file whose first byte, white space apart, is "{" and whose name is
// not that of HCL in JSON. No other HCL file begins with a brace. Whether it is a sound plan file is for Read to say.
func Looks(path string) bool {
	head, err := snapshot.Head(path)
	return err == nil && !strings.HasSuffix(path, ".hcl.json") && bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{"))
}

// Write writes p to path with mode 0600. What stands at path is replaced when
// it is a plan file or empty; anything else is refused (snapshot.ErrForeign).
func Write(path string, p *Plan) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return fmt.Errorf("writing the plan to %q: %w", path, err)
	}
	return snapshot.ReplaceJSON(path, buf.Bytes(), "config_digest")
}

// Read reads a plan file. It refuses one that others can write, that belongs
// to anyone but root or the caller, and one that is not wholly a plan file of
// this format version.
func Read(path string) (*Plan, error) {
	p, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("reading the plan %q: %w", path, err)
	}
	return p, nil
}

func read(path string) (*Plan, error) {
	f, err := snapshot.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := trusted(info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, snapshot.MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > snapshot.MaxBytes {
		return nil, fmt.Errorf("larger than %d MiB, the most a plan may have", snapshot.MaxBytes>>20)
	}
	var p Plan
	if err := snapshot.StrictJSON(data, "plan file", &p); err != nil {
		return nil, err
	}
	if p.Snapshot == nil || p.ConfigDigest == "" {
		return nil, errors.New("not a ctplan plan file: it has no config_digest or no snapshot")
	}
	if err := p.Snapshot.Check(); err != nil {
		return nil, fmt.Errorf("its snapshot is not valid: %w", err)
	}
	if err := checkDesired(p.Desired); err != nil {
		return nil, fmt.Errorf("its desired state is not valid: %w", err)
	}
	return &p, nil
}

// trusted refuses a file through which somebody else could steer apply.
func trusted(info fs.FileInfo) error {
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("others can write it (mode %04o): make it yours alone with chmod go-w, or make the plan again", perm)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("its owner cannot be told")
	}
	if owners := []uint32{0, uint32(os.Geteuid())}; !slices.Contains(owners, st.Uid) {
		return fmt.Errorf("it belongs to user %d, neither to root nor to you: make the plan again", st.Uid)
	}
	return nil
}
