package census

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestSketch holds what Space-Saving promises against exact counts, over
// streams that suit it and streams that do not.
func TestSketch(t *testing.T) {
	address := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}) }
	for name, next := range map[string]func(r *rand.Rand, i int) int{
		"few":      func(r *rand.Rand, _ int) int { return r.IntN(30) },
		"skewed":   func(r *rand.Rand, _ int) int { return int(rand.NewZipf(r, 1.2, 1, 1<<20).Uint64()) },
		"all new":  func(_ *rand.Rand, i int) int { return i },
		"uniform":  func(r *rand.Rand, _ int) int { return r.IntN(5000) },
		"one late": func(_ *rand.Rand, i int) int { return min(i, 3000) },
		"in turns": func(_ *rand.Rand, i int) int { return i % 65 },
	} {
		for seed := range uint64(4) {
			r := rand.New(rand.NewPCG(seed, 2))
			const counters, length = 64, 5000
			s := newSketch(counters)
			truth := map[netip.Addr]int64{}
			for i := range length {
				a := address(next(r, i))
				truth[a]++
				s.add(a)
			}
			var sum int64
			found := map[netip.Addr]bool{}
			for i, c := range s.top(counters) {
				found[c.addr] = true
				sum += c.count
				if c.count < truth[c.addr] || c.count-c.error > truth[c.addr] || c.error > length/counters {
					t.Errorf("%s: %v has %d, counted %d with an error of %d", name, c.addr, truth[c.addr], c.count, c.error)
				}
				if i > 0 {
					if b := s.top(counters)[i-1]; b.count-b.error < c.count-c.error {
						t.Errorf("%s: %+v stands before %+v", name, b, c)
					}
				}
			}
			if sum != length || len(s.slots) > counters || len(s.slotOf) != len(s.slots) {
				t.Errorf("%s: %d counters and %d names for %d of %d", name, len(s.slots), len(s.slotOf), sum, length)
			}
			for a, n := range truth {
				if n > length/counters && !found[a] {
					t.Errorf("%s: %v has %d of %d and no counter", name, a, n, length)
				}
			}
			for i := range s.heap {
				if parent := (i - 1) / 2; i > 0 && s.count(int32(parent)) > s.count(int32(i)) || s.slots[s.heap[i]].at != int32(i) {
					t.Fatalf("%s: the heap is out of order at %d", name, i)
				}
			}
		}
	}
}
