package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
)

// Roles of the test binary, when it is not there to test.
const (
	roleEnv     = "CTPLAN_TEST_ROLE"
	rootEnv     = "CTPLAN_TEST_ROOT"
	hangEnv     = "CTPLAN_TEST_HANG" // the point and index at which the applier hangs
	applierRole = "applier"
	watchRole   = "watchdog"
)

const within = time.Second

func TestMain(m *testing.M) {
	root := os.Getenv(rootEnv)
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case watchRole:
		os.WriteFile(filepath.Join(root, "watchdog.pid"), []byte(strconv.Itoa(os.Getpid())), 0o600)
		id, _ := strconv.Atoi(os.Args[1])
		if err := Watchdog(context.Background(), diskEnv(root), id); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case killRole:
		within, _ := time.ParseDuration(os.Args[1])
		if err := killed(root, host.Backend(os.Getenv(hangEnv)), within); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case applierRole:
		env := diskEnv(root)
		env.Watch = func(ctx context.Context, id int) error {
			os.Setenv(roleEnv, watchRole)
			return StartWatchdog(ctx, env.Dir, os.Args[0], nil, id)
		}
		env.Fault = func(point string, i int) error {
			if fmt.Sprint(point, i) == os.Getenv(hangEnv) {
				time.Sleep(time.Hour)
			}
			return nil
		}
		_, err := Run(context.Background(), env, diskSteps(), Options{ConfirmWithin: within})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		time.Sleep(time.Hour) // the countdown
	}
}

// diskEnv is a host whose files are real, under root.
func diskEnv(root string) Env {
	h := newFake().host()
	h.Files = systemFiles{root}
	return Env{Host: h, Dir: filepath.Join(root, "state"), LockPath: filepath.Join(root, "lock"), Command: "ctplan test"}
}

func diskSteps() []change.Step {
	uid, gid := os.Getuid(), os.Getgid()
	return []change.Step{
		file(host.File{Path: "/etc/a", Exists: true, Content: "old", Mode: 0o644, UID: uid, GID: gid}, host.File{Path: "/etc/a", Exists: true, Content: "new"}),
		file(host.File{Path: "/etc/d/b"}, host.File{Path: "/etc/d/b", Exists: true, Content: "new", Mode: 0o644, UID: uid, GID: gid}),
	}
}

type scene struct {
	t       *testing.T
	root    string
	applier *exec.Cmd
	reap    func()
}

// stage starts an applier that hangs at a point, "" for one that gets through
// and waits for confirmation.
func stage(t *testing.T, hang string) *scene {
	t.Helper()
	root := memory(t)
	testhost.Lay(t, root, map[string]string{"/etc/a": "old"})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+applierRole, rootEnv+"="+root, hangEnv+"="+hang)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &scene{t, root, cmd, sync.OnceFunc(func() { cmd.Wait() })}
	t.Cleanup(func() {
		cmd.Process.Kill()
		s.reap()
		s.await("the watchdog's end", 10*time.Second, func() bool { return !s.watchdogRuns() })
	})
	return s
}

func (s *scene) state() string {
	a, _ := os.ReadFile(filepath.Join(s.root, "etc/a"))
	b, err := os.ReadFile(filepath.Join(s.root, "etc/d/b"))
	if err != nil {
		b = []byte("none")
	}
	return string(a) + " " + string(b)
}

func (s *scene) watchdog() int {
	data, _ := os.ReadFile(filepath.Join(s.root, "watchdog.pid"))
	pid, _ := strconv.Atoi(string(data))
	return pid
}

func (s *scene) watchdogRuns() bool {
	fields, err := stat(s.watchdog())
	return s.watchdog() > 0 && err == nil && fields[0] != "Z"
}

func (s *scene) outcome() journal.Outcome {
	_, o, _ := Waiting(filepath.Join(s.root, "state"), 1)
	return o
}

func (s *scene) await(what string, limit time.Duration, ok func() bool) {
	s.t.Helper()
	for begun := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > limit {
			s.t.Fatalf("after %s: no %s; files %q, outcome %q", limit, what, s.state(), s.outcome())
		}
	}
}

const (
	oldState = "old none"
	newState = "new new"
)

func TestNotConfirmed(t *testing.T) {
	for name, c := range map[string]struct {
		hang   string
		signal syscall.Signal // to the applier's process group, 0: none
		before string         // the state at that moment
	}{
		"nobody answers":          {"", 0, newState},
		"parent killed":           {"", syscall.SIGKILL, newState},
		"terminal gone":           {"", syscall.SIGHUP, newState},
		"killed between steps":    {"step1", syscall.SIGKILL, "new none"},
		"hung up between steps":   {"step1", syscall.SIGHUP, "new none"},
		"killed before committed": {"commit0", syscall.SIGKILL, newState},
		"hangs between steps":     {"step1", 0, "new none"},
		"stopped between steps":   {"step1", syscall.SIGSTOP, "new none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := stage(t, c.hang)
			s.await("change", 10*time.Second, func() bool {
				return s.state() == c.before && (c.hang != "" || s.outcome() == journal.Waiting)
			})
			begun := time.Now()
			if c.signal != 0 {
				syscall.Kill(-s.applier.Process.Pid, c.signal)
				go s.reap()
			}
			syscall.Kill(s.watchdog(), syscall.SIGHUP)
			s.await("rollback", within+2*time.Second, func() bool {
				return s.state() == oldState && s.outcome() == journal.WasUndone
			})
			t.Logf("old state back after %s", time.Since(begun))
			if _, err := os.Stat(filepath.Join(s.root, "etc/d")); err == nil {
				t.Error("the folder that was made still stands")
			}
			if _, err := Confirm(t.Context(), diskEnv(s.root), 0); !errors.Is(err, ErrNothingToConfirm) {
				t.Errorf("confirming too late: %v", err)
			}
		})
	}
}

