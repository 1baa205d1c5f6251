package suggest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
)

// obstacle is a rule of nftables' own that cuts off under a plan what today's
// rules let through. No accept block reaches it.
type obstacle struct {
	rule     verdict.RuleRef
	open     bool // somebody has such a connection now
	services []string
	cuts     []owners.Cut
	seen     map[string]bool // services by family
}

// obstacles are those of the plan for d: rules that cut off connections that are
// open, or such as nobody has now and may open any time.
func obstacles(d declared.Desired, l host.Live, plan planner.Plan) []*obstacle {
	if len(l.NFT) == 0 && l.NFTUnread == "" {
		return nil
	}
	var out []*obstacle
	at := map[verdict.RuleRef]*obstacle{}
	judges := judge.Kernel(d, l, change.StepsOf(plan.Changes), nil)
	for _, f := range host.Families {
		j := judges.Of(f)
		if j == nil || len(j.Stages) < 2 {
			continue
		}
		try := func(c *judge.Connection, today, end verdict.Decision, open bool) {
			if today.Verdict != verdict.Accepted || end.Verdict == verdict.Accepted || end.Rule == nil || end.Rule.Native == "" {
				return
			}
			key := *end.Rule
			key.Family = "" // of inet: one rule
			o := at[key]
			if o == nil {
				o = &obstacle{rule: *end.Rule, seen: map[string]bool{}}
				at[key] = o
				out = append(out, o)
			}
			o.open = o.open || open
			service := judge.ServiceName(c.Proto, c.Port, c.Way)
			if key := service + string(f); !o.seen[key] {
				o.seen[key] = true
				o.add(service, impact.Cuts(j, j.End().Evaluator, c, end.Rule), &l)
			}
		}
		j.Each(1, nil, func(_, _ int, c *judge.Connection) { try(c, j.At(j.Stages[0], c, false), j.At(j.End(), c, true), true) })
		for c := range j.Conversations() {
			try(c, j.Opens(j.Stages[0], c), j.Opens(j.End(), c), false)
		}
	}
	return out
}

// add notes a service, and what of it is cut.
func (o *obstacle) add(service string, cuts []owners.Cut, l *host.Live) {
	if !slices.Contains(o.services, service) {
		o.services = append(o.services, service)
	}
	for _, c := range cuts {
		// Answers of TCP open nothing, whichever port they come from.
		if q := &c.Packets; q.Proto == protocol.TCP && q.Answers && !q.ToPort && owners.TakesLines(l, c.Rule) {
			q.Ports = host.PortRange{From: 1, To: 65535}
		}
		if !slices.ContainsFunc(o.cuts, func(other owners.Cut) bool { return *other.Rule == *c.Rule && other.Packets.Equal(&c.Packets) }) {
			o.cuts = append(o.cuts, c)
		}
	}
}

// String says what it cuts off, and which rule that is.
func (o *obstacle) String() string {
	names, more := o.services, ""
	if n := len(names) - change.MaxNamed; n > 0 {
		names, more = names[:change.MaxNamed], " and "+words.Plural(n, "more", "more")
	}
	now := ""
	if !o.open {
		now = ", though nobody has such a connection now"
	}
	return fmt.Sprintf("this rule would cut off %s%s, which today's rules let through%s: %s", strings.Join(names, ", "), more, now, o.rule.String())
}

// way is how to let it through first: a phrase, and commands.
func (o *obstacle) way(l *host.Live) owners.Advice {
	var cuts []owners.Cut
	for _, c := range o.cuts {
		if c.Rule.Native == "inet" && owners.TakesLines(l, c.Rule) {
			// One line for both families, where both need it.
			other := c.Packets
			other.Family = host.IPv4
			if c.Packets.Family == host.IPv4 {
				other.Family = host.IPv6
			}
			same := func(x owners.Cut) bool { return x.Rule.String() == c.Rule.String() && x.Packets.Equal(&other) }
			if slices.ContainsFunc(o.cuts, same) {
				if c.Packets.Family == host.IPv6 {
					continue
				}
				c.Packets.Family = ""
			}
		}
		cuts = append(cuts, c)
	}
	slices.SortStableFunc(cuts, func(a, b owners.Cut) int { return strings.Compare(a.Rule.String(), b.Rule.String()) })
	advice := owners.ToLetThrough(declared.Desired{Firewall: declared.IPTables}, l, &o.rule, cuts, "")
	if len(advice.Commands) > 0 && owners.TakesLines(l, &o.rule) {
		advice.Text = "accept it there first, as these commands do, and in the file that loads that chain"
	}
	return advice
}

// maxLines is how many commands a comment holds.
const maxLines = 16

// inTheWay are paragraphs about what keeps a host from notrack, with the commands
// that take the rules of nftables out of the way.
func inTheWay(l host.Live, s *Suggestion) []string {
	var out []string
	for _, o := range s.obstacles {
		advice := o.way(&l)
		end := "."
		if len(advice.Commands) > 0 {
			end = ":"
		}
		out = append(out, "In the way of notrack: "+o.String()+"; "+advice.Text+end)
		for i, c := range advice.Commands {
			if i == maxLines {
				out = append(out, fmt.Sprintf("And %s; ctplan plan --json has them.", words.Plural(len(advice.Commands)-i, "more", "more")))
				break
			}
			out = append(out, "  "+c)
		}
	}
	others := s.Remains
	if len(s.obstacles) > 0 {
		others = nil // most of them are the same, said of connections
	}
	for i, text := range others {
		if i == change.MaxNamed {
			out = append(out, fmt.Sprintf("And %s; see ctplan suggest --mode notrack.", words.Plural(len(others)-i, "more", "more")))
			break
		}
		out = append(out, "In the way of notrack: "+text+".")
	}
	return out
}
