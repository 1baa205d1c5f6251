package planner

import (
	"fmt"
	"slices"
	"strings"
)

// symmetry names what the rules, as they will stand, do to one side of the
// traffic and not to the other: to one direction of a connection, to a
// connection and not to what tracking related to it, to one family of
// addresses. Made-up packets are held against the rules, so that what some
// other rule sets right is no finding.
func (p *planning) symmetry() {
	if p.d.Mode == Tuned && !p.anyRawRules() {
		return
	}
	var judges []*judge
	for _, f := range Families {
		if j := p.worthJudging(f); j != nil {
			judges = append(judges, j)
		}
	}
	for _, f := range Families {
		judges = append(judges, p.savedJudges(f)...)
	}
	p.oneSided(judges)
	if p.d.Mode == Tuned {
		return
	}
	for _, j := range judges {
		p.icmpErrors(j)
		p.neighbours(j)
	}
	p.helpersInUse(judges)
	p.oneFamily(judges)
}

// once reports whether it was asked the same before.
func (p *planning) once(key ...string) bool {
	k := strings.Join(key, "\x00")
	before := p.named[k]
	if p.named == nil {
		p.named = map[string]bool{}
	}
	p.named[k] = true
	return before
}

// worthJudging is the family's judge, unless there is nothing to judge: no
// rule changes, and none of others stands in a raw table. What ctplan's own do
// was said when they were planned.
func (p *planning) worthJudging(f Family) *judge {
	changes := slices.ContainsFunc(p.rules, func(c Change) bool { return c.(*RulesChange).Family == f })
	if !changes && !slices.ContainsFunc(p.l.Rulesets, func(r Ruleset) bool { return r.Family == f && r.tracksByRaw() }) {
		return nil
	}
	return p.judge(f)
}

func (p *planning) anyRawRules() bool {
	raw := func(r Ruleset) bool { return r.tracksByRaw() }
	return slices.ContainsFunc(p.l.Rulesets, raw) || slices.ContainsFunc(p.l.SavedRules, raw)
}

// tracksByRaw is whether rules of others in the raw table change what is
// tracked.
func (r *Ruleset) tracksByRaw() bool {
	for i := range r.Tables {
		if r.Tables[i].Name == "raw" && slices.ContainsFunc(r.Tables[i].Rules, func(rule Rule) bool { return !isOwn(rule.Chain) && rule.mayNeed("raw") }) {
			return true
		}
	}
	return false
}

// savedJudges are those of the saved rules files of the family that say
// something else than the kernel's rules.
func (p *planning) savedJudges(f Family) []*judge {
	var out []*judge
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		if r.Family != f || r.Refusal != "" || len(r.Tables) == 0 || slices.ContainsFunc(p.l.Rulesets, func(live Ruleset) bool { return live.Family == f && sameRulesets(&live, r) }) {
			continue
		}
		var work []*RulesChange
		for _, w := range p.saved[r] {
			work = append(work, w.change(r))
		}
		if len(work) == 0 && !r.tracksByRaw() {
			continue
		}
		var steps []*RulesStep
		if len(work) > 0 {
			steps = []*RulesStep{rulesStep(work)}
		}
		out = append(out, p.newJudge(f, []*Ruleset{r}, steps))
	}
	return out
}

func sameRulesets(a, b *Ruleset) bool {
	for _, name := range slices.Concat(a.tableNames(), b.tableNames()) {
		if a.Model(name).Canonical() != b.Model(name).Canonical() {
			return false
		}
	}
	return true
}

// oneSide is a rule of a raw table that is about one way of a connection.
type oneSide struct {
	where   string
	source  Pos
	address string
	own     *Traffic // the block that it comes from, where it is one of ours
	ours    bool
	way     way
	zone    bool
	proto   uint8
	drop    *RuleRef // what drops the rest of a connection that is let through today
	named   bool     // the impact says so already
	also    []string // the same rule elsewhere
}

