package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// sameFile reports whether two files are the same in everything that a step
// can change.
func sameFile(a, b host.File) bool {
	if !a.Exists || !b.Exists {
		return a.Exists == b.Exists
	}
	return a.Content == b.Content && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID &&
		maps.Equal(a.Xattrs, b.Xattrs)
}

// undoFile puts a file back, and takes away the folders that were made for it.
// A file that is neither the old nor the new one is somebody's work, and is
// not overwritten.
func (h *Host) undoFile(u undo) error {
	s := u.Step.File
	now, err := h.Files.Read(s.Before.Path)
	if err != nil {
		return err
	}
	same := func(f host.File) bool { return now.Exists == f.Exists && now.Content == f.Content }
	if !same(s.Before) && !same(s.After) {
		return fmt.Errorf("%s was changed by somebody else since: it holds neither the old text nor the new one", s.Before.Path)
	}
	// Also where the old text stands: what a killed write left beside it goes.
	if err := h.Files.Write(now, s.Before); err != nil {
		return err
	}
	was := now
	if now, err = h.Files.Read(s.Before.Path); err != nil {
		return err
	}
	if !same(s.Before) || was.Content != now.Content && !sameFile(now, s.Before) {
		return fmt.Errorf("read back after the rollback, %s is not what it was", s.Before.Path)
	}
	for _, dir := range u.Before.Folders {
		if err := h.Files.RemoveFolder(dir); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) undoSysctl(s *change.SysctlStep, rebooted bool) error {
	now, err := h.Kernel.Sysctl(s.Key)
	switch {
	case s.Before == "":
		return nil // it came with its module, and goes with it
	case errors.Is(err, fs.ErrNotExist):
		return nil // gone with its module, value and all
	case rebooted && err == nil && !sameValue(now, s.After):
		return nil // the boot set it
	case err != nil:
		return err
	case sameValue(now, s.Before):
		return nil
	}
	if err := h.Kernel.SetSysctl(s.Key, s.Before); err != nil {
		return err
	}
	if now, err = h.Kernel.Sysctl(s.Key); err != nil {
		return err
	}
	if !sameValue(now, s.Before) {
		return fmt.Errorf("read back after the rollback, %s is %q and not %q", s.Key, now, s.Before)
	}
	return nil
}

// sameValue compares values as /proc/sys prints them: fields apart by white space.
func sameValue(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }

func (h *Host) undoHashsize(s *change.HashsizeStep, rebooted bool) error {
	now, err := h.Kernel.Hashsize()
	switch {
	case err != nil:
		return err
	case now == s.Before, now == 0, s.Before == 0:
		return nil // 0: it comes and goes with its module
	case rebooted && now != s.After:
		return nil // the boot set it
	}
	if err := h.Kernel.SetHashsize(s.Before); err != nil {
		return err
	}
	if now, err = h.Kernel.Hashsize(); err != nil {
		return err
	}
	if now != s.Before {
		return fmt.Errorf("read back after the rollback, the hash table has %d buckets and not %d", now, s.Before)
	}
	return nil
}

// setHashsize resizes the hash table unless it has that size: a service that
// was restarted may have brought it.
func (h *Host) setHashsize(buckets int64) error {
	if now, err := h.Kernel.Hashsize(); err == nil && now == buckets {
		return nil
	}
	return h.Kernel.SetHashsize(buckets)
}

// observeModule remembers the values that go when a module of connection
// tracking goes.
func (h *Host) observeModule() (*journal.ModuleBefore, error) {
	loaded, err := h.Kernel.Loaded(nfConntrack)
	if err != nil {
		return nil, err
	}
	size, err := h.Kernel.Hashsize()
	if err != nil {
		return nil, err
	}
	values, err := h.Kernel.Sysctls()
	if err != nil {
		return nil, err
	}
	return &journal.ModuleBefore{Loaded: loaded, Hashsize: size, Sysctls: values}, nil
}

func (h *Host) undoModule(ctx context.Context, u undo) error {
	s := u.Step.Module
	loaded, err := h.Kernel.Loaded(s.Module)
	if err != nil {
		return err
	}
	switch {
	case s.Load && loaded:
		return h.Kernel.Unload(ctx, s.Module)
	case !s.Load && !loaded:
		if err := h.Kernel.Load(ctx, s.Module); err != nil {
			return err
		}
	}
	if s.Load || u.Rebooted || u.Before.Module == nil {
		return nil
	}
	return h.restoreValues(u.Before.Module)
}

// restoreValues sets the values that a module had before it was unloaded: the
// hash size before the rest, since max follows from it when a module loads.
func (h *Host) restoreValues(b *journal.ModuleBefore) error {
	if b.Hashsize > 0 {
		if now, err := h.Kernel.Hashsize(); err != nil {
			return err
		} else if now > 0 && now != b.Hashsize {
			if err := h.Kernel.SetHashsize(b.Hashsize); err != nil {
				return err
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b.Sysctls)) {
		now, err := h.Kernel.Sysctl(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a module that comes back later
		}
		if err != nil {
			return err
		}
		if sameValue(now, b.Sysctls[key]) {
			continue
		}
		if err := h.Kernel.SetSysctl(key, b.Sysctls[key]); err != nil {
			return err
		}
	}
	return nil
}
