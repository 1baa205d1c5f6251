package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// stageService is one planning of the packet filter's service.
type stageService struct {
	Report
	d     Desired
	l     Live
	files Edits
}

// Restart plans the restart of the packet filter's service, by which the
// module is loaded anew with what the files say. IPv6 stops around it, where
// its service runs: its rules would hold the module.
func Restart(d Desired, l Live) ([]Change, Findings) {
	p := &stageService{Report: NewReport(d), d: d, l: l}
	changes := p.restart()
	return changes, p.Findings
}

// InitScripts plans the arrays of the init scripts and their configuration:
// whole for a host that tracks, without connection tracking for one that does
// not.
func InitScripts(d Desired, l Live, whole bool) (Edits, Findings) {
	p := &stageService{Report: NewReport(d), d: d, l: l}
	p.initScripts(whole)
	return p.files, p.Findings
}

// filterService is the service that brings one family's rules at boot.
type filterService struct {
	family  Family
	name    string // iptables or ip6tables
	script  *InitScript
	command []string // to which start, stop or restart is added
}

// do is the command for an action.
func (s *filterService) do(action string) []string {
	if s.command[0] == "systemctl" {
		return []string{"systemctl", action, s.name + ".service"}
	}
	return append(slices.Clone(s.command), action)
}

// serviceOf finds a family's service: the enabled unit where systemd runs, or
// else the init script; nil where there is neither.
func (p *stageService) serviceOf(f Family) *filterService {
	s := &filterService{family: f, name: toolName(f, "", true)}
	for i := range p.l.InitScripts {
		script := &p.l.InitScripts[i]
		if base := script.Path[strings.LastIndexByte(script.Path, '/')+1:]; s.script == nil && (base == s.name || base == s.name+".init") {
			s.script = script
		}
	}
	switch {
	case p.l.Boot != nil && p.l.Boot.Init == InitSystemd:
		if !slices.Contains(p.l.Boot.Services, s.name) {
			return nil
		}
		s.command = []string{"systemctl"}
	case s.script != nil && s.script.Exists && s.script.Mode&0o111 != 0:
		s.command = []string{s.script.Path}
	default:
		return nil
	}
	return s
}

func (p *stageService) restart() []Change {
	var services []*filterService
	for _, f := range Families {
		if s := p.serviceOf(f); s != nil && (len(services) == 0 || p.hasRules(f)) {
			services = append(services, s)
		}
	}
	if len(services) == 0 {
		p.Block(Block{
			Risk:    RiskNoService,
			Address: "service.iptables",
			Where:   fmt.Sprintf("reload = %q", ReloadRestart),
			Why:     "this host has no service to restart: neither an executable init script of iptables nor, where systemd runs, an enabled unit iptables.service",
			Remedy:  fmt.Sprintf("declare reload = %q, which sets the sizes without a restart, or name the script in init_scripts", ReloadLive),
			Source:  p.d.ReloadSource,
		})
		return nil
	}
	main := services[0]
	c := &ServiceChange{
		M: Meta{
			Address: "service." + main.name, Action: Run, Sources: []Pos{p.d.ReloadSource},
			Reasons:  []string{"a restart unloads nf_conntrack and loads it with what the files say; what it leaves as it was, is set after it"},
			Disrupts: p.disruption(services),
		},
		Step: ServiceStep{KeepsRules: !p.d.Allows(RiskUnsavedRules)},
	}
	for _, s := range services[1:] {
		c.Step.Commands = append(c.Step.Commands, s.do("stop"))
	}
	c.Step.Commands = append(c.Step.Commands, main.do("restart"))
	for _, s := range services[1:] {
		c.Step.Commands = append(c.Step.Commands, s.do("start"))
	}
	for _, s := range services {
		if r := p.primary(s.family); r != nil {
			c.Step.Rules = append(c.Step.Rules, ServedRules{Family: r.Family, Backend: r.Backend})
			p.checkSaved(s, r)
		}
	}
	return []Change{c}
}

// primary is the live ruleset that plain iptables shows; nil where the family
// has none.
func (p *stageService) primary(f Family) *Ruleset {
	for i := range p.l.Rulesets {
		if r := &p.l.Rulesets[i]; r.Family == f && r.Primary {
			return r
		}
	}
	return nil
}

func (p *stageService) hasRules(f Family) bool {
	r := p.primary(f)
	return r != nil && slices.ContainsFunc(r.Tables, func(t Table) bool { return len(t.Rules) > 0 })
}

// disruption says what a restart does while it happens.
func (p *stageService) disruption(services []*filterService) string {
	text := "there are no rules for a moment; the connections that are open are forgotten if the module is reloaded: those that are translated (NAT) break, and rules that wait for ESTABLISHED see the others begin in the middle"
	if len(services) > 1 {
		text += fmt.Sprintf("; %s is stopped meanwhile, so that its rules do not hold the module", services[1].name)
	}
	for _, s := range services {
		if s.script == nil || !s.script.FlushesFirst {
			continue
		}
		if chain := p.dropPolicy(s.family); chain != "" {
			text += fmt.Sprintf("; %s flushes before it sets policies to ACCEPT: %s drops everything in between, this session included, and for good if it stops there (use --confirm-within)", s.script.Path, chain)
		}
	}
	return text
}

