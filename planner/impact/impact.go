// Package impact says what a plan does to connections that are open, to services
// that listen, and to who is kept out: the difference between two verdicts.
package impact

import (
	"cmp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// FlowResult is what a plan does to a connection.
type FlowResult string

// The results, the worst first.
const (
	FlowLost    FlowResult = "lost"
	FlowUnknown FlowResult = "unknown" // it depends on what cannot be known
	FlowGained  FlowResult = "gained"  // dropped today, let through then
	FlowKept    FlowResult = "kept"
)

var severity = map[FlowResult]int{FlowLost: 0, FlowUnknown: 1, FlowGained: 2, FlowKept: 3}

// Impact is what a plan does to the connections that were open when the host
// was read. Connections that no packet passes today are not counted.
type Impact struct {
	Lost    int64 `json:"lost"`
	Unknown int64 `json:"unknown"`
	Gained  int64 `json:"gained"`
	Kept    int64 `json:"kept"`
	Carried int64 `json:"carried,omitempty"` // of Kept: tracking is told of them before it begins

	// Table is what becomes of the kernel's table; nil where nothing does.
	Table *Table `json:"table,omitempty"`

	// NotKnown is what could not be read and is in no other number, with the
	// reason: "the sockets (…)".
	NotKnown []string `json:"not_known,omitempty"`

	Groups   []FlowGroup `json:"groups"`   // the operator's own session first, then the worst
	Services []FlowGroup `json:"services"` // listening services that are lost
	Exposed  []Exposure  `json:"exposed"`  // what newly gets in

	// Leaving are the connections of TCP that are taken out of tracking and go
	// on, by their original tuples: their entries stay, and know their windows
	// no longer when they come back.
	Leaving []host.Tuple `json:"-"`
}

// Table is what a plan does to the kernel's table of connections: to entries
// that nothing meets any more, since their connections leave tracking.
type Table struct {
	Entries  int64 `json:"entries"`   // that there are
	TakenOut int64 `json:"taken_out"` // those of connections that are untracked then
	Left     int64 `json:"left"`
	Max      int64 `json:"max"` // how many there may be; 0: no bound, or not known
}

// FlowGroup is connections to one service that share their fate and its rules.
type FlowGroup struct {
	Result   FlowResult  `json:"result"`
	Operator bool        `json:"operator,omitempty"` // the session that ctplan was started through
	Service  string      `json:"service"`            // "tcp/22 in", "udp/53 out", "tcp/443 forward"
	Family   host.Family `json:"family"`
	Count    int64       `json:"count"`
	Before   string      `json:"before,omitempty"` // the rule that lets it through today
	After    string      `json:"after"`            // the rule that decides under the plan, or makes it unknown
	Stage    string      `json:"stage,omitempty"`  // where it is not the end: the table whose change cuts it off meanwhile
	Examples []string    `json:"examples"`         // at most maxExamples, "10.0.0.5:5412 -> 10.0.0.1:22"

	// Fragments is whether it is about datagrams that come in parts alone.
	Fragments bool `json:"fragments,omitempty"`

	rule    *verdict.RuleRef // After
	carries bool             // it is a tunnel
	cuts    []owners.Cut     // what of it rules of nftables drop, by the first that is lost
}

const maxExamples = 5

// Of judges every connection against every state of the rules on the
// way, and turns what is lost, and what newly gets in, into blocks. saved are the
// rules files that say something else than the kernel: what gets in by them is
// told too.
func Of(d declared.Desired, l host.Live, judges judge.Judges, saved []*judge.Judge) (*Impact, change.Findings) {
	report := change.NewReport(d)
	total := &Impact{Groups: []FlowGroup{}, Services: []FlowGroup{}, Exposed: []Exposure{}}
	kernel := judges.All()
	changing := func(j *judge.Judge) bool { return len(j.Stages) > 1 }
	// While connections are still being read, there is this to do.
	searches := map[*judge.Judge]*search{}
	for _, j := range slices.Concat(kernel, saved) {
		if changing(j) {
			w := newWatch(j)
			searches[j] = w.seek(w.exposes)
		}
	}
	for _, j := range kernel {
		if changing(j) {
			flows(j, total)
			listening(j, total, &report)
			exposed(searches[j], total, &report)
		}
	}
	for _, j := range saved {
		exposed(searches[j], total, &report)
		atBoot(judges.Of(j.Family), j, &report)
	}
	unseen(d, l.Connections, total, &report)
	if t := total.Table; t != nil {
		t.Entries = max(l.Connections.Total, int64(len(l.Connections.All())))
		t.Left, t.Max = t.Entries-t.TakenOut, l.Conntrack.Max
	}
	sortGroups(total.Groups)
	sortGroups(total.Services)
	blockImpact(d, l, total, &report)
	return total, report.Findings
}

func sortGroups(g []FlowGroup) {
	// Of equals there are none: that is what makes them groups. There may be as
	// many as there are ports, and they are large.
	type place struct {
		rank  int // the operator's own session first, then the worst
		count int64
		at    int
	}
	order := make([]place, len(g))
	for i := range g {
		order[i] = place{severity[g[i].Result], g[i].Count, i}
		if !g[i].Operator {
			order[i].rank += len(severity)
		}
	}
	slices.SortFunc(order, func(x, y place) int {
		if c := cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(y.count, x.count)); c != 0 {
			return c
		}
		a, b := &g[x.at], &g[y.at]
		if c := strings.Compare(a.Service, b.Service); c != 0 {
			return c
		}
		fragments := 0
		if a.Fragments != b.Fragments {
			fragments = 1
			if b.Fragments {
				fragments = -1
			}
		}
		return cmp.Or(strings.Compare(string(a.Family), string(b.Family)), strings.Compare(a.After, b.After), strings.Compare(a.Before, b.Before), strings.Compare(a.Stage, b.Stage), fragments)
	})
	sorted := make([]FlowGroup, len(g))
	for i, p := range order {
		sorted[i] = g[p.at]
	}
	copy(g, sorted)
}

