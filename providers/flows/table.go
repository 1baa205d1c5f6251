package flows

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// More of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgDeleteConntrack = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaHelp        = 5
	ctaNATSrc      = 6
	ctaID          = 12
	ctaNATDst      = 13
	ctaTupleMaster = 14
	ctaSeqAdjOrig  = 15
	ctaSeqAdjReply = 16
	ctaZone        = 18
	ctaLabels      = 22

	ctaTupleZone = 3

	ctaICMPID, ctaICMPv6ID = 4, 7

	ctaTCPScaleOrig, ctaTCPScaleReply = 2, 3

	ctaNATIPv4Min, ctaNATIPv4Max, ctaNATProto, ctaNATIPv6Min, ctaNATIPv6Max = 1, 2, 3, 4, 5
	ctaNATPortMin, ctaNATPortMax                                            = 1, 2

	tcpStateEstablished = 3 // TCP_CONNTRACK_ESTABLISHED (nf_conntrack_tcp.h)
)

// Written is what became of the entries that were put in, changed or taken out.
type Written struct {
	Done    int64 // as asked
	Present int64 // to be put in, and there already
	Gone    int64 // to be changed or taken out, and not there any more
	Bare    int64 // of Done, put in without their helper or the connection that they belong to, which the kernel did not know
	Refused map[unix.Errno]int64
}

// Failed is how many the kernel refused, and why, the most frequent reason first.
func (w Written) Failed() (n int64, why string) {
	reasons := slices.SortedFunc(maps.Keys(w.Refused), func(a, b unix.Errno) int { return int(w.Refused[b] - w.Refused[a]) })
	var text []string
	for _, r := range reasons {
		n += w.Refused[r]
		text = append(text, r.Error())
	}
	return n, strings.Join(text, "; ")
}

// Table writes the table of tracked connections of the network namespace that
// the calling thread stood in when it was opened. Requests go in batches: what
// became of them is known when Close returns. It needs CAP_NET_ADMIN. Asking the
// kernel loads connection tracking where it is not loaded.
type Table struct {
	socket  *netlink.Socket
	batch   *netlink.Batch
	written Written
	asked   int64
	scratch []byte   // a request in the making
	again   [][]byte // refused with something that can be left out
}

// OpenTable opens the table for writing.
func OpenTable() (*Table, error) {
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening the table of tracked connections: %w", err)
	}
	t := &Table{socket: s, written: Written{Refused: map[unix.Errno]int64{}}}
	t.batch = s.NewBatch(t.refused)
	return t, nil
}

// Put puts in an open connection that nobody has tracked: replied to, assured,
// and for TCP established, its windows not known. It is gone after timeout
// seconds unless a packet comes, after which its protocol's timeouts hold. One
// that is there already is left as it is.
func (t *Table) Put(f *host.Flow, timeout uint32) error {
	b := t.head(f)
	b = append(b, appendTuple(ctaTupleReply, f.Protocol, f.Reply)...)
	b = append(b, attribute(ctaStatus, be32(host.StatusConfirmed|host.StatusSeenReply|host.StatusAssured))...)
	b = append(b, attribute(ctaTimeout, be32(timeout))...)
	if f.Mark != 0 {
		b = append(b, attribute(ctaMark, be32(f.Mark))...)
	}
	if f.Protocol == unix.IPPROTO_TCP {
		flags := []byte{tcpBeLiberal, tcpBeLiberal}
		b = append(b, nested(ctaProtoInfo, nested(ctaProtoInfoTCP,
			attribute(ctaTCPState, []byte{tcpStateEstablished}), attribute(ctaTCPFlagsOrig, flags), attribute(ctaTCPFlagsReply, flags)))...)
	}
	return t.ask(msgNewConntrack, unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
}

// Renew gives an entry that is there another timeout, in seconds.
func (t *Table) Renew(f *host.Flow, timeout uint32) error {
	return t.ask(msgNewConntrack, 0, append(t.head(f), attribute(ctaTimeout, be32(timeout))...))
}

// Close sends what was not sent yet, and says what became of all.
func (t *Table) Close() (Written, error) {
	defer t.socket.Close()
	err := t.flush()
	if failed, _ := t.written.Failed(); err == nil {
		t.written.Done = t.asked - t.written.Present - t.written.Gone - failed
	}
	if err != nil {
		return t.written, fmt.Errorf("writing the table of tracked connections: %w", err)
	}
	return t.written, nil
}

func (t *Table) flush() error {
	if err := t.batch.Flush(); err != nil {
		return err
	}
	again := t.again
	t.again = nil
	for _, body := range again {
		if err := t.batch.Add(msgNewConntrack, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
			return err
		}
		t.written.Bare++
	}
	return t.batch.Flush()
}

func (t *Table) ask(typ, flags uint16, body []byte) error {
	t.asked++
	if err := t.batch.Add(typ, flags, body); err != nil {
		return fmt.Errorf("writing the table of tracked connections: %w", err)
	}
	return nil
}

// maxAgain bounds what is tried once more.
const maxAgain = 1 << 14

// refused counts what the kernel does not do. An entry whose helper is not there,
// or the connection that it belongs to, is put in without.
func (t *Table) refused(typ, flags uint16, body []byte, why unix.Errno) {
	switch {
	case why == unix.EEXIST:
		t.written.Present++
		return
	case why == unix.ENOENT && flags&unix.NLM_F_CREATE == 0:
		t.written.Gone++
		return
	}
	if bare, less := without(body); less && flags&unix.NLM_F_CREATE != 0 && len(t.again) < maxAgain {
		t.again = append(t.again, bare)
		return
	}
	t.written.Refused[why]++
}

// without is a request for an entry without what others must be there for;
// less is false where it has nothing of it.
func without(body []byte) (bare []byte, less bool) {
	bare = slices.Clone(body[:4])
	for a := netlink.Walk(body[4:]); a.Next(); {
		switch a.Type {
		case ctaHelp, ctaTupleMaster:
			less = true
		case ctaStatus:
			bare = append(bare, attribute(ctaStatus, be32(number32(a.Value)&^host.StatusExpected))...)
		case ctaTupleOrig, ctaTupleReply, ctaProtoInfo, ctaNATSrc, ctaNATDst, ctaSeqAdjOrig, ctaSeqAdjReply:
			bare = netlink.AppendAttribute(bare, a.Type|unix.NLA_F_NESTED, a.Value)
		default:
			bare = netlink.AppendAttribute(bare, a.Type, a.Value)
		}
	}
	return bare, less
}

// head is a struct nfgenmsg and the original tuple.
func (t *Table) head(f *host.Flow) []byte {
	family := byte(unix.AF_INET6)
	if f.Orig.Src.Is4() {
		family = unix.AF_INET
	}
	return append([]byte{family, 0, 0, 0}, appendTuple(ctaTupleOrig, f.Protocol, f.Orig)...)
}

func appendTuple(typ uint16, proto uint8, t host.Tuple) []byte {
	return nested(typ, addressPair(t.Src, t.Dst),
		nested(ctaTupleProto, attribute(ctaProtoNum, []byte{proto}), attribute(ctaProtoSrcPort, be16(t.SrcPort)), attribute(ctaProtoDstPort, be16(t.DstPort))))
}

func addressPair(from, to netip.Addr) []byte {
	src, dst := uint16(ctaIPv6Src), uint16(ctaIPv6Dst)
	if from.Is4() {
		src, dst = ctaIPv4Src, ctaIPv4Dst
	}
	return nested(ctaTupleIP, attribute(src, from.AsSlice()), attribute(dst, to.AsSlice()))
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
