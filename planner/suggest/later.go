package suggest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
)

// later says what conversations that nobody has now, and that today's rules
// allow, chains of native nftables would cut off under the plan: no accept block
// reaches those. A sentence for each rule that does.
func later(d declared.Desired, l host.Live, plan planner.Plan) []string {
	if len(l.NFT) == 0 && l.NFTUnread == "" {
		return nil
	}
	judges := judge.Kernel(d, l, change.StepsOf(plan.Changes), nil)
	var out []string
	for _, f := range host.Families {
		j := judges.Of(f)
		if j == nil || len(j.Stages) < 2 {
			continue
		}
		cut := map[verdict.RuleRef][]string{}
		var order []verdict.RuleRef
		for c := range j.Conversations() {
			if j.Opens(j.Stages[0], c).Verdict != verdict.Accepted {
				continue
			}
			end := j.Opens(j.End(), c)
			if end.Verdict == verdict.Accepted || end.Rule == nil || end.Rule.Native == "" {
				continue
			}
			if cut[*end.Rule] == nil {
				order = append(order, *end.Rule)
			}
			if name := judge.ServiceName(c.Proto, c.Port, c.Way); !slices.Contains(cut[*end.Rule], name) {
				cut[*end.Rule] = append(cut[*end.Rule], name)
			}
		}
		for _, ref := range order {
			names := cut[ref]
			more := ""
			if n := len(names) - change.MaxNamed; n > 0 {
				names, more = names[:change.MaxNamed], " and "+words.Plural(n, "more", "more")
			}
			out = append(out, fmt.Sprintf("nobody has such a connection now, but today's rules let %s through over %s, and under the plan this would cut it off: %s; %s",
				strings.Join(names, ", ")+more, f, ref.String(), judge.ToLetThrough(ref.NativeChain(), "")))
		}
	}
	return out
}
