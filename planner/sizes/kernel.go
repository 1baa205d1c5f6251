package sizes

import (
	"slices"

	"github.com/ctplan/ctplan/planner/host"
)

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

// EntryBytes is what one tracked connection costs, with events and accounting
// on: measured on 6.18 x86-64 from slabinfo.
const EntryBytes = 384

// TableBytes is the memory of a full table with max entries and the given
// number of buckets, in bytes.
func TableBytes(max, buckets, pointerSize int64) int64 {
	return max*EntryBytes + buckets*pointerSize
}

// era is a range of kernels that choose the same sizes by themselves. The
// sizes count when the module is loaded without the option hashsize.
type era struct {
	major, minor int // the first kernel of it
	steps        []step
	least        int64 // buckets
	factor       int64 // max for each bucket
}

// step is a number of buckets for hosts with more memory than over, in bytes.
type step struct {
	over, buckets int64
	wide          bool // only where pointers have 64 bits
}

// eras are nf_conntrack_init_start of net/netfilter/nf_conntrack_core.c over
// time, the newest first.
var eras = []era{
	{5, 15, []step{{4 << 30, 262144, true}, {1 << 30, 65536, false}}, 1024, 1},
	{4, 0, []step{{4 << 30, 65536, false}, {1 << 30, 16384, false}}, 32, 4},
	{0, 0, []step{{1 << 30, 16384, false}}, 32, 4},
}

// eraOf is the era of a kernel release, "6.1.0-56-amd64"; nil where it does
// not begin with two numbers.
func eraOf(release string) *era {
	if _, _, ok := host.KernelRelease(release); !ok {
		return nil
	}
	for i, e := range eras {
		if !host.KernelBefore(release, e.major, e.minor) {
			return &eras[i]
		}
	}
	return nil
}

// sizes are the buckets and the max that kernels of this era choose. memory is
// what the kernel manages, in bytes.
func (e *era) sizes(memory, pageSize, pointerSize int64) (buckets, max int64) {
	buckets = memory / 16384 / pointerSize
	for _, s := range e.steps {
		if memory > s.over && (pointerSize == 8 || !s.wide) {
			buckets = s.buckets
			break
		}
	}
	if buckets < e.least {
		buckets = e.least
	}
	buckets = RoundBuckets(buckets, pageSize, pointerSize)
	return buckets, buckets * e.factor
}

// SomeDefault reports whether kernels of some era choose this hash size, in
// buckets, and this max.
func SomeDefault(buckets, max, memory, pageSize, pointerSize int64) bool {
	return slices.ContainsFunc(eras, func(e era) bool {
		b, m := e.sizes(memory, pageSize, pointerSize)
		return b == buckets && m == max
	})
}

// OptionFactor is the max for each bucket, in every era, where the module is
// loaded with the option hashsize.
const OptionFactor = 8

// DefaultSizes are the hash size, in buckets, and the max that a kernel
// chooses when nf_conntrack is loaded without options. ok is false where the
// release is not one of a kernel, or the memory is not known. memory, pageSize
// and pointerSize are in bytes.
func DefaultSizes(release string, memory, pageSize, pointerSize int64) (buckets, max int64, ok bool) {
	e := eraOf(release)
	if e == nil || memory <= 0 || pageSize <= 0 || pointerSize <= 0 {
		return 0, 0, false
	}
	buckets, max = e.sizes(memory, pageSize, pointerSize)
	return buckets, max, true
}

// OptionSizes are the same for a load with the option hashsize=n, n not 0.
func OptionSizes(n, pageSize, pointerSize int64) (buckets, max int64) {
	buckets = RoundBuckets(n, pageSize, pointerSize)
	return buckets, OptionFactor * buckets
}

// EntriesPerBucket is how many entries kernels of a release have for each bucket
// by themselves.
func EntriesPerBucket(release string) int64 {
	if e := eraOf(release); e != nil {
		return e.factor
	}
	return 4
}
