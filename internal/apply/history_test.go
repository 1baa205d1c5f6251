package apply

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// live is what the planner would see of the fake.
func (f *fake) live(t *testing.T) host.Live {
	t.Helper()
	var l host.Live
	for key := range f.tables {
		rs, err := fakeRules{f}.Save(context.Background(), key.family, key.backend)
		if err != nil {
			t.Fatal(err)
		}
		l.Rulesets = append(l.Rulesets, rs)
	}
	return l
}

// runs carries out steps that must not fail.
func runs(t *testing.T, env Env, steps []change.Step) {
	t.Helper()
	if _, err := Run(t.Context(), env, steps, Options{Summary: "1 to add"}); err != nil {
		t.Fatal(err)
	}
}

// There and back again is where it began, for one transaction and for two.
func TestBack(t *testing.T) {
	for name, w := range allWorlds() {
		f := w.make()
		env := testEnv(t, f)
		before := f.String()
		runs(t, env, w.steps)
		after := f.String()
		plan, steps, err := Back(env, 0, f.live(t))
		if err != nil || plan.Blocked() || len(plan.Changes) < len(steps) {
			t.Fatalf("%s: %v, %+v", name, err, plan)
		}
		if f.String() != after {
			t.Errorf("%s: planning changed the host", name)
		}
		runs(t, env, steps)
		if got := withoutTables(f); got != withoutTables(w.make()) || !sameRules(f, w.make()) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, f, before)
		}
		// The way back is a transaction as well, with a way back.
		_, steps, err = Back(env, 2, f.live(t))
		if err != nil {
			t.Fatal(err)
		}
		runs(t, env, steps)
		if !sameRules(f, fakeAfter(t, w)) {
			t.Errorf("%s: back from the way back: got\n%s\nwant\n%s", name, f, after)
		}
		// From the third transaction to before the first, through all.
		_, steps, err = Back(env, 1, f.live(t))
		if err != nil {
			t.Fatal(err)
		}
		runs(t, env, steps)
		if !sameRules(f, w.make()) {
			t.Errorf("%s: all the way back: got\n%s\nwant\n%s", name, f, before)
		}
		all, err := History(env.Dir)
		if err != nil || len(all) != 4 || all[3].Outcome != journal.Committed || all[0].Summary != "1 to add" || all[0].Ended.IsZero() {
			t.Errorf("%s: history: %+v, %v", name, all, err)
		}
	}
}

func fakeAfter(t *testing.T, w world) *fake {
	f := w.make()
	runs(t, testEnv(t, f), w.steps)
	return f
}

func withoutTables(f *fake) string {
	g := *f
	g.tables, g.folders = nil, nil
	return g.String()
}

// sameRules compares what tables do; a table that came and went stays empty.
func sameRules(a, b *fake) bool {
	canonical := func(f *fake) (lines []string) {
		for key, tables := range f.tables {
			for name, m := range tables {
				if c := m.Canonical(); c != "" {
					lines = append(lines, string(key.family)+name+c)
				}
			}
		}
		slices.Sort(lines)
		return lines
	}
	return slices.Equal(canonical(a), canonical(b))
}

// Through transactions that unloaded the module, sized it, and unloaded it
// again with what a rule had loaded meanwhile, the way back leads to what the
// host had at first.
func TestBackThroughUnload(t *testing.T) {
	const conf, block = "/etc/modprobe.d/netfilter.conf", "install nf_conntrack /bin/false\n"
	f := newFake()
	f.load(v4, "filter", ":INPUT DROP")
	f.folders["/etc/modprobe.d"] = true
	f.modules[nfConntrack], f.modules["xt_state"] = true, true
	f.sysctls[maxKey], f.buckets = "262144", 16384 // not what a load brings
	before := f.String()
	env := testEnv(t, f)
	runs(t, env, []change.Step{file(host.File{Path: conf}, text(conf, block)), module("xt_state", false), module(nfConntrack, false)})
	runs(t, env, []change.Step{
		file(text(conf, block), text(conf, "options\n")), module(nfConntrack, true),
		{Hashsize: &change.HashsizeStep{After: 131072}}, sysctlStep(maxKey, "", "524288"),
	})
	f.modules["xt_CT"] = true
	runs(t, env, []change.Step{file(text(conf, "options\n"), text(conf, block)), module("xt_CT", false), module(nfConntrack, false)})
	for _, id := range []int{2, 1} {
		plan, steps, err := Back(env, id, f.live(t))
		if err != nil || plan.Blocked() {
			t.Fatalf("%v, %+v", err, plan)
		}
		if id == 1 {
			runs(t, env, steps)
		}
	}
	if got := f.String(); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
	_, steps, err := Back(env, 0, f.live(t)) // and forth, to no module
	if err != nil {
		t.Fatal(err)
	}
	runs(t, env, steps)
	if f.modules[nfConntrack] || f.files[conf].Content != block {
		t.Errorf("got\n%s", f)
	}
}

func TestBackKeepsOthersWork(t *testing.T) {
	w := worlds()["notrack"]
	f := w.make()
	env := testEnv(t, f)
	runs(t, env, w.steps)
	f.tables[v4]["filter"].Apply(change.RuleOp{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-s 192.0.2.1/32 -j DROP"})
	_, steps, err := Back(env, 1, f.live(t))
	if err != nil {
		t.Fatal(err)
	}
	runs(t, env, steps)
	if got := f.tables[v4]["filter"].Rules("INPUT"); len(got) != 5 || !slices.Contains(got, "-s 192.0.2.1/32 -j DROP") {
		t.Errorf("INPUT is now %q", got)
	}

	runs(t, env, worlds()["tuned"].steps)
	f.files["/etc/modprobe.d/netfilter.conf"] = text("/etc/modprobe.d/netfilter.conf", "mine\n")
	f.sysctls[maxKey] = "7"
	plan, _, err := Back(env, 0, f.live(t))
	if err != nil || len(plan.Blocks) != 2 {
		t.Errorf("%v, %+v", err, plan.Blocks)
	}
}

func TestBackNowhere(t *testing.T) {
	w := worlds()["tuned"]
	f := w.make()
	env := testEnv(t, f)
	if _, _, err := Back(env, 0, host.Live{}); !errors.Is(err, ErrNoTransaction) {
		t.Errorf("empty history: %v", err)
	}
	runs(t, env, w.steps)
	for _, id := range []int{2, -1} {
		if _, _, err := Back(env, id, host.Live{}); id > 0 && !errors.Is(err, ErrNoTransaction) {
			t.Errorf("%d: %v", id, err)
		}
	}
}
