package suggest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/words"
)

// Reading is how many connections were tracked at a moment.
type Reading struct {
	After time.Duration // since the first reading
	Count int64
}

// What suggested sizes are made of.
const (
	headroom      = 2    // of max over the most that is known to have been tracked
	headroomFull  = 4    // the same where the table has been full: nobody knows how far it would have gone
	growthHorizon = 3600 // seconds that growth is thought to go on
	smallestMax   = 4096
)

// sizing is the arithmetic behind suggested sizes.
type sizing struct {
	max, hashsize int64
	most          int64 // connections
	steps         []string
	squeezed      bool // memory allows less than it takes
}

// suggestSizes gives the table the size that it needs.
func suggestSizes(l host.Live, o Options, why string) Suggestion {
	s := Suggestion{Declaration: declared.Declaration{Host: l.Host.Name, Desired: declared.Desired{
		Block: declared.Label(l.Host.Name, "host"), Mode: declared.Tuned, StatefulRules: declared.RefuseStateful, Families: slices.Clone(host.Families),
	}}}
	d := &s.Desired
	z := sizesFor(l, o.Readings)
	d.Max, d.Hashsize = &declared.Setting{Value: z.max}, &declared.Setting{Value: z.hashsize}
	o.Render(d, l)
	plan := planner.Diff(*d, l)
	s.Blocked = plan.Blocked()
	for _, b := range plan.Blocks {
		s.Remains = append(s.Remains, fmt.Sprintf("blocked by %s: %s (%s); %s", b.Risk, b.Why, b.Where, b.Remedy))
	}
	if z.squeezed {
		s.Remains = append(s.Remains, fmt.Sprintf("%d entries are all that a quarter of this host's memory holds, and fewer than it may need: take traffic out of tracking, or shorten timeouts", z.max))
	}
	head := []string{fmt.Sprintf("Suggested by ctplan for %s, mode %s: %s.", l.Host.Name, declared.Tuned, strings.TrimSuffix(why, "."))}
	for _, r := range s.Remains {
		head = append(head, "To decide: "+r+".")
	}
	for _, text := range head {
		s.Note(declared.NoteHead, text)
	}
	for _, text := range z.steps {
		s.Note("max", text)
	}
	s.Note("hashsize", hashNote(l.Host.Kernel, z))
	return s
}

// sizesFor works out max and hashsize.
func sizesFor(l host.Live, readings []Reading) sizing {
	var z sizing
	say := func(format string, args ...any) { z.steps = append(z.steps, fmt.Sprintf(format, args...)) }
	ct := l.Conntrack
	z.most = max(0, ct.Count)
	for _, r := range readings {
		z.most = max(z.most, r.Count)
	}
	say("Tracked now: %s of %s.", words.Plural(int(ct.Count), "connection", "connections"), orNone(ct.Max))
	if n := len(readings); n > 1 {
		first, last := readings[0], readings[n-1]
		seconds := max(1, int64((last.After-first.After)/time.Second))
		grown := max(0, last.Count-first.Count)
		// From the rate, so that no product overflows: a count is below 2^32.
		hour := int64(math.Min(float64(grown)/float64(seconds)*growthHorizon, math.MaxInt32))
		say("Growth: %d more in %d s; at that rate %d more in an hour.", grown, seconds, hour)
		z.most = max(z.most, last.Count+hour)
	}
	times := int64(headroom)
	full := ct.Drops > 0 || ct.EarlyDrops > 0 || ct.Max > 0 && ct.Count >= ct.Max
	if full {
		times = headroomFull
		z.most = max(z.most, ct.Max)
		say("The table is full, or has been since boot: %s dropped, %s thrown out early.", words.Plural(int(ct.Drops), "packet", "packets"), words.Plural(int(ct.EarlyDrops), "connection", "connections"))
	}
	want := powerOfTwo(satMul(max(1, z.most), times))
	say("%d x %d = %d, as a power of two %d.", z.most, times, satMul(z.most, times), want)
	if want < smallestMax {
		want = smallestMax
	}
	if ct.Max > want && ct.Max <= math.MaxInt32 {
		want = ct.Max
		say("No less than the %d of today.", ct.Max)
	}
	if _, byKernel, ok := sizes.DefaultSizes(l.Host.Kernel, l.Host.Memory, l.Host.PageSize, l.Host.PointerSize); ok {
		if byKernel > want {
			want = byKernel
		}
		say("The kernel by itself (%s, %s) would give %d.", l.Host.Kernel, words.MiB(l.Host.Memory), byKernel)
	}
	z.max = min(want, math.MaxInt32)
	z.hashsize = bucketsFor(l, z.max)
	if l.Host.Memory > 0 {
		for tableBytes(l, z.max, z.hashsize) > l.Host.Memory/4 && z.max > 1 {
			z.max = max(1, z.max/2)
			z.hashsize = bucketsFor(l, z.max)
		}
		if z.max < want {
			// Between the half that fits and the whole that does not.
			for step := z.max / 2; step > 0; step /= 2 {
				if h := bucketsFor(l, z.max+step); tableBytes(l, z.max+step, h) <= l.Host.Memory/4 {
					z.max, z.hashsize = z.max+step, h
				}
			}
			z.squeezed = z.max < satMul(z.most, times)
			say("A quarter of the memory, %s, holds %d.", words.MiB(l.Host.Memory/4), z.max)
		}
		say("Full, it takes %d x %d B + %d x %d B = %s, %.1f %% of the memory.", z.max, sizes.EntryBytes, roundedBuckets(l, z.hashsize), l.Host.PointerSize,
			words.MiB(tableBytes(l, z.max, z.hashsize)), 100*float64(tableBytes(l, z.max, z.hashsize))/float64(l.Host.Memory))
	}
	return z
}

func orNone(limit int64) string {
	if limit <= 0 {
		return "a table without a known limit"
	}
	return fmt.Sprint(limit)
}

func satMul(a, b int64) int64 {
	if a > math.MaxInt32/b {
		return math.MaxInt32
	}
	return a * b
}

// powerOfTwo is the next one, within what the kernel takes.
func powerOfTwo(n int64) int64 {
	p := int64(1)
	for p < n && p <= math.MaxInt32/2 {
		p *= 2
	}
	return p
}

func roundedBuckets(l host.Live, n int64) int64 {
	return sizes.RoundBuckets(n, l.Host.PageSize, l.Host.PointerSize)
}

func tableBytes(l host.Live, max, hashsize int64) int64 {
	return sizes.TableBytes(max, roundedBuckets(l, hashsize), l.Host.PointerSize)
}

// bucketsFor is a bucket for each entry where the kernel refuses what makes a
// chain too long (5.15 and later), and one for four before.
func bucketsFor(l host.Live, limit int64) int64 {
	return max(1, limit/sizes.EntriesPerBucket(l.Host.Kernel))
}

func hashNote(release string, z sizing) string {
	if sizes.EntriesPerBucket(release) == 1 {
		return fmt.Sprintf("A bucket for each entry, as this kernel (%s) does by itself: it drops new connections where a chain grows too long, however empty the table is.", release)
	}
	return fmt.Sprintf("%d / 4: four entries to a bucket, as kernels before 5.15 do by themselves.", z.max)
}
