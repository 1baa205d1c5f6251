package kmod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/host"
)

// drain is how long Unload waits for references to go away: the kernel frees
// network namespaces and dying connections a moment later.
const (
	drain = 3 * time.Second
	pause = 100 * time.Millisecond
)

// largestPage is the largest number of buckets that a page of pointers holds
// on any Linux: the kernel rounds the hash size up to whole pages.
const largestPage = 65536 / 8

// SetHashsize resizes the hash table to n buckets, or as many more as fill a
// page. It works in the initial network namespace only and leaves max alone
// (nf_conntrack_set_hashsize in net/netfilter/nf_conntrack_core.c). The
// kernel holds every conntrack lock meanwhile.
func SetHashsize(root string, n int64) error {
	fail := func(err error) error { return fmt.Errorf("setting the hash size to %d buckets: %w", n, err) }
	if n < 1 || n > 1<<32-1 {
		return fail(errors.New("the kernel takes 1 to 4294967295"))
	}
	h, err := os.OpenFile(filepath.Join(root, hashsizeFile), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = h.WriteString(strconv.FormatInt(n, 10) + "\n")
		err = errors.Join(err, h.Close())
	}
	if err != nil {
		return fail(explain(err))
	}
	got, err := readNumber(root, hashsizeFile)
	if err != nil {
		return fail(fmt.Errorf("reading it back: %w", err))
	}
	if got < n || got-n >= largestPage {
		return fail(fmt.Errorf("the kernel took it and now has %d", got))
	}
	return nil
}

func explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		hint = "it can be set in the initial network namespace only: do it on the host"
	case errors.Is(err, unix.ENOMEM):
		hint = "the kernel has no memory for a table of this size and keeps the old one: ask for fewer buckets"
	case errors.Is(err, unix.EROFS):
		hint = "/sys is mounted read-only, as in a container: do it on the host"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = "run ctplan as root on the host"
	case errors.Is(err, fs.ErrNotExist):
		hint = "nf_conntrack is not loaded"
	default:
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// Load loads a module with what it needs, through modprobe and its
// configuration. A module that is loaded or built in is no error; a modprobe
// that ends well and loads nothing, as an install command can make it, is one.
func Load(ctx context.Context, r run.Runner, root, module string) error {
	fail := func(err error) error { return fmt.Errorf("loading module %s: %w", module, err) }
	if !isModuleName(module) {
		return fail(errors.New("not a module's name"))
	}
	name := underscores(module)
	if m, err := loaded(root, name); err != nil {
		return fail(err)
	} else if m != nil {
		return nil
	}
	if kind, err := kindOf(root, name); err == nil && kind == host.ConntrackBuiltin {
		return nil
	}
	if _, err := r.Run(ctx, run.Cmd{Path: "modprobe", Args: []string{"--", module}}); err != nil {
		return fail(err)
	}
	m, err := loaded(root, name)
	if err != nil {
		return fail(err)
	}
	if m == nil {
		return fail(errors.New("modprobe ended well, but the module is not there; look for an install command in modprobe.d"))
	}
	return nil
}

// Unload removes exactly one module, by rmmod, which takes nothing else with
// it. While something still refers to it, Unload tries again for about three
// seconds; then the error says who holds it. A module that is not loaded is
// no error.
func Unload(ctx context.Context, r run.Runner, root, module string) error {
	fail := func(err error) error { return fmt.Errorf("unloading module %s: %w", module, err) }
	if !isModuleName(module) {
		return fail(errors.New("not a module's name"))
	}
	name := underscores(module)
	for deadline := time.Now().Add(drain); ; {
		m, err := loaded(root, name)
		if err != nil {
			return fail(err)
		}
		if m == nil {
			return nil
		}
		_, err = r.Run(ctx, run.Cmd{Path: "rmmod", Args: []string{"--", name}})
		if m, _ = loaded(root, name); err == nil && m == nil {
			return nil
		}
		var failed *run.Error
		if err != nil && !errors.As(err, &failed) { // no rmmod, or cancelled
			return fail(err)
		}
		if m != nil && (!draining(err) || time.Now().After(deadline)) {
			if err == nil {
				err = errors.New("rmmod ended well, but the module is still there")
			}
			return fail(fmt.Errorf("%w; %s", err, holders(*m)))
		}
		select {
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-time.After(pause):
		}
	}
}

// draining reports whether a failure of rmmod may go away by itself: kmod and
// busybox both say so in these words (LC_ALL=C, run.Exec).
func draining(err error) bool {
	if err == nil {
		return false
	}
	for _, s := range []string{"in use", "busy", "temporarily unavailable"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// holders says who refers to a module.
func holders(m host.Module) string {
	switch {
	case slices.Contains(m.By, "[permanent]"), m.Refs < 0:
		return "the kernel cannot unload it: reboot without it"
	case len(m.By) > 0:
		return "it is held by " + strings.Join(m.By, ", ")
	case m.Refs > 0:
		return fmt.Sprintf("%d references hold it that are not modules: rules in this or another network namespace, or open sockets", m.Refs)
	default:
		return "nothing holds it: see the kernel's log"
	}
}

// loaded returns the line of /proc/modules about a module, or nil.
func loaded(root, name string) (*host.Module, error) {
	modules, err := ReadModules(root)
	if err != nil {
		return nil, err
	}
	for i := range modules {
		if modules[i].Name == name {
			return &modules[i], nil
		}
	}
	return nil, nil
}
