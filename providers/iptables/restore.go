package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

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
	return t.restore(ctx, f, b, TestSections(sections), true)
}

// Commit loads sections, in order, each as one: the kernel takes all of a
// section or nothing of it. A section that fails leaves those before it in
// place and those behind it out.
//
// Errors: *RestoreError, *LockedError, ErrNotInstalled, ErrNotPermitted.
func (t Tools) Commit(ctx context.Context, f host.Family, b host.Backend, sections []change.Section) error {
	return t.restore(ctx, f, b, sections, false)
}

// Replace makes tables what they were when iptables-save printed them: what
// stands in them goes. Each happens whole or not at all. Counters start anew.
// Errors are those of Commit.
func (t Tools) Replace(ctx context.Context, f host.Family, b host.Backend, tables []xtables.TableLines) error {
	var script strings.Builder
	for _, table := range tables {
		script.WriteString("*" + table.Name + "\n")
		for _, l := range append([]string{table.Name}, table.Lines...) {
			if strings.ContainsAny(l, "\n\x00") {
				return fmt.Errorf("restoring table %q: a line of it has a line break", table.Name)
			}
		}
		for _, l := range table.Lines {
			if strings.HasPrefix(l, ":") {
				l += " [0:0]"
			} else if !strings.HasPrefix(l, "-A ") {
				return fmt.Errorf("restoring table %q: %q is neither a chain nor a rule", table.Name, l)
			}
			script.WriteString(l + "\n")
		}
		script.WriteString("COMMIT\n")
	}
	return t.load(ctx, f, b, script.String())
}

func (t Tools) restore(ctx context.Context, f host.Family, b host.Backend, sections []change.Section, test bool) error {
	script, err := Script(sections)
	if err != nil {
		return err
	}
	args := []string{"--noflush"}
	if test {
		args = append(args, "--test")
	}
	return t.load(ctx, f, b, script, args...)
}

// load gives a script to iptables-restore.
func (t Tools) load(ctx context.Context, f host.Family, b host.Backend, script string, args ...string) error {
	if script == "" {
		return nil
	}
	name, err := t.restoreCommand(ctx, f, b)
	if err != nil {
		return explain(f, err)
	}
	test := slices.Contains(args, "--test")
	args = append(args, "-w", strconv.Itoa(max(1, int(t.wait().Seconds()))))
	_, err = t.runner().Run(ctx, run.Cmd{Path: name, Args: args, Stdin: script})
	var failed *run.Error
	if !errors.As(err, &failed) {
		return explain(f, err)
	}
	if strings.Contains(failed.Stderr, "xtables lock") {
		return &LockedError{Path: lockPath, Waited: t.wait(), Holder: lockHolder(lockPath)}
	}
	if denied(failed) {
		return explain(f, err)
	}
	return newRestoreError(name, script, test, failed)
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
