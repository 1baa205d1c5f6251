package netlink

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// batchRequests is how many requests go to the kernel at once.
	batchRequests = 256
	// batchBytes bounds them too: the kernel takes no more than its send buffer
	// (net.core.wmem_default, 208 KiB) in one message.
	batchBytes = 96 << 10
	// batchAnswers is the receive buffer of a batch: an answer of 36 bytes weighs
	// a KiB or so, and each request may be refused.
	batchAnswers = 4 << 20
)

// Batch sends many requests to the kernel, a few hundred in one go. Each is
// carried out by itself, in order: one that is refused keeps no other back.
type Batch struct {
	s       *Socket
	refused func(typ, flags uint16, body []byte, why unix.Errno)
	b       []byte
	ends    []int // of each request in b
}

// NewBatch begins a batch on a socket, which is used for nothing else meanwhile.
// What the kernel refuses is handed to refused, whose body is gone when it returns.
func (s *Socket) NewBatch(refused func(typ, flags uint16, body []byte, why unix.Errno)) *Batch {
	// Answers must not be lost: without the right to force it, as much as is let.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, batchAnswers) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, batchAnswers)
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1) // refusals do not repeat the request
	return &Batch{s: s, refused: refused}
}

// Add adds a request, and sends those that have come together when they are
// many. An error is the socket's, not the kernel's answer.
func (b *Batch) Add(typ, flags uint16, body []byte) error {
	if len(b.ends) == batchRequests || len(b.ends) > 0 && len(b.b)+unix.NLMSG_HDRLEN+len(body) > batchBytes {
		if err := b.Flush(); err != nil {
			return err
		}
	}
	b.s.seq++
	b.b = appendRequest(b.b, typ, flags, b.s.seq, body)
	b.ends = append(b.ends, len(b.b))
	return nil
}

// Flush sends what has come together, and returns when the kernel has done with it.
func (b *Batch) Flush() error {
	n := len(b.ends)
	if n == 0 {
		return nil
	}
	last, first := b.s.seq, b.s.seq-uint32(n)+1
	start := 0 // the last one is answered in any case, and ends the wait
	if n > 1 {
		start = b.ends[n-2]
	}
	flags := b.b[start+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	err := b.s.send(b.b)
	for done := false; err == nil && !done; {
		var size int
		if size, err = b.s.receive(b.s.buf); err == nil {
			done, err = b.answers(b.s.buf[:size], first, last)
		}
	}
	b.b, b.ends = b.b[:0], b.ends[:0]
	return err
}

// answers walks what one read returned, and reports whether the last request is
// answered.
func (b *Batch) answers(read []byte, first, last uint32) (done bool, err error) {
	for len(read) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(read))
		if size < unix.NLMSG_HDRLEN || size > len(read) {
			return true, fmt.Errorf("a netlink message of %d bytes in %d", size, len(read))
		}
		body, seq := read[unix.NLMSG_HDRLEN:size], binary.NativeEndian.Uint32(read[8:])
		if typ := binary.NativeEndian.Uint16(read[4:]); typ == unix.NLMSG_ERROR && len(body) >= 4 && seq-first <= last-first {
			if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
				b.refuse(int(seq-first), unix.Errno(-code))
			}
			done = done || seq == last
		}
		read = read[min(Align(size), len(read)):]
	}
	return done, nil
}

func (b *Batch) refuse(i int, why unix.Errno) {
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	head := b.b[start:]
	b.refused(binary.NativeEndian.Uint16(head[4:]), binary.NativeEndian.Uint16(head[6:])&^(unix.NLM_F_REQUEST|unix.NLM_F_ACK), b.b[start+unix.NLMSG_HDRLEN:start+int(binary.NativeEndian.Uint32(head))], why)
}
