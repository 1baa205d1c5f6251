// Package carry says which connections connection tracking is to be told of
// before a change of rules has it look at them, and which of its entries nothing
// meets any more after one. It reads and writes no table.
//
// It promises that what is put in was open and let through: an entry of this
// host's own connections has its socket here, and rules that surely pass it.
package carry

import (
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Seconds that an entry stays which was put in, until a packet comes: long enough
// for a change to end, short enough for one that was cut off to leave nothing. UDP
// has what tracking gives an answered connection (nf_conntrack_udp_timeout_stream).
const (
	Short    = 300
	ShortUDP = 120
)

// Room is how many entries may be put into a table with count of max. One in 64
// stays free for what opens meanwhile. A max of 0 is no bound.
func Room(count, max int64) int64 {
	if max <= 0 {
		return 1 << 40
	}
	if free := max - max/64 - count; free > 0 {
		return free
	}
	return 0
}

// Rules are those that decide, of both families.
type Rules struct {
	judges judge.Judges
	ahead  bool // how they will stand is known, and not only how they do
	leaves map[judge.Kin]bool
}

// maxKin bounds how many kins of connections are remembered.
const maxKin = 1 << 15

// By are the rules of a plan, as they stand and as they will.
func By(judges judge.Judges) *Rules {
	return &Rules{judges: judges, ahead: true, leaves: map[judge.Kin]bool{}}
}

// Now are the rules as they stand, where nobody has planned what they become.
func Now(judges judge.Judges) *Rules { return &Rules{judges: judges, leaves: map[judge.Kin]bool{}} }

// meets reports whether a connection will meet tracking, as far as is known.
func (r *Rules) meets(j *judge.Judge, f *host.Flow) bool {
	return !r.ahead || j.Tracks() && !r.Leaves(f)
}

func (r *Rules) of(a netip.Addr) *judge.Judge {
	if a.Is4() {
		return r.judges.Of(host.IPv4)
	}
	return r.judges.Of(host.IPv6)
}

// Leaves reports whether an entry is one that nothing meets any more when the
// rules stand as they will.
func (r *Rules) Leaves(f *host.Flow) bool {
	j := r.of(f.Orig.Src)
	if j == nil {
		return false
	}
	k, ok := j.KinOf(f)
	if !ok {
		return j.Leaves(f)
	}
	leaves, known := r.leaves[k]
	if !known {
		if leaves = j.Leaves(f); len(r.leaves) < maxKin {
			r.leaves[k] = leaves
		}
	}
	return leaves
}

// end is a connection of this host's as its socket names it.
type end struct {
	proto         uint8
	local, remote netip.AddrPort
}

// Over is one carrying over: it says of saved entries and of sockets which are put in.
type Over struct {
	rules *Rules
	open  map[end]*host.Socket // not put in yet
	all   []host.Socket
	room  int64
	// Full is how many were left out, because the table has no room.
	Full int64
}

// NewOver begins to carry over: sockets are those that are open now, room is how
// many entries fit.
func NewOver(r *Rules, sockets []host.Socket, room int64) *Over {
	o := &Over{rules: r, open: map[end]*host.Socket{}, all: sockets, room: room}
	for i := range sockets {
		if s := &sockets[i]; !s.Listening && s.Remote.Port() != 0 {
			o.open[end{s.Protocol, s.Local, s.Remote}] = s
		}
	}
	return o
}

func (o *Over) fits() bool {
	if o.room <= 0 {
		o.Full++
		return false
	}
	o.room--
	return true
}

// Saved says whether an entry that was taken out is put in again, and for how
// many seconds. left is what its timeout would have come to.
//
// One that will stay untracked is taken out once more at the end, and saved.
// One of this host's own, of TCP or UDP, must have its socket; it stays as long as
// one that nobody had saved. Any other stays as long as if it had never left.
func (o *Over) Saved(f *host.Flow, left uint32) (timeout uint32, ok bool) {
	j := o.rules.of(f.Orig.Src)
	if j == nil {
		return 0, false
	}
	if f.Protocol != protocol.TCP && f.Protocol != protocol.UDP || !j.Local(f) {
		return left, left > 0 && j.Passes(f) && o.fits()
	}
	a, b := netip.AddrPortFrom(f.Orig.Src, f.Orig.SrcPort), netip.AddrPortFrom(f.Reply.Src, f.Reply.SrcPort)
	asked := netip.AddrPortFrom(f.Orig.Dst, f.Orig.DstPort)
	found := false
	for _, e := range []end{{f.Protocol, a, b}, {f.Protocol, b, a}, {f.Protocol, a, asked}} {
		if s := o.open[e]; s != nil {
			if _, passes := j.Entry(s); passes {
				found = true
				delete(o.open, e)
			}
		}
	}
	return short(f.Protocol), found && o.fits()
}

// Rest hands on the entries of open sockets that no saved entry was about.
func (o *Over) Rest(each func(f *host.Flow) error) error {
	for i := range o.all {
		s := &o.all[i]
		e := end{s.Protocol, s.Local, s.Remote}
		if o.open[e] != s {
			continue
		}
		j := o.rules.of(s.Local.Addr())
		if j == nil {
			continue
		}
		f, ok := j.Entry(s)
		if !ok || !o.rules.meets(j, &f) {
			continue
		}
		// The other end, where both are here, has the same entry.
		delete(o.open, end{s.Protocol, s.Remote, s.Local})
		if !o.fits() {
			continue
		}
		if err := each(&f); err != nil {
			return err
		}
	}
	return nil
}

// Timeout is for how many seconds an entry of a protocol is put in.
func Timeout(proto uint8) uint32 { return short(proto) }

func short(proto uint8) uint32 {
	if proto == protocol.UDP {
		return ShortUDP
	}
	return Short
}
