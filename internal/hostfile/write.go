package hostfile

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// newMode is the mode of a file that says nothing of its own.
const newMode = 0o644

// Write makes the file that stands as before stand as after: it replaces the
// content, creates the file with its folder (0755), or removes it. A file
// that exists keeps the owner, mode, extended attributes and link that it has
// on disk; a new one gets those of after, mode 0644 where after has none.
//
// A file whose content is neither before's nor after's gives ErrChanged and
// stays as it is. One that is after already is left alone, so that a write
// that was interrupted can be repeated. Hard links are not followed: other
// names of the file keep the old content.
//
// When Write returns nil, the change is on disk and not in caches.
func Write(root string, before, after host.File) error {
	if before.Path != after.Path {
		return fmt.Errorf("writing %s: the file it replaces is %s", after.Path, before.Path)
	}
	verb := "writing"
	if !after.Exists {
		verb = "removing"
	}
	now, err := Read(root, after.Path)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, after.Path, errors.Unwrap(err))
	}
	if !same(now, after) && !same(now, before) {
		return fmt.Errorf("%s %s: %w", verb, after.Path, ErrChanged)
	}
	real := after.Path
	if now.Target != "" {
		real = now.Target
	}
	at := onDisk(root, real)
	sweep(at)
	if same(now, after) {
		return nil
	}
	switch {
	case !after.Exists:
		err = remove(at)
	case now.Exists:
		now.Content = after.Content
		err = replace(at, now, true)
	default:
		if err = makeFolder(filepath.Dir(at)); err == nil {
			err = replace(at, after, false)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, after.Path, explain(err, path.Dir(real)))
	}
	return nil
}

func same(a, b host.File) bool { return a.Exists == b.Exists && a.Content == b.Content }

// replace writes f beside its place and renames it there. The temporary name
// begins with a dot and ends in digits, so that nothing that reads a folder of
// *.conf files, and no run-parts, takes it for one of its own.
func replace(at string, f host.File, existed bool) (err error) {
	tmp, err := renameio.NewPendingFile(at, renameio.WithTempDir(filepath.Dir(at)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() {
		if cleanup := tmp.Cleanup(); cleanup != nil {
			err = errors.Join(err, cleanup)
		}
	}()
	if _, err := tmp.WriteString(f.Content); err != nil {
		return err
	}
	if err := dress(tmp.File, f, existed || f.Mode != 0); err != nil {
		return err
	}
	if err := tmp.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(at))
}

// dress gives the temporary file what f has besides its content. The order
// matters: chown clears setuid and capabilities, chmod changes an ACL's mask.
func dress(h *os.File, f host.File, exact bool) error {
	if !exact {
		return h.Chmod(newMode)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return err
	}
	if int(st.Uid) != f.UID || int(st.Gid) != f.GID {
		if err := h.Chown(f.UID, f.GID); err != nil {
			return fmt.Errorf("keeping its owner: %w", bare(err))
		}
	}
	has, err := xattrs(h)
	if err != nil {
		return fmt.Errorf("keeping its extended attributes: %w", err)
	}
	for name := range has { // inherited from the folder, such as a default ACL
		if _, wanted := f.Xattrs[name]; !wanted && !strings.HasPrefix(name, "security.") {
			if err := unix.Fremovexattr(int(h.Fd()), name); err != nil {
				return fmt.Errorf("keeping its extended attributes: %s: %w", name, err)
			}
		}
	}
	if err := unix.Fchmod(int(h.Fd()), f.Mode&0o7777); err != nil {
		return fmt.Errorf("keeping its mode: %w", err)
	}
	for name, encoded := range f.Xattrs {
		old, there := has[name]
		if !kept(name) || there && old == encoded && !strings.HasPrefix(name, "system.") {
			continue // an ACL is set in any case: chmod may have changed it
		}
		v, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil {
			err = unix.Fsetxattr(int(h.Fd()), name, v, 0)
		}
		if err != nil {
			return fmt.Errorf("keeping its extended attributes: %s: %w", name, err)
		}
	}
	return nil
}

func remove(at string) error {
	if err := os.Remove(at); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(at))
}

// makeFolder creates a folder and those above it, each on disk before the
// next thing relies on it.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	up := filepath.Dir(dir)
	if err := makeFolder(up); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(up)
}

func syncFolder(dir string) error {
	h, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a file system that cannot
		return fmt.Errorf("flushing the folder: %w", bare(err))
	}
	return nil
}

// sweep removes what a killed write of the same file left behind. The names
// are renameio's: ".sysctl.conf" and a random 63-bit number, of which one in
// a million is shorter than 13 digits. Failure to sweep is not worth an error.
func sweep(at string) {
	dir, prefix := filepath.Dir(at), "."+filepath.Base(at)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), prefix)
		if ok && len(digits) >= 13 && strings.Trim(digits, "0123456789") == "" && e.Type().IsRegular() {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// explain adds to an error what to do about it.
func explain(err error, dir string) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EROFS):
		hint = "the file system is mounted read-only"
	case errors.Is(err, unix.EPERM):
		hint = "the file or its folder may be immutable: see lsattr, and lift it with chattr -i"
	case errors.Is(err, unix.EACCES):
		hint = "run ctplan as root"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = "make room in " + dir
	case errors.Is(err, unix.EBUSY):
		hint = "the file is a mount point, as container engines make them: change it where it is mounted from"
	default:
		return bareLink(err)
	}
	return fmt.Errorf("%w; %s", bareLink(err), hint)
}

// bareLink takes off the paths that *fs.PathError and *os.LinkError repeat:
// they name the temporary file.
func bareLink(err error) error {
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return bare(err)
}
