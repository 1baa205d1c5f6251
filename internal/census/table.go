package census

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/sizes"
)

// Table is what fills a table of tracked connections.
type Table struct {
	Entries    int64 `json:"entries"`    // that were listed
	Translated int64 `json:"translated"` // by NAT: they cannot be taken out of tracking
	Expected   int64 `json:"expected"`   // opened for another connection, by a helper
	// TimedOut is how many more the kernel had counted before, about: they have
	// timed out, and count against the maximum until they are collected.
	TimedOut int64 `json:"timed_out"`

	States        []State   `json:"states"`   // by protocol, the fullest first, then by state
	Services      []Service `json:"services"` // the largest
	OtherServices Others    `json:"other_services"`
	Opens         Peers     `json:"opens"` // who opens connections to this host and through it
	Calls         Peers     `json:"calls"` // whom this host, and others through it, call
	Waits         []Wait    `json:"waits"` // how long entries stay unless another packet comes
	Longest       int64     `json:"longest_seconds"`
}

// State is the entries of one protocol and, for TCP, one state. Those that are
// neither unreplied nor assured have seen an answer.
type State struct {
	Protocol  string `json:"protocol"`
	State     string `json:"state,omitempty"` // of TCP, as conntrack(8) names it
	Entries   int64  `json:"entries"`
	Unreplied int64  `json:"unreplied"`
	Assured   int64  `json:"assured"`         // not thrown out early for new connections
	Longest   int64  `json:"longest_seconds"` // the longest that one of them stays
}

// Service is the entries of one service.
type Service struct {
	Service    string    `json:"service"` // "tcp/443 in", as impact names it
	Protocol   string    `json:"protocol"`
	Port       uint16    `json:"port,omitempty"` // absent for a protocol without ports
	Direction  Direction `json:"direction"`
	Entries    int64     `json:"entries"`
	Unreplied  int64     `json:"unreplied"`
	Translated int64     `json:"translated"`
	Frees      int64     `json:"frees"`       // entries that are no longer made once it is not tracked: those that are not translated
	FreesBytes int64     `json:"frees_bytes"` // their memory
}

// Others are those that no list names.
type Others struct {
	Services int64 `json:"services"`
	Entries  int64 `json:"entries"`
}

// Peers are the hosts on the other side, the largest first.
type Peers struct {
	Entries int64  `json:"entries"` // of all peers
	Peers   []Peer `json:"peers"`
}

// Peer is one host. It has at most Entries, and at least Error less.
type Peer struct {
	Address string `json:"address"`
	Entries int64  `json:"entries"`
	Error   int64  `json:"error"`
}

// Wait is the entries that stay at most so many seconds, and longer than those
// of the class before.
type Wait struct {
	Seconds int64 `json:"up_to_seconds,omitempty"` // absent in the last: any longer
	Entries int64 `json:"entries"`
}

// Table is what was counted so far, with at most so many services and peers.
func (c *Counter) Table(services, peers int) Table {
	t := Table{
		Entries: c.entries, Translated: c.translated, Expected: c.expected,
		States: c.stateList(), Opens: c.opens.peers(peers), Calls: c.calls.peers(peers),
	}
	for _, s := range t.States {
		t.Longest = max(t.Longest, s.Longest)
	}
	t.Services, t.OtherServices = c.topServices(services)
	for i, n := range c.waits {
		w := Wait{Entries: n}
		if i < len(waitLimits) {
			w.Seconds = int64(waitLimits[i])
		}
		t.Waits = append(t.Waits, w)
	}
	return t
}

func (c *Counter) stateList() []State {
	list := []State{}
	byProtocol := map[string]int64{}
	rank := map[string]uint8{}
	for k, n := range c.states {
		s := State{Protocol: protocolName(k.proto), Entries: n.entries, Unreplied: n.unreplied, Assured: n.assured, Longest: int64(n.longest)}
		if k.proto == protoTCP {
			if s.State = "UNKNOWN"; int(k.state) < len(tcpStates) {
				s.State = tcpStates[k.state]
			}
			rank[s.State] = k.state
		}
		byProtocol[s.Protocol] += s.Entries
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b State) int {
		return cmp.Or(cmp.Compare(byProtocol[b.Protocol], byProtocol[a.Protocol]), strings.Compare(a.Protocol, b.Protocol), cmp.Compare(rank[a.State], rank[b.State]))
	})
	return list
}

// topServices are the n largest services, and what all others have. It keeps no
// more than these while it looks: a table can hold a service for every port.
func (c *Counter) topServices(n int) ([]Service, Others) {
	type candidate struct {
		key  serviceKey
		port uint16
		n    *serviceCount
	}
	compare := func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.n.entries, a.n.entries), cmp.Compare(a.key.proto, b.key.proto), cmp.Compare(a.key.direction, b.key.direction), cmp.Compare(a.port, b.port))
	}
	var top []candidate
	others := Others{}
	consider := func(x candidate) {
		others.Services++
		others.Entries += int64(x.n.entries)
		if len(top) == n && (n == 0 || compare(top[n-1], x) < 0) {
			return
		}
		at, _ := slices.BinarySearchFunc(top, x, compare)
		if top = slices.Insert(top, at, x); len(top) > n {
			top = top[:n]
		}
	}
	for k, p := range c.services {
		for port := range p {
			if p[port].entries > 0 {
				consider(candidate{k, uint16(port), &p[port]})
			}
		}
	}
	for k, counted := range c.portless {
		consider(candidate{k, 0, counted})
	}
	list := []Service{}
	for _, x := range top {
		s := newService(x.key, x.port, x.n)
		others.Services--
		others.Entries -= s.Entries
		list = append(list, s)
	}
	return list, others
}

func newService(k serviceKey, port uint16, n *serviceCount) Service {
	s := Service{
		Protocol: protocolName(k.proto), Port: port, Direction: directions[k.direction],
		Entries: int64(n.entries), Unreplied: int64(n.unreplied), Translated: int64(n.translated), Frees: int64(n.entries - n.translated),
	}
	s.FreesBytes = sizes.TableBytes(s.Frees, 0, 0)
	s.Service = s.Protocol
	if carriesPorts(k.proto) {
		s.Service += fmt.Sprintf("/%d", port)
	}
	s.Service += " " + string(s.Direction)
	return s
}

func (s *sketch) peers(n int) Peers {
	p := Peers{Entries: s.total, Peers: []Peer{}}
	for _, t := range s.top(n) {
		p.Peers = append(p.Peers, Peer{t.addr.String(), t.count, t.error})
	}
	return p
}
