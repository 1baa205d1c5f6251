package planner

// What the kernel makes of the numbers it is given, and what they cost.

// RoundBuckets is the hash size that the kernel sets when asked for n buckets:
// n rounded up to a whole page of pointers (nf_ct_alloc_hashtable in
// net/netfilter/nf_conntrack_core.c). pageSize and pointerSize are in bytes.
func RoundBuckets(n, pageSize, pointerSize int64) int64 {
	if pageSize <= 0 || pointerSize <= 0 {
		return n
	}
	per := pageSize / pointerSize
	return (n + per - 1) / per * per
}

// entryBytes is what one tracked connection costs, with events and accounting
// on: measured on 6.18 x86-64 from slabinfo.
const entryBytes = 384

// TableBytes is the memory of a full table with max entries and the given
// number of buckets, in bytes.
func TableBytes(max, buckets, pointerSize int64) int64 {
	return max*entryBytes + buckets*pointerSize
}
