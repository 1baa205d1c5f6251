package apply

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// foreignRules is a server's ruleset: the operator's own.
const foreignRules = `*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m comment --comment "the \"door\"" -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -j mine
-A mine -j RETURN
COMMIT
`

// kernelSteps open, untrack and close, as the planner does in notrack mode.
func kernelSteps(b host.Backend) []change.Step {
	var steps []change.Step
	for _, f := range host.Families {
		steps = append(steps, rules(rulesKey{f, b},
			section("filter",
				change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{"-p tcp -m tcp --dport 22 -j ACCEPT", "-p udp -j ACCEPT"}},
				change.RuleOp{Kind: change.InsertRule, Chain: "INPUT", Pos: 2, Rule: "-j CTPLAN-INPUT"}),
			section("raw",
				change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-PREROUTING", Rules: []string{"-p tcp -j CT --notrack"}},
				change.RuleOp{Kind: change.InsertRule, Chain: "PREROUTING", Pos: 1, Rule: "-j CTPLAN-PREROUTING"}),
			section("filter",
				change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 3, Rule: "-m state --state RELATED,ESTABLISHED -j ACCEPT"},
				change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 4, Rule: "-m state --state RELATED,ESTABLISHED -j ACCEPT"},
				change.RuleOp{Kind: change.DeleteRule, Chain: "INPUT", Pos: 3, Rule: `-p tcp -m tcp --dport 22 -m state --state NEW -m comment --comment "the \"door\"" -j ACCEPT`})))
	}
	return append(steps, diskSteps()[1])
}

var (
	countersAndDates = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)
	emptyTable       = regexp.MustCompile(`(?m)^\*\w+\n(:\w+ ACCEPT \n)+COMMIT\n`)
)

// kernelState is everything that iptables-save prints, but counters and dates,
// and the files. Empty tables of the legacy backend do not count: the kernel
// cannot take them away again.
func kernelState(t *testing.T, ns *nstest.NS, b host.Backend, root string) string {
	t.Helper()
	state := ""
	for _, cmd := range []string{"iptables-save", "ip6tables-save"} {
		out := countersAndDates.ReplaceAllString(ns.Run(cmd), "")
		if b == host.Legacy {
			out = emptyTable.ReplaceAllString(out, "")
		}
		state += out
	}
	files, _ := filepath.Glob(filepath.Join(root, "etc", "*"))
	return state + fmt.Sprint(files)
}

func TestKernelNFT(t *testing.T)    { testKernel(t, host.NFT) }
func TestKernelLegacy(t *testing.T) { testKernel(t, host.Legacy) }

// testKernel fails and crashes transactions on real rules at every point.
func testKernel(t *testing.T, b host.Backend) {
	nstest.Inside(t, func(ns *nstest.NS) { everyPoint(t, ns, b) })
}

func everyPoint(t *testing.T, ns *nstest.NS, b host.Backend) {
	ns.Use(b)
	for name, load := range map[string]string{"empty host": "", "server": foreignRules} {
		steps := kernelSteps(b)
		if load == "" { // nothing there to close
			for _, s := range steps[:2] { // by family
				s.Rules.Sections = s.Rules.Sections[:2]
				s.Rules.Sections[0].Ops[1].Pos = 1
			}
		}
		// What the sections come to one by one, so that a crash between them
		// can be played.
		root := memory(t)
		os.MkdirAll(filepath.Join(root, "etc"), 0o755)
		reset := func() {
			os.RemoveAll(filepath.Join(root, "etc", "d"))
			if b == host.NFT {
				ns.RunInput("flush ruleset\n", "nft", "-f", "-")
			}
			for _, restore := range []string{"iptables-restore", "ip6tables-restore"} {
				if b == host.Legacy { // which can only be emptied
					ns.RunInput("*filter\n:INPUT ACCEPT\nCOMMIT\n*raw\nCOMMIT\n", restore)
				}
				if load != "" {
					ns.RunInput(load, restore)
				}
			}
		}
		env := func(t *testing.T) Env {
			h := NewHost("")
			h.Files = systemFiles{root}
			return Env{Host: h, Dir: filepath.Join(memory(t), "state"), LockPath: filepath.Join(root, "lock")}
		}
		reset()
		before := kernelState(t, ns, b, root)
		count := &faults{at: -1}
		e := env(t)
		e.Fault = func(string, int) error { return count.hit() }
		if _, err := Run(t.Context(), e, steps, Options{}); err != nil {
			t.Fatal(err)
		}
		after := kernelState(t, ns, b, root)
		if !strings.Contains(after, "CTPLAN-PREROUTING") || before == after {
			t.Fatalf("%s: after: %s", name, after)
		}
		cases := 0
		for at := range count.n {
			for _, crashes := range []bool{false, true} {
				reset()
				if got := kernelState(t, ns, b, root); got != before {
					t.Fatalf("the test's own reset: got\n%s\nwant\n%s", got, before)
				}
				cases++
				e := env(t)
				x := &faults{at: at, crash: crashes}
				e.Fault = func(string, int) error { return x.hit() }
				survive(func() { Run(t.Context(), e, steps, Options{}) })
				e.Fault = nil
				if _, err := Recover(t.Context(), e, nil); err != nil {
					t.Fatalf("%s, point %d, crash %v: %v", name, at, crashes, err)
				}
				want := before
				if committed(t, e) {
					want = after
				}
				if got := kernelState(t, ns, b, root); got != want {
					t.Fatalf("%s, point %d, crash %v: got\n%s\nwant\n%s", name, at, crashes, got, want)
				}
			}
		}
		// A step that stopped after each of its sections.
		for came := range len(steps[0].Rules.Sections) + 1 {
			cases++
			reset()
			e := env(t)
			e.Fault = func(point string, i int) error {
				if point == "step" && i == 0 {
					part := steps[0].Rules.Sections[:came]
					if err := e.Host.Rules.Commit(t.Context(), host.IPv4, b, part); err != nil {
						t.Fatal(err)
					}
					panic(crash{})
				}
				return nil
			}
			survive(func() { Run(t.Context(), e, steps, Options{}) })
			e.Fault = nil
			if _, err := Recover(t.Context(), e, nil); err != nil {
				t.Fatalf("%s, after %d sections: %v", name, came, err)
			}
			if got := kernelState(t, ns, b, root); got != before {
				t.Fatalf("%s, after %d sections: got\n%s\nwant\n%s", name, came, got, before)
			}
		}
		t.Logf("%s: %d cases", name, cases)
	}
}

// The second family refuses: the first goes back as well.
func TestKernelSecondFamilyFails(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) { secondFamilyFails(t, ns) })
}

func secondFamilyFails(t *testing.T, ns *nstest.NS) {
	ns.Use(host.NFT)
	root := memory(t)
	os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	ns.RunInput(foreignRules, "iptables-restore") // IPv6 lacks the rules to delete
	before := kernelState(t, ns, host.NFT, root)
	h := NewHost("")
	h.Files = systemFiles{root}
	e := Env{Host: h, Dir: filepath.Join(root, "state"), LockPath: filepath.Join(root, "lock")}
	steps := kernelSteps(host.NFT)
	var refused *RehearsalError
	if _, err := Run(t.Context(), e, steps, Options{}); !errors.As(err, &refused) || refused.Back || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("got %v, want a *RehearsalError", err)
	}
	h.Apart = nil // where there is no rehearsal, the commit finds it
	_, err := Run(t.Context(), e, steps, Options{})
	var back *RolledBackError
	if !errors.As(err, &back) {
		t.Errorf("got %v, want a *RolledBackError", err)
	}
	if got := kernelState(t, ns, host.NFT, root); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
}
