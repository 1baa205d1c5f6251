package flows

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Entries are saved as the kernel lists them, so that nothing of them is lost
// that it tells: behind savedHead, which this machine reads alone, each as its
// length in four bytes of the machine's order, a struct nfgenmsg, and attributes.
const (
	savedHead = "ctplan conntrack 1\n"
	maxSaved  = 16 << 10 // bytes of an entry: the kernel lists a page of them at a time, at least
)

// Saver writes entries to be put back.
type Saver struct {
	w *bufio.Writer
	// N is how many there are.
	N int64
}

// NewSaver begins to save entries.
func NewSaver(w io.Writer) (*Saver, error) {
	s := &Saver{w: bufio.NewWriterSize(w, 1<<16)}
	_, err := s.w.WriteString(savedHead)
	return s, err
}

// Flush writes out what was saved.
func (s *Saver) Flush() error { return s.w.Flush() }

func (s *Saver) add(msg []byte) error {
	var size [4]byte
	binary.NativeEndian.PutUint32(size[:], uint32(len(msg)))
	if _, err := s.w.Write(size[:]); err != nil {
		return err
	}
	_, err := s.w.Write(msg)
	s.N++
	return err
}

// Save saves every entry of this network namespace's table for which keep says
// so, with all that belongs to it: both tuples, translation, status, state, flags
// and window scales of TCP, mark, labels, zone, helper, the connection that it was
// expected by, timeout. Memory does not grow with the table. As Each, it may
// leave out entries where the hash table is resized meanwhile, and says so.
func (s *Saver) Save(ctx context.Context, keep func(*Entry) bool) error {
	return undisturbed(hashsizeFile, func() error { return s.save(ctx, keep) })
}

func (s *Saver) save(ctx context.Context, keep func(*Entry) bool) error {
	var e Entry
	var stop error
	n := 0
	err := netlink.DumpAhead(unix.NETLINK_NETFILTER, msgGetConntrack, []byte{unix.AF_UNSPEC, 0, 0, 0}, func(msg []byte) bool {
		if n++; n%ctxEvery == 0 {
			if stop = ctx.Err(); stop != nil {
				return false
			}
		}
		if e.parse(msg) && len(msg) <= maxSaved && keep(&e) {
			stop = s.add(msg)
		}
		return stop == nil
	})
	if err = errors.Join(stop, err); err != nil {
		return fmt.Errorf("saving tracked connections: %w", err)
	}
	return nil
}

// Saved is an entry that was saved.
type Saved struct {
	Entry
	msg []byte
}

// errSaved says that a file is none of saved entries, or broken.
var errSaved = errors.New("these are no saved entries of connection tracking")

// EachSaved hands every saved entry to fn, the same one each time with other
// content. What was cut off in the middle of an entry ends before it.
func EachSaved(r io.Reader, fn func(*Saved) error) error {
	in := bufio.NewReaderSize(r, 1<<16)
	head := make([]byte, len(savedHead))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != savedHead {
		return errSaved
	}
	var s Saved
	var size [4]byte
	buf := make([]byte, maxSaved)
	for {
		_, err := io.ReadFull(in, size[:])
		n := binary.NativeEndian.Uint32(size[:])
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		case n < 4 || n > maxSaved:
			return errSaved
		}
		s.msg = buf[:n]
		if _, err := io.ReadFull(in, s.msg); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		if !s.parse(s.msg) {
			return errSaved
		}
		if err := fn(&s); err != nil {
			return err
		}
	}
}

// Restore puts a saved entry in again, to be gone after timeout seconds unless a
// packet comes. Where its window is not to be relied on, since packets passed
// that nobody tracked, TCP is not held to it.
func (t *Table) Restore(s *Saved, timeout uint32) error {
	t.scratch = s.request(t.scratch[:0], timeout)
	return t.ask(msgNewConntrack, unix.NLM_F_CREATE|unix.NLM_F_EXCL, t.scratch)
}

// Remove takes a saved entry out: that one, and not another that has come for the
// same tuple since.
func (t *Table) Remove(s *Saved) error {
	b := append(t.scratch[:0], s.msg[:4]...)
	for a := netlink.Walk(s.msg[4:]); a.Next(); {
		switch a.Type {
		case ctaTupleOrig:
			b = netlink.AppendAttribute(b, a.Type|unix.NLA_F_NESTED, a.Value)
		case ctaZone, ctaID:
			b = netlink.AppendAttribute(b, a.Type, a.Value)
		}
	}
	t.scratch = b
	return t.ask(msgDeleteConntrack, 0, b)
}

