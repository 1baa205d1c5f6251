package netlink

import "golang.org/x/sys/unix"

// ahead is how many reads DumpAhead is ahead of what uses them.
const ahead = 4

// read is what one read returned.
type read struct {
	buf []byte
	n   int
	err error
}

// DumpAhead is Dump for long answers: while each is at one read, the kernel
// makes the next, on another CPU where there is one.
func DumpAhead(bus int, typ uint16, request []byte, each func(msg []byte) (more bool)) error {
	s, err := Open(bus)
	if err != nil {
		return err
	}
	if err := s.send(appendRequest(nil, typ, unix.NLM_F_DUMP, 1, request)); err != nil {
		s.Close()
		return err
	}
	reads, free, quit := make(chan read), make(chan []byte, ahead), make(chan struct{})
	for range ahead {
		free <- make([]byte, receiveBytes)
	}
	go s.readAhead(reads, free, quit)
	defer close(quit)
	var a answer
	for !a.done {
		r := <-reads
		if r.err != nil {
			return r.err
		}
		if err := a.take(r.buf[:r.n], each); err != nil {
			return err
		}
		free <- r.buf
	}
	return a.end()
}

// readAhead reads an answer to its end, into what is free, and closes the socket.
func (s *Socket) readAhead(reads chan<- read, free <-chan []byte, quit <-chan struct{}) {
	defer s.Close()
	for {
		var r read
		select {
		case <-quit:
			return
		case r.buf = <-free:
		}
		r.n, r.err = s.receive(r.buf)
		// Behind the end there is nothing to wait for.
		done, _, err := messages(r.buf[:max(0, r.n)], func([]byte) bool { return true })
		select {
		case <-quit:
			return
		case reads <- r:
		}
		if done || err != nil || r.err != nil {
			return
		}
	}
}
