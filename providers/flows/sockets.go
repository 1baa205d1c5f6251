package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
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
	tcpLastAck     = 9
	tcpListen      = 10
	tcpClosing     = 11

	openStates   = wantedStates | 1<<tcpLastAck | 1<<tcpClosing
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
// sockets that are bound: over netlink, or from /proc where the kernel has no
// inet_diag and may load none. recorded is whether root is another host's.
func readSockets(root string, recorded bool) ([]socket, error) {
	var list []socket
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			found, err := []socket(nil), errRecorded
			if !recorded {
				found, err = diagSockets(proto, family)
			}
			if err != nil {
				diag := err
				if found, err = procSockets(root, proto, family); err != nil {
					return list, errors.Join(diag, err)
				}
			}
			list = append(list, found...)
		}
	}
	return list, nil
}

// errRecorded is why a host is not asked of which only files are here.
var errRecorded = errors.New("only its files are here")

func diagSockets(proto, family uint8) (list []socket, err error) {
	return diagStates(proto, family, wantedStates, (*socket).keep)
}

// diagStates reads sockets in some states, of which keep tells those to return.
func diagStates(proto, family uint8, states uint32, keep func(s *socket, state uint8, v6 bool) bool) (list []socket, err error) {
	req := make([]byte, diagRequest)
	req[0], req[1] = family, proto
	binary.NativeEndian.PutUint32(req[4:], states)
	err = netlink.Dump(unix.NETLINK_SOCK_DIAG, msgSockDiag, req, func(msg []byte) bool {
		if s, ok := parseSocket(proto, msg, keep); ok {
			list = append(list, s)
		}
		return true
	})
	return list, err
}

// parseSocket reads a struct inet_diag_msg (linux/inet_diag.h).
func parseSocket(proto uint8, b []byte, keep func(s *socket, state uint8, v6 bool) bool) (s socket, ok bool) {
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
	ok = keep(&s, state, b[0] == unix.AF_INET6)
	netlink.Attributes(b[diagMessage:], func(typ uint16, v []byte) {
		if typ == diagV6Only && len(v) == 1 && v[0] == 1 {
			s.Dual = false
		}
	})
	return s, ok
}

// keep tells what a socket is by its state, and reports whether it matters here.
func (s *socket) keep(state uint8, v6 bool) (ok bool) {
	switch s.Protocol {
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
	s.Dual = v6 && s.Listening && s.Local.Addr() == netip.IPv6Unspecified()
	return ok && s.Local.Port() != 0
}

// Sockets reads the sockets of this network namespace that packets may still be
// due for: as Read does, and TCP that its process has closed already, too.
func Sockets() ([]host.Socket, error) {
	var list []host.Socket
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			found, err := diagStates(proto, family, openStates, func(s *socket, state uint8, v6 bool) bool {
				return s.keep(state, v6) || proto == unix.IPPROTO_TCP && s.Local.Port() != 0 && s.Remote.Port() != 0
			})
			if err != nil {
				if found, err = procSockets("", proto, family); err != nil {
					return nil, fmt.Errorf("reading the sockets: %w", err)
				}
			}
			for _, s := range found {
				list = append(list, s.Socket)
			}
		}
	}
	return list, nil
}
