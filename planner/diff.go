package planner

import (
	"fmt"
	"slices"
	"strings"
)

// planning is one run of Diff.
type planning struct {
	d       Desired
	l       Live
	plan    Plan
	files   fileSet // edits that wait until rules and sysctls are as they shall be
	first   fileSet // edits that must come before anything else
	last    fileSet // edits that must come after everything but unloading
	rules   []Change
	untrack []untracked
	judges  map[Family]*judge
	steps   []Step                    // of a way back, which has an order of its own; nil: those of the plan
	split   func(string) []string     // reads the rules that a way back brings, which stand nowhere today
	named   map[string]bool           // findings that are in the plan already
	saved   map[*Ruleset][]*tableWork // of saved rules files
}

// untracked is a set of packets that a rule in a raw table takes out of tracking.
type untracked struct {
	family Family
	hook   string
	packets
}

// Diff compares what is declared with what is, and returns what to do: the
// changes in the order in which they are safe, or why there must be none.
//
// The order: lift a block on loading the module, load it, size the table,
// rules (accepts, then NOTRACK, then what goes), rules files and other files,
// block the load, unload. Where sizes come by a restart of the service, that
// and sizing follow the files. Nothing that lets traffic through goes before what
// replaces it has come.
func Diff(d Desired, l Live) Plan {
	p := newPlanning(d, l)
	if p.draft() {
		p.impact()
		p.symmetry()
		p.nativeChains()
	}
	return p.plan
}

// Draft is Diff without what every rule must be judged for: the impact on
// connections, and what the rules do to one side only. The changes are the
// same. It is for who wants to know whether there are any.
func Draft(d Desired, l Live) Plan {
	p := newPlanning(d, l)
	if p.draft() {
		p.nativeChains()
	}
	return p.plan
}

func newPlanning(d Desired, l Live) *planning {
	return &planning{d: d, l: l, saved: map[*Ruleset][]*tableWork{}, plan: Plan{Host: l.Host, Mode: d.Mode, Block: d.Block, Source: d.Source}}
}

// draft plans the changes. It reports whether there is something to judge.
func (p *planning) draft() bool {
	d, l := p.d, p.l
	for _, n := range l.Notes {
		p.warn("", n, Pos{})
	}
	if d.Mode == Unmanaged {
		p.unmanaged()
		return false
	}
	if !p.possible() {
		return false
	}
	for _, c := range d.Chains {
		if c.Table == "raw" {
			for _, r := range c.Rules {
				p.untrack = append(p.untrack, untracked{c.Family, c.Hook, packetsOf(parseSpec(r.Words))})
			}
		}
	}

	var load, size, restart, unload []Change
	switch d.Mode {
	case Tuned:
		p.liftBlock()
		load = p.loadModule()
		size = p.sizeTable(len(load) > 0)
		if len(load) == 0 && len(size) > 0 && p.d.Reload == ReloadRestart {
			restart = append(p.restart(), append(size, p.setAgain(size)...)...)
			size = nil
		}
		p.persistSizes()
		p.initScripts(true)
	case Notrack:
		p.liftBlock()
		p.nativeState()
	case Disabled:
		p.forgetSizes()
		p.initScripts(false)
		p.loaders()
		p.blockLoad()
		unload = p.unloadModules()
	}
	p.kernelRules()
	p.savedRules()

	p.add(p.first.changes()...)
	p.add(load...)
	p.add(size...)
	p.add(p.rules...)
	p.add(p.files.changes()...)
	p.add(restart...)
	p.add(p.last.changes()...)
	p.add(unload...)
	return true
}

func (p *planning) add(changes ...Change) { p.plan.Changes = append(p.plan.Changes, changes...) }

func (s *fileSet) changes() []Change {
	var out []Change
	for _, w := range s.works {
		if c := w.change(); c != nil {
			out = append(out, c)
		}
	}
	return out
}

func (p *planning) warn(address, text string, source Pos, commands ...string) {
	w := Warning{Address: address, Text: text, Source: source, Commands: commands}
	if !slices.ContainsFunc(p.plan.Warnings, func(o Warning) bool { return o.Address == address && o.Text == text && o.Source == source }) {
		p.plan.Warnings = append(p.plan.Warnings, w)
	}
}

// block records a reason not to go on, unless the HCL accepts the risk. It
// reports whether the risk is accepted.
func (p *planning) block(b Block) bool {
	if b.Override && p.d.Allows(b.Risk) {
		p.warn(b.Address, fmt.Sprintf("%s: %s (allow_risk accepts %s)", b.Where, b.Why, b.Risk), b.Source)
		return true
	}
	if b.Source == (Pos{}) {
		b.Source = p.d.ModeSource
	}
	p.plan.Blocks = append(p.plan.Blocks, b)
	return false
}

// possible checks that the kernel can do what the mode asks for at all.
func (p *planning) possible() bool {
	if p.l.Conntrack.Kind != ConntrackAbsent || p.d.Mode == Disabled {
		return true
	}
	p.block(Block{
		Risk:    RiskNoConntrack,
		Address: "module.nf_conntrack",
		Where:   "kernel " + p.l.Host.Kernel,
		Why:     fmt.Sprintf("this kernel has no connection tracking: there is no nf_conntrack module and none is built in, so mode %q has nothing to work on", p.d.Mode),
		Remedy:  `declare mode = "disabled", which such a host already satisfies, or boot a kernel with nf_conntrack`,
	})
	return false
}

// unmanaged says what is left on a host that no block matches.
func (p *planning) unmanaged() {
	p.warn("", fmt.Sprintf("no conntrack block matches host %s: nothing is planned for it", p.l.Host.Name), Pos{})
	for i := range p.l.Rulesets {
		r := &p.l.Rulesets[i]
		if commands := removalCommands(r); commands != nil {
			p.warn("iptables."+string(r.Family), "ctplan's chains still stand here; to take them away:", Pos{}, commands...)
		}
	}
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		if removalCommands(r) != nil {
			p.warn("file."+r.File.Path, "ctplan's chains stand in this file too; to take them away:", Pos{}, "sed -i '/"+OwnPrefix+"/d' '"+strings.ReplaceAll(r.File.Path, "'", `'\''`)+"'")
		}
	}
}

// removalCommands are the shell commands that take our chains out of a
// ruleset, jumps first; nil when it has none. Chain names are checked to be ours, so that
// no live string becomes part of a command.
func removalCommands(r *Ruleset) []string {
	var jumps, chains []string
	for i := range r.Tables {
		t := &r.Tables[i]
		run := toolName(r.Family, r.Backend, r.Primary) + " -t " + t.Name
		for _, d := range t.Chains {
			hook, ok := strings.CutPrefix(d.Name, OwnPrefix)
			if !ok || !slices.Contains(builtins[t.Name], hook) {
				continue
			}
			for j := range t.Rules {
				if t.Rules[j].Chain == hook && t.Rules[j].ownTarget() == d.Name {
					jumps = append(jumps, fmt.Sprintf("%s -D %s -j %s", run, hook, d.Name))
				}
			}
			chains = append(chains, run+" -F "+d.Name, run+" -X "+d.Name)
		}
	}
	return append(jumps, chains...)
}

func toolName(f Family, b Backend, primary bool) string {
	name := "iptables"
	if f == IPv6 {
		name = "ip6tables"
	}
	if !primary && b != "" {
		name += "-" + string(b)
	}
	return name
}