// oneSided tries each rule that takes packets out of tracking with a packet
// that it takes out, and one that answers it.
func (p *planning) oneSided(judges []*judge) {
	var found []*oneSide
	at := map[string]*oneSide{}
	for _, j := range judges {
		for _, ref := range j.untracks {
			for _, c := range j.examples(ref) {
				zone, ok := j.halves(ref, c)
				if !ok || c.way == wayForward && j.opens(j.stages[0], &c.connection).Verdict != Accepted {
					continue
				}
				o := j.describe(ref, c, zone)
				key := fmt.Sprint(o.source, ref.Chain, o.way)
				if !o.ours {
					key = fmt.Sprint(ref.Family, ref.Chain, " ", ref.Text, o.way)
				}
				if first := at[key]; first != nil {
					first.add(o)
					continue
				}
				at[key] = o
				found = append(found, o)
			}
		}
	}
	n := 0
	for _, o := range found {
		if n++; n <= maxNamed {
			p.reportOneSide(o)
		}
	}
	if n > maxNamed {
		p.warn("iptables", plural(n-maxNamed, "more rule of the raw table is", "more rules of the raw table are")+" about one way of a connection, like these", Pos{})
	}
}

// add takes in the same rule in another place or family.
func (o *oneSide) add(other *oneSide) {
	if o.drop == nil {
		o.drop = other.drop
	}
	o.named = o.named || other.named
	if !o.ours && other.where != o.where {
		o.also = append(o.also, other.where)
	}
}

// halves is whether the rule surely has an effect on the one packet of the
// connection that c.packets holds first, and surely none is had on the other.
func (j *judge) halves(ref RuleRef, c *example) (zone, ok bool) {
	end := j.end().v
	mine, other := end.verdict(j.e, &c.packets[c.mine]), end.verdict(j.e, &c.packets[1-c.mine])
	switch {
	case mine.Untracked && mine.by != nil && *mine.by == ref:
		return false, other.tracked
	case mine.tracked && other.tracked && mine.zone.by != nil && *mine.zone.by == ref:
		return true, !mine.zone.unsure && !other.zone.unsure && mine.zone.id != other.zone.id
	}
	return false, false
}

func (j *judge) describe(ref RuleRef, c *example, zone bool) *oneSide {
	o := &oneSide{where: ref.String(), address: "iptables." + string(j.family) + ".raw", way: c.way, zone: zone, proto: c.proto}
	if isOwn(ref.Chain) {
		o.ours = true
		o.source, o.own = j.p.origin(ref)
	} else if j.file != nil {
		o.address = "file." + j.file.Path
		o.where = j.p.lineOf(j.file, ref)
	}
	if today, end := j.opens(j.stages[0], &c.connection), j.opens(j.end(), &c.connection); today.Verdict == Accepted && end.Verdict == Dropped && (c.proto == protoTCP || j.answered(&c.connection)) {
		o.drop = end.Rule
		o.named = j.file == nil && j.p.impactNames(j.family, end.Rule)
	}
	return o
}

// origin is the block of the HCL that one of our rules comes from.
func (p *planning) origin(ref RuleRef) (Pos, *Traffic) {
	for _, ch := range p.d.Chains {
		if ch.Family != ref.Family || ch.Table != ref.Table || ch.Name != ref.Chain {
			continue
		}
		for _, r := range ch.Rules {
			if r.Text != ref.Text {
				continue
			}
			for _, list := range [][]Traffic{p.d.Notrack, p.d.Accept} {
				if i := slices.IndexFunc(list, func(t Traffic) bool { return t.Source == r.Source }); i >= 0 {
					return r.Source, &list[i]
				}
			}
			return r.Source, nil
		}
	}
	return Pos{}, nil
}

