package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// judge knows one family's rules as they stand, as they will, and between:
// those in the kernel, or those of a saved file, which a boot restores.
type judge struct {
	d         Desired
	l         Live
	family    Family
	file      *File // nil: the kernel's
	mixed     bool  // rules of two backends
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

// stage is the rules between two commits.
type stage struct {
	*Evaluator
	name string // address of the table that has just changed
}

// tableStates are the tables of a family, one state after another.
type tableStates struct {
	compiler *Compiler
	family   Family
	models   map[TableID]*TableModel
	compiled map[TableID]*CompiledTable
	order    []TableID // in which tables of one priority come
	words    map[string][]string
}

// stand compiles a table as it stands.
func (t *tableStates) stand(id TableID, sections []*Table) {
	t.models[id] = NewTableModel(id.Table, sections)
	t.compiled[id] = t.compiler.Table(id, Sources(id.Table, sections))
	t.order = append(t.order, id)
}

// change is the state after operations on a table.
func (t *tableStates) change(id TableID, ops []RuleOp, split func(string) []string) stage {
	m := t.models[id]
	if m == nil {
		m = NewTableModel(id.Table, nil)
		t.models[id] = m
		t.order = append(t.order, id)
	}
	for _, op := range ops {
		m.Apply(op)
		if split == nil {
			continue
		}
		for _, text := range append([]string{op.Rule}, op.Rules...) {
			if _, ok := t.words[text]; !ok {
				t.words[text] = split(text)
			}
		}
	}
	t.compiled[id] = t.compiler.Table(id, ModelSources(id.Table, m, t.words))
	return t.stage("iptables." + string(t.family) + "." + id.Table)
}

func (t *tableStates) stage(name string) stage {
	tables := make([]*CompiledTable, len(t.order))
	for i, id := range t.order {
		tables[i] = t.compiled[id]
	}
	return stage{t.compiler.Evaluator(tables), name}
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
	c := NewCompiler(f, facts, XTables(f), len(sets) > 1)
	words := map[string][]string{}
	for _, ch := range d.Chains {
		for _, r := range ch.Rules {
			words[r.Text] = r.Words
		}
	}
	state := &tableStates{compiler: c, family: f, models: map[TableID]*TableModel{}, compiled: map[TableID]*CompiledTable{}, words: words}
	for _, r := range sets {
		for _, name := range r.TableNames() {
			sections := r.Standing(name)
			state.stand(TableID{r.Backend, name}, sections)
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
	j := &judge{
		d: d, l: l, family: f, file: sets[0].File, mixed: len(sets) > 1, conns: conns, places: newPlaceMap(conns, f), operators: map[Session]bool{}, named: map[bool][]netip.Prefix{},
		stages: []stage{state.stage("")}, specs: map[RuleRef]spec{},
	}
	j.admitting = stage{Evaluator: j.stages[0].Admitting()}
	for _, step := range work {
		for _, section := range step.Sections {
			j.stages = append(j.stages, state.change(TableID{step.Backend, section.Table}, section.Ops, split))
		}
	}
	for _, r := range sets {
		j.rawRules(r.Backend, state.models[TableID{r.Backend, "raw"}], words)
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
	for _, c := range ModelSources("raw", m, words) {
		for _, r := range c.Rules {
			if s := parseSpec(r.Words); s.target == "CT" || s.notracks() {
				ref := RuleRef{Family: j.family, Backend: b, Table: "raw", Chain: c.Name, Text: r.Text}
				if _, ok := j.specs[ref]; !ok {
					j.untracks = append(j.untracks, ref)
					j.specs[ref] = s
				}
			}
		}
	}
}

// at is the verdict of one connection at one stage: that of the packet that
// fares worst.
func (j *judge) at(s stage, c *connection, last bool) Decision {
	worst := Decision{Verdict: Accepted}
	untracked, tracked := 0, 0
	for i := range c.n {
		d := s.Verdict(&c.packets[i])
		switch {
		case d.Untracked:
			untracked++
		case d.Tracked:
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
		worst = worse(i == 0, worst, s.Verdict(&p))
	}
	return worst
}

// opens is the verdict of a connection that somebody opens, of its first
// packet and the answer: what tracking makes of the answer depends on whether
// it has seen the first, and what it makes of the next on both.
func (j *judge) opens(s stage, c *connection) Decision {
	first, back := c.packets[0], c.packets[1]
	there, here := s.Verdict(&first), s.Verdict(&back)
	worst := there
	next := first
	switch {
	case there.Untracked && here.Tracked:
		back.State = stateAlone(c.proto)
		here = s.Verdict(&back)
	case there.Tracked && here.Untracked:
		if c.proto == protoTCP {
			next.State, next.TCPFlags = StateInvalid, TCPAck // tracking waits for a SYN-ACK
		}
		worst = worse(false, worst, s.Verdict(&next))
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
	if r != nil && r.Chain != "" && j.mixed {
		return fmt.Sprintf("%s (iptables-%s)", r, r.Backend)
	}
	return r.String()
}
