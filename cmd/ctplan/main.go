// Command ctplan plans, applies and watches how a Linux host tracks
// connections. See the README for what it does and docs/ for its contract:
// exit statuses, JSON and file formats.
//
// This package owns the command line: flags, prompts, what goes to which
// stream, and exit statuses. It decides nothing about hosts; it carries values
// from schema and internal/snapshot through planner to internal/view and
// internal/apply.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// Exit statuses, one contract for all commands.
const (
	exitOK      = 0 // done, or nothing to change
	exitError   = 1
	exitChanges = 2 // plan with --detailed-exitcode, drift, and verify where a check fails
	exitBlocked = 3 // a safety check holds the plan back
)

// status is an exit status other than 0 about which all has been said.
type status int

func (s status) Error() string { return "exit status " + string(rune('0'+s)) }

func main() {
	// One run lives for milliseconds: collecting garbage later costs some
	// megabytes and saves a tenth of the time on a host with 10,000 rules.
	if tunesCollector() {
		debug.SetGCPercent(400)
	}
	os.Exit(interruptible(os.Args[1:], systemEnv()))
}

// tunesCollector is whether nobody else has said how garbage is to be collected.
func tunesCollector() bool { return os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" }

// collectLess has no garbage collected while so many tracked connections are read
// and judged, until the function that it returns is called: the list of them is no
// garbage, and to go through it as it fills takes an eighth of the time. Where
// memory grows past what they need it is collected all the same.
func collectLess(connections int64) (restore func()) {
	if !tunesCollector() {
		return func() {}
	}
	const each, rest = 512, 256 << 20 // bytes, generously
	limit := debug.SetMemoryLimit(rest + connections*each)
	percent := debug.SetGCPercent(-1)
	return func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}
}

// interruptible runs ctplan until it ends or is asked to end by a signal.
func interruptible(args []string, e *env) int {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		<-signals
		cancel()
		for range signals {
			// A change is finished or taken back, however impatient the operator.
			if !e.changing.Load() {
				os.Exit(exitError) // whatever it hangs in does not heed ctx
			}
			e.progressf("still at work on the host: everything is being put back, please wait")
		}
	}()
	return run(ctx, args, e)
}

// run is ctplan without the process around it.
func run(ctx context.Context, args []string, e *env) int {
	root := newRoot(e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	var s status
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &s):
		return int(s)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		e.errorf("%s", "interrupted: "+err.Error())
		return exitError
	default:
		e.report(err)
		return exitError
	}
}