// Fate is what happens to a connection, as groups are told apart.
type Fate struct {
	Result        FlowResult
	operator      bool
	way           judge.Way
	proto         uint8
	port          uint16
	before, after *verdict.RuleRef
	stage         int
	leaves        bool // tracking, while its entry there stays
	carried       bool // tracking is told of it
	fragments     bool // of parts of datagrams alone
}

// Decide judges one connection. ok is false for one that is cut off already.
func Decide(j *judge.Judge, c *judge.Connection) (f Fate, ok bool) {
	f = Fate{operator: c.Operator, way: c.Way, proto: c.Packets[0].Protocol, port: c.Port}
	today := j.At(j.Stages[0], c, false)
	if today.Untracked && c.Strict {
		// The entry from before it left tracking knows nothing of what was said
		// since: packets are out of its window, and may be INVALID.
		for i := range c.Count {
			c.Packets[i].State |= verdict.StateInvalid
		}
	}
	told := j.Carries() && j.Tracks() && j.Untold(c, today)
	if told {
		c.CarryOver()
	}
	last := len(j.Stages) - 1
	end := j.At(j.Stages[last], c, true)
	f.before, f.after = today.Rule, end.Rule
	if today.Verdict == verdict.Unknown {
		f.before = j.At(j.Admitting, c, false).Rule // what lets it through, if anything does
	}
	if today.Verdict == verdict.Dropped {
		f.Result = FlowGained
		return f, end.Verdict == verdict.Accepted
	}
	if end.Verdict == verdict.Dropped {
		f.Result = FlowLost
		return f, true
	}
	open := end.Verdict == verdict.Unknown && !(today.Verdict == verdict.Unknown && sameRule(today.Rule, end.Rule))
	for i := 1; i < last; i++ {
		d := j.At(j.Stages[i], c, false)
		if d.Verdict == verdict.Dropped {
			f.Result, f.after, f.stage = FlowLost, d.Rule, i
			return f, true
		}
		if d.Verdict == verdict.Unknown && !open && !(today.Verdict == verdict.Unknown && sameRule(today.Rule, d.Rule)) {
			open = true
			f.after, f.stage = d.Rule, i
		}
	}
	f.leaves = today.Tracked && end.Untracked && c.Strict
	if f.Result = FlowKept; open {
		f.Result = FlowUnknown
		return f, true
	}
	if f.inParts(j, c) {
		return f, true
	}
	f.carried = told && !end.Untracked
	f.before, f.after = nil, nil // what is kept needs no rule to explain it
	return f, true
}

