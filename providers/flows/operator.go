package flows

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// operators returns the sessions through which this process is reached: what
// SSH_CONNECTION names, what the processes above it say (see Reached), and the
// sockets of the ssh servers among its parents, which sudo does not hide.
func operators(root, sshConnection string, pid int, sockets []socket) []host.Session {
	var out []host.Session
	add := func(s host.Session) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if s, ok := ParseConnection(sshConnection); ok {
		add(s)
	}
	for _, c := range reached(root, pid, func() []socket { return sockets }) {
		if c.Remote.IsValid() && c.Local.IsValid() {
			add(c.Session)
		}
	}
	inodes := map[uint32]bool{}
	for range ancestry {
		p, ok := process(root, pid)
		if !ok {
			break
		}
		if p.servesSSH() {
			for _, inode := range socketsOf(root, pid) {
				inodes[inode] = true
			}
		}
		pid = p.parent
	}
	for _, s := range sockets {
		if inodes[s.inode] && s.Remote.IsValid() {
			add(host.Session{Local: s.Local, Remote: s.Remote})
		}
	}
	return out
}

// ParseConnection reads SSH_CONNECTION (ssh(1)): client address and port, server
// address and port.
func ParseConnection(text string) (s host.Session, ok bool) {
	f := strings.Fields(text)
	if len(f) != 4 {
		return s, false
	}
	remote, ok1 := parseEnd(f[0], f[1])
	local, ok2 := parseEnd(f[2], f[3])
	return host.Session{Local: local, Remote: remote}, ok1 && ok2
}

// proc is what is known of a process.
type proc struct {
	name   string
	parent int
	began  time.Duration // after boot; 0 where it is not said
	owner  uint32        // its user
}

// userHz is how many clock ticks of /proc a second has (sysconf(_SC_CLK_TCK)).
const userHz = 100

// process reads /proc/PID/stat (proc_pid_stat(5)), whose second field may hold
// anything, parentheses too.
func process(root string, pid int) (p proc, ok bool) {
	if pid <= 1 {
		return p, false
	}
	name := root + "/proc/" + strconv.Itoa(pid) + "/stat"
	data, err := os.ReadFile(name)
	if err != nil {
		return p, false
	}
	text := string(data)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return p, false
	}
	rest := strings.Fields(text[end+1:])
	if len(rest) < 2 {
		return p, false
	}
	p.name = text[open+1 : end]
	if len(rest) > 19 {
		if ticks, err := strconv.ParseInt(rest[19], 10, 64); err == nil {
			p.began = time.Duration(ticks) * (time.Second / userHz)
		}
	}
	var st unix.Stat_t
	if unix.Stat(name, &st) == nil {
		p.owner = st.Uid
	}
	p.parent, err = strconv.Atoi(rest[1])
	return p, err == nil
}

func socketsOf(root string, pid int) []uint32 {
	dir := root + "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []uint32
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		if rest, ok := strings.CutPrefix(link, "socket:["); ok {
			if n, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32); err == nil {
				out = append(out, uint32(n))
			}
		}
	}
	return out
}
