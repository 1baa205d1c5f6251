package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
)

// Counters are numbers of the kernel's by their names, those that conntrack -S
// prints: found, invalid, insert, insert_failed, drop, early_drop, error,
// search_restart, clash_resolve, chaintoolong. What the kernel does not count is
// not in the map: it is unknown, and not 0. (clash_resolve came with Linux 5.9,
// chaintoolong with 5.15.)
type Counters map[string]uint64

// Stats are the statistics of connection tracking in one network namespace,
// since it was made: for the initial one, since boot or since the module was
// loaded. The kernel counts in 32 bits, and its counters wrap.
type Stats struct {
	CPUs []CPUStats // by number; nil where nothing was read
	From string     // where they were read: "netlink", or a file of /proc

	// Entries and Max are the table's, over netlink; nil where unknown. Max
	// came with Linux 4.18.
	Entries, Max *uint64
}

// CPUStats are what one CPU counted.
type CPUStats struct {
	CPU      int
	Counters Counters
}

// Total adds the CPUs up. A counter that one CPU lacks is unknown.
func (s *Stats) Total() Counters {
	return s.sum(func(cpu CPUStats, name string) (uint64, bool) {
		n, ok := cpu.Counters[name]
		return n, ok
	})
}

// Since returns by how much the counters grew from before to s, each CPU's
// modulo 2³²: a counter may have wrapped. A CPU that was not there before
// counts whole. What either lacks is unknown, and so is what would have grown
// by half of that and more: the counter has begun anew, with the module.
func (s *Stats) Since(before *Stats) Counters {
	return s.sum(func(cpu CPUStats, name string) (uint64, bool) {
		n, ok := cpu.Counters[name]
		i := slices.IndexFunc(before.CPUs, func(c CPUStats) bool { return c.CPU == cpu.CPU })
		if i < 0 {
			return n, ok && len(before.CPUs) > 0
		}
		was, known := before.CPUs[i].Counters[name]
		grown := uint32(n) - uint32(was)
		return uint64(grown), ok && known && grown < 1<<31
	})
}

// sum adds up, over the CPUs, what all of them have.
func (s *Stats) sum(value func(cpu CPUStats, name string) (uint64, bool)) Counters {
	out := Counters{}
	if len(s.CPUs) == 0 {
		return out
	}
	for name := range s.CPUs[0].Counters {
		var sum uint64
		known := true
		for _, cpu := range s.CPUs {
			n, ok := value(cpu, name)
			sum, known = sum+n, known && ok
		}
		if known {
			out[name] = sum
		}
	}
	return out
}

// Requests of ctnetlink, their attributes by the names of Counters (linux/netfilter/nfnetlink_conntrack.h,
// enum ctattr_stats_cpu), and the file with the same in text.
const (
	msgGetStatsCPU = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4
	msgGetStats    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5

	ctaStatsGlobalEntries, ctaStatsGlobalMax = 1, 2

	procStat = "/proc/net/stat/nf_conntrack"
)

// counterOf names an attribute of the statistics of a CPU. Those that the
// kernel no longer counts are left out.
var counterOf = map[uint16]string{
	2: "found", 4: "invalid", 8: "insert", 9: "insert_failed", 10: "drop", 11: "early_drop",
	12: "error", 13: "search_restart", 14: "clash_resolve", 15: "chaintoolong",
}

// columnOf names the columns of procStat that have other names there
// (net/netfilter/nf_conntrack_standalone.c, ct_cpu_seq_show). Those of Counters
// keep theirs; of chainlength only kernels with clashres make use.
var columnOf = map[string]string{"clashres": "clash_resolve", "icmp_error": "error", "chainlength": "chaintoolong"}

