// Package planner decides what a host needs: it compares what the HCL
// declares (Desired) with what the host is (Live) and returns a Plan.
//
// It owns the meaning of things: which rules need connection tracking, what
// the kernel makes of a hash size, in which order changes are safe, and what
// makes a host too dangerous to change. It never reads a clock, a file or a
// process, never writes anything, and imports the standard library only, so
// that a plan made from a snapshot in code review is the plan made on the host.
//
// Diff(desired, live) is a pure function: equal inputs give equal plans, byte
// for byte.
package planner
