package rules

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// nativeTable is everything that one table of nftables needs.
type nativeTable struct {
	p       *stage
	table   *host.NFTTable // as it stands
	now     host.NFTTable  // as it stands after ops
	own     bool           // it is ctplan's own
	ops     []change.NFTOp
	chains  []string // that change
	origin  map[string]declared.Pos
	removed int
	matches *nft.Matcher // of table

	made, restored, dropped, moved []string // chains, and jumps to them
}

// nativeRules plans the rules of nftables: the table of ctplan's own, which takes
// out of tracking; ctplan's chains in the tables of others that may drop, and the
// rules there that cannot stay. Where iptables carries ctplan's rules, all of
// ctplan's goes.
func (p *stage) nativeRules() {
	for i := range p.l.NFT {
		t := &p.l.NFT[i]
		switch {
		case nftables.IsOwnTable(t):
		case carrier.TakesRules(t):
			w := p.workOn(t)
			w.accepts()
			w.remove(w.leaves())
			p.nativeChange(w)
		}
	}
	p.ownTable()
}

func (p *stage) workOn(t *host.NFTTable) *nativeTable {
	return &nativeTable{p: p, table: t, now: nftables.Clone(*t), origin: map[string]declared.Pos{}, matches: nft.NewMatcher(t)}
}

// ownTable plans ctplan's own table.
func (p *stage) ownTable() {
	table := host.FindNFT(p.l.NFT, "inet", declared.OwnTable)
	exists := table != nil
	if !exists {
		table = &host.NFTTable{Family: "inet", Name: declared.OwnTable, Whole: true}
	}
	w := p.workOn(table)
	w.own = true
	var wanted []string
	for i := range p.d.Native {
		if c := &p.d.Native[i]; c.Notrack && c.Family == "inet" && p.carrier == declared.NFTables {
			chain := host.NFTChain{Name: declared.OwnPrefix + c.Hook, Type: "filter", Hook: c.Hook, Priority: rawPriority, Policy: "accept"}
			wanted = append(wanted, chain.Name)
			w.set(chain, c)
		}
	}
	w.dropOthers(wanted)
	switch {
	case len(wanted) > 0 && !exists:
		w.ops = slices.Insert(w.ops, 0, change.NFTOp{Kind: change.AddNFTTable, Family: w.table.Family, Table: w.table.Name})
	case len(wanted) == 0 && exists:
		w.ops = append(w.ops, change.NFTOp{Kind: change.DeleteNFTTable, Family: w.table.Family, Table: w.table.Name})
	}
	p.nativeChange(w)
}

// rawPriority comes before connections are looked up, at -200.
const rawPriority = -300

// accepts plans ctplan's chains in a table of others: one for each chain of the
// kernel's that may refuse what is declared, and the jump to it.
func (w *nativeTable) accepts() {
	var wanted []string
	for i := range w.table.Chains {
		c := &w.table.Chains[i]
		want := w.p.acceptsFor(w.table, c)
		if want == nil {
			continue
		}
		name := declared.OwnPrefix + c.Name
		wanted = append(wanted, name)
		w.set(host.NFTChain{Name: name}, want)
		w.jump(c, name, want)
	}
	for i := range w.table.Chains {
		c := &w.table.Chains[i]
		for k := range c.Rules {
			to, _ := nftables.OwnTarget(&c.Rules[k])
			if to != "" && !nftables.IsOwn(c.Name) && (to != declared.OwnPrefix+c.Name || !slices.Contains(wanted, to)) {
				w.delete(c.Name, &c.Rules[k])
			}
		}
	}
	w.dropOthers(wanted)
}

