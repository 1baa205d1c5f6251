// Package rules plans the rules of a host: ctplan's chains and the jumps to them,
// in the kernel and in saved files, and the rules of others that cannot stay.
package rules

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/translate"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Work is what is to be done to the rules of a host.
type Work struct {
	Kernel []change.Change // of live rulesets, in their order
	Files  change.Edits    // of saved rules files
	// Saved are the same edits as what they do to tables.
	Saved map[*host.Ruleset]*change.RulesStep
}

// stage is one planning of the rules.
type stage struct {
	change.Report
	d       declared.Desired
	l       host.Live
	untrack []untracked // what the declared rules take out of tracking

	translator *translate.Translator
	foreign    map[*host.Ruleset]map[string]foreign // by table
	goes       map[*host.Rule]bool                  // of others
	join       []host.Family                        // of which ctplan has fragments joined
	out        Work

	carrier declared.Firewall // what ctplan's rules go into
	reason  string            // why
}

// Plan plans every live ruleset and every saved rules file: ctplan's chains
// where they belong, and the rules of others that cannot stay.
func Plan(d declared.Desired, l host.Live) (Work, change.Findings) {
	p := &stage{Report: change.NewReport(d), d: d, l: l, out: Work{Saved: map[*host.Ruleset]*change.RulesStep{}}, translator: translate.New()}
	p.carrier, p.reason = carrier.Of(d, l)
	for _, c := range d.Chains {
		if c.Table == "raw" {
			for _, r := range c.Rules {
				p.untrack = append(p.untrack, untrackedBy(c.Family, c.Hook, r.Words, r.Own))
			}
		}
	}
	p.foreign, p.goes = map[*host.Ruleset]map[string]foreign{}, map[*host.Rule]bool{}
	for i := range l.Rulesets {
		p.incompatible(&l.Rulesets[i])
		p.leaves(&l.Rulesets[i])
	}
	for i := range l.SavedRules {
		if r := &l.SavedRules[i]; r.Refusal == "" && p.plans(r) {
			p.leaves(r)
		}
	}
	p.join = p.joinedBy()
	p.nativeRules()
	p.kernelRules()
	p.nativeNAT()
	p.nativeTwins()
	p.savedRules()
	p.nativeWork()
	return p.out, p.Findings
}

// foreign is what becomes of rules of others in a table.
type foreign struct {
	remove []*host.Rule
	twins  []twinWork
}

// leaves decides about the rules of others in a ruleset.
func (p *stage) leaves(r *host.Ruleset) {
	p.foreign[r] = map[string]foreign{}
	for _, table := range r.TableNames() {
		sections := r.Sections(table)
		f := foreign{p.cannotStay(r, table, sections), p.twinsOf(r, table, sections)}
		p.foreign[r][table] = f
		for _, rule := range f.remove {
			p.goes[rule] = true
		}
		for _, t := range f.twins {
			for _, rule := range slices.Concat(t.drop, t.close) {
				p.goes[rule] = true
			}
		}
	}
}

// plans is whether a saved file is one to keep in line.
func (p *stage) plans(r *host.Ruleset) bool {
	return p.carrier == declared.IPTables && (slices.Contains(p.d.Families, r.Family) || len(p.d.ChainsOf(r.Family)) > 0) || r.File.Exists
}

// kernelRules plans every live ruleset: ctplan's chains in the one that it
// writes through, and in each the foreign rules that cannot stay.
func (p *stage) kernelRules() {
	for i := range p.l.Rulesets {
		r := &p.l.Rulesets[i]
		works := p.rulesetWork(r)
		if len(works) > 0 {
			p.unserved(r)
		}
		for _, w := range works {
			p.out.Kernel = append(p.out.Kernel, p.rulesChange(w, r))
		}
	}
	if p.carrier == declared.IPTables && p.d.Firewall == p.carrier && len(p.d.Chains) > 0 && !slices.ContainsFunc(p.l.Rulesets, func(r host.Ruleset) bool { return r.Primary }) {
		p.Block(change.Block{
			Risk: declared.RiskOldIptables, Address: "iptables", Where: fmt.Sprintf("firewall = %q", p.d.Firewall), Why: "iptables is not installed here, so it cannot carry the rules that are declared",
			Remedy: "install the package iptables (on some systems iptables-nft), or leave firewall out, for nftables", Source: p.d.FirewallSource,
		})
		return
	}
	for _, f := range host.Families {
		if p.carrier == declared.IPTables && len(p.d.ChainsOf(f)) > 0 && !slices.ContainsFunc(p.l.Rulesets, func(r host.Ruleset) bool { return r.Family == f && r.Primary }) {
			p.Warn("iptables."+string(f), fmt.Sprintf("%s is not filtered on this host (no %s): the rules declared for it are left out", f, xtables.ToolName(f, "", true)), p.d.Source)
		}
	}
}

