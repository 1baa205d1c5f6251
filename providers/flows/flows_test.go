package flows

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// TestRead reads a namespace in which everything that is connected is known.
func TestRead(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		ns.Run("iptables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		ns.Run("ip6tables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		var dials [][2]netip.AddrPort
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			dials = append(dials, [2]netip.AddrPort{c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()})
		}
		// Half closed, and still read from.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		half, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		if err := half.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for dual, network := range map[bool]string{true: "tcp", false: "tcp6"} {
			l, err := net.Listen(network, "[::]:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).AddrPort().Port()
			c, _ := Read(Options{})
			if i := slices.IndexFunc(c.Sockets, func(s host.Socket) bool { return s.Local.Port() == port }); i < 0 || c.Sockets[i].Dual != dual {
				t.Errorf("a listener of %s: %+v", network, c.Sockets)
			}
		}
		if c, _ := Read(Options{}); !slices.ContainsFunc(c.Sockets, func(s host.Socket) bool {
			return s.Local == half.LocalAddr().(*net.TCPAddr).AddrPort() && !s.Listening
		}) {
			t.Errorf("a half closed socket is not read: %+v", c.Sockets)
		}
		u, err := net.ListenPacket("udp", "127.0.0.1:5353")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ssh := dials[0]
		c, notes := Read(Options{Tracked: true, Expect: 1, SSHConnection: ssh[0].Addr().String() + " " + portText(ssh[0]) + " " + ssh[1].Addr().String() + " " + portText(ssh[1])})
		if len(notes) > 0 {
			t.Errorf("notes: %q", notes)
		}
		for _, d := range dials {
			flow := slices.IndexFunc(c.Flows, func(f host.Flow) bool {
				return f.Protocol == unix.IPPROTO_TCP && f.Orig == host.Tuple{Src: d[0].Addr(), Dst: d[1].Addr(), SrcPort: d[0].Port(), DstPort: d[1].Port()} &&
					f.Reply == host.Tuple{Src: d[1].Addr(), Dst: d[0].Addr(), SrcPort: d[1].Port(), DstPort: d[0].Port()} && f.TCPState == 3 && f.Status&host.StatusAssured != 0
			})
			if flow < 0 {
				t.Errorf("no flow for %v in %+v", d, c.Flows)
			}
			for _, want := range []host.Socket{{Protocol: unix.IPPROTO_TCP, Local: d[0], Remote: d[1]}, {Protocol: unix.IPPROTO_TCP, Local: d[1], Remote: d[0]}, {Protocol: unix.IPPROTO_TCP, Local: d[1], Listening: true}} {
				if !slices.Contains(c.Sockets, want) {
					t.Errorf("no socket %+v in %+v", want, c.Sockets)
				}
			}
		}
		if !slices.Contains(c.Sockets, host.Socket{Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort("127.0.0.1:5353"), Listening: true}) {
			t.Errorf("no UDP socket in %+v", c.Sockets)
		}
		if want := (host.Session{Local: ssh[1], Remote: ssh[0]}); !slices.Equal(c.Operator, []host.Session{want}) {
			t.Errorf("operator %+v, want %+v", c.Operator, want)
		}
		if !slices.Contains(c.Addresses, host.Address{Interface: "lo", Prefix: netip.MustParsePrefix("127.0.0.1/8")}) {
			t.Errorf("addresses %+v", c.Addresses)
		}
		ns.Run("sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 30001")
		if c, _ := Read(Options{}); c.Ephemeral != (host.PortRange{From: 20000, To: 30001}) {
			t.Errorf("ephemeral ports %v", c.Ephemeral)
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		proto, port := uint8(unix.IPPROTO_TCP), uint16(443)
		check(netlink.IpsetCreate("hosts", "hash:ip", netlink.IpsetCreateOptions{}))
		check(netlink.IpsetAdd("hosts", &netlink.IPSetEntry{IP: net.IP{192, 0, 2, 1}}))
		check(netlink.IpsetCreate("pairs", "hash:ip,port", netlink.IpsetCreateOptions{}))
		check(netlink.IpsetAdd("pairs", &netlink.IPSetEntry{IP: net.IP{192, 0, 2, 2}, Protocol: &proto, Port: &port}))
		check(netlink.IpsetCreate("nets", "hash:net", netlink.IpsetCreateOptions{}))
		check(netlink.IpsetAdd("nets", &netlink.IPSetEntry{IP: net.IP{10, 0, 0, 0}, CIDR: 8}))
		check(nstest.AddNomatch("nets", netip.MustParsePrefix("10.1.0.0/16")))
		check(netlink.IpsetCreate("wide", "hash:net", netlink.IpsetCreateOptions{Family: unix.AF_INET6}))
		for i := range 20_000 { // more than one message holds
			a := netip.AddrFrom16([16]byte{0: 0x20, 4: byte(i >> 8), 5: byte(i)})
			check(netlink.IpsetAdd("wide", &netlink.IPSetEntry{IP: a.AsSlice(), CIDR: 48}))
		}
		check(netlink.IpsetCreate("pairs of nets", "hash:net,port", netlink.IpsetCreateOptions{}))
		check(netlink.IpsetAdd("pairs of nets", &netlink.IPSetEntry{IP: net.IP{10, 0, 0, 0}, CIDR: 8, Protocol: &proto, Port: &port}))
		check(netlink.IpsetCreate("others", "hash:net,iface", netlink.IpsetCreateOptions{}))
		want := map[string]*host.IPSet{
			"hosts":         {Type: "hash:ip", Prefixes: []host.IPSetEntry{{Prefix: netip.MustParsePrefix("192.0.2.1/32")}}},
			"nets":          {Type: "hash:net", Prefixes: []host.IPSetEntry{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("10.1.0.0/16"), Nomatch: true}}},
			"pairs of nets": {Type: "hash:net,port", Prefixes: []host.IPSetEntry{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Protocol: proto, Port: port}}},
			"pairs":         {Type: "hash:ip,port", Prefixes: []host.IPSetEntry{{Prefix: netip.MustParsePrefix("192.0.2.2/32"), Protocol: proto, Port: port}}},
		}
		c, notes = Read(Options{Sets: true})
		if wide := c.Sets["wide"]; wide == nil || len(wide.Prefixes) != 20_000 || !slices.ContainsFunc(wide.Prefixes, func(e host.IPSetEntry) bool { return e.Prefix == netip.MustParsePrefix("2000:0:4e1f::/48") }) {
			t.Errorf("the wide set is not read: %d sets", len(c.Sets))
		}
		delete(c.Sets, "wide")
		slices.SortFunc(c.Sets["nets"].Prefixes, func(a, b host.IPSetEntry) int { return a.Prefix.Bits() - b.Prefix.Bits() })
		if !reflect.DeepEqual(c.Sets, want) || len(notes) > 0 {
			t.Errorf("sets %+v, notes %q", c.Sets, notes)
		}
		if c, _ := Read(Options{Tracked: true, Limit: 1, Expect: 9}); len(c.Flows) != 1 || c.Total != 9 {
			t.Errorf("with a limit of 1: %d flows of %d", len(c.Flows), c.Total)
		}
	})
}

