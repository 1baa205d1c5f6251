package census

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ctplan/ctplan/planner/suggest"
)

// window reads a count that begins somewhere and changes by what step says, a
// reading each 20 ms.
func window(from int64, n int, step func() int64) []suggest.Reading {
	list := []suggest.Reading{{Count: from}}
	for i := range n {
		from += step()
		list = append(list, suggest.Reading{After: time.Duration(i+1) * 20 * time.Millisecond, Count: from})
	}
	return list
}

func TestMeasure(t *testing.T) {
	steady := window(1000, 20, func() int64 { return 2 })
	later := window(5000, 20, func() int64 { return 2 }) // what came between does not count
	still := window(1000, 20, func() int64 { return 0 })
	falls := window(1000, 20, func() int64 { return -5 })
	for _, tt := range []struct {
		name    string
		windows [][]suggest.Reading
		rate    float64
		seconds float64
		grows   bool
		shrinks bool
	}{
		{"steady", [][]suggest.Reading{steady}, 100, 0.4, true, false},
		{"two windows", [][]suggest.Reading{steady, later}, 100, 0.8, true, false},
		{"still", [][]suggest.Reading{still}, 0, 0.4, false, false},
		{"falls", [][]suggest.Reading{falls}, -250, 0.4, false, true},
		{"one entry is chance", [][]suggest.Reading{{{Count: 5}, {After: time.Second, Count: 6}}}, 1, 1, false, false},
	} {
		g, ok := Measure(tt.windows...)
		if !ok || math.Abs(g.PerSecond-tt.rate) > 1e-9 || math.Abs(g.Seconds-tt.seconds) > 1e-9 || g.Grows() != tt.grows || g.Shrinks() != tt.shrinks {
			t.Errorf("%s: %+v, grows %v, shrinks %v, %v", tt.name, g, g.Grows(), g.Shrinks(), ok)
		}
	}
	for _, none := range [][][]suggest.Reading{nil, {nil}, {steady[:1], later[:1]}, {{{Count: 1}, {Count: 9}}}} {
		if g, ok := Measure(none...); ok {
			t.Errorf("%v: %+v", none, g)
		}
	}
}

// poisson is how many come in a time in which mean are expected.
func poisson(r *rand.Rand, mean float64) (n int64) {
	for p := r.Float64(); p > math.Exp(-mean); n++ {
		p *= r.Float64()
	}
	return n
}

// TestMeasureChance: in a table in which as many entries come as go, a growth
// is seen by chance alone, and so seldom; and one that is there is seen.
func TestMeasureChance(t *testing.T) {
	const runs = 2000
	r := rand.New(rand.NewPCG(7, 7))
	chance, seen, close := 0, 0, 0
	for range runs {
		change := func(come, leave float64) func() int64 {
			return func() int64 { return poisson(r, come) - poisson(r, leave) }
		}
		balanced, _ := Measure(window(10_000, 20, change(6, 6)))
		growing, _ := Measure(window(10_000, 20, change(9, 3)))
		if balanced.Grows() {
			chance++
		}
		if growing.Grows() {
			seen++
		}
		if math.Abs(growing.PerSecond-300) <= growing.Error {
			close++
		}
	}
	if chance > runs*5/100 || seen < runs*95/100 || close < runs*90/100 {
		t.Errorf("of %d: %d by chance, %d seen, %d within the error", runs, chance, seen, close)
	}
}

func TestFull(t *testing.T) {
	g := Growth{PerSecond: 100, Error: 10}
	for _, tt := range []struct {
		growth       Growth
		entries, max int64
		in           time.Duration
		ok           bool
	}{
		{g, 1000, 2000, 10 * time.Second, true},
		{g, 2000, 2000, 0, true},
		{Growth{}, 3000, 2000, 0, true},
		{g, 1000, 0, 0, false}, // no limit
		{Growth{PerSecond: 9, Error: 10}, 1000, 2000, 0, false},
		{Growth{PerSecond: -100}, 1000, 2000, 0, false},
		{Growth{PerSecond: 1e-3}, 0, math.MaxInt64, 0, false}, // in no time that matters
	} {
		if in, ok := tt.growth.Full(tt.entries, tt.max); in != tt.in || ok != tt.ok {
			t.Errorf("%+v, %d of %d: %v, %v", tt.growth, tt.entries, tt.max, in, ok)
		}
	}
}
