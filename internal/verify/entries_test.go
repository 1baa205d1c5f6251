package verify

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
)

func entry(proto uint8, from, to string, timeout uint32) *flows.Entry {
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	e := &flows.Entry{Timeout: timeout}
	e.Protocol = proto
	e.Orig = host.Tuple{Src: a.Addr(), Dst: b.Addr(), SrcPort: a.Port(), DstPort: b.Port()}
	return e
}

func observed(blocks ...declared.Traffic) *Observer {
	d := declared.Desired{Mode: declared.Notrack, Families: host.Families, Notrack: blocks}
	for i := range d.Notrack {
		if d.Notrack[i].Families == nil {
			d.Notrack[i].Families = host.Families
		}
		if d.Notrack[i].Direction == "" {
			d.Notrack[i].Direction = declared.Both
		}
	}
	d.Chains = iptables.Render(d, host.Live{})
	live := host.Live{Sysctls: map[string]host.Sysctl{
		"net.netfilter.nf_conntrack_udp_timeout":                 {Value: "30"},
		"net.netfilter.nf_conntrack_udp_timeout_stream":          {Value: "120"},
		"net.netfilter.nf_conntrack_tcp_timeout_established":     {Value: "432000"},
		"net.netfilter.nf_conntrack_tcp_timeout_max_retrans":     {Value: "300"},
		"net.netfilter.nf_conntrack_tcp_timeout_unacknowledged":  {Value: "300"},
		"net.netfilter.nf_conntrack_icmp_timeout":                {Value: "30"},
		"net.netfilter.nf_conntrack_tcp_timeout_time_wait":       {Value: "120"},
		"net.netfilter.nf_conntrack_sctp_timeout_cookie_echoed":  {Value: "nonsense"},
		"net.netfilter.nf_conntrack_tcp_timeout_something_never": {Value: "1"},
	}}
	return NewObserver(d, live, []host.Address{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}, {Prefix: netip.MustParsePrefix("2001:db8::1/64")}})
}

// TestBlocks finds the block that should have kept an entry out.
func TestBlocks(t *testing.T) {
	ports := func(n uint16) []host.PortRange { return []host.PortRange{{From: n, To: n}} }
	o := observed(
		declared.Traffic{Name: "dns", Protocol: "udp", LocalPorts: ports(53)},
		declared.Traffic{Name: "out", Protocol: "tcp", RemotePorts: ports(443), Direction: declared.Out},
		declared.Traffic{Name: "routed", Protocol: "udp", RemotePorts: ports(4500), Direction: declared.Forward},
		declared.Traffic{Name: "wan", Protocol: "udp", LocalPorts: ports(500), Interface: "eth0"},
		declared.Traffic{Name: "ping", Protocol: "icmp"},
	)
	for _, c := range []struct {
		entry *flows.Entry
		want  int
	}{
		{entry(17, "198.51.100.1:1024", "192.0.2.1:53", 30), 0},
		{entry(17, "[2001:db8::9]:1024", "[2001:db8::1]:53", 30), 0},
		{entry(17, "192.0.2.1:53", "198.51.100.1:1024", 30), 0},
		{entry(17, "192.0.2.1:1024", "198.51.100.1:53", 30), -1},   // to another's port 53
		{entry(17, "198.51.100.1:1024", "203.0.113.1:53", 30), -1}, // through the host
		{entry(17, "127.0.0.1:1024", "127.0.0.1:53", 30), -1},      // tracked before it comes in
		{entry(17, "127.0.0.1:53", "127.0.0.1:1024", 30), 0},
		{entry(6, "198.51.100.1:1024", "192.0.2.1:53", 30), -1},
		{entry(6, "192.0.2.1:1024", "198.51.100.1:443", 30), 1},
		{entry(6, "198.51.100.1:443", "192.0.2.1:1024", 30), -1}, // out alone is declared
		{entry(17, "198.51.100.1:1024", "203.0.113.1:4500", 30), 2},
		{entry(17, "203.0.113.1:4500", "198.51.100.1:1024", 30), 2},
		{entry(17, "198.51.100.1:1024", "192.0.2.1:500", 30), 3},
		{entry(1, "198.51.100.1:0", "192.0.2.1:0", 30), 4},
		{entry(58, "[2001:db8::9]:0", "[2001:db8::1]:0", 30), 4},
		{entry(132, "198.51.100.1:53", "192.0.2.1:53", 30), -1},
	} {
		if got := o.block(c.entry); got != c.want {
			t.Errorf("%s: block %d, want %d", describe(c.entry), got, c.want)
		}
	}
}

