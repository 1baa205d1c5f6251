// Package nft reads the tables of nftables' own, for package verdict.
//
// Rules come as the kernel has them, as programs of expressions. What a packet
// cannot tell, and what this package has no word for, is unknown to it, and the
// rule is named.
package nft

import (
	"math"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Tables compiles the tables that packets of a family meet. why says why the
// tables could not be read; empty where they could.
func Tables(c *verdict.Compiler, family host.Family, tables []host.NFTTable, interfaces map[string]uint32, why string) []*verdict.Table {
	names := map[uint32]string{}
	for name, index := range interfaces {
		names[index] = name
	}
	var out []*verdict.Table
	for i := range tables {
		t := &tables[i]
		if !meets(family, t) {
			continue
		}
		id := verdict.TableID{Native: t.Family, Table: t.Name}
		var compiled *verdict.Table
		if l := (&language{family: family, table: t, names: names}); t.Dormant {
			compiled = c.Table(id, l, nil)
		} else {
			compiled = c.Table(id, l, l.sources())
		}
		compiled.Join(Joins(t, family))
		out = append(out, compiled)
	}
	if why != "" {
		id := verdict.TableID{Native: verdict.Unread}
		t := c.Table(id, unread{}, doubts("nftables", why, verdict.LocalIn, verdict.Forwarding, verdict.LocalOut))
		t.Join(verdict.Maybe)
		out = append(out, t)
	}
	return out
}

// meets is whether packets of the family may pass a table.
func meets(family host.Family, t *host.NFTTable) bool {
	switch t.Family {
	case "inet", "netdev", "bridge":
		return true
	case "ip":
		return family == host.IPv4
	case "ip6":
		return family == host.IPv6
	}
	return false
}

// unread is the language of rules of which nothing is known.
type unread struct{}

// Read is Language's.
func (unread) Read(r *verdict.Rule, _ verdict.TableID, _ *verdict.RuleSource) {
	r.Vague()
	r.Do(verdict.Anything)
}

// doubts are base chains that may do anything, each with one rule that says so.
func doubts(chain, text string, at ...verdict.NetHook) []verdict.ChainSource {
	var out []verdict.ChainSource
	for _, h := range at {
		name := chain
		if len(out) > 0 {
			name += string(rune('0' + len(out)))
		}
		out = append(out, verdict.ChainSource{
			Name: name, Policy: "accept", Base: &verdict.Base{Hook: h, Priority: verdict.PriorityFilter}, Rules: []verdict.RuleSource{{Text: text}},
		})
	}
	return out
}

// language is that of one table, for packets of a family.
type language struct {
	family host.Family
	table  *host.NFTTable
	names  map[uint32]string // of interfaces, by index
	sets   map[string]*set
	filled map[string]bool // sets that packets fill
	plain  bool            // nothing becomes a condition: for tests
}

// hooks of the kernel by nft's names.
var hooks = map[string]verdict.NetHook{
	"prerouting": verdict.Prerouting, "input": verdict.LocalIn, "forward": verdict.Forwarding, "output": verdict.LocalOut, "postrouting": verdict.Postrouting,
}

// sources are the table's chains.
func (l *language) sources() []verdict.ChainSource {
	var out []verdict.ChainSource
	for i := range l.table.Chains {
		c := &l.table.Chains[i]
		switch {
		case l.table.Family == "bridge":
			out = append(out, l.bridge(c)...)
		case !l.table.Whole:
			out = append(out, l.notRead(c)...)
		case c.Hook == "ingress" || c.Hook == "egress":
			out = append(out, l.onDevices(c)...)
		default:
			out = append(out, source(c))
		}
	}
	slices.Reverse(out) // of one priority, the newest is called first
	return out
}

func source(c *host.NFTChain) verdict.ChainSource {
	s := verdict.ChainSource{Name: c.Name, Policy: c.Policy, Drops: c.Policy == "drop", Rules: make([]verdict.RuleSource, len(c.Rules))}
	if at, ok := hooks[c.Hook]; ok {
		s.Base = &verdict.Base{Hook: at, Priority: c.Priority, NAT: c.Type == "nat", Reroutes: c.Type == "route"}
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		s.Rules[i] = verdict.RuleSource{Text: r.Text, Handle: r.Handle, Exprs: r.Exprs}
	}
	return s
}

// refuses is whether some rule of a table may refuse a packet.
func (l *language) refuses(c *host.NFTChain) bool {
	return c.Policy == "drop" || l.table.Drops || slices.ContainsFunc(l.table.Items, func(i host.NFTItem) bool { return slices.Contains(i.Uses, "notrack") })
}

// Expressions that the sources here make up.
const (
	exprVague  = "\x00vague"
	exprBridge = "\x00bridge"
)

// ctUntracked is a state (NF_CT_STATE_UNTRACKED_BIT).
const ctUntracked = 1 << 6

// notRead is a base chain whose rules are not known.
func (l *language) notRead(c *host.NFTChain) []verdict.ChainSource {
	at, ok := hooks[c.Hook]
	if !c.Base() || !l.refuses(c) {
		return nil
	}
	if !ok {
		at = verdict.Prerouting
	}
	return []verdict.ChainSource{{
		Name: c.Name, Policy: "accept", Base: &verdict.Base{Hook: at, Priority: c.Priority},
		Rules: opaque("what its rules say is not known"),
	}}
}

// opaque are rules that stand for what is not judged. What is not tracked has its
// own: rules may ask for a state, so that they do something else with it.
func opaque(text string, when ...host.NFTExpr) []verdict.RuleSource {
	untracked := []host.NFTExpr{{Name: "ct", Key: ctState, Dst: 1}, {Name: "cmp", Src: 1, Data: []byte{ctUntracked, 0, 0, 0}}, {Name: exprVague}}
	return []verdict.RuleSource{
		{Text: text + ", of packets that are not tracked", Exprs: slices.Concat(when, untracked)},
		{Text: text, Exprs: append(slices.Clone(when), host.NFTExpr{Name: exprVague})},
	}
}

// bridge is a chain that packets meet that pass the port of a bridge: what its
// rules do with them is not judged.
func (l *language) bridge(c *host.NFTChain) []verdict.ChainSource {
	if !c.Base() || l.table.Whole && c.Policy != "drop" && !l.table.Drops || !l.table.Whole && !l.refuses(c) {
		return nil
	}
	base := verdict.Base{Hook: verdict.Prerouting, Priority: math.MinInt32}
	if c.Hook == "output" || c.Hook == "postrouting" { // once IP has done with them
		base = verdict.Base{Hook: verdict.Postrouting, Priority: math.MaxInt32}
	}
	return []verdict.ChainSource{{
		Name: c.Name, Policy: "accept", Base: &base,
		Rules: opaque("what it does with packets of a bridge is not judged", host.NFTExpr{Name: exprBridge}),
	}}
}

// onDevices is a chain that packets meet as they come in by some interfaces, or
// leave by them: it is called for those.
func (l *language) onDevices(c *host.NFTChain) []verdict.ChainSource {
	inner := source(c)
	inner.Base = nil
	if inner.Drops {
		inner.Rules = append(inner.Rules, verdict.RuleSource{Text: "policy drop", Exprs: []host.NFTExpr{{Name: "immediate", Verdict: "drop"}}})
	}
	b := verdict.Base{Hook: verdict.Prerouting, Priority: math.MinInt32}
	key := uint32(metaInName)
	if c.Hook == "egress" {
		b = verdict.Base{Hook: verdict.Postrouting, Priority: math.MaxInt32}
		key = metaOutName
	}
	outer := verdict.ChainSource{Name: c.Name + " (" + c.Hook + ")", Policy: "accept", Base: &b}
	for _, dev := range c.Devices {
		name := make([]byte, 16)
		copy(name, dev)
		outer.Rules = append(outer.Rules, verdict.RuleSource{Text: "on " + dev, Exprs: []host.NFTExpr{
			{Name: "meta", Key: key, Dst: 1}, {Name: "cmp", Src: 1, Data: name}, {Name: "immediate", Verdict: "jump", Chain: c.Name},
		}})
	}
	return []verdict.ChainSource{inner, outer}
}
