package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ctplan": func() {
		e := systemEnv()
		// What a script cannot set up: another user, and a terminal.
		if uid, err := strconv.Atoi(e.getenv("CTPLAN_TEST_EUID")); err == nil {
			e.euid = uid
		}
		if e.getenv("CTPLAN_TEST_TERMINAL") != "" {
			e.stdinTerminal, e.stdoutTerminal, e.stderrTerminal, e.width = true, true, true, 80
		}
		if args := os.Args[1:]; len(args) > 0 && args[0] == "interrupted" {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			os.Exit(run(ctx, args[1:], e))
		}
		os.Exit(interruptible(os.Args[1:], e))
	}})
}

// TestScripts runs what needs no host: it never reads this machine, because
// every plan is made from a snapshot file.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *golden.Update,
		RequireExplicitExec: false,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "generate": generate},
	})
}

// TestHostScripts runs ctplan for real, each script in namespaces of its own,
// once a backend.
func TestHostScripts(t *testing.T) {
	for _, backend := range []host.Backend{host.NFT, host.Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			probe := nstest.New(t) // skips or fails where there can be none
			probe.Use(backend)
			testscript.Run(t, testscript.Params{
				Dir:                "testdata/host",
				UpdateScripts:      *golden.Update,
				RequireUniqueNames: true,
				Setup: func(env *testscript.Env) error {
					tb, ok := env.T().(testing.TB)
					if !ok {
						return errors.New("testscript runs without a testing.TB")
					}
					ns := nstest.New(tb, "/etc", "/var/lib")
					ns.Use(backend)
					ns.Dir = env.WorkDir
					env.Values["ns"] = ns
					env.Setenv("BACKEND", string(backend))
					// The last release that is refused, and the first that is served.
					too, first := "1.4.20", "1.4.21"
					if backend == host.NFT {
						too, first = "1.8.1", "1.8.2"
					}
					env.Setenv("TOO_OLD", too)
					env.Setenv("SERVED", first)
					return setup(env)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"ns": inNamespace, "generate": generate, "release": release},
			})
		})
	}
}

// setup gives every script the snapshots of testdata/snapshot.
func setup(env *testscript.Env) error {
	files, err := filepath.Glob("testdata/snapshot/*.json")
	if err != nil {
		return err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(env.WorkDir, filepath.Base(f)), data, 0o600); err != nil {
			return err
		}
	}
	env.Setenv("TERM", "xterm")
	return nil
}

// exits is "exits STATUS CMD ARG...": exec with its exact exit status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, args := wanted(ts, neg, args)
	checkStatus(ts, want, ts.Exec(args[0], args[1:]...), args)
}

// inNamespace is "ns [STATUS] CMD ARG...": runs CMD in the script's namespaces.
func inNamespace(ts *testscript.TestScript, neg bool, args []string) {
	want := 0
	if len(args) > 0 {
		if _, err := strconv.Atoi(args[0]); err == nil {
			want, args = wanted(ts, neg, args)
		}
	}
	ns := ts.Value("ns").(*nstest.NS)
	cmd := ns.Command(args[0], args[1:]...)
	// The folder with ctplan comes behind the one with the backend's iptables.
	bin, _, _ := strings.Cut(ts.Getenv("PATH"), ":")
	for i, kv := range cmd.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			cmd.Env[i] = "PATH=" + path + ":" + bin
		}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	ts.Stdout().Write(stdout.Bytes())
	ts.Stderr().Write(stderr.Bytes())
	ts.Logf("[stdout]\n%s[stderr]\n%s", stdout.String(), stderr.String())
	checkStatus(ts, want, err, args)
}

// release is "release VERSION": iptables says from now on that it is that one.
func release(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: release VERSION")
	}
	ts.Value("ns").(*nstest.NS).UseBuild(nstest.StandIn(host.Backend(ts.Getenv("BACKEND")), args[0]))
}

func wanted(ts *testscript.TestScript, neg bool, args []string) (int, []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: STATUS CMD ARG...")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	return n, args[1:]
}

func checkStatus(ts *testscript.TestScript, want int, err error, args []string) {
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit status %d, want %d", strings.Join(args, " "), got, want)
	}
}

// generate is "generate big|binary|newline-name FILE": files that a script
// cannot hold.
func generate(ts *testscript.TestScript, _ bool, args []string) {
	var data []byte
	switch args[0] {
	case "big":
		data = bytes.Repeat([]byte("# ten megabytes of comments\n"), 10<<20/28)
	case "binary":
		data = []byte("\x7fELF\x02\x01\x01\x00\xff\xfe\x00")
	default:
		ts.Fatalf("generate %s: no such kind", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o644))
}
