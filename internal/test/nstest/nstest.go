// Package nstest gives tests a network and mount namespace of their own, so
// that real iptables rules and files under /etc can be changed without the
// machine noticing. Tests alone import it.
//
// There are two ways in. New makes namespaces and runs commands in them, which
// is how a built binary is tested end to end:
//
//	ns := nstest.New(t, "/etc", "/var/lib")   // private copies of both
//	ns.Use(planner.Legacy)                    // iptables means iptables-legacy
//	ns.Run("iptables", "-A", "INPUT", "-j", "ACCEPT")
//	cmd := ns.Command(bin, "plan", dir)       // an *exec.Cmd, for exit statuses
//
// Inside runs the calling test once more, in a child process that stands
// wholly in fresh namespaces, for Go code that must be there itself:
//
//	func TestRead(t *testing.T) {
//		nstest.Inside(t, func(ns *nstest.NS) {
//			ns.Use(planner.NFT)
//			... // every goroutine is in the namespaces
//		})
//	}
//
// In both, lo is up, nothing is routed, /run is an empty tmpfs (so that xtables.lock and
// ctplan.lock are private) and everything dies with the test process. What no
// namespace can make private, the sizes of the table, is for Machine. Off root
// tests are skipped, except under CI=true, where they fail.
package nstest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// insideEnv names the test that a child of Inside runs.
const insideEnv = "CTPLAN_NSTEST_INSIDE"

// NS is a network and mount namespace.
type NS struct {
	Dir string // working directory of commands; as the test's own at first

	t    testing.TB
	pid  int // of the process that holds the namespaces; 0: our own
	path string
}

// New makes fresh namespaces that live as long as the test. Each folder in
// private is replaced in there by a copy of itself on a tmpfs.
func New(t testing.TB, private ...string) *NS {
	t.Helper()
	need(t)
	share(t)
	cmd := exec.Command("/bin/sh", "-c", setup(private)+" && echo ready && exec cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	Start(t, cmd) // cat ends with its standard input, at the latest with this process
	return newNS(t, cmd.Process.Pid)
}

// Start starts a command that says "ready" on a line of its own when it is, and
// ends when its standard input does. It waits for that line. stop ends the
// command and returns what else it printed; the end of the test does so too.
func Start(t testing.TB, cmd *exec.Cmd) (stop func() []byte) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", cmd, err)
	}
	stop = sync.OnceValue(func() []byte {
		stdin.Close()
		rest, _ := io.ReadAll(stdout)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", cmd, err, stderr.String())
		}
		return rest
	})
	t.Cleanup(func() { stop() })
	if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("%s did not get ready: %v", cmd, err) // stop says why
	}
	return stop
}

// Inside calls fn in a child of its own, which runs this one test again and
// stands wholly in fresh namespaces; the child's verdict becomes the test's.
// It wants a top-level test that does nothing else and is not parallel.
func Inside(t *testing.T, fn func(ns *NS), private ...string) {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		fn(newNS(t, 0))
		return
	}
	need(t)
	share(t)
	script := setup(private) + ` && exec "$0" "$@"`
	args := []string{"-c", script, os.Args[0], "-test.run=^" + t.Name() + "$", "-test.v=true"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name())
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("in its own namespaces: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skipf("in its own namespaces:\n%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Fatalf("in its own namespaces the test did not run:\n%s", out)
	}
	t.Logf("in its own namespaces:\n%s", out)
}

// Use makes iptables, ip6tables and their -save and -restore mean the backend,
// for all commands from now on, by a folder of symbolic links first in PATH.
// The test process's own PATH is set too when it stands inside.
func (ns *NS) Use(b host.Backend) {
	ns.t.Helper()
	multi, err := exec.LookPath("/usr/sbin/xtables-" + string(b) + "-multi")
	if err != nil {
		testhost.Lacks(ns.t, fmt.Sprintf("the %s backend of iptables is not installed", b))
	}
	ns.use(multi)
}

// use makes iptables' commands links to a program that tells them by their names.
func (ns *NS) use(multi string) {
	ns.t.Helper()
	dir := ns.t.TempDir()
	for _, cmd := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if err := os.Symlink(multi, filepath.Join(dir, cmd+suffix)); err != nil {
				ns.t.Fatal(err)
			}
		}
	}
	ns.path = dir + ":" + basePath()
	if ns.pid == 0 {
		os.Setenv("PATH", ns.path)
	}
}

// Command returns a command that will run in the namespaces, in ns.Dir.
// Setting its Dir has no effect; set ns.Dir before.
func (ns *NS) Command(name string, args ...string) *exec.Cmd {
	var cmd *exec.Cmd
	if ns.pid == 0 {
		cmd = exec.Command("/usr/bin/env", append([]string{name}, args...)...)
		cmd.Dir = ns.Dir
	} else {
		proc := fmt.Sprintf("/proc/%d/ns/", ns.pid)
		cmd = exec.Command("nsenter", append([]string{
			"--net=" + proc + "net", "--mount=" + proc + "mnt", "--wdns=" + ns.Dir, "--", name}, args...)...)
	}
	cmd.Env = append(os.Environ(), "PATH="+ns.path, "LC_ALL=C")
	return cmd
}

// Run runs a command, fails the test if it fails, and returns what it printed
// on standard output.
func (ns *NS) Run(name string, args ...string) string {
	ns.t.Helper()
	return ns.RunInput("", name, args...)
}

// RunInput is Run with standard input.
func (ns *NS) RunInput(stdin, name string, args ...string) string {
	ns.t.Helper()
	cmd := ns.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		ns.t.Fatalf("%s %s: %v\n%s\ninput:\n%s", name, strings.Join(args, " "), err, stderr.String(), stdin)
	}
	return stdout.String()
}

// Path returns where a file of the namespaces is seen from outside.
func (ns *NS) Path(name string) string {
	if ns.pid == 0 {
		return name
	}
	return filepath.Join("/proc", strconv.Itoa(ns.pid), "root", name)
}

func newNS(t testing.TB, pid int) *NS {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return &NS{t: t, pid: pid, Dir: dir, path: basePath()}
}

// need skips or fails a test that the machine cannot run.
func need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		testhost.Lacks(t, "needs root: namespaces and iptables")
	}
	for _, tool := range []string{"nsenter", "ip", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			testhost.Lacks(t, "needs "+tool+" (packages util-linux, mount and iproute2)")
		}
	}
}

// setup is the shell script that furnishes new namespaces.
func setup(private []string) string {
	var b strings.Builder
	b.WriteString("mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && for f in /proc/sys/net/ipv[46]/conf/all/forwarding; do echo 0 >$f; done")
	for i, dir := range private {
		fmt.Fprintf(&b, " && mkdir -p /run/.private/%d '%s' && cp -a '%s/.' /run/.private/%d/ && mount --bind /run/.private/%d '%s'", i, dir, dir, i, i, dir)
	}
	return b.String()
}

func basePath() string {
	return os.Getenv("PATH") + ":/usr/sbin:/sbin:/usr/bin:/bin"
}
