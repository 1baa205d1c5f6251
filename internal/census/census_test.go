package census

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
)

// home is where the tests' host stands.
var home = []host.Address{
	{Interface: "lo", Prefix: netip.MustParsePrefix("127.0.0.1/8")},
	{Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")},
	{Interface: "eth0", Prefix: netip.MustParsePrefix("2001:db8::1/64")},
}

// flow is a connection from one end to another that has seen an answer, or not.
func flow(proto uint8, from, to string, status uint32) host.Flow {
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	return host.Flow{
		Protocol: proto, Status: status,
		Orig:  host.Tuple{Src: a.Addr(), Dst: b.Addr(), SrcPort: a.Port(), DstPort: b.Port()},
		Reply: host.Tuple{Src: b.Addr(), Dst: a.Addr(), SrcPort: b.Port(), DstPort: a.Port()},
	}
}

const (
	answered = host.StatusSeenReply
	assured  = host.StatusSeenReply | host.StatusAssured
)

// TestTable counts a table in which every entry is known.
func TestTable(t *testing.T) {
	c := New(home)
	tcp := func(state uint8, from, to string, status uint32, timeout uint32) {
		f := flow(protoTCP, from, to, status)
		f.TCPState = state
		c.Add(&f, timeout)
	}
	tcp(3, "198.51.100.7:40000", "192.0.2.1:443", assured, 431_999)
	tcp(3, "198.51.100.7:40001", "192.0.2.1:443", assured, 400_000)
	tcp(1, "198.51.100.8:40000", "192.0.2.1:443", 0, 119)
	tcp(200, "198.51.100.8:40001", "192.0.2.1:443", answered, 5)
	add := func(f host.Flow, timeout uint32) { c.Add(&f, timeout) }
	add(flow(protoUDP, "192.0.2.1:5353", "203.0.113.53:53", answered), 29)
	add(flow(protoUDP, "[2001:db8::1]:5353", "[2001:db8:9::9]:53", assured), 119)
	add(flow(protoUDP, "192.0.2.9:137", "192.0.2.255:137", 0), 20) // to everybody: it comes in
	add(flow(protoUDP, "127.0.0.1:999", "127.0.0.1:123", 0), 8)
	add(flow(protoICMP, "198.51.100.7:0", "192.0.2.1:0", answered), 10)
	dnat := flow(protoTCP, "198.51.100.7:40002", "192.0.2.1:80", assured|host.StatusDNAT)
	dnat.TCPState, dnat.Reply.Src, dnat.Reply.SrcPort = 3, netip.MustParseAddr("10.0.0.5"), 8080
	c.Add(&dnat, 86_401)

	got := c.Table(3, 2)
	want := Table{
		Entries: 10, Translated: 1, Longest: 431_999,
		States: []State{
			{Protocol: "tcp", State: "SYN_SENT", Entries: 1, Unreplied: 1, Longest: 119},
			{Protocol: "tcp", State: "ESTABLISHED", Entries: 3, Assured: 3, Longest: 431_999},
			{Protocol: "tcp", State: "UNKNOWN", Entries: 1, Longest: 5},
			{Protocol: "udp", Entries: 4, Unreplied: 2, Assured: 1, Longest: 119},
			{Protocol: "icmp", Entries: 1, Longest: 10},
		},
		Services: []Service{
			{Service: "tcp/443 in", Protocol: "tcp", Port: 443, Direction: In, Entries: 4, Unreplied: 1, Frees: 4, FreesBytes: sizes.TableBytes(4, 0, 0)},
			{Service: "udp/53 out", Protocol: "udp", Port: 53, Direction: Out, Entries: 2, Frees: 2, FreesBytes: sizes.TableBytes(2, 0, 0)},
			{Service: "icmp in", Protocol: "icmp", Direction: In, Entries: 1, Frees: 1, FreesBytes: sizes.TableBytes(1, 0, 0)},
		},
		OtherServices: Others{Services: 3, Entries: 3},
		Opens:         Peers{Entries: 7, Peers: []Peer{{"198.51.100.7", 4, 0}, {"198.51.100.8", 2, 0}}},
		Calls:         Peers{Entries: 3, Peers: []Peer{{"10.0.0.5", 1, 0}, {"203.0.113.53", 1, 0}}},
		Waits:         []Wait{{10, 3}, {60, 2}, {600, 2}, {3600, 0}, {86_400, 0}, {0, 3}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	all := c.Table(10, 0).Services
	if s := all[len(all)-1]; s.Service != "udp/137 in" && s.Service != "udp/123 lo" {
		t.Errorf("the smallest service is %+v", s)
	}
	for _, s := range all {
		if s.Service == "tcp/8080 forward" && (s.Frees != 0 || s.Translated != 1) {
			t.Errorf("what is translated can be taken out of tracking: %+v", s)
		}
	}
}

// random is an entry of any kind; few addresses and ports come often.
func random(r *rand.Rand) (host.Flow, uint32) {
	address := func() netip.Addr {
		switch r.IntN(4) {
		case 0:
			return home[r.IntN(len(home))].Prefix.Addr()
		case 1:
			return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: byte(r.IntN(256))})
		}
		return netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(40)), byte(r.IntN(256))})
	}
	f := host.Flow{Protocol: []uint8{protoTCP, protoUDP, protoICMP, protoSCTP, uint8(r.IntN(256))}[r.IntN(5)], Status: r.Uint32(), TCPState: uint8(r.IntN(20))}
	f.Orig.Src, f.Orig.Dst = address(), address()
	f.Reply.Src, f.Reply.Dst = f.Orig.Dst, f.Orig.Src
	f.Reply.SrcPort = uint16(r.IntN(1 << 16))
	return f, r.Uint32() >> r.IntN(32)
}