// The end of a systemd service or session kills everything in its cgroup; the
// watchdog is not there any more.
func TestServiceEnds(t *testing.T) {
	var group string
	for _, root := range systemdGroups {
		dir := filepath.Join(root, fmt.Sprintf("ctplan-test-%d", os.Getpid()))
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil && os.Mkdir(dir, 0o755) == nil {
			group = dir
			break
		}
	}
	if group == "" {
		testhost.Lacks(t, "no cgroup can be made here")
	}
	t.Cleanup(func() { os.Remove(group) })
	move := func(to string) error { return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte("0"), 0) }
	home := filepath.Dir(group)
	if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(own)) {
			if name, ok := strings.CutPrefix(line, "0::"); ok && home != systemdGroups[2] {
				home = filepath.Join(home, strings.TrimSpace(name))
			} else if _, name, ok := strings.Cut(line, "name=systemd:"); ok && home == systemdGroups[2] {
				home = filepath.Join(home, strings.TrimSpace(name))
			}
		}
	}
	if err := move(group); err != nil {
		testhost.Lacks(t, err)
	}
	s := stage(t, "")
	s.await("change", 10*time.Second, func() bool { return s.outcome() == journal.Waiting })
	if err := move(home); err != nil {
		t.Fatal(err)
	}
	members, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	killed := strings.Fields(string(members))
	for _, pid := range killed {
		n, _ := strconv.Atoi(pid)
		syscall.Kill(n, syscall.SIGKILL)
	}
	if len(killed) != 1 || killed[0] != strconv.Itoa(s.applier.Process.Pid) {
		t.Errorf("in the cgroup are %q, want the applier %d alone", killed, s.applier.Process.Pid)
	}
	s.reap()
	s.await("rollback", within+2*time.Second, func() bool {
		return s.state() == oldState && s.outcome() == journal.WasUndone
	})
}

func TestConfirmed(t *testing.T) {
	t.Parallel()
	s := stage(t, "")
	s.await("change", 10*time.Second, func() bool { return s.outcome() == journal.Waiting })
	env := diskEnv(s.root)
	var pending *PendingError
	if _, err := Run(t.Context(), env, diskSteps(), Options{}); !errors.As(err, &pending) || !strings.Contains(err.Error(), "ctplan confirm") {
		t.Errorf("another apply: %v", err)
	}
	if _, err := Recover(t.Context(), env, nil); !errors.As(err, &pending) || pending.Left <= 0 {
		t.Errorf("recover: %v", err)
	}
	if left, _, err := Waiting(env.Dir, 1); left <= 0 || left > within || err != nil {
		t.Errorf("left %s, %v", left, err)
	}
	syscall.Kill(-s.applier.Process.Pid, syscall.SIGKILL)
	if _, err := Confirm(t.Context(), env, 0); err != nil {
		t.Fatal(err)
	}
	s.await("end of the watchdog", 2*time.Second, func() bool { return !s.watchdogRuns() })
	time.Sleep(within)
	if s.state() != newState || s.outcome() != journal.Committed {
		t.Errorf("files %q, outcome %q", s.state(), s.outcome())
	}
}

func TestRejected(t *testing.T) {
	t.Parallel()
	s := stage(t, "")
	s.await("change", 10*time.Second, func() bool { return s.outcome() == journal.Waiting })
	if r, err := Reject(t.Context(), diskEnv(s.root), nil); err != nil || len(r) != 1 {
		t.Fatal(r, err)
	}
	if s.state() != oldState {
		t.Errorf("files %q", s.state())
	}
}

// No watchdog, no first step.
func TestWatchdogFails(t *testing.T) {
	root := memory(t)
	testhost.Lay(t, root, map[string]string{"/etc/a": "old"})
	env := diskEnv(root)
	env.Watch = func(ctx context.Context, id int) error {
		return StartWatchdog(ctx, env.Dir, "/bin/false", nil, id)
	}
	_, err := Run(t.Context(), env, diskSteps(), Options{ConfirmWithin: time.Minute})
	if err == nil || !strings.Contains(err.Error(), "did not come up") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(filepath.Join(root, "etc/a")); string(data) != "old" {
		t.Errorf("a step was done: %q", data)
	}
	if p, err := Pending(env.Dir); p != nil || err != nil {
		t.Errorf("pending: %v %v", p, err)
	}
}
