package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// ErrNoTransaction says that there is nothing to go back to.
var ErrNoTransaction = errors.New("no such transaction")

// History returns the transactions of this host that are still known, oldest
// first.
func History(dir string) ([]journal.Transaction, error) {
	store, err := journal.View(dir)
	if err != nil {
		return nil, err
	}
	return store.All()
}

// LastChange returns when a transaction last ended with its new state staying,
// among those that are still known; the zero Time when there is none.
func LastChange(dir string) (time.Time, error) {
	store, err := journal.View(dir)
	if err != nil {
		return time.Time{}, err
	}
	return store.LastCommit()
}

// Back plans the way back to before transaction id, and so takes back every
// transaction since; 0 means the last one that changed anything. The steps
// carry the plan out (Run): planner.Steps(plan) would order them anew.
//
// What others changed meanwhile stays as they left it where both can stand:
// rules beside ours do. A file or value that is no longer as a transaction
// left it blocks the plan.
//
// It returns an error that wraps ErrNoTransaction when there is no such
// transaction, or none that was not taken back already.
func Back(env Env, id int, live host.Live) (planner.Plan, []change.Step, error) {
	if env.Host == nil {
		env.Host = NewHost("")
	}
	all, err := History(env.Dir)
	if err != nil {
		return planner.Plan{}, nil, err
	}
	since, err := committedSince(all, id)
	if err != nil {
		return planner.Plan{}, nil, err
	}
	b := &wayBack{
		host: env.Host, live: live, plan: planner.Plan{Host: live.Host, Mode: declared.GoingBack},
		reason: fmt.Sprintf("goes back to before transaction %d of %s", since[0].ID, since[0].Time.Format("2006-01-02 15:04:05 MST")),
	}
	if len(since) == 1 && since[0].Back {
		b.plan.Warnings = append(b.plan.Warnings, change.Warning{Address: fmt.Sprintf("transaction %d", since[0].ID),
			Text: "it took others back itself: taking it back brings again what they had changed"})
	}
	found := groups(asOne(since))
	for _, group := range found {
		b.objects = append(b.objects, object(group[0].Step))
	}
	for _, group := range found {
		if err := b.add(group); err != nil {
			return planner.Plan{}, nil, err
		}
	}
	return b.plan, b.steps, nil
}

// committedSince returns the committed transactions from id on.
func committedSince(all []journal.Transaction, id int) ([]journal.Transaction, error) {
	var done []journal.Transaction
	found := false
	for _, t := range all {
		found = found || t.ID == id
		if t.Err != nil && t.ID >= id && id > 0 {
			return nil, fmt.Errorf("going back to before transaction %d: %w", id, t.Err)
		}
		if t.Outcome == journal.Committed && t.ID >= id {
			done = append(done, t)
		}
	}
	switch {
	case id > 0 && !found:
		return nil, fmt.Errorf("going back to before transaction %d: %w; ctplan history lists those that are known", id, ErrNoTransaction)
	case len(done) == 0:
		return nil, fmt.Errorf("going back: %w: nothing was changed since that was not taken back already", ErrNoTransaction)
	case id == 0:
		return done[len(done)-1:], nil
	}
	return done, nil
}

// asOne returns the steps of transactions as those of one, oldest first. Where
// one of them unloaded nf_conntrack, its values before that are those that it
// had then, not those that it came back with; and other modules that a later
// one unloaded had come with a rule, since nothing of them can have been there.
func asOne(since []journal.Transaction) (steps []journal.Step) {
	var was *journal.ModuleBefore // when an earlier transaction unloaded it
	seen := map[string]bool{}
	for _, t := range since {
		before := was
		for _, s := range t.Steps {
			key := object(s.Step)
			switch {
			case seen[key] || before == nil:
			case s.Module != nil && !s.Module.Load:
				continue
			case s.Sysctl != nil:
				s.Sysctl = &change.SysctlStep{Key: s.Sysctl.Key, Before: before.Sysctls[s.Sysctl.Key], After: s.Sysctl.After}
			case s.Hashsize != nil:
				s.Hashsize = &change.HashsizeStep{Before: before.Hashsize, After: s.Hashsize.After}
			}
			seen[key] = true
			if was == nil && s.Module != nil && !s.Module.Load && s.Module.Module == nfConntrack {
				was = s.Before.Module
			}
			steps = append(steps, s)
		}
	}
	return steps
}

// groups collects the steps about one object each, oldest first, and returns
// the groups in the order in which to go back: files first (see undoOrder),
// then what changed last.
func groups(steps []journal.Step) [][]journal.Step {
	at := map[string]int{}
	var found [][]journal.Step
	for _, s := range steps {
		key := object(s.Step)
		i, ok := at[key]
		if !ok {
			i = len(found)
			at[key] = i
			found = append(found, nil)
		}
		found[i] = append(found[i], s)
	}
	slices.Reverse(found)
	slices.SortStableFunc(found, func(a, b []journal.Step) int { return rank(a) - rank(b) })
	return found
}

