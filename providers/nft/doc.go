// Package nft reads native nftables: what of a ruleset needs connection
// tracking, in this network namespace or in another, and which rules files
// nft loads at boot.
//
// It owns the netlink dumps of nf_tables and the reading of nftables.conf. It
// starts no process, changes nothing, and loads no module but nf_tables,
// which every look at nftables loads. What needs connection tracking is the
// planner's to say (planner.NFTModule).
//
// It promises that a rule is named by what deletes it, its handle, and that
// whatever stands in a ruleset, which any container may have written, is at
// worst shown badly.
package nft
