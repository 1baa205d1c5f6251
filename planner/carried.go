package planner

import (
	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/modules"
)

// Carrying are the rules by which steps carry connections over into tracking, and
// take entries out. split takes the words of a rule apart: see Plan.Judged.
func Carrying(d declared.Desired, l host.Live, steps []change.Step, split func(rule string) []string) *carry.Rules {
	d.Chains = modules.Loadable(d.Chains, l.Loading)
	return carry.By(judge.Kernel(d, l, steps, split))
}

// CarryingNow is the same where nobody has planned what becomes of the rules.
func CarryingNow(l host.Live) *carry.Rules {
	return carry.Now(judge.Kernel(declared.Desired{Mode: declared.GoingBack}, l, nil, nil))
}
