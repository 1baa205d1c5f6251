// Package census says what fills the table of tracked connections: by protocol
// and state, by service, by the hosts on the other side, by how long entries
// stay; how fast it grows, and when it will be full; and which rules ask for
// tracking at all.
//
// It owns the counting and the arithmetic. It reads nothing, starts nothing and
// knows no clock: entries, readings and rules are given to it, and equal ones
// in the same order give equal results.
//
// It promises that a Counter takes no more memory for a million entries than
// for a thousand, that protocols, states and services are counted exactly, that
// their sums are the number of entries, and that the count of a peer is never
// below the truth and above it by at most what is said beside it.
package census
