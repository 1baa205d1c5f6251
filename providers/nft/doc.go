// Package nft reads and writes native nftables: the ruleset of this network
// namespace as the kernel has it, with sets and their elements; what of it, here
// or in another namespace, needs connection tracking; the rules that notrack and
// accept blocks become (Render), and the transaction that puts them there
// (Commit); and which rules files nft loads at boot, with the lines that declare
// what.
//
// It owns the netlink messages of nf_tables and the reading of nftables.conf. It
// starts no process, and reading loads no module but nf_tables, which every look
// at nftables loads. It changes what an operation names and nothing else, in one
// transaction of the kernel, made for the very generation of the ruleset that was
// looked at. What a rule does to a packet, and what
// needs connection tracking, is the planner's to say (packages verdict/nft and
// nftables).
//
// It promises that what it reads is of one generation of the ruleset, or else
// is an error; that what it could not read whole says so; that a rule is named
// by what deletes it, its handle; and that whatever stands in a ruleset, which
// any container may have written, is at worst shown badly.
package nft
