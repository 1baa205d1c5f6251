package apply

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// world is a host and the steps that change it.
type world struct {
	make  func() *fake
	steps []change.Step
}

var v4 = rulesKey{host.IPv4, host.NFT}

func rules(key rulesKey, sections ...change.Section) change.Step {
	return change.Step{
		Addresses: []string{"iptables." + string(key.family)},
		Rules:     &change.RulesStep{Family: key.family, Backend: key.backend, Sections: sections},
	}
}

func section(table string, ops ...change.RuleOp) change.Section {
	return change.Section{Table: table, Ops: ops}
}

func file(before, after host.File) change.Step {
	return change.Step{Addresses: []string{"file." + before.Path}, File: &change.FileStep{Before: before, After: after}}
}

func text(path, content string) host.File {
	return host.File{Path: path, Exists: true, Content: content, Mode: 0o640, UID: 3, GID: 4}
}

func sysctlStep(key, before, after string) change.Step {
	return change.Step{Addresses: []string{"sysctl." + key}, Sysctl: &change.SysctlStep{Key: key, Before: before, After: after}}
}

func module(name string, load bool) change.Step {
	return change.Step{Addresses: []string{"module." + name}, Module: &change.ModuleStep{Module: name, Load: load}}
}

// worlds are the three modes in small, and back again.
func worlds() map[string]world {
	notrack := []change.Step{
		rules(v4,
			section("filter",
				change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{"-p tcp -j ACCEPT", "-p udp -j ACCEPT"}},
				change.RuleOp{Kind: change.InsertRule, Chain: "INPUT", Pos: 2, Rule: "-j CTPLAN-INPUT"}),
			section("raw",
				change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-PREROUTING", Rules: []string{"-p tcp -j CT --notrack"}},
				change.RuleOp{Kind: change.InsertRule, Chain: "PREROUTING", Pos: 1, Rule: "-j CTPLAN-PREROUTING"}),
			section("filter",
				change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 3, Rule: "-m state --state ESTABLISHED -j ACCEPT"},
				change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 4, Rule: "-m state --state ESTABLISHED -j ACCEPT"})),
		file(text("/etc/rules.v4", "Gr\xf6\xdfe\n"), text("/etc/rules.v4", "new\n")),
		file(host.File{Path: "/etc/iptables/a/rules.v6"}, text("/etc/iptables/a/rules.v6", "new\n")),
	}
	notrackHost := func() *fake {
		f := newFake()
		f.load(v4, "filter", ":INPUT DROP", ":FORWARD ACCEPT", ":OUTPUT ACCEPT", ":mine -",
			"-A INPUT -i lo -j ACCEPT",
			"-A INPUT -m state --state ESTABLISHED -j ACCEPT",
			"-A INPUT -s 10.0.0.1/32 -j mine",
			"-A INPUT -m state --state ESTABLISHED -j ACCEPT",
			"-A mine -j DROP")
		f.files["/etc/rules.v4"] = text("/etc/rules.v4", "Gr\xf6\xdfe\n")
		return f
	}
	tuned := []change.Step{
		file(host.File{Path: "/etc/modprobe.d/netfilter.conf"}, text("/etc/modprobe.d/netfilter.conf", "options\n")),
		module("nf_conntrack", true),
		{Addresses: []string{"hashsize"}, Hashsize: &change.HashsizeStep{Before: 65536, After: 131072}},
		sysctlStep(maxKey, "65536", "524288"),
	}
	disabled := []change.Step{
		rules(v4, section("filter", change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 1, Rule: "-m state --state NEW -j ACCEPT"})),
		rules(rulesKey{host.IPv6, host.Legacy}, section("filter", change.RuleOp{Kind: change.DropChain, Chain: "CTPLAN-INPUT", Was: []string{"-j ACCEPT"}})),
		file(text("/etc/sysctl.conf", "x=1\n"), host.File{Path: "/etc/sysctl.conf"}),
		file(host.File{Path: "/etc/modprobe.d/netfilter.conf"}, text("/etc/modprobe.d/netfilter.conf", "install nf_conntrack /bin/false\n")),
		module("nf_conntrack", false),
	}
	const served = ":INPUT DROP\n-A INPUT -m state --state ESTABLISHED -j ACCEPT"
	restart := []change.Step{
		file(host.File{Path: "/etc/modprobe.d/netfilter.conf"}, text("/etc/modprobe.d/netfilter.conf", "options\n")),
		{Addresses: []string{"service.iptables"}, Service: &change.ServiceStep{
			Commands: [][]string{{"/etc/init.d/iptables", "restart"}}, KeepsRules: true,
			Rules: []change.ServedRules{{Family: host.IPv4, Backend: host.NFT}},
		}},
		{Addresses: []string{"hashsize"}, Hashsize: &change.HashsizeStep{Before: 16384, After: 131072}},
		sysctlStep(maxKey, "262144", "524288"),
	}
	restartHost := func() *fake {
		f := newFake()
		f.load(v4, "filter", strings.Split(served, "\n")...)
		f.files["/etc/rules.v4"] = text("/etc/rules.v4", served)
		f.modules["nf_conntrack"] = true
		f.sysctls[maxKey], f.buckets = "262144", 16384 // not what a restart brings
		return f
	}
	return map[string]world{
		"restart": {restartHost, restart},
		"notrack": {notrackHost, notrack},
		"tuned":   {newFake, tuned},
		"disabled": {func() *fake {
			f := newFake()
			f.load(v4, "filter", ":INPUT ACCEPT", "-A INPUT -m state --state NEW -j ACCEPT")
			f.load(rulesKey{host.IPv6, host.Legacy}, "filter", ":INPUT ACCEPT", ":CTPLAN-INPUT -", "-A CTPLAN-INPUT -j ACCEPT")
			f.files["/etc/sysctl.conf"] = text("/etc/sysctl.conf", "x=1\n")
			f.modules["nf_conntrack"] = true
			f.sysctls[maxKey], f.buckets = "262144", 16384 // not the defaults
			return f
		}, disabled},
	}
}