// acceptsFor are the rules declared for what a base chain sees; nil where it
// refuses nothing, or they go elsewhere.
func (p *stage) acceptsFor(t *host.NFTTable, c *host.NFTChain) *declared.NFTChain {
	if p.carrier != declared.NFTables || c.Type != "filter" || nftables.Keeper(t, c.Name) != "" || !nft.Refuses(t, c.Name) {
		return nil
	}
	for i := range p.d.Native {
		if want := &p.d.Native[i]; !want.Notrack && want.Family == t.Family && want.Hook == c.Hook {
			return want
		}
	}
	return nil
}

// set plans one of ctplan's chains, unless it is as it should be.
func (w *nativeTable) set(chain host.NFTChain, want *declared.NFTChain) {
	content := &change.NFTContent{Sets: want.Sets}
	for _, r := range want.Rules {
		chain.Rules = append(chain.Rules, r.NFTRule)
	}
	content.Chain = chain
	was := nftables.Content(w.table, chain.Name)
	if nftables.SameContent(was, content) {
		return
	}
	for _, r := range want.Rules {
		w.origin[nftables.RuleLine(&r.NFTRule)] = r.Source
	}
	list := &w.made
	if was != nil {
		list = &w.restored
		if was.Chain.Base() != chain.Base() || was.Chain.Priority != chain.Priority || was.Chain.Hook != chain.Hook {
			w.do(change.NFTOp{Kind: change.DropNFTChain, Chain: chain.Name, Was: was})
			was = nil
		}
	}
	*list = append(*list, chain.Name)
	w.do(change.NFTOp{Kind: change.SetNFTChain, Chain: chain.Name, Want: content, Was: was})
}

// jump plans the one jump from a base chain to ctplan's.
func (w *nativeTable) jump(c *host.NFTChain, to string, want *declared.NFTChain) {
	ours := w.ours(want)
	at, old, ok := place(len(c.Rules), func(i int) standing {
		target, bare := nftables.OwnTarget(&c.Rules[i])
		return standing{jump: target == to, bare: bare && target == to, state: nft.AsksForTracking(&c.Rules[i])}
	}, func(i int) bool { return w.barrier(&c.Rules[i], ours) })
	if !ok {
		return
	}
	pos := at + 1
	for _, i := range old {
		if w.delete(c.Name, &c.Rules[i]); i < at {
			pos--
		}
	}
	rule := nftables.Jump(to)
	w.do(change.NFTOp{Kind: change.InsertNFTRule, Chain: c.Name, Pos: pos, Rule: &rule})
	if !slices.Contains(w.made, to) {
		w.moved = append(w.moved, c.Name)
	}
}

// ours are the packets that rules of ctplan's let through, of each family that meets
// the table.
func (w *nativeTable) ours(want *declared.NFTChain) map[host.Family][]xtables.Packets {
	own := nft.NewMatcher(&host.NFTTable{Family: w.table.Family, Sets: want.Sets})
	out := map[host.Family][]xtables.Packets{}
	for _, f := range host.Families {
		if !nft.Meets(f, w.table) {
			continue
		}
		for i := range want.Rules {
			if m := own.Of(f, &want.Rules[i].NFTRule); !m.None {
				out[f] = append(out[f], m.Packets)
			}
		}
	}
	return out
}

// barrier is whether a rule takes all of what some rule of ours lets through.
func (w *nativeTable) barrier(r *host.NFTRule, ours map[host.Family][]xtables.Packets) bool {
	for f, list := range ours {
		m := w.matches.Of(f, r)
		if !m.All {
			continue
		}
		for _, q := range list {
			if m.Packets.Covers(q) && w.swallows(r, f, q, 16) {
				return true
			}
		}
	}
	return false
}

