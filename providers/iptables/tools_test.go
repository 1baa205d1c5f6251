package iptables_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

var backends = []host.Backend{host.NFT, host.Legacy}

// counting counts the processes that a Tools starts.
type counting struct {
	run.Exec
	commands chan string
}

func (c counting) Run(ctx context.Context, cmd run.Cmd) ([]byte, error) {
	c.commands <- cmd.Path
	return c.Exec.Run(ctx, cmd)
}

func TestReadTellsBackends(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		commands := make(chan string, 100)
		tools := iptables.Tools{Runner: counting{commands: commands}}
		reads := func(processes int) []iptables.Raw {
			t.Helper()
			raws, notes, err := tools.Read(t.Context())
			if err != nil || len(notes) > 0 {
				t.Fatal(err, notes)
			}
			if len(commands) != processes {
				t.Errorf("%d processes, want %d", len(commands), processes)
			}
			for len(commands) > 0 {
				<-commands
			}
			return raws
		}
		for _, b := range backends {
			ns.Use(b)
			// Before any table there is no header to tell the backend and the version by.
			for _, raw := range reads(3) {
				if raw.Backend != b || !raw.Primary || raw.Text != "" || !strings.HasPrefix(raw.Version, "1.") {
					t.Errorf("empty host, %s: %+v", b, raw)
				}
			}
		}
		for _, b := range backends {
			ns.Use(b)
			ns.Run("iptables", "-A", "INPUT", "-m", "comment", "--comment", string(b), "-j", "ACCEPT")
		}
		for i, b := range backends {
			ns.Use(b)
			other := backends[1-i]
			raws := reads(3) // IPv6 has rules in neither
			if len(raws) != 3 {
				t.Fatalf("%+v", raws)
			}
			for j, want := range []iptables.Raw{
				{Family: host.IPv4, Backend: b, Primary: true, Version: "1.8.", Text: inputRule(b)},
				{Family: host.IPv4, Backend: other, Version: "1.8.", Text: inputRule(other)},
			} {
				if raws[j].Version = strings.TrimRight(raws[j].Version, "0123456789"); raws[j].Version != "1.8." {
					t.Errorf("version %q", raws[j].Version)
				}
				if diff := cmp.Diff(want, raws[j], unparsed); diff != "" {
					t.Error(diff)
				}
			}
			// Traffic moves counters, and the clock moves: the text must not.
			before := reads(3)
			ns.Run("bash", "-c", "echo > /dev/udp/127.0.0.1/9")
			if diff := cmp.Diff(before, reads(3), unparsed); diff != "" {
				t.Error(diff)
			}
		}
	})
}

func TestReadNotesWhatIptablesCannotShow(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		if _, err := exec.LookPath("nft"); err != nil {
			testhost.Lacks(t, "needs nft to make such rules")
		}
		ns.Use(host.NFT)
		ns.Run("iptables", "-A", "INPUT", "-j", "ACCEPT")
		// A state match between others is native nftables to iptables-nft.
		ns.Run("nft", "add rule ip filter INPUT meta length 5 ct state new accept")
		raws, notes, err := iptables.Tools{}.Read(t.Context())
		if err != nil || raws[0].Text != "" || len(notes) > 0 || !slices.Equal(raws[0].Incompatible, []string{"filter"}) {
			t.Error(raws, notes, err)
		}
	})
}

// unparsed leaves out the ruleset that comes with the text.
var unparsed = cmpopts.IgnoreUnexported(iptables.Raw{})

func inputRule(b host.Backend) string {
	return "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -m comment --comment " + string(b) + " -j ACCEPT\nCOMMIT\n"
}

