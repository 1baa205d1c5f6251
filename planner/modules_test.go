package planner

import "testing"

// TestBlockLoad holds the line that keeps nf_conntrack from loading to kernels
// that could load it.
func TestBlockLoad(t *testing.T) {
	for kind, want := range map[ConntrackKind]bool{ConntrackModule: true, ConntrackAbsent: false} {
		l := testHost(Ruleset{Family: IPv4, Backend: NFT, Primary: true})
		l.Conntrack = Conntrack{Kind: kind}
		plan := Diff(Desired{Mode: Disabled, Families: []Family{IPv4}}, l)
		if plan.Blocked() || plan.Empty() == want {
			t.Errorf("kernel with conntrack %s: a plan %q, want a change: %v", kind, brief(plan), want)
		}
	}
}
