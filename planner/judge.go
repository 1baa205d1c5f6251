package planner

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
)

// judge knows one family's rules as they stand, as they will, and between:
// those in the kernel, or those of a saved file, which a boot restores.
type judge struct {
	p         *planning
	family    Family
	file      *File // nil: the kernel's
	e         *Evaluator
	conns     *Connections
	stages    []stage   // the first is today, the last is the end
	admitting stage     // today: is anybody let through?
	untracks  []RuleRef // what stands in raw tables at the end and keeps out of tracking, or sorts into zones
	specs     map[RuleRef]spec
	places    *placeMap
	entrances []Address               // see doors
	nobody    []netip.Addr            // see stranger
	named     map[bool][]netip.Prefix // see namedNetworks
	operators map[Session]bool
	tcpLoose  State // of a packet of a connection that tracking does not know
	liberal   bool  // tracking takes packets of TCP that are out of its window
}

type stage struct {
	v    *version
	name string // address of the table that has just changed
}

// judge is the family's judge of the rules in the kernel; nil where there are
// none.
func (p *planning) judge(f Family) *judge {
	p.makeJudges(f)
	return p.judges[f]
}

// makeJudges makes those of families that are not there yet, at the same time:
// many rules take a while.
func (p *planning) makeJudges(families ...Family) {
	if p.judges == nil {
		p.judges = map[Family]*judge{}
	}
	made := make([]*judge, len(families))
	var wg sync.WaitGroup
	for i, f := range families {
		if _, ok := p.judges[f]; !ok {
			wg.Go(func() { made[i] = p.makeJudge(f) })
		}
	}
	wg.Wait()
	for i, f := range families {
		if _, ok := p.judges[f]; !ok {
			p.judges[f] = made[i]
		}
	}
}

func (p *planning) makeJudge(f Family) *judge {
	var sets []*Ruleset
	for i := range p.l.Rulesets {
		if p.l.Rulesets[i].Family == f {
			sets = append(sets, &p.l.Rulesets[i])
		}
	}
	var work []*RulesStep
	for _, s := range p.ordered() {
		if s.Rules != nil && s.Rules.Family == f {
			work = append(work, s.Rules)
		}
	}
	if len(sets) == 0 {
		return nil
	}
	return p.newJudge(f, sets, work)
}

// newJudge compiles rulesets of one family, and what becomes of them in the
// sections of work.
func (p *planning) newJudge(f Family, sets []*Ruleset, work []*RulesStep) *judge {
	conns := p.l.Connections
	if conns == nil {
		conns = &Connections{PolicyRouting: true}
	}
	facts := Facts{Sets: conns.Sets}
	if conns.Addresses != nil {
		facts.Addresses = []netip.Prefix{}
		for _, a := range conns.Addresses {
			facts.Addresses = append(facts.Addresses, a.Prefix)
		}
	}
	c := newCompiler(f, facts)
	words := map[string][]string{}
	for _, ch := range p.d.Chains {
		for _, r := range ch.Rules {
			words[r.Text] = r.Words
		}
	}
	models := map[tableKey]*tableModel{}
	state := tables{}
	var backends []Backend
	for _, r := range sets {
		backends = append(backends, r.Backend)
		for _, name := range r.tableNames() {
			sections := r.standing(name)
			key := tableKey{r.Backend, name}
			models[key] = newTableModel(name, sections)
			state[key] = c.table(r.Backend, name, sourcesOf(sections))
			for _, s := range sections {
				if len(work) == 0 && name != "raw" {
					continue // compiled once, from the rules themselves
				}
				for k := range s.Rules {
					words[s.Rules[k].Text] = s.Rules[k].Words
				}
			}
		}
	}
	c.e.twoBackends = len(backends) > 1
	j := &judge{
		p: p, family: f, file: sets[0].File, e: c.e, conns: conns, places: newPlaceMap(conns, f), operators: map[Session]bool{}, named: map[bool][]netip.Prefix{},
		stages: []stage{{v: assemble(backends, state)}}, specs: map[RuleRef]spec{},
	}
	admitting := *j.stages[0].v
	admitting.admits = true
	j.admitting.v = &admitting
	for _, step := range work {
		for _, section := range step.Sections {
			key := tableKey{step.Backend, section.Table}
			m := models[key]
			if m == nil {
				m = newTableModel(section.Table, nil)
				models[key] = m
			}
			for _, op := range section.Ops {
				m.apply(op)
				if p.split == nil {
					continue
				}
				for _, text := range append([]string{op.Rule}, op.Rules...) {
					if _, ok := words[text]; !ok {
						words[text] = p.split(text)
					}
				}
			}
			state[key] = c.table(key.backend, key.table, m.sources(words))
			j.stages = append(j.stages, stage{assemble(backends, state), "iptables." + string(f) + "." + section.Table})
		}
	}
	for _, b := range backends {
		j.rawRules(b, models[tableKey{b, "raw"}], words)
	}
	for _, s := range conns.Operator {
		j.operators[s] = true
	}
	switch p.l.Sysctls["net.netfilter.nf_conntrack_tcp_loose"].Value {
	case "0":
		j.tcpLoose = StateInvalid
	default:
		j.tcpLoose = StateNew | StateEstablished
	}
	j.liberal = p.l.Sysctls["net.netfilter.nf_conntrack_tcp_be_liberal"].Value == "1"
	return j
}