// object names what a step is about.
func object(s change.Step) string {
	switch {
	case s.Rules != nil:
		return fmt.Sprintf("rules %s %s", s.Rules.Family, s.Rules.Backend)
	case s.NFT != nil:
		return "nftables"
	case s.File != nil:
		return "file " + s.File.Before.Path
	case s.Sysctl != nil:
		return "sysctl " + s.Sysctl.Key
	case s.Hashsize != nil:
		return "hashsize"
	case s.Module != nil:
		return "module " + s.Module.Module
	case s.Service != nil:
		return "service"
	}
	return ""
}

// rank orders groups: files, modules that come back, rules that need them, a
// service that brings what the files say by then, values, modules that go. The
// hash table grows before max and shrinks after it.
func rank(group []journal.Step) int {
	first, last := group[0], group[len(group)-1]
	switch {
	case first.File != nil:
		return 0
	case first.Module != nil && !first.Module.Load:
		return 1
	case first.Rules != nil, first.NFT != nil:
		return 2
	case first.Service != nil:
		return 3
	case first.Hashsize != nil && first.Hashsize.Before >= last.Hashsize.After:
		return 4
	case first.Sysctl != nil:
		return 5
	case first.Hashsize != nil:
		return 6
	}
	return 7
}

// wayBack is a plan in the making.
type wayBack struct {
	host   *Host
	live   host.Live
	reason string
	// objects are what the transactions changed; returning is whether
	// nf_conntrack is loaded again, and its values with it.
	objects   []string
	returning bool
	plan      planner.Plan
	steps     []change.Step
}

// add plans the way back for one object, from how it stands now to how it
// stood before the first of the steps.
func (b *wayBack) add(group []journal.Step) error {
	first, last := group[0], group[len(group)-1]
	meta := change.Meta{Address: strings.Join(first.Addresses, ", "), Action: change.Update, Reasons: []string{b.reason}}
	switch {
	case first.Rules != nil:
		b.rules(group)
	case first.NFT != nil:
		return b.native(group)
	case first.File != nil:
		return b.file(meta, first.File.Before, last.File.After)
	case first.Sysctl != nil:
		return b.sysctl(meta, first.Sysctl, last.Sysctl.After)
	case first.Hashsize != nil:
		return b.hashsize(meta, first.Hashsize.Before, last.Hashsize.After)
	case first.Module != nil:
		return b.module(meta, first)
	case first.Service != nil && len(b.plan.Changes) > 0:
		meta.Action = change.Run
		meta.Disrupts = "there are no rules for a moment, and the connections that are open are forgotten if the module is reloaded"
		b.take(&change.ServiceChange{M: meta, Step: *last.Service}, change.Step{Service: last.Service})
	}
	return nil
}

// file goes back to want from what was left, unless somebody else has changed
// the file since.
func (b *wayBack) file(meta change.Meta, want, left host.File) error {
	now, err := b.host.Files.Read(want.Path)
	if err != nil {
		return err
	}
	switch {
	case now.Exists == want.Exists && now.Content == want.Content:
		return nil
	case now.Exists != left.Exists || now.Content != left.Content:
		b.block(meta.Address, want.Path, "it was changed by somebody else since, and going back would lose that")
		return nil
	case !now.Exists:
		meta.Action = change.Create
	case !want.Exists:
		meta.Action = change.Delete
	}
	b.take(&change.FileChange{M: meta, Before: now, After: want},
		change.Step{File: &change.FileStep{Before: now, After: want}})
	return nil
}

// sysctl is the same of a key.
func (b *wayBack) sysctl(meta change.Meta, first *change.SysctlStep, left string) error {
	want := first.Before
	now, err := b.host.Kernel.Sysctl(first.Key)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	switch {
	case want == "": // it came with its module, and goes with it
		return nil
	case missing && b.returning:
	case missing, sameValue(now, want):
		return nil
	case !sameValue(now, left):
		b.block(meta.Address, first.Key, fmt.Sprintf("it is %q and no longer %q: something else set it since", now, left))
		return nil
	}
	b.take(&change.SysctlChange{M: meta, Key: first.Key, Before: now, After: want},
		change.Step{Sysctl: &change.SysctlStep{Key: first.Key, Before: now, After: want}})
	return nil
}

// hashsize is the same of the hash table.
func (b *wayBack) hashsize(meta change.Meta, want, left int64) error {
	now, err := b.host.Kernel.Hashsize()
	switch {
	case err != nil:
		return err
	case want == 0: // it came with its module, and goes with it
		return nil
	case now == 0 && b.returning:
	case now == want, now == 0:
		return nil
	case now != left:
		b.block(meta.Address, "hashsize", fmt.Sprintf("it is %d and no longer %d: something else set it since", now, left))
		return nil
	}
	b.take(&change.HashsizeChange{M: meta, Before: now, After: want},
		change.Step{Hashsize: &change.HashsizeStep{Before: now, After: want}})
	return nil
}

