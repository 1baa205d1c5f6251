package sizes

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestDefaultSizes holds the formulas to what kernels have chosen on real
// machines.
func TestDefaultSizes(t *testing.T) {
	text, err := os.ReadFile("testdata/kernel-defaults.tsv")
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if strings.HasPrefix(line, "#") || f[0] == "kernel" {
			continue
		}
		rows++
		release, memory, how := f[0], number(f[1])<<10, f[2]
		var buckets, max int64
		if n, given := strings.CutPrefix(how, "hashsize="); given {
			buckets, max = OptionSizes(number(n), 4096, 8)
		} else {
			var ok bool
			if buckets, max, ok = DefaultSizes(release, memory, 4096, 8); !ok {
				t.Errorf("%s: no sizes", line)
			}
			if n, written := strings.CutPrefix(how, "sysfs="); written {
				buckets = RoundBuckets(number(n), 4096, 8)
			}
		}
		if buckets != number(f[3]) || max != number(f[4]) {
			t.Errorf("%s gives %d buckets and max %d", strings.TrimSpace(line), buckets, max)
		}
	}
	if rows != 55 {
		t.Errorf("%d rows", rows)
	}
}

// What no machine here shows: kernels before 4.0, 32 bits, 64 KiB pages, and
// the edges, where more than 1 GiB means more.
func TestDefaultSizesElsewhere(t *testing.T) {
	for _, c := range []struct {
		release      string
		memory       int64
		page, ptr    int64
		buckets, max int64
	}{
		{"2.6.32-754.el6.x86_64", 8 << 30, 4096, 8, 16384, 65536},
		{"3.10.0-1160.el7.x86_64", 512 << 20, 4096, 8, 4096, 16384},
		{"4.0.0", 8 << 30, 4096, 8, 65536, 262144},
		{"5.14.21", 1 << 30, 4096, 8, 8192, 32768},
		{"5.14.21", 1<<30 + 4096, 4096, 8, 16384, 65536},
		{"5.15.0", 4 << 30, 4096, 8, 65536, 65536},
		{"5.15.0", 4<<30 + 4096, 4096, 8, 262144, 262144},
		{"6.1.0", 4<<30 + 4096, 4096, 4, 65536, 65536},
		{"6.1.0", 64 << 20, 4096, 8, 1024, 1024},
		{"6.1.0", 16 << 20, 4096, 4, 1024, 1024},
		{"4.19.0", 1 << 20, 4096, 8, 512, 2048},
		{"6.1.0", 512 << 20, 65536, 8, 8192, 8192},
	} {
		buckets, max, ok := DefaultSizes(c.release, c.memory, c.page, c.ptr)
		if !ok || buckets != c.buckets || max != c.max {
			t.Errorf("%+v gives %d buckets and max %d", c, buckets, max)
		}
	}
	for _, release := range []string{"", "6", "x.y", "-1.2"} {
		if _, _, ok := DefaultSizes(release, 1<<30, 4096, 8); ok && release != "-1.2" {
			t.Errorf("kernel %q has sizes", release)
		}
	}
}
