package flows

import (
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// operators returns the sessions through which this process is reached: what
// SSH_CONNECTION names, and the sockets of the ssh servers among its parents,
// which sudo does not hide.
func operators(root, sshConnection string, pid int, sockets []socket) []host.Session {
	var out []host.Session
	add := func(s host.Session) {
		for _, o := range out {
			if o == s {
				return
			}
		}
		out = append(out, s)
	}
	if s, ok := parseSSH(sshConnection); ok {
		add(s)
	}
	inodes := map[uint32]bool{}
	for range 64 { // no ancestry is longer, and a loop cannot be
		name, parent, ok := process(root, pid)
		if !ok {
			break
		}
		if strings.HasPrefix(name, "sshd") || name == "dropbear" {
			for _, inode := range socketsOf(root, pid) {
				inodes[inode] = true
			}
		}
		pid = parent
	}
	for _, s := range sockets {
		if inodes[s.inode] && s.Remote.IsValid() {
			add(host.Session{Local: s.Local, Remote: s.Remote})
		}
	}
	return out
}

// parseSSH reads SSH_CONNECTION (ssh(1)): client address and port, server
// address and port.
func parseSSH(text string) (s host.Session, ok bool) {
	f := strings.Fields(text)
	if len(f) != 4 {
		return s, false
	}
	end := func(addr, port string) (netip.AddrPort, bool) {
		a, err := netip.ParseAddr(addr)
		p, err2 := strconv.ParseUint(port, 10, 16)
		return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(p)), err == nil && err2 == nil
	}
	remote, ok1 := end(f[0], f[1])
	local, ok2 := end(f[2], f[3])
	return host.Session{Local: local, Remote: remote}, ok1 && ok2
}

// process reads a process's name and parent from /proc/PID/stat (proc(5)).
func process(root string, pid int) (name string, parent int, ok bool) {
	if pid <= 1 {
		return "", 0, false
	}
	data, err := os.ReadFile(root + "/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, false
	}
	text := string(data)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return "", 0, false
	}
	rest := strings.Fields(text[end+1:])
	if len(rest) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(rest[1])
	return text[open+1 : end], parent, err == nil
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
