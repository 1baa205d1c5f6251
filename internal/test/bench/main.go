// Command bench holds what ctplan costs against the tools that it stands on
// and those that it stands beside, as ratios: both are timed in turns, in one
// run on one machine, and the lower quartiles compared, since whatever else
// the machine does only adds. It is not a test, because a busy machine is no
// defect.
//
// It owns nothing of the program. Everything runs in network and mount
// namespaces of its own, one for each measurement.
//
//	sudo go run ./internal/test/bench    # make bench
//	sudo chrt -r 1 make bench       # on a machine that has other work
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// insideArg is the first argument of a bench that stands in its namespaces.
const insideArg = "--inside"

func run(args []string) error {
	if len(args) == 4 && args[0] == insideArg {
		return inside(args[1], args[2], args[3])
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, to make namespaces: sudo go run ./internal/test/bench")
	}
	dir, err := os.MkdirTemp("", "ctplan-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "ctplan")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "github.com/ctplan/ctplan/cmd/ctplan")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building ctplan: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Printf("%-50s %-7s %10s %10s %8s  %-8s %s\n", "job", "backend", "ctplan", "reference", "ratio", "target", "")
	for _, job := range jobs {
		for _, backend := range []string{"nft", "legacy"} {
			cmd := exec.Command(self, insideArg, job.name, backend, bin)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS}
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s on %s: %w", job.name, backend, err)
			}
		}
	}
	fmt.Print(legend)
	return nil
}

const legend = `
Lower quartiles of runs in turns. Memory is that of the largest process, with the commands that it runs.
Foreign rules: a fifth each by source and port with a comment, by source, interface and port list, by source alone,
by destination and port range between interfaces, and by source, port, TCP flags and rate in a chain of its own.
Accepts: TCP and UDP in turns, one local port each, so a rule in and a rule out for each; the reference restores the same rules.
`

// inside measures one job in the namespaces that this process stands in.
func inside(name, backend, bin string) error {
	if err := apart(); err != nil {
		return err
	}
	s, err := newSpace(backend, bin)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(jobs, func(j job) bool { return j.name == name })
	if i < 0 {
		return fmt.Errorf("there is no job %q", name)
	}
	return jobs[i].measure(s)
}

// apart makes sure of the namespaces: newSpace mounts over /etc, /run and
// /var/lib of wherever it stands. Those of process 1 may be out of sight from
// others.
func apart() error {
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	all, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	if mine == all || len(links) != 1 {
		return errors.New("a job runs in namespaces of its own, which make bench makes: this is the machine's")
	}
	return nil
}

// compared is two ways to do one thing.
type compared struct {
	reset     func() error // before each run of either, not timed; nil: nothing to do
	ctplan    func() error
	reference func() error
	runs      int
}

// quartiles times both in turns, after one run of each that does not count.
func (c compared) quartiles() (ctplan, reference time.Duration, err error) {
	var times [2][]time.Duration
	for i := range c.runs + 1 {
		for side, do := range []func() error{c.ctplan, c.reference} {
			if c.reset != nil {
				if err := c.reset(); err != nil {
					return 0, 0, err
				}
			}
			start := time.Now()
			if err := do(); err != nil {
				return 0, 0, err
			}
			if i > 0 {
				times[side] = append(times[side], time.Since(start))
			}
		}
	}
	return quartile(times[0]), quartile(times[1]), nil
}

func quartile(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/4]
}

// atMost prints a line for what may cost up to limit times the reference.
func (c compared) atMost(what, backend string, limit float64) error {
	own, ref, err := c.quartiles()
	if err != nil {
		return err
	}
	ratio := own.Seconds() / ref.Seconds()
	line(what, backend, millis(own), millis(ref), fmt.Sprintf("%.2f x", ratio), fmt.Sprintf("<= %g", limit), ratio <= limit)
	return nil
}

// fasterBy prints a line for what must be at least limit times as fast.
func (c compared) fasterBy(what, backend string, limit float64) error {
	own, ref, err := c.quartiles()
	if err != nil {
		return err
	}
	ratio := ref.Seconds() / own.Seconds()
	line(what, backend, millis(own), millis(ref), fmt.Sprintf("%.1f x", ratio), fmt.Sprintf(">= %g", limit), ratio >= limit)
	return nil
}

func line(what, backend, own, ref, ratio, target string, ok bool) {
	verdict := "ok"
	if !ok {
		verdict = "over target"
	}
	fmt.Printf("%-50s %-7s %10s %10s %8s  %-8s %s\n", what, backend, own, ref, ratio, target, verdict)
}

// note prints a line for a number without a target.
func note(what, backend, value string) {
	fmt.Printf("%-50s %-7s %10s\n", what, backend, value)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