// end is the rules as they will stand.
func (j *judge) end() stage { return j.stages[len(j.stages)-1] }

// rawRules notes what the rules of a raw table do to tracking.
func (j *judge) rawRules(b Backend, m *tableModel, words map[string][]string) {
	if m == nil {
		return
	}
	for _, c := range m.sources(words) {
		for _, r := range c.rules {
			if s := parseSpec(r.words); s.target == "CT" || s.notracks() {
				ref := RuleRef{Family: j.family, Backend: b, Table: "raw", Chain: c.name, Text: r.text}
				if _, ok := j.specs[ref]; !ok {
					j.untracks = append(j.untracks, ref)
					j.specs[ref] = s
				}
			}
		}
	}
}

// sources is the table as the compiler takes it.
func (m *tableModel) sources(words map[string][]string) []chainSource {
	out := make([]chainSource, len(m.chains))
	for i, c := range m.chains {
		out[i] = chainSource{name: c.Name, policy: c.Policy, rules: make([]ruleSource, len(m.rules[c.Name]))}
		for k, text := range m.rules[c.Name] {
			w, ok := words[text]
			if !ok { // a jump of ctplan's own
				w = strings.Fields(text)
			}
			out[i].rules[k] = ruleSource{text, w}
		}
	}
	return out
}

// at is the verdict of one connection at one stage: that of the packet that
// fares worst.
func (j *judge) at(s stage, c *connection, last bool) Decision {
	worst := Decision{Verdict: Accepted}
	untracked, tracked := 0, 0
	for i := range c.n {
		d := s.v.verdict(j.e, &c.packets[i])
		switch {
		case d.Untracked:
			untracked++
		case d.tracked:
			tracked++
		}
		if c.translated && (d.Untracked || last && j.p.d.Mode == Disabled) {
			// What is not tracked is not translated, and arrives nowhere.
			d.Verdict = Dropped
			d.Rule = translationEnds
		}
		if worst = worse(i == 0, worst, d); worst.Verdict == Dropped {
			return worst
		}
	}
	if untracked > 0 && tracked > 0 && c.proto == protoTCP && !j.liberal {
		return worse(false, worst, j.halfTracked(s, c))
	}
	return worst
}

// worse is what is left to say of a connection of whose packets one more is
// decided.
func worse(first bool, worst, d Decision) Decision {
	if first || d.Verdict == Dropped && worst.Verdict != Dropped || d.Verdict == Unknown && worst.Verdict == Accepted {
		return d
	}
	return worst
}

// halfTracked is for an open connection of TCP of which one way is tracked and
// the other is not: packets that acknowledge what tracking has not seen are
// INVALID to it (tcp_in_window in net/netfilter/nf_conntrack_proto_tcp.c).
func (j *judge) halfTracked(s stage, c *connection) Decision {
	worst := Decision{Verdict: Accepted}
	for i := range c.n {
		p := c.packets[i]
		p.State, p.TCPFlags = StateInvalid, TCPAck
		worst = worse(i == 0, worst, s.v.verdict(j.e, &p))
	}
	return worst
}

// opens is the verdict of a connection that somebody opens, of its first
// packet and the answer: what tracking makes of the answer depends on whether
// it has seen the first, and what it makes of the next on both.
func (j *judge) opens(s stage, c *connection) Decision {
	first, back := c.packets[0], c.packets[1]
	there, here := s.v.verdict(j.e, &first), s.v.verdict(j.e, &back)
	worst := there
	next := first
	switch {
	case there.Untracked && here.tracked:
		back.State = stateAlone(c.proto)
		here = s.v.verdict(j.e, &back)
	case there.tracked && here.Untracked:
		if c.proto == protoTCP {
			next.State, next.TCPFlags = StateInvalid, TCPAck // tracking waits for a SYN-ACK
		}
		worst = worse(false, worst, s.v.verdict(j.e, &next))
	}
	return worse(false, worst, here)
}

// stateAlone is the state of an answer to what tracking has not seen: TCP and
// ICMP show that they answer something, to others it is a beginning.
func stateAlone(proto uint8) State {
	switch proto {
	case protoTCP, protoICMP, protoICMPv6, protoSCTP, protoDCCP:
		return StateInvalid
	}
	return StateNew
}

// translationEnds stands for the rule where address translation needs tracking.
var translationEnds = &RuleRef{Policy: "addresses are no longer translated: what is not tracked is not"}

// name is the rule, with its backend where both have rules.
func (j *judge) name(r *RuleRef) string {
	if r != nil && r.Chain != "" && j.e.twoBackends {
		return fmt.Sprintf("%s (iptables-%s)", r, r.Backend)
	}
	return r.String()
}