// TestSums: whatever is in the table, each of its parts adds up to the whole.
func TestSums(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := New(home)
		n := int64(r.IntN(20_000))
		for range n {
			f, timeout := random(r)
			c.Add(&f, timeout)
		}
		table := c.Table(r.IntN(20), r.IntN(20))
		var states, services, waits int64
		for _, s := range table.States {
			states += s.Entries
			if s.Unreplied+s.Assured > s.Entries || s.Entries == 0 || s.Longest > table.Longest {
				t.Errorf("seed %d: %+v", seed, s)
			}
		}
		for i, s := range table.Services {
			services += s.Entries
			if s.Unreplied > s.Entries || s.Frees+s.Translated != s.Entries || i > 0 && s.Entries > table.Services[i-1].Entries {
				t.Errorf("seed %d: %+v", seed, s)
			}
		}
		if services += table.OtherServices.Entries; (table.OtherServices.Services == 0) != (table.OtherServices.Entries == 0) {
			t.Errorf("seed %d: others %+v", seed, table.OtherServices)
		}
		for _, w := range table.Waits {
			waits += w.Entries
		}
		if table.Entries != n || states != n || services != n || waits != n {
			t.Errorf("seed %d: of %d entries, %d counted, %d by state, %d by service, %d by wait", seed, n, table.Entries, states, services, waits)
		}
	}
}

// TestConstantMemory: an entry costs nothing, be it of a service and a peer
// that nobody has seen before.
func TestConstantMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	c := New(home)
	for range 100_000 { // until all there can be is there
		f, timeout := random(r)
		c.Add(&f, timeout)
	}
	if n := testing.AllocsPerRun(20, func() {
		for range 1000 {
			f, timeout := random(r)
			c.Add(&f, timeout)
		}
	}); n > 1 {
		t.Errorf("%v allocations for 1000 entries", n)
	}
}

// TestLevelsOff: UDP at 100/s with 30 s to live makes 3,000 entries, however
// long it goes on; connections of TCP stay for days.
func TestLevelsOff(t *testing.T) {
	udp := func(c *Counter, seconds uint32) {
		for s := range seconds {
			for range 100 {
				f := flow(protoUDP, "198.51.100.7:40000", "192.0.2.1:53", 0)
				c.Add(&f, 29-s)
			}
		}
	}
	c := New(home)
	udp(c, 10)
	if level, ok := c.LevelsOff(Growth{PerSecond: 100, Error: 5}); !ok || level != 3000 {
		t.Errorf("levels off at %d, %v, want 3000", level, ok)
	}
	if level, ok := c.LevelsOff(Growth{PerSecond: 150, Error: 5}); ok {
		t.Errorf("100 a second explain a growth of 150: levels off at %d", level)
	}
	if _, ok := c.LevelsOff(Growth{PerSecond: 1, Error: 5}); ok {
		t.Error("levels off where nothing grows")
	}
	for range 500 {
		f := flow(protoTCP, "198.51.100.7:40000", "192.0.2.1:443", assured)
		c.Add(&f, 432_000)
	}
	if level, ok := c.LevelsOff(Growth{PerSecond: 100, Error: 5}); !ok || level != 3500 {
		t.Errorf("with 500 long-lived entries it levels off at %d, %v, want 3500", level, ok)
	}
	if _, ok := New(home).LevelsOff(Growth{PerSecond: 100, Error: 5}); ok {
		t.Error("an empty table explains a growth")
	}
}
