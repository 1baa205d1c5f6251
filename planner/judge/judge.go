// Package judge holds one family's rules as they stand, as they will, and
// between, against connections: those that are open, those that somebody may
// open, and made-up ones. It says what becomes of each, and judges nothing by
// itself.
package judge

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/routing"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Judge knows one family's rules as they stand, as they will, and between:
// those in the kernel, or those of a saved file, which a boot restores.
type Judge struct {
	Desired     declared.Desired
	Live        host.Live
	Family      host.Family
	File        *host.File // nil: the kernel's
	mixed       bool       // rules of two backends
	Connections *host.Connections
	tables      *tableStates                        // as they stand at the end
	backend     host.Backend                        // that is written through
	Stages      []Stage                             // the first is today, the last is the end
	Admitting   Stage                               // today: is anybody let through?
	Untracks    []verdict.RuleRef                   // what keeps out of tracking at the end, or sorts into zones: rules of raw tables, and of nftables' own
	specs       map[verdict.RuleRef]xtables.Spec    // of those of iptables among them
	matched     map[verdict.RuleRef]xtables.Packets // by each of Untracks
	sets        []*host.Ruleset
	coming      [][]string      // the words of rules that steps bring
	native      []host.NFTTable // tables of nftables' own: as they stand, and as those will that steps change
	facts       verdict.Facts
	Places      *placeMap
	entrances   []host.Address          // see doors
	nobody      []netip.Addr            // see stranger
	named       map[bool][]netip.Prefix // see namedNetworks
	operators   map[host.Session]bool
	listens     map[protocol.Port]bool // ports that some socket listens on
	seen        *Seen                  // see Seen
	classes     *[1 << 16]uint16       // of ports; nil where rules tell all apart
	ways        ways
	tcpLoose    verdict.State // of a packet of a connection that tracking does not know
	liberal     bool          // tracking takes packets of TCP that are out of its window
}

// Stage is the rules between two commits.
type Stage struct {
	*verdict.Evaluator
	Name string // address of the table that has just changed
}

// tableStates are the tables of a family, one state after another.
type tableStates struct {
	compiler *verdict.Compiler
	family   host.Family
	models   map[verdict.TableID]*xtables.TableModel
	compiled map[verdict.TableID]*verdict.Table
	order    []verdict.TableID                    // in which tables of one priority come
	nft      []host.NFTTable                      // tables of nftables' own
	native   map[verdict.TableID][]*verdict.Table // the same; none where no packet of the family meets it
	unread   []*verdict.Table                     // what stands for those that could not be read
	links    map[string]uint32
	words    map[string][]string
}

// stand compiles a table as it stands.
func (t *tableStates) stand(id verdict.TableID, sections []*host.Table) {
	t.models[id] = xtables.NewTable(id.Table, sections)
	t.compiled[id] = t.compiler.Table(id, xt.XTables(t.family), xt.Sources(id.Table, sections))
	t.order = append(t.order, id)
}

