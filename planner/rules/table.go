package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// tableWork is everything that one table of one ruleset needs: the same for
// rules in the kernel, where it becomes operations, and for a saved file,
// where it becomes splices.
type tableWork struct {
	table    string
	sections []*host.Table
	chains   []chainWork  // ctplan's chains that change, wanted ones first
	bars     []*host.Rule // foreign rules that go before anything closes: what they keep out may come in
	remove   []*host.Rule // foreign rules that go last, and stray jumps to our chains
	untracks []*host.Rule // foreign rules that go when all else has: what they keep out of tracking would meet rules on states
	jumps    []jumpWork   // jumps that must be (re)placed, in order of the hooks
	twins    []twinWork   // of foreign rules on state
	removed  int          // how many foreign rules go
	gone     bool         // the table itself goes from a saved file

	byChain map[string][]*host.Rule // what rulesOf found; nil until it is asked
}

type chainWork struct {
	name   string
	want   []declared.TargetRule // nil: the chain goes
	exists bool
	have   []*host.Rule
}

// jumpWork places the one jump from a hook to our chain. The jumps that stand
// go and the new one comes in one commit, so that there is never none.
type jumpWork struct {
	hook, chain string
	rules       []*host.Rule // the hook's
	old         []*host.Rule // those of them that are jumps to the chain already
	at          int          // index into rules of what the jump shall stand before
}

func (w *tableWork) empty() bool {
	return !w.gone && len(w.chains) == 0 && len(w.bars) == 0 && len(w.remove) == 0 && len(w.untracks) == 0 && len(w.jumps) == 0 && len(w.twins) == 0
}

// planTable compares a table with the chains wanted in it. remove are foreign
// rules that the checks decided must go. Those that accept carry traffic until
// NOTRACK has taken over, so they go last. The others go first: one that drops
// by state would bar what tracking newly sees when a NOTRACK rule goes. Rules of
// others that keep out of tracking go when no rule on states is left, which
// would let in what it newly sees.
func planTable(table string, sections []*host.Table, want []declared.Chain, remove []*host.Rule) *tableWork {
	w := &tableWork{table: table, sections: sections, removed: len(remove)}
	for _, r := range remove {
		switch s := xtables.Parse(r.Words); {
		case s.Target == "ACCEPT":
			w.remove = append(w.remove, r)
		case s.Untracks():
			w.untracks = append(w.untracks, r)
		default:
			w.bars = append(w.bars, r)
		}
	}
	own, ownDeclared, hooks, strays := survey(sections, want)

	for i, c := range want {
		have := own[c.Name]
		if !ownDeclared[c.Name] || !sameRules(have, c.Rules) {
			w.chains = append(w.chains, chainWork{name: c.Name, want: c.Rules, exists: ownDeclared[c.Name], have: have})
		}
		if c.Hook == "" {
			continue
		}
		if jump, ok := w.planJump(c, hooks[i]); ok {
			w.jumps = append(w.jumps, jump)
		}
	}
	for _, s := range sections {
		for _, decl := range s.Chains {
			if xtables.IsOwn(decl.Name) && !slices.ContainsFunc(want, func(c declared.Chain) bool { return c.Name == decl.Name }) {
				w.chains = append(w.chains, chainWork{name: decl.Name, exists: true, have: own[decl.Name]})
			}
		}
	}
	w.remove = append(w.remove, strays...)
	return w
}

// survey sorts a table's rules: those of our chains, those of the hook that
// leads to each wanted chain, and jumps to our chains that nothing wants.
func survey(sections []*host.Table, want []declared.Chain) (own map[string][]*host.Rule, there map[string]bool, hooks [][]*host.Rule, strays []*host.Rule) {
	own, there, hooks = map[string][]*host.Rule{}, map[string]bool{}, make([][]*host.Rule, len(want))
	for _, s := range sections {
		for _, decl := range s.Chains {
			if xtables.IsOwn(decl.Name) {
				there[decl.Name] = true
			}
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			if xtables.IsOwn(r.Chain) {
				own[r.Chain] = append(own[r.Chain], r)
				continue
			}
			hook := slices.IndexFunc(want, func(c declared.Chain) bool { return c.Hook == r.Chain })
			if hook >= 0 {
				hooks[hook] = append(hooks[hook], r)
			}
			if t := xtables.OwnTarget(r.Words); t != "" && (hook < 0 || t != want[hook].Name) {
				strays = append(strays, r)
			}
		}
	}
	return own, there, hooks, strays
}

// sameRules reports whether rules mean the same. A comment tells who asked for a
// rule: one that is another's is a difference, and none is what a kernel without
// xt_comment leaves.
func sameRules(have []*host.Rule, want []declared.TargetRule) bool {
	return slices.EqualFunc(have, want, func(h *host.Rule, w declared.TargetRule) bool {
		return h.Text == w.Text || xtables.Key(h.Words) == xtables.Key(w.Words) || !xtables.Commented(h.Words) && xtables.Key(h.Words) == xtables.Key(xtables.Uncommented(w.Words))
	})
}

