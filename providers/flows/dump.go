package flows

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

// dump sends one netlink request and hands every message of the answer to
// each, without its header. Messages live until each returns.
func dump(bus int, typ uint16, request []byte, each func(msg []byte) (more bool)) error {
	s, err := open(bus)
	if err != nil {
		return err
	}
	defer unix.Close(s.fd)
	return s.ask(typ, unix.NLM_F_DUMP, request, each)
}

// netlinkSocket is a socket to the kernel, with room for what it answers.
type netlinkSocket struct {
	fd  int
	buf []byte
}

func open(bus int) (*netlinkSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, bus)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &netlinkSocket{fd, make([]byte, receiveBytes)}, nil
}

// ask sends one request and hands every message of the answer to each.
func (s *netlinkSocket) ask(typ, flags uint16, request []byte, each func(msg []byte) (more bool)) error {
	if err := s.send(typ, flags, request); err != nil {
		return err
	}
	for {
		n, err := s.receive(s.buf)
		if err != nil {
			return err
		}
		done, err := messages(s.buf[:n], each)
		if done || err != nil {
			return err
		}
	}
}

func (s *netlinkSocket) send(typ, flags uint16, request []byte) error {
	msg := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+len(request))
	binary.NativeEndian.PutUint32(msg, uint32(unix.NLMSG_HDRLEN+len(request)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(msg[8:], 1)
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, append(msg, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func (s *netlinkSocket) receive(buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, os.NewSyscallError("recvfrom", err)
		}
	}
}

// ahead is how many reads dumpAhead is ahead of what uses them.
const ahead = 4

// dumpAhead is dump for long answers: while each is at one read, the kernel
// makes the next, on another CPU where there is one.
func dumpAhead(bus int, typ uint16, request []byte, each func(msg []byte) (more bool)) error {
	s, err := open(bus)
	if err != nil {
		return err
	}
	if err := s.send(typ, unix.NLM_F_DUMP, request); err != nil {
		unix.Close(s.fd)
		return err
	}
	type read struct {
		buf []byte
		n   int
		err error
	}
	reads, free, quit := make(chan read), make(chan []byte, ahead), make(chan struct{})
	for range ahead {
		free <- make([]byte, receiveBytes)
	}
	go func() {
		defer unix.Close(s.fd)
		for {
			var r read
			select {
			case <-quit:
				return
			case r.buf = <-free:
			}
			r.n, r.err = s.receive(r.buf)
			// Behind the end there is nothing to wait for.
			done, err := messages(r.buf[:max(0, r.n)], func([]byte) bool { return true })
			select {
			case <-quit:
				return
			case reads <- r:
			}
			if done || err != nil || r.err != nil {
				return
			}
		}
	}()
	defer close(quit)
	for {
		r := <-reads
		if r.err != nil {
			return r.err
		}
		done, err := messages(r.buf[:r.n], each)
		if done || err != nil {
			return err
		}
		free <- r.buf
	}
}

// messages walks what one read returned.
func messages(b []byte, each func([]byte) bool) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return true, fmt.Errorf("a netlink message of %d bytes in %d", size, len(b))
		}
		body := b[unix.NLMSG_HDRLEN:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return true, unix.Errno(-code)
				}
			}
			return true, nil
		case unix.NLMSG_NOOP, unix.NLMSG_OVERRUN:
		default:
			if !each(body) {
				return true, nil
			}
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

func align(n int) int { return (n + 3) &^ 3 }

// attributes walks netlink attributes. It stops at the first that is not whole.
func attributes(b []byte, each func(typ uint16, value []byte)) {
	for a := (attrs{rest: b}); a.next(); {
		each(a.typ, a.value)
	}
}

// attrs is one netlink attribute of several, which next moves on. It costs
// nothing where there are millions of them.
type attrs struct {
	typ   uint16 // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	value []byte
	rest  []byte // what comes behind it
}

// next reports whether there is another that is whole.
func (a *attrs) next() bool {
	if len(a.rest) < 4 {
		return false
	}
	size := int(binary.NativeEndian.Uint16(a.rest))
	if size < 4 || size > len(a.rest) {
		return false
	}
	a.typ, a.value = binary.NativeEndian.Uint16(a.rest[2:])&0x3fff, a.rest[4:size]
	a.rest = a.rest[min(align(size), len(a.rest)):]
	return true
}
