package judge

import (
	"maps"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Rule is a rule of iptables that is tried, or taken away, in a built-in chain.
type Rule struct {
	Table, Chain string
	Words        []string // behind "-A CHAIN "
}

// Tried is the rules as they will stand, with more of them at the head of their
// chains and without one: how a remedy is tried before it is told.
func (j *Judge) Tried(more []Rule, without *verdict.RuleRef) Stage {
	t := *j.tables
	t.models, t.compiled, t.words = maps.Clone(t.models), maps.Clone(t.compiled), maps.Clone(t.words)
	out := j.End()
	apply := func(backend host.Backend, table string, op change.RuleOp) {
		id := verdict.TableID{Backend: backend, Table: table}
		if m := t.models[id]; m != nil {
			t.models[id] = m.Clone()
		}
		out = t.change(id, []change.RuleOp{op}, nil)
	}
	if without != nil {
		apply(without.Backend, without.Table, change.RuleOp{Kind: change.DeleteRule, Chain: without.Chain, Rule: without.Text})
	}
	backend := j.backend
	if without != nil {
		backend = without.Backend
	}
	for _, r := range more {
		text := strings.Join(r.Words, " ")
		t.words[text] = r.Words
		apply(backend, r.Table, change.RuleOp{Kind: change.InsertRule, Chain: r.Chain, Pos: 1, Rule: text})
	}
	return out
}

// KeepsAll is whether rules, as they are tried, cut nothing off that today's let
// through: a connection that somebody opens, of those that are open no more than
// limit, and who knocks at a service.
func (j *Judge) KeepsAll(s Stage, c *Connection, limit int) bool {
	cut := func(today, then verdict.Decision) bool {
		return today.Verdict == verdict.Accepted && then.Verdict != verdict.Accepted
	}
	if cut(j.Opens(j.Stages[0], c), j.Opens(s, c)) {
		return false
	}
	kept := true
	j.Each(1, nil, func(_, _ int, open *Connection) {
		if limit--; limit >= 0 && kept {
			kept = !cut(j.At(j.Stages[0], open, false), j.At(s, open, false))
		}
	})
	sources, _ := j.sources()
	for i := range j.Connections.Sockets {
		k := &j.Connections.Sockets[i]
		if !kept || !k.Listening || k.Local.Addr().IsLoopback() {
			continue
		}
		for _, to := range j.ListenAddresses(k) {
			for _, from := range sources {
				v, ok := j.Visit(k.Protocol, host.Tuple{Src: from, Dst: to.Prefix.Addr(), SrcPort: 40000, DstPort: k.Local.Port()}, to.Interface)
				kept = kept && !(ok && cut(j.Opens(j.Stages[0], &v), j.Opens(s, &v)))
			}
		}
	}
	return kept
}