// planJump decides where the hook's jump to our chain stands: see place.
func (w *tableWork) planJump(c declared.Chain, hook []*host.Rule) (jumpWork, bool) {
	wanted := make([]xtables.Packets, len(c.Rules))
	for i, r := range c.Rules {
		wanted[i] = xtables.PacketsOf(xtables.Parse(r.Words))
	}
	at, old, ok := place(len(hook), func(i int) standing {
		r := hook[i]
		s := standing{jump: xtables.OwnTarget(r.Words) == c.Name, state: xtables.Needs(w.table, r.Words) == xtables.NeedState}
		s.bare = s.jump && xtables.IsBareJump(r.Words)
		return s
	}, func(i int) bool { return w.barrier(hook[i], wanted) })
	if !ok {
		return jumpWork{}, false
	}
	job := jumpWork{hook: c.Hook, chain: c.Name, rules: hook, at: at}
	for _, i := range old {
		job.old = append(job.old, hook[i])
	}
	return job, true
}

// barrier is whether a rule of a hook takes all of what something wanted is.
func (w *tableWork) barrier(r *host.Rule, wanted []xtables.Packets) bool {
	s := xtables.Parse(r.Words)
	if xtables.IsOwn(s.Target) || s.Target == "ACCEPT" && w.table != "raw" {
		return false
	}
	p := xtables.PacketsOf(s)
	return slices.ContainsFunc(wanted, func(q xtables.Packets) bool { return p.Covers(q) && w.swallows(s, q, 16) })
}

// swallows reports whether a rule, matching all of q, keeps q from what comes
// after it, following jumps into user chains.
func (w *tableWork) swallows(s xtables.Spec, q xtables.Packets, depth int) bool {
	switch {
	case s.Untracks():
		return false
	case s.Target == "DROP", s.Target == "REJECT", s.Target == "TARPIT", s.Target == "STEAL":
		return true
	case s.Target == "RETURN": // the policy decides
		return true
	case s.Target == "ACCEPT":
		return w.table == "raw" // there, it means that the packet is tracked
	case s.Target == "QUEUE", s.Target == "NFQUEUE":
		return true
	case depth == 0 || xtables.IsOwn(s.Target):
		return false
	}
	for _, r := range w.rulesOf(s.Target) {
		inner := xtables.Parse(r.Words)
		if !xtables.PacketsOf(inner).Covers(q) {
			continue
		}
		switch inner.Target {
		case "RETURN":
			return s.IsGoto // back to the caller's caller: the policy
		case "ACCEPT":
			return w.table == "raw"
		}
		if w.swallows(inner, q, depth-1) {
			return true
		}
	}
	return s.IsGoto
}

// rulesOf are the rules of a chain, in order.
func (w *tableWork) rulesOf(chain string) []*host.Rule {
	if w.byChain == nil {
		w.byChain = map[string][]*host.Rule{}
		for _, s := range w.sections {
			for i := range s.Rules {
				r := &s.Rules[i]
				w.byChain[r.Chain] = append(w.byChain[r.Chain], r)
			}
		}
	}
	return w.byChain[chain]
}

