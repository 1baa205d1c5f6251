package flows

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// TCP states (net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpClose       = 7 // UDP is in it
	tcpCloseWait   = 8
	tcpListen      = 10

	wantedStates = 1<<tcpEstablished | 1<<tcpFinWait1 | 1<<tcpFinWait2 | 1<<tcpClose | 1<<tcpCloseWait | 1<<tcpListen
)

const (
	msgSockDiag = 20 // SOCK_DIAG_BY_FAMILY
	diagRequest = 56 // bytes of struct inet_diag_req_v2
	diagMessage = 72 // bytes of struct inet_diag_msg
	diagV6Only  = 11 // INET_DIAG_SKV6ONLY
)

// socket is a socket with the inode that processes know it by.
type socket struct {
	host.Socket
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
			binary.NativeEndian.PutUint32(req[4:], wantedStates)
			err := netlink.Dump(unix.NETLINK_SOCK_DIAG, msgSockDiag, req, func(msg []byte) bool {
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
		switch state {
		case tcpListen, tcpEstablished, tcpCloseWait:
			ok = true
		case tcpFinWait1, tcpFinWait2:
			ok = s.inode != 0 // half closed: a process still reads from it
		}
	default:
		s.Listening = s.Remote.Port() == 0
		ok = true
	}
	if s.Listening {
		s.Remote = netip.AddrPort{}
	}
	s.Dual = b[0] == unix.AF_INET6 && s.Listening && s.Local.Addr() == netip.IPv6Unspecified()
	netlink.Attributes(b[diagMessage:], func(typ uint16, v []byte) {
		if typ == diagV6Only && len(v) == 1 && v[0] == 1 {
			s.Dual = false
		}
	})
	return s, ok && s.Local.Port() != 0
}
