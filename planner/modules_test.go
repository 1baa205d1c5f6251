package planner

import (
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// TestBlockLoad holds the line that keeps nf_conntrack from loading to kernels
// that could load it.
func TestBlockLoad(t *testing.T) {
	for kind, want := range map[host.ConntrackKind]bool{host.ConntrackModule: true, host.ConntrackAbsent: false} {
		l := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
		l.Conntrack = host.Conntrack{Kind: kind}
		plan := Diff(declared.Desired{Mode: declared.Disabled, Families: []host.Family{host.IPv4}}, l)
		if plan.Blocked() || plan.Empty() == want {
			t.Errorf("kernel with conntrack %s: a plan %q, want a change: %v", kind, brief(plan), want)
		}
	}
}