// inParts judges the datagrams of a connection that come in parts, where those
// that come whole are kept. It reports false where they are kept too.
func (f *Fate) inParts(j *judge.Judge, c *judge.Connection) bool {
	if !j.ComesApart(c) {
		return false
	}
	today := j.Parts(j.Stages[0], c)
	if today.Verdict == verdict.Dropped {
		return false
	}
	for i := len(j.Stages) - 1; i > 0; i-- {
		d := j.Parts(j.Stages[i], c)
		same := d.Verdict == today.Verdict && sameRule(d.Rule, today.Rule)
		if d.Verdict == verdict.Accepted || same {
			continue
		}
		f.Result, f.after, f.fragments = FlowUnknown, d.Rule, true
		if f.stage = i; i == len(j.Stages)-1 {
			f.stage = 0
		}
		if d.Verdict == verdict.Dropped {
			f.Result, f.before = FlowLost, today.Rule
			return true
		}
	}
	return f.fragments
}

func sameRule(a, b *verdict.RuleRef) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// tally collects fates, as one goroutine finds them.
type tally struct {
	groups  map[Fate]*found
	leaving []int
	out     int64
	carried int64                 // how many are kept because their entries are carried over
	kin     map[judge.Kin]decided // what became of the first of a kin
	asked   judge.Kin             // of the connection that is judged next
	isKin   bool
}

// decided is what Decide says.
type decided struct {
	fate Fate
	ok   bool
	out  bool // its entry is taken out
}

// maxKin bounds how many kins one goroutine remembers.
const maxKin = 1 << 15

// like counts a connection of which a kin was judged. It reports whether one was.
func (t *tally) like(j *judge.Judge, n int, f *host.Flow) bool {
	if t.asked, t.isKin = j.KinOf(f); !t.isKin {
		return false
	}
	d, ok := t.kin[t.asked]
	if !ok {
		return false
	}
	d.fate.port = judge.ServicePort(f.Protocol, f.Reply.SrcPort)
	t.note(d, n, &f.Orig) // of a kin none is translated
	return true
}

// judge judges a connection that like has not counted.
func (t *tally) judge(j *judge.Judge, n int, c *judge.Connection) {
	var d decided
	d.fate, d.ok = Decide(j, c)
	d.out = c.Flow != nil && j.Carries() && j.Leaves(c.Flow)
	if t.isKin && len(t.kin) < maxKin {
		t.kin[t.asked] = d
	}
	t.note(d, n, &c.Orig)
}

// note takes in what becomes of a connection. What no group is told by is counted
// beside them.
func (t *tally) note(d decided, n int, orig *host.Tuple) {
	if d.out {
		t.out++
	}
	if d.ok && d.fate.carried && d.fate.Result == FlowKept {
		t.carried++
	}
	if d.fate.carried = false; d.fate.leaves {
		t.leaving = append(t.leaving, n)
	}
	if d.fate.leaves = false; d.ok {
		t.add(d.fate, n, orig)
	}
}

// found are connections of one fate: how many, and the first of them by their
// numbers.
type found struct {
	fate  Fate
	count int64
	first [maxExamples]example
}

// example is a connection by its number, and from who opened it.
type example struct {
	n    int
	orig host.Tuple
}

func (t *tally) add(f Fate, n int, orig *host.Tuple) {
	g := t.groups[f]
	if g == nil {
		g = &found{fate: f}
		t.groups[f] = g
	}
	if g.count < maxExamples {
		g.first[g.count] = example{n, *orig}
	}
	g.count++
}

// merge adds another's, which come in their own order.
func (g *found) merge(o *found) {
	if o.first[0].n < g.first[0].n {
		g.fate = o.fate
	}
	all := append(slices.Clone(g.examples()), o.examples()...)
	slices.SortFunc(all, func(a, b example) int { return cmp.Compare(a.n, b.n) })
	copy(g.first[:], all)
	g.count += o.count
}

func (g *found) examples() []example { return g.first[:min(g.count, maxExamples)] }

