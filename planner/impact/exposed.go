package impact

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// exposed ends a search for what newly gets in by the rules of a judge; nil is
// none.
func exposed(s *search, total *Impact, report *change.Report) {
	if s == nil {
		return
	}
	for _, e := range s.found() {
		if !slices.ContainsFunc(total.Exposed, func(o Exposure) bool { o.File = e.File; return o.alike(e) }) {
			total.Exposed = append(total.Exposed, e)
		}
	}
	if j := s.watch.j; !s.of.All {
		report.Warn("exposed", fmt.Sprintf("rules of %s%s tell apart too many sources and services to try all of them together: sources were tried with the services that stand with them in a rule, and with those that no rule names",
			j.Family, inFile(j)), declared.Pos{})
	}
}

func inFile(j *judge.Judge) string {
	if j.File == nil {
		return ""
	}
	return " in " + j.File.Path
}

// blockExposed turns what newly gets in into reasons not to go on, where no
// block asks for it.
func blockExposed(d declared.Desired, im *Impact, p *change.Report) {
	n := map[bool]int{}
	for _, e := range im.Exposed {
		asked := e.Declared || e.Unknown
		if n[asked]++; n[asked] > change.MaxNamed {
			continue
		}
		address := string(e.Family) + "." + words.Or(strings.Join(e.Services[:min(1, len(e.Services))], ""), "any") + "." + way(e)
		address = strings.ReplaceAll(address, " ", ".")
		switch text := e.sentence(); {
		case e.Unknown:
			p.Warn(address, "whether "+text+", cannot be told, because of this rule: "+e.Rule, e.Source)
		case e.Declared:
			p.Warn(address, e.asked(text), e.Source)
		default:
			remedy, commands := e.remedy(d)
			p.Block(change.Block{
				Risk: declared.RiskExposed, Address: address, Where: e.Before, Why: text + "; then this lets it in: " + e.Rule, Remedy: remedy, Override: true, Source: e.Source, Commands: commands,
			})
		}
	}
	if more := n[false] - change.MaxNamed; more > 0 {
		p.Block(change.Block{
			Risk: declared.RiskExposed, Address: "exposed", Where: words.Plural(more, "more group", "more groups"), Why: "they would get in too",
			Remedy: "see exposed in the impact part of the plan's JSON", Override: true, Source: d.Source,
		})
	}
	if more := n[true] - change.MaxNamed; more > 0 {
		p.Warn("exposed", words.Plural(more, "more opening", "more openings")+" like these: see exposed in the impact part of the plan's JSON", d.Source)
	}
}

func way(e Exposure) string {
	if e.Routed {
		return "forward"
	}
	return "in"
}

// sentence says who gets in to what, and where.
func (e Exposure) sentence() string {
	text := e.What
	if e.Some {
		text += ", of which today's rule refuses some"
	}
	if e.Stage != "" {
		text += ", while " + e.Stage + " is changed"
	}
	if e.File != "" {
		text += ", once a boot has restored " + e.File
	}
	return text
}

// asked is for what a block asks for.
func (e Exposure) asked(text string) string {
	block := "an accept block"
	if e.Block != "" {
		block = fmt.Sprintf("accept %q", e.Block)
	}
	return fmt.Sprintf("%s opens what is refused today: %s. Today this keeps it out: %s", block, text, e.Before)
}

// remedy says what keeps them out.
func (e Exposure) remedy(d declared.Desired) (text string, commands []string) {
	const ask = `ask for it in an accept block, or set allow_risk = ["exposed"] to let it happen`
	keep := `leave this traffic tracked: narrow the notrack blocks until they leave it alone`
	if d.Mode != declared.Notrack {
		keep = `keep tracking for it: mode = "notrack" with notrack blocks that leave it alone`
	}
	if e.twin != "" {
		by := "with the rule below beside it"
		if d.StatefulRules != declared.TranslateStateful {
			by = `by stateful_rules = "translate", or ` + by
		}
		keep = "keep them out without state, " + by + "; or " + keep
		commands = []string{e.twin}
	}
	return keep + "; or " + ask, commands
}

// twin is the command that adds a rule's stateless twin ahead of it: for one
// that refuses new connections of TCP by their state, the same for what opens
// them. It is empty for any other rule.
func twin(j *judge.Judge, r *verdict.RuleRef) string {
	set, chain, at := j.Standing(r)
	if set == nil || j.File != nil {
		return ""
	}
	rule := chain[at]
	s := xtables.Parse(rule.Words)
	tcp, news := false, false
	for _, o := range s.Matches {
		switch o.Name {
		case "-p":
			tcp = !o.Not && protocol.Canonical(o.Args[0]) == "6"
		case "--state", "--ctstate":
			news = !o.Not && len(o.Args) == 1 && slices.Contains(strings.Split(o.Args[0], ","), "NEW")
		case "--ctdir", "--ctstatus", "--ctproto", "--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--ctexpire", "--syn", "--tcp-flags":
			return ""
		}
	}
	if !tcp || !news || s.Target != "DROP" && s.Target != "REJECT" {
		return ""
	}
	command := []string{xtables.ToolName(j.Family, set.Backend, set.Primary), "-I", rule.Chain, strconv.Itoa(at + 1)}
	for i := 0; i < len(rule.Words); i++ {
		switch w := rule.Words[i]; {
		case w == "-m" && i+1 < len(rule.Words) && (rule.Words[i+1] == "state" || rule.Words[i+1] == "conntrack"), w == "--state", w == "--ctstate":
			i++
		case w == "-j" || w == "-g":
			command = append(command, "-m", "tcp", "--syn", w)
		default:
			command = append(command, w)
		}
	}
	return words.ShellWords(command...)
}
