package verify

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/flows"
)

// Entries are those of the table that a notrack block should have kept out.
type Entries struct {
	New     int64  // made, or used by a packet, while the block was in effect
	Old     int64  // surely from before
	Unsure  int64  // from before or not
	Longest uint32 // seconds until the last of Old goes, unless a packet comes
	// Examples are some of New, or else of Unsure.
	Examples []string
}

// maxExamples is how many entries are named.
const maxExamples = 5

// Observer sorts the entries of a table by the notrack block that should have
// kept them out, and by whether they are from before the change.
//
// That can be told in two ways. Where the table is read twice, an entry that
// was not there, or whose time has not gone down with the clock, has met a
// packet meanwhile. And an entry that has waited longer than since the change, by
// the timeouts of its protocol, has met none since.
type Observer struct {
	blocks   []block
	own      map[netip.Addr]bool
	timeouts map[string]uint32 // by the names of planner.TimeoutKeys; nil where they do not tell
	first    map[entryKey]uint32
	out      []Entries
}

// block finds the packets that the NOTRACK rules of one block take.
type block struct {
	traffic declared.Traffic
	rules   map[host.Family]*verdict.Evaluator
}

type entryKey struct {
	protocol uint8
	orig     host.Tuple
}

// NewObserver makes an Observer for what is declared, on a host that has these
// addresses.
func NewObserver(d declared.Desired, live host.Live, addresses []host.Address) *Observer {
	o := &Observer{own: map[netip.Addr]bool{}, out: make([]Entries, len(d.Notrack)), first: map[entryKey]uint32{}}
	var facts verdict.Facts
	facts.Addresses = []netip.Prefix{}
	for _, a := range addresses {
		o.own[a.Prefix.Addr()] = true
		facts.Addresses = append(facts.Addresses, a.Prefix)
	}
	for _, t := range d.Notrack {
		b := block{t, map[host.Family]*verdict.Evaluator{}}
		for _, f := range host.Families {
			b.rules[f] = xt.NewEvaluator(f, []host.Ruleset{ruleset(d, f, t.Name)}, facts)
		}
		o.blocks = append(o.blocks, b)
	}
	if len(d.Timeouts) == 0 && !ownTimeouts(live) {
		o.timeouts = map[string]uint32{}
		for name, key := range declared.TimeoutKeys {
			if n, err := strconv.ParseUint(strings.TrimSpace(live.Sysctls[key].Value), 10, 31); err == nil {
				o.timeouts[name] = uint32(n)
			}
		}
	}
	return o
}

// ruleset is the raw table as it would be with this block alone.
func ruleset(d declared.Desired, f host.Family, name string) host.Ruleset {
	raw := host.Table{Name: "raw", Chains: []host.ChainDecl{{Name: "PREROUTING", Policy: "ACCEPT"}, {Name: "OUTPUT", Policy: "ACCEPT"}}}
	for _, c := range d.Chains {
		if c.Family != f || c.Table != raw.Name {
			continue
		}
		for _, r := range c.Rules {
			if Named(r.Words, name) {
				rule := r.Rule
				rule.Chain = c.Hook
				raw.Rules = append(raw.Rules, rule)
			}
		}
	}
	return host.Ruleset{Family: f, Backend: host.NFT, Primary: true, Tables: []host.Table{raw}}
}

// ownTimeouts reports whether rules give entries timeouts of their own: then
// the sysctls do not say how long one has waited.
func ownTimeouts(live host.Live) bool {
	for _, t := range live.NFT {
		if slices.ContainsFunc(t.Items, func(i host.NFTItem) bool { return slices.Contains(i.Uses, "ct timeout") || i.Kind == "ct timeout" }) {
			return true
		}
	}
	for _, rs := range live.Rulesets {
		for _, t := range rs.Tables {
			if slices.ContainsFunc(t.Rules, func(r host.Rule) bool {
				return slices.Contains(r.Words, "CT") && slices.Contains(r.Words, "--timeout")
			}) {
				return true
			}
		}
	}
	return false
}

// Remember takes an entry of the first reading.
func (o *Observer) Remember(e *flows.Entry) {
	if o.block(e) >= 0 {
		o.first[entryKey{e.Protocol, e.Orig}] = e.Timeout
	}
}

