package iptables_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// TestBuildsLoad has sections that go back to what they have put there loaded
// through each release at hand, and taken back.
func TestBuildsLoad(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		const before = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" +
			"-A INPUT -i lo -j ACCEPT\n-A INPUT -s 192.0.2.1/32 -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
		ops := []change.RuleOp{
			{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Rules: []string{"-p tcp -j ACCEPT", "-p udp -j ACCEPT"}},
			{Kind: change.InsertRule, Chain: "INPUT", Pos: 2, Rule: "-j CTPLAN-INPUT"},
			{Kind: change.InsertRule, Chain: "INPUT", Pos: 3, Rule: "-s 192.0.2.2/32 -j ACCEPT"},
			{Kind: change.InsertRule, Chain: "INPUT", Pos: 3, Rule: "-s 192.0.2.3/32 -j ACCEPT"},
			{Kind: change.InsertRule, Chain: "INPUT", Pos: 3, Rule: "-s 192.0.2.4/32 -j ACCEPT"},
			{Kind: change.SetChain, Chain: "CTPLAN-INPUT", Existed: true, Was: []string{"-p tcp -j ACCEPT", "-p udp -j ACCEPT"}, Rules: []string{"-p tcp -j ACCEPT"}},
			{Kind: change.DeleteRule, Chain: "INPUT", Pos: 6, Rule: "-s 192.0.2.1/32 -j ACCEPT"},
		}
		const after = "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j CTPLAN-INPUT\n-A INPUT -s 192.0.2.4/32 -j ACCEPT\n" +
			"-A INPUT -s 192.0.2.3/32 -j ACCEPT\n-A INPUT -s 192.0.2.2/32 -j ACCEPT\n-A INPUT -j DROP\n"
		step := change.Step{Rules: &change.RulesStep{Sections: []change.Section{{Table: "filter", Ops: ops}}}}
		for _, b := range slices.Concat(nstest.StandIns(), nstest.Builds(t)) {
			ns.UseBuild(b)
			ns.RunInput(before, "iptables-restore")
			for _, s := range []change.Step{step, step.Inverse()} {
				if err := (iptables.Tools{}).Test(t.Context(), host.IPv4, b.Backend, s.Rules.Sections); err != nil {
					t.Fatalf("%s: %v", b.Name, err)
				}
				if err := (iptables.Tools{}).Commit(t.Context(), host.IPv4, b.Backend, s.Rules.Sections); err != nil {
					t.Fatalf("%s: %v", b.Name, err)
				}
				if got := ns.Run("iptables", "-S", "INPUT"); s.Rules == step.Rules && got != after {
					t.Errorf("%s: there:\n%s", b.Name, got)
				}
			}
			raws, _, err := iptables.Tools{}.Read(t.Context())
			if err != nil || raws[0].Text != before || !strings.HasPrefix(b.Name, raws[0].Version) {
				t.Errorf("%s (%s), taken back: %v\n%s", b.Name, raws[0].Version, err, raws[0].Text)
			}
			ns.Run("iptables", "-P", "INPUT", "ACCEPT")
			ns.Run("iptables", "-F")
		}
	})
}

// TestLocksForOthers: for a restore that takes no lock, both locks are taken,
// waited for, and let go.
func TestLocksForOthers(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.UseBuild(nstest.StandIns()[0])
		secs := []change.Section{{Table: "filter", Ops: []change.RuleOp{{Kind: change.InsertRule, Chain: "INPUT", Pos: 1, Rule: "-j ACCEPT"}}}}
		file := func() (release func()) {
			fd, err := unix.Open("/run/xtables.lock", unix.O_RDONLY|unix.O_CREAT, 0o600)
			if err == nil {
				err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() { unix.Close(fd) }
		}
		socket := func() (release func()) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@xtables"})
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() { unix.Close(fd) }
		}
		for i, take := range []func() func(){file, socket} {
			release := take()
			err := iptables.Tools{Wait: time.Second}.Commit(t.Context(), host.IPv4, host.Legacy, secs)
			var locked *iptables.LockedError
			if !errors.As(err, &locked) {
				t.Errorf("lock %d held: %v", i, err)
			}
			time.AfterFunc(300*time.Millisecond, release)
			if err := (iptables.Tools{Wait: 5 * time.Second}).Commit(t.Context(), host.IPv4, host.Legacy, secs); err != nil {
				t.Errorf("lock %d let go: %v", i, err)
			}
			take()() // both are free again
		}
		file()()
	})
}

// TestGoesOnWhenInterrupted: where another writer got in between, what is
// committed is not loaded again.
func TestGoesOnWhenInterrupted(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		dir := t.TempDir()
		script := fmt.Sprintf(`#!/bin/bash
cat > %[1]s/script
echo >> %[1]s/calls
cat %[1]s/script >> %[1]s/seen
if [ $(wc -l < %[1]s/calls) -lt 3 ]; then
	echo "iptables-restore: line $(grep -n COMMIT %[1]s/script | sed -n '2p;$p' | head -n 1 | cut -d: -f1) failed: Resource temporarily unavailable." >&2
	exit 4
fi
`, dir)
		ns.Use(host.Legacy)
		if err := os.WriteFile(filepath.Join(dir, "xtables-legacy-multi"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("xtables-legacy-multi", filepath.Join(dir, "iptables-restore")); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		insert := func(table, chain string) change.Section {
			return change.Section{Table: table, Ops: []change.RuleOp{{Kind: change.InsertRule, Chain: chain, Pos: 1, Rule: "-j ACCEPT"}}}
		}
		secs := []change.Section{insert("filter", "INPUT"), insert("raw", "OUTPUT")}
		if err := (iptables.Tools{}).Commit(t.Context(), host.IPv4, host.Legacy, secs); err != nil {
			t.Fatal(err)
		}
		seen, _ := os.ReadFile(filepath.Join(dir, "seen"))
		if got := strings.Count(string(seen), "*filter"); got != 1 {
			t.Errorf("filter was loaded %d times:\n%s", got, seen)
		}
		if got := strings.Count(string(seen), "*raw"); got != 3 {
			t.Errorf("raw was tried %d times:\n%s", got, seen)
		}
	})
}
