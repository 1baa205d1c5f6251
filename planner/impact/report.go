package impact

import (
	"fmt"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
)

// services tries every listening socket with a first packet from whoever the
// rules name, and from a stranger.
func listening(j *judge.Judge, total *Impact, report *change.Report) {
	all := j.Knock(func(s *host.Socket, visits []judge.Visited) {
		group := FlowGroup{Result: FlowLost, Service: judge.ServiceName(s.Protocol, s.Local.Port(), judge.In), Family: j.Family, Examples: []string{}}
		for _, v := range visits {
			if v.Today.Verdict != verdict.Accepted || v.End.Verdict != verdict.Dropped { // of some, if not of all
				continue
			}
			if group.Count++; len(group.Examples) < maxExamples {
				group.Examples = append(group.Examples, v.Conn.String())
			}
			if group.rule == nil {
				v.Conn.Port = s.Local.Port()
				group.rule, group.cuts = v.End.Rule, Cuts(j, j.End().Evaluator, &v.Conn, v.End.Rule)
			}
			group.Before, group.After = j.Name(v.Today.Rule), j.Name(v.End.Rule)
		}
		if group.Count > 0 {
			total.Services = append(total.Services, group)
			return
		}
		partsOfService(j, s, visits, total)
	})
	if !all {
		report.Warn("connections", fmt.Sprintf("rules name more than %d networks of %s that packets come from: services were tried from %[1]d of them", judge.MaxSources-1, j.Family), declared.Pos{})
	}
}

// partsOfService is the same of datagrams that come in parts, where those that
// come whole still get in.
func partsOfService(j *judge.Judge, s *host.Socket, visits []judge.Visited, total *Impact) {
	group := FlowGroup{Result: FlowLost, Fragments: true, Service: judge.ServiceName(s.Protocol, s.Local.Port(), judge.In), Family: j.Family, Examples: []string{}}
	for _, v := range visits {
		if v.Today.Verdict != verdict.Accepted || !j.ComesApart(&v.Conn) {
			continue
		}
		today, end := j.Parts(j.Admitting, &v.Conn), j.Parts(j.End(), &v.Conn)
		if today.Verdict != verdict.Accepted || end.Verdict != verdict.Dropped {
			continue
		}
		if group.Count++; len(group.Examples) < maxExamples {
			group.Examples = append(group.Examples, v.Conn.String())
		}
		group.Before, group.After, group.rule = j.Name(today.Rule), j.Name(end.Rule), end.Rule
	}
	if group.Count > 0 {
		total.Services = append(total.Services, group)
	}
}