// unserved refuses to write rules through a release of iptables that is not up to it.
func (p *stage) unserved(r *host.Ruleset) {
	if why, remedy := xtables.Unserved(r.Backend, r.Version); why != "" {
		address := "iptables." + string(r.Family)
		if !r.Primary {
			address += "." + string(r.Backend)
		}
		p.Block(change.Block{Risk: declared.RiskOldIptables, Address: address, Where: fmt.Sprintf("%s %s", xtables.ToolName(r.Family, r.Backend, r.Primary), r.Version), Why: why, Remedy: remedy, Source: p.d.Source})
	}
}

func (p *stage) rulesChange(w *tableWork, r *host.Ruleset) *change.RulesChange {
	c := w.change(r)
	if len(c.M.Sources) == 0 {
		c.M.Sources = []declared.Pos{p.d.ModeSource}
	}
	return c
}

// savedRules plans the rules files: the same work, as edits.
func (p *stage) savedRules() {
	saved := map[host.Family]bool{}
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		saved[r.Family] = true
		if !p.plans(r) {
			continue
		}
		if r.Refusal != "" {
			p.Block(change.Block{
				Risk:     declared.RiskSavedRules,
				Address:  "file." + r.File.Path,
				Where:    fmt.Sprintf("%s:%d", r.File.Path, r.RefusalLine),
				Why:      "this rules file cannot be read, so it cannot be brought in line with the kernel: " + r.Refusal,
				Remedy:   "mend the line, or save the live rules over it with iptables-save",
				Override: true,
				Source:   p.d.Source,
			})
			continue
		}
		works := p.rulesetWork(r)
		if len(works) == 0 {
			continue
		}
		p.out.Saved[r] = stepOf(works, r)
		f := p.out.Files.File(*r.File, "file.")
		sources := []declared.Pos{}
		for _, w := range works {
			w.splices(f)
			for _, reason := range w.reasons() {
				f.Because(reason, declared.Pos{})
			}
			sources = append(sources, w.sources()...)
		}
		if len(sources) == 0 {
			sources = []declared.Pos{p.d.ModeSource}
		}
		for _, s := range sources {
			f.Because("boot restores this file", s)
		}
	}
	if p.savedNative(); p.carrier == declared.NFTables {
		return
	}
	for _, f := range p.d.Families {
		if !saved[f] && len(p.d.ChainsOf(f)) > 0 {
			text, commands := lasting(p.l, f)
			p.Warn("iptables."+string(f), text, p.d.Source, commands...)
		}
	}
}

// stepOf is the work on a saved file as a step on tables.
func stepOf(works []*tableWork, r *host.Ruleset) *change.RulesStep {
	var changes []*change.RulesChange
	for _, w := range works {
		changes = append(changes, w.change(r))
	}
	return change.RulesStepOf(changes)
}

// rulesetWork plans each table of a ruleset and leaves out those with nothing
// to do.
func (p *stage) rulesetWork(r *host.Ruleset) []*tableWork {
	var works []*tableWork
	for _, table := range r.TableNames() {
		var want []declared.Chain
		if (r.Primary || r.File != nil) && p.carrier == declared.IPTables {
			for _, c := range p.d.ChainsOf(r.Family) {
				if c.Table == table {
					want = append(want, c)
				}
			}
			if c := joining(r.Family); c.Table == table && slices.Contains(p.join, r.Family) {
				want = append(want, c)
			}
		}
		sections := r.Sections(table)
		w := planTable(table, sections, want, p.foreign[r][table].remove)
		w.twins = p.foreign[r][table].twins
		w.gone = r.File != nil && p.d.Mode == declared.Disabled && table == "nat" && len(sections) > 0 && xtables.CountRules(sections) == w.removed
		if !w.empty() {
			works = append(works, w)
		}
	}
	return works
}

