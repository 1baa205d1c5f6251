package census

import (
	"fmt"
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
)

// peerCounters is how many peers a Counter has counters for, each way: what
// holds more than one in so many entries is found for sure.
const peerCounters = 1024

// Protocols by their numbers (IANA).
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

var protocolNames = map[uint8]string{
	protoICMP: "icmp", 2: "igmp", protoTCP: "tcp", protoUDP: "udp", protoDCCP: "dccp", 47: "gre", 50: "esp", 51: "ah",
	protoICMPv6: "icmpv6", 89: "ospf", 112: "vrrp", protoSCTP: "sctp", protoUDPLite: "udplite",
}

func protocolName(p uint8) string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return fmt.Sprint(p)
}

// tcpStates are the names of enum tcp_conntrack
// (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
var tcpStates = [...]string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}

// Direction is how connections pass the host, by who opened them.
type Direction string

// The directions, as impact calls them.
const (
	In      Direction = "in"
	Out     Direction = "out"
	Forward Direction = "forward"
	Loop    Direction = "lo"
)

var directions = [...]Direction{In, Out, Forward, Loop}

// Counter counts the entries of one table. It is to be made with New.
type Counter struct {
	own, casts map[netip.Addr]bool

	entries, translated, expected int64
	states                        map[stateKey]*stateCount
	last                          *stateCount // of the key before, which is often the next
	lastKey                       stateKey
	services                      map[serviceKey]*ports        // of protocols with ports
	portless                      map[serviceKey]*serviceCount // of the others
	opens, calls                  *sketch
	waits                         [len(waitLimits) + 1]int64
}

// stateKey tells apart what State does.
type stateKey struct {
	proto, state uint8
}

type stateCount struct {
	entries, unreplied, assured int64
	longest                     uint32
	kinds                       [2]kind // not assured, assured: UDP waits longer for the latter
}

// serviceKey is all services of one protocol and direction.
type serviceKey struct {
	proto     uint8
	direction uint8 // of directions
}

type serviceCount struct{ entries, unreplied, translated uint32 }

// ports are exact counters, one for each port. The memory of those that nobody
// uses is never touched.
type ports [1 << 16]serviceCount

// New returns a Counter for a host that has the addresses.
func New(addresses []host.Address) *Counter {
	c := &Counter{
		own: map[netip.Addr]bool{}, casts: map[netip.Addr]bool{netip.AddrFrom4([4]byte{255, 255, 255, 255}): true},
		states: map[stateKey]*stateCount{}, services: map[serviceKey]*ports{}, portless: map[serviceKey]*serviceCount{},
		opens: newSketch(peerCounters), calls: newSketch(peerCounters),
	}
	for _, a := range addresses {
		c.own[a.Prefix.Addr()] = true
		if p := a.Prefix; p.Addr().Is4() && p.Bits() < 31 {
			c.casts[broadcast(p)] = true
		}
	}
	return c
}

// broadcast is the address that means every host of a network (RFC 919, section 7).
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(b)
}

func (c *Counter) local(a netip.Addr) bool { return a.IsLoopback() || c.own[a] }

// direction is how the first packet of a connection passes the host, an index
// of directions. What is sent to a group or to everybody comes in.
func (c *Counter) direction(src, dst netip.Addr) uint8 {
	switch from, to := c.local(src), c.local(dst); {
	case from && to:
		return 3
	case from:
		return 1
	case to, dst.IsMulticast(), c.casts[dst]:
		return 0
	}
	return 2
}

// Add counts one entry. timeout is how many seconds it stays unless another
// packet comes.
func (c *Counter) Add(f *host.Flow, timeout uint32) {
	c.entries++
	assured := f.Status&host.StatusAssured != 0
	unreplied := !assured && f.Status&host.StatusSeenReply == 0
	translated := f.Status&(host.StatusSNAT|host.StatusDNAT) != 0
	if translated {
		c.translated++
	}
	if f.Status&host.StatusExpected != 0 {
		c.expected++
	}

	key := stateKey{proto: f.Protocol}
	if f.Protocol == protoTCP {
		key.state = min(f.TCPState, uint8(len(tcpStates)))
	}
	s := c.state(key)
	s.entries++
	if unreplied {
		s.unreplied++
	}
	if assured {
		s.assured++
	}
	s.longest = max(s.longest, timeout)
	if assured {
		s.kinds[1].add(timeout)
	} else {
		s.kinds[0].add(timeout)
	}

	// The service answers from where the first packet arrives, after
	// translation if there is one.
	d := c.direction(f.Orig.Src, f.Reply.Src)
	n := c.service(serviceKey{f.Protocol, d}, f.Reply.SrcPort)
	n.entries++
	if unreplied {
		n.unreplied++
	}
	if translated {
		n.translated++
	}

	if way := directions[d]; way == In || way == Forward {
		c.opens.add(f.Orig.Src)
	}
	if way := directions[d]; way == Out || way == Forward {
		c.calls.add(f.Reply.Src)
	}
	c.wait(timeout)
}

func (c *Counter) state(key stateKey) *stateCount {
	if c.last != nil && key == c.lastKey {
		return c.last
	}
	s := c.states[key]
	if s == nil {
		s = &stateCount{}
		c.states[key] = s
	}
	c.last, c.lastKey = s, key
	return s
}

func (c *Counter) service(key serviceKey, port uint16) *serviceCount {
	if !carriesPorts(key.proto) {
		n := c.portless[key]
		if n == nil {
			n = &serviceCount{}
			c.portless[key] = n
		}
		return n
	}
	p := c.services[key]
	if p == nil {
		p = new(ports)
		c.services[key] = p
	}
	return &p[port]
}

func carriesPorts(proto uint8) bool {
	switch proto {
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite:
		return true
	}
	return false
}

// waitLimits are up to how many seconds entries wait, class by class.
var waitLimits = [...]uint32{10, 60, 600, 3600, 86400}

func (c *Counter) wait(timeout uint32) {
	i := 0
	for i < len(waitLimits) && timeout > waitLimits[i] {
		i++
	}
	c.waits[i]++
}
