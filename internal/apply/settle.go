package apply

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
)

// nfConntrack is the module of connection tracking.
const nfConntrack = "nf_conntrack"

// settle puts back what no step of the transaction says, once all are taken
// back, and returns what it could not: the module, where a rule of the
// transaction loaded it and nothing uses it any more; and after a boot, which
// found half of the new files, the module and the values it had.
func (tx *transaction) settle(ctx context.Context) []LeftStep {
	was, h := tx.header.Conntrack, tx.env.Host
	if was == nil {
		return nil
	}
	var left []LeftStep
	check := func(s change.Step, err error) {
		if err != nil {
			commands := h.manual(ctx, undo{Step: s}, tx.aside(), len(tx.began)+len(left))
			left = append(left, LeftStep{Step: s, Err: err, Commands: commands})
		}
	}
	module := change.Step{Addresses: []string{"module." + nfConntrack}, Module: &change.ModuleStep{Module: nfConntrack, Load: !was.Loaded}}
	loaded, err := h.Kernel.Loaded(nfConntrack)
	switch {
	case err != nil:
	case loaded && !was.Loaded:
		err = h.Kernel.UnloadUnused(ctx)
	case !loaded && was.Loaded && tx.rebooted:
		err = h.Kernel.Load(ctx, nfConntrack)
	}
	check(module, err)
	if err != nil || !tx.rebooted {
		return left
	}
	size, err := h.Kernel.Hashsize()
	if err == nil && size > 0 && was.Hashsize > 0 && size != was.Hashsize {
		err = h.Kernel.SetHashsize(was.Hashsize)
	}
	check(change.Step{Addresses: []string{"sysfs.nf_conntrack.hashsize"}, Hashsize: &change.HashsizeStep{Before: was.Hashsize, After: size}}, err)
	for _, key := range slices.Sorted(maps.Keys(was.Sysctls)) {
		now, err := h.Kernel.Sysctl(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone with its module, or with an older kernel
		}
		if err == nil && !sameValue(now, was.Sysctls[key]) {
			err = h.Kernel.SetSysctl(key, was.Sysctls[key])
		}
		check(change.Step{Addresses: []string{"sysctl." + key}, Sysctl: &change.SysctlStep{Key: key, Before: was.Sysctls[key], After: now}}, err)
	}
	return left
}

// unloadTested unloads the module that a test alone has loaded.
func (h *Host) unloadTested(ctx context.Context, was *journal.ModuleBefore) {
	if was == nil || was.Loaded {
		return
	}
	if loaded, err := h.Kernel.Loaded(nfConntrack); err == nil && loaded {
		_ = h.Kernel.UnloadUnused(context.WithoutCancel(ctx)) // it is harmless, and the next transaction finds it
	}
}
