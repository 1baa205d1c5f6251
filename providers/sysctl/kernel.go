package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// alias is the older name of nf_conntrack_max, which only the initial network
// namespace has.
const alias = "net.nf_conntrack_max"

const prefix = "net.netfilter."

// ours holds for the keys of connection tracking.
func ours(key string) bool {
	name, ok := strings.CutPrefix(key, prefix+"nf_conntrack_")
	return key == alias || ok && name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// beside are keys that say what else works with tracked connections, or with the
// rules about them.
var beside = []string{host.SysctlIPVSConntrack, host.SysctlBridged4, host.SysctlBridged6}

// ReadBeside reads those of the keys that exist and are none of connection
// tracking's, but bear on plans about it: nothing writes them.
func ReadBeside(root string) map[string]host.Sysctl {
	values := map[string]host.Sysctl{}
	buf := make([]byte, 4096)
	for _, key := range beside {
		if v, _, err := readKey(file(root, key), buf); err == nil {
			values[key] = host.Sysctl{Value: v}
		}
	}
	for _, f := range host.Families {
		if key, value := forwards(root, f, buf); key != "" {
			values[key] = host.Sysctl{Value: value}
		}
	}
	return values
}

// forwards reads whether a host forwards packets of a family: the key of all
// interfaces, and where that says no, of the first that does all the same.
func forwards(root string, f host.Family, buf []byte) (key, value string) {
	all := host.Forwarding(f, "all")
	value, _, err := readKey(file(root, all), buf)
	if err != nil {
		return "", ""
	}
	if value == "1" {
		return all, value
	}
	interfaces, err := os.ReadDir(filepath.Join(root, "/proc/sys/net", string(f), "conf"))
	if err != nil {
		return all, value
	}
	for _, e := range interfaces {
		// "default" is for interfaces to come; not every name is a word of a key.
		if name := e.Name(); name != "default" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == "" {
			if v, _, err := readKey(file(root, host.Forwarding(f, name)), buf); err == nil && v == "1" {
				return host.Forwarding(f, name), v
			}
		}
	}
	return all, value
}

// whole holds for what can be a whole number to the kernel.
func whole(value string) bool {
	digits := strings.TrimPrefix(value, "-")
	return digits != "" && len(digits) <= 20 && strings.Trim(digits, "0123456789") == ""
}

// ReadKeys reads those of the keys that exist; nil means every key of
// connection tracking. A kernel without it, or without the module loaded, has
// none, which is no error. Keys that are not connection tracking's are an
// error, and so is one that exists and cannot be read: the others come with it.
//
// A key is writable when its mode says so and /proc/sys is not mounted
// read-only. The kernel checks the mode for root too (proc_sys_permission in
// fs/proc/proc_sysctl.c), so 0444, which nf_conntrack_max has outside the
// initial namespace, means read-only for everyone.
func ReadKeys(root string, keys []string) (map[string]host.Sysctl, error) {
	var errs []error
	if keys == nil {
		entries, err := os.ReadDir(file(root, strings.TrimSuffix(prefix, ".")))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("listing the conntrack sysctls: %w", err))
		}
		keys = []string{alias}
		for _, e := range entries {
			if key := prefix + e.Name(); ours(key) {
				keys = append(keys, key)
			}
		}
	}
	readOnly := false
	var mount unix.Statfs_t
	if err := unix.Statfs(file(root, "net"), &mount); err == nil {
		readOnly = mount.Flags&unix.ST_RDONLY != 0
	}
	values := map[string]host.Sysctl{}
	buf := make([]byte, 4096)
	for _, key := range keys {
		if !ours(key) {
			errs = append(errs, fmt.Errorf("reading sysctl %q: not a key of connection tracking", key))
			continue
		}
		v, mode, err := readKey(file(root, key), buf)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading sysctl %s: %w", key, err))
			continue
		}
		values[key] = host.Sysctl{Value: v, Writable: mode&0o200 != 0 && !readOnly}
	}
	return values, errors.Join(errs...)
}

// readKey goes around os.Open, which would register every key with the
// poller: this runs for each of some forty keys in every plan.
func readKey(name string, buf []byte) (value string, mode uint32, err error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", 0, err
	}
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
	if err != nil {
		return "", 0, err
	}
	return strings.TrimSpace(string(buf[:n])), st.Mode, nil
}

// Write sets a key of connection tracking to a whole number and reads it
// back. It is one write(2), so the kernel takes the value or keeps the old one.
func Write(root, key, value string) error {
	fail := func(err error) error { return fmt.Errorf("setting sysctl %s to %q: %w", key, value, err) }
	if !ours(key) {
		return fail(errors.New("not a key of connection tracking"))
	}
	if !whole(value) {
		return fail(errors.New("not a whole number"))
	}
	name := file(root, key)
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(name, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0) })
	if err != nil {
		return fail(explain(err))
	}
	// Not retried when interrupted: the kernel may have taken the value.
	_, err = unix.Write(fd, []byte(value+"\n"))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fail(explain(err))
	}
	got, _, err := readKey(name, make([]byte, 4096))
	if err != nil {
		return fail(fmt.Errorf("reading it back: %w", err))
	}
	if got != value {
		return fail(fmt.Errorf("the kernel took it and now has %q; something else may set this key too", got))
	}
	return nil
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func file(root, key string) string {
	return filepath.Join(root, "/proc/sys", strings.ReplaceAll(key, ".", "/"))
}

// explain adds to the kernel's answer what it means for these keys.
func explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EROFS):
		hint = "/proc/sys is mounted read-only, as in a container: set it on the host"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		if os.Geteuid() != 0 {
			hint = "run ctplan as root"
		} else {
			hint = "the key is read-only in this network namespace: set it on the host"
		}
	case errors.Is(err, unix.EINVAL):
		hint = "the kernel refuses the value; it takes 0 to 2147483647"
	case errors.Is(err, fs.ErrNotExist):
		hint = "this kernel has no such key, or nf_conntrack is not loaded"
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}