// swallows reports whether a rule, matching all of q, keeps q from what comes
// after it, following jumps.
func (w *nativeTable) swallows(r *host.NFTRule, f host.Family, q xtables.Packets, depth int) bool {
	verdict, chain := nft.End(r)
	switch {
	case verdict == "drop", verdict == "queue", verdict == "return": // the policy decides
		return true
	case chain == "" || depth == 0 || nftables.IsOwn(chain):
		return false
	}
	c := w.table.Chain(chain)
	if c == nil {
		return false
	}
	for k := range c.Rules {
		inner := &c.Rules[k]
		m := w.matches.Of(f, inner)
		if !m.All || !m.Packets.Covers(q) {
			continue
		}
		switch end, _ := nft.End(inner); end {
		case "return":
			return verdict == "goto" // back to the caller's caller: the policy
		case "accept":
			return false
		}
		if w.swallows(inner, f, q, depth-1) {
			return true
		}
	}
	return verdict == "goto"
}

// leaves are the rules on state in a table of others that go, by the index
// of their chain and their own.
func (w *nativeTable) leaves() (out [][2]int) {
	p, t := w.p, w.table
	if p.carrier != declared.NFTables || p.d.Mode != declared.Notrack {
		return nil
	}
	named := map[declared.Risk]int{}
	for i := range t.Chains {
		c := &t.Chains[i]
		for k := range c.Rules {
			r := &c.Rules[k]
			if !nft.AsksForTracking(r) || nft.Translates(r) || nft.DecidesTracking(r) {
				continue
			}
			item := host.NFTItem{Kind: "rule", Chain: c.Name, Handle: r.Handle, Text: r.Text}
			o := other{
				address: "nftables." + t.Family + "." + t.Name, where: nftables.Describe(*t, item), matchesUntracked: nft.MatchesUntracked(t, r),
				keeps: func() bool { return nftables.WorkOf(t, &item) == "" }, // nativeWork says so
			}
			if o.touched, o.covered = w.untracks(c, r); o.touched && !o.matchesUntracked && p.d.StatefulRules == declared.TranslateStateful {
				p.Block(change.Block{
					Risk: declared.RiskStatefulRules, Address: o.address, Where: o.where,
					Why:    "this rule matches on connection state and stops matching the traffic that is no longer tracked, and rules of nftables are not translated",
					Remedy: `write accept blocks for that traffic, then set stateful_rules = "remove"`, Source: p.d.Source,
				})
				continue
			}
			if p.stateful(o, named) {
				out = append(out, [2]int{i, k})
			}
		}
	}
	if n := named[declared.RiskStatefulRules] - change.MaxNamed; n > 0 {
		p.Block(change.Block{
			Risk: declared.RiskStatefulRules, Address: "nftables." + t.Family + "." + t.Name, Where: fmt.Sprintf("and %s like these", words.Plural(n, "more rule", "more rules")), Override: true, Source: p.d.Source,
		})
	}
	return out
}

// untracks reports whether the declared notrack traffic touches what a rule
// matches, and whether it takes all of it, in every family that meets the table.
func (w *nativeTable) untracks(c *host.NFTChain, r *host.NFTRule) (touched, covered bool) {
	covered = true
	for _, f := range host.Families {
		if !nft.Meets(f, w.table) {
			continue
		}
		m := w.matches.Of(f, r)
		if m.None {
			continue
		}
		some, all := w.p.untracks(f, builtIn[c.Hook], m.Packets)
		touched, covered = touched || some, covered && all
	}
	return touched, covered
}

// remove plans that rules of others go. They are counted as they stand today.
func (w *nativeTable) remove(rules [][2]int) {
	if len(rules) == 0 {
		return
	}
	w.removed = len(rules)
	for _, at := range rules {
		c := &w.table.Chains[at[0]]
		w.delete(c.Name, &c.Rules[at[1]])
	}
}

// delete plans that a rule that stands today goes.
func (w *nativeTable) delete(chain string, r *host.NFTRule) {
	if c := w.now.Chain(chain); c != nil {
		pos := slices.IndexFunc(c.Rules, func(o host.NFTRule) bool { return o.Handle == r.Handle }) + 1
		w.do(change.NFTOp{Kind: change.DeleteNFTRule, Chain: chain, Pos: pos, Rule: r, Sets: nftables.SetsOf(w.table, []host.NFTRule{*r})})
	}
}