// TestCommit runs what a plan does and what takes it back, and holds both to
// the rules that were there: sections of one table that depend on each other,
// with another table between them.
func TestCommit(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		const before = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" +
			"-A INPUT -i lo -j ACCEPT\n" +
			"-A INPUT -m state --state NEW -m comment --comment \"it\\'s \\\"x\\\" \\\\\" -j ACCEPT\n" +
			"-A INPUT -j DROP\nCOMMIT\n"
		stateRule := `-m state --state NEW -m comment --comment "it\'s \"x\" \\" -j ACCEPT`
		step := change.Step{Rules: &change.RulesStep{Sections: []change.Section{
			{Table: "filter", Ops: []change.RuleOp{
				{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{"-p tcp -m comment --comment a -j ACCEPT"}},
			}},
			{Table: "raw", Ops: []change.RuleOp{
				{Kind: change.SetChain, Chain: "CTPLAN-PREROUTING", Rules: []string{"-p tcp -m comment --comment a -j CT --notrack"}},
				{Kind: change.InsertRule, Chain: "PREROUTING", Pos: 1, Rule: "-j CTPLAN-PREROUTING"},
			}},
			{Table: "filter", Ops: []change.RuleOp{
				{Kind: change.InsertRule, Chain: "INPUT", Pos: 2, Rule: "-j CTPLAN-INPUT"},
				{Kind: change.DeleteRule, Chain: "INPUT", Pos: 3, Rule: stateRule},
			}},
		}}}
		for _, b := range backends {
			ns.Use(b)
			tools := iptables.Tools{}
			ns.RunInput(before, "iptables-restore", "-w", "5")
			for _, s := range []change.Step{step, step.Inverse()} {
				if err := tools.Test(t.Context(), host.IPv4, b, s.Rules.Sections); err != nil {
					t.Fatalf("%s: %v", b, err)
				}
				if err := tools.Commit(t.Context(), host.IPv4, b, s.Rules.Sections); err != nil {
					t.Fatalf("%s: %v", b, err)
				}
			}
			raws, _, err := tools.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, raws[0].Text); diff != "" {
				t.Errorf("%s: taken back: %s", b, diff)
			}
			// Replacing a chain of our own empties it first.
			for i, rule := range []string{"-p tcp -j ACCEPT", "-p udp -j ACCEPT"} {
				op := change.RuleOp{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{rule}, Existed: i > 0}
				if err := tools.Commit(t.Context(), host.IPv4, b, []change.Section{{Table: "filter", Ops: []change.RuleOp{op}}}); err != nil {
					t.Fatal(err)
				}
				if got := ns.Run("iptables", "-S", "CTPLAN-INPUT"); got != "-N CTPLAN-INPUT\n-A CTPLAN-INPUT "+rule+"\n" {
					t.Errorf("%s: %s", b, got)
				}
			}
			// The other backend is written through by name.
			op := change.RuleOp{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j ACCEPT"}
			other := backends[0]
			if other == b {
				other = backends[1]
			}
			if err := tools.Commit(t.Context(), host.IPv6, other, []change.Section{{Table: "filter", Ops: []change.RuleOp{op}}}); err != nil {
				t.Error(err)
			}
			if got := ns.Run("ip6tables-"+string(other), "-S", "INPUT"); !strings.Contains(got, "-A INPUT -j ACCEPT") {
				t.Errorf("%s was not written: %s", other, got)
			}
			ns.Run("ip6tables-"+string(other), "-F")
			ns.Run("iptables", "-P", "INPUT", "ACCEPT")
			ns.Run("iptables", "-F")
			ns.Run("iptables", "-X")
		}
	})
}

