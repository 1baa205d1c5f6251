package metrics

import "time"

// State is what is known of a host. What is nil is not known, and its metrics
// are left out: an absent metric is told from a 0 by every query.
//
// One command fills in one part, so that the files of several commands can lie
// in one folder: node_exporter refuses a metric that two of them have.
type State struct {
	Drift  *Drift  // by drift
	Apply  *Apply  // by drift
	Table  *Table  // by drift
	Verify *Verify // by verify
	Growth *Growth // by status
}

// Drift is a comparison of the host with what is declared.
type Drift struct {
	Time  time.Time // when
	Found *Found    // nil: it failed, and whether the host has drifted is not known
}

// Found is what differs.
type Found struct {
	Objects []Object
	Blocks  int // safety checks that would keep apply from mending it
}

// Object is one thing that differs.
type Object struct {
	Address string
	Action  string // create, update, delete or run: what apply would do
	Cause   string // what has changed it, in one word or two; "" where nothing tells
}

// Apply is what ctplan itself did to the host.
type Apply struct {
	Last    *time.Time // when a change last came to stay; nil where none did, or where the history cannot be read
	Waiting bool       // one waits for ctplan confirm
	CutOff  bool       // one was cut off and waits for ctplan recover
}

// Table is the table of tracked connections. Without connection tracking in
// the kernel there is none, which is not a table without entries.
type Table struct {
	Entries, Max, Buckets *int64

	// Counters of the kernel's since the module was loaded, over all CPUs:
	// packets dropped because the table was full, entries given up early to
	// make room, insertions that failed, and those refused by the length of
	// their hash chain (of Linux 5.15 and later).
	Drops, EarlyDrops, InsertFailed, ChainTooLong *uint64
}

// Verify is an answer to whether the mode is in effect.
type Verify struct {
	Time   time.Time
	Checks []Check // nil: it failed, and nothing is known
	// Messages of a full table that the kernel wrote to its log since the last change; nil
	// where no log can be read.
	TableFull *int64
}

// Check is one check of verify.
type Check struct {
	Name   string
	Result string // "pass", "fail" or "skip"
}

// Growth is how fast the table of tracked connections fills.
type Growth struct {
	Time      time.Time // when
	PerSecond *float64  // entries; below 0 it shrinks
	FullIn    *float64  // seconds, at this growth; nil also where it does not grow
}
