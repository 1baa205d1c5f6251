// Package snapshot holds what a host is as one JSON value: the text that
// iptables-save prints, the files that boot reads, the conntrack sysctls and
// the loaded modules, all raw. A plan made from a snapshot file is the plan
// made on the host, because both run the same pure parsers over the same bytes.
//
// It owns the format, the order in which a host is read, and the names
// (addresses) of single facts, by which a stale plan says what changed since.
// It never writes to the host, and gives no meaning to what it reads: that is
// the providers' part (syntax) and the planner's (sense).
//
// It promises that Decode(Encode(s)) equals s, whatever bytes the host's files
// hold, and that Decode refuses what is not wholly a snapshot. It promises
// nothing about the content: whoever writes a snapshot file can put anything
// into its strings.
package snapshot