func TestRefusedRestoreNamesTheLine(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, b := range backends {
			ns.Use(b)
			for _, bad := range []change.RuleOp{
				{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-p tcp --nonsense \x1b[31m"},
				{Kind: change.DeleteRule, Chain: "INPUT", Pos: 1, Rule: "-p tcp -j DROP"},
				{Kind: change.InsertRule, Chain: "INPUT", Pos: 99, Rule: "-p tcp -j DROP"},
			} {
				secs := []change.Section{{Table: "filter", Ops: []change.RuleOp{
					{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-p udp -j ACCEPT"}, bad,
				}}}
				err := iptables.Tools{}.Commit(t.Context(), host.IPv4, b, secs)
				var refused *iptables.RestoreError
				if !errors.As(err, &refused) || refused.Line != 3 || !strings.Contains(refused.Text, bad.Rule) {
					t.Errorf("%s: %#v", b, err)
				} else if strings.Contains(err.Error(), "\x1b") {
					t.Errorf("the message carries an escape sequence: %q", err)
				}
				if got := ns.Run("iptables", "-S", "INPUT"); got != "-P INPUT ACCEPT\n" {
					t.Errorf("%s: something was loaded: %s", b, got)
				}
			}
		}
	})
}

func TestLockHeld(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.Legacy)
		f, err := os.OpenFile("/run/xtables.lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		// flock(1) inherits the open file and keeps the lock when we let go.
		holder := exec.Command("sleep", "60")
		holder.ExtraFiles = []*os.File{f}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
		secs := []change.Section{{Table: "filter", Ops: []change.RuleOp{{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j ACCEPT"}}}}
		begin := time.Now()
		err = iptables.Tools{Wait: time.Second}.Commit(t.Context(), host.IPv4, host.Legacy, secs)
		var locked *iptables.LockedError
		if !errors.As(err, &locked) || time.Since(begin) < 900*time.Millisecond {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
		if !strings.Contains(locked.Holder, "pid ") || !strings.Contains(locked.Holder, "iptables.test") {
			t.Errorf("holder %q", locked.Holder)
		}
		// Looking takes no lock.
		if _, _, err := (iptables.Tools{}).Read(t.Context()); err != nil {
			t.Error(err)
		}
		// Once it is let go, the restore that waits goes through.
		f.Close()
		time.AfterFunc(500*time.Millisecond, func() { holder.Process.Kill() })
		if err := (iptables.Tools{Wait: 5 * time.Second}).Commit(t.Context(), host.IPv4, host.Legacy, secs); err != nil {
			t.Error(err)
		}
		holder.Wait()
	})
}

func TestNotInstalled(t *testing.T) {
	missing := runner(func(c run.Cmd) ([]byte, error) { return nil, &exec.Error{Name: c.Path, Err: exec.ErrNotFound} })
	_, _, err := iptables.Tools{Runner: missing}.Read(t.Context())
	if !errors.Is(err, iptables.ErrNotInstalled) || !strings.Contains(err.Error(), "install the package iptables") {
		t.Error(err)
	}
	only4 := runner(func(c run.Cmd) ([]byte, error) {
		if strings.HasPrefix(c.Path, "ip6") {
			return nil, &exec.Error{Name: c.Path, Err: exec.ErrNotFound}
		}
		return nil, nil
	})
	raws, notes, err := iptables.Tools{Runner: only4}.Read(t.Context())
	if err != nil || len(raws) == 0 || raws[0].Family != host.IPv4 || len(notes) == 0 || !strings.Contains(notes[0], "ip6tables") {
		t.Error(raws, notes, err)
	}
}

func TestNoIPv6InTheKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		no6 := runner(func(c run.Cmd) ([]byte, error) {
			if strings.HasPrefix(c.Path, "ip6") {
				return nil, &run.Error{Path: c.Path, Status: 3, Stderr: "can't initialize ip6tables table `filter': Address family not supported by protocol"}
			}
			return nil, nil
		})
		if _, _, err := (iptables.Tools{Runner: no6}).Read(t.Context()); err == nil {
			t.Error("a failure is not taken for one although the kernel has IPv6")
		}
		ns.Run("mount", "-t", "tmpfs", "tmpfs", "/proc/sys/net")
		raws, notes, err := iptables.Tools{Runner: no6}.Read(t.Context())
		if err != nil || len(raws) != 1 || len(notes) != 1 || !strings.Contains(notes[0], "without IPv6") {
			t.Error(raws, notes, err)
		}
	})
}

type runner func(run.Cmd) ([]byte, error)

func (r runner) Run(_ context.Context, c run.Cmd) ([]byte, error) { return r(c) }

func TestNotRoot(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, b := range backends {
			ns.Use(b)
			asNobody := runner(func(c run.Cmd) ([]byte, error) {
				path, err := run.LookPath(c.Path)
				if err != nil {
					return nil, err
				}
				// The folder of links is root's: name the program itself.
				args := append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "/usr/sbin/xtables-" + string(b) + "-multi", path[strings.LastIndexByte(path, '/')+1:]}, c.Args...)
				return run.Exec{}.Run(t.Context(), run.Cmd{Path: "setpriv", Args: args, Stdin: c.Stdin})
			})
			ns.Run("iptables", "-A", "INPUT", "-j", "ACCEPT")
			tools := iptables.Tools{Runner: asNobody}
			if _, _, err := tools.Read(t.Context()); !errors.Is(err, iptables.ErrNotPermitted) {
				t.Errorf("%s: reading: %v", b, err)
			}
			secs := []change.Section{{Table: "filter", Ops: []change.RuleOp{{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j ACCEPT"}}}}
			if err := tools.Commit(t.Context(), host.IPv4, b, secs); !errors.Is(err, iptables.ErrNotPermitted) {
				t.Errorf("%s: writing: %v", b, err)
			}
		}
	})
}

func TestCounters(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for _, b := range backends {
			ns.Use(b)
			const rule = `-p udp -m udp --dport 9 -m comment --comment "a.b" -j ACCEPT`
			ns.RunInput("*filter\n:CTPLAN-OUTPUT - [0:0]\n-A CTPLAN-OUTPUT "+rule+"\n-A CTPLAN-OUTPUT\n-I OUTPUT -j CTPLAN-OUTPUT\nCOMMIT\n", "iptables-restore", "--noflush")
			ns.Run("bash", "-c", "echo > /dev/udp/127.0.0.1/9")
			got, err := iptables.Tools{}.Counters(host.IPv4, "filter", "CTPLAN-OUTPUT")
			if err != nil || len(got) != 2 || got[0].Rule != rule || got[0].Packets != 1 || got[0].Bytes != 29 {
				t.Errorf("%s: %+v, %v", b, got, err)
			}
			if _, err := (iptables.Tools{}).Counters(host.IPv4, "filter", "CTPLAN-NONE"); err == nil {
				t.Errorf("%s: no error for a chain that does not exist", b)
			}
			ns.Run("iptables", "-F", "OUTPUT")
		}
	})
}

