// Package journal remembers what a transaction is about to do, so that it can
// be taken back whatever happens: one file for each transaction, one JSON
// record on each line.
//
// It owns the folder (/var/lib/ctplan, 0700), the form of the files and what
// they say about a transaction. It never changes anything else, and it never
// decides what to do about a transaction that did not end.
//
// It promises that a record is on the disk when Append returns with sync, that a file
// appears with its header whole or not at all, that a line cut off by a crash
// is not taken for a record, and that a folder or file that others could have
// written is refused: its records are carried out as root.
package journal

import (
	"time"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// FormatVersion is the version of the records.
const FormatVersion = 1

// Kind is what a record says.
type Kind string

// The kinds of records, in the order in which they can stand in a journal.
const (
	Begin      Kind = "begin"       // who does what; always the first record
	Intent     Kind = "step"        // a step is about to happen
	Done       Kind = "done"        // the step happened
	Armed      Kind = "armed"       // every step happened and was read back; somebody has to confirm
	Rollback   Kind = "rollback"    // the steps are being taken back
	Undone     Kind = "undone"      // the step was taken back
	Stuck      Kind = "stuck"       // the step could not be taken back
	Commit     Kind = "commit"      // it ended: the new state stays
	RolledBack Kind = "rolled-back" // it ended: the old state is back
)

// Record is one line of a journal. Which fields are set follows from Kind.
type Record struct {
	Kind   Kind      `json:"kind"`
	Time   time.Time `json:"time"`
	Header *Header   `json:"header,omitempty"` // begin

	Index  int          `json:"index,omitempty"`  // step, done, undone, stuck: from 0
	Step   *change.Step `json:"step,omitempty"`   // step
	Before *Before      `json:"before,omitempty"` // step

	Deadline int64  `json:"deadline,omitempty"` // armed: nanoseconds of CLOCK_BOOTTIME
	Reason   string `json:"reason,omitempty"`   // rollback, stuck, rolled-back: why
	Table    *Table `json:"table,omitempty"`    // armed, commit, rolled-back: what became of the kernel's table
}

// Table is what a transaction did to the kernel's table of connections.
type Table struct {
	Over    int64  `json:"over"`              // connections that were carried over
	Out     int64  `json:"out"`               // entries that were taken out
	Failed  int64  `json:"failed,omitempty"`  // what the kernel refused of both, or had no room for
	Trouble string `json:"trouble,omitempty"` // what went wrong
}

// Header says who began a transaction, when, where and for what.
type Header struct {
	FormatVersion int       `json:"format_version"`
	ID            int       `json:"id"`
	Version       string    `json:"version"` // ctplan's own
	Time          time.Time `json:"time"`
	Who           Who       `json:"who"`
	Process       Process   `json:"process"`
	Host          host.Host `json:"host"`
	BootID        string    `json:"boot_id"`
	NetNS         string    `json:"netns"`   // the network namespace, as readlink /proc/self/ns/net prints it
	Summary       string    `json:"summary"` // of the plan: one line
	Steps         int       `json:"steps"`
	Back          bool      `json:"back,omitempty"`  // it takes others back
	Carry         bool      `json:"carry,omitempty"` // open connections are carried over into tracking, there and back

	// ConfirmWithin is how long to wait for ctplan confirm; 0 when the new
	// state stays without.
	ConfirmWithin time.Duration `json:"confirm_within,omitempty"`
	// Deadline is when an unfinished transaction is taken back, in nanoseconds
	// of CLOCK_BOOTTIME, until an armed record sets another.
	Deadline int64 `json:"deadline,omitempty"`

	// Over is the client address and port of each SSH connection that it may have
	// been started over (more than one in a terminal that several show), "" where
	// that could not be told. Set with ConfirmWithin alone, and never by older
	// versions, of which Who.SSH says what there is.
	Over []string `json:"over,omitempty"`

	// Conntrack is what the kernel held of connection tracking before the first
	// step; nil in journals of older versions. No step says it where a rule
	// loads the module, or where a boot finds half of the new files.
	Conntrack *ModuleBefore `json:"conntrack,omitempty"`
}

// Who is the person behind a transaction, as far as the system knows.
type Who struct {
	User string `json:"user,omitempty"` // the login name
	UID  int    `json:"uid"`
	SSH  string `json:"ssh,omitempty"` // as SSH_CONNECTION: client address and port, server address and port
}

// Process names a process beyond its PID, which the kernel gives to others later.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot: field 22 of /proc/PID/stat
}

// Before is what a step's undo needs to know and the step itself does not say.
type Before struct {
	Tables  []TableBefore `json:"tables,omitempty"`  // rules: each table that the step touches
	Folders []string      `json:"folders,omitempty"` // files: the folders that were not there, deepest first
	Module  *ModuleBefore `json:"module,omitempty"`  // unloading: what goes with the module
	Native  string        `json:"native,omitempty"`  // nftables: a digest of the chains that the step is about
	Rules   []RulesBefore `json:"rules,omitempty"`   // a service: what its restart takes away
}

// RulesBefore are all rules of one family before a step.
type RulesBefore struct {
	Family  host.Family          `json:"family"`
	Backend host.Backend         `json:"backend"`
	Tables  []xtables.TableLines `json:"tables"`
}

// TableBefore is a table of iptables before a step.
type TableBefore struct {
	Name    string   `json:"name"`
	Existed bool     `json:"existed"`
	Chains  []string `json:"chains,omitempty"` // its built-in chains
	// States are digests of the table: before the step, then after each of the
	// step's sections in turn.
	States []string `json:"states"`
}

// ModuleBefore is what the kernel forgets with a module.
type ModuleBefore struct {
	Loaded   bool              `json:"loaded,omitempty"` // nf_conntrack; false where it is built in
	Hashsize int64             `json:"hashsize,omitempty"`
	Sysctls  map[string]string `json:"sysctls,omitempty"`
}

// Outcome is how a transaction stands.
type Outcome string

// The outcomes. A transaction that is Running and whose process has ended was
// cut off.
const (
	Running    Outcome = "running"
	Waiting    Outcome = "waiting for confirmation"
	Undoing    Outcome = "rolling back"
	Committed  Outcome = "committed"
	WasUndone  Outcome = "rolled back"
	Unreadable Outcome = "unreadable"
)

// Open reports whether something is left to do.
func (o Outcome) Open() bool { return o != Committed && o != WasUndone }

// Transaction is what a journal says.
type Transaction struct {
	Header
	Outcome  Outcome
	Changed  time.Time // when the last step was done; zero without one
	Ended    time.Time // when the outcome came about
	Reason   string    // why it was rolled back
	Deadline int64     // nanoseconds of CLOCK_BOOTTIME; 0: none
	Steps    []Step    // those that began, in order
	Table    *Table    // what became of the kernel's table; nil: nothing
	Err      error     // why it is unreadable
}

// Step is a step that began.
type Step struct {
	change.Step
	Before Before
	Done   bool // it is known to have happened
	Undone bool // it is known to have been taken back
}