func portText(a netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// TestOperatorBehindSudo finds the session that sudo hides, by the socket that
// an ssh server among the parents holds.
func TestOperatorBehindSudo(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/proc/50/stat": "50 (ctplan) S 40 1", "/proc/50/fd/3": "-> socket:[5000]",
		"/proc/40/stat": "40 (a) b) S 30 1", "/proc/40/fd/3": "-> socket:[4000]",
		"/proc/30/stat": "30 (sshd-session) S 1 1", "/proc/30/fd/3": "-> socket:[3000]",
	})
	s := host.Socket{Protocol: 6, Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("10.0.0.9:5000")}
	other := s
	other.Remote = netip.MustParseAddrPort("10.0.0.9:5001")
	got := operators(root, "not a connection", 50, []socket{{s, 3000}, {other, 4000}})
	if want := []host.Session{{Local: s.Local, Remote: s.Remote}}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x2c\x00\x01\x80\x14\x00\x01\x80\x08\x00\x01\x00\x7f\x00\x00\x01\x08\x00\x02\x00\x7f\x00\x00\x01\x0c\x00\x02\x80\x05\x00\x01\x00\x06\x00\x00\x00\x06\x00\x02\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if e.parse(b) && (!e.Orig.Src.IsValid() || !e.Reply.Dst.IsValid() || e.Protocol == 0) {
			t.Errorf("half an entry: %+v", e)
		}
		if s, ok := parseSocket(6, b, (*socket).keep); ok && s.Local.Port() == 0 {
			t.Errorf("half a socket: %+v", s)
		}
		parseSocket(17, b, (*socket).keep)
		ParseConnection(string(b))
		sets := listing{}
		sets.parse(b)
		for name, s := range sets.known() {
			for _, e := range s.Prefixes {
				if s.Type != "bitmap:port" && !e.Prefix.IsValid() {
					t.Errorf("half a member of %q: %+v", name, e)
				}
			}
		}
	})
}

