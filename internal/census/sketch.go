package census

import (
	"cmp"
	"net/netip"
	"slices"
)

// sketch finds the most frequent of a stream of addresses in bounded memory,
// with the algorithm Space-Saving (Metwally, Agrawal, El Abbadi: Efficient
// Computation of Frequent and Top-k Elements in Data Streams, 2005): a new
// address takes over the smallest counter, and its count. So a count is never
// too low, too high by at most the error beside it, and no error is larger than
// the length of the stream divided by the number of counters. What makes up
// more than that part of the stream is among the counters.
type sketch struct {
	size   int
	total  int64
	slots  []tally
	slotOf map[netip.Addr]int32
	heap   []int32 // slots, the one with the smallest count first
}

// tally is one counter.
type tally struct {
	addr         netip.Addr
	count, error int64
	at           int32 // in the heap
}

func newSketch(size int) *sketch {
	return &sketch{size: size, slotOf: make(map[netip.Addr]int32, size)}
}

func (s *sketch) add(a netip.Addr) {
	s.total++
	slot, ok := s.slotOf[a]
	switch {
	case ok:
		s.slots[slot].count++
	case len(s.slots) < s.size:
		slot = int32(len(s.slots))
		s.slots = append(s.slots, tally{addr: a, at: slot})
		s.heap = append(s.heap, slot)
		s.slotOf[a] = slot
		s.up(slot) // as 0, the smallest of all
		s.slots[slot].count = 1
	default:
		slot = s.heap[0]
		t := &s.slots[slot]
		delete(s.slotOf, t.addr)
		s.slotOf[a] = slot
		t.addr, t.error = a, t.count
		t.count++
	}
	s.down(s.slots[slot].at)
}

func (s *sketch) count(at int32) int64 { return s.slots[s.heap[at]].count }

// down restores the order of the heap where a count has grown.
func (s *sketch) down(at int32) {
	for {
		child := 2*at + 1
		if int(child) >= len(s.heap) {
			return
		}
		if right := child + 1; int(right) < len(s.heap) && s.count(right) < s.count(child) {
			child = right
		}
		if s.count(at) <= s.count(child) {
			return
		}
		s.swap(at, child)
		at = child
	}
}

// up restores it where a counter was put at the end.
func (s *sketch) up(at int32) {
	for at > 0 {
		parent := (at - 1) / 2
		if s.count(parent) <= s.count(at) {
			return
		}
		s.swap(at, parent)
		at = parent
	}
}

func (s *sketch) swap(i, j int32) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.slots[s.heap[i]].at, s.slots[s.heap[j]].at = i, j
}

// top are the n largest counters, by what they are sure to have.
func (s *sketch) top(n int) []tally {
	list := slices.Clone(s.slots)
	slices.SortFunc(list, func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.count-b.error, a.count-a.error), cmp.Compare(b.count, a.count), a.addr.Compare(b.addr))
	})
	return list[:min(n, len(list))]
}
