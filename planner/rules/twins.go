package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/translate"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// stateUnit is a rule on state that stands, or the twins that stand for it, or
// both, one behind the other in a chain.
type stateUnit struct {
	rules     []*host.Rule // of the chain, in order
	at        int          // index of the first of these
	key       string       // the rule's meaning, and how it asks for the state
	rule      *host.Rule
	twins     []*host.Rule
	originals []*host.Rule
}

// twinWork is what has to be done about a unit.
type twinWork struct {
	rules  []*host.Rule
	at     int
	insert []placed
	drop   []*host.Rule // at the same time
	late   []host.Rule  // at the end, before the first of close
	close  []*host.Rule // goes at the end
	told   change.Twins
}

// placed is a new rule before what stands at an index of its chain.
type placed struct {
	at   int
	rule host.Rule
}

// comes are the rules that are new.
func (w *twinWork) comes() []host.Rule {
	out := slices.Clone(w.late)
	for _, p := range w.insert {
		out = append(out, p.rule)
	}
	return out
}

// twinsOf plans the twins of a table's rules on state.
func (p *stage) twinsOf(r *host.Ruleset, table string, sections []*host.Table) (out []twinWork) {
	translates := p.d.StatefulRules == declared.TranslateStateful && p.d.Mode != declared.Tuned
	if table == "nat" || !translates && p.d.Mode != declared.Tuned {
		return nil
	}
	named := map[declared.Risk]int{}
	for _, s := range sections {
		chains := unitsOf(table, s)
		if len(chains) == 0 {
			continue
		}
		a := answerersOf(s)
		for _, units := range chains {
			for i := range units {
				u := &units[i]
				if w, ok := p.unit(r, table, a, units, u, translates, named); ok {
					out = append(out, w)
				}
			}
		}
	}
	p.unnamed(r, table, named)
	return out
}

// unitsOf finds the units of each chain of a section that is not ctplan's.
func unitsOf(table string, s *host.Table) (out [][]stateUnit) {
	byChain := map[string][]*host.Rule{}
	var order []string
	for i := range s.Rules {
		r := &s.Rules[i]
		if _, ok := byChain[r.Chain]; !ok {
			order = append(order, r.Chain)
		}
		byChain[r.Chain] = append(byChain[r.Chain], r)
	}
	for _, chain := range order {
		if xtables.IsOwn(chain) {
			continue
		}
		var units []stateUnit
		var last *stateUnit
		for i, r := range byChain[chain] {
			original, twin := translate.Original(r)
			if !twin && (xtables.Needs(table, r.Words) != xtables.NeedState || !hasTwins(r)) {
				last = nil
				continue
			}
			rule := r
			if twin {
				rule = &original
			}
			key := unitKey(rule.Words)
			if last == nil || last.key != key || twin && len(last.originals) > 0 {
				units = append(units, stateUnit{rules: byChain[chain], at: i, key: key, rule: rule})
				last = &units[len(units)-1]
			}
			if twin {
				last.twins = append(last.twins, r)
			} else {
				last.originals, last.rule = append(last.originals, r), r
			}
		}
		if len(units) > 0 {
			out = append(out, units)
		}
	}
	return out
}

// hasTwins is whether a rule on state is translated. What tracking does beside
// telling states has words of its own, and a template of tracking nothing to do
// for what is not tracked.
func hasTwins(r *host.Rule) bool {
	s := xtables.Parse(r.Words)
	return xtables.WorkOf(s) == "" && s.Target != "CT"
}

// unitKey is equal for rules whose twins are: their marks say how the state was
// asked for.
func unitKey(rule []string) string {
	key := xtables.Key(rule)
	for _, p := range xtables.Pieces(rule) {
		if p.IsModule && (p.Name == "state" || p.Name == "conntrack") || p.Name == "--state" || strings.HasPrefix(p.Name, "--ct") {
			key += "\x00" + strings.Join(rule[p.From:p.To], " ")
		}
	}
	return key
}