// request adds a request for the entry as it was to b. The kernel is told the tuples
// from before translation, and what they are translated to (ctnetlink_create_conntrack
// in net/netfilter/nf_conntrack_netlink.c): bits of status that say so cannot be set.
func (s *Saved) request(b []byte, timeout uint32) []byte {
	b = append(b, s.msg[:4]...)
	status := s.Status&(host.StatusSeenReply|host.StatusAssured) | host.StatusConfirmed
	var orig, reply []byte
	for a := netlink.Walk(s.msg[4:]); a.Next(); {
		switch a.Type {
		case ctaTupleOrig:
			orig = a.Value
			b = netlink.AppendAttribute(b, a.Type|unix.NLA_F_NESTED, a.Value)
		case ctaTupleReply:
			reply = a.Value
		case ctaTupleMaster:
			status |= host.StatusExpected
			b = netlink.AppendAttribute(b, a.Type|unix.NLA_F_NESTED, a.Value)
		case ctaHelp, ctaSeqAdjOrig, ctaSeqAdjReply:
			b = netlink.AppendAttribute(b, a.Type|unix.NLA_F_NESTED, a.Value)
		case ctaMark, ctaZone, ctaLabels:
			b = netlink.AppendAttribute(b, a.Type, a.Value)
		case ctaProtoInfo:
			b = append(b, protoInfo(a.Value)...)
		}
	}
	var number [4]byte
	binary.BigEndian.PutUint32(number[:], status)
	b = netlink.AppendAttribute(b, ctaStatus, number[:])
	binary.BigEndian.PutUint32(number[:], timeout)
	b = netlink.AppendAttribute(b, ctaTimeout, number[:])
	if s.Status&(host.StatusSNAT|host.StatusDNAT) == 0 {
		return netlink.AppendAttribute(b, ctaTupleReply|unix.NLA_F_NESTED, reply)
	}
	b = append(b, untranslated(s, orig, reply)...)
	if s.Status&host.StatusSNAT != 0 {
		b = append(b, translation(ctaNATSrc, s.Protocol, s.Reply.Dst, s.Reply.DstPort, identifier(reply))...)
	}
	if s.Status&host.StatusDNAT != 0 {
		b = append(b, translation(ctaNATDst, s.Protocol, s.Reply.Src, s.Reply.SrcPort, identifier(reply))...)
	}
	return b
}

// untranslated is the reply's tuple as it is without translation: the original
// one turned around.
func untranslated(s *Saved, orig, reply []byte) []byte {
	inner := addressPair(s.Orig.Dst, s.Orig.Src)
	for a := netlink.Walk(reply); a.Next(); {
		switch a.Type {
		case ctaTupleProto:
			var proto []byte
			for p := netlink.Walk(a.Value); p.Next(); {
				switch p.Type {
				case ctaProtoSrcPort:
					proto = append(proto, attribute(p.Type, be16(s.Orig.DstPort))...)
				case ctaProtoDstPort:
					proto = append(proto, attribute(p.Type, be16(s.Orig.SrcPort))...)
				case ctaICMPID, ctaICMPv6ID:
					proto = append(proto, attribute(p.Type, be16(identifier(orig)))...)
				default:
					proto = netlink.AppendAttribute(proto, p.Type, p.Value)
				}
			}
			inner = append(inner, attribute(ctaTupleProto|unix.NLA_F_NESTED, proto)...)
		case ctaTupleZone:
			inner = netlink.AppendAttribute(inner, a.Type, a.Value)
		}
	}
	return attribute(ctaTupleReply|unix.NLA_F_NESTED, inner)
}

// identifier is the id of an ICMP tuple; 0 of others.
func identifier(tuple []byte) (id uint16) {
	for a := netlink.Walk(tuple); a.Next(); {
		for p := netlink.Walk(a.Value); a.Type == ctaTupleProto && p.Next(); {
			if (p.Type == ctaICMPID || p.Type == ctaICMPv6ID) && len(p.Value) == 2 {
				id = binary.BigEndian.Uint16(p.Value)
			}
		}
	}
	return id
}

// translation asks for one address and port, as a range of one.
func translation(typ uint16, proto uint8, to netip.Addr, port, id uint16) []byte {
	least, most := uint16(ctaNATIPv6Min), uint16(ctaNATIPv6Max)
	if to.Is4() {
		least, most = ctaNATIPv4Min, ctaNATIPv4Max
	}
	parts := [][]byte{attribute(least, to.AsSlice()), attribute(most, to.AsSlice())}
	if proto == protocol.ICMP || proto == protocol.ICMPv6 {
		port = id
	}
	if protocol.CarriesPorts(proto) || port != 0 {
		parts = append(parts, nested(ctaNATProto, attribute(ctaNATPortMin, be16(port)), attribute(ctaNATPortMax, be16(port))))
	}
	return nested(typ, parts...)
}

// protoInfo is what is known of TCP, with all of its flags set as they were, and
// without the window, which no entry tells: packets that passed since have moved it.
func protoInfo(b []byte) []byte {
	p := netlink.Walk(b)
	if !p.Next() {
		return nil
	}
	if p.Type != ctaProtoInfoTCP {
		return attribute(ctaProtoInfo|unix.NLA_F_NESTED, b)
	}
	var tcp []byte
	for a := netlink.Walk(p.Value); a.Next(); {
		switch {
		case (a.Type == ctaTCPFlagsOrig || a.Type == ctaTCPFlagsReply) && len(a.Value) == 2:
			tcp = append(tcp, attribute(a.Type, []byte{a.Value[0] | tcpBeLiberal, 0xff})...)
		case a.Type == ctaTCPState || a.Type == ctaTCPScaleOrig || a.Type == ctaTCPScaleReply:
			tcp = netlink.AppendAttribute(tcp, a.Type, a.Value)
		}
	}
	return nested(ctaProtoInfo, nested(ctaProtoInfoTCP, tcp))
}
