package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// misbehave makes iptables-restore do what it should not once /run/broken says
// how: for every call that has the words in it, and no other.
const misbehave = `#!/bin/bash
read -r how words < /run/broken 2>/dev/null
here=$(readlink /proc/self/ns/net)
case $how in '') words=' nothing ' ;; esac
[[ $words != *earnest* || $here == "$(cat /run/earnest)" ]] || how=
[[ $words != *scripts* || " $* " == *" --noflush "* ]] || how=
[[ " $* " != *ersion* ]] || how=
case $how in
signal) cat > /dev/null; kill -SEGV $$ ;;
hang) cat > /dev/null; sleep 60 & sleep 60 ;;
lie) cat > /dev/null; exit 0 ;;
half) # the first table alone, or its first half
	script=$(cat)
	if [[ $(grep -c ^COMMIT <<<"$script") -gt 1 ]]; then script=$(sed '/^COMMIT/q' <<<"$script"); else
	script=$(sed '/^-[DI]/{2,$d}' <<<"$script"); fi
	printf '%s\n' "$script" | MULTI NAME "$@"; exit 0 ;;
esac
exec MULTI NAME "$@"
`

// TestRestoreMisbehaves has a restore die by a signal, hang, say that it did what
// it did not, and do half: always, in earnest alone, and once the change is made.
// The host ends in the old state or in the new one, and it is said which.
func TestRestoreMisbehaves(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			for _, how := range []string{"signal", "hang", "lie", "half"} {
				if how == "hang" && b == host.NFT {
					continue // the clock alone tells, whatever hangs
				}
				misbehaves(t, ns, b, how)
			}
		}
	})
}

func misbehaves(t *testing.T, ns *nstest.NS, b host.Backend, how string) {
	ns.Use(b)
	dir := t.TempDir()
	for _, f := range []string{"iptables", "ip6tables"} {
		script := strings.NewReplacer("MULTI", "/usr/sbin/xtables-"+string(b)+"-multi", "NAME", f+"-restore").Replace(misbehave)
		for _, name := range []string{f + "-restore", f + "-" + string(b) + "-restore"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/run/earnest", []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := func(words string) {
		t.Helper()
		if err := os.WriteFile("/run/broken", []byte(words+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	broken("")
	for _, f := range []string{"iptables-restore", "ip6tables-restore"} {
		ns.RunInput(foreignRules, f)
	}
	root := memory(t)
	os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	env := func() Env {
		r := &holder{limit: time.Second}
		h := NewHost("")
		h.Files, h.Rules, h.Hold = systemFiles{root}, systemRules{iptables.Tools{Runner: r}, r}, r.hold
		return Env{Host: h, Dir: filepath.Join(root, "state"), LockPath: filepath.Join(root, "lock")}
	}
	steps := kernelSteps(b)[:2] // the rules
	state := func() string {    // a way back by hand leaves tables that hold nothing
		return emptyTable.ReplaceAllString(kernelState(t, ns, b, root), "")
	}
	what := func(when string) string { return fmt.Sprintf("%s, %s, %s", b, how, when) }
	before := state()
	if _, err := Run(t.Context(), env(), steps, Options{}); err != nil {
		t.Fatal(err)
	}
	after := state()
	if _, err := Run(t.Context(), env(), inverted(steps), Options{Back: true}); err != nil || state() != before || after == before {
		t.Fatalf("%v: the host is\n%s\nwas\n%s", err, state(), before)
	}
	must := func(want string) func(context.Context) error {
		return func(context.Context) error {
			if state() != want {
				return errors.New("the host is not as planned")
			}
			return nil
		}
	}

	// Always: seen before anything is changed.
	broken(how)
	if _, err := Run(t.Context(), env(), steps, Options{}); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("%s: %v", what("always"), err)
	}
	broken("")
	if got := state(); got != before {
		t.Errorf("%s: the host is\n%s\nwas\n%s", what("always"), got, before)
	}

	// In earnest alone, by script: taken back.
	broken(how + " earnest scripts")
	_, err = Run(t.Context(), env(), steps, Options{Verify: must(after)})
	var back *RolledBackError
	if !errors.As(err, &back) {
		t.Errorf("%s: %v", what("in earnest"), err)
	}
	broken("")
	if got := state(); got != before {
		t.Errorf("%s: the host is\n%s\nwas\n%s", what("in earnest"), got, before)
	}

	// The way back, by script: whole tables do it, by itself and by hand.
	for _, byHand := range []bool{false, true} {
		armed := env()
		armed.Watch = func(context.Context, int) error { return nil }
		options := Options{}
		if !byHand {
			options.ConfirmWithin = time.Hour
		}
		if _, err := Run(t.Context(), armed, steps, options); err != nil {
			t.Fatalf("%s: %v", what("there"), err)
		}
		broken(how + " earnest scripts")
		takeBack := func() error {
			if !byHand {
				_, err := Reject(t.Context(), env(), nil)
				return err
			}
			_, err := Run(t.Context(), env(), inverted(steps), Options{Back: true})
			return err
		}
		if err := takeBack(); err != nil {
			t.Errorf("%s, by hand %v: %v", what("back"), byHand, err)
		}
		broken("")
		if got := state(); got != before {
			t.Errorf("%s, by hand %v: the host is\n%s\nwas\n%s", what("back"), byHand, got, before)
		}

		// Whole tables too: what is left is said, and told to everybody.
		if _, err := Run(t.Context(), armed, steps, options); err != nil {
			t.Fatalf("%s: %v", what("there again"), err)
		}
		broken(how + " earnest")
		var told *IncompleteError
		e := env()
		e.Announce = func(e *IncompleteError) { told = e }
		if byHand {
			_, err = Run(t.Context(), e, inverted(steps), Options{Back: true, Verify: must(before)})
		} else {
			_, err = Reject(t.Context(), e, nil)
		}
		if err == nil {
			t.Errorf("%s, by hand %v: no error", what("nothing works"), byHand)
		}
		broken("")
		var incomplete *IncompleteError
		switch got := state(); {
		case errors.As(err, &incomplete):
			if told == nil || told.ID != incomplete.ID || len(incomplete.Left) == 0 {
				t.Errorf("%s, by hand %v: nobody was told: %v", what("nothing works"), byHand, err)
			}
		case errors.As(err, &back):
			if got != after { // what was to be taken back stands, and is said to
				t.Errorf("%s, by hand %v: %v: the host is\n%s", what("nothing works"), byHand, err, got)
			}
		default:
			t.Errorf("%s, by hand %v: %v", what("nothing works"), byHand, err)
		}
		// Once it behaves again, the old state comes back.
		if _, err := Recover(t.Context(), env(), nil); err != nil {
			t.Errorf("%s, by hand %v: %v", what("mended"), byHand, err)
		}
		if state() != before {
			if _, err := Run(t.Context(), env(), inverted(steps), Options{Back: true}); err != nil {
				t.Errorf("%s, by hand %v: %v", what("mended"), byHand, err)
			}
		}
		if got := state(); got != before {
			t.Fatalf("%s, by hand %v: the host is\n%s\nwas\n%s", what("mended"), byHand, got, before)
		}
	}
	all, err := History(filepath.Join(root, "state"))
	if err != nil || all[len(all)-1].Outcome == journal.Running {
		t.Errorf("%s: %v", what("history"), err)
	}
}

// inverted are the steps that take steps back.
func inverted(steps []change.Step) (back []change.Step) {
	for _, s := range slices.Backward(steps) {
		back = append(back, s.Inverse())
	}
	return back
}