// unit plans one unit. ok is false where it is as it shall be.
func (p *stage) unit(r *host.Ruleset, table string, a *answerers, all []stateUnit, u *stateUnit, translates bool, named map[declared.Risk]int) (w twinWork, ok bool) {
	var t translate.Translation
	touched := false
	if translates {
		t, touched = p.translator.Rule(u.rule, p.scope(r, a, u))
	}
	w = twinWork{rules: u.rules, at: u.at}
	switch {
	case touched && t.None != "":
		p.nameRule(r, table, u.rule, declared.RiskStatefulRules, named,
			"this rule matches on connection state and has no stateless twin: "+t.None,
			"write another rule in its place, or leave its traffic out of the notrack blocks", p.d.Mode != declared.Disabled)
		return w, false
	case touched && u.stray(all, len(t.Twins)):
		w.drop = u.twins
		return w, true
	case touched:
		p.gradeRule(r, table, u.rule, &t, named)
	}
	missing, surplus := u.differ(t.Twins)
	if touched {
		w.insert, w.drop = missing, surplus
	} else {
		w.close = u.twins
	}
	stays := !touched || t.Stays
	lets := letsThrough(u.rule)
	switch {
	case stays && len(u.originals) == 0 && lets:
		w.insert = append(w.insert, placed{u.at, *u.rule})
	case stays && len(u.originals) == 0:
		w.late = append(w.late, *u.rule)
		w.close, w.drop = slices.Concat(w.drop, w.close), nil
	case stays:
	case lets && !xtables.Parse(u.rule.Words).MatchesUntracked():
		w.close = append(w.close, u.originals...)
	default:
		w.drop = append(w.drop, u.originals...)
	}
	w.told = told(u.rule, &t, touched)
	return w, len(w.insert)+len(w.drop)+len(w.late)+len(w.close) > 0
}

// stray is whether the unit is a part of the twins of a rule that has others: one
// that was moved, or added by hand.
func (u *stateUnit) stray(all []stateUnit, whole int) bool {
	return len(u.originals) == 0 && len(u.twins) < whole && slices.ContainsFunc(all, func(o stateUnit) bool {
		return o.at != u.at && o.key == u.key && (len(o.originals) > 0 || len(o.twins) > len(u.twins) || len(o.twins) == len(u.twins) && o.at < u.at)
	})
}

// letsThrough is whether a rule may carry traffic until NOTRACK has taken over.
// The others must not see what tracking newly sees on the way back.
func letsThrough(r *host.Rule) bool {
	switch xtables.Parse(r.Words).Target {
	case "ACCEPT", "RETURN":
		return true
	}
	return false
}

// differ compares the twins that are wanted with those that stand; their order
// means nothing, nor does a second of the same. What is missing comes where it
// would have stood.
func (u *stateUnit) differ(want []host.Rule) (missing []placed, surplus []*host.Rule) {
	stands, wanted := map[string]int{}, map[string]bool{}
	for i, r := range u.twins {
		key := xtables.Key(r.Words)
		if _, ok := stands[key]; !ok {
			stands[key] = u.at + i
		}
	}
	next := u.at + len(u.twins)
	for _, r := range slices.Backward(want) {
		key := xtables.Key(r.Words)
		wanted[key] = true
		if at, ok := stands[key]; ok {
			next = at
		} else {
			missing = append(missing, placed{next, r})
		}
	}
	slices.Reverse(missing)
	for _, r := range u.twins {
		if !wanted[xtables.Key(r.Words)] {
			surplus = append(surplus, r)
		}
	}
	return missing, surplus
}

func told(rule *host.Rule, t *translate.Translation, touched bool) change.Twins {
	out := change.Twins{Rule: "-A " + rule.Chain + " " + rule.Text, Grade: t.Grade.String(), Why: slices.Concat(t.Why, t.Note), Stays: t.Stays}
	if !touched {
		out.Grade = ""
	}
	for _, r := range t.Twins {
		out.Twins = append(out.Twins, "-A "+r.Chain+" "+r.Text)
	}
	return out
}

