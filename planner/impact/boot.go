package impact

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// atBoot tells what gets in once a boot has restored a saved file that says
// something else than the kernel's rules, with the plan as without it. What the
// plan makes of the file is told as what newly gets in. Chains that a program
// makes by itself are made again after a boot.
func atBoot(kernel, saved *judge.Judge, report *change.Report) {
	if kernel == nil || saved.File == nil {
		return
	}
	across := saved.Across(kernel)
	w := newWatch(across)
	list := w.seek(func(p *judge.Opening) (f opened, ok bool) {
		today := across.Stages[0].Verdict(&p.Packet)
		if today.Verdict != verdict.Dropped || today.Rule != nil && xtables.MakerOf(today.Rule.Chain) != "" || saved.Stages[0].Verdict(&p.Packet).Verdict != verdict.Accepted {
			return f, false
		}
		end := across.End().Verdict(&p.Packet)
		f.way, f.before, f.after = p.Way, ref(today.Rule), ref(end.Rule)
		return f, end.Verdict == verdict.Accepted && !w.asks(&f, p)
	}).found()
	if len(list) == 0 {
		return
	}
	var named []string
	for _, e := range list[:min(len(list), change.MaxNamed)] {
		named = append(named, e.What+", which today this keeps out: "+e.Before)
	}
	if more := len(list) - len(named); more > 0 {
		named = append(named, words.Plural(more, "more like these", "more like these"))
	}
	text := "a boot restores " + saved.File.Path + ", which lets in what the rules in force refuse, with this plan as without it: " + strings.Join(named, "; ") + ". To keep it out, save the rules that are in force, and plan again"
	report.Warn("file."+saved.File.Path, text, declared.Pos{}, save(kernel, saved)...)
}

// save is the command that saves the rules in force; none where programs have put
// rules there that they make again by themselves.
func save(kernel, saved *judge.Judge) []string {
	switch saved.File.Path {
	case "/etc/iptables/rules.v4", "/etc/iptables/rules.v6", "/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables":
	default:
		return nil
	}
	if len(kernel.Sets()) != 1 {
		return nil
	}
	for _, name := range kernel.Sets()[0].TableNames() {
		for _, s := range kernel.Sets()[0].Sections(name) {
			if slices.ContainsFunc(s.Chains, func(c host.ChainDecl) bool { return xtables.MakerOf(c.Name) != "" }) {
				return nil
			}
		}
	}
	return []string{xtables.ToolName(saved.Family, "", true) + "-save > " + words.ShellWords(saved.File.Path)}
}