// cannotStay checks the rules that are not ctplan's for what the mode does to
// them, and returns those that go.
func (p *stage) cannotStay(r *host.Ruleset, table string, sections []*host.Table) []*host.Rule {
	if p.d.Mode == declared.Tuned {
		return nil
	}
	var remove []*host.Rule
	named := map[declared.Risk]int{}
	needs, needy := map[*host.Rule]xtables.Need{}, map[*host.Rule]bool{}
	for _, s := range sections {
		for i := range s.Rules {
			if rule := &s.Rules[i]; !xtables.IsOwn(rule.Chain) {
				if n := xtables.Needs(table, rule.Words); n != xtables.NeedNothing {
					needs[rule], needy[rule] = n, true
				}
			}
		}
	}
	if len(needs) == 0 {
		return nil
	}
	var met map[*host.Rule]meeting
	if p.d.Mode == declared.Notrack {
		met = p.meetings(r.Family, table, sections, needy)
	}
	var rare []*host.Rule
	for _, s := range sections {
		for i := range s.Rules {
			rule := &s.Rules[i]
			var goes bool
			how, called := met[rule]
			switch n := needs[rule]; {
			case n == xtables.NeedNothing:
			case p.d.Mode == declared.Disabled:
				goes = p.disabledRule(r, table, rule, n, named)
			case called && how == apart:
			case n == xtables.NeedState:
				goes = p.statefulRule(r, table, rule, named)
			case n == xtables.NeedNAT && how == rarely:
				if xtables.IsNATTarget(calledBy(rule.Words)) {
					rare = append(rare, rule)
				}
			case n == xtables.NeedNAT:
				p.natRule(r, table, rule, named)
			}
			if goes {
				remove = append(remove, rule)
			}
		}
	}
	p.unnamed(r, table, named)
	p.rarely(r, table, rare)
	return remove
}

// disabledRule: without the module, a rule that needs it does not even load.
func (p *stage) disabledRule(r *host.Ruleset, table string, rule *host.Rule, n xtables.Need, named map[declared.Risk]int) bool {
	switch {
	case n == xtables.NeedNAT && p.d.Allows(declared.RiskNAT):
		return true
	case n == xtables.NeedNAT:
		named[declared.RiskNAT]++
		if named[declared.RiskNAT] <= change.MaxNamed {
			p.blockRule(r, table, rule, declared.RiskNAT, xtables.Where(r, rule),
				"address translation needs connection tracking"+xtables.MadeBy(rule)+", and with it disabled this rule cannot stand",
				`use mode = "tuned" on this host, or allow_risk = ["nat"] to have its nat rules removed`, true)
		}
		return false
	case !p.keepsWork(r, table, rule, named):
		return false
	case p.d.StatefulRules == declared.RemoveStateful:
		return true
	case p.d.StatefulRules == declared.TranslateStateful:
		return n != xtables.NeedState || !hasTwins(rule)
	}
	named[declared.RiskStatefulRules]++
	if named[declared.RiskStatefulRules] <= change.MaxNamed {
		p.blockRule(r, table, rule, declared.RiskStatefulRules, xtables.Where(r, rule),
			"this rule needs connection tracking, and one such rule makes the whole ruleset fail to load once the module is blocked",
			`write accept blocks for the traffic that it lets through, then set stateful_rules = "remove"`, false)
	}
	return false
}

// other is a rule of somebody else's that needs connection tracking, of whatever
// language.
type other struct {
	address, where   string
	touched, covered bool        // by what the declared rules take out of tracking
	matchesUntracked bool        // what is not tracked too
	twins            bool        // stateless rules stand for it
	keeps            func() bool // whether tracking does nothing more for it: see keepsWork
}

// statefulRule is a rule of iptables for stateful.
func (p *stage) statefulRule(r *host.Ruleset, table string, rule *host.Rule, named map[declared.Risk]int) bool {
	s := xtables.Parse(rule.Words)
	o := other{
		address: xtables.Address(r, table), where: xtables.Where(r, rule), matchesUntracked: s.MatchesUntracked(), twins: hasTwins(rule),
		keeps: func() bool { return p.keepsWork(r, table, rule, named) },
	}
	o.touched, o.covered = p.untracks(r.Family, rule.Chain, xtables.PacketsOf(s))
	return p.stateful(o, named)
}

