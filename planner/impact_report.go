package planner

import (
	"fmt"
	"strings"
)

// services tries every listening socket with a first packet from whoever the
// rules name, and from a stranger.
func listening(j *judge, total *Impact, report *Report) {
	all := j.knock(func(s *Socket, visits []visited) {
		group := FlowGroup{Result: FlowLost, Service: service(s.Protocol, s.Local.Port(), wayIn), Family: j.family, Examples: []string{}}
		for _, v := range visits {
			if v.today.Verdict != Accepted || v.end.Verdict != Dropped { // of some, if not of all
				continue
			}
			if group.Count++; len(group.Examples) < maxExamples {
				group.Examples = append(group.Examples, v.c.String())
			}
			group.Before, group.After = j.name(v.today.Rule), j.name(v.end.Rule)
		}
		if group.Count > 0 {
			total.Services = append(total.Services, group)
		}
	})
	if !all {
		report.Warn("connections", fmt.Sprintf("rules name more than %d networks of %s that packets come from: services were tried from %[1]d of them", maxSources-1, j.family), Pos{})
	}
}

// blockImpact turns what is lost into reasons not to go on.
func blockImpact(d Desired, l Live, im *Impact, p *Report) {
	c := l.Connections
	if c.Total > int64(len(c.Flows)) {
		p.Warn("connections", fmt.Sprintf("of %d tracked connections %d were read, and judged", c.Total, len(c.Flows)), Pos{})
	}
	blocks := func(risk Risk, groups []FlowGroup, what func(FlowGroup) string, noun, nouns string) {
		n, more := 0, int64(0)
		for _, g := range groups {
			if g.Result != FlowLost {
				continue
			}
			if n++; n > MaxNamed {
				more += g.Count
				continue
			}
			p.Block(Block{
				Risk: risk, Address: string(g.Family) + "." + strings.ReplaceAll(g.Service, " ", "."),
				Where:    g.After,
				Why:      what(g),
				Remedy:   remedy(g) + fmt.Sprintf(`, or set allow_risk = ["%s"] to let it happen`, risk),
				Override: true, Source: d.Source,
			})
		}
		if n > MaxNamed {
			p.Block(Block{
				Risk: risk, Address: "connections", Where: fmt.Sprintf("%d more groups", n-MaxNamed), Why: "they would be lost too: " + plural(int(more), noun, nouns),
				Remedy: "see the impact part of the plan's JSON", Override: true, Source: d.Source,
			})
		}
	}
	blocks(RiskLostFlows, im.Groups, whyLost, "connection", "connections")
	blocks(RiskLostServices, im.Services, func(g FlowGroup) string {
		return fmt.Sprintf("a service listens on %s, which %s reach today and could no longer; today this lets them through: %s", g.Service, join(g.Examples), g.Before)
	}, "way in", "ways in")
	n := 0
	for _, g := range im.Groups {
		if g.Result != FlowUnknown {
			continue
		}
		if n++; n <= MaxNamed {
			p.Warn(string(g.Family)+"."+strings.ReplaceAll(g.Service, " ", "."), fmt.Sprintf("whether %s survive cannot be told, because of this rule: %s (%s)", plural(int(g.Count), "connection", "connections"), g.After, join(g.Examples)), d.Source)
		}
	}
	for _, e := range im.Exposed {
		p.Warn("iptables."+string(e.Family)+".filter", fmt.Sprintf("%s. The rule %s lets it in, where today it meets: %s", e.What, e.Rule, e.Before), e.Source)
	}
}

// remedy says what would keep a service.
func remedy(g FlowGroup) string {
	if g.After == translationEnds.String() {
		return `leave this traffic tracked: narrow the notrack blocks, or use mode = "tuned"`
	}
	return "add an accept block for " + g.Service
}

func whyLost(g FlowGroup) string {
	who := plural(int(g.Count), "connection that is open now", "connections that are open now") + " would be cut off"
	if g.Operator {
		who = "the session that you are working through would be cut off"
	}
	text := who + " (" + join(g.Examples) + ")"
	if g.Stage != "" {
		text += ", while " + g.Stage + " is changed"
	}
	if g.Before != "" {
		text += "; today this lets them through: " + g.Before
	}
	return text
}
