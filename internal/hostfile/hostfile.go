// Package hostfile reads and replaces the host's configuration files.
//
// It owns how a file gets from disk into a planner.File and back: which files
// are refused, what is kept of them besides their content, and how a write
// becomes atomic. It knows nothing of what files mean, and never touches
// anything that is not a regular file, nor /proc and /sys.
//
// It promises that a reader of the file sees the old content or the new one,
// never a part; that owner, mode, extended attributes and symbolic links
// survive; that nothing is written over a file that somebody else changed in
// between; and that a failed write leaves the old file and no other trace.
package hostfile

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// MaxSize is the largest file that Read takes, in bytes. Rules files of busy
// hosts reach a few megabytes; what is larger is not a configuration file.
const MaxSize = 8 << 20

// What callers may branch on.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLarge   = errors.New("larger than 8 MiB")
	ErrChanged    = errors.New("the file is no longer what the plan was made from; plan again")
)

// maxLinks is how many symbolic links one path may lead through, as in the
// kernel (include/linux/namei.h).
const maxLinks = 40

// Read reads the file at path, seen from root ("" on a real host). A file
// that does not exist is no error: Exists is false then, and Target says
// where a dangling link points. Xattrs holds values in base64, because they
// are bytes and the file travels as JSON.
//
// A directory, device, socket or FIFO gives ErrNotRegular, a file of more
// than MaxSize bytes ErrTooLarge.
func Read(root, name string) (host.File, error) {
	f := host.File{Path: name}
	fail := func(err error) (host.File, error) {
		return host.File{Path: name}, fmt.Errorf("reading %s: %w", name, bare(err))
	}
	abs := name
	if root == "" && !path.IsAbs(name) {
		var err error
		if abs, err = filepath.Abs(name); err != nil {
			return fail(err)
		}
	}
	real, err := Real(root, abs)
	if err != nil {
		return fail(err)
	}
	if real != path.Clean(abs) {
		f.Target = real
	}
	at := onDisk(root, real)

	// Opening a device can have effects, so look before; O_NONBLOCK covers
	// a FIFO that is put there in between.
	info, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return f, nil
	}
	if err != nil {
		return fail(err)
	}
	if !info.Mode().IsRegular() {
		return fail(ErrNotRegular)
	}
	h, err := os.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY, 0)
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return fail(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fail(ErrNotRegular)
	}
	var content bytes.Buffer
	if _, err := io.Copy(&content, io.LimitReader(h, MaxSize+1)); err != nil {
		return fail(err)
	}
	if content.Len() > MaxSize {
		return fail(ErrTooLarge)
	}
	attrs, err := xattrs(h)
	if err != nil {
		return fail(fmt.Errorf("extended attributes: %w", err))
	}
	f.Exists = true
	f.Content = content.String()
	f.Mode = st.Mode & 0o7777
	f.UID, f.GID = int(st.Uid), int(st.Gid)
	f.Xattrs = attrs
	return f, nil
}

// Real resolves the symbolic links in name, which is absolute, the way a
// process whose root folder is root would: an absolute link stays under root.
// The last element, or several, need not exist.
func Real(root, name string) (string, error) {
	done, rest := "/", strings.Split(path.Clean("/"+name), "/")
	for links := 0; len(rest) > 0; {
		next := rest[0]
		rest = rest[1:]
		switch next {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		p := path.Join(done, next)
		target, err := os.Readlink(onDisk(root, p))
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", fmt.Errorf("%s: %w", name, unix.ELOOP)
			}
			if path.IsAbs(target) {
				done = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			done = p // not a link, or not there
		default:
			return "", err
		}
	}
	return done, nil
}

func onDisk(root, name string) string {
	if root == "" {
		return name
	}
	return filepath.Join(root, name)
}

// bare takes off the operation and path that a *fs.PathError repeats.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// kept tells whether an extended attribute is the file's own. IMA and EVM
// hash the content and the inode: the kernel computes them anew, and an old
// value on a new file would make it unreadable.
func kept(name string) bool { return name != "security.ima" && name != "security.evm" }

// xattrs reads the attributes of an open file, values in base64; nil where
// there are none or the file system has no such thing.
func xattrs(h *os.File) (map[string]string, error) {
	list, err := grow(func(b []byte) (int, error) { return unix.Flistxattr(int(h.Fd()), b) })
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var attrs map[string]string
	for _, name := range strings.Split(string(list), "\x00") {
		if name == "" || !kept(name) {
			continue
		}
		v, err := grow(func(b []byte) (int, error) { return unix.Fgetxattr(int(h.Fd()), name, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			continue // gone in between, or not ours to see
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[name] = base64.StdEncoding.EncodeToString(v)
	}
	return attrs, nil
}

// grow calls a function of the getxattr kind with buffers of the size that it
// asks for, until one suffices.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := get(buf)
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
		if n, err = get(nil); err != nil {
			return nil, err
		}
		buf = make([]byte, n+64)
	}
}
