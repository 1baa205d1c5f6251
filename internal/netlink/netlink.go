// Package netlink asks the kernel questions over netlink, and hands on what it
// answers as it comes, without keeping it.
//
// It owns the socket, the framing of messages and the walk over attributes. It
// knows no protocol: what a request says and an answer means is its caller's.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// receiveBytes is the buffer of one read: the kernel fills at most 32 KiB of a
// dump at a time (net/netlink/af_netlink.c, netlink_recvmsg), and messages are
// used before the next read.
const receiveBytes = 64 << 10

// ErrInterrupted is when what a dump lists changed meanwhile
// (NLM_F_DUMP_INTR): the answer may lack things that were there all the time.
var ErrInterrupted = errors.New("it changed while it was being read")

// Dump sends one request for a list to a bus (NETLINK_…), from the network
// namespace that the calling thread stands in, and hands every message of the
// answer to each, without its header. Messages live until each returns.
func Dump(bus int, typ uint16, request []byte, each func(msg []byte) (more bool)) error {
	s, err := Open(bus)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Ask(typ, unix.NLM_F_DUMP, request, each)
}

// Socket is a socket to the kernel, with room for what it answers.
type Socket struct {
	fd  int
	buf []byte
	seq uint32
}

// Open opens a socket to a bus in the network namespace that the calling
// thread stands in.
func Open(bus int) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, bus)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &Socket{fd: fd, buf: make([]byte, receiveBytes)}, nil
}

// Close closes the socket.
func (s *Socket) Close() { unix.Close(s.fd) }

// Tell sends requests, one after the other in one go, and waits for no answer:
// the kernel has done with them when it returns.
func Tell(bus int, requests ...Request) error {
	s, err := Open(bus)
	if err != nil {
		return err
	}
	defer s.Close()
	var b []byte
	for _, r := range requests {
		s.seq++
		b = appendRequest(b, r.Type, r.Flags, s.seq, r.Body)
	}
	return s.send(b)
}

// Transact sends requests in one go, one of which at least asks for an answer
// (NLM_F_ACK), and returns what the kernel refuses, a unix.Errno, with the index of
// the request: -1 where it names none. Without an error it has taken them all.
func Transact(bus int, requests []Request) (at int, err error) {
	s, err := Open(bus)
	if err != nil {
		return -1, err
	}
	defer s.Close()
	var b []byte
	for i, r := range requests {
		b = appendRequest(b, r.Type, r.Flags, uint32(i), r.Body)
	}
	// Room for all of it at once, where that is more than a socket has by itself.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b)+len(b)/2+sendBytes)
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, maxRefusals)
	if err := s.send(b); err != nil {
		return -1, err
	}
	acknowledged := false
	for {
		// The kernel has answered when the sending returns.
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && acknowledged:
			return -1, nil
		case errors.Is(err, unix.EAGAIN):
			return -1, errors.New("the kernel did not say that it has taken it")
		case err != nil:
			return -1, os.NewSyscallError("recvfrom", err)
		}
		for m := s.buf[:n]; len(m) >= unix.NLMSG_HDRLEN+4; {
			size := int(binary.NativeEndian.Uint32(m))
			if size < unix.NLMSG_HDRLEN+4 || size > len(m) {
				return -1, fmt.Errorf("a netlink message of %d bytes in %d", size, len(m))
			}
			if binary.NativeEndian.Uint16(m[4:]) == unix.NLMSG_ERROR {
				if code := int32(binary.NativeEndian.Uint32(m[unix.NLMSG_HDRLEN:])); code != 0 {
					return int(binary.NativeEndian.Uint32(m[8:])), unix.Errno(-code)
				}
				acknowledged = true
			}
			m = m[min(Align(size), len(m)):]
		}
	}
}

const (
	sendBytes   = 64 << 10 // beside the messages
	maxRefusals = 1 << 20  // for what the kernel says of each request that it refuses
)