// change turns the work into a RulesChange for the kernel: first everything
// that opens, then everything that closes.
func (w *tableWork) change(r *host.Ruleset) *change.RulesChange {
	m := xtables.NewTable(w.table, w.sections)
	c := &change.RulesChange{Family: r.Family, Backend: r.Backend, Table: w.table, Before: m.Lines(), Origin: map[string]declared.Pos{}}
	do := func(list *[]change.RuleOp, op change.RuleOp) {
		m.Apply(op)
		*list = append(*list, op)
	}
	// Our chains first gain what is new and keep what they had.
	unions := make([][]string, len(w.chains))
	for i, cw := range w.chains {
		if cw.want == nil {
			continue
		}
		unions[i] = unionRules(cw)
		op := change.RuleOp{Kind: change.SetChain, Chain: cw.name, Rules: texts(cw.want), Was: ruleTexts(cw.have), Existed: cw.exists}
		for _, t := range cw.want {
			if t.Source != (declared.Pos{}) {
				c.Origin["-A "+cw.name+" "+t.Text] = t.Source
			}
		}
		if len(unions[i]) > len(op.Rules) {
			do(&c.Open, change.RuleOp{Kind: change.SetChain, Chain: cw.name, Rules: unions[i], Was: op.Was, Existed: true})
			continue
		}
		do(&c.Open, op)
	}
	entries := w.openTwins(func(op change.RuleOp) { do(&c.Open, op) })
	for _, j := range w.jumps {
		pos := 1
		for _, r := range j.rules[:j.at] {
			if !slices.Contains(j.old, r) {
				pos++
			}
		}
		if list, ok := entries[j.hook]; ok {
			pos = jumpPos(list, func(id int) bool { return slices.Contains(j.old, j.rules[id]) }, j.at)
		}
		for _, old := range j.old {
			do(&c.Open, m.Deletion(old))
		}
		do(&c.Open, change.RuleOp{Kind: change.InsertRule, Chain: j.hook, Pos: pos, Rule: xtables.Jump(j.chain)})
	}
	for _, old := range w.bars {
		do(&c.Open, m.Deletion(old))
	}
	for _, old := range w.remove {
		do(&c.Close, m.Deletion(old))
	}
	w.closeTwins(m, func(op change.RuleOp) { do(&c.Close, op) })
	for i, cw := range w.chains {
		switch {
		case cw.want == nil:
			do(&c.Close, change.RuleOp{Kind: change.DropChain, Chain: cw.name, Was: ruleTexts(cw.have)})
		case len(unions[i]) > len(cw.want):
			do(&c.Close, change.RuleOp{Kind: change.SetChain, Chain: cw.name, Rules: texts(cw.want), Was: unions[i], Existed: true})
		}
	}
	c.Last = deletions(m, w.untracks)
	c.After = m.Lines()
	c.M = change.Meta{
		Address: "iptables." + string(r.Family) + "." + w.table,
		Action:  change.Update,
		Sources: w.sources(),
		Reasons: w.reasons(),
	}
	if !r.Primary {
		c.M.Address = fmt.Sprintf("iptables.%s.%s.%s", r.Family, r.Backend, w.table)
	}
	switch {
	case len(c.Close)+len(c.Last) == 0 && !slices.ContainsFunc(c.Open, func(op change.RuleOp) bool { return op.Existed || op.Kind == change.DeleteRule }):
		c.M.Action = change.Create
	case len(c.Open) == 0:
		c.M.Action = change.Delete
	}
	for _, t := range w.twins {
		c.Twins = append(c.Twins, t.told)
	}
	return c
}

// deletions takes rules away.
func deletions(m *xtables.TableModel, rules []*host.Rule) (out []change.RuleOp) {
	for _, r := range rules {
		op := m.Deletion(r)
		m.Apply(op)
		out = append(out, op)
	}
	return out
}

// unionRules is the wanted rules, followed by those that stand and are wanted
// no longer: nothing that was let through is cut off before the end.
func unionRules(cw chainWork) []string {
	union := texts(cw.want)
	if len(cw.have) == 0 {
		return union
	}
	keys := map[string]bool{}
	for _, r := range cw.want {
		keys[xtables.Key(r.Words)] = true
	}
	for _, h := range cw.have {
		if !keys[xtables.Key(h.Words)] {
			union = append(union, h.Text)
		}
	}
	return union
}

func texts(rules []declared.TargetRule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.Text
	}
	return out
}

func ruleTexts(rules []*host.Rule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.Text
	}
	return out
}

func (w *tableWork) sources() []declared.Pos {
	var out []declared.Pos
	for _, cw := range w.chains {
		for _, r := range cw.want {
			if r.Source != (declared.Pos{}) {
				out = append(out, r.Source)
			}
		}
	}
	return slices.Compact(change.SortPos(out))
}

// reasons says in words what the table's changes are for.
func (w *tableWork) reasons() []string {
	var out, make, restore, drop []string
	for _, cw := range w.chains {
		switch {
		case cw.want != nil && cw.name == declared.JoinChain:
			out = append(out, cw.name+" keeps fragments joined, which nothing else here asks for any longer: only the first part of a datagram has ports")
		case cw.want == nil:
			drop = append(drop, cw.name)
		case cw.exists:
			restore = append(restore, cw.name)
		default:
			make = append(make, cw.name)
		}
	}
	if len(make) > 0 {
		out = append(out, words.Joined(make, w.purpose("lets", "takes"), w.purpose("let", "take")))
	}
	if len(restore) > 0 {
		out = append(out, words.Joined(restore, "is not as declared", "are not as declared"))
	}
	if len(drop) > 0 {
		out = append(out, "nothing declares "+strings.Join(drop, " and ")+" any longer")
	}
	if w.removed > 0 {
		out = append(out, words.Plural(w.removed, "rule needs", "rules need")+" connection tracking and would stop working")
	}
	out = append(out, w.twinReasons()...)
	if w.gone {
		out = append(out, "the table "+w.table+" needs connection tracking even without a rule, and would keep the file from loading")
	}
	if len(make) == 0 {
		for _, j := range w.jumps {
			out = append(out, "the jump from "+j.hook+" to "+j.chain+" is missing or stands behind a rule that keeps packets from it")
		}
	}
	if len(out) == 0 {
		out = append(out, "jumps to ctplan's chains stand where none is declared")
	}
	return out
}

// purpose says what the table's chains do, with the verb that fits.
func (w *tableWork) purpose(let, take string) string {
	if w.table == "raw" {
		return take + " the declared traffic out of connection tracking"
	}
	return let + " the declared traffic through without connection tracking"
}
