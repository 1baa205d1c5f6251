// Package sides checks what rules do to one side of the traffic and not to the
// other: to one way of a connection, to a connection and not to what tracking
// related to it, to one family of addresses.
package sides

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Input is what the checks of both sides are made from.
type Input struct {
	Desired declared.Desired
	Live    host.Live
	Judges  judge.Judges
	Rules   []change.Change       // to the rules in the kernel
	Saved   func() []*judge.Judge // of saved rules files: see judge.Saved
	Impact  *impact.Impact        // what it names, the checks need not block; nil where there is none
}

// stage is one run of the checks of both sides.
type stage struct {
	change.Report
	in    Input
	named map[string]bool // findings that stand already
}

// Check names what the rules, as they will stand, do to one side of the
// traffic and not to the other: to one direction of a connection, to a
// connection and not to what tracking related to it, to one family of
// addresses. Made-up packets are held against the rules, so that what some
// other rule sets right is no finding.
func Check(in Input) change.Findings {
	p := &stage{Report: change.NewReport(in.Desired), in: in, named: map[string]bool{}}
	if in.Desired.Mode != declared.Tuned || p.anyRawRules() {
		p.check()
	}
	return p.Findings
}

func (p *stage) check() {
	var judges []*judge.Judge
	for _, f := range host.Families {
		if j := p.worthJudging(f); j != nil {
			judges = append(judges, j)
		}
	}
	judges = append(judges, p.in.Saved()...)
	p.oneSided(judges)
	if p.in.Desired.Mode == declared.Tuned {
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
func (p *stage) once(key ...string) bool {
	k := strings.Join(key, "\x00")
	before := p.named[k]
	p.named[k] = true
	return before
}

// worthJudging is the family's judge, unless there is nothing to judge: no
// rule changes, and none of others stands in a raw table. What ctplan's own do
// was said when they were planned.
func (p *stage) worthJudging(f host.Family) *judge.Judge {
	changes := slices.ContainsFunc(p.in.Rules, func(c change.Change) bool {
		r, ok := c.(*change.RulesChange)
		return !ok || r.Family == f
	})
	if !changes && !slices.ContainsFunc(p.in.Live.Rulesets, func(r host.Ruleset) bool { return r.Family == f && judge.TracksByRaw(&r) }) && len(nft.Rules(p.in.Live.NFT, f, nft.DecidesTracking)) == 0 {
		return nil
	}
	return p.in.Judges.Of(f)
}

func (p *stage) anyRawRules() bool {
	raw := func(r host.Ruleset) bool { return judge.TracksByRaw(&r) }
	native := func(f host.Family) bool { return len(nft.Rules(p.in.Live.NFT, f, nft.DecidesTracking)) > 0 }
	return slices.ContainsFunc(p.in.Live.Rulesets, raw) || slices.ContainsFunc(p.in.Live.SavedRules, raw) || slices.ContainsFunc(host.Families, native)
}

// oneSide is a rule of a raw table that is about one way of a connection.
type oneSide struct {
	where   string
	source  declared.Pos
	address string
	own     *declared.Traffic // the block that it comes from, where it is one of ours
	ours    bool
	native  string // the chain of nftables' own that it stands in; empty: it is one of iptables
	way     judge.Way
	zone    bool
	proto   uint8
	drop    *verdict.RuleRef // what drops the rest of a connection that is let through today
	named   bool             // the impact says so already
	cure    cure
	also    []string // the same rule elsewhere
}

// oneSided tries each rule that takes packets out of tracking with a packet
// that it takes out, and one that answers it.
func (p *stage) oneSided(judges []*judge.Judge) {
	var found []*oneSide
	at := map[string]*oneSide{}
	for _, j := range judges {
		for _, ref := range j.Untracks {
			for _, c := range j.Examples(ref) {
				zone, ok := halves(j, ref, c)
				if !ok || c.Way == judge.Forward && j.Opens(j.Stages[0], &c.Connection).Verdict != verdict.Accepted {
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
				o.cure = cureFor(j, ref, c, zone)
				at[key] = o
				found = append(found, o)
			}
		}
	}
	n := 0
	for _, o := range found {
		if n++; n <= change.MaxNamed {
			p.reportOneSide(o)
		}
	}
	if n > change.MaxNamed {
		p.Warn("iptables", words.Plural(n-change.MaxNamed, "more rule of the raw table is", "more rules of the raw table are")+" about one way of a connection, like these", declared.Pos{})
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
func halves(j *judge.Judge, ref verdict.RuleRef, c *judge.Example) (zone, ok bool) {
	end := j.End()
	mine, other := end.Verdict(&c.Packets[c.Asked]), end.Verdict(&c.Packets[1-c.Asked])
	switch {
	case !hasAnswers(j, c) || mine.Proxied != nil || other.Proxied != nil:
		return false, false
	case mine.Untracked && mine.By != nil && *mine.By == ref:
		return false, other.Tracked
	case mine.Tracked && other.Tracked && mine.Zone.By != nil && *mine.Zone.By == ref:
		return true, !mine.Zone.Unsure && !other.Zone.Unsure && mine.Zone.ID != other.Zone.ID
	}
	return false, false
}

func (p *stage) describe(j *judge.Judge, ref verdict.RuleRef, c *judge.Example, zone bool) *oneSide {
	o := &oneSide{where: ref.String(), address: "iptables." + string(j.Family) + ".raw", way: c.Way, zone: zone, proto: c.Proto}
	if o.native = ref.NativeChain(); o.native != "" {
		o.address = "nftables." + ref.Native + "." + ref.Table
		o.where = owners.Where(&p.in.Live, &ref, o.where)
	} else if xtables.IsOwn(ref.Chain) {
		o.ours = true
		o.source, o.own = p.origin(ref)
	} else if j.File != nil {
		o.address = "file." + j.File.Path
		o.where = p.lineOf(j.File, ref)
	}
	if today, end := j.Opens(j.Stages[0], &c.Connection), j.Opens(j.End(), &c.Connection); today.Verdict == verdict.Accepted && end.Verdict == verdict.Dropped && (c.Proto == protocol.TCP || answered(j, &c.Connection)) {
		o.drop = end.Rule
		o.named = j.File == nil && p.impactNames(j.Family, end.Rule)
	}
	return o
}

// origin is the block of the HCL that one of our rules comes from.
func (p *stage) origin(ref verdict.RuleRef) (declared.Pos, *declared.Traffic) {
	for _, ch := range p.in.Desired.Chains {
		if ch.Family != ref.Family || ch.Table != ref.Table || ch.Name != ref.Chain {
			continue
		}
		for _, r := range ch.Rules {
			if r.Text != ref.Text {
				continue
			}
			for _, list := range [][]declared.Traffic{p.in.Desired.Notrack, p.in.Desired.Accept} {
				if i := slices.IndexFunc(list, func(t declared.Traffic) bool { return t.Source == r.Source }); i >= 0 {
					return r.Source, &list[i]
				}
			}
			return r.Source, nil
		}
	}
	return declared.Pos{}, nil
}

func (p *stage) lineOf(f *host.File, ref verdict.RuleRef) string {
	for i := range p.in.Live.SavedRules {
		r := &p.in.Live.SavedRules[i]
		if r.File != f {
			continue
		}
		for _, s := range r.Sections(ref.Table) {
			for k := range s.Rules {
				if s.Rules[k].Chain == ref.Chain && s.Rules[k].Text == ref.Text {
					return xtables.Where(r, &s.Rules[k])
				}
			}
		}
	}
	return f.Path + ": " + ref.String()
}

// impactNames is whether the impact has named something that this rule cuts off.
func (p *stage) impactNames(f host.Family, r *verdict.RuleRef) bool {
	im := p.in.Impact
	if im == nil {
		return false
	}
	named := func(g impact.FlowGroup) bool {
		return g.Result == impact.FlowLost && g.Family == f && g.After == r.String()
	}
	return slices.ContainsFunc(im.Groups, named) || slices.ContainsFunc(im.Services, named)
}

// answered is whether a connection of this kind is open and has been answered:
// then both its ways matter.
func answered(j *judge.Judge, c *judge.Connection) bool {
	return slices.ContainsFunc(j.Connections.All(), func(f host.Flow) bool {
		return f.Protocol == c.Proto && f.Status&host.StatusSeenReply != 0 && f.Orig.Src.Is4() == (j.Family == host.IPv4) &&
			(!protocol.CarriesPorts(c.Proto) || f.Orig.DstPort == c.Orig.DstPort) && j.Places.Way(f.Orig.Src, f.Reply.Src) == c.Way
	})
}

// reportOneSide says what it is, and how to mend it.
func (p *stage) reportOneSide(o *oneSide) {
	what := map[judge.Way]string{
		judge.In:      "packets to this host out of tracking, and not their answers, which pass raw OUTPUT",
		judge.Out:     "packets that this host sends out of tracking, and not those that answer them, which pass raw PREROUTING",
		judge.Forward: "one direction of routed connections out of tracking, and not the other, which passes raw PREROUTING too",
	}[o.way]
	why := "this rule takes " + what
	switch {
	case o.zone:
		why = strings.Replace("this rule sorts "+what, " out of tracking, and not ", " into a zone of tracking, and not into the same zone ", 1) +
			": to tracking each way is a connection of its own, and an answer without a question is INVALID"
	case o.drop != nil:
		why += ": tracking sees half of each connection, and the rest of it is dropped by: " + owners.Where(&p.in.Live, o.drop, o.drop.String())
	case judge.StateAlone(o.proto) == verdict.StateInvalid:
		why += ": tracking sees half of each connection, and calls it INVALID"
	default:
		why += ": tracking sees half of each connection, which still fills the table"
	}
	remedy := o.remedy()
	if o.native != "" {
		why = hooksOf.Replace(why)
	}
	where := o.where
	if len(o.also) > 0 {
		where += " (also " + words.Examples(o.also) + ")"
	}
	if o.drop == nil || o.named {
		p.Warn(o.address, where+": "+why+"; to mend it, "+remedy, o.source)
		return
	}
	p.Block(change.Block{Risk: declared.RiskOneSided, Address: o.address, Where: where, Why: why, Remedy: remedy, Override: true, Source: o.source})
}

// hooksOf are the words of nft for the chains of raw.
var hooksOf = strings.NewReplacer("raw OUTPUT", "hook output", "raw PREROUTING", "hook prerouting")