// TestSort tells entries from before the change from those since.
func TestSort(t *testing.T) {
	tcp := func(timeout uint32) *flows.Entry {
		e := entry(6, "198.51.100.1:1024", "192.0.2.1:53", timeout)
		e.TCPState = 3
		return e
	}
	udp := func(timeout uint32) *flows.Entry {
		e := entry(17, "198.51.100.1:1024", "192.0.2.1:53", timeout)
		e.Status = host.StatusSeenReply
		return e
	}
	unreplied := func(timeout uint32) *flows.Entry {
		return entry(17, "198.51.100.1:1024", "192.0.2.1:53", timeout)
	}
	for name, c := range map[string]struct {
		before, after  *flows.Entry
		watched, since time.Duration
		want           string // new, old or unsure
	}{
		"came meanwhile":                        {nil, udp(29), 10 * time.Second, 0, "new"},
		"used meanwhile":                        {udp(29), udp(29), 10 * time.Second, 0, "new"},
		"used again, and longer":                {udp(5), udp(119), 2 * time.Second, 0, "new"},
		"ran down":                              {tcp(400_000), tcp(399_990), 10 * time.Second, 0, "old"},
		"ran down, rounded":                     {tcp(400_000), tcp(399_991), 10 * time.Second, 0, "old"},
		"ran down, but used since the change":   {tcp(431_990), tcp(431_980), 10 * time.Second, time.Hour, "new"},
		"once, no change known":                 {nil, tcp(431_980), 0, 0, "unsure"},
		"once, used since the change":           {nil, tcp(431_980), 0, time.Hour, "new"},
		"once, idle for longer":                 {nil, tcp(400_000), 0, time.Hour, "old"},
		"once, at about the change":             {nil, tcp(432_000 - 3600), 0, time.Hour, "unsure"},
		"once, of either timeout":               {nil, udp(20), 0, 50 * time.Second, "unsure"},
		"once, of either timeout, and used":     {nil, udp(20), 0, time.Hour, "new"},
		"once, of either timeout, and idle":     {nil, udp(5), 0, 10 * time.Second, "old"},
		"once, unreplied, and used":             {nil, unreplied(20), 0, 50 * time.Second, "new"},
		"once, longer than any timeout":         {nil, udp(500), 0, time.Hour, "unsure"},
		"once, of a protocol without a timeout": {nil, entry(132, "198.51.100.1:1024", "192.0.2.1:53", 5), 0, time.Hour, "unsure"},
	} {
		o := observed(declared.Traffic{Name: "all"})
		if c.before != nil {
			o.Remember(c.before)
		}
		o.Sort(c.after, c.watched, c.since)
		got := o.Entries(0)
		want := map[string]Entries{"new": {New: 1}, "old": {Old: 1, Longest: c.after.Timeout}, "unsure": {Unsure: 1}}[c.want]
		if got.New != want.New || got.Old != want.Old || got.Unsure != want.Unsure || got.Longest != want.Longest {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
		if (len(got.Examples) > 0) == (c.want == "old") {
			t.Errorf("%s: examples %q", name, got.Examples)
		}
	}
	o := observed(declared.Traffic{Name: "all"})
	for port := range uint16(20) {
		e := udp(20)
		e.Orig.SrcPort += port
		o.Sort(e, 0, 50*time.Second)
	}
	o.Sort(tcp(431_999), 0, time.Hour)
	if got := o.Entries(0); len(got.Examples) != 1 || got.New != 1 || got.Unsure != 20 {
		t.Errorf("what is new is not named first: %+v", got)
	}
}
