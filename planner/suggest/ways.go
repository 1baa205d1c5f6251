package suggest

import (
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/nets"
)

// way is one way to do without connection tracking: for what, and what becomes
// of the rules on connection state.
type way struct {
	notrack  []declared.Traffic
	stateful declared.StatefulPolicy
	narrow   bool   // accept blocks leave out networks that are refused today
	note     string // above the first notrack block
	cure     string // why the table cannot fill then; empty: nothing enters it
}

// ways are those of a mode, the one that takes most out of the table first.
func ways(mode declared.Mode) []way {
	traffic := func(name, proto string) []declared.Traffic {
		return []declared.Traffic{{Name: name, Protocol: proto, Direction: declared.Both, Families: slices.Clone(host.Families)}}
	}
	without := []way{{}}
	if mode == declared.Notrack {
		without = []way{
			{notrack: traffic("all", ""), note: "Both directions, and what is routed: what is not tracked fills no table."},
			{notrack: traffic("tcp", "tcp"), note: "TCP alone, both directions, and what is routed: of other protocols, their state tells what may come in.",
				cure: "with notrack no connection of TCP enters the table"},
		}
	}
	var out []way
	for _, w := range without {
		out = append(out, variants(w)...)
	}
	return out
}

// variants are a way with what may become of rules on connection state.
func variants(w way) []way {
	w.stateful = declared.RemoveStateful
	translated, narrow := w, w
	translated.stateful, narrow.narrow = declared.TranslateStateful, true
	return []way{w, translated, narrow}
}

// opens is how much the plan lets in that is refused today.
func (a *attempt) opens() int {
	if a.plan.Impact == nil {
		return 0
	}
	return len(a.plan.Impact.Exposed)
}

// narrow leaves out of accept blocks what is refused today, as far as a block
// can: of networks that are, it takes all others.
func (a *attempt) narrow(l host.Live, o Options) {
	for range maxRounds {
		if a.opens() == 0 {
			return
		}
		next := a.d
		next.Accept = slices.Clone(a.d.Accept)
		changed := map[string]bool{}
		for _, e := range a.plan.Impact.Exposed {
			i := slices.IndexFunc(next.Accept, func(t declared.Traffic) bool { return e.Block != "" && t.Name == e.Block })
			if i < 0 || e.Routed || slices.Contains(e.From, impact.Anybody) {
				continue
			}
			if rest, ok := without(&next.Accept[i], e); ok {
				next.Accept[i].Remote, changed[e.Block] = rest, true
			}
		}
		if len(changed) == 0 {
			return
		}
		o.Render(&next, l)
		plan := planner.Diff(next, l)
		if plan.Blocked() && !a.plan.Blocked() || plan.Impact != nil && len(plan.Impact.Exposed) >= a.opens() {
			return
		}
		a.d, a.plan = next, plan
		for name := range changed {
			a.notes["accept "+name] = append(a.notes["accept "+name], "Not from where today's rules refuse it.")
		}
	}
}

// without is the other side of a block less those of an exposure, as networks.
func without(t *declared.Traffic, e impact.Exposure) ([]netip.Prefix, bool) {
	remote := t.Remote
	if remote == nil {
		for _, f := range t.Families {
			remote = append(remote, nets.All(f))
		}
	}
	before := len(remote)
	for _, name := range e.From {
		p, err := netip.ParsePrefix(name)
		if err != nil {
			a, err := netip.ParseAddr(name)
			if err != nil {
				return nil, false
			}
			p = nets.Single(a)
		}
		var rest []netip.Prefix
		for _, r := range remote {
			rest = append(rest, nets.Without(r, p)...)
		}
		remote = rest
	}
	return remote, len(remote) > 0 && len(remote) <= maxNetworks+before
}

// close leaves out what blocks open that is refused today, at the price of what
// they keep: a block of TCP lets in no first packet any more, and the others go.
func (a *attempt) close(l host.Live, o Options) {
	for range maxRounds {
		names := map[string]bool{}
		if a.plan.Impact != nil {
			for _, e := range a.plan.Impact.Exposed {
				names[e.Block] = e.Block != ""
			}
		}
		var out []declared.Traffic
		changed := false
		for _, t := range a.d.Accept {
			if names[t.Name] {
				changed = true
				if t.Protocol != "tcp" || t.Initiator == declared.LocalSide || t.Direction == declared.Forward {
					continue
				}
				t.Initiator = declared.LocalSide
			}
			out = append(out, t)
		}
		if !changed {
			return
		}
		a.d.Accept = out
		o.Render(&a.d, l)
		a.plan = planner.Diff(a.d, l)
	}
}
