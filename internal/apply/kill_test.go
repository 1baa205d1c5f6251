package apply

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner"
)

const killRole = "kill"

// serverRules let nobody in but to the service, by connection state.
const serverRules = `*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8080 -m state --state NEW -j ACCEPT
COMMIT
`

// killSteps take the service out of tracking in both families, and every other
// rule with it.
func killSteps(b planner.Backend) []planner.Step {
	set := func(chain string, rules ...string) planner.RuleOp {
		return planner.RuleOp{Kind: planner.SetChain, Chain: "CTPLAN-" + chain, Rules: rules}
	}
	jump := func(chain string) planner.RuleOp {
		return planner.RuleOp{Kind: planner.InsertRule, Chain: chain, Pos: 1, Rule: "-j CTPLAN-" + chain}
	}
	family := func(f planner.Family) planner.Step {
		return rules(rulesKey{f, b},
			section("filter", set("INPUT", "-p tcp -m tcp --dport 8080 -j ACCEPT", "-p tcp -m tcp --sport 8080 -j ACCEPT"), jump("INPUT")),
			section("raw", set("PREROUTING", "-p tcp -j CT --notrack"), jump("PREROUTING"), set("OUTPUT", "-p tcp -j CT --notrack"), jump("OUTPUT")),
			section("filter",
				planner.RuleOp{Kind: planner.DeleteRule, Chain: "INPUT", Pos: 2, Rule: "-m state --state RELATED,ESTABLISHED -j ACCEPT"},
				planner.RuleOp{Kind: planner.DeleteRule, Chain: "INPUT", Pos: 2, Rule: "-p tcp -m tcp --dport 8080 -m state --state NEW -j ACCEPT"}))
	}
	return []planner.Step{family(planner.IPv4), family(planner.IPv6), diskSteps()[1]}
}

func killEnv(root string) Env {
	h := NewHost("")
	h.Files = systemFiles{root}
	return Env{Host: h, Dir: filepath.Join(root, "state"), LockPath: filepath.Join(root, "lock"), Command: "ctplan test"}
}

// killed is the process that gets killed: it recovers and then goes forward,
// or back, whichever there is to go. A signal ends it at a random moment
// within the given time; 0: none does.
func killed(root string, b planner.Backend, within time.Duration) error {
	env, ctx := killEnv(root), context.Background()
	if _, err := Recover(ctx, env, nil); err != nil {
		return err
	}
	live, err := env.Host.Rules.Save(ctx, planner.IPv4, b)
	if err != nil {
		return err
	}
	steps := killSteps(b)
	if planner.Model(live, "raw").Has("CTPLAN-OUTPUT") {
		v6, err := env.Host.Rules.Save(ctx, planner.IPv6, b)
		if err != nil {
			return err
		}
		if _, steps, err = Back(env, 0, planner.Live{Rulesets: []planner.Ruleset{live, v6}}); err != nil {
			return err
		}
	}
	if within > 0 {
		time.AfterFunc(time.Duration(rand.Int64N(int64(within))), func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	}
	begun := time.Now()
	_, err = Run(ctx, env, steps, Options{})
	fmt.Print(time.Since(begun))
	return err
}

func TestKill9NFT(t *testing.T) { nstest.Inside(t, func(ns *nstest.NS) { kill9(t, ns, planner.NFT) }) }
func TestKill9Legacy(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) { kill9(t, ns, planner.Legacy) })
}

// kill9 kills the process at a random moment, 100 times a backend, while a
// client opens a connection every 10 ms, of either family by turns.
func kill9(t *testing.T, ns *nstest.NS, b planner.Backend) {
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	ns.Use(b)
	root := memory(t)
	os.Mkdir(filepath.Join(root, "etc"), 0o755)
	ns.RunInput(serverRules, "iptables-restore")
	ns.RunInput(serverRules, "ip6tables-restore")
	begun := time.Now()
	connections, refused := traffic(t)

	old := kernelState(t, ns, b, root)
	// The way back is not a rollback: it may leave an empty table and folder.
	kept := strings.NewReplacer(filepath.Join(root, "etc/d"), "")
	loose := func(state string) string { return kept.Replace(emptyTable.ReplaceAllString(state, "")) }
	process := func(within time.Duration) *exec.Cmd {
		cmd := exec.Command(os.Args[0], within.String())
		cmd.Env = append(os.Environ(), roleEnv+"="+killRole, rootEnv+"="+root, hangEnv+"="+string(b))
		return cmd
	}
	out, err := process(0).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	took, err := time.ParseDuration(string(out))
	if err != nil {
		t.Fatal(err)
	}
	now := kernelState(t, ns, b, root)
	if old == now {
		t.Fatal("nothing changed")
	}
	came := map[string]int{}
	before := now
	for range rounds {
		out, err := process(took + took/4).Output()
		if err != nil && !strings.Contains(err.Error(), "signal: killed") {
			t.Fatal(err)
		}
		if d, err := time.ParseDuration(string(out)); err == nil {
			took = min(took, d) // the first one may have been slow
		}
		if p, err := Pending(filepath.Join(root, "state")); err != nil {
			t.Fatal(err)
		} else if p != nil {
			came[fmt.Sprintf("cut off in step %d", len(p.Transaction.Steps))]++
		} else {
			came["before or after"]++
		}
		if _, err := Recover(t.Context(), killEnv(root), nil); err != nil {
			t.Fatal(err)
		}
		got := kernelState(t, ns, b, root)
		if other := loose(got); got != before && (other == loose(before) || other != loose(old) && other != loose(now)) {
			t.Fatalf("neither old nor new: got\n%s\nbefore\n%s", got, before)
		}
		before = got
	}
	lasted := time.Since(begun)
	t.Logf("%d rounds in %.1f s: %v; %d connections, %d refused", rounds, lasted.Seconds(), came, connections.Load(), refused.Load())
	if refused.Load() > 0 {
		t.Errorf("%d of %d connections were refused", refused.Load(), connections.Load())
	}
	if due := int64(lasted / pace); connections.Load() < due*9/10 {
		t.Errorf("%d connections are not one every %v: %d were due", connections.Load(), pace, due)
	}
	if came["before or after"] == rounds {
		t.Error("no kill hit a transaction")
	}
}

// pace is how often the client connects.
const pace = 10 * time.Millisecond

// traffic serves on port 8080 and connects to it every 10 ms until the test
// ends; what a busy machine delays is made up for.
func traffic(t *testing.T) (connections, refused *atomic.Int64) {
	connections, refused = new(atomic.Int64), new(atomic.Int64)
	addresses := []string{"127.0.0.1:8080", "[::1]:8080"}
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("hello"))
				c.Close()
			}
		}()
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		due := time.Now()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Until(due)):
			}
			due = due.Add(pace)
			wg.Go(func() {
				connections.Add(1)
				c, err := net.DialTimeout("tcp", addresses[n%2], 5*time.Second)
				if err == nil {
					c.SetDeadline(time.Now().Add(5 * time.Second))
					_, err = c.Read(make([]byte, 5))
					c.Close()
				}
				if err != nil {
					refused.Add(1)
					t.Log(strings.TrimSpace(err.Error()))
				}
			})
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
	return connections, refused
}