// TestReached walks from a process up to the ssh server that it was reached
// through, past what sudo drops and what others keep.
func TestReached(t *testing.T) {
	stat := func(name, parent, began string) string {
		return "1 (" + name + ") S " + parent + strings.Repeat(" 0", 17) + " " + began + " 0"
	}
	const x, y = "SSH_CONNECTION=192.0.2.1 5001 192.0.2.5 22\x00", "SSH_CONNECTION=192.0.2.1 5002 192.0.2.5 22\x00"
	root := testhost.Tree(t, map[string]string{
		"/proc/10/stat": stat("sshd", "1", "100"), // listens
		"/proc/20/stat": stat("sshd", "10", "2000"), "/proc/20/fd/4": "-> socket:[77]",
		"/proc/21/stat": stat("bash", "20", "2001"), "/proc/21/environ": "A=b\x00" + x,
		"/proc/22/stat": stat("sudo", "21", "2002"), "/proc/22/environ": y, // kept from elsewhere
		"/proc/23/stat": stat("ctplan", "22", "2003"), "/proc/23/environ": "PATH=/bin\x00",
		// A terminal that was opened over the first, and is shown over a second.
		"/proc/30/stat": stat("tmux: server", "1", "2010"), "/proc/30/environ": x,
		"/proc/31/stat": stat("sh", "30", "2011"), "/proc/31/environ": x,
		"/proc/40/stat": stat("sshd-session", "10", "3000"),
		"/proc/41/stat": stat("tmux: client", "40", "3001"), "/proc/41/environ": y,
		// What has lost its server, as under mosh.
		"/proc/50/stat": stat("mosh-server", "1", "2020"), "/proc/50/environ": "SSH_CLIENT=192.0.2.1 5003 22\x00",
		"/proc/51/stat": stat("sh", "50", "2021"),
		// Cron, a server without a word of it, and nobody.
		"/proc/60/stat": stat("cron", "1", "10"), "/proc/61/stat": stat("sh", "60", "11"),
		"/proc/70/stat": stat("dropbear", "1", "10"), "/proc/71/stat": stat("sh", "70", "11"),
		"/proc/80/stat": stat("a) (sshd", "81", "1"), "/proc/81/stat": stat("loop", "80", "1"),
		"/proc/90/stat": stat("sh", "20", "2030"),
	})
	to := func(port uint16, began time.Duration) SSH {
		a := netip.MustParseAddr("192.0.2.1")
		return SSH{host.Session{Local: netip.MustParseAddrPort("192.0.2.5:22"), Remote: netip.AddrPortFrom(a, port)}, began}
	}
	client := to(5003, 0)
	client.Local = netip.AddrPort{}
	sockets := []socket{
		{host.Socket{Local: netip.MustParseAddrPort("192.0.2.5:40000"), Remote: netip.MustParseAddrPort("198.51.100.1:80")}, 77}, // forwarded
		{host.Socket{Local: to(5001, 0).Local, Remote: to(5001, 0).Remote}, 77},
	}
	for pid, want := range map[int][]SSH{
		23: {to(5001, 20*time.Second)},
		90: {to(5001, 20*time.Second)},
		31: {to(5002, 30*time.Second)},
		51: {client},
		61: nil, 80: nil, 1: nil, 99: nil,
		71: {{Began: 100 * time.Millisecond}},
	} {
		if got := reached(root, pid, func() []socket { return sockets }); !slices.Equal(got, want) {
			t.Errorf("process %d: %+v, want %+v", pid, got, want)
		}
	}
}
