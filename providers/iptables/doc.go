// Package iptables reads, parses, renders and commits iptables rules: IPv4 and
// IPv6, the nft and the legacy backend, rules in the kernel and rules files.
//
// It owns the language of iptables-save (Parse, Quote), the rules that notrack
// and accept blocks become (Render), the input of iptables-restore (Script)
// and the way to the commands (Tools). What rules mean, and which ones have to
// change, is the planner's.
//
// It never touches a chain that no planner.Section names, never flushes a
// table (a restore is --noflush, but for Replace, and where a release of
// iptables would lose track of a script: then a table is loaded whole, as it
// will stand), never writes a file, and never reads the
// nat table by itself: legacy tables that were not there before stay absent,
// except that testing or writing a legacy table makes the kernel create it.
//
// It promises that Parse loses nothing (spans and the gaps between them are
// the text), that no string can end a line of a restore's input, and that the
// rules of Render are letter for letter what iptables-save 1.8.9 prints back,
// on both backends; but for protocols by number that the host's /etc/protocols
// happens to name.
package iptables