func (p *planning) lineOf(f *File, ref RuleRef) string {
	for i := range p.l.SavedRules {
		r := &p.l.SavedRules[i]
		if r.File != f {
			continue
		}
		for _, s := range r.sections(ref.Table) {
			for k := range s.Rules {
				if s.Rules[k].Chain == ref.Chain && s.Rules[k].Text == ref.Text {
					return p.where(r, &s.Rules[k])
				}
			}
		}
	}
	return f.Path + ": " + ref.String()
}

// impactNames is whether the impact has named something that this rule cuts off.
func (p *planning) impactNames(f Family, r *RuleRef) bool {
	im := p.plan.Impact
	if im == nil {
		return false
	}
	named := func(g FlowGroup) bool { return g.Result == FlowLost && g.Family == f && g.After == r.String() }
	return slices.ContainsFunc(im.Groups, named) || slices.ContainsFunc(im.Services, named)
}

// answered is whether a connection of this kind is open and has been answered:
// then both its ways matter.
func (j *judge) answered(c *connection) bool {
	return slices.ContainsFunc(j.conns.Flows, func(f Flow) bool {
		return f.Protocol == c.proto && f.Status&StatusSeenReply != 0 && f.Orig.Src.Is4() == (j.family == IPv4) &&
			(!carriesPorts(c.proto) || f.Orig.DstPort == c.orig.DstPort) && j.places.way(f.Orig.Src, f.Reply.Src) == c.way
	})
}

// reportOneSide says what it is, and how to mend it.
func (p *planning) reportOneSide(o *oneSide) {
	what := map[way]string{
		wayIn:      "packets to this host out of tracking, and not their answers, which pass raw OUTPUT",
		wayOut:     "packets that this host sends out of tracking, and not those that answer them, which pass raw PREROUTING",
		wayForward: "one direction of routed connections out of tracking, and not the other, which passes raw PREROUTING too",
	}[o.way]
	why := "this rule takes " + what
	switch {
	case o.zone:
		why = strings.Replace("this rule sorts "+what, " out of tracking, and not ", " into a zone of tracking, and not into the same zone ", 1) +
			": to tracking each way is a connection of its own, and an answer without a question is INVALID"
	case o.drop != nil:
		why += ": tracking sees half of each connection, and the rest of it is dropped by: " + o.drop.String()
	case stateAlone(o.proto) == StateInvalid:
		why += ": tracking sees half of each connection, and calls it INVALID"
	default:
		why += ": tracking sees half of each connection, which still fills the table"
	}
	remedy := o.remedy()
	where := o.where
	if len(o.also) > 0 {
		where += " (also " + join(o.also) + ")"
	}
	if o.drop == nil || o.named {
		p.warn(o.address, where+": "+why+"; to mend it, "+remedy, o.source)
		return
	}
	p.block(Block{Risk: RiskOneSided, Address: o.address, Where: where, Why: why, Remedy: remedy, Override: true, Source: o.source})
}

func (o *oneSide) remedy() string {
	mirror := "raw OUTPUT"
	if o.way != wayIn {
		mirror = "raw PREROUTING"
	}
	switch {
	case o.zone:
		return "put both ways into the same zone: add the rule's mirror image to " + mirror
	case !o.ours:
		return "declare the traffic in a notrack block, which takes both ways, and take this rule away; or add its mirror image to " + mirror
	case o.own != nil && (o.own.Direction == In || o.own.Direction == Out):
		return fmt.Sprintf(`leave direction = %q out of the notrack block %q: without it the block takes both ways`, o.own.Direction, o.own.Name)
	case o.way == wayForward:
		return `name this host's addresses in the block's local, so that it leaves routed traffic alone, or declare that too, in a notrack block with direction = "forward"`
	case o.own != nil && o.own.Direction == Forward:
		return `name the routed networks in the block's local and remote, or declare the host's own traffic too, in a notrack block without a direction`
	}
	return "declare both ways, or take away what keeps the other way tracked in " + mirror
}
