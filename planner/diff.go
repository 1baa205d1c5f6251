package planner

import (
	"fmt"
	"slices"
	"sync"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/modules"
	"github.com/ctplan/ctplan/planner/nftconf"
	"github.com/ctplan/ctplan/planner/rules"
	"github.com/ctplan/ctplan/planner/service"
	"github.com/ctplan/ctplan/planner/sides"
	"github.com/ctplan/ctplan/planner/sizes"
)

// Diff compares what is declared with what is, and returns what to do: the
// changes in the order in which they are safe, or why there must be none.
func Diff(d declared.Desired, l host.Live) Plan {
	w := newDraft(d, l)
	if w.done {
		return w.plan()
	}
	d = w.desired
	judges := judge.Kernel(d, l, change.StepsOf(w.changes), nil)
	saved := sync.OnceValue(func() []*judge.Judge { return judge.Saved(d, l, w.rules.Saved) })
	if l.Connections != nil && touchesRules(w.changes) {
		lost, found := impact.Of(d, l, judges, saved())
		w.impact = lost
		w.Add(found)
	}
	w.Add(sides.Check(sides.Input{Desired: d, Live: l, Judges: judges, Rules: w.rules.Kernel, Saved: saved, Impact: w.impact}))
	w.native()
	return w.plan()
}

// Draft is Diff without what every rule must be judged for: the impact on
// connections, and what the rules do to one side only. The changes are the
// same. It is for who wants to know whether there are any.
func Draft(d declared.Desired, l host.Live) Plan {
	w := newDraft(d, l)
	w.native()
	return w.plan()
}

// newDraft plans the changes, stage by stage.
func newDraft(d declared.Desired, l host.Live) *draft {
	d.Chains = modules.Loadable(d.Chains, l.Loading)
	w := &draft{desired: d, live: l}
	for _, n := range l.Notes {
		w.warn(n)
	}
	switch {
	case d.Mode == declared.Unmanaged:
		w.warn(fmt.Sprintf("no conntrack block matches host %s: nothing is planned for it", l.Host.Name))
		w.Add(rules.Leftovers(l))
		w.done = true
		return w
	case l.Conntrack.Kind == host.ConntrackAbsent && d.Mode != declared.Disabled:
		w.Add(noTracking(d, l))
		w.done = true
		return w
	}
	work, found := rules.Plan(d, l)
	w.rules = work
	switch d.Mode {
	case declared.Tuned:
		w.tune()
	case declared.Notrack:
		w.edits(&w.first)(modules.LiftBlock(d, l))
		w.Add(rules.NativeState(d, l))
	case declared.Disabled:
		w.edits(&w.files)(sizes.Forget(d, l))
		w.edits(&w.files)(service.InitScripts(d, l, false))
		w.edits(&w.last)(modules.BlockLoad(d, l))
		left := l
		left.NFTFiles = nftconf.After(l.NFTConf.Mains, l.NFTFiles, work.Files)
		w.takes(&w.unload)(modules.Unload(d, left))
	}
	w.edits(&w.files)(work.Files, found)
	w.changes = w.inOrder()
	w.Add(modules.Reach(d, l, w.changes))
	return w
}

// tune sizes the table, live and at boot: by what can be set while it runs, or
// by a restart of the service, which loads the module anew.
func (w *draft) tune() {
	d, l := w.desired, w.live
	w.edits(&w.first)(modules.LiftBlock(d, l))
	w.load = modules.Load(d, l)
	w.takes(&w.size)(sizes.Set(d, l, len(w.load) > 0))
	if len(w.load) == 0 && len(w.size) > 0 && d.Reload == declared.ReloadRestart {
		w.takes(&w.restart)(service.Restart(d, l))
		w.restart = append(w.restart, append(w.size, sizes.SetAgain(d, l, w.size)...)...)
		w.size = nil
	}
	first, files, found := sizes.Persist(d, l)
	w.edits(&w.first)(first, found)
	w.edits(&w.files)(files, change.Findings{})
	w.edits(&w.files)(service.InitScripts(d, l, true))
}

// draft is a plan in the making: what each stage gave, by when it is done.
type draft struct {
	change.Findings
	desired declared.Desired
	live    host.Live
	done    bool // there is nothing to plan, nor to judge

	first   change.Edits    // of files, before anything else
	load    []change.Change // of the module
	size    []change.Change
	rules   rules.Work
	files   change.Edits    // once rules and sizes are as they shall be
	restart []change.Change // of the service, and sizes that it resets
	last    change.Edits    // of files, before the module is unloaded
	unload  []change.Change
	changes []change.Change // all of them, in order

	impact *impact.Impact
}

