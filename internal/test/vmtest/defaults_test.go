package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
)

// defaults are the sizes that these kernels have chosen on machines of
// several sizes: release, memory in KiB, how nf_conntrack was loaded, and what
// came of it. The planner's formulas are held to the same rows.
func defaults(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "planner", "testdata", "kernel-defaults.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// memories are the sizes of machines in MiB that the rows were measured with.
var memories = []int{256, 512, 1500, 6000}

// TestDefaults holds each kernel to the recorded figures, every row of them:
// what planning knows of a boot rests on them.
func TestDefaults(t *testing.T) {
	t.Parallel()
	type row struct{ how, want string }
	for _, k := range vmlab.Kernels() {
		rows := map[int64][]row{} // by the memory that the kernel managed, in KiB
		for line := range strings.Lines(defaults(t)) {
			f := strings.Fields(line)
			if len(f) != 5 || !strings.HasPrefix(f[0], string(k)+".") {
				continue
			}
			total, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			rows[total] = append(rows[total], row{f[2], f[3] + " " + f[4]})
		}
		if len(rows) < 3 {
			t.Errorf("%s has figures of %d sizes of memory, want 3 or more", k, len(rows))
		}
		for then, rows := range rows {
			i := slices.IndexFunc(memories, func(m int) bool { return int64(m)<<10 > then })
			if i < 0 {
				t.Fatalf("%s: no machine is known that has %d KiB", k, then)
			}
			t.Run(fmt.Sprintf("%s/%d", k, memories[i]), func(t *testing.T) {
				t.Parallel()
				vm := open(t).Boot(t, k, vmlab.Memory(memories[i]))
				total, err := strconv.ParseInt(vm.Run("awk '/MemTotal/ {print $2}' /proc/meminfo"), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				// A later build of a kernel manages a little more or less memory.
				if max(then, total)-min(then, total) > then/50 {
					t.Fatalf("the kernel manages %d KiB, and the rows are about %d", total, then)
				}
				for _, r := range rows {
					option, sysfs := "", ""
					if n, ok := strings.CutPrefix(r.how, "sysfs="); ok {
						sysfs = fmt.Sprintf("echo %s > /sys/module/nf_conntrack/parameters/hashsize;", n)
					} else if r.how != "default" {
						option = r.how
					}
					vm.Expect("rmmod nf_conntrack 2>/dev/null; modprobe nf_conntrack "+option+" && "+sysfs+
						"echo $(cat /sys/module/nf_conntrack/parameters/hashsize /proc/sys/net/netfilter/nf_conntrack_max)", r.want)
				}
				if len(rows) != 5 {
					t.Errorf("%d rows are about %s with %d KiB, want 5", len(rows), k, then)
				}
			})
		}
	}
}