// Sort takes an entry of the last reading. watched is the least time since the
// first reading, 0 where there was none; since is how long ago the change was,
// 0 where that is not known.
func (o *Observer) Sort(e *flows.Entry, watched, since time.Duration) {
	i := o.block(e)
	if i < 0 {
		return
	}
	out := &o.out[i]
	before, was := o.first[entryKey{e.Protocol, e.Orig}]
	used, idle := o.used(e, since)
	switch {
	case watched > 0 && !was,
		watched > 0 && float64(e.Timeout) > float64(before)-watched.Seconds()+1, // both are rounded down
		used:
		if out.New == 0 {
			out.Examples = nil
		}
		out.New++
	case watched > 0, idle:
		out.Old++
		out.Longest = max(out.Longest, e.Timeout)
		return
	default:
		out.Unsure++
		if out.New > 0 {
			return
		}
	}
	if len(out.Examples) < maxExamples {
		out.Examples = append(out.Examples, describe(e))
	}
}

// Entries is what was found of a block, by its place in the declaration.
func (o *Observer) Entries(i int) Entries { return o.out[i] }

// block is the first one that should have kept the entry out; -1 for none. An
// entry is made by the first packet, and it is that one that should not have
// been tracked.
func (o *Observer) block(e *flows.Entry) int {
	out, in := o.local(e.Orig.Src), o.local(e.Orig.Dst)
	p := verdict.Packet{Protocol: e.Protocol, State: verdict.StateNew, Tuple: e.Orig, In: verdict.SomeInterface, Out: verdict.SomeInterface}
	family := host.IPv6
	if e.Orig.Src.Is4() {
		family = host.IPv4
	}
	switch {
	case out: // also over lo: once tracked on the way out, it stays so on the way in
		p.Hook, p.In = verdict.HookOutput, ""
		if in {
			p.Out = "lo"
		}
	case in:
		p.Hook, p.Out = verdict.HookInput, ""
	default:
		p.Hook = verdict.HookForward
	}
	for i, b := range o.blocks {
		if p.Hook == verdict.HookForward && b.traffic.Direction != declared.Forward {
			continue // what is routed is none of this block's business
		}
		q := p
		if name := b.traffic.Interface; name != "" && !strings.HasSuffix(name, "+") {
			if q.In == verdict.SomeInterface {
				q.In = name
			}
			if q.Out == verdict.SomeInterface {
				q.Out = name
			}
		}
		if b.rules[family].Verdict(&q).Untracked {
			return i
		}
	}
	return -1
}

func (o *Observer) local(a netip.Addr) bool { return o.own[a] || a.IsLoopback() }

// tcpTimeouts are those of the states of enum tcp_conntrack.
var tcpTimeouts = [...]string{1: "tcp_syn_sent", 2: "tcp_syn_recv", 3: "tcp_established", 4: "tcp_fin_wait", 5: "tcp_close_wait", 6: "tcp_last_ack", 7: "tcp_time_wait", 8: "tcp_close", 9: "tcp_syn_sent"}

// used and idle say whether a packet has surely, and surely not, met the entry
// in the time given: each packet sets its time to one of the timeouts of its
// protocol, and it goes down from there.
func (o *Observer) used(e *flows.Entry, since time.Duration) (used, idle bool) {
	var names []string
	switch e.Protocol {
	case 6:
		if int(e.TCPState) < len(tcpTimeouts) {
			names = []string{tcpTimeouts[e.TCPState], "tcp_max_retrans", "tcp_unacknowledged"}
		}
	case 17:
		names = []string{"udp"}
		if e.Status&host.StatusSeenReply != 0 { // a stream, or not for long enough
			names = append(names, "udp_stream")
		}
	case 1:
		names = []string{"icmp"}
	case 58:
		names = []string{"icmpv6"}
	}
	const slack = 2 // seconds: all are rounded
	seconds := since.Seconds()
	if since <= 0 || o.timeouts == nil || e.Timeout == 0 {
		return false, false
	}
	used, idle = true, true
	any := false
	for _, name := range names {
		full, ok := o.timeouts[name]
		if !ok || full < e.Timeout {
			continue
		}
		any = true
		waited := float64(full - e.Timeout)
		used = used && waited+slack < seconds
		idle = idle && waited > seconds+slack
	}
	return used && any, idle && any
}

// protocols are the names of those that most entries have.
var protocols = map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}

func describe(e *flows.Entry) string {
	proto := protocols[e.Protocol]
	if proto == "" {
		proto = fmt.Sprintf("protocol %d", e.Protocol)
	}
	from, to := e.Orig.Src.String(), e.Orig.Dst.String()
	if e.Orig.SrcPort != 0 || e.Orig.DstPort != 0 {
		from, to = netip.AddrPortFrom(e.Orig.Src, e.Orig.SrcPort).String(), netip.AddrPortFrom(e.Orig.Dst, e.Orig.DstPort).String()
	}
	return fmt.Sprintf("%s %s -> %s, %d s left", proto, from, to, e.Timeout)
}