func TestScriptRefusesBreakingOut(t *testing.T) {
	for _, op := range []change.RuleOp{
		{Kind: change.SetChain, Chain: "X\nCOMMIT"},
		{Kind: change.SetChain, Chain: "X Y"},
		{Kind: change.SetChain, Chain: ""},
		{Kind: change.SetChain, Chain: "X", Rules: []string{"-j ACCEPT\n-A INPUT -j ACCEPT"}},
		{Kind: change.InsertRule, Chain: "X", Pos: 1, Rule: "-j ACCEPT\nCOMMIT\n*nat"},
		{Kind: change.DeleteRule, Chain: "X", Rule: "a\x00b"},
		{Kind: change.DeleteRule, Chain: "X", Rule: "a\rb"},
		{Kind: change.DeleteRule, Chain: "X", Rule: strings.Repeat("a", 10240)},
		{Kind: "other", Chain: "X"},
	} {
		if s, err := iptables.Script([]change.Section{{Table: "filter", Ops: []change.RuleOp{op}}}); err == nil {
			t.Errorf("%+v: %q", op, s)
		}
	}
	if s, err := iptables.Script([]change.Section{{Table: "filter\n*nat"}}); err == nil {
		t.Errorf("%q", s)
	}
}

// FuzzScript holds scripts to the lines that their operations call for.
func FuzzScript(f *testing.F) {
	f.Add("filter", "CTPLAN-INPUT", "-j ACCEPT", 1)
	f.Add("*", ":", "-A X \"", -5)
	f.Add("raw\n", "a\tb", "COMMIT\n*nat", 0)
	f.Fuzz(func(t *testing.T, table, chain, rule string, pos int) {
		s, err := iptables.Script([]change.Section{{Table: table, Ops: []change.RuleOp{
			{Kind: change.SetChain, Chain: chain, Rules: []string{rule, rule}},
			{Kind: change.SetChain, Chain: chain, Existed: true},
			{Kind: change.InsertRule, Chain: chain, Pos: pos, Rule: rule},
			{Kind: change.DeleteRule, Chain: chain, Rule: rule},
			{Kind: change.DropChain, Chain: chain},
		}}})
		if err != nil {
			return
		}
		lines := strings.Split(s, "\n")
		if len(lines) != 11 || lines[0] != "*"+table || lines[9] != "COMMIT" || lines[10] != "" {
			t.Fatalf("%q", s)
		}
		for i, verb := range []string{"-N ", "-A ", "-A ", "-F ", "-I ", "-D ", "-F ", "-X "} {
			if !strings.HasPrefix(lines[i+1], verb+chain) {
				t.Errorf("line %q", lines[i+1])
			}
		}
	})
}

func TestSavedPaths(t *testing.T) {
	if got := iptables.SavedPaths(t.TempDir(), declared.Files{}, nil); len(got) != 0 {
		t.Error(got)
	}
	root := testhost.Tree(t, map[string]string{"/etc/iptables/rules.v4": "", "/etc/sysconfig/ip6tables": ""})
	want := []iptables.SavedPath{{Family: host.IPv4, Path: "/etc/iptables/rules.v4"}, {Family: host.IPv6, Path: "/etc/sysconfig/ip6tables"}}
	if diff := cmp.Diff(want, iptables.SavedPaths(root, declared.Files{}, nil)); diff != "" {
		t.Error(diff)
	}
	want[0].Path = "/srv/absent"
	if diff := cmp.Diff(want, iptables.SavedPaths(root, declared.Files{RulesV4: "/srv/absent"}, nil)); diff != "" {
		t.Error(diff)
	}
}
