package planner

import (
	"fmt"
	"slices"
	"strings"
)

// SidesInput is what the checks of both sides are made from.
type SidesInput struct {
	Desired Desired
	Live    Live
	Judges  Judges
	Rules   []Change                // to the rules in the kernel
	Saved   map[*Ruleset]*RulesStep // what becomes of saved rules files
	Impact  *Impact                 // what it names, the checks need not block; nil where there is none
}

// stageSides is one run of the checks of both sides.
type stageSides struct {
	Report
	in    SidesInput
	named map[string]bool // findings that stand already
}

// CheckSides names what the rules, as they will stand, do to one side of the
// traffic and not to the other: to one direction of a connection, to a
// connection and not to what tracking related to it, to one family of
// addresses. Made-up packets are held against the rules, so that what some
// other rule sets right is no finding.
func CheckSides(in SidesInput) Findings {
	p := &stageSides{Report: NewReport(in.Desired), in: in, named: map[string]bool{}}
	if in.Desired.Mode != Tuned || p.anyRawRules() {
		p.check()
	}
	return p.Findings
}

func (p *stageSides) check() {
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
	if p.in.Desired.Mode == Tuned {
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
func (p *stageSides) once(key ...string) bool {
	k := strings.Join(key, "\x00")
	before := p.named[k]
	p.named[k] = true
	return before
}

// worthJudging is the family's judge, unless there is nothing to judge: no
// rule changes, and none of others stands in a raw table. What ctplan's own do
// was said when they were planned.
func (p *stageSides) worthJudging(f Family) *judge {
	changes := slices.ContainsFunc(p.in.Rules, func(c Change) bool { return c.(*RulesChange).Family == f })
	if !changes && !slices.ContainsFunc(p.in.Live.Rulesets, func(r Ruleset) bool { return r.Family == f && tracksByRaw(&r) }) {
		return nil
	}
	return p.in.Judges.Of(f)
}

func (p *stageSides) anyRawRules() bool {
	raw := func(r Ruleset) bool { return tracksByRaw(&r) }
	return slices.ContainsFunc(p.in.Live.Rulesets, raw) || slices.ContainsFunc(p.in.Live.SavedRules, raw)
}

// tracksByRaw is whether rules of others in the raw table change what is
// tracked.
func tracksByRaw(r *Ruleset) bool {
	for i := range r.Tables {
		if r.Tables[i].Name == "raw" && slices.ContainsFunc(r.Tables[i].Rules, func(rule Rule) bool { return !isOwn(rule.Chain) && mayNeed("raw", rule.Words) }) {
			return true
		}
	}
	return false
}

// savedJudges are those of the saved rules files of the family that say
// something else than the kernel's rules.
func (p *stageSides) savedJudges(f Family) []*judge {
	var out []*judge
	for i := range p.in.Live.SavedRules {
		r := &p.in.Live.SavedRules[i]
		if r.Family != f || r.Refusal != "" || len(r.Tables) == 0 || slices.ContainsFunc(p.in.Live.Rulesets, func(live Ruleset) bool { return live.Family == f && sameRulesets(&live, r) }) {
			continue
		}
		var steps []*RulesStep
		if work := p.in.Saved[r]; work != nil {
			steps = append(steps, work)
		} else if !tracksByRaw(r) {
			continue
		}
		out = append(out, newJudge(p.in.Desired, p.in.Live, f, []*Ruleset{r}, steps, nil))
	}
	return out
}

func sameRulesets(a, b *Ruleset) bool {
	for _, name := range slices.Concat(a.TableNames(), b.TableNames()) {
		if Model(*a, name).Canonical() != Model(*b, name).Canonical() {
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
func (p *stageSides) oneSided(judges []*judge) {
	var found []*oneSide
	at := map[string]*oneSide{}
	for _, j := range judges {
		for _, ref := range j.untracks {
			for _, c := range j.examples(ref) {
				zone, ok := halves(j, ref, c)
				if !ok || c.way == wayForward && j.opens(j.stages[0], &c.connection).Verdict != Accepted {
					continue
				}
				o := p.describe(j, ref, c, zone)
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
		if n++; n <= MaxNamed {
			p.reportOneSide(o)
		}
	}
	if n > MaxNamed {
		p.Warn("iptables", plural(n-MaxNamed, "more rule of the raw table is", "more rules of the raw table are")+" about one way of a connection, like these", Pos{})
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
func halves(j *judge, ref RuleRef, c *example) (zone, ok bool) {
	end := j.end()
	mine, other := end.Verdict(&c.packets[c.mine]), end.Verdict(&c.packets[1-c.mine])
	switch {
	case mine.Untracked && mine.By != nil && *mine.By == ref:
		return false, other.Tracked
	case mine.Tracked && other.Tracked && mine.Zone.By != nil && *mine.Zone.By == ref:
		return true, !mine.Zone.Unsure && !other.Zone.Unsure && mine.Zone.ID != other.Zone.ID
	}
	return false, false
}

func (p *stageSides) describe(j *judge, ref RuleRef, c *example, zone bool) *oneSide {
	o := &oneSide{where: ref.String(), address: "iptables." + string(j.family) + ".raw", way: c.way, zone: zone, proto: c.proto}
	if isOwn(ref.Chain) {
		o.ours = true
		o.source, o.own = p.origin(ref)
	} else if j.file != nil {
		o.address = "file." + j.file.Path
		o.where = p.lineOf(j.file, ref)
	}
	if today, end := j.opens(j.stages[0], &c.connection), j.opens(j.end(), &c.connection); today.Verdict == Accepted && end.Verdict == Dropped && (c.proto == protoTCP || answered(j, &c.connection)) {
		o.drop = end.Rule
		o.named = j.file == nil && p.impactNames(j.family, end.Rule)
	}
	return o
}

// origin is the block of the HCL that one of our rules comes from.
func (p *stageSides) origin(ref RuleRef) (Pos, *Traffic) {
	for _, ch := range p.in.Desired.Chains {
		if ch.Family != ref.Family || ch.Table != ref.Table || ch.Name != ref.Chain {
			continue
		}
		for _, r := range ch.Rules {
			if r.Text != ref.Text {
				continue
			}
			for _, list := range [][]Traffic{p.in.Desired.Notrack, p.in.Desired.Accept} {
				if i := slices.IndexFunc(list, func(t Traffic) bool { return t.Source == r.Source }); i >= 0 {
					return r.Source, &list[i]
				}
			}
			return r.Source, nil
		}
	}
	return Pos{}, nil
}

func (p *stageSides) lineOf(f *File, ref RuleRef) string {
	for i := range p.in.Live.SavedRules {
		r := &p.in.Live.SavedRules[i]
		if r.File != f {
			continue
		}
		for _, s := range r.Sections(ref.Table) {
			for k := range s.Rules {
				if s.Rules[k].Chain == ref.Chain && s.Rules[k].Text == ref.Text {
					return Where(r, &s.Rules[k])
				}
			}
		}
	}
	return f.Path + ": " + ref.String()
}

// impactNames is whether the impact has named something that this rule cuts off.
func (p *stageSides) impactNames(f Family, r *RuleRef) bool {
	im := p.in.Impact
	if im == nil {
		return false
	}
	named := func(g FlowGroup) bool { return g.Result == FlowLost && g.Family == f && g.After == r.String() }
	return slices.ContainsFunc(im.Groups, named) || slices.ContainsFunc(im.Services, named)
}

// answered is whether a connection of this kind is open and has been answered:
// then both its ways matter.
func answered(j *judge, c *connection) bool {
	return slices.ContainsFunc(j.conns.Flows, func(f Flow) bool {
		return f.Protocol == c.proto && f.Status&StatusSeenReply != 0 && f.Orig.Src.Is4() == (j.family == IPv4) &&
			(!carriesPorts(c.proto) || f.Orig.DstPort == c.orig.DstPort) && j.places.way(f.Orig.Src, f.Reply.Src) == c.way
	})
}

// reportOneSide says what it is, and how to mend it.
func (p *stageSides) reportOneSide(o *oneSide) {
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
		p.Warn(o.address, where+": "+why+"; to mend it, "+remedy, o.source)
		return
	}
	p.Block(Block{Risk: RiskOneSided, Address: o.address, Where: where, Why: why, Remedy: remedy, Override: true, Source: o.source})
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
