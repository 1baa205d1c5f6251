package apply

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Host is what a transaction changes: rules, files and the kernel's values and
// modules. NewHost gives the real one.
type Host struct {
	Rules  Rules
	Native Native
	Files  Files
	Kernel Kernel
	// Command runs a program to its end, such as the restart of a service.
	Command func(ctx context.Context, words []string) error

	// CheckFiles, when set, asks who reads files whether they can be read as they
	// will stand, and changes nothing.
	CheckFiles func(ctx context.Context, edited []host.File) error

	// Hold, when set, makes every command that is started from then on keep f
	// open, until Hold(nil). So a journal shows whether a command of a process
	// that was killed is still at work.
	Hold func(f *os.File)

	// Apart, when set, calls fn where rules can be loaded without anybody
	// noticing: the way back is rehearsed there.
	Apart func(fn func() error) error

	// seen are rulesets that were read under the lock and not changed since.
	seen map[rulesKey]host.Ruleset
}

// Rules reads and changes what iptables shows.
type Rules interface {
	// Save reads all tables of a family.
	Save(ctx context.Context, f host.Family, b host.Backend) (host.Ruleset, error)
	// Test asks the kernel whether it would take the sections, and changes nothing.
	Test(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error
	// Commit carries the sections out, in order. Each happens whole or not at
	// all; those before a failure stay.
	Commit(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error
	// Replace makes tables of a family what they were: what stands in them goes.
	Replace(ctx context.Context, f host.Family, b host.Backend, tables []xtables.TableLines) error
	// Tables lists the built-in chains of the tables that exist, whether or not
	// they hold anything; nil where Trim has nothing to do.
	Tables(f host.Family, b host.Backend) (map[string][]string, error)
	// Trim removes the table's empty built-in chains with the policy ACCEPT,
	// and the table with them, as far as they did not exist before. It
	// removes nothing that treats a packet.
	Trim(f host.Family, b host.Backend, before journal.TableBefore) error
}

// Files reads and replaces files.
type Files interface {
	Read(path string) (host.File, error)
	// Write replaces a file, whole or not at all, and makes the folders above it.
	Write(before, after host.File) error
	// Missing lists the folders above path that do not exist, deepest first.
	Missing(path string) ([]string, error)
	// RemoveFolder removes a folder if it is there and empty.
	RemoveFolder(path string) error
}

// Kernel reads and sets the kernel's values, and loads and unloads modules.
type Kernel interface {
	// Sysctl reads a key; a key that does not exist gives an error that wraps
	// fs.ErrNotExist.
	Sysctl(key string) (string, error)
	SetSysctl(key, value string) error
	// Sysctls reads all keys of connection tracking that can be set.
	Sysctls() (map[string]string, error)
	// Hashsize is the number of buckets; 0 where connection tracking is not loaded.
	Hashsize() (int64, error)
	SetHashsize(buckets int64) error
	Loaded(module string) (bool, error)
	Load(ctx context.Context, module string) error
	Unload(ctx context.Context, module string) error
	// UnloadUnused unloads nf_conntrack with what stands on it, as far as
	// nothing uses it.
	UnloadUnused(ctx context.Context) error
}

// undo is a step to take back.
type undo struct {
	Step   change.Step
	Before journal.Before
	Undone bool // an earlier try took it back
	// Rebooted is whether the machine has started anew since: then the kernel
	// holds what the boot made of the files, and files alone are as they were left.
	Rebooted bool
}

// errNoStep says that a step holds nothing to do.
var errNoStep = errors.New("a step without anything to do")

// observe returns what undoing the step will need to know beside the step.
func (h *Host) observe(ctx context.Context, s change.Step) (journal.Before, error) {
	switch {
	case s.Rules != nil:
		return h.observeRules(ctx, s.Rules)
	case s.NFT != nil:
		return h.observeNative(s.NFT)
	case s.File != nil:
		now, err := h.Files.Read(s.File.Before.Path)
		if err != nil {
			return journal.Before{}, err
		}
		if !sameFile(now, s.File.Before) {
			return journal.Before{}, fmt.Errorf("%s has changed since the plan was made", s.File.Before.Path)
		}
		missing, err := h.Files.Missing(s.File.Before.Path)
		return journal.Before{Folders: missing}, err
	case s.Module != nil && !s.Module.Load:
		before, err := h.observeModule()
		return journal.Before{Module: before}, err
	case s.Service != nil:
		return h.observeService(ctx, s.Service)
	}
	return journal.Before{}, nil
}

// do carries out one step, which was observed just before.
func (h *Host) do(ctx context.Context, s change.Step, before journal.Before) error {
	switch {
	case s.Rules != nil:
		delete(h.seen, rulesKey{s.Rules.Family, s.Rules.Backend})
		if err := h.Rules.Commit(ctx, s.Rules.Family, s.Rules.Backend, s.Rules.Sections); err != nil {
			return err
		}
		for _, t := range s.Rules.Trim {
			if err := h.Rules.Trim(s.Rules.Family, s.Rules.Backend, journal.TableBefore{Name: t.Name, Chains: t.Chains}); err != nil {
				return err
			}
		}
		return nil
	case s.NFT != nil:
		return h.doNative(s.NFT, before)
	case s.File != nil:
		return h.Files.Write(s.File.Before, s.File.After)
	case s.Sysctl != nil:
		return h.Kernel.SetSysctl(s.Sysctl.Key, s.Sysctl.After)
	case s.Hashsize != nil:
		return h.setHashsize(s.Hashsize.After)
	case s.Module != nil && s.Module.Load:
		return h.Kernel.Load(ctx, s.Module.Module)
	case s.Module != nil:
		return h.Kernel.Unload(ctx, s.Module.Module)
	case s.Service != nil:
		return h.restart(ctx, s.Service)
	}
	return errNoStep
}

// undo brings what the step changes back to how it stood before, whether the
// step happened, happened in part, or not at all, and reads it back.
func (h *Host) undo(ctx context.Context, u undo) error {
	s := u.Step
	switch {
	case s.Rules != nil:
		return h.undoRules(ctx, u)
	case s.NFT != nil:
		return h.undoNative(u)
	case s.File != nil:
		return h.undoFile(u)
	case s.Sysctl != nil:
		return h.undoSysctl(s.Sysctl, u.Rebooted)
	case s.Hashsize != nil:
		return h.undoHashsize(s.Hashsize, u.Rebooted)
	case s.Module != nil:
		return h.undoModule(ctx, u)
	case s.Service != nil:
		return h.undoService(ctx, u)
	}
	return errNoStep
}

// hold makes commands keep f open until the function that it returns is called.
func (h *Host) hold(f *os.File) (release func()) {
	if h.Hold == nil {
		return func() {}
	}
	h.Hold(f)
	return func() { h.Hold(nil) }
}
