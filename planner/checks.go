package planner

import (
	"fmt"
	"slices"
	"strings"
)

// maxNamed is how many rules of one table a blocked plan names one by one.
const maxNamed = 10

// kernelRules plans every live ruleset: ctplan's chains in the one that it
// writes through, and in each the foreign rules that cannot stay.
func (p *planning) kernelRules() {
	for i := range p.l.Rulesets {
		r := &p.l.Rulesets[i]
		p.incompatible(r)
		for _, w := range p.rulesetWork(r) {
			p.rules = append(p.rules, p.rulesChange(w, r))
		}
	}
	for _, f := range Families {
		if len(p.wanted(f)) > 0 && !slices.ContainsFunc(p.l.Rulesets, func(r Ruleset) bool { return r.Family == f && r.Primary }) {
			p.warn("iptables."+string(f), fmt.Sprintf("%s is not filtered on this host (no %s): the rules declared for it are left out", f, toolName(f, "", true)), p.d.Source)
		}
	}
}

func (p *planning) rulesChange(w *tableWork, r *Ruleset) *RulesChange {
	c := w.change(r)
	if len(c.M.Sources) == 0 {
		c.M.Sources = []Pos{p.d.ModeSource}
	}
	return c
}

// savedRules plans the rules files: the same work, as edits.
func (p *planning) savedRules() {
	saved := map[Family]bool{}
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		saved[r.Family] = true
		if !slices.Contains(p.d.Families, r.Family) && len(p.wanted(r.Family)) == 0 && !r.File.Exists {
			continue
		}
		if r.Refusal != "" {
			p.block(Block{
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
		p.saved[r] = works
		f := p.files.edit(*r.File, "file.")
		sources := []Pos{}
		for _, w := range works {
			w.splices(f)
			for _, reason := range w.reasons() {
				f.because(reason, Pos{})
			}
			sources = append(sources, w.sources()...)
		}
		if len(sources) == 0 {
			sources = []Pos{p.d.ModeSource}
		}
		for _, s := range sources {
			f.because("boot restores this file", s)
		}
	}
	for _, f := range p.d.Families {
		if !saved[f] && len(p.wanted(f)) > 0 {
			text, save := unsaved(f)
			p.warn("iptables."+string(f), text, p.d.Source, save)
		}
	}
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

// wanted are the chains declared for a family.
func (p *planning) wanted(f Family) []Chain {
	var out []Chain
	for _, c := range p.d.Chains {
		if c.Family == f {
			out = append(out, c)
		}
	}
	return out
}

// rulesetWork plans each table of a ruleset and leaves out those with nothing
// to do.
func (p *planning) rulesetWork(r *Ruleset) []*tableWork {
	var works []*tableWork
	for _, table := range r.tableNames() {
		var want []Chain
		if r.Primary || r.File != nil {
			for _, c := range p.wanted(r.Family) {
				if c.Table == table {
					want = append(want, c)
				}
			}
		}
		sections := r.sections(table)
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
func (p *planning) foreign(r *Ruleset, table string, sections []*Table) []*Rule {
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
			switch n := rule.needs(table); {
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
		if n := named[risk]; n > maxNamed {
			p.blockRule(r, table, nil, risk, fmt.Sprintf("and %s like these", plural(n-maxNamed, "more rule", "more rules")), "", "", true)
		}
	}
	return remove
}

// disabledRule: without the module, a rule that needs it does not even load.
func (p *planning) disabledRule(r *Ruleset, table string, rule *Rule, n need, named map[Risk]int) bool {
	switch {
	case n == needNAT && p.d.Allows(RiskNAT):
		return true
	case n == needNAT:
		named[RiskNAT]++
		if named[RiskNAT] <= maxNamed {
			p.blockRule(r, table, rule, RiskNAT, p.where(r, rule),
				"address translation needs connection tracking"+madeBy(rule)+", and with it disabled this rule cannot stand",
				`use mode = "tuned" on this host, or allow_risk = ["nat"] to have its nat rules removed`, true)
		}
		return false
	case p.d.StatefulRules == RemoveStateful:
		return true
	}
	named[RiskStatefulRules]++
	if named[RiskStatefulRules] <= maxNamed {
		p.blockRule(r, table, rule, RiskStatefulRules, p.where(r, rule),
			"this rule needs connection tracking, and one such rule makes the whole ruleset fail to load once the module is blocked",
			`write accept blocks for the traffic that it lets through, then set stateful_rules = "remove"`, false)
	}
	return false
}

// statefulRule: it stops matching for the packets that are no longer tracked.
func (p *planning) statefulRule(r *Ruleset, table string, rule *Rule, named map[Risk]int) bool {
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
		p.warn(p.address(r, table), fmt.Sprintf("%s stays for what is still tracked, and no longer matches what is not: accept blocks must cover that", p.where(r, rule)), p.d.Source)
		return false
	}
	named[RiskStatefulRules]++
	if named[RiskStatefulRules] <= maxNamed {
		p.blockRule(r, table, rule, RiskStatefulRules, p.where(r, rule),
			"this rule matches on connection state and stops matching the traffic that is no longer tracked",
			`write accept blocks for that traffic, then set stateful_rules = "remove"`, true)
	}
	return false
}

// natRule: packets that are not tracked are not translated.
func (p *planning) natRule(r *Ruleset, table string, rule *Rule, named map[Risk]int) {
	s := parseSpec(rule.Words)
	if !isNATTarget(s.target) {
		return // a jump into a chain of such rules translates nothing itself
	}
	if touched, _ := p.untracks(r.Family, rule.Chain, packetsOf(s)); !touched {
		return
	}
	named[RiskNAT]++
	if named[RiskNAT] <= maxNamed {
		p.blockRule(r, table, rule, RiskNAT, p.where(r, rule),
			"packets that are not tracked are not translated: this rule"+madeBy(rule)+" would no longer apply to them",
			`narrow the notrack blocks until they leave its traffic alone, or use mode = "tuned"`, true)
	}
}

// makers are the programs that are known by the names of their chains.
var makers = []struct{ prefix, who string }{
	{"DOCKER", "docker"}, {"KUBE-", "kube-proxy"}, {"CNI-", "a CNI plugin"}, {"cali-", "calico"}, {"LIBVIRT_", "libvirt"}, {"NETAVARK", "podman"},
	{"FLANNEL-", "flannel"}, {"CILIUM_", "cilium"}, {"ufw-", "ufw"}, {"ufw6-", "ufw"}, {"f2b-", "fail2ban"},
}

// madeBy names who writes rules of this shape, so that the operator knows
// that they come back.
func madeBy(rule *Rule) string {
	if who := makerOf(append([]string{rule.Chain}, rule.Words...)...); who != "" {
		return " (made by " + who + ")"
	}
	return ""
}

// makerOf is the program that gives such names to chains; "" where none is
// known by them.
func makerOf(names ...string) string {
	for _, m := range makers {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, m.prefix) }) {
			return m.who
		}
	}
	return ""
}

// untracks reports whether the declared notrack traffic touches q, and whether
// it takes all of it, on every hook that leads to the chain.
func (p *planning) untracks(f Family, chain string, q packets) (touched, covered bool) {
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

func (p *planning) address(r *Ruleset, table string) string {
	switch {
	case r.File != nil:
		return "file." + r.File.Path
	case !r.Primary:
		return fmt.Sprintf("iptables.%s.%s.%s", r.Family, r.Backend, table)
	}
	return fmt.Sprintf("iptables.%s.%s", r.Family, table)
}

// where names a rule so that it can be found: by file and line, or as
// iptables-save prints it.
func (p *planning) where(r *Ruleset, rule *Rule) string {
	text := "-A " + rule.Chain + " " + rule.Text
	if r.File != nil {
		return fmt.Sprintf("%s:%d: %s", r.File.Path, rule.Line, text)
	}
	return text
}

func (p *planning) blockRule(r *Ruleset, table string, rule *Rule, risk Risk, where, why, remedy string, override bool) {
	p.block(Block{Risk: risk, Address: p.address(r, table), Where: where, Why: why, Remedy: remedy, Override: override, Source: p.d.Source})
}
