package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/internal/planfile"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/nft"
)

// faultCount is what the child of TestFaults did.
type faultCount struct {
	There, Back int // steps
	Cases       int
	Kinds       map[string]int // cases by kind
}

// errInjected is the failure that the child causes.
var errInjected = errors.New("injected")

// at is a point of a transaction: see apply.Env.Fault. Beyond those, "section" is
// the moment before a table is committed, counted over all steps.
type at struct {
	Point string
	Index int
}

// victim is the host that the child stands on.
type victim struct {
	backend live.Backend
	machine bool // its rules and sizes are the machine's: rules are left alone
	native  bool // nftables carries its rules: there are none of iptables
	rules   [2]string
	nft     string
	values  map[string]string // files of sysctls and their values before
	count   faultCount
}

// faults is the child: it stands in the host's namespaces.
func faults(args []string) error {
	v := victim{backend: live.Backend(args[0]), machine: len(args) > 1 && args[1] == "machine", native: len(args) > 1 && args[1] == "nftables", count: faultCount{Kinds: map[string]int{}}}
	saved, err := planfile.Read("/run/test/plan")
	if err != nil {
		return err
	}
	live, err := saved.Snapshot.Live()
	if err != nil {
		return err
	}
	saved.Desired.Chains, saved.Desired.Native = iptables.Render(saved.Desired, live), nft.Render(saved.Desired)
	plan := planner.Diff(saved.Desired, live)
	if plan.Blocked() {
		return fmt.Errorf("the plan is blocked: %+v", plan.Blocks)
	}
	there := planner.Steps(plan)
	if err := v.furnish(there); err != nil {
		return err
	}
	before, err := v.state()
	if err != nil {
		return err
	}
	commit := func(steps []change.Step) (string, error) {
		if _, err := apply.Run(context.Background(), faultEnv(), steps, apply.Options{}); err != nil {
			return "", err
		}
		return v.state()
	}
	after, err := commit(there)
	if err != nil {
		return err
	}
	if before == after {
		return errors.New("the plan changes nothing")
	}
	reset := func() error { return v.reset(before) }
	if err := reset(); err != nil {
		return err
	}
	if err := v.each(there, before, after, reset); err != nil {
		return fmt.Errorf("there: %w", err)
	}

	// The way back. It may leave what a rollback does not: an empty table, a folder.
	if err := reset(); err != nil {
		return err
	}
	if _, err := commit(there); err != nil {
		return err
	}
	s, err := snapshot.Read(context.Background(), snapshot.Options{})
	if err != nil {
		return err
	}
	if live, err = s.Live(); err != nil {
		return err
	}
	plan, back, err := apply.Back(faultEnv(), 0, live)
	if err != nil {
		return err
	}
	if plan.Blocked() || len(back) == 0 {
		return fmt.Errorf("the way back is blocked, or empty: %+v", plan.Blocks)
	}
	end, err := commit(back)
	if err != nil {
		return err
	}
	if bare(end) != bare(before) {
		return fmt.Errorf("the way back does not lead back:\n%s", textdiff.Unified("before", "after", bare(before), bare(end), 2))
	}
	forth := func() error {
		if err := reset(); err != nil {
			return err
		}
		got, err := commit(there)
		if err == nil && got != after {
			err = fmt.Errorf("the same change came out otherwise:\n%s", textdiff.Unified("first", "now", after, got, 2))
		}
		return err
	}
	if err := forth(); err != nil {
		return err
	}
	if err := v.each(back, after, end, forth); err != nil {
		return fmt.Errorf("back: %w", err)
	}
	v.count.There, v.count.Back = len(there), len(back)
	return json.NewEncoder(os.Stdout).Encode(v.count)
}

// emptyTable is a table that holds nothing.
var emptyTable = regexp.MustCompile(`(?m)^\*\w+\n(:\w+ ACCEPT\n)+COMMIT\n`)

// bare is a state without such tables.
func bare(state string) string { return emptyTable.ReplaceAllString(state, "") }

func faultEnv() apply.Env {
	return apply.Env{Dir: journal.Dir, LockPath: lock.Path, Command: "a test"}
}

