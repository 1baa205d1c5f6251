package flows

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// netFolder has what the kernel tells of this thread's network namespace without
// netlink, slower and in fewer words. Kernels before 3.17 know of no threads there.
func netFolder(root string) string {
	if _, err := os.Stat(root + "/proc/thread-self"); err != nil {
		return root + "/proc/self/net/"
	}
	return root + "/proc/thread-self/net/"
}

// maxProcLine is more than any line of these files has, in bytes.
const maxProcLine = 4096

// procFile names the files that list sockets (net/ipv4/tcp_ipv4.c,
// tcp4_seq_show, and its like for UDP and IPv6).
func procFile(proto, family uint8) string {
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
	if family == unix.AF_INET6 {
		name += "6"
	}
	return name
}

// procSockets reads the sockets of a protocol and family from /proc. A kernel
// that runs without IPv6 has none of it.
func procSockets(root string, proto, family uint8) ([]socket, error) {
	f, err := os.Open(netFolder(root) + procFile(proto, family))
	if errors.Is(err, fs.ErrNotExist) && family == unix.AF_INET6 {
		if _, err := os.Stat(root + "/proc/sys/net/ipv6"); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSockets(proto, f)
}

// parseSockets reads "sl local_address rem_address st tx:rx tr:when retrnsmt uid
// timeout inode …", a line for each socket under one of names. Addresses are
// words of 32 bits as this machine has them in memory. Whether a socket of IPv6
// is closed to IPv4 is not said: it may be open.
func parseSockets(proto uint8, r io.Reader) ([]socket, error) {
	var list []socket
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxProcLine)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) < 10 || !strings.HasSuffix(w[0], ":") {
			continue
		}
		local, ok1 := procEnd(w[1])
		remote, ok2 := procEnd(w[2])
		state, err1 := strconv.ParseUint(w[3], 16, 8)
		uid, err2 := strconv.ParseUint(w[7], 10, 32)
		inode, err3 := strconv.ParseUint(w[9], 10, 32)
		if !ok1 || !ok2 || errors.Join(err1, err2, err3) != nil {
			return list, fmt.Errorf("a line that is about no socket: %q", lines.Text())
		}
		s := socket{Socket: host.Socket{Protocol: proto, Local: local, Remote: remote, UID: uint32(uid)}, inode: uint32(inode)}
		if s.keep(uint8(state), len(w[1]) > len("00000000:0000")) {
			list = append(list, s)
		}
	}
	return list, lines.Err()
}

// procEnd reads "0100007F:0016".
func procEnd(text string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(text, ":")
	b, err1 := hex.DecodeString(address)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err1 != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// tcpStates are the names that /proc/net/nf_conntrack has for the states of TCP,
// by their numbers (nf_conntrack_proto_tcp.c).
var tcpStates = []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}

// errNoTable is where the kernel does not list what it tracks.
var errNoTable = errors.New("the kernel has neither ctnetlink nor /proc/net/nf_conntrack")

// eachOfProc is each, from the file that some kernels have in place of ctnetlink.
func eachOfProc(root string, fn func(*Entry) error) error {
	f, err := os.Open(netFolder(root) + "nf_conntrack")
	if errors.Is(err, fs.ErrNotExist) {
		return errNoTable
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return parseEntries(f, fn)
}

// parseEntries reads "ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=…
// src=… dst=… sport=… dport=… [ASSURED] mark=0 zone=0 use=2", an entry a line
// (ct_seq_show in net/netfilter/nf_conntrack_standalone.c). What is not said is
// the worse: that TCP is held to its window.
func parseEntries(r io.Reader, fn func(*Entry) error) error {
	var e Entry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxProcLine)
	for lines.Scan() {
		if e.parseLine(strings.Fields(lines.Text())) {
			if err := fn(&e); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

func (e *Entry) parseLine(w []string) bool {
	*e = Entry{}
	if len(w) < 6 {
		return false
	}
	proto, err := strconv.ParseUint(w[3], 10, 8)
	if err != nil {
		return false
	}
	e.Protocol, e.Status = uint8(proto), host.StatusConfirmed|host.StatusSeenReply
	ways, way := []*host.Tuple{&e.Orig, &e.Reply}, -1
	for i, word := range w[4:] {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			e.parseWord(i, word)
			continue
		}
		if name == "src" {
			way++
		}
		if way < 0 || way >= len(ways) {
			continue
		}
		t := ways[way]
		switch name {
		case "src":
			t.Src, _ = netip.ParseAddr(value)
		case "dst":
			t.Dst, _ = netip.ParseAddr(value)
		case "sport", "srckey":
			t.SrcPort = number16(value)
		case "dport", "dstkey":
			t.DstPort = number16(value)
		case "mark":
			n, _ := strconv.ParseUint(value, 10, 32)
			e.Mark = uint32(n)
		}
	}
	if e.Orig.Dst != e.Reply.Src || e.Orig.DstPort != e.Reply.SrcPort {
		e.Status |= host.StatusDNAT
	}
	if e.Orig.Src != e.Reply.Dst || e.Orig.SrcPort != e.Reply.DstPort {
		e.Status |= host.StatusSNAT
	}
	return e.Orig.Src.IsValid() && e.Orig.Dst.IsValid() && e.Reply.Src.IsValid() && e.Reply.Dst.IsValid() && e.Protocol != 0
}

// parseWord takes a word without a value: the i-th behind the protocol.
func (e *Entry) parseWord(i int, word string) {
	switch word {
	case "[UNREPLIED]":
		e.Status &^= host.StatusSeenReply
	case "[ASSURED]":
		e.Status |= host.StatusAssured
	}
	if n, err := strconv.ParseUint(word, 10, 32); err == nil && i == 0 {
		e.Timeout = uint32(n)
	}
	if state := slices.Index(tcpStates, word); e.Protocol == unix.IPPROTO_TCP && state >= 0 {
		e.TCPState = uint8(state)
	}
}

// number16 reads a port, or a key of GRE in hexadecimal digits.
func number16(text string) uint16 {
	n, _ := strconv.ParseUint(text, 0, 16)
	return uint16(n)
}