// dropOthers plans that chains of ctplan's go that are not wanted.
func (w *nativeTable) dropOthers(wanted []string) {
	for i := len(w.table.Chains) - 1; i >= 0; i-- { // so that they come back in their order
		if c := &w.table.Chains[i]; nftables.IsOwn(c.Name) && !slices.Contains(wanted, c.Name) {
			w.dropped = append(w.dropped, c.Name)
			w.do(change.NFTOp{Kind: change.DropNFTChain, Chain: c.Name, Was: nftables.Content(w.table, c.Name)})
		}
	}
}

func (w *nativeTable) do(op change.NFTOp) {
	op.Family, op.Table = w.table.Family, w.table.Name
	if !slices.Contains(w.chains, op.Chain) {
		w.chains = append(w.chains, op.Chain)
	}
	w.ops = append(w.ops, op)
	nftables.Do(&w.now, &op)
}

// nativeChange makes a change of the work on a table.
func (p *stage) nativeChange(w *nativeTable) {
	if len(w.ops) == 0 {
		return
	}
	c := &change.NFTChange{Family: w.table.Family, Table: w.table.Name, Ops: w.ops, Origin: w.origin}
	if host.FindNFT(p.l.NFT, c.Family, c.Table) != nil {
		c.Before = nftables.Lines(w.table, w.chains)
	}
	if w.ops[len(w.ops)-1].Kind != change.DeleteNFTTable {
		c.After = nftables.Lines(&w.now, w.chains)
	}
	c.M = change.Meta{Address: "nftables." + c.Family + "." + c.Table, Action: change.Update, Reasons: w.why(), Sources: w.sources()}
	if !slices.ContainsFunc(w.ops, func(op change.NFTOp) bool { return op.Kind == change.DeleteNFTRule || op.Was != nil }) {
		c.M.Action = change.Create
	} else if !slices.ContainsFunc(w.ops, func(op change.NFTOp) bool { return op.Kind == change.InsertNFTRule || op.Want != nil }) {
		c.M.Action = change.Delete
	}
	if len(c.M.Sources) == 0 {
		c.M.Sources = []declared.Pos{p.d.ModeSource}
	}
	p.out.Kernel = append(p.out.Kernel, c)
}

func (w *nativeTable) sources() []declared.Pos {
	var out []declared.Pos
	for _, at := range w.origin {
		if at != (declared.Pos{}) {
			out = append(out, at)
		}
	}
	return slices.Compact(change.SortPos(out))
}

// why says in words what the table's changes are for.
func (w *nativeTable) why() (out []string) {
	purpose := [2]string{"lets the declared traffic through without connection tracking", "let the declared traffic through without connection tracking"}
	if w.own {
		purpose = [2]string{"takes the declared traffic out of connection tracking", "take the declared traffic out of connection tracking"}
	}
	if len(w.made) > 0 {
		out = append(out, words.Joined(w.made, purpose[0], purpose[1]))
	}
	if len(w.restored) > 0 {
		out = append(out, words.Joined(w.restored, "is not as declared", "are not as declared"))
	}
	if len(w.dropped) > 0 {
		out = append(out, words.Joined(w.dropped, "is declared by nothing any longer", "are declared by nothing any longer"))
	}
	if w.removed > 0 {
		out = append(out, words.Plural(w.removed, "rule needs", "rules need")+" connection tracking and would stop working")
	}
	for _, c := range w.moved {
		out = append(out, "the jump from "+c+" to "+declared.OwnPrefix+c+" is missing or stands behind a rule that keeps packets from it")
	}
	if len(out) == 0 {
		out = append(out, "jumps to ctplan's chains stand where none is declared, or the table is empty")
	}
	if w.p.reason != "" && w.p.carrier == declared.NFTables {
		out = append(out, w.p.reason)
	}
	return out
}
