// Package trace reads what a host's own records say about who changed it and
// when: the databases of its package managers, its logs, what systemd and init
// scripts leave behind when they start a service, and which programs run that
// write what ctplan writes.
//
// It owns where such records are and how they are written. It decides nothing:
// which of them explains a difference is for internal/cause. It never writes,
// loads or asks for anything that would: files are read, and the commands that
// it runs (rpm, as nobody, and journalctl) are given nothing to change.
//
// It promises bounded time and memory whatever the records hold, that a record
// which cannot be read is a note and not an error, and that the zero time means
// that none is known. All texts are as others wrote them: hostile.
package trace

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
)

// Query says what is to be explained.
type Query struct {
	Root   string     // prefix of all paths, for tests; "" on a real host
	Runner run.Runner // nil: run.Exec
	Since  time.Time  // what happened before this is of no interest
	Now    time.Time
	Files  []string // paths of files that are not as they should be, as the host sees them
}

// limit is how long all commands may take together.
const limit = 10 * time.Second

// Record is one piece of evidence.
type Record struct {
	Where string    // "/var/log/auth.log:1042", "/proc/812", "journal"
	Text  string    // what stands there
	Time  time.Time // what it speaks of; zero: none
}

// Evidence is what the records say of the time since Query.Since.
type Evidence struct {
	Booted    time.Time        // when the kernel started
	Files     map[string]Stamp // of Query.Files, those that exist
	Packages  []Package
	Services  []Service
	Commands  []Command
	Processes []Process
	Settings  []Setting
	Notes     []string // what could not be read
}

// Stamp is when a file was last touched: st_mtime is what its writer said,
// st_ctime when that was (inode(7)).
type Stamp struct{ Modified, Changed time.Time }

// Package is a package that was put on the host and owns a file of the query.
type Package struct {
	Manager       string // "dpkg" or "rpm"
	Name, Version string
	Path          string // the file of the query
	// Delivered is whether the file is, byte for byte, what the package brought.
	Delivered bool
	Record    // of when it was put there
}

// Service is something that happened to a service.
type Service struct {
	Name string // without ".service"
	Did  string // "started", "reloaded", "stopped", or "ran" where all that is known is that it did something
	Record
}

// Command is a command that somebody ran as root, or a login as root.
type Command struct {
	User string // who; "" where it is not known
	Via  string // "sudo", "su", "doas", "ssh", "cron", "ansible"
	Line string // the command as logged; "" for a login
	Dir  string // where it was run; "" where it is not known
	Record
}

// Process is a program that runs as root in this network namespace and may
// write what ctplan writes.
type Process struct {
	Name string
	PID  int
	Record
}

// Setting is a value that a program's configuration tells it to set.
type Setting struct {
	Program    string // "TuneD"
	Key, Value string // of a sysctl, dotted
	Record
}

// Read reads the host's records.
func Read(ctx context.Context, q Query) Evidence {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if q.Runner == nil {
		q.Runner = run.Exec{}
	}
	e := Evidence{Booted: booted(q.Root), Files: map[string]Stamp{}}
	for _, path := range q.Files {
		if s, ok := stamp(q.Root + path); ok {
			e.Files[path] = s
		}
	}
	e.readDpkg(q)
	e.readRPM(ctx, q)
	e.readUnits(q)
	e.readLogs(q)
	e.readJournal(ctx, q)
	e.readProcesses(q)
	e.readTuned(q)
	return e
}

// booted is when the kernel started: btime of /proc/stat (proc(5)).
func booted(root string) time.Time {
	data, err := readSmall(root + "/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil && n > 0 {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}

func stamp(path string) (Stamp, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Stamp{}, false
	}
	return Stamp{Modified: time.Unix(st.Mtim.Unix()), Changed: time.Unix(st.Ctim.Unix())}, true
}

// local is the host's time zone, in which dpkg and syslog write.
func local(root string) *time.Location {
	if root == "" {
		return time.Local
	}
	if data, err := readSmall(root + "/etc/localtime"); err == nil {
		if loc, err := time.LoadLocationFromTZData("Local", data); err == nil {
			return loc
		}
	}
	return time.UTC
}

// maxSmall is the largest file that is read as a whole, in bytes.
const maxSmall = 8 << 20

// readSmall reads a regular file, or one of /proc, up to maxSmall bytes.
func readSmall(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readUpTo(f, maxSmall)
}

// openRegular opens a file to read it, and nothing that opening could change
// or that could block: no device, no FIFO.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.EINVAL}
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}
