package trace

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Writers are programs, by the name that the kernel has of them, that set
// sysctls or rules by themselves while they run.
var Writers = []string{
	"kube-proxy", "kube-router", "dockerd", "firewalld", "tuned", "fail2ban-server", "libvirtd", "virtnetworkd",
	"calico-node", "cilium-agent", "flanneld", "tailscaled", "puppet", "chef-client", "salt-minion", "cf-execd",
}

// ticks are the clock ticks of a second in /proc: USER_HZ, 100 on every
// architecture that Go runs on.
const ticks = 100

// maxProcesses bounds how many processes are looked at.
const maxProcesses = 100_000

// readProcesses finds Writers that run as root in this network namespace:
// anybody can call a program by such a name, and those in other namespaces
// write elsewhere.
func (e *Evidence) readProcesses(q Query) {
	own, err := os.Readlink(q.Root + "/proc/self/ns/net")
	if err != nil {
		return
	}
	dir, err := os.Open(q.Root + "/proc")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxProcesses)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		at := q.Root + "/proc/" + name
		data, err := readSmall(at + "/stat")
		if err != nil {
			continue
		}
		comm, start, ok := parseStat(string(data))
		if !ok || !slices.Contains(Writers, comm) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(at, &st); err != nil || st.Uid != 0 {
			continue
		}
		if ns, err := os.Readlink(at + "/ns/net"); err != nil || ns != own {
			continue
		}
		record := Record{Where: "/proc/" + name, Text: fmt.Sprintf("%s runs as process %d", comm, pid)}
		if !e.Booted.IsZero() {
			record.Time = e.Booted.Add(time.Duration(start) * time.Second / ticks)
		}
		e.Processes = append(e.Processes, Process{comm, pid, record})
	}
	slices.SortFunc(e.Processes, func(a, b Process) int { return a.PID - b.PID })
}

// parseStat reads the name and the start, in ticks after boot, of
// /proc/PID/stat (proc(5)). The name may hold blanks and parentheses.
func parseStat(s string) (comm string, start uint64, ok bool) {
	_, rest, ok := strings.Cut(s, "(")
	if !ok {
		return "", 0, false
	}
	comm, rest, ok = cutLast(rest, ") ")
	fields := strings.Fields(rest)
	const startTime = 22 - 3 // the first field here is the third
	if !ok || len(fields) <= startTime {
		return "", 0, false
	}
	start, err := strconv.ParseUint(fields[startTime], 10, 53)
	return comm, start, err == nil
}
