package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// judge knows one family's rules as they stand, as they will, and between:
// those in the kernel, or those of a saved file, which a boot restores.
type judge struct {
	d         Desired
	l         Live
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

// Judges are those of the rules in the kernel, by family. Each is made when it
// is first asked for.
type Judges map[Family]func() *judge

// KernelJudges are judges of the rules in the kernel and of what steps make of
// them. split takes the words of a rule apart, as iptables-restore does; it is
// needed for rules that stand nowhere today, nor are declared.
func KernelJudges(d Desired, l Live, steps []Step, split func(rule string) []string) Judges {
	js := Judges{}
	for _, f := range Families {
		js[f] = sync.OnceValue(func() *judge {
			var sets []*Ruleset
			for i := range l.Rulesets {
				if l.Rulesets[i].Family == f {
					sets = append(sets, &l.Rulesets[i])
				}
			}
			var work []*RulesStep
			for _, s := range steps {
				if s.Rules != nil && s.Rules.Family == f {
					work = append(work, s.Rules)
				}
			}
			if len(sets) == 0 {
				return nil
			}
			return newJudge(d, l, f, sets, work, split)
		})
	}
	return js
}

// Of is the family's judge; nil where the family has no rules.
func (js Judges) Of(f Family) *judge { return js[f]() }

// All are those of all families, made at the same time: many rules take a while.
func (js Judges) All() []*judge {
	made := make([]*judge, len(Families))
	var wg sync.WaitGroup
	for i, f := range Families {
		wg.Go(func() { made[i] = js.Of(f) })
	}
	wg.Wait()
	return slices.DeleteFunc(made, func(j *judge) bool { return j == nil })
}

// newJudge compiles rulesets of one family, and what becomes of them in the
// sections of work.
func newJudge(d Desired, l Live, f Family, sets []*Ruleset, work []*RulesStep, split func(string) []string) *judge {
	conns := l.Connections
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
	for _, ch := range d.Chains {
		for _, r := range ch.Rules {
			words[r.Text] = r.Words
		}
	}
	models := map[tableKey]*TableModel{}
	state := tables{}
	var backends []Backend
	for _, r := range sets {
		backends = append(backends, r.Backend)
		for _, name := range r.TableNames() {
			sections := r.Standing(name)
			key := tableKey{r.Backend, name}
			models[key] = NewTableModel(name, sections)
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
		d: d, l: l, family: f, file: sets[0].File, e: c.e, conns: conns, places: newPlaceMap(conns, f), operators: map[Session]bool{}, named: map[bool][]netip.Prefix{},
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
				m = NewTableModel(section.Table, nil)
				models[key] = m
			}
			for _, op := range section.Ops {
				m.Apply(op)
				if split == nil {
					continue
				}
				for _, text := range append([]string{op.Rule}, op.Rules...) {
					if _, ok := words[text]; !ok {
						words[text] = split(text)
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
	switch l.Sysctls["net.netfilter.nf_conntrack_tcp_loose"].Value {
	case "0":
		j.tcpLoose = StateInvalid
	default:
		j.tcpLoose = StateNew | StateEstablished
	}
	j.liberal = l.Sysctls["net.netfilter.nf_conntrack_tcp_be_liberal"].Value == "1"
	return j
}

// end is the rules as they will stand.
func (j *judge) end() stage { return j.stages[len(j.stages)-1] }

// rawRules notes what the rules of a raw table do to tracking.
func (j *judge) rawRules(b Backend, m *TableModel, words map[string][]string) {
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
func (m *TableModel) sources(words map[string][]string) []chainSource {
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
		if c.translated && (d.Untracked || last && j.d.Mode == Disabled) {
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