// module loads what was unloaded, and the other way round.
func (b *wayBack) module(meta change.Meta, first journal.Step) error {
	now, err := b.host.Kernel.Loaded(first.Module.Module)
	if err != nil {
		return err
	}
	want := !first.Module.Load
	if now == want {
		return nil
	}
	meta.Action = change.Delete
	if want {
		meta.Action = change.Create
	}
	b.take(&change.ModuleChange{M: meta, Module: first.Module.Module, Load: want},
		change.Step{Module: &change.ModuleStep{Module: first.Module.Module, Load: want}})
	if want {
		b.values(first)
	}
	return nil
}

// maxSysctl is how many entries the table may hold.
const maxSysctl = "net.netfilter.nf_conntrack_max"

// values plans the sizes that a module had when it was unloaded: it comes back
// with its defaults. The hash size goes first, since max follows from it.
func (b *wayBack) values(s journal.Step) {
	if s.Module.Module != nfConntrack || s.Before.Module == nil {
		return
	}
	b.returning = true
	meta := change.Meta{Action: change.Update, Reasons: []string{b.reason}}
	if size := s.Before.Module.Hashsize; size > 0 && !slices.Contains(b.objects, "hashsize") {
		meta.Address = "sysfs.nf_conntrack.hashsize"
		b.take(&change.HashsizeChange{M: meta, After: size}, change.Step{Hashsize: &change.HashsizeStep{After: size}})
	}
	if value := s.Before.Module.Sysctls[maxSysctl]; value != "" && !slices.Contains(b.objects, "sysctl "+maxSysctl) {
		meta.Address = "sysctl." + maxSysctl
		b.take(&change.SysctlChange{M: meta, Key: maxSysctl, After: value}, change.Step{Sysctl: &change.SysctlStep{Key: maxSysctl, After: value}})
	}
}

// rules plans the way back for one family's rules.
func (b *wayBack) rules(group []journal.Step) {
	family, backend := group[0].Rules.Family, group[0].Rules.Backend
	live := host.Ruleset{Family: family, Backend: backend}
	for _, r := range b.live.Rulesets {
		if r.Family == family && r.Backend == backend {
			live = r
		}
	}
	var names []string
	for _, s := range group {
		names = append(names, tableNames(s.Rules.Sections)...)
	}
	models := modelsOf(live, names)
	var back []change.Section
	for _, s := range slices.Backward(group) {
		sections := inverse(s.Rules, len(s.Rules.Sections))
		if models.stand(s.Before, len(s.Rules.Sections)) {
			models.apply(sections) // nobody changed anything since
		} else {
			sections = models.mend(sections)
		}
		back = append(back, sections...)
	}
	if !slices.ContainsFunc(names, func(n string) bool { return digest(models[n]) != digest(xtables.Model(live, n)) }) {
		return
	}
	step := change.Step{Rules: &change.RulesStep{Family: family, Backend: backend, Sections: back}}
	trims := map[string]bool{}
	for _, s := range group {
		for _, t := range s.Before.Tables {
			if !trims[t.Name] {
				trims[t.Name] = true
				step.Rules.Trim = append(step.Rules.Trim, change.TrimTable{Name: t.Name, Chains: t.Chains})
			}
		}
	}
	for _, table := range tableNames(back) {
		c := &change.RulesChange{
			M:      change.Meta{Address: addressOf(group, table), Action: change.Update, Reasons: []string{b.reason}},
			Family: family, Backend: backend, Table: table, Before: xtables.Model(live, table).Lines(),
		}
		m := xtables.Model(live, table)
		for _, sec := range back {
			if sec.Table == table {
				m.Apply(sec.Ops...)
				c.Close = append(c.Close, sec.Ops...)
			}
		}
		c.After = m.Lines()
		step.Addresses = append(step.Addresses, c.M.Address)
		b.plan.Changes = append(b.plan.Changes, c)
	}
	b.steps = append(b.steps, step)
}

// addressOf is the address that the steps used for a table.
func addressOf(group []journal.Step, table string) string {
	for _, s := range group {
		for _, a := range s.Addresses {
			if strings.HasSuffix(a, "."+table) {
				return a
			}
		}
	}
	return fmt.Sprintf("iptables.%s.%s", group[0].Rules.Family, table)
}

func (b *wayBack) take(c change.Change, s change.Step) {
	s.Addresses = []string{c.Meta().Address}
	b.plan.Changes = append(b.plan.Changes, c)
	b.steps = append(b.steps, s)
}

func (b *wayBack) block(address, where, why string) {
	b.plan.Blocks = append(b.plan.Blocks, change.Block{
		Address: address, Where: where, Why: why,
		Remedy: "put back what the transaction had left there, or change the HCL and apply that instead of going back",
	})
}
