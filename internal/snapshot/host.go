package snapshot

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// readHost reads who the host is and what it is made of. /proc and /sys are
// those under root.
func readHost(root string) (host.Host, error) {
	h := host.Host{
		Name:        line(root, "/proc/sys/kernel/hostname"),
		MachineID:   line(root, "/etc/machine-id"),
		BootID:      line(root, "/proc/sys/kernel/random/boot_id"),
		Kernel:      line(root, "/proc/sys/kernel/osrelease"),
		OS:          osNames(root),
		CPUs:        countCPUs(line(root, "/sys/devices/system/cpu/online")),
		PageSize:    int64(os.Getpagesize()),
		PointerSize: pointerSize(),
	}
	if h.Name == "" || h.Kernel == "" {
		return h, fmt.Errorf("reading %s/proc/sys/kernel: no host name or kernel release there: is /proc mounted?", root)
	}
	var err error
	h.Memory, err = memTotal(line(root, "/proc/meminfo"))
	if err != nil {
		return h, fmt.Errorf("reading /proc/meminfo: %w", err)
	}
	return h, nil
}

// osNames are ID and ID_LIKE of os-release(5).
func osNames(root string) (names []string) {
	data, err := os.ReadFile(root + "/etc/os-release")
	if err != nil {
		data, _ = os.ReadFile(root + "/usr/lib/os-release")
	}
	for l := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(l), "=")
		if key != "ID" && key != "ID_LIKE" {
			continue
		}
		for name := range strings.FieldsSeq(strings.Trim(value, `"'`)) {
			if name = strings.ToValidUTF8(name, "\uFFFD"); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// line returns the first line of a small file, "" when there is none. What is
// not UTF-8 is replaced: these are names and numbers, and JSON carries them.
func line(root, path string) string {
	data, err := os.ReadFile(root + path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return strings.ToValidUTF8(strings.TrimSpace(first), "\uFFFD")
}

// memTotal reads the first line of /proc/meminfo, in bytes: "MemTotal: N kB".
func memTotal(line string) (int64, error) {
	fields := strings.Fields(line)
	if len(fields) != 3 || fields[0] != "MemTotal:" || fields[2] != "kB" {
		return 0, fmt.Errorf("%q is not the line MemTotal", line)
	}
	kib, err := strconv.ParseInt(fields[1], 10, 53)
	if err != nil {
		return 0, err
	}
	return kib << 10, nil
}

// countCPUs counts what a list such as "0-3,6" names: the CPUs that are
// online, whichever of them this process may use. Where /sys does not tell, it
// is the latter.
func countCPUs(list string) int64 {
	var n int64
	for r := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(r, "-")
		if !ok {
			to = from
		}
		a, errA := strconv.ParseInt(from, 10, 32)
		b, errB := strconv.ParseInt(to, 10, 32)
		if errA != nil || errB != nil || b < a {
			return int64(runtime.NumCPU())
		}
		n += b - a + 1
	}
	return n
}

// pointerSize is that of the kernel, in bytes: this program may be a 32-bit one.
func pointerSize() int64 {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		if is64(unix.ByteSliceToString(u.Machine[:])) {
			return 8
		}
	}
	return strconv.IntSize / 8
}

// is64 tells it from what uname -m prints.
func is64(machine string) bool { return strings.Contains(machine, "64") || machine == "s390x" }