// scope is what is known of the traffic that a rule sees.
func (p *stage) scope(r *host.Ruleset, a *answerers, u *stateUnit) translate.Scope {
	icmp := protocol.Canonical(map[host.Family]string{host.IPv4: "icmp", host.IPv6: "ipv6-icmp"}[r.Family])
	in := translate.Scope{Family: r.Family, Answers: p.answers(r.Family, u.rule.Chain)}
	taken := func(state string, q xtables.Packets) bool { return a.taken(u.rule.Chain, u.at, state, q, maxCallDepth) }
	bare := func() xtables.Packets { return xtables.PacketsOf(xtables.Parse(withoutState(u.rule.Words))) }
	in.Answered = func() bool { return taken("ESTABLISHED", bare()) }
	in.Related = func() bool {
		q := bare()
		if q.Proto == "" || q.NotProto {
			q.Proto, q.NotProto = icmp, false
		}
		return taken("RELATED", q)
	}
	if p.d.Mode == declared.Disabled {
		return in
	}
	q := xtables.PacketsOf(xtables.Parse(u.rule.Words))
	in.Errors = slices.ContainsFunc(p.untrack, func(o untracked) bool {
		return o.family == r.Family && slices.Contains(hooksBefore(u.rule.Chain), o.hook) && o.Proto != icmp
	})
	in.Untracks = func(proto string) (touched, covered bool) {
		q := q
		if q.Proto == "" || q.NotProto {
			q.Proto, q.NotProto = words.Or(protocol.Canonical(proto), "other"), false
		}
		return p.untracks(r.Family, u.rule.Chain, q)
	}
	return in
}

// answerers are the rules of a section that take what goes on in conversations,
// and where chains are called, by chain.
type answerers struct {
	takes map[string][]taker
	calls map[string][]call
}

type taker struct {
	at     int // index in its chain
	states []string
	xtables.Packets
}

type call struct {
	from string
	at   int
}

func answerersOf(s *host.Table) *answerers {
	out := &answerers{takes: map[string][]taker{}, calls: map[string][]call{}}
	next := map[string]int{}
	for i := range s.Rules {
		r := &s.Rules[i]
		at := next[r.Chain]
		next[r.Chain]++
		rule := r
		if o, twin := translate.Original(r); twin {
			rule = &o
		} else if !xtables.MayNeed("", r.Words) {
			if t := targetOf(r.Words); t != "" {
				out.calls[t] = append(out.calls[t], call{r.Chain, at})
			}
			continue
		}
		if states := acceptedStates(rule); len(states) > 0 {
			out.takes[r.Chain] = append(out.takes[r.Chain], taker{at, states, xtables.PacketsOf(xtables.Parse(withoutState(rule.Words)))})
		}
		if t := targetOf(rule.Words); t != "" {
			out.calls[t] = append(out.calls[t], call{r.Chain, at})
		}
	}
	return out
}

// targetOf is what a rule jumps to, at a quick look.
func targetOf(rule []string) string {
	for i := len(rule) - 1; i > 0; i-- {
		if w := rule[i-1]; w == "-j" || w == "-g" || w == "--jump" || w == "--goto" {
			return rule[i]
		}
	}
	return ""
}

// taken is whether a rule ahead of one takes all of q in a state: in the chain, or
// in every chain that leads to it.
func (a *answerers) taken(chain string, before int, state string, q xtables.Packets, depth int) bool {
	for _, t := range a.takes[chain] {
		if t.at < before && slices.Contains(t.states, state) && t.Covers(q) {
			return true
		}
	}
	calls := a.calls[chain]
	if depth == 0 || len(calls) == 0 || len(calls) > maxCalls {
		return false
	}
	return !slices.ContainsFunc(calls, func(c call) bool { return !a.taken(c.from, c.at, state, q, depth-1) })
}

// Bounds of what is followed: rulesets can be made to take for ever.
const (
	maxCalls     = 32
	maxCallDepth = 4
)

