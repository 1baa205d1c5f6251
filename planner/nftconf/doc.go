// Package nftconf is nft's language as it stands in the files that boot loads, in
// /etc/nftables.conf and what that includes: which statement stands where, what
// comes of all of them in their order, which of them a rule of the kernel comes
// from, and how one is cut out, or ctplan's own file is put in.
//
// It follows what statements do, tables, chains and rules by their places; what a
// rule says it knows as words. Where it cannot follow a file it says so: what was
// read is then not to be relied on, and nothing of it is cut.
package nftconf