// reversed is the way back: from the new state to the old one.
func (w world) reversed() world {
	var back []change.Step
	began := make([]undo, len(w.steps))
	for i, s := range w.steps {
		began[i].Step = s
	}
	for _, i := range undoOrder(began) {
		back = append(back, w.steps[i].Inverse())
	}
	// A service brings values too, so those are set after it.
	rank := func(s change.Step) int {
		switch {
		case s.File != nil:
			return 0
		case s.Service != nil:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(back, func(a, b change.Step) int { return rank(a) - rank(b) })
	return world{
		make: func() *fake {
			f := w.make()
			for _, s := range w.steps {
				if err := f.host().do(context.Background(), s, journal.Before{}); err != nil {
					panic(err)
				}
			}
			return f
		},
		steps: back,
	}
}

func allWorlds() map[string]world {
	all := map[string]world{}
	for name, w := range worlds() {
		all[name], all[name+" back"] = w, w.reversed()
	}
	for seed := range uint64(8) {
		w := randomWorld(seed)
		all[fmt.Sprint("random ", seed)], all[fmt.Sprint("random ", seed, " back")] = w, w.reversed()
	}
	return all
}

// randomWorld is two rules steps and values, with rules that repeat.
func randomWorld(seed uint64) world {
	r := rand.New(rand.NewPCG(seed, 1))
	texts := []string{"-j A", "-j B", "-j C"}
	lines := []string{":INPUT DROP", ":CTPLAN-OLD -", "-A CTPLAN-OLD -j A", "-A CTPLAN-OLD -j B"}
	for range 6 {
		lines = append(lines, "-A INPUT "+texts[r.IntN(3)])
	}
	start := func() *fake {
		f := newFake()
		f.load(v4, "filter", lines...)
		f.sysctls["a"], f.buckets = "1", 512
		return f
	}
	rs, _ := fakeRules{start()}.Save(context.Background(), host.IPv4, host.NFT)
	models := map[string]*xtables.TableModel{"filter": xtables.Model(rs, "filter"), "raw": xtables.Model(rs, "raw")}
	ops := func(table string) change.Section {
		m, sec := models[table], change.Section{Table: table}
		for range 1 + r.IntN(4) {
			chain := map[string]string{"filter": "INPUT", "raw": "OUTPUT"}[table]
			have := m.Rules(chain)
			var op change.RuleOp
			switch n := r.IntN(4); {
			case n == 0 && len(have) > 0:
				rule := have[r.IntN(len(have))]
				op = change.RuleOp{Kind: change.DeleteRule, Chain: chain, Pos: slices.Index(have, rule) + 1, Rule: rule}
			case n == 1:
				op = change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-X", Rules: []string{texts[r.IntN(3)]}, Was: m.Rules("CTPLAN-X"), Existed: m.Has("CTPLAN-X")}
			case n == 2 && m.Has("CTPLAN-OLD"):
				op = change.RuleOp{Kind: change.DropChain, Chain: "CTPLAN-OLD", Was: m.Rules("CTPLAN-OLD")}
			default:
				// New text: of equal rules iptables deletes the first, so the
				// planner never inserts one that stands already.
				op = change.RuleOp{Kind: change.InsertRule, Chain: chain, Pos: 1 + r.IntN(len(have)+1), Rule: fmt.Sprintf("-j N%d", r.IntN(1e9))}
			}
			m.Apply(op)
			sec.Ops = append(sec.Ops, op)
		}
		return sec
	}
	return world{start, []change.Step{
		rules(v4, ops("filter"), ops("raw"), ops("filter")),
		sysctlStep("a", "1", "2"),
		rules(v4, ops("filter"), ops("raw")),
		{Hashsize: &change.HashsizeStep{Before: 512, After: 1024}},
	}}
}

// faults numbers every point of a run; at number n it does what mode says.
type faults struct {
	n, at int
	crash bool
}

func (x *faults) hit() error {
	x.n++
	if x.n-1 != x.at {
		return nil
	}
	if x.crash {
		panic(crash{})
	}
	return errInjected
}

// arm makes both the transaction and its host hit x.
func (x *faults) arm(env *Env, f *fake) {
	env.Fault = func(string, int) error { return x.hit() }
	f.fault = func(string) error { return x.hit() }
}

// survive calls fn and reports whether it crashed.
func survive(fn func()) (crashed bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crash); !ok {
				panic(r)
			}
			crashed = true
		}
	}()
	fn()
	return false
}

// cutOff carries out all steps and crashes before the commit.
func cutOff(t *testing.T, env Env, steps []change.Step) {
	t.Helper()
	env.Fault = func(point string, _ int) error {
		if point == "verify" {
			panic(crash{})
		}
		return nil
	}
	if !survive(func() { Run(t.Context(), env, steps, Options{}) }) {
		t.Fatal("nothing was cut off")
	}
}
