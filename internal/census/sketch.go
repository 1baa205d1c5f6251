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
	size  int
	total int64
	heap  []tally            // the smallest count first
	at    map[netip.Addr]int // where an address stands in heap
}

// tally is one counter.
type tally struct {
	addr         netip.Addr
	count, error int64
}

func newSketch(size int) *sketch {
	return &sketch{size: size, at: make(map[netip.Addr]int, size)}
}

func (s *sketch) add(a netip.Addr) {
	s.total++
	if i, ok := s.at[a]; ok {
		s.heap[i].count++
		s.down(i)
		return
	}
	if len(s.heap) < s.size {
		s.heap = append(s.heap, tally{addr: a, count: 1})
		s.at[a] = len(s.heap) - 1
		s.up(len(s.heap) - 1)
		return
	}
	least := s.heap[0]
	delete(s.at, least.addr)
	s.heap[0] = tally{a, least.count + 1, least.count}
	s.at[a] = 0
	s.down(0)
}

// down restores the order of the heap where a count has grown.
func (s *sketch) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(s.heap) {
			return
		}
		if right := child + 1; right < len(s.heap) && s.heap[right].count < s.heap[child].count {
			child = right
		}
		if s.heap[i].count <= s.heap[child].count {
			return
		}
		s.swap(i, child)
		i = child
	}
}

// up restores it where a counter was put at the end.
func (s *sketch) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if s.heap[parent].count <= s.heap[i].count {
			return
		}
		s.swap(i, parent)
		i = parent
	}
}

func (s *sketch) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.at[s.heap[i].addr], s.at[s.heap[j].addr] = i, j
}

// top are the n largest counters, by what they are sure to have.
func (s *sketch) top(n int) []tally {
	list := slices.Clone(s.heap)
	slices.SortFunc(list, func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.count-b.error, a.count-a.error), cmp.Compare(b.count, a.count), a.addr.Compare(b.addr))
	})
	return list[:min(n, len(list))]
}