// blockImpact turns what is lost into reasons not to go on.
func blockImpact(d declared.Desired, l host.Live, im *Impact, p *change.Report) {
	c := l.Connections
	if n := len(c.All()); c.Total > int64(n) {
		p.Warn("connections", fmt.Sprintf("of %d tracked connections %d were read, and judged", c.Total, n), declared.Pos{})
	}
	blocks := func(risk declared.Risk, groups []FlowGroup, what func(FlowGroup) string, noun, nouns string) {
		n, more := 0, int64(0)
		for _, g := range groups {
			if g.Result != FlowLost {
				continue
			}
			if n++; n > change.MaxNamed {
				more += g.Count
				continue
			}
			advice := remedy(d, &l, g)
			p.Block(change.Block{
				Risk: risk, Address: string(g.Family) + "." + strings.ReplaceAll(g.Service, " ", "."),
				Where:    owners.Where(&l, g.rule, g.After),
				Why:      what(g),
				Remedy:   advice.Text + fmt.Sprintf(`, or set allow_risk = ["%s"] to let it happen`, risk),
				Override: true, Source: d.Source, Commands: advice.Commands,
			})
		}
		if n > change.MaxNamed {
			p.Block(change.Block{
				Risk: risk, Address: "connections", Where: fmt.Sprintf("%d more groups", n-change.MaxNamed), Why: "they would be lost too: " + words.Plural(int(more), noun, nouns),
				Remedy: "see the impact part of the plan's JSON", Override: true, Source: d.Source,
			})
		}
	}
	blocks(declared.RiskLostFlows, im.Groups, whyLost, "connection", "connections")
	blocks(declared.RiskLostServices, im.Services, func(g FlowGroup) string {
		if g.Fragments {
			return fmt.Sprintf("a service listens on %s, which datagrams in fragments reach today (%s) and could no longer: nothing would join them any more, and %s; today this lets them through: %s", g.Service, words.Examples(g.Examples), headless, g.Before)
		}
		return fmt.Sprintf("a service listens on %s, which %s reach today and could no longer; today this lets them through: %s", g.Service, words.Examples(g.Examples), g.Before)
	}, "way in", "ways in")
	n := 0
	for _, g := range im.Groups {
		if g.Result != FlowUnknown {
			continue
		}
		if n++; n <= change.MaxNamed {
			what, because := words.Plural(int(g.Count), "connection", "connections"), "because of this rule"
			if g.Fragments {
				what = "datagrams in fragments of " + what
			}
			if g.rule != nil && g.rule.Routes {
				because = "because of its mark"
			}
			p.Warn(string(g.Family)+"."+strings.ReplaceAll(g.Service, " ", "."), fmt.Sprintf("whether %s survive cannot be told, %s: %s (%s)", what, because, owners.Where(&l, g.rule, g.After), words.Examples(g.Examples)), d.Source)
		}
	}
	blockExposed(d, im, p)
}

// unseen blocks what cannot be judged, because it could not be read.
func unseen(d declared.Desired, c *host.Connections, total *Impact, report *change.Report) {
	for _, u := range c.Unread {
		total.NotKnown = append(total.NotKnown, fmt.Sprintf("%s (%s)", u.What, u.Why))
		report.Block(change.Block{
			Risk: declared.RiskUnseen, Address: "connections", Where: u.What,
			Why:      fmt.Sprintf("this could not be read (%s), so whom the change of rules cuts off is not known", u.Why),
			Remedy:   `see to what keeps it from being read, or allow_risk = ["unseen"] to change the rules without knowing`,
			Override: true, Source: d.ModeSource,
		})
	}
}

// headless says why parts of datagrams are kept out.
const headless = "only the first of them has ports"

// remedy says what would keep a service.
func remedy(d declared.Desired, l *host.Live, g FlowGroup) owners.Advice {
	if g.Fragments {
		return owners.Advice{Text: `leave some of this family's traffic tracked, which keeps fragments joined: narrow the notrack blocks, or use mode = "tuned"`}
	}
	if g.After == judge.TranslationEnds.String() {
		return owners.Advice{Text: `leave this traffic tracked: narrow the notrack blocks, or use mode = "tuned"`}
	}
	if g.rule != nil && g.rule.Routes {
		return owners.Advice{Text: judge.KeepsMarks}
	}
	return owners.ToLetThrough(d, l, g.rule, g.cuts, "add an accept block for "+g.Service)
}

func whyLost(g FlowGroup) string {
	who := words.Plural(int(g.Count), "connection that is open now", "connections that are open now") + " would be cut off"
	if g.Operator {
		who = "the session that you are working through would be cut off"
	}
	if g.Fragments {
		who = "datagrams in fragments of " + words.Plural(int(g.Count), "connection that is open now", "connections that are open now") + " would be lost: nothing would join them any more, and " + headless
	}
	text := who + " (" + words.Examples(g.Examples) + ")"
	if g.Stage != "" {
		text += ", while " + g.Stage + " is changed"
	}
	if g.carries {
		text += "; whatever goes through it dies with it, also where it is called kept by itself"
	}
	if g.Before != "" {
		text += "; today this lets them through: " + g.Before
	}
	return text
}
