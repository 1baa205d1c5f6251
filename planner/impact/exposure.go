package impact

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
)

// Exposure is traffic from outside that is refused today and let in, or
// through, under the plan: first packets of what somebody may begin.
type Exposure struct {
	Family host.Family `json:"family"`
	File   string      `json:"file,omitempty"` // the rules file that a boot restores, where it is about that; empty: the kernel's rules
	Rule   string      `json:"rule"`           // that lets it in
	Before string      `json:"before"`         // that refuses it today
	What   string      `json:"what"`           // a sentence without a full stop
	// From are those who get in, by network; Anybody for strangers. Services are
	// what they get to: "tcp/80-90", "udp/53 from 1024-65535", "icmp", "gre",
	// "others" for protocols that no rule names.
	From     []string `json:"from"`
	Services []string `json:"services"`
	Routed   bool     `json:"routed"` // through this host
	// Declared is whether an accept block asks for it, which is then Block.
	Declared bool   `json:"declared"`
	Block    string `json:"block,omitempty"`
	// Some is whether today's rule refuses some of it alone: those who come too
	// often, or what cannot be told from a packet.
	Some bool `json:"some,omitempty"`
	// Unknown is whether it gets in cannot be told, because of Rule.
	Unknown bool `json:"unknown,omitempty"`
	// Stage is where it is not the end: the table whose change lets it in
	// meanwhile.
	Stage  string       `json:"stage,omitempty"`
	Source declared.Pos `json:"source"`

	twin string // a command that keeps it out without state; empty: there is none
	// Openings are what it was found with, for who makes a plan without it.
	Openings []judge.Opening `json:"-"`
}

// opened is what becomes of openings alike: what refuses them today, and what
// lets them in.
type opened struct {
	way           judge.Way
	before, after verdict.RuleRef
	block         string
	source        declared.Pos
	declared      bool
	some, unknown bool
	stage         int
}

// tried are the openings of one fate, by service: who begins them, from where.
type tried map[opened]map[int]*begun

type begun struct {
	who     []int // sorted, in the end
	ins     []string
	example judge.Opening
}

func (t tried) add(f opened, p *judge.Opening) {
	if t[f] == nil {
		t[f] = map[int]*begun{}
	}
	b := t[f][p.What]
	if b == nil {
		b = &begun{example: *p}
		t[f][p.What] = b
	}
	if !slices.Contains(b.who, p.Who) {
		b.who = append(b.who, p.Who)
	}
	if !slices.Contains(b.ins, p.In) {
		b.ins = append(b.ins, p.In)
	}
}

// watch holds openings against the rules as they are, as they will be, and
// between.
type watch struct {
	j        *judge.Judge
	refusing *verdict.Evaluator   // today: is any refused?
	admits   []*verdict.Evaluator // each stage: does any get in?
	asked    *verdict.Evaluator   // nil: no accept is declared
}

func newWatch(j *judge.Judge) *watch {
	w := &watch{j: j, refusing: j.Stages[0].Refusing(), asked: j.Asked()}
	for _, s := range j.Stages {
		w.admits = append(w.admits, s.Admitting())
	}
	return w
}

// exposes is what becomes of an opening that is refused today, all or some of
// it, and gets in then. ok is false for any other.
func (w *watch) exposes(p *judge.Opening) (f opened, ok bool) {
	stages := w.j.Stages
	last := len(stages) - 1
	today := stages[0].Verdict(&p.Packet)
	f.way = p.Way
	var after *verdict.RuleRef
	switch today.Verdict {
	case verdict.Accepted:
		return f, false
	case verdict.Unknown:
		refused, end := w.refusing.Verdict(&p.Packet), stages[last].Verdict(&p.Packet)
		if refused.Verdict != verdict.Dropped || end.Verdict != verdict.Accepted {
			return f, false
		}
		f.some, f.before, after = true, ref(refused.Rule), end.Rule
		if w.asks(&f, p) {
			// What lets in so many in a second, and then any, opens nothing.
			if lets := w.admits[0].Verdict(&p.Packet); lets.Verdict == verdict.Accepted && sameRule(lets.Rule, today.Rule) {
				return f, false
			}
		}
		f.after = ref(after)
		return f, true
	}
	f.before = ref(today.Rule)
	for i := last; i > 0; i-- {
		d := w.admits[i].Verdict(&p.Packet)
		if d.Verdict == verdict.Dropped || d.Verdict == verdict.Unknown && (i < last || sameRule(d.Rule, today.Rule)) {
			continue
		}
		f.unknown, f.after = d.Verdict == verdict.Unknown, ref(d.Rule)
		if f.stage = i; i == last {
			f.stage = 0
		}
		w.asks(&f, p)
		return f, true
	}
	return f, false
}