// acceptedStates are those in which the rule accepts all packets that it matches.
func acceptedStates(r *host.Rule) (states []string) {
	s := xtables.Parse(r.Words)
	if s.Target != "ACCEPT" {
		return nil
	}
	for _, o := range s.Matches {
		switch {
		case (o.Name == "--state" || o.Name == "--ctstate") && states == nil && !o.Not && len(o.Args) == 1:
			states = strings.Split(o.Args[0], ",")
		case strings.HasPrefix(o.Name, "--ct") || o.Name == "--state":
			return nil
		}
	}
	return states
}

// withoutState are the words of a rule without its matches on state.
func withoutState(rule []string) []string {
	var out []string
	for _, p := range xtables.Pieces(rule) {
		if p.Name != "--state" && p.Name != "--ctstate" {
			out = append(out, rule[p.From:p.To]...)
		}
	}
	return out
}

// answers are the accept blocks that let answers of UDP through a chain.
func (p *stage) answers(f host.Family, chain string) (out []string) {
	for _, t := range p.d.Accept {
		if t.Protocol != "" && t.Protocol != "udp" || t.Interface == "lo" || !slices.Contains(t.Families, f) {
			continue
		}
		var through bool
		switch chain {
		case "INPUT":
			through = (t.Direction == declared.Both || t.Direction == declared.In) && (len(t.LocalPorts) == 0 || len(t.RemotePorts) > 0)
		case "OUTPUT":
			through = (t.Direction == declared.Both || t.Direction == declared.Out) && (len(t.RemotePorts) == 0 || len(t.LocalPorts) > 0)
		case "FORWARD":
			through = t.Direction == declared.Forward
		default:
			through = true
		}
		if through {
			out = append(out, fmt.Sprintf("%q", t.Name))
		}
	}
	return out
}

// gradeRule asks for the risks that twins which are not exact come with.
func (p *stage) gradeRule(r *host.Ruleset, table string, rule *host.Rule, t *translate.Translation, named map[declared.Risk]int) {
	why := "its stateless twin is " + t.Grade.String() + ": " + strings.Join(t.Why, "; ")
	wider := "leave that traffic out of the notrack blocks, or accept it by a narrower accept block"
	if len(t.Twins) == 0 && xtables.Parse(rule.Words).MatchesUntracked() {
		why = "it stays, since it asks for what is untracked itself: " + strings.Join(t.Why, "; ")
		wider = "leave that traffic out of the notrack blocks, or take UNTRACKED out of what the rule asks for, and it is translated"
	}
	narrower := "write accept blocks for what it let through, or leave that traffic out of the notrack blocks"
	if blocks := p.unanswered(rule.Chain); t.Unanswered && letsThrough(rule) && blocks != "" {
		narrower = "write accept blocks for what it let through: " + blocks + "; or leave that traffic out of the notrack blocks"
		if t.Grade&translate.Narrower == 0 {
			why += "; no block lets in what this host is configured to ask, which takes " + blocks
		}
	}
	if t.Grade&translate.Wider != 0 {
		p.nameRule(r, table, rule, declared.RiskWiderRules, named, why, wider, true)
	}
	if t.Grade&translate.Narrower != 0 {
		p.nameRule(r, table, rule, declared.RiskNarrowerRules, named, why, narrower, true)
	}
}

// nameRule blocks, for as many rules of a risk as are named one by one.
func (p *stage) nameRule(r *host.Ruleset, table string, rule *host.Rule, risk declared.Risk, named map[declared.Risk]int, why, remedy string, override bool) {
	if named[risk]++; named[risk] <= change.MaxNamed {
		p.blockRule(r, table, rule, risk, xtables.Where(r, rule), why, remedy, override)
	}
}

// unnamed counts the rules that are not named.
func (p *stage) unnamed(r *host.Ruleset, table string, named map[declared.Risk]int) {
	for _, risk := range declared.Risks {
		if n := named[risk]; n > change.MaxNamed {
			p.blockRule(r, table, nil, risk, fmt.Sprintf("and %s like these", words.Plural(n-change.MaxNamed, "more rule", "more rules")), "", "", true)
		}
	}
}