// dropPolicy names a built-in chain of the filter table whose policy drops.
func (p *stageService) dropPolicy(f Family) string {
	r := p.primary(f)
	if r == nil {
		return ""
	}
	for _, t := range r.Sections("filter") {
		for _, c := range t.Chains {
			if c.Policy == "DROP" {
				return c.Name
			}
		}
	}
	return ""
}

// checkSaved holds the live rules against those that the service would bring
// back, and blocks where one has what the other has not. ctplan's own rules
// come into both by the plan.
func (p *stageService) checkSaved(s *filterService, live *Ruleset) {
	saved, path := &Ruleset{Family: s.family}, ""
	for i := range p.l.SavedRules {
		if r := &p.l.SavedRules[i]; r.Family == s.family && r.File.Exists && saved.File == nil {
			saved, path = r, r.File.Path
		}
	}
	if saved.Refusal != "" {
		return // savedRules blocks
	}
	remedy := fmt.Sprintf("save the live rules first (%s-save > %s)", s.name, cmp.Or(path, "/etc/sysconfig/"+s.name))
	where := cmp.Or(path, "there is none")
	n := 0
	block := func(table, at, why string) {
		if n++; n > MaxNamed {
			return
		}
		p.Block(Block{
			Risk: RiskUnsavedRules, Address: fmt.Sprintf("iptables.%s.%s", s.family, table), Where: at, Why: why,
			Remedy: remedy + `, or allow_risk = ["unsaved_rules"] to have what is saved`, Override: true, Source: p.d.ReloadSource,
		})
	}
	for _, table := range tablesOf(live, saved) {
		now, then := served(live, table), served(saved, table)
		for _, line := range now.without(then) {
			block(table, line, fmt.Sprintf("this stands in the kernel and not in the file from which the restart brings the rules back (%s): it would be lost", where))
		}
		for _, line := range then.without(now) {
			block(table, fmt.Sprintf("%s: %s", where, line), "this is saved and does not stand in the kernel: the restart would bring it in")
		}
		if n == 0 {
			for _, chain := range now.reordered(then) {
				block(table, "-A "+chain+" …", fmt.Sprintf("the rules of this chain stand in another order in %s, and the restart brings them in that order", where))
			}
		}
	}
	if n > MaxNamed {
		p.Block(Block{
			Risk: RiskUnsavedRules, Address: "iptables." + string(s.family), Where: fmt.Sprintf("and %s like these", plural(n-MaxNamed, "more rule", "more rules")),
			Override: true, Source: p.d.ReloadSource,
		})
	}
}

// servedTable is what a table does to packets without ctplan's own rules: the
// policies that are not ACCEPT, and the rules of each chain in order.
type servedTable struct {
	lines  []string            // as iptables-save prints them
	keys   []string            // of lines: equal for what means the same
	chains map[string][]string // keys by chain
	order  []string            // of chains
}

// served reads a table. In a file the last of its sections counts, since
// iptables-restore flushes at each.
func served(r *Ruleset, table string) servedTable {
	t := servedTable{chains: map[string][]string{}}
	sections := r.Sections(table)
	if r.File != nil && len(sections) > 1 {
		sections = sections[len(sections)-1:]
	}
	for _, s := range sections {
		for _, c := range s.Chains {
			if c.Policy != "-" && c.Policy != "ACCEPT" {
				t.lines = append(t.lines, ":"+c.Name+" "+c.Policy)
				t.keys = append(t.keys, ":"+c.Name+" "+c.Policy)
			}
		}
		for i := range s.Rules {
			rule := &s.Rules[i]
			if isOwn(rule.Chain) || ownTarget(rule.Words) != "" {
				continue
			}
			key := rule.Chain + " " + Key(rule.Words)
			t.lines = append(t.lines, "-A "+rule.Chain+" "+rule.Text)
			t.keys = append(t.keys, key)
			if t.chains[rule.Chain] == nil {
				t.order = append(t.order, rule.Chain)
			}
			t.chains[rule.Chain] = append(t.chains[rule.Chain], key)
		}
	}
	return t
}

// without lists the lines of t that o does not have as often.
func (t servedTable) without(o servedTable) []string {
	count := map[string]int{}
	for _, k := range o.keys {
		count[k]++
	}
	var out []string
	for i, k := range t.keys {
		if count[k]--; count[k] < 0 {
			out = append(out, t.lines[i])
		}
	}
	return out
}

// reordered lists the chains that have the same rules in another order.
func (t servedTable) reordered(o servedTable) []string {
	var out []string
	for _, chain := range t.order {
		if !slices.Equal(t.chains[chain], o.chains[chain]) {
			out = append(out, chain)
		}
	}
	return out
}