// inOrder are the changes of the stages, in the order in which they are safe: lift a
// block on loading the module, load it, size the table, rules (accepts, then
// NOTRACK, then what goes), rules files and other files, block the load, unload.
// Nothing that lets traffic through goes before what replaces it has come.
func (w *draft) inOrder() []change.Change {
	return slices.Concat(w.first.Changes(), w.load, w.size, w.rules.Kernel, w.files.Changes(), w.restart, w.last.Changes(), w.unload)
}

func (w *draft) plan() Plan {
	return Plan{
		Host: w.live.Host, Mode: w.desired.Mode, Block: w.desired.Block, Source: w.desired.Source,
		Changes: w.changes, Blocks: w.Blocks, Warnings: w.Warnings, Impact: w.impact,
	}
}

// edits returns what takes in a stage that edits files.
func (w *draft) edits(to *change.Edits) func(change.Edits, change.Findings) {
	return func(more change.Edits, found change.Findings) {
		to.Add(more)
		w.Add(found)
	}
}

// takes is the same of a stage that makes changes.
func (w *draft) takes(to *[]change.Change) func([]change.Change, change.Findings) {
	return func(more []change.Change, found change.Findings) {
		*to = more
		w.Add(found)
	}
}

func (w *draft) warn(text string) { w.Add(change.Findings{Warnings: []change.Warning{{Text: text}}}) }

// native says that native nftables was not judged, where rules change.
func (w *draft) native() {
	if !w.done && touchesRules(w.changes) {
		w.Add(rules.NativeChains(w.live))
	}
}

// noTracking blocks what a kernel without connection tracking cannot do.
func noTracking(d declared.Desired, l host.Live) change.Findings {
	r := change.NewReport(d)
	r.Block(change.Block{
		Risk:    declared.RiskNoConntrack,
		Address: "module.nf_conntrack",
		Where:   "kernel " + l.Host.Kernel,
		Why:     fmt.Sprintf("this kernel has no connection tracking: there is no nf_conntrack module and none is built in, so mode %q has nothing to work on", d.Mode),
		Remedy:  `declare mode = "disabled", which such a host already satisfies, or boot a kernel with nf_conntrack`,
	})
	return r.Findings
}

// NeedsConnections reports whether the plan can cut somebody off, so that
// Diff is to be given Live.Connections.
func NeedsConnections(p Plan) bool { return touchesRules(p.Changes) }

func touchesRules(changes []change.Change) bool {
	return slices.ContainsFunc(changes, func(c change.Change) bool {
		switch c.(type) {
		case *change.RulesChange, *change.NFTChange:
			return true
		}
		return false
	})
}

// Steps returns what apply does for the plan, in order.
func Steps(p Plan) []change.Step { return change.StepsOf(p.Changes) }

// Judged returns the plan of a way back with what its steps do to the
// connections that are open. What they lose is a warning, and no block: who
// goes back may have to, and has no HCL to accept a risk in. split takes the
// words of a rule apart, as iptables-restore does. Of d the mode does not count.
func (p Plan) Judged(d declared.Desired, l host.Live, steps []change.Step, split func(rule string) []string) Plan {
	if l.Connections == nil || !NeedsConnections(p) {
		return p
	}
	d.Mode = p.Mode
	judges := judge.Kernel(d, l, steps, split)
	lost, found := impact.Of(d, l, judges, nil)
	for _, b := range found.Blocks {
		found.Warnings = append(found.Warnings, change.Warning{Address: b.Address, Text: fmt.Sprintf("%s (%s)", b.Why, b.Where)})
	}
	if slices.ContainsFunc(judges.All(), (*judge.Judge).RoutedBegins) {
		found.Warnings = append(found.Warnings, change.Warning{Address: "connections", Text: "routed connections that are not tracked today are known to nobody: those that were opened since are in no number, and may be cut off when they are tracked again"})
	}
	all := change.Findings{Blocks: p.Blocks, Warnings: slices.Clone(p.Warnings)}
	all.Add(change.Findings{Warnings: found.Warnings})
	p.Impact, p.Warnings = lost, all.Warnings
	return p
}