// flows judges the connections of the family, in parallel.
func flows(j *judge.Judge, total *Impact) {
	tracked := max(int(j.Live.Conntrack.Count), len(j.Connections.Flows))
	workers := max(1, min(runtime.GOMAXPROCS(0), tracked/1024))
	parts := make([]tally, workers+1)
	for i := range parts {
		parts[i] = tally{groups: map[Fate]*found{}, kin: map[judge.Kin]decided{}}
	}
	j.Each(workers, func(worker, n int, f *host.Flow) bool { return parts[worker].like(j, n, f) },
		func(worker, n int, c *judge.Connection) { parts[worker].judge(j, n, c) })
	collect(j, parts, total)
}

// collect puts together what was found: connections whose fates read the same
// are a group.
func collect(j *judge.Judge, parts []tally, total *Impact) {
	all, leaving := parts[0].groups, parts[0].leaving
	for i, t := range parts {
		total.Carried += t.carried
		if t.out > 0 {
			if total.Table == nil {
				total.Table = &Table{}
			}
			total.Table.TakenOut += t.out
		}
		if i == 0 {
			continue
		}
		leaving = append(leaving, t.leaving...)
		for f, g := range t.groups {
			if first := all[f]; first != nil {
				first.merge(g)
			} else {
				all[f] = g
			}
		}
	}
	named := map[groupKey]*found{} // those that rules decide
	groups := make([]*found, 0, len(all))
	for f, g := range all {
		switch f.Result {
		case FlowLost:
			total.Lost += g.count
		case FlowUnknown:
			total.Unknown += g.count
		case FlowGained:
			total.Gained += g.count
		default:
			total.Kept += g.count
		}
		if f.before != nil || f.after != nil {
			key := keyOf(j, f)
			if first := named[key]; first != nil {
				first.merge(g)
				continue
			}
			named[key] = g
		}
		groups = append(groups, g)
	}
	start := len(total.Groups)
	total.Groups = append(total.Groups, make([]FlowGroup, len(groups))...)
	write(j, total.Groups[start:], groups)
	for i, g := range groups {
		if g.fate.Result == FlowLost {
			var c judge.Connection
			j.Nth(&c, g.first[0].n)
			Decide(j, &c) // its states, as they were judged
			group := &total.Groups[start+i]
			group.cuts, group.carries = Cuts(j, stageOf(j, &g.fate).Evaluator, &c, g.fate.after), protocol.Carries(c.Proto, c.Port)
		}
	}
	slices.Sort(leaving)
	for _, n := range leaving {
		var c judge.Connection
		j.Nth(&c, n)
		total.Leaving = append(total.Leaving, c.Packets[0].Orig)
	}
}

// write says what groups are, in parallel: there may be as many as there are
// ports.
func write(j *judge.Judge, out []FlowGroup, groups []*found) {
	var wg sync.WaitGroup
	workers := max(1, min(runtime.GOMAXPROCS(0), len(groups)/1024))
	for w := range workers {
		wg.Go(func() {
			for i := len(groups) * w / workers; i < len(groups)*(w+1)/workers; i++ {
				g, f := groups[i], &groups[i].fate
				key := keyOf(j, *f)
				out[i] = FlowGroup{
					Result: f.Result, Operator: f.operator, Fragments: f.fragments, Service: judge.ServiceName(f.proto, f.port, f.way), Family: j.Family, Count: g.count,
					Before: key.before, After: key.after, Stage: key.stage, rule: f.after, Examples: make([]string, len(g.examples())),
				}
				for k, e := range g.examples() {
					out[i].Examples[k] = judge.Describe(f.proto, e.orig)
				}
			}
		})
	}
	wg.Wait()
}

// stageOf is the rules that decide.
func stageOf(j *judge.Judge, f *Fate) judge.Stage {
	if f.stage > 0 {
		return j.Stages[f.stage]
	}
	return j.End()
}

// keyOf is what a fate reads as.
func keyOf(j *judge.Judge, f Fate) groupKey {
	key := groupKey{Fate: f}
	key.Fate.before, key.Fate.after = nil, nil
	if f.before != nil {
		key.before = j.Name(f.before)
	}
	if f.after != nil {
		key.after = j.Name(f.after)
	}
	if f.stage > 0 {
		key.stage = j.Stages[f.stage].Name
	}
	return key
}

// groupKey is a fate with the names of its rules.
type groupKey struct {
	Fate
	before, after, stage string
}
