package flows

import (
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner/host"
)

// SSH is an SSH connection that a process was reached over. Its ends are the
// zero AddrPort where they cannot be told.
type SSH struct {
	host.Session
	// Began is when the ssh server began to serve it, after boot
	// (CLOCK_BOOTTIME), to 10 ms; 0 where no server is among the parents.
	Began time.Duration
}

// Reached returns the SSH connections that this process may have been reached
// over: none on a console, in a service or from cron; one in an SSH session,
// whatever stands between, sudo too; in tmux and screen one for each terminal
// that shows them, for whose keys came is not known. It needs root: sudo drops
// SSH_CONNECTION, and the processes above still have it.
func Reached(root string) []SSH {
	return reached(root, os.Getpid(), func() []socket {
		sockets, _ := readSockets(root, false)
		return sockets
	})
}

// ancestry is how many parents are looked at: none is longer, and a loop cannot be.
const ancestry = 64

// maxEnviron bounds what is read of an environment, in bytes.
const maxEnviron = 1 << 20

func reached(root string, pid int, sockets func() []socket) []SSH {
	// A multiplexer's clients are reached in their turn, which may be in another.
	return reachedThrough(root, pid, sockets, map[int]bool{})
}

func reachedThrough(root string, pid int, sockets func() []socket, seen map[int]bool) (out []SSH) {
	var nearest, highest host.Session
	for range ancestry {
		p, ok := process(root, pid)
		if !ok || seen[pid] {
			break
		}
		seen[pid] = true
		if p.servesSSH() {
			// What the server itself gave to its child is the truth; a variable
			// further down may have been kept from elsewhere.
			c := SSH{Session: highest, Began: p.began}
			if !c.Remote.IsValid() {
				c.Session = peer(socketsOf(root, pid), sockets())
			}
			return []SSH{c}
		}
		if p.multiplexes() {
			for _, client := range clients(root, p, pid) {
				out = append(out, reachedThrough(root, client, sockets, seen)...)
			}
			if len(out) > 0 {
				return out
			}
		}
		if s, ok := environSSH(root, pid); ok {
			if highest = s; !nearest.Remote.IsValid() {
				nearest = s
			}
		}
		pid = p.parent
	}
	if nearest.Remote.IsValid() {
		return []SSH{{Session: nearest}}
	}
	return nil
}

// peer is the connection that one of an ssh server's sockets stands for: of
// several, which forwarding makes, the one to the lowest port of this host.
func peer(inodes []uint32, sockets []socket) (s host.Session) {
	for _, k := range sockets {
		if k.Remote.IsValid() && slices.Contains(inodes, k.inode) && (!s.Remote.IsValid() || k.Local.Port() < s.Local.Port()) {
			s = host.Session{Local: k.Local, Remote: k.Remote}
		}
	}
	return s
}

// servesSSH reports whether a process is an ssh server's: sshd, since 9.8
// sshd-session, or dropbear.
func (p proc) servesSSH() bool {
	return strings.HasPrefix(p.name, "sshd") || p.name == "dropbear"
}

// multiplexes reports whether a process holds terminals that others show.
func (p proc) multiplexes() bool {
	return strings.HasPrefix(p.name, "tmux: server") || p.name == "screen" || p.name == "SCREEN"
}

// clients are the processes of the same user that show what a multiplexer holds.
func clients(root string, server proc, pid int) (pids []int) {
	entries, err := os.ReadDir(root + "/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n == pid {
			continue
		}
		p, ok := process(root, n)
		if !ok || p.owner != server.owner {
			continue
		}
		if strings.HasPrefix(server.name, "tmux") && strings.HasPrefix(p.name, "tmux: client") || strings.EqualFold(p.name, server.name) {
			pids = append(pids, n)
		}
	}
	return pids
}

// environSSH reads SSH_CONNECTION, or SSH_CLIENT as older servers have it alone
// (client address and port, server port), from what a process was started with.
func environSSH(root string, pid int) (host.Session, bool) {
	f, err := os.Open(root + "/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return host.Session{}, false
	}
	defer f.Close()
	data := make([]byte, maxEnviron)
	n := 0
	for n < len(data) {
		more, err := f.Read(data[n:])
		if n += more; err != nil {
			break
		}
	}
	var client host.Session
	for v := range bytes.SplitSeq(data[:n], []byte{0}) {
		if text, ok := bytes.CutPrefix(v, []byte("SSH_CONNECTION=")); ok {
			if s, ok := ParseConnection(string(text)); ok {
				return s, true
			}
		} else if text, ok := bytes.CutPrefix(v, []byte("SSH_CLIENT=")); ok {
			if w := strings.Fields(string(text)); len(w) == 3 {
				client.Remote, _ = parseEnd(w[0], w[1])
			}
		}
	}
	return client, client.Remote.IsValid()
}

// parseEnd reads an address and a port.
func parseEnd(addr, port string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(addr)
	p, err2 := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(p)), err == nil && err2 == nil
}