// Request is one message to the kernel, behind its header.
type Request struct {
	Type  uint16
	Flags uint16 // beside NLM_F_REQUEST
	Body  []byte
}

func (s *Socket) send(b []byte) error {
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func appendRequest(b []byte, typ, flags uint16, seq uint32, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // to the kernel
	b = append(b, body...)
	return append(b, make([]byte, Align(len(body))-len(body))...)
}

// Ask sends one request and hands every message of the answer to each, until
// that wants no more; then the socket is good for nothing but to be closed.
// What the kernel refuses is a unix.Errno.
func (s *Socket) Ask(typ, flags uint16, request []byte, each func(msg []byte) (more bool)) error {
	s.seq++
	if err := s.send(appendRequest(nil, typ, flags, s.seq, request)); err != nil {
		return err
	}
	var a answer
	for !a.done {
		n, err := s.receive(s.buf)
		if err != nil {
			return err
		}
		if err := a.take(s.buf[:n], each); err != nil {
			return err
		}
	}
	return a.end()
}

// answer is how far an answer has come.
type answer struct{ done, changed bool }

func (a *answer) take(read []byte, each func([]byte) bool) error {
	done, changed, err := messages(read, each)
	a.done, a.changed = done, a.changed || changed
	return err
}

func (a *answer) end() error {
	if a.changed {
		return ErrInterrupted
	}
	return nil
}

func (s *Socket) receive(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, os.NewSyscallError("recvfrom", err)
		}
	}
}

// messages walks what one read returned.
func messages(b []byte, each func([]byte) bool) (done, changed bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return true, changed, fmt.Errorf("a netlink message of %d bytes in %d", size, len(b))
		}
		body := b[unix.NLMSG_HDRLEN:size]
		changed = changed || binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_DUMP_INTR != 0
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR: // both may carry an error
			if len(body) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
					return true, changed, unix.Errno(-code)
				}
			}
			return true, changed, nil
		case unix.NLMSG_NOOP, unix.NLMSG_OVERRUN:
		default:
			if !each(body) {
				return true, changed, nil
			}
		}
		b = b[min(Align(size), len(b)):]
	}
	return false, changed, nil
}

// Align is a length as netlink pads it: to whole fours.
func Align(n int) int { return (n + 3) &^ 3 }

// typeMask is an attribute's type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const typeMask = 0x3fff

// Attributes walks netlink attributes. It stops at the first that is not whole.
func Attributes(b []byte, each func(typ uint16, value []byte)) {
	for a := Walk(b); a.Next(); {
		each(a.Type, a.Value)
	}
}

// Attribute is one netlink attribute of several, which Next moves on. It costs
// nothing where there are millions of them.
type Attribute struct {
	Type  uint16 // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	Value []byte
	rest  []byte // what comes behind it
}

// Walk stands before the first attribute.
func Walk(b []byte) Attribute { return Attribute{rest: b} }

// Next reports whether there is another that is whole.
func (a *Attribute) Next() bool {
	if len(a.rest) < unix.NLA_HDRLEN {
		return false
	}
	size := int(binary.NativeEndian.Uint16(a.rest))
	if size < unix.NLA_HDRLEN || size > len(a.rest) {
		return false
	}
	a.Type, a.Value = binary.NativeEndian.Uint16(a.rest[2:])&typeMask, a.rest[unix.NLA_HDRLEN:size]
	a.rest = a.rest[min(Align(size), len(a.rest)):]
	return true
}

// ByType sorts attributes into a list by their type; of one that stands twice
// the last counts, and what the list has no place for is left out.
func ByType(b []byte, into [][]byte) {
	clear(into)
	Attributes(b, func(typ uint16, value []byte) {
		if int(typ) < len(into) {
			into[typ] = value
		}
	})
}

// AppendAttribute adds an attribute and its padding.
func AppendAttribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, Align(len(value))-len(value))...)
}
