package apply

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/xtables"
)

// errInjected is the failure that tests cause.
var errInjected = errors.New("injected")

// crash is what a process that dies panics with: nothing behind it runs but
// what the kernel does for the dead too.
type crash struct{}

func testEnv(t *testing.T, f *fake) Env {
	dir := memory(t)
	return Env{
		Host:     f.host(),
		Dir:      filepath.Join(dir, "state"),
		LockPath: filepath.Join(dir, "lock"),
		Command:  "ctplan apply",
	}
}

// TestEveryPoint fails and crashes every transaction at every point where it
// can be cut off, and holds what comes of it against the old and the new host.
func TestEveryPoint(t *testing.T) {
	cases := 0
	for name, w := range allWorlds() {
		f := w.make()
		before := f.String()
		env := testEnv(t, f)
		count := &faults{at: -1}
		count.arm(&env, f)
		if _, err := Run(t.Context(), env, w.steps, Options{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		after := f.String()
		if before == after {
			t.Fatalf("%s changes nothing", name)
		}
		for at := range count.n {
			for _, crashes := range []bool{false, true} {
				cases++
				what := fmt.Sprintf("%s, point %d of %d, crash %v", name, at, count.n, crashes)
				f := w.make()
				env := testEnv(t, f)
				x := &faults{at: at, crash: crashes}
				x.arm(&env, f)
				var err error
				crashed := survive(func() { _, err = Run(t.Context(), env, w.steps, Options{}) })
				env.Fault, f.fault = nil, nil
				if crashed != crashes {
					t.Fatalf("%s: crashed %v", what, crashed)
				}
				pending, _ := Pending(env.Dir)
				if !crashes && pending != nil {
					t.Errorf("%s: still open: %v", what, pending)
				}
				if _, err := Recover(t.Context(), env, nil); err != nil {
					t.Fatalf("%s: recovery: %v", what, err)
				}
				want, state := before, f.String()
				if committed(t, env) {
					want = after
				}
				if state != want {
					t.Fatalf("%s: got\n%s\nwant\n%s", what, state, want)
				}
				if !crashes && (err == nil) != (want == after) {
					t.Errorf("%s: error %v, but the state is otherwise", what, err)
				}
				if pending, err := Pending(env.Dir); pending != nil || err != nil {
					t.Errorf("%s: after recovery: %v, %v", what, pending, err)
				}
			}
		}
	}
	t.Logf("%d cases", cases)
	if cases < 500 {
		t.Errorf("%d cases are fewer than 500", cases)
	}
}

func committed(t *testing.T, env Env) bool {
	store, err := journal.View(env.Dir)
	if err != nil {
		t.Fatal(err)
	}
	all, err := store.All()
	if err != nil {
		t.Fatal(err)
	}
	return len(all) > 0 && all[len(all)-1].Outcome == journal.Committed
}

// TestCrashInRecovery crashes and fails recovery itself, at every point, and
// recovers from that.
func TestCrashInRecovery(t *testing.T) {
	cases := 0
	for name, w := range allWorlds() {
		f := w.make()
		before := f.String()
		env := testEnv(t, f)
		count := &faults{at: -1}
		count.arm(&env, f)
		if _, err := Run(t.Context(), env, w.steps, Options{}); err != nil {
			t.Fatal(err)
		}
		for first := 2; first < count.n-1; first += 3 {
			for second, done := 0, false; !done; second++ {
				for _, crashes := range []bool{true, false} {
					cases++
					what := fmt.Sprintf("%s, points %d and %d, crash %v", name, first, second, crashes)
					f := w.make()
					env := testEnv(t, f)
					(&faults{at: first, crash: true}).arm(&env, f)
					survive(func() { Run(t.Context(), env, w.steps, Options{}) })
					x := &faults{at: second, crash: crashes}
					x.arm(&env, f)
					var err error
					crashed := survive(func() { _, err = Recover(t.Context(), env, nil) })
					done = x.n <= second // the fault came too late to matter
					// A service that fails to start, or a table that had to be loaded
					// whole, is no matter where all is as it was.
					mended := f.String() == before
					if !done && !crashed && err == nil && !mended {
						t.Fatalf("%s: no error", what)
					}
					var incomplete *IncompleteError
					if errors.As(err, &incomplete) && len(incomplete.Left) == 0 {
						t.Errorf("%s: %v names nothing", what, err)
					}
					env.Fault, f.fault = nil, nil
					if _, err := Recover(t.Context(), env, nil); err != nil {
						t.Fatalf("%s: second recovery: %v", what, err)
					}
					if f.String() != before {
						t.Fatalf("%s: got\n%s\nwant\n%s", what, f.String(), before)
					}
				}
			}
		}
	}
	t.Logf("%d cases", cases)
}

// TestRollbackErrors fails a step and then its undo.
func TestRollbackErrors(t *testing.T) {
	for name, w := range allWorlds() {
		f := w.make()
		before := f.String()
		env := testEnv(t, f)
		env.Fault = func(point string, i int) error {
			if point == "verify" || point == "undo" && i == 0 {
				return errInjected
			}
			return nil
		}
		r, err := Run(t.Context(), env, w.steps, Options{})
		var incomplete *IncompleteError
		if !errors.As(err, &incomplete) || !errors.Is(err, errInjected) {
			t.Fatalf("%s: got %v, want an *IncompleteError", name, err)
		}
		if len(incomplete.Left) != 1 || r.Steps[0].State != Left || r.Steps[1].State != Reverted {
			t.Errorf("%s: left %+v, steps %+v", name, incomplete.Left, r.Steps)
		}
		if _, err := Run(t.Context(), env, w.steps, Options{}); !strings.Contains(fmt.Sprint(err), "transaction 1 ") {
			t.Errorf("%s: next run: %v", name, err)
		}
		env.Fault = nil
		if _, err := Recover(t.Context(), env, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.String() != before {
			t.Errorf("%s: got\n%s\nwant\n%s", name, f.String(), before)
		}
	}
}

func TestOrderOfEvents(t *testing.T) {
	w := worlds()["notrack"]
	f := w.make()
	env := testEnv(t, f)
	before := f.String()
	f.fault = func(point string) error {
		if point == "test" {
			return errInjected
		}
		return nil
	}
	if _, err := Run(t.Context(), env, w.steps, Options{}); !strings.Contains(fmt.Sprint(err), "nothing was changed") {
		t.Errorf("test: got %v", err)
	}
	f.fault = nil
	ctx, cancel := context.WithCancel(t.Context())
	verify := func(context.Context) error { return errors.New("sysctl.x is 3") }
	var meanwhile string
	_, err := Run(ctx, env, w.steps, Options{Verify: func(ctx context.Context) error {
		p, err := Pending(env.Dir)
		meanwhile = fmt.Sprint(p, err)
		return verify(ctx)
	}})
	if !strings.Contains(meanwhile, "right now") {
		t.Errorf("pending while it runs: %s", meanwhile)
	}
	var back *RolledBackError
	if !errors.As(err, &back) || !strings.Contains(err.Error(), "reading back: sysctl.x is 3; everything was put back") {
		t.Errorf("verify: got %v", err)
	}
	var events []string
	_, err = Run(ctx, env, w.steps, Options{Progress: func(e Event) {
		events = append(events, fmt.Sprint(e.Index, e.Undo, e.Finished))
		if e.Index == 1 {
			cancel()
		}
	}})
	if !errors.As(err, &back) || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	want := "0 false false,0 false true,1 false false,1 false true,1 true false,1 true true,0 true false,0 true true"
	if got := strings.Join(events, ","); got != want {
		t.Errorf("events: got %s, want %s", got, want)
	}
	if f.String() != before {
		t.Errorf("got\n%s\nwant\n%s", f.String(), before)
	}
	if p, err := Pending(env.Dir); p != nil || err != nil {
		t.Errorf("pending: %v, %v", p, err)
	}
}

// Of many at once one works, and the others name it.
func TestTwentyAtOnce(t *testing.T) {
	w := worlds()["tuned"]
	f := w.make()
	env := testEnv(t, f)
	results := make(chan error, 20)
	enough := make(chan struct{})
	verify := func(context.Context) error { <-enough; return nil }
	for range 20 {
		go func() {
			_, err := Run(t.Context(), env, w.steps, Options{Verify: verify})
			results <- err
		}()
	}
	for range 19 {
		var held *lock.HeldError
		if err := <-results; !errors.As(err, &held) || held.Holder.PID == 0 {
			t.Errorf("got %v, want a *lock.HeldError that names the holder", err)
		}
	}
	close(enough)
	if err := <-results; err != nil {
		t.Errorf("the one that got the lock: %v", err)
	}
}

// TestForeignChange recovers where somebody else changed the tables meanwhile:
// what they did stays, what the transaction did goes.
func TestForeignChange(t *testing.T) {
	w := worlds()["notrack"]
	f := w.make()
	env := testEnv(t, f)
	cutOff(t, env, w.steps)
	foreign := change.RuleOp{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-s 192.0.2.1/32 -j DROP"}
	f.tables[v4]["filter"].Apply(foreign)
	if _, err := Recover(t.Context(), env, nil); err != nil {
		t.Fatal(err)
	}
	got := f.tables[v4]["filter"].Rules("INPUT")
	if !slices.Contains(got, foreign.Rule) || slices.Contains(got, "-j CTPLAN-INPUT") || strings.Count(strings.Join(got, "\n"), "ESTABLISHED") != 2 {
		t.Errorf("INPUT is now %q", got)
	}
	if f.tables[v4]["filter"].Has("CTPLAN-INPUT") {
		t.Error("CTPLAN-INPUT still stands")
	}
	// A file that somebody else wrote is not overwritten.
	steps := []change.Step{file(text("/etc/rules.v4", "Gr\xf6\xdfe\n"), text("/etc/rules.v4", "new\n"))}
	cutOff(t, env, steps)
	f.files["/etc/rules.v4"] = text("/etc/rules.v4", "mine\n")
	_, err := Recover(t.Context(), env, nil)
	var incomplete *IncompleteError
	if !errors.As(err, &incomplete) || !strings.Contains(err.Error(), "somebody else") || f.files["/etc/rules.v4"].Content != "mine\n" {
		t.Errorf("got %v", err)
	}
}

// A transaction must not take the tables of a machine that started anew for
// what it left behind. But the module and its values come from files of which
// the boot found half: they are put back.
func TestReboot(t *testing.T) {
	for _, name := range []string{"notrack", "tuned", "disabled"} {
		w := worlds()[name]
		f := w.make()
		env := testEnv(t, f)
		cutOff(t, env, w.steps)
		old := w.make()
		// What boot makes: the kernel as new, the files as they were left.
		f.tables = map[rulesKey]map[string]*xtables.TableModel{}
		f.sysctls, f.modules, f.buckets = map[string]string{}, map[string]bool{}, 0
		f.load(v4, "filter", ":INPUT DROP", "-A INPUT -i boot -j ACCEPT")
		booted := fmt.Sprint(f.tables[v4])
		rewriteBootID(t, env)
		if name != "disabled" { // which must load it
			f.sysctls[maxKey], f.modules[nfConntrack], f.buckets = "8", true, 1
		}
		if _, err := Recover(t.Context(), env, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, want := fmt.Sprint(f.files), fmt.Sprint(old.files); got != want {
			t.Errorf("%s: files: got %s, want %s", name, got, want)
		}
		if got, want := fmt.Sprint(f.modules, f.sysctls, f.buckets), fmt.Sprint(old.modules, old.sysctls, old.buckets); got != want {
			t.Errorf("%s: modules and values: got %s, want %s", name, got, want)
		}
		if got := fmt.Sprint(f.tables[v4]); got != booted {
			t.Errorf("%s: recovery changed rules that the boot had made", name)
		}
	}
}

// Rules of another network namespace cannot be reached from here.
func TestElsewhere(t *testing.T) {
	w := worlds()["notrack"]
	f := w.make()
	env := testEnv(t, f)
	cutOff(t, env, w.steps)
	rewrite(t, filepath.Join(env.Dir, "000001.journal"), netNS(), "net:[1]")
	state := f.String()
	var elsewhere *ElsewhereError
	if _, err := Recover(t.Context(), env, nil); !errors.As(err, &elsewhere) || f.String() != state {
		t.Errorf("got %v", err)
	}
}

func rewriteBootID(t *testing.T, env Env) {
	t.Helper()
	rewrite(t, filepath.Join(env.Dir, "000001.journal"), bootID(), "00000000-0000-0000-0000-000000000000")
}

func TestElapsed(t *testing.T) {
	w := worlds()["tuned"]
	env := testEnv(t, w.make())
	env.Watch = func(context.Context, int) error { return nil }
	slow := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	_, err := Run(t.Context(), env, w.steps, Options{ConfirmWithin: 50 * time.Millisecond, Verify: slow})
	var back *RolledBackError
	if !errors.As(err, &back) {
		t.Errorf("got %v", err)
	}
}
