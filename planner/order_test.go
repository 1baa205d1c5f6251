package planner

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// Over generated pairs of states: while apply is on its way, the chains of the
// table are never longer than before or after, nothing is set in a module that
// is not there, no module is loaded that its files block, and the block stands
// before a module goes.
func TestOrderProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	steps, sized, loaded, unloaded := 0, 0, 0, 0
	for range 2000 {
		const block = "install nf_conntrack /bin/false\n"
		l := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
		limit, buckets := 1+r.Int64N(1<<20), 512*(1+r.Int64N(1<<10))
		l.Conntrack = host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: buckets, InitialNetns: true, Max: limit}
		l.Modules = []host.Module{{Name: "nf_conntrack", By: []string{"xt_conntrack"}}, {Name: "xt_conntrack"}}
		l.Sysctls = map[string]host.Sysctl{etc.KeyMax: {Value: strconv.FormatInt(limit, 10), Writable: true}}
		blocked := false
		if r.IntN(3) == 0 { // it was disabled
			l.Conntrack, l.Modules, l.Sysctls = host.Conntrack{Kind: host.ConntrackModule}, nil, nil
			if blocked = r.IntN(2) == 0; blocked {
				l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/netfilter.conf", block)}
			}
		}
		d := tuned(1+r.Int64N(1<<20), 1+r.Int64N(1<<19))
		d.AllowRisk = declared.Risks
		if r.IntN(3) == 0 {
			d = declared.Desired{Block: "b", Mode: declared.Disabled, Families: host.Families, StatefulRules: declared.RemoveStateful, AllowRisk: declared.Risks}
		}
		plan := Diff(d, l)
		if plan.Blocked() {
			t.Fatalf("blocked: %+v", plan.Blocks)
		}

		there := map[string]bool{}
		for _, m := range l.Modules {
			there[m.Name] = true
		}
		filling := func() float64 { return float64(limit) / float64(buckets) }
		before, seen := filling(), []float64{}
		for _, s := range Steps(plan) {
			steps++
			switch {
			case s.File != nil && s.File.After.Path == "/etc/modprobe.d/netfilter.conf":
				blocked = strings.Contains(s.File.After.Content, block)
			case s.Module != nil && s.Module.Load:
				loaded++
				if blocked {
					t.Fatalf("%s is loaded while its files block it: %+v", s.Module.Module, Steps(plan))
				}
				there[s.Module.Module] = true
			case s.Module != nil:
				unloaded++
				if !blocked || s.Module.Module == "nf_conntrack" && there["xt_conntrack"] {
					t.Fatalf("%s goes too early: %+v", s.Module.Module, Steps(plan))
				}
				delete(there, s.Module.Module)
			case s.Hashsize != nil:
				sized++
				buckets = s.Hashsize.After
			case s.Sysctl != nil && s.Sysctl.Key == etc.KeyMax:
				sized++
				if !there["nf_conntrack"] {
					t.Fatalf("max is set in a module that is not there: %+v", Steps(plan))
				}
				limit, _ = strconv.ParseInt(s.Sysctl.After, 10, 64)
			}
			if l.Conntrack.Loaded {
				seen = append(seen, filling())
			}
		}
		after := filling()
		for _, f := range seen {
			if f > max(before, after) {
				t.Fatalf("%.2f entries a bucket on the way from %.2f to %.2f: %+v", f, before, after, Steps(plan))
			}
		}
	}
	t.Logf("%d steps: %d sizes set, %d modules loaded, %d unloaded", steps, sized, loaded, unloaded)
	if sized < 1000 || loaded < 100 || unloaded < 100 {
		t.Error("the generator misses cases")
	}
}
