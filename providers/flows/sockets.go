package flows

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner"
)

// TCP states (net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpCloseWait   = 8
	tcpListen      = 10
)

const (
	msgSockDiag = 20 // SOCK_DIAG_BY_FAMILY
	diagRequest = 56 // bytes of struct inet_diag_req_v2
	diagMessage = 72 // bytes of struct inet_diag_msg
)

// socket is a socket with the inode that processes know it by.
type socket struct {
	planner.Socket
	inode uint32
}

// readSockets reads the TCP sockets that are connected or listen, and the UDP
// sockets that are bound.
func readSockets() ([]socket, error) {
	var list []socket
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			req := make([]byte, diagRequest)
			req[0], req[1] = family, proto
			binary.NativeEndian.PutUint32(req[4:], 1<<tcpEstablished|1<<tcpCloseWait|1<<tcpListen|1<<7) // UDP is in state CLOSE, 7
			err := dump(unix.NETLINK_SOCK_DIAG, msgSockDiag, req, func(msg []byte) bool {
				if s, ok := parseSocket(proto, msg); ok {
					list = append(list, s)
				}
				return true
			})
			if err != nil {
				return list, err
			}
		}
	}
	return list, nil
}

// parseSocket reads a struct inet_diag_msg (linux/inet_diag.h).
func parseSocket(proto uint8, b []byte) (s socket, ok bool) {
	if len(b) < diagMessage {
		return s, false
	}
	state := b[1]
	address := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
	}
	s.Protocol = proto
	s.Local = netip.AddrPortFrom(address(8), binary.BigEndian.Uint16(b[4:]))
	s.Remote = netip.AddrPortFrom(address(24), binary.BigEndian.Uint16(b[6:]))
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.inode = binary.NativeEndian.Uint32(b[68:])
	switch proto {
	case unix.IPPROTO_TCP:
		s.Listening = state == tcpListen
		ok = s.Listening || state == tcpEstablished || state == tcpCloseWait
	default:
		s.Listening = s.Remote.Port() == 0
		ok = true
	}
	if s.Listening {
		s.Remote = netip.AddrPort{}
	}
	s.Dual = b[0] == unix.AF_INET6 && s.Listening && s.Local.Addr() == netip.IPv6Unspecified()
	return s, ok && s.Local.Port() != 0
}
