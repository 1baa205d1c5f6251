package planner

import (
	"fmt"
	"slices"
)

// RulesWork is what is to be done to the rules of a host.
type RulesWork struct {
	Kernel []Change // of live rulesets, in their order
	Files  Edits    // of saved rules files
	// Saved are the same edits as what they do to tables.
	Saved map[*Ruleset]*RulesStep
}

// stageRules is one planning of the rules.
type stageRules struct {
	Report
	d       Desired
	l       Live
	untrack []untracked // what the declared rules take out of tracking
	out     RulesWork
}

// PlanRules plans every live ruleset and every saved rules file: ctplan's chains
// where they belong, and the rules of others that cannot stay.
func PlanRules(d Desired, l Live) (RulesWork, Findings) {
	p := &stageRules{Report: NewReport(d), d: d, l: l, out: RulesWork{Saved: map[*Ruleset]*RulesStep{}}}
	for _, c := range d.Chains {
		if c.Table == "raw" {
			for _, r := range c.Rules {
				p.untrack = append(p.untrack, untracked{c.Family, c.Hook, packetsOf(parseSpec(r.Words))})
			}
		}
	}
	p.kernelRules()
	p.savedRules()
	return p.out, p.Findings
}

// kernelRules plans every live ruleset: ctplan's chains in the one that it
// writes through, and in each the foreign rules that cannot stay.
func (p *stageRules) kernelRules() {
	for i := range p.l.Rulesets {
		r := &p.l.Rulesets[i]
		p.incompatible(r)
		for _, w := range p.rulesetWork(r) {
			p.out.Kernel = append(p.out.Kernel, p.rulesChange(w, r))
		}
	}
	for _, f := range Families {
		if len(p.d.ChainsOf(f)) > 0 && !slices.ContainsFunc(p.l.Rulesets, func(r Ruleset) bool { return r.Family == f && r.Primary }) {
			p.Warn("iptables."+string(f), fmt.Sprintf("%s is not filtered on this host (no %s): the rules declared for it are left out", f, toolName(f, "", true)), p.d.Source)
		}
	}
}

func (p *stageRules) rulesChange(w *tableWork, r *Ruleset) *RulesChange {
	c := w.change(r)
	if len(c.M.Sources) == 0 {
		c.M.Sources = []Pos{p.d.ModeSource}
	}
	return c
}

