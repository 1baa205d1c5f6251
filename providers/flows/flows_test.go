package flows

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

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
	f.Add([]byte(strings.Repeat("\x14\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00", 2)))
	f.Add([]byte("\x40\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x2c\x00\x01\x80\x14\x00\x01\x80\x08\x00\x01\x00\x7f\x00\x00\x01\x08\x00\x02\x00\x7f\x00\x00\x01\x0c\x00\x02\x80\x05\x00\x01\x00\x06\x00\x00\x00\x06\x00\x02\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		messages(b, func(msg []byte) bool {
			var e Entry
			if e.parse(msg) && (!e.Orig.Src.IsValid() || !e.Reply.Dst.IsValid() || e.Protocol == 0) {
				t.Errorf("half an entry: %+v", e)
			}
			if s, ok := parseSocket(6, msg); ok && s.Local.Port() == 0 {
				t.Errorf("half a socket: %+v", s)
			}
			return true
		})
		new(Entry).parse(b)
		parseSocket(17, b)
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
