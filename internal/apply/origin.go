package apply

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/providers/flows"
)

// now is CLOCK_BOOTTIME in nanoseconds: it runs on while the machine sleeps,
// and nobody can set it back.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return int64(time.Since(time.Time{}))
	}
	return ts.Nano()
}

// bootID names this run of the kernel.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// header says who begins the transaction.
func header(env Env, steps int, opts Options, conntrack *journal.ModuleBefore) (journal.Header, error) {
	self, err := process(os.Getpid())
	if err != nil {
		return journal.Header{}, err
	}
	h := journal.Header{
		Version: env.Version,
		Time:    time.Now().UTC(),
		Who:     who(env.SSH),
		Process: self,
		Host:    env.Identity,
		BootID:  bootID(),
		NetNS:   netNS(),
		Summary: opts.Summary,
		Steps:   steps,
		Back:    opts.Back,
		Carry:   opts.Carry != nil,

		Conntrack: conntrack,
	}
	if opts.ConfirmWithin > 0 {
		h.ConfirmWithin = opts.ConfirmWithin
		h.Deadline = now() + int64(opts.ConfirmWithin)
		h.Over = clients(env.SSH)
	}
	return h, nil
}

// who is the person behind this process: the one who logged in, which sudo and
// su do not change (/proc/self/loginuid), or else who called sudo. Where sudo
// dropped SSH_CONNECTION, ssh says it.
func who(ssh []flows.SSH) journal.Who {
	w := journal.Who{UID: os.Getuid(), SSH: os.Getenv("SSH_CONNECTION")}
	if w.SSH == "" && len(ssh) > 0 && ssh[0].Remote.IsValid() && ssh[0].Local.IsValid() {
		from, to := ssh[0].Remote, ssh[0].Local
		w.SSH = fmt.Sprintf("%s %d %s %d", from.Addr(), from.Port(), to.Addr(), to.Port())
	}
	const unset = 1<<32 - 1 // no login, as in a service
	if data, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if id, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32); err == nil && id != unset {
			w.UID = int(id)
		}
	}
	if w.UID == 0 {
		if id, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
			w.UID = id
		}
	}
	if u, err := user.LookupId(strconv.Itoa(w.UID)); err == nil {
		w.User = u.Username
	}
	return w
}

// running reports whether a process still is, and is still the same. One that
// has ended but was not waited for is not.
func running(p journal.Process) bool {
	fields, err := stat(p.PID)
	return err == nil && fields[19] == strconv.FormatUint(p.Start, 10) && fields[0] != "Z" && fields[0] != "X"
}

// process reads who a PID is.
func process(pid int) (journal.Process, error) {
	fields, err := stat(pid)
	if err != nil {
		return journal.Process{}, err
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return journal.Process{}, fmt.Errorf("reading when process %d began: %w", pid, err)
	}
	return journal.Process{PID: pid, Start: start}, nil
}

// stat reads the fields of /proc/PID/stat from the state on, at least 20. They
// stand behind the command's name, which may hold anything, parentheses too
// (proc_pid_stat(5)).
func stat(pid int) ([]string, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("%s: too short", path)
	}
	return fields, nil
}
