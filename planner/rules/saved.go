package rules

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// splices turns the work on a table of a saved rules file into edits: the
// same chains, jumps and removals as in the kernel, every other line as it is.
func (w *tableWork) splices(f *change.FileEdit) {
	if len(w.sections) == 0 {
		f.AppendLine(strings.TrimSuffix(w.newSection(), "\n"))
		return
	}
	if w.gone {
		for _, s := range w.sections {
			f.Replace(s.Span, "")
		}
		return
	}
	// iptables-restore flushes a table at each of its sections: the last counts.
	s := w.sections[len(w.sections)-1]
	var decls, rules strings.Builder
	for _, cw := range w.chains {
		for _, r := range cw.have {
			f.Replace(r.Span, "")
		}
		if cw.want == nil {
			for _, s := range w.sections {
				for _, d := range s.Chains {
					if d.Name == cw.name {
						f.Replace(d.Span, "")
					}
				}
			}
			continue
		}
		if !cw.exists {
			decls.WriteString(":" + cw.name + " - [0:0]\n")
		}
		block := ruleLines(cw)
		if len(cw.have) > 0 {
			f.Insert(cw.have[0].Span.Start, block)
		} else {
			rules.WriteString(block)
		}
	}
	if decls.Len() > 0 {
		f.Insert(endOfChains(f.Content(), s), decls.String())
	}
	for _, r := range slices.Concat(w.bars, w.remove, w.untracks) {
		f.Replace(r.Span, "")
	}
	for _, j := range w.jumps {
		for _, old := range j.old {
			f.Replace(old.Span, "")
		}
		line := "-A " + j.hook + " " + xtables.Jump(j.chain) + "\n"
		switch {
		case j.at < len(j.rules):
			f.Insert(j.rules[j.at].Span.Start, line)
		case len(j.rules) > 0:
			f.Insert(j.rules[len(j.rules)-1].Span.End, line)
		default:
			f.Insert(startOfRules(s, j.hook), line)
		}
	}
	w.spliceTwins(f) // behind a jump at the same place
	f.Insert(s.Commit.Start, rules.String())
}

// newSection is the whole section of a table that the file does not have yet.
func (w *tableWork) newSection() string {
	var b strings.Builder
	b.WriteString("*" + w.table + "\n")
	for _, c := range xtables.Builtins[w.table] {
		b.WriteString(":" + c + " ACCEPT [0:0]\n")
	}
	for _, cw := range w.chains {
		b.WriteString(":" + cw.name + " - [0:0]\n")
	}
	for _, j := range w.jumps {
		b.WriteString("-A " + j.hook + " " + xtables.Jump(j.chain) + "\n")
	}
	for _, cw := range w.chains {
		b.WriteString(ruleLines(cw))
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func ruleLines(cw chainWork) string {
	var b strings.Builder
	for _, r := range cw.want {
		b.WriteString("-A " + cw.name + " " + r.Text + "\n")
	}
	return b.String()
}

// endOfChains is where a chain's declaration is added: behind the last one,
// or behind the table's own line.
func endOfChains(content string, t *host.Table) int {
	if n := len(t.Chains); n > 0 {
		return t.Chains[n-1].Span.End
	}
	if i := strings.IndexByte(content[t.Span.Start:], '\n'); i >= 0 {
		return t.Span.Start + i + 1
	}
	return t.Span.End
}

// startOfRules is where the first rule of a chain is added that has none: the
// chains' rules follow each other in the order of their declarations. That
// order means nothing to the kernel, but to a reader it does.
func startOfRules(t *host.Table, chain string) int {
	order := func(name string) int {
		return slices.IndexFunc(t.Chains, func(d host.ChainDecl) bool { return d.Name == name })
	}
	mine := order(chain)
	for _, r := range t.Rules {
		if order(r.Chain) > mine {
			return r.Span.Start
		}
	}
	return t.Commit.Start
}