// ReadStats reads the statistics over netlink and, from a kernel without
// ctnetlink, from /proc/net/stat/nf_conntrack under root, which several
// distributions' kernels lack. It needs CAP_NET_ADMIN. Where connection tracking
// is not loaded it must not be called: asking over netlink would load it.
func ReadStats(root string) (*Stats, error) {
	s, err := readStats()
	if err == nil {
		return s, nil
	}
	text, fileErr := os.ReadFile(filepath.Join(root, procStat))
	if fileErr == nil {
		if cpus := parseProcStats(string(text)); len(cpus) > 0 {
			return &Stats{CPUs: cpus, From: procStat}, nil
		}
		fileErr = fmt.Errorf("%s tells nothing", procStat)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		err = errors.New("the kernel has no ctnetlink")
	}
	if errors.Is(fileErr, fs.ErrNotExist) {
		fileErr = fmt.Errorf("there is no %s", procStat)
	}
	return nil, fmt.Errorf("reading the statistics of connection tracking: %w, and %w", err, fileErr)
}

func readStats() (*Stats, error) {
	sock, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer sock.Close()
	s := &Stats{From: "netlink"}
	request := []byte{unix.AF_UNSPEC, 0, 0, 0} // struct nfgenmsg
	if err := sock.Ask(msgGetStatsCPU, unix.NLM_F_DUMP, request, func(msg []byte) bool {
		if cpu, ok := parseCPUStats(msg); ok {
			s.CPUs = append(s.CPUs, cpu)
		}
		return true
	}); err != nil {
		return nil, err
	}
	if len(s.CPUs) == 0 {
		return nil, errors.New("the kernel told of no CPU")
	}
	slices.SortFunc(s.CPUs, func(a, b CPUStats) int { return a.CPU - b.CPU })
	// The rest is known from /proc/sys too: without it the counters still stand.
	_ = sock.Ask(msgGetStats, 0, request, func(msg []byte) bool {
		s.Entries, s.Max = parseGlobalStats(msg)
		return false
	})
	return s, nil
}

// parseCPUStats reads one CPU's statistics behind the netlink header: a struct
// nfgenmsg, whose res_id is the CPU's number, and attributes of 32 bits.
func parseCPUStats(msg []byte) (CPUStats, bool) {
	if len(msg) < 4 {
		return CPUStats{}, false
	}
	c := CPUStats{CPU: int(binary.BigEndian.Uint16(msg[2:])), Counters: Counters{}}
	netlink.Attributes(msg[4:], func(typ uint16, v []byte) {
		if name := counterOf[typ]; name != "" && len(v) == 4 {
			c.Counters[name] = uint64(binary.BigEndian.Uint32(v))
		}
	})
	return c, len(c.Counters) > 0
}

func parseGlobalStats(msg []byte) (entries, max *uint64) {
	if len(msg) < 4 {
		return nil, nil
	}
	netlink.Attributes(msg[4:], func(typ uint16, v []byte) {
		if len(v) != 4 {
			return
		}
		n := uint64(binary.BigEndian.Uint32(v))
		switch typ {
		case ctaStatsGlobalEntries:
			entries = &n
		case ctaStatsGlobalMax:
			max = &n
		}
	})
	return entries, max
}

// parseProcStats reads /proc/net/stat/nf_conntrack: a line of names, then a line
// of hexadecimal numbers for each CPU that can be.
func parseProcStats(text string) []CPUStats {
	var columns []string
	var cpus []CPUStats
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if columns == nil {
			clashes := slices.Contains(words, "clashres")
			for _, w := range words {
				switch name := columnOf[w]; {
				case name == "chaintoolong" && !clashes:
					w = ""
				case name != "":
					w = name
				case !slices.Contains(slices.Collect(maps.Values(counterOf)), w):
					w = ""
				}
				columns = append(columns, w)
			}
			continue
		}
		c := CPUStats{CPU: len(cpus), Counters: Counters{}}
		for i, w := range words {
			if n, err := strconv.ParseUint(w, 16, 32); err == nil && i < len(columns) && columns[i] != "" {
				c.Counters[columns[i]] = n
			}
		}
		if len(c.Counters) > 0 {
			cpus = append(cpus, c)
		}
	}
	return cpus
}