// entry is a rule of a chain while operations are made for it.
type entry struct {
	id   int // its index in the chain before; -1 for a new one
	text string
}

// openTwins makes the operations that bring twins in and take away what they
// replace at once, chain by chain. at tells where rules stand then.
func (w *tableWork) openTwins(do func(change.RuleOp)) (at map[string][]entry) {
	at = map[string][]entry{}
	next := map[string]int{}
	for i := range w.twins {
		t := &w.twins[i]
		chain := t.rules[0].Chain
		list, ok := at[chain]
		if !ok {
			for i, r := range t.rules {
				list = append(list, entry{i, r.Text})
			}
		}
		// What goes is taken away first: the new twins may read as it does.
		for _, r := range t.drop {
			i := slices.IndexFunc(list, func(e entry) bool { return e.text == r.Text })
			do(change.RuleOp{Kind: change.DeleteRule, Chain: chain, Pos: i + 1, Rule: r.Text})
			list = slices.Delete(list, i, i+1)
			next[chain] = min(next[chain], i)
		}
		for _, p := range t.insert {
			i := min(next[chain], len(list)) // units come in order
			for i < len(list) && list[i].id < p.at {
				i++
			}
			next[chain] = i + 1
			do(change.RuleOp{Kind: change.InsertRule, Chain: chain, Pos: i + 1, Rule: p.rule.Text})
			list = slices.Insert(list, i, entry{-1, p.rule.Text})
		}
		at[chain] = list
	}
	return at
}

// closeTwins makes the operations that end it.
func (w *tableWork) closeTwins(m *xtables.TableModel, do func(change.RuleOp)) {
	for i := range w.twins {
		t := &w.twins[i]
		if len(t.late) > 0 {
			at := m.Deletion(t.close[0])
			for _, r := range t.late {
				do(change.RuleOp{Kind: change.InsertRule, Chain: at.Chain, Pos: at.Pos, Rule: r.Text})
			}
		}
		for _, r := range t.close {
			do(m.Deletion(r))
		}
	}
}

// jumpPos is where a jump is put: before what was the rule at this index of its
// chain, and before the twins that stand for it.
func jumpPos(list []entry, old func(id int) bool, at int) int {
	pos, ahead := 1, 1
	for _, e := range list {
		if e.id >= at {
			break
		}
		if e.id >= 0 && old(e.id) {
			continue
		}
		ahead++
		if e.id >= 0 {
			pos = ahead
		}
	}
	return pos
}

// spliceTwins makes the same of a saved file.
func (w *tableWork) spliceTwins(f *change.FileEdit) {
	for i := range w.twins {
		t := &w.twins[i]
		add := func(at int, r host.Rule) {
			line := "-A " + r.Chain + " " + r.Text + "\n"
			if at == len(t.rules) {
				f.Insert(t.rules[at-1].Span.End, line)
			} else {
				f.Insert(t.rules[at].Span.Start, line)
			}
		}
		for _, p := range t.insert {
			add(p.at, p.rule)
		}
		for _, r := range t.late {
			add(t.at, r)
		}
		for _, r := range slices.Concat(t.drop, t.close) {
			f.Replace(r.Span, "")
		}
	}
}

// twinReasons says in words what becomes of rules on state.
func (w *tableWork) twinReasons() (out []string) {
	grades, back := map[string]int{}, 0
	for _, t := range w.twins {
		switch {
		case t.told.Grade == "":
			back++
		default:
			grades[t.told.Grade]++
		}
	}
	var counts []string
	total := 0
	for g := translate.Exact; g <= translate.Wider|translate.Narrower; g++ {
		if n := grades[g.String()]; n > 0 {
			total += n
			counts = append(counts, fmt.Sprintf("%d %s", n, g))
		}
	}
	if total > 0 {
		out = append(out, words.Plural(total, "rule", "rules")+" on connection state translated: "+strings.Join(counts, ", "))
	}
	if back > 0 {
		out = append(out, words.Plural(back, "rule", "rules")+" on connection state put back in the place of stateless twins")
	}
	return out
}
