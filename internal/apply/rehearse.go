package apply

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
	"github.com/ctplan/ctplan/providers/iptables"
)

// mostRehearsed is how many rules are loaded once more for a rehearsal. More
// take long, and the kernel's memory twice.
const mostRehearsed = 50_000

// RehearsalError says that rules, or the way back from them, did not come to
// what they should in a network namespace of their own. Nothing was changed.
type RehearsalError struct {
	Back bool  // there is no way back; false: not even a way there
	Err  error // what happened
}

func (e *RehearsalError) Error() string {
	what := "loading them"
	if e.Back {
		what = "there would be no way back: taking them back"
	}
	return fmt.Sprintf("tried in a network namespace of their own, %s failed: %v", what, e.Err)
}

func (e *RehearsalError) Unwrap() error { return e.Err }

// errUnrehearsed says why the rules could not be tried there.
var errUnrehearsed = errors.New("no rehearsal")

// program is what the steps of a transaction do to the rules that one
// iptables-save prints: the sections of each step, in order.
type program struct {
	key   rulesKey
	steps []*change.RulesStep
}

// programs are the rules steps of a transaction up to where it loads a module:
// rules that come after that may need the module, and loading may still be
// blocked. Those are tested by their commit alone.
func programs(steps []change.Step) []program {
	var all []program
	for _, s := range steps {
		if s.Module != nil && s.Module.Load {
			break
		}
		if s.Rules == nil {
			continue
		}
		key := rulesKey{s.Rules.Family, s.Rules.Backend}
		i := slices.IndexFunc(all, func(p program) bool { return p.key == key })
		if i < 0 {
			i = len(all)
			all = append(all, program{key: key})
		}
		all[i].steps = append(all[i].steps, s.Rules)
	}
	return all
}

// there are the sections of the way there, in order.
func (p program) there() []change.Section {
	var out []change.Section
	for _, s := range p.steps {
		out = append(out, s.Sections...)
	}
	return out
}

// back are the sections of the way back, each step's by itself, in order.
func (p program) back() (steps [][]change.Section) {
	for _, s := range slices.Backward(p.steps) {
		steps = append(steps, inverse(s, len(s.Sections)))
	}
	return steps
}

// test asks the host's own tools whether they would take the rules of the
// steps, and then take them back: by having them do both in a network namespace
// with the rules of before. Where that cannot be, they test it line by line
// against what stands.
func (h *Host) test(ctx context.Context, steps []change.Step) error {
	before := loadsFirst(steps)
	if err := h.testNative(steps); err != nil && !before {
		return err
	}
	all := programs(steps)
	results := make([]error, len(all))
	var wg sync.WaitGroup
	for i, p := range all {
		live, err := h.rulesNow(ctx, p.key)
		if err != nil {
			return err
		}
		if results[i] = errUnrehearsed; !before {
			wg.Go(func() { results[i] = h.rehearse(ctx, p, live) })
		}
	}
	wg.Wait()
	for i, p := range all {
		err := results[i]
		if errors.Is(err, errUnrehearsed) {
			sections := slices.Concat(p.there(), slices.Concat(p.back()...))
			err = h.Rules.Test(ctx, p.key.family, p.key.backend, sections)
		}
		if err != nil {
			return fmt.Errorf("the %s rules: %w", p.key.family, err)
		}
	}
	if err := h.checkFiles(ctx, steps); err != nil {
		return err
	}
	return ctx.Err()
}

// checkFiles has who reads them say whether they can be read as the steps leave them.
func (h *Host) checkFiles(ctx context.Context, steps []change.Step) error {
	var edited []host.File
	for _, s := range steps {
		if s.File != nil {
			edited = append(slices.DeleteFunc(edited, func(f host.File) bool { return f.Path == s.File.After.Path }), s.File.After)
		}
	}
	if len(edited) == 0 || h.CheckFiles == nil {
		return nil
	}
	return h.CheckFiles(ctx, edited)
}

// loadsFirst is whether what the rules need can be loaded only once the change
// has begun: it lifts a block of modprobe.d, or loads a module itself.
func loadsFirst(steps []change.Step) bool {
	loads := false
	for _, s := range steps {
		if (s.Rules != nil || s.NFT != nil) && loads {
			return true
		}
		loads = loads || s.Module != nil && s.Module.Load || s.File != nil && strings.Contains(s.File.After.Path, "/modprobe.d/")
	}
	return false
}

// rulesNow are the rules that stand, as they were read under the lock.
func (h *Host) rulesNow(ctx context.Context, key rulesKey) (host.Ruleset, error) {
	if live, ok := h.seen[key]; ok {
		return live, nil
	}
	return h.Rules.Save(ctx, key.family, key.backend)
}

