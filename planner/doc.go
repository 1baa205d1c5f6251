// Package planner decides what a host needs: it compares what the HCL declares
// (declared.Desired) with what the host is (host.Live) and returns a Plan.
//
// Diff is the sequence of its stages. Each stage is a package of its own below
// this one, takes values and returns values: changes, edits of files, findings.
// From the bottom:
//
//   - values: host, declared, change; words, nets and protocol for their parts
//   - languages of rules: xtables, nftables; files that boot reads: etc
//   - what becomes of a packet: verdict, and verdict/xt and verdict/nft, which read the
//     rules of iptables and of nftables for it
//   - of connections, before and after: judge, and impact and sides, which ask it
//   - the stages that change something: rules, sizes, modules, service
//   - what the host boots into: boot
//   - this package; and above it suggest and importer, which ask it for plans
//
// A package imports what lies below it, and the standard library: none reads a
// clock, a file or a process, or writes anything, so that a plan made from a
// snapshot in code review is the plan made on the host.
//
// Diff(desired, live) is a pure function: equal inputs give equal plans, byte
// for byte.
package planner
