package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Test checks that sections could be committed, and changes no rule. The
// legacy backend checks everything; the nft backend checks that every line can
// be understood, but not that a rule to delete exists or that a position does.
// Errors are those of Commit.
func (t Tools) Test(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error {
	return t.sections(ctx, f, b, TestSections(sections), "--test")
}

// Commit loads sections, in order, each as one: the kernel takes all of a
// section or nothing of it. A section that fails leaves those before it in
// place and those behind it out.
//
// Where the restore loses track of what a section has put there before, whole
// tables are loaded instead, each as one too: then their counters start anew, and
// what somebody else does to a table in that instant is lost.
//
// Errors: *RestoreError, *LockedError, ErrNotInstalled, ErrNotPermitted.
func (t Tools) Commit(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error {
	return t.sections(ctx, f, b, sections)
}

// Replace makes tables what they were when iptables-save printed them: what
// stands in them goes. Each happens whole or not at all. Counters start anew.
// Errors are those of Commit.
func (t Tools) Replace(ctx context.Context, f host.Family, b host.Backend, tables []xtables.TableLines) error {
	script, err := WholeTables(tables)
	if err != nil || script == "" {
		return err
	}
	r, err := t.restoreOf(ctx, f, b)
	if err != nil {
		return explain(f, err)
	}
	return r.load(ctx, script)
}

// sections gives sections to iptables-restore.
func (t Tools) sections(ctx context.Context, f host.Family, b host.Backend, sections []change.Section, flags ...string) error {
	script, err := Script(sections)
	if err != nil || script == "" {
		return err
	}
	r, err := t.restoreOf(ctx, f, b)
	if err != nil {
		return explain(f, err)
	}
	if r.can.knowsOwn || !takesUpOwn(sections) {
		return r.load(ctx, script, append([]string{"--noflush"}, flags...)...)
	}
	scripts, err := r.whole(ctx, sections)
	for _, script := range scripts {
		if err == nil {
			err = r.load(ctx, script, flags...)
		}
	}
	return err
}

// ByHand is what Commit would do as a file and the flags of the restore that
// takes it, for somebody to do by hand.
func (t Tools) ByHand(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) (script string, flags []string, err error) {
	if script, err = Script(sections); err != nil {
		return "", nil, err
	}
	r, err := t.restoreOf(ctx, f, b)
	if err != nil {
		return "", nil, explain(f, err)
	}
	if r.can.waits {
		flags = []string{"-w"}
	}
	if r.can.knowsOwn || !takesUpOwn(sections) {
		return script, append([]string{"--noflush"}, flags...), nil
	}
	scripts, err := r.whole(ctx, sections)
	return strings.Join(scripts, ""), flags, err
}

// restore is the iptables-restore of a family that speaks to a backend.
type restore struct {
	t      Tools
	family host.Family
	name   string
	can    abilities
}

func (t Tools) restoreOf(ctx context.Context, f host.Family, b host.Backend) (restore, error) {
	name, err := t.restoreCommand(ctx, f, b)
	if err != nil {
		return restore{}, err
	}
	can, err := t.abilitiesOf(ctx, b, name)
	return restore{t, f, name, can}, err
}

// whole returns what makes the tables of each section what they will be after
// it, from what they are now.
func (r restore) whole(ctx context.Context, sections []change.Section) (scripts []string, err error) {
	raw, err := r.t.save(ctx, r.family, strings.TrimSuffix(r.name, "-restore")+"-save")
	if err != nil {
		return nil, explain(r.family, err)
	}
	live, err := raw.Ruleset()
	if err != nil {
		return nil, err
	}
	models := map[string]*xtables.TableModel{}
	for _, sec := range sections {
		if slices.Contains(raw.Incompatible, sec.Table) {
			return nil, fmt.Errorf("this release of iptables writes whole tables, and iptables cannot show all of table %s", sec.Table)
		}
		m := models[sec.Table]
		if m == nil {
			m = xtables.Model(live, sec.Table)
			models[sec.Table] = m
		}
		m.Apply(sec.Ops...)
		script, err := WholeTables([]xtables.TableLines{{Name: sec.Table, Lines: m.Lines()}})
		if err != nil {
			return nil, err
		}
		scripts = append(scripts, script)
	}
	return scripts, nil
}

// load gives a script to iptables-restore. Where another writer came between
// the reading and the writing of a table, it goes on from there.
func (r restore) load(ctx context.Context, script string, args ...string) error {
	if r.can.waits {
		args = append(args, "-w", strconv.Itoa(max(1, int(r.t.wait().Seconds()))))
	} else {
		release, err := r.t.lockOut(ctx)
		if err != nil {
			return err
		}
		defer release()
	}
	for tries := 1; ; tries++ {
		_, err := r.t.runner().Run(ctx, run.Cmd{Path: r.name, Args: args, Stdin: script})
		var failed *run.Error
		if !errors.As(err, &failed) {
			return explain(r.family, err)
		}
		if strings.Contains(failed.Stderr, "xtables lock") {
			return &LockedError{Path: lockPath, Waited: r.t.wait(), Holder: lockHolder(lockPath)}
		}
		if denied(failed) {
			return explain(r.family, err)
		}
		refused := newRestoreError(r.name, script, slices.Contains(args, "--test"), failed)
		if !r.interrupted(failed, refused) || tries == mostTries {
			return refused
		}
		script = unloaded(script, refused.Line)
		select {
		case <-ctx.Done():
			return fmt.Errorf("loading rules while others change them: %w", ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

// mostTries is how often a script is loaded while others get in between.
const mostTries = 20

// interrupted reports whether a restore failed because somebody else changed
// the table between its reading and its writing (EAGAIN). A restore that takes
// no lock does not say why a commit failed.
func (r restore) interrupted(failed *run.Error, refused *RestoreError) bool {
	return refused.Line > 0 && !refused.Test &&
		(strings.Contains(failed.Stderr, "Resource temporarily unavailable") || !r.can.waits && refused.Text == "COMMIT" && failed.Status > 0)
}

// unloaded is what is left of a script that failed at a line, from 1: the tables
// before that line's were committed.
func unloaded(script string, line int) string {
	lines := strings.SplitAfter(script, "\n")
	from := 0
	for i, l := range lines[:line-1] {
		if l == "COMMIT\n" {
			from = i + 1
		}
	}
	return strings.Join(lines[from:], "")
}

// restoreCommand finds the iptables-restore that speaks to a backend: the
// plain one if it does, else the one that is named after it.
func (t Tools) restoreCommand(ctx context.Context, f host.Family, b host.Backend) (string, error) {
	plain := command(f) + "-restore"
	if _, err := run.LookPath(plain); err != nil {
		return "", err
	}
	got := backendOf(plain)
	if got == "" {
		got, _ = t.askVersion(ctx, plain)
	}
	if got == b {
		return plain, nil
	}
	named := fmt.Sprintf("%s-%s-restore", command(f), b)
	_, err := run.LookPath(named)
	return named, err
}

// askRelease asks for a family's release without having a module loaded, as
// iptables-nft does to whom asks it itself: it opens its socket first. The save
// of releases before 1.8, which have the legacy backend alone, does not tell.
func (t Tools) askRelease(ctx context.Context, f host.Family) (host.Backend, string) {
	if b, v := t.askVersion(ctx, command(f)+"-save"); v != "" {
		return b, v
	}
	return t.askVersion(ctx, command(f))
}

// askVersion asks a command itself, for installations where neither links nor
// headers tell: "iptables v1.8.9 (nf_tables)". Releases before 1.8 have the
// legacy backend alone and do not name it.
func (t Tools) askVersion(ctx context.Context, name string) (host.Backend, string) {
	out, err := t.runner().Run(ctx, run.Cmd{Path: name, Args: []string{"--version"}})
	if err != nil {
		return host.Legacy, ""
	}
	return Version(string(out))
}

// Counters are what a rule has seen since it was loaded.
type Counters struct {
	Rule    string // as iptables-save prints it behind "-A CHAIN "
	Packets uint64
	Bytes   uint64
}

// Counters reads the counters of one chain's rules, in order, through plain
// iptables: a point read for verify, which needs no whole table. A chain that
// does not exist is an error.
func (t Tools) Counters(f host.Family, table, chain string) ([]Counters, error) {
	path, err := run.LookPath(command(f))
	if err != nil {
		return nil, explain(f, err)
	}
	proto := goiptables.ProtocolIPv4
	if f == host.IPv6 {
		proto = goiptables.ProtocolIPv6
	}
	ipt, err := goiptables.New(goiptables.IPFamily(proto), goiptables.Path(path), goiptables.Timeout(max(1, int(t.wait().Seconds()))))
	if err != nil {
		return nil, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	lines, err := ipt.ListWithCounters(table, chain)
	if err != nil {
		return nil, fmt.Errorf("reading the counters of %s in table %s: %w", chain, table, err)
	}
	var counters []Counters
	for _, line := range lines {
		// "-A CHAIN … -c packets bytes", the counters before the target or last.
		rest, ok := strings.CutPrefix(line, "-A "+chain+" ")
		if !ok {
			continue
		}
		c, err := cutCounters(rest)
		if err != nil {
			return nil, fmt.Errorf("reading the counters of %s in table %s: %w", chain, table, err)
		}
		counters = append(counters, c)
	}
	return counters, nil
}

// errNoCounters is a line of iptables -v -S without "-c packets bytes".
var errNoCounters = errors.New("iptables printed a rule without counters")

func cutCounters(rule string) (Counters, error) {
	words := Words(rule)
	for i := len(words) - 3; i >= 0; i-- {
		if words[i] != "-c" {
			continue
		}
		packets, err1 := strconv.ParseUint(words[i+1], 10, 64)
		bytes, err2 := strconv.ParseUint(words[i+2], 10, 64)
		text := fmt.Sprintf("-c %d %d", packets, bytes)
		at := strings.LastIndex(rule, text)
		if err1 != nil || err2 != nil || at < 0 {
			continue
		}
		rule = strings.TrimSpace(strings.TrimRight(rule[:at], " ") + rule[at+len(text):])
		return Counters{Rule: rule, Packets: packets, Bytes: bytes}, nil
	}
	return Counters{}, errNoCounters
}

// denied reports whether a command failed because it was not run by root.
func denied(e *run.Error) bool {
	return strings.Contains(e.Stderr, "you must be root") || strings.Contains(e.Stderr, "Permission denied") || strings.Contains(e.Stderr, "Operation not permitted")
}

// explain turns what went wrong with a command into what to do about it.
func explain(f host.Family, err error) error {
	var failed *run.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: %w", ErrNotInstalled, err)
	case errors.As(err, &failed) && denied(failed):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return fmt.Errorf("running iptables for %s: %w", f, err)
}