// rehearse carries out a program and takes it back, in earnest, where nobody
// sees it. Its error wraps errUnrehearsed where that cannot be done here, and
// is a *RehearsalError where it went wrong.
func (h *Host) rehearse(ctx context.Context, p program, live host.Ruleset) error {
	if h.Apart == nil {
		return errUnrehearsed
	}
	names := tableNames(p.there())
	before := modelsOf(live, names)
	rules := 0
	for _, m := range before {
		for _, c := range m.Chains() {
			rules += len(m.Rules(c.Name))
		}
	}
	if rules > mostRehearsed {
		return fmt.Errorf("%w: %d rules are too many", errUnrehearsed, rules)
	}
	err := h.Apart(func() error { return h.thereAndBack(ctx, p, names, before) })
	if differs := (*differsError)(nil); errors.As(err, &differs) && differs.back {
		// Perhaps the tools print what they load otherwise than what stands.
		again := h.Apart(func() error {
			if err := h.stage(ctx, p.key, names, before); err != nil {
				return err
			}
			return h.holds(ctx, p.key, before, true)
		})
		if again != nil {
			return fmt.Errorf("%w: the rules of before are not printed as they were loaded", errUnrehearsed)
		}
	}
	return err
}

// thereAndBack is the rehearsal.
func (h *Host) thereAndBack(ctx context.Context, p program, names []string, before tableModels) error {
	// What a rule names, such as a set, may be in the host's namespace alone.
	if err := h.stage(ctx, p.key, names, before); err != nil {
		if busy(err) {
			return err
		}
		return fmt.Errorf("%w: the rules of before cannot be loaded there: %w", errUnrehearsed, err)
	}
	fail := func(back bool, err error) error {
		if busy(err) {
			return err
		}
		return &RehearsalError{Back: back, Err: err}
	}
	for _, s := range p.steps {
		if err := h.Rules.Commit(ctx, p.key.family, p.key.backend, s.Sections); err != nil {
			return fail(false, err)
		}
	}
	after := tableModels{}
	for name, m := range before {
		after[name] = m.Clone()
	}
	after.apply(p.there())
	if err := h.holds(ctx, p.key, after, false); err != nil {
		return fail(false, err)
	}
	for _, sections := range p.back() {
		if err := h.Rules.Commit(ctx, p.key.family, p.key.backend, sections); err != nil {
			return fail(true, err)
		}
	}
	if err := h.holds(ctx, p.key, before, true); err != nil {
		return fail(true, err)
	}
	return nil
}

// busy reports whether an error says nothing about the rules.
func busy(err error) bool {
	var locked *iptables.LockedError
	return errors.As(err, &locked) || errors.Is(err, context.Canceled) || errors.Is(err, iptables.ErrNotInstalled) || errors.Is(err, iptables.ErrNotPermitted)
}

// stage loads the rules of before, as far as there are any.
func (h *Host) stage(ctx context.Context, key rulesKey, names []string, before tableModels) error {
	var tables []xtables.TableLines
	for _, name := range names {
		if m := before[name]; m.Canonical() != "" {
			tables = append(tables, xtables.TableLines{Name: name, Lines: m.Lines()})
		}
	}
	if len(tables) == 0 {
		return nil
	}
	return h.Rules.Replace(ctx, key.family, key.backend, tables)
}

// differsError says that a restore ended well and did not do what it was told.
type differsError struct {
	table string
	back  bool
}

func (e *differsError) Error() string {
	return fmt.Sprintf("iptables-restore ended well, and table %s is not what it should be", e.table)
}

// holds reads the tables and compares them. exactly is rule by rule; else
// ctplan's own chains may hold rules that print otherwise.
func (h *Host) holds(ctx context.Context, key rulesKey, want tableModels, exactly bool) error {
	live, err := h.Rules.Save(ctx, key.family, key.backend)
	if err != nil {
		return err
	}
	for name, m := range want {
		got := xtables.Model(live, name)
		if digest(got) != digest(m) && (exactly || !alike(got, m)) {
			return &differsError{table: name, back: exactly}
		}
	}
	return nil
}

// alike reports whether two tables have the same rules of others, and as many
// of ctplan's.
func alike(a, b *xtables.TableModel) bool {
	for _, m := range []*xtables.TableModel{a, b} {
		for _, c := range m.Chains() {
			ra, rb := a.Rules(c.Name), b.Rules(c.Name)
			switch {
			case xtables.IsOwn(c.Name) && (len(ra) != len(rb) || a.Has(c.Name) != b.Has(c.Name)):
				return false
			case !xtables.IsOwn(c.Name) && !slices.Equal(ra, rb):
				return false
			}
		}
	}
	return true
}

// apart calls fn in a network namespace of its own, in which no packet moves
// and which ends with it. Commands that fn starts are in there too, those of
// goroutines that it starts are not.
func apart(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread stands for the process in /proc/self, and does not
			// end. While it waits here, another thread runs the other function.
			done <- apart(fn)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with this function, and with it the
		// namespace.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("%w: making a network namespace: %w", errUnrehearsed, err)
			return
		}
		done <- fn()
	}()
	return <-done
}