// savedRules plans the rules files: the same work, as edits.
func (p *stageRules) savedRules() {
	saved := map[Family]bool{}
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		saved[r.Family] = true
		if !slices.Contains(p.d.Families, r.Family) && len(p.d.ChainsOf(r.Family)) == 0 && !r.File.Exists {
			continue
		}
		if r.Refusal != "" {
			p.Block(Block{
				Risk:     RiskSavedRules,
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
		sources := []Pos{}
		for _, w := range works {
			w.splices(f)
			for _, reason := range w.reasons() {
				f.Because(reason, Pos{})
			}
			sources = append(sources, w.sources()...)
		}
		if len(sources) == 0 {
			sources = []Pos{p.d.ModeSource}
		}
		for _, s := range sources {
			f.Because("boot restores this file", s)
		}
	}
	for _, f := range p.d.Families {
		if !saved[f] && len(p.d.ChainsOf(f)) > 0 {
			text, save := unsaved(f)
			p.Warn("iptables."+string(f), text, p.d.Source, save)
		}
	}
}

// stepOf is the work on a saved file as a step on tables.
func stepOf(works []*tableWork, r *Ruleset) *RulesStep {
	var changes []*RulesChange
	for _, w := range works {
		changes = append(changes, w.change(r))
	}
	return RulesStepOf(changes)
}

// unsaved says how to make rules survive a reboot where nothing saves them.
func unsaved(f Family) (text, command string) {
	file, tool := "/etc/iptables/rules.v4", "iptables-save"
	if f == IPv6 {
		file, tool = "/etc/iptables/rules.v6", "ip6tables-save"
	}
	return fmt.Sprintf("the %s rules will not survive a reboot: there is no saved rules file. Install netfilter-persistent (Debian) or iptables-services (Red Hat) "+
		"and save the rules once after apply (Red Hat: service iptables save); from then on ctplan keeps the file", f), tool + " > " + file
}

// rulesetWork plans each table of a ruleset and leaves out those with nothing
// to do.
func (p *stageRules) rulesetWork(r *Ruleset) []*tableWork {
	var works []*tableWork
	for _, table := range r.TableNames() {
		var want []Chain
		if r.Primary || r.File != nil {
			for _, c := range p.d.ChainsOf(r.Family) {
				if c.Table == table {
					want = append(want, c)
				}
			}
		}
		sections := r.Sections(table)
		w := planTable(table, sections, want, p.foreign(r, table, sections))
		w.gone = r.File != nil && p.d.Mode == Disabled && table == "nat" && len(sections) > 0 && countRules(sections) == w.removed
		if !w.empty() {
			works = append(works, w)
		}
	}
	return works
}

// foreign checks the rules that are not ctplan's for what the mode does to
// them, and returns those that go.
func (p *stageRules) foreign(r *Ruleset, table string, sections []*Table) []*Rule {
	if p.d.Mode == Tuned {
		return nil
	}
	var remove []*Rule
	named := map[Risk]int{}
	for _, s := range sections {
		for i := range s.Rules {
			rule := &s.Rules[i]
			if isOwn(rule.Chain) {
				continue
			}
			var goes bool
			switch n := needsOf(table, rule.Words); {
			case n == needNothing:
			case p.d.Mode == Disabled:
				goes = p.disabledRule(r, table, rule, n, named)
			case n == needState:
				goes = p.statefulRule(r, table, rule, named)
			case n == needNAT:
				p.natRule(r, table, rule, named)
			}
			if goes {
				remove = append(remove, rule)
			}
		}
	}
	for _, risk := range Risks {
		if n := named[risk]; n > MaxNamed {
			p.blockRule(r, table, nil, risk, fmt.Sprintf("and %s like these", plural(n-MaxNamed, "more rule", "more rules")), "", "", true)
		}
	}
	return remove
}

// disabledRule: without the module, a rule that needs it does not even load.
func (p *stageRules) disabledRule(r *Ruleset, table string, rule *Rule, n need, named map[Risk]int) bool {
	switch {
	case n == needNAT && p.d.Allows(RiskNAT):
		return true
	case n == needNAT:
		named[RiskNAT]++
		if named[RiskNAT] <= MaxNamed {
			p.blockRule(r, table, rule, RiskNAT, Where(r, rule),
				"address translation needs connection tracking"+madeBy(rule)+", and with it disabled this rule cannot stand",
				`use mode = "tuned" on this host, or allow_risk = ["nat"] to have its nat rules removed`, true)
		}
		return false
	case p.d.StatefulRules == RemoveStateful:
		return true
	}
	named[RiskStatefulRules]++
	if named[RiskStatefulRules] <= MaxNamed {
		p.blockRule(r, table, rule, RiskStatefulRules, Where(r, rule),
			"this rule needs connection tracking, and one such rule makes the whole ruleset fail to load once the module is blocked",
			`write accept blocks for the traffic that it lets through, then set stateful_rules = "remove"`, false)
	}
	return false
}

// statefulRule: it stops matching for the packets that are no longer tracked.
func (p *stageRules) statefulRule(r *Ruleset, table string, rule *Rule, named map[Risk]int) bool {
	s := parseSpec(rule.Words)
	if s.matchesUntracked() {
		return false
	}
	touched, covered := p.untracks(r.Family, rule.Chain, packetsOf(s))
	switch {
	case !touched:
		return false
	case p.d.StatefulRules == RemoveStateful && covered:
		return true
	case p.d.StatefulRules == RemoveStateful:
		p.Warn(TableAddress(r, table), fmt.Sprintf("%s stays for what is still tracked, and no longer matches what is not: accept blocks must cover that", Where(r, rule)), p.d.Source)
		return false
	}
	named[RiskStatefulRules]++
	if named[RiskStatefulRules] <= MaxNamed {
		p.blockRule(r, table, rule, RiskStatefulRules, Where(r, rule),
			"this rule matches on connection state and stops matching the traffic that is no longer tracked",
			`write accept blocks for that traffic, then set stateful_rules = "remove"`, true)
	}
	return false
}

// natRule: packets that are not tracked are not translated.
func (p *stageRules) natRule(r *Ruleset, table string, rule *Rule, named map[Risk]int) {
	s := parseSpec(rule.Words)
	if !isNATTarget(s.target) {
		return // a jump into a chain of such rules translates nothing itself
	}
	if touched, _ := p.untracks(r.Family, rule.Chain, packetsOf(s)); !touched {
		return
	}
	named[RiskNAT]++
	if named[RiskNAT] <= MaxNamed {
		p.blockRule(r, table, rule, RiskNAT, Where(r, rule),
			"packets that are not tracked are not translated: this rule"+madeBy(rule)+" would no longer apply to them",
			`narrow the notrack blocks until they leave its traffic alone, or use mode = "tuned"`, true)
	}
}

// untracks reports whether the declared notrack traffic touches q, and whether
// it takes all of it, on every hook that leads to the chain.
func (p *stageRules) untracks(f Family, chain string, q packets) (touched, covered bool) {
	covered = true
	for _, hook := range hooksBefore(chain) {
		all := false
		for _, u := range p.untrack {
			if u.family != f || u.hook != hook {
				continue
			}
			touched = touched || !u.disjoint(q)
			all = all || u.covers(q)
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

func (p *stageRules) blockRule(r *Ruleset, table string, rule *Rule, risk Risk, where, why, remedy string, override bool) {
	p.Block(Block{Risk: risk, Address: TableAddress(r, table), Where: where, Why: why, Remedy: remedy, Override: override, Source: p.d.Source})
}

// untracked is a set of packets that a rule in a raw table takes out of tracking.
type untracked struct {
	family Family
	hook   string
	packets
}