// each cuts the steps off at every point, and holds the host against what was
// there before and what is there after.
func (v *victim) each(steps []change.Step, before, after string, reset func() error) error {
	var points []at
	for i := range steps {
		points = append(points, at{"step", i}, at{"stepped", i})
	}
	sections := 0
	for _, s := range steps {
		if s.Rules != nil {
			for range s.Rules.Sections {
				points = append(points, at{"section", sections})
				sections++
			}
		}
	}
	points = append(points, at{"verify", 0}, at{"commit", 0}, at{"committed", 0})
	names := map[string]string{"step": "before a step", "stepped": "after a step", "section": "within a step"}
	for _, p := range points {
		for _, kind := range []string{"fail", "SIGKILL"} {
			v.count.Cases++
			if name, ok := names[p.Point]; ok {
				v.count.Kinds[kind+" "+name]++
			} else {
				v.count.Kinds[kind+" at the end"]++
			}
			what := fmt.Sprintf("%s, %s %d of %d", kind, p.Point, p.Index, len(steps))
			if err := v.cut(kind, p, steps); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			all, err := apply.History(journal.Dir)
			if err != nil {
				return err
			}
			outcome := all[len(all)-1].Outcome
			want := before
			if outcome == journal.Committed {
				want = after
			}
			if (outcome == journal.Committed) != (p.Point == "committed") || outcome.Open() {
				return fmt.Errorf("%s: the transaction ended as %q", what, outcome)
			}
			got, err := v.state()
			if err != nil {
				return err
			}
			if got != want {
				return fmt.Errorf("%s, %s:\n%s", what, outcome, textdiff.Unified("want", "got", want, got, 2))
			}
			if want == after {
				if err := reset(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// cut runs the steps with the fault; after a kill the built ctplan recovers.
func (v *victim) cut(kind string, p at, steps []change.Step) error {
	if kind == "fail" {
		env := p.env(func() error { return errInjected })
		_, err := apply.Run(context.Background(), env, steps, apply.Options{})
		var back *apply.RolledBackError
		if p.Point == "committed" {
			return err
		}
		if !errors.As(err, &back) || !errors.Is(err, errInjected) || back.Journal != nil {
			return fmt.Errorf("got %v, want a *RolledBackError", err)
		}
		return nil
	}
	data, err := json.Marshal(struct {
		At    at
		Steps []change.Step
	}{p, steps})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=killed")
	cmd.Stdin = strings.NewReader(string(data))
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		return fmt.Errorf("the process was not killed: %v\n%s", err, out)
	}
	out, err = exec.Command("/run/test/ctplan", "recover").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctplan recover: %w\n%s", err, out)
	}
	if want := p.Point != "committed"; strings.Contains(string(out), "had been cut off: everything was put back") != want {
		return fmt.Errorf("ctplan recover says %q", out)
	}
	return nil
}

// env is where a transaction meets the fault.
func (p at) env(fault func() error) apply.Env {
	env := faultEnv()
	env.Host = apply.NewHost("")
	env.Host.Apart = nil // what is done apart is no point of the transaction
	hit := func(point string, i int) error {
		if p == (at{point, i}) {
			return fault()
		}
		return nil
	}
	env.Fault = hit
	if p.Point == "section" {
		env.Host.Rules = &oneByOne{Rules: env.Host.Rules, before: hit}
	}
	return env
}

// oneByOne commits each section by a command of its own.
type oneByOne struct {
	apply.Rules
	before func(point string, i int) error
	count  int
}

func (r *oneByOne) Commit(ctx context.Context, f live.Family, b live.Backend, sections []change.Section) error {
	for i := range sections {
		r.count++
		if err := r.before("section", r.count-1); err != nil {
			return err
		}
		if err := r.Rules.Commit(ctx, f, b, sections[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// killed is a child of the child: it kills itself at the point.
func killed([]string) error {
	var job struct {
		At    at
		Steps []change.Step
	}
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	env := job.At.env(func() error {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	_, err := apply.Run(context.Background(), env, job.Steps, apply.Options{})
	return err
}

// furnish gives the files that the steps change an owner, a mode and an
// attribute that nobody would choose, and keeps a copy of everything.
func (v *victim) furnish(steps []change.Step) error {
	v.values = map[string]string{}
	for i, s := range steps {
		switch {
		case s.File != nil && s.File.Before.Exists:
			path, err := filepath.EvalSymlinks(s.File.Before.Path)
			if err != nil {
				return err
			}
			// What was planned says so too.
			s.File.Before.Mode = 0o640 + uint32(i%2)*0o110
			s.File.Before.UID, s.File.Before.GID = 7+i, 8
			s.File.Before.Xattrs = map[string]string{"user.note": "a2VwdA=="}
			s.File.After.Mode, s.File.After.UID, s.File.After.GID, s.File.After.Xattrs = s.File.Before.Mode, s.File.Before.UID, s.File.Before.GID, s.File.Before.Xattrs
			err = errors.Join(os.Chown(path, 7+i, 8), os.Chmod(path, os.FileMode(s.File.Before.Mode)), unix.Setxattr(path, "user.note", []byte("kept"), 0))
			if err != nil {
				return err
			}
		case s.Sysctl != nil:
			v.values["/proc/sys/"+strings.ReplaceAll(s.Sysctl.Key, ".", "/")] = s.Sysctl.Before
		case s.Hashsize != nil:
			v.values["/sys/module/nf_conntrack/parameters/hashsize"] = fmt.Sprint(s.Hashsize.Before)
		}
	}
	// What is large and nobody's business here costs time in each case.
	const keep = "rm -rf /etc/alternatives /etc/ssl /etc/fonts /etc/apt /etc/java*; mkdir /run/test/etc; cp -a /etc/. /run/test/etc/"
	if out, err := exec.Command("sh", "-ec", keep).CombinedOutput(); err != nil {
		return fmt.Errorf("keeping a copy of /etc: %w: %s", err, out)
	}
	if v.machine {
		return nil
	}
	if v.native {
		out, err := exec.Command("nft", "list", "ruleset").Output()
		if err != nil {
			return err
		}
		v.nft = string(out)
		return v.loadRules()
	}
	for i, f := range []string{"iptables", "ip6tables"} {
		if v.backend == live.Legacy { // tables that were used once stay
			for _, table := range []string{"filter", "raw", "mangle", "nat"} {
				if out, err := exec.Command(f, "-t", table, "-S").CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
			}
		}
		out, err := exec.Command(f + "-save").Output()
		if err != nil {
			return err
		}
		v.rules[i] = string(out)
	}
	return v.loadRules()
}

// loadRules makes the rules what they were, and nothing else.
func (v *victim) loadRules() error {
	if v.machine {
		return nil
	}
	feed := func(text, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}
	if v.backend == live.NFT {
		if err := feed("flush ruleset\n", "nft", "-f", "-"); err != nil {
			return err
		}
	}
	if v.native {
		return feed(v.nft, "nft", "-f", "-")
	}
	return errors.Join(feed(v.rules[0], "iptables-restore"), feed(v.rules[1], "ip6tables-restore"))
}

// reset makes the host what it was, by other means than ctplan's.
func (v *victim) reset(want string) error {
	for _, path := range slices.Sorted(maps.Keys(v.values)) {
		if err := os.WriteFile(path, []byte(v.values[path]), 0); err != nil {
			return err
		}
	}
	if out, err := exec.Command("sh", "-ec", "find /etc -mindepth 1 -delete; cp -a /run/test/etc/. /etc/").CombinedOutput(); err != nil {
		return fmt.Errorf("putting back /etc: %w: %s", err, out)
	}
	if err := v.loadRules(); err != nil {
		return err
	}
	got, err := v.state()
	if err == nil && got != want {
		err = fmt.Errorf("the test's own reset failed:\n%s", textdiff.Unified("want", "got", want, got, 2))
	}
	return err
}

// sizes are what the machine has once: from a network namespace nobody can set
// them, and others may while a test runs.
var sizes = regexp.MustCompile(`_max$|_buckets$|hashsize$`)

// state is all that ctplan could change on the host.
func (v *victim) state() (string, error) {
	var b strings.Builder
	if v.native {
		out, err := exec.Command("nft", "-s", "list", "ruleset").Output()
		if err != nil {
			return "", fmt.Errorf("nft: %w", err)
		}
		b.Write(out)
	}
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(save).Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", save, err)
		}
		b.WriteString(inOrder(counters.ReplaceAllString(string(out), "")) + "--\n")
	}
	keys, err := filepath.Glob("/proc/sys/net/netfilter/nf_conntrack_*")
	if err != nil {
		return "", err
	}
	for _, path := range append(keys, "/proc/sys/net/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize") {
		if strings.HasSuffix(path, "_count") || !v.machine && sizes.MatchString(path) {
			continue
		}
		if value, err := os.ReadFile(path); err == nil {
			fmt.Fprintf(&b, "%s = %s", path, value)
		}
	}
	return b.String(), files(&b, "/", "etc")
}