// change is the state after operations on a table.
func (t *tableStates) change(id verdict.TableID, ops []change.RuleOp, split func(string) []string) Stage {
	m := t.models[id]
	if m == nil {
		m = xtables.NewTable(id.Table, nil)
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
	t.compiled[id] = t.compiler.Table(id, xt.XTables(t.family), xt.ModelSources(id.Table, m, t.words))
	return t.stage("iptables." + string(t.family) + "." + id.Table)
}

// standNative compiles the tables of nftables' own as they stand.
func (t *tableStates) standNative(tables []host.NFTTable, unread string) {
	t.nft, t.native = tables, map[verdict.TableID][]*verdict.Table{}
	for i := range tables {
		t.native[nativeID(&tables[i])] = nft.Tables(t.compiler, t.family, tables[i:i+1], t.links, "")
	}
	t.unread = nft.Tables(t.compiler, t.family, nil, t.links, unread)
}

func nativeID(t *host.NFTTable) verdict.TableID {
	return verdict.TableID{Native: t.Family, Table: t.Name}
}

// changeNative is the state after a step of nftables.
func (t *tableStates) changeNative(step *change.NFTStep) Stage {
	t.nft = nftables.Apply(t.nft, step.Ops)
	for i := range t.nft {
		if table := &t.nft[i]; step.Touches(table.Family, table.Name) {
			t.native[nativeID(table)] = nft.Tables(t.compiler, t.family, t.nft[i:i+1], t.links, "")
		}
	}
	return t.stage("nftables")
}

func (t *tableStates) stage(name string) Stage {
	tables := make([]*verdict.Table, len(t.order), len(t.order)+len(t.nft)+1)
	for i, id := range t.order {
		tables[i] = t.compiled[id]
	}
	for i := range t.nft {
		tables = append(tables, t.native[nativeID(&t.nft[i])]...)
	}
	tables = append(tables, t.unread...)
	return Stage{t.compiler.Evaluator(tables), name}
}

// Judges are those of the rules in the kernel, by family. Each is made when it
// is first asked for.
type Judges map[host.Family]func() *Judge

// Kernel are judges of the rules in the kernel and of what steps make of
// them. split takes the words of a rule apart, as iptables-restore does; it is
// needed for rules that stand nowhere today, nor are declared.
func Kernel(d declared.Desired, l host.Live, steps []change.Step, split func(rule string) []string) Judges {
	js := Judges{}
	for _, f := range host.Families {
		js[f] = sync.OnceValue(func() *Judge {
			var sets []*host.Ruleset
			for i := range l.Rulesets {
				if l.Rulesets[i].Family == f {
					sets = append(sets, &l.Rulesets[i])
				}
			}
			var work []change.Step
			for _, s := range steps {
				if s.Rules != nil && s.Rules.Family == f || s.NFT != nil {
					work = append(work, s)
				}
			}
			if len(sets) == 0 && len(l.NFT) == 0 && l.NFTUnread == "" && len(work) == 0 {
				return nil
			}
			return New(d, l, f, sets, work, split)
		})
	}
	return js
}

// Of is the family's judge; nil where there are no rules at all.
func (js Judges) Of(f host.Family) *Judge { return js[f]() }

// All are those of all families, made at the same time: many rules take a while.
func (js Judges) All() []*Judge {
	made := make([]*Judge, len(host.Families))
	var wg sync.WaitGroup
	for i, f := range host.Families {
		wg.Go(func() { made[i] = js.Of(f) })
	}
	wg.Wait()
	return slices.DeleteFunc(made, func(j *Judge) bool { return j == nil })
}

// New compiles rulesets of one family, and what becomes of them in the
// steps of work. Beside them stand the tables of nftables' own, as they are
// now, for a saved file too.
func New(d declared.Desired, l host.Live, f host.Family, sets []*host.Ruleset, work []change.Step, split func(string) []string) *Judge {
	conns := l.Connections
	if conns == nil {
		conns = &host.Connections{PolicyRouting: true}
	}
	facts := verdict.Facts{Sets: conns.Sets, Interfaces: l.Links}
	if conns.Addresses != nil {
		facts.Addresses = []netip.Prefix{}
		for _, a := range conns.Addresses {
			facts.Addresses = append(facts.Addresses, a.Prefix)
		}
	}
	c := verdict.NewCompiler(f, facts, len(sets) > 1)
	words := map[string][]string{}
	for _, ch := range d.Chains {
		for _, r := range ch.Rules {
			words[r.Text] = r.Words
		}
	}
	state := &tableStates{compiler: c, family: f, links: l.Links, models: map[verdict.TableID]*xtables.TableModel{}, compiled: map[verdict.TableID]*verdict.Table{}, words: words}
	state.standNative(l.NFT, l.NFTUnread)
	for _, r := range sets {
		for _, name := range r.TableNames() {
			sections := r.Standing(name)
			state.stand(verdict.TableID{Backend: r.Backend, Table: name}, sections)
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
	j := &Judge{
		Desired: d, Live: l, Family: f, mixed: len(sets) > 1, Connections: conns, Places: newPlaceMap(conns, f), operators: map[host.Session]bool{}, listens: map[protocol.Port]bool{}, named: map[bool][]netip.Prefix{},
		tables: state, Stages: []Stage{state.stage("")}, specs: map[verdict.RuleRef]xtables.Spec{}, matched: map[verdict.RuleRef]xtables.Packets{}, sets: sets, facts: facts,
	}
	j.ways.marks = routing.New(conns.Routing, f)
	if conns.Routing == nil && !conns.PolicyRouting {
		j.ways.marks = routing.New(&host.Routing{}, f)
	}
	j.ways.none = !j.ways.marks.Matters()
	if len(sets) > 0 {
		j.File, j.backend = sets[0].File, sets[0].Backend
	}
	j.Admitting = Stage{Evaluator: j.Stages[0].Admitting()}
	j.play(state, work, words, split)
	j.classes, _ = c.PortClass()
	for _, r := range sets {
		j.rawRules(r.Backend, state.models[verdict.TableID{Backend: r.Backend, Table: "raw"}], words)
	}
	for _, r := range nft.Rules(state.nft, f, nft.DecidesTracking) {
		j.Untracks = append(j.Untracks, r.Ref)
		j.matched[r.Ref] = r.Packets
	}
	for _, s := range conns.Sockets {
		if s.Listening {
			j.listens[protocol.Port{Protocol: s.Protocol, Port: s.Local.Port()}] = true
		}
	}
	for _, s := range conns.Operator {
		j.operators[s] = true
	}
	switch l.Sysctls["net.netfilter.nf_conntrack_tcp_loose"].Value {
	case "0":
		j.tcpLoose = verdict.StateInvalid
	default:
		j.tcpLoose = verdict.StateNew | verdict.StateEstablished
	}
	j.liberal = l.Sysctls["net.netfilter.nf_conntrack_tcp_be_liberal"].Value == "1"
	return j
}

// play has the steps happen, one stage after the other.
func (j *Judge) play(state *tableStates, work []change.Step, words map[string][]string, split func(string) []string) {
	for _, step := range work {
		if step.NFT != nil {
			j.Stages = append(j.Stages, state.changeNative(step.NFT))
			continue
		}
		for _, section := range step.Rules.Sections {
			j.comes(section.Ops, words)
			j.Stages = append(j.Stages, state.change(verdict.TableID{Backend: step.Rules.Backend, Table: section.Table}, section.Ops, split))
		}
	}
	j.native = slices.Clone(j.Live.NFT)
	for i := range state.nft {
		if t := &state.nft[i]; slices.ContainsFunc(work, func(s change.Step) bool { return s.NFT != nil && s.NFT.Touches(t.Family, t.Name) }) {
			j.native = append(j.native, *t)
		}
	}
}

// Spec is what a rule of Untracks says that is one of iptables.
func (j *Judge) Spec(ref verdict.RuleRef) xtables.Spec { return j.specs[ref] }

// comes notes the rules that operations bring.
func (j *Judge) comes(ops []change.RuleOp, words map[string][]string) {
	for _, op := range ops {
		if op.Kind != change.InsertRule && op.Kind != change.SetChain || leaves(op.Chain) {
			continue
		}
		for _, text := range append([]string{op.Rule}, op.Rules...) {
			w, ok := words[text]
			if !ok {
				w = strings.Fields(text)
			}
			j.coming = append(j.coming, w)
		}
	}
}

// Sets are the rulesets that are judged, as they stand today.
func (j *Judge) Sets() []*host.Ruleset { return j.sets }

// End is the rules as they will stand.
func (j *Judge) End() Stage { return j.Stages[len(j.Stages)-1] }

// rawRules notes what the rules of a raw table do to tracking.
func (j *Judge) rawRules(b host.Backend, m *xtables.TableModel, words map[string][]string) {
	if m == nil {
		return
	}
	for _, c := range xt.ModelSources("raw", m, words) {
		for _, r := range c.Rules {
			if s := xtables.Parse(r.Words); s.Target == "CT" || s.Untracks() {
				ref := verdict.RuleRef{Family: j.Family, Backend: b, Table: "raw", Chain: c.Name, Text: r.Text}
				if _, ok := j.matched[ref]; !ok {
					j.Untracks = append(j.Untracks, ref)
					j.specs[ref], j.matched[ref] = s, xtables.PacketsOf(s)
				}
			}
		}
	}
}

// At is the verdict of one connection at one stage: that of the packet that
// fares worst.
func (j *Judge) At(s Stage, c *Connection, last bool) verdict.Decision {
	worst := verdict.Decision{Verdict: verdict.Accepted}
	untracked, tracked := 0, 0
	changes := j.changes(s)
	for i := range c.Count {
		d := s.Verdict(&c.Packets[i])
		if changes {
			d = j.rerouted(j.Stages[0].Verdict(&c.Packets[i]), d, &c.Packets[i])
		}
		switch {
		case d.Untracked:
			untracked++
		case d.Tracked:
			tracked++
		}
		if c.Translated && (d.Untracked || last && j.Desired.Mode == declared.Disabled) {
			// What is not tracked is not translated, and arrives nowhere.
			d.Verdict = verdict.Dropped
			d.Rule = TranslationEnds
		}
		if worst = worse(i == 0, worst, d); worst.Verdict == verdict.Dropped {
			return worst
		}
	}
	if untracked > 0 && tracked > 0 && c.Proto == protocol.TCP && !j.liberal {
		return worse(false, worst, j.halfTracked(s, c))
	}
	return worst
}

// changes is whether packets may take other ways at a stage than today.
func (j *Judge) changes(s Stage) bool {
	return !j.ways.none && s.Evaluator != j.Stages[0].Evaluator && s.Evaluator != j.Admitting.Evaluator
}

// worse is what is left to say of a connection of whose packets one more is
// decided.
func worse(first bool, worst, d verdict.Decision) verdict.Decision {
	if first || d.Verdict == verdict.Dropped && worst.Verdict != verdict.Dropped || d.Verdict == verdict.Unknown && worst.Verdict == verdict.Accepted {
		return d
	}
	return worst
}

// halfTracked is for an open connection of TCP of which one way is tracked and
// the other is not: packets that acknowledge what tracking has not seen are
// INVALID to it (tcp_in_window in net/netfilter/nf_conntrack_proto_tcp.c).
func (j *Judge) halfTracked(s Stage, c *Connection) verdict.Decision {
	worst := verdict.Decision{Verdict: verdict.Accepted}
	for i := range c.Count {
		p := c.Packets[i]
		p.State, p.TCPFlags = verdict.StateInvalid, verdict.TCPAck
		worst = worse(i == 0, worst, s.Verdict(&p))
	}
	return worst
}

// Opens is the verdict of a connection that somebody opens, of its first
// packet and the answer: what tracking makes of the answer depends on whether
// it has seen the first, and what it makes of the next on both.
func (j *Judge) Opens(s Stage, c *Connection) verdict.Decision {
	there, here, worst := j.opens(s, c)
	if j.changes(s) {
		first, back := c.Packets[0], c.Packets[1]
		today, answer, _ := j.opens(j.Stages[0], c)
		worst = worse(false, worst, j.rerouted(today, there, &first))
		worst = worse(false, worst, j.rerouted(answer, here, &back))
	}
	return worst
}

// opens decides the first packet of a connection, the answer, and what is the
// worst of both and of what may come next.
func (j *Judge) opens(s Stage, c *Connection) (there, here, worst verdict.Decision) {
	first, back := c.Packets[0], c.Packets[1]
	there = s.Verdict(&first)
	if there.Tracked && there.ConnMarkBits == ^uint32(0) {
		back.ConnMark, back.Known = there.ConnMark, back.Known|verdict.KnownConnMark
	}
	here = s.Verdict(&back)
	worst = there
	next := first
	switch {
	case there.Untracked && here.Tracked:
		back.State = StateAlone(c.Proto)
		here = s.Verdict(&back)
	case there.Tracked && here.Untracked:
		if c.Proto == protocol.TCP {
			next.State, next.TCPFlags = verdict.StateInvalid, verdict.TCPAck // tracking waits for a SYN-ACK
		}
		worst = worse(false, worst, s.Verdict(&next))
	}
	return there, here, worse(false, worst, here)
}

// StateAlone is the state of an answer to what tracking has not seen: TCP and
// ICMP show that they answer something, to others it is a beginning.
func StateAlone(proto uint8) verdict.State {
	switch proto {
	case protocol.TCP, protocol.ICMP, protocol.ICMPv6, protocol.SCTP, protocol.DCCP:
		return verdict.StateInvalid
	}
	return verdict.StateNew
}

// TranslationEnds stands for the rule where address translation needs tracking.
var TranslationEnds = &verdict.RuleRef{Policy: "addresses are no longer translated: what is not tracked is not"}

// Carries reports whether connections that tracking does not know are made known
// to it before the rules change.
func (j *Judge) Carries() bool { return !j.Desired.NoCarry }

// Name is the rule, with its backend where both have rules.
func (j *Judge) Name(r *verdict.RuleRef) string {
	if r != nil && r.Chain != "" && r.Native == "" && j.mixed {
		return fmt.Sprintf("%s (iptables-%s)", r, r.Backend)
	}
	return r.String()
}
