package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/vmlab"
)

// defaults are the sizes that these kernels have chosen on machines of
// several sizes: release, memory in KiB, how nf_conntrack was loaded, and what
// came of it. The planner's formulas are held to the same rows.
func defaults(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "planner", "testdata", "kernel-defaults.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDefaults holds each kernel to the recorded figures, with another memory
// each: what planning knows of a boot rests on them.
func TestDefaults(t *testing.T) {
	for k, memory := range map[vmlab.Kernel]int{vmlab.Kernel510: 1500, vmlab.Kernel61: 6000, vmlab.Kernel612: 512} {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			vm := open(t).Boot(t, k, vmlab.Memory(memory))
			total, err := strconv.ParseInt(vm.Run("awk '/MemTotal/ {print $2}' /proc/meminfo"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			rows := 0
			for line := range strings.Lines(defaults(t)) {
				f := strings.Fields(line)
				if len(f) != 5 || !strings.HasPrefix(f[0], string(k)+".") {
					continue
				}
				// A later build of a kernel manages a little more or less memory.
				if then, err := strconv.ParseInt(f[1], 10, 64); err != nil || max(then, total)-min(then, total) > then/50 {
					continue
				}
				rows++
				how, want := f[2], f[3]+" "+f[4]
				option, sysfs := "", ""
				if n, ok := strings.CutPrefix(how, "sysfs="); ok {
					sysfs = fmt.Sprintf("echo %s > /sys/module/nf_conntrack/parameters/hashsize;", n)
				} else if how != "default" {
					option = how
				}
				vm.Expect("rmmod nf_conntrack 2>/dev/null; modprobe nf_conntrack "+option+" && "+sysfs+
					"echo $(cat /sys/module/nf_conntrack/parameters/hashsize /proc/sys/net/netfilter/nf_conntrack_max)", want)
			}
			if rows != 5 {
				t.Errorf("%d rows are about %s with %d KiB, want 5", rows, k, total)
			}
		})
	}
}
