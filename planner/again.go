package planner

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Made is a plan with what it was made from.
type Made struct {
	Desired declared.Desired // the zero value for a way back
	Live    host.Live
	Plan    Plan
}

// Worse compares a plan that was approved with what planning again gives, and
// says in what now does something else or hurts somebody else: an address or a
// sentence each. None means that now may be carried out in the place of was.
//
// The same is done when the changes are the same, and so are the chains that
// rules are added to or taken from, and those that jump to them; what others keep in chains of their own may
// differ. Nobody else is hurt when nothing new blocks, no connection or service
// is lost that was not, nothing gets in that did not, and what an accept block
// lets through is let through. For a comparison of the hosts alone, both are to
// be judged by the same connections.
func Worse(was, now Made) []string {
	out := otherChanges(was.Plan.Changes, now.Plan.Changes)
	out = append(out, newBlocks(was.Plan.Blocks, now.Plan.Blocks)...)
	out = append(out, moreHurt(was.Plan.Impact, now.Plan.Impact)...)
	return append(out, shutAccepts(was, now)...)
}

// otherChanges are the addresses of changes that are not the same.
func otherChanges(was, now []change.Change) (out []string) {
	name := func(c change.Change) string { return "the change of " + c.Meta().Address + " would be another one" }
	left := slices.Clone(was)
	for _, c := range now {
		i := slices.IndexFunc(left, func(o change.Change) bool { return o.Meta().Address == c.Meta().Address })
		if i < 0 {
			out = append(out, c.Meta().Address+" would be changed too")
			continue
		}
		if !sameChange(left[i], c) {
			out = append(out, name(c))
		}
		left = slices.Delete(left, i, i+1)
	}
	for _, c := range left {
		out = append(out, c.Meta().Address+" would not be changed any more")
	}
	return out
}

// sameChange reports whether two changes at one address do the same.
func sameChange(a, b change.Change) bool {
	switch a := a.(type) {
	case *change.RulesChange:
		b, ok := b.(*change.RulesChange)
		if !ok || a.Backend != b.Backend || !reflect.DeepEqual(a.Open, b.Open) || !reflect.DeepEqual(a.Close, b.Close) {
			return false
		}
		for _, op := range slices.Concat(a.Open, a.Close) {
			leads := strings.TrimPrefix(op.Chain, declared.OwnPrefix) // to one of ctplan's own
			for _, chain := range []string{op.Chain, leads} {
				if !slices.Equal(chainLines(a.Before, chain), chainLines(b.Before, chain)) {
					return false
				}
			}
		}
		return true
	case *change.NFTChange:
		b, ok := b.(*change.NFTChange)
		return ok && reflect.DeepEqual(a.Ops, b.Ops) && slices.Equal(a.Before, b.Before)
	case *change.FileChange:
		b, ok := b.(*change.FileChange)
		return ok && reflect.DeepEqual(a.Before, b.Before) && reflect.DeepEqual(a.After, b.After)
	case *change.SysctlChange:
		b, ok := b.(*change.SysctlChange)
		return ok && a.Before == b.Before && a.After == b.After
	case *change.HashsizeChange:
		b, ok := b.(*change.HashsizeChange)
		return ok && a.Before == b.Before && a.After == b.After
	case *change.ModuleChange:
		b, ok := b.(*change.ModuleChange)
		return ok && a.Module == b.Module && a.Load == b.Load
	case *change.ServiceChange:
		b, ok := b.(*change.ServiceChange)
		return ok && reflect.DeepEqual(a.Step, b.Step)
	}
	return false
}

// chainLines are the lines of a chain, its policy and its rules.
func chainLines(table []string, chain string) []string {
	var out []string
	for _, line := range table {
		if strings.HasPrefix(line, ":"+chain+" ") || strings.HasPrefix(line, "-A "+chain+" ") {
			out = append(out, line)
		}
	}
	return out
}

// newBlocks are those of now that are not among those of was.
func newBlocks(was, now []change.Block) (out []string) {
	for _, b := range now {
		same := func(o change.Block) bool { return o.Risk == b.Risk && o.Address == b.Address && o.Where == b.Where }
		if !slices.ContainsFunc(was, same) {
			out = append(out, fmt.Sprintf("%s: %s", b.Address, b.Why))
		}
	}
	return out
}

// moreHurt is what now loses, leaves open or lets in, and was does not.
func moreHurt(was, now *impact.Impact) (out []string) {
	if now == nil {
		return nil
	}
	if was == nil {
		was = &impact.Impact{}
	}
	type key struct {
		result  impact.FlowResult
		service string
		family  host.Family
	}
	count := func(groups []impact.FlowGroup) map[key]int64 {
		n := map[key]int64{}
		for _, g := range groups {
			n[key{g.Result, g.Service, g.Family}] += g.Count
		}
		return n
	}
	compare := func(was, now []impact.FlowGroup, what string) {
		before := count(was)
		for k, n := range count(now) {
			if (k.result == impact.FlowLost || k.result == impact.FlowUnknown) && n > before[k] {
				out = append(out, fmt.Sprintf("%s: %s %s, and not %d", k.service, words.Plural(int(n), what, what+"s"), k.result, before[k]))
			}
		}
	}
	compare(was.Groups, now.Groups, "open connection")
	compare(was.Services, now.Services, "listening service")
	for _, x := range now.Exposed {
		if x.Declared {
			continue // an accept block asks for it, however the rules of today name who comes
		}
		if !slices.ContainsFunc(was.Exposed, func(o impact.Exposure) bool { return o.Family == x.Family && o.What == x.What }) {
			out = append(out, x.What)
		}
	}
	slices.Sort(out)
	return out
}

// shutAccepts are the declared accepts through which a connection came under
// was, opened by somebody whom no rule names, and comes no longer under now.
func shutAccepts(was, now Made) (out []string) {
	before := judge.Kernel(was.Desired, was.Live, change.StepsOf(was.Plan.Changes), nil)
	after := judge.Kernel(now.Desired, now.Live, change.StepsOf(now.Plan.Changes), nil)
	ways := map[string]judge.Way{"INPUT": judge.In, "OUTPUT": judge.Out, "FORWARD": judge.Forward}
	said := map[declared.Pos]bool{}
	for _, c := range now.Desired.Chains {
		way, ok := ways[c.Hook]
		if c.Table != "filter" || !ok {
			continue
		}
		a, b := before.Of(c.Family), after.Of(c.Family)
		if a == nil || b == nil {
			continue
		}
		for _, r := range c.Rules {
			q := xtables.PacketsOf(xtables.Parse(r.Words))
			x, y := a.Example(q, way), b.Example(q, way)
			if x == nil || y == nil || said[r.Source] {
				continue
			}
			if a.Opens(a.End(), &x.Connection).Verdict != verdict.Accepted {
				continue
			}
			if d := b.Opens(b.End(), &y.Connection); d.Verdict != verdict.Accepted {
				said[r.Source] = true
				out = append(out, fmt.Sprintf("what the accept block at %s lets through would meet %s", r.Source, b.Name(d.Rule)))
			}
		}
	}
	return out
}