// stateful decides about a rule that stops matching for the packets that are no
// longer tracked: whether it goes.
func (p *stage) stateful(o other, named map[declared.Risk]int) bool {
	if o.matchesUntracked || p.d.StatefulRules == declared.TranslateStateful && o.twins {
		return false
	}
	goes := p.d.StatefulRules == declared.RemoveStateful || p.d.StatefulRules == declared.TranslateStateful
	switch {
	case !o.touched:
		return false
	case !o.keeps():
		return false
	case goes && o.covered:
		return true
	case goes:
		p.Warn(o.address, fmt.Sprintf("%s stays for what is still tracked, and no longer matches what is not: accept blocks must cover that", o.where), p.d.Source)
		return false
	}
	named[declared.RiskStatefulRules]++
	if named[declared.RiskStatefulRules] <= change.MaxNamed {
		p.Block(change.Block{
			Risk: declared.RiskStatefulRules, Address: o.address, Where: o.where,
			Why:    "this rule matches on connection state and stops matching the traffic that is no longer tracked",
			Remedy: `write accept blocks for that traffic, then set stateful_rules = "remove"`, Override: true, Source: p.d.Source,
		})
	}
	return false
}

// natRule: packets that are not tracked are not translated.
func (p *stage) natRule(r *host.Ruleset, table string, rule *host.Rule, named map[declared.Risk]int) {
	s := xtables.Parse(rule.Words)
	if !xtables.IsNATTarget(s.Target) {
		return // a jump into a chain of such rules translates nothing itself
	}
	if touched, _ := p.untracks(r.Family, rule.Chain, xtables.PacketsOf(s)); !touched {
		return
	}
	named[declared.RiskNAT]++
	if named[declared.RiskNAT] <= change.MaxNamed {
		p.blockRule(r, table, rule, declared.RiskNAT, xtables.Where(r, rule),
			"packets that are not tracked are not translated: this rule"+xtables.MadeBy(rule)+" would no longer apply to them",
			`narrow the notrack blocks until they leave its traffic alone, or use mode = "tuned"`, true)
	}
}

// rarely tells of rules that translate what begins at the port of a service.
func (p *stage) rarely(r *host.Ruleset, table string, rare []*host.Rule) {
	if len(rare) == 0 {
		return
	}
	text := xtables.Where(r, rare[0]) + xtables.MadeBy(rare[0])
	if n := len(rare) - 1; n > 0 {
		text += fmt.Sprintf(" and %s like it", words.Plural(n, "more rule", "more rules"))
	}
	p.Warn(xtables.Address(r, table), text+begins, p.d.Source)
}

// begins says what becomes of what a service's port is the beginning of.
const begins = " no longer translates connections that begin at a port which the notrack blocks name: those that this host itself opens from there, and those of others that are given that port with this host's address. Answers of a service are none of these"

// untracks reports whether the declared notrack traffic touches q, and whether
// it takes all of it, on every hook that leads to the chain.
func (p *stage) untracks(f host.Family, chain string, q xtables.Packets) (touched, covered bool) {
	covered = true
	for _, hook := range hooksBefore(chain) {
		all := false
		for i := range p.untrack {
			u := &p.untrack[i]
			if u.family != f || u.hook != hook || u.own && chain == "FORWARD" {
				continue
			}
			touched = touched || !p.disjoint(u, q)
			all = all || u.Covers(q) || u.own && chain == "INPUT" && u.ofOwn.Covers(q)
		}
		covered = covered && all
	}
	return touched, covered
}

// hooksBefore are the hooks of the raw table that a packet has passed when it
// reaches the chain; either may be for a chain that users made.
func hooksBefore(chain string) []string {
	switch chain {
	case "PREROUTING", "INPUT", "FORWARD":
		return []string{"PREROUTING"}
	case "OUTPUT":
		return []string{"OUTPUT"}
	}
	return []string{"PREROUTING", "OUTPUT"}
}

func (p *stage) blockRule(r *host.Ruleset, table string, rule *host.Rule, risk declared.Risk, where, why, remedy string, override bool) {
	p.Block(change.Block{Risk: risk, Address: xtables.Address(r, table), Where: where, Why: why, Remedy: remedy, Override: override, Source: p.d.Source})
}