// asks is whether a block asks for the packet to be let in.
func (w *watch) asks(f *opened, p *judge.Opening) bool {
	if w.asked == nil {
		return false
	}
	d := w.asked.Verdict(&p.Packet)
	if d.Verdict != verdict.Accepted {
		return false
	}
	var t *declared.Traffic
	if t, f.source, f.declared = w.j.Block(d.Rule); t != nil {
		f.block = t.Name
	}
	return f.declared
}

func ref(r *verdict.RuleRef) verdict.RuleRef {
	if r == nil {
		return verdict.RuleRef{}
	}
	return *r
}

// search is for what somebody may begin with this host, or through it, and could
// not before.
type search struct {
	of     *judge.Openings
	watch  *watch
	parts  []tried // by goroutine
	finish func()
}

// seek begins a search for openings that fate takes. It goes on beside whatever
// else is done with the judge.
func (w *watch) seek(fate func(p *judge.Opening) (opened, bool)) *search {
	s := &search{of: w.j.Openings(), watch: w}
	s.parts = make([]tried, s.of.Workers())
	for i := range s.parts {
		s.parts[i] = tried{}
	}
	s.finish = s.of.Start(func(worker int, p *judge.Opening) {
		if f, ok := fate(p); ok {
			s.parts[worker].add(f, p)
		}
	})
	return s
}

// found is what becomes of all of them, told.
func (s *search) found() (list []Exposure) {
	s.finish()
	all := s.parts[0]
	for _, part := range s.parts[1:] {
		all.join(part)
	}
	for f, by := range all {
		list = append(list, s.watch.told(s.of, f, by)...)
	}
	slices.SortFunc(list, func(a, b Exposure) int {
		return cmp.Or(strings.Compare(a.Before, b.Before), strings.Compare(a.Rule, b.Rule), strings.Compare(a.Stage, b.Stage), strings.Compare(a.What, b.What), strings.Compare(a.Block, b.Block))
	})
	return list
}

// alike is whether both say the same.
func (e Exposure) alike(o Exposure) bool {
	return e.Family == o.Family && e.File == o.File && e.Rule == o.Rule && e.Before == o.Before && e.What == o.What && e.Declared == o.Declared && e.Block == o.Block && e.Some == o.Some && e.Unknown == o.Unknown && e.Stage == o.Stage
}

func (t tried) join(more tried) {
	for f, by := range more {
		for what, b := range by {
			if t[f] == nil {
				t[f] = map[int]*begun{}
			}
			mine := t[f][what]
			if mine == nil {
				t[f][what] = b
				continue
			}
			if b.example.Who < mine.example.Who {
				mine.example = b.example
			}
			mine.who = append(mine.who, b.who...)
			for _, in := range b.ins {
				if !slices.Contains(mine.ins, in) {
					mine.ins = append(mine.ins, in)
				}
			}
		}
	}
}

// told are the exposures of one fate: one for each set of those who get in.
func (w *watch) told(o *judge.Openings, f opened, by map[int]*begun) (out []Exposure) {
	at := map[string][]int{}
	for what, b := range by {
		slices.Sort(b.who)
		slices.Sort(b.ins)
		key := fmt.Sprint(b.who, b.ins)
		at[key] = append(at[key], what)
	}
	for _, services := range at {
		slices.Sort(services)
		first := by[services[0]]
		e := Exposure{Family: w.j.Family, Rule: w.j.Name(&f.after), Before: w.j.Name(&f.before), Declared: f.declared, Block: f.block, Some: f.some, Unknown: f.unknown, Source: f.source}
		if w.j.File != nil {
			e.File = w.j.File.Path
		}
		if f.stage > 0 {
			e.Stage = w.j.Stages[f.stage].Name
		}
		if !f.declared {
			e.Source, e.twin = w.j.Desired.Source, twin(w.j, &f.before)
		}
		where := "this host"
		if f.way == judge.Forward {
			where = "hosts behind this one"
		}
		to := reach(o.What, services)
		e.Routed, e.From, e.Services = f.way == judge.Forward, names(o.From, first.who), list(to)
		who := words.Examples(e.From)
		if slices.Contains(e.From, Anybody) {
			who = Anybody
		}
		if f.way == judge.In && len(first.ins) < len(o.Interfaces) {
			where += " through " + and(first.ins)
		}
		e.What = fmt.Sprintf("%s may now reach %s on %s", who, reachWords(to), where)
		for _, what := range services {
			e.Openings = append(e.Openings, by[what].example)
		}
		if f.declared && f.way == judge.In && slices.ContainsFunc(to, func(r reached) bool { return r.name == "tcp" && len(without(r.ports)) < len(r.ports) }) {
			e.What += `; initiator = "local" in the accept block keeps them out`
		}
		out = append(out, e)
	}
	return out
}
