package flows

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgGetConntrack = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaMark       = 8

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst = 1, 2, 3, 4

	ctaProtoNum, ctaProtoSrcPort, ctaProtoDstPort = 1, 2, 3

	ctaProtoInfoTCP  = 1
	ctaTCPState      = 1
	ctaTCPFlagsOrig  = 4
	ctaTCPFlagsReply = 5

	tcpBeLiberal = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL (nf_conntrack_tcp.h)
)

// Entry is one entry of the table as the kernel lists it.
type Entry struct {
	host.Flow
	// Timeout is how many seconds the entry stays unless another packet comes; 0
	// also where the kernel does not say, of what is offloaded to hardware.
	Timeout uint32
	// Zone is that of both ways; entries of zones of one way are as if in none.
	Zone uint16
}

// ctxEvery is after how many entries Each looks whether it is to stop.
const ctxEvery = 1024

// Each hands every entry of this network namespace's table to fn while the
// kernel lists them, over netlink, or from /proc/net/nf_conntrack on a kernel
// without ctnetlink: memory does not grow with the table, and
// nothing is allocated for an entry. The entry is the same one each time, with
// other content: fn copies what it keeps. An entry that comes while the list is
// read may or may not be in it.
//
// An error of fn, or of ctx, ends the list and is returned; the kernel's say
// that they are about the table. It needs CAP_NET_ADMIN. Where connection
// tracking is not loaded it must not be called: asking would load it.
//
// 250,000 entries take 0.4 s so, where reading /proc/net/nf_conntrack takes 0.7 s
// without parsing a line of it (kernel 6.18, the same machine in turns). As conntrack(8)
// does, listing takes entries that have timed out off the table (ctnetlink_dump_table
// in net/netfilter/nf_conntrack_netlink.c). The kernel lists bucket by bucket:
// where the hash table is resized meanwhile it leaves out entries or lists them
// twice, and says nothing. That is an error here, errResized.
func Each(ctx context.Context, fn func(*Entry) error) error {
	return undisturbed(hashsizeFile, func() error { return each(ctx, fn) })
}

// hashsizeFile has the number of buckets, of the whole machine.
const hashsizeFile = "/sys/module/nf_conntrack/parameters/hashsize"

var errResized = errors.New("reading the table of tracked connections: its hash table was resized meanwhile, so the list is not whole")

// undisturbed calls list, and errs if the content of a file changes meanwhile.
// A file that cannot be read does not change.
func undisturbed(file string, list func() error) error {
	before, _ := os.ReadFile(file)
	if err := list(); err != nil {
		return err
	}
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) {
		return errResized
	}
	return nil
}

func each(ctx context.Context, fn func(*Entry) error) error {
	var e Entry
	var stop error
	n := 0
	err := netlink.DumpAhead(unix.NETLINK_NETFILTER, msgGetConntrack, []byte{unix.AF_UNSPEC, 0, 0, 0}, func(msg []byte) bool {
		if n++; n%ctxEvery == 0 {
			if stop = ctx.Err(); stop != nil {
				return false
			}
		}
		if e.parse(msg) {
			stop = fn(&e)
		}
		return stop == nil
	})
	switch {
	case stop != nil:
		return stop
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT):
		err = eachOfProc("", func(e *Entry) error {
			if stop = ctx.Err(); stop == nil {
				stop = fn(e)
			}
			return stop
		})
		if stop != nil {
			return stop
		}
	}
	if err != nil {
		return fmt.Errorf("reading the table of tracked connections: %w", err)
	}
	return nil
}

// errEnough ends a list of which no more is wanted.
var errEnough = errors.New("no more is wanted")

// readTracked keeps at most limit entries; room is how many to expect. A limit
// of 0 is none.
func readTracked(o Options, room int) (list []host.Flow, more bool, err error) {
	for range resizedTries {
		list, more, err = readOnce(o, room)
		if !errors.Is(err, errResized) {
			break
		}
	}
	return list, more, err
}

// resizedTries is how often the table is read where it is resized meanwhile.
const resizedTries = 3

func readOnce(o Options, room int) (list []host.Flow, more bool, err error) {
	list = make([]host.Flow, 0, room)
	each := func(fn func(*Entry) error) error { return Each(context.Background(), fn) }
	if o.Recorded != nil {
		each = func(fn func(*Entry) error) error { return eachOfProc(o.Root, fn) }
	}
	err = each(func(e *Entry) error {
		if o.Limit > 0 && len(list) == o.Limit {
			return errEnough
		}
		list = append(list, e.Flow)
		return nil
	})
	if errors.Is(err, errEnough) {
		return list, true, nil
	}
	return list, false, err
}

// parse reads one entry behind its netlink header: a struct nfgenmsg and
// attributes. It reports whether the entry is whole.
func (e *Entry) parse(msg []byte) bool {
	*e = Entry{}
	if len(msg) < 4 {
		return false
	}
	var reply uint8
	for a := netlink.Walk(msg[4:]); a.Next(); {
		switch a.Type {
		case ctaTupleOrig:
			e.Orig, e.Protocol = parseTuple(a.Value)
		case ctaTupleReply:
			e.Reply, reply = parseTuple(a.Value)
		case ctaStatus:
			e.Status = number32(a.Value)
		case ctaTimeout:
			e.Timeout = number32(a.Value)
		case ctaMark:
			e.Mark = number32(a.Value)
		case ctaZone:
			if len(a.Value) == 2 {
				e.Zone = binary.BigEndian.Uint16(a.Value)
			}
		case ctaProtoInfo:
			e.parseProtoInfo(a.Value)
		}
	}
	whole := e.Orig.Src.IsValid() && e.Orig.Dst.IsValid() && e.Reply.Src.IsValid() && e.Reply.Dst.IsValid()
	return whole && e.Protocol == reply && reply != 0
}

// number32 is the value of an attribute of 32 bits; 0 of any other.
func number32(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func (e *Entry) parseProtoInfo(b []byte) {
	liberal := 0
	for p := netlink.Walk(b); p.Next(); {
		if p.Type != ctaProtoInfoTCP {
			continue
		}
		for a := netlink.Walk(p.Value); a.Next(); {
			switch {
			case a.Type == ctaTCPState && len(a.Value) == 1:
				e.TCPState = a.Value[0]
			case (a.Type == ctaTCPFlagsOrig || a.Type == ctaTCPFlagsReply) && len(a.Value) == 2 && a.Value[0]&tcpBeLiberal != 0:
				liberal++
			}
		}
	}
	e.Liberal = liberal == 2
}

func parseTuple(b []byte) (t host.Tuple, proto uint8) {
	for part := netlink.Walk(b); part.Next(); {
		for a := netlink.Walk(part.Value); a.Next(); {
			switch part.Type {
			case ctaTupleIP:
				addr, ok := netip.AddrFromSlice(a.Value)
				switch {
				case !ok:
				case a.Type == ctaIPv4Src || a.Type == ctaIPv6Src:
					t.Src = addr
				case a.Type == ctaIPv4Dst || a.Type == ctaIPv6Dst:
					t.Dst = addr
				}
			case ctaTupleProto:
				switch {
				case a.Type == ctaProtoNum && len(a.Value) == 1:
					proto = a.Value[0]
				case a.Type == ctaProtoSrcPort && len(a.Value) == 2:
					t.SrcPort = binary.BigEndian.Uint16(a.Value)
				case a.Type == ctaProtoDstPort && len(a.Value) == 2:
					t.DstPort = binary.BigEndian.Uint16(a.Value)
				}
			}
		}
	}
	return t, proto
}
