package flows

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

// TestProcSaysTheSame holds what is read of /proc to what netlink says at the
// same moment: sockets of both families, and entries of TCP, UDP and ICMP, with
// translation and without.
func TestProcSaysTheSame(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		for _, tool := range []string{"iptables", "ip6tables"} {
			ns.Run(tool, "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
			ns.Run(tool, "-A", "INPUT", "-j", "CONNMARK", "--set-mark", "0x1f")
		}
		ns.Run("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "--dport", "5400", "-j", "DNAT", "--to-destination", "127.0.0.1:5300")
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			for _, to := range []string{"127.0.0.1", "::1"} {
				c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.ParseIP(to), Port: port})
				if err != nil {
					continue // of the other family
				}
				defer c.Close()
			}
		}
		half, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		c, err := net.Dial("tcp", half.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for _, addr := range []string{"127.0.0.1:5300", "[::]:5301", "[::1]:5302"} {
			u, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
		}
		for _, to := range []string{"127.0.0.1:5300", "127.0.0.1:5400", "[::1]:5302", "127.0.0.1:9"} {
			u, err := net.Dial("udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if _, err := u.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		_ = exec.Command("ping", "-c", "1", "127.0.0.1").Run() // where there is one

		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				asked, err := diagSockets(proto, family)
				if err != nil {
					t.Fatal(err)
				}
				read, err := procSockets("", proto, family)
				if err != nil {
					t.Fatal(err)
				}
				bySocket := func(a, b socket) int {
					return cmp.Or(a.Local.Compare(b.Local), a.Remote.Compare(b.Remote), cmp.Compare(a.inode, b.inode))
				}
				slices.SortFunc(asked, bySocket)
				slices.SortFunc(read, bySocket)
				if !slices.Equal(asked, read) || len(asked) == 0 {
					t.Errorf("protocol %d of family %d: netlink says\n%+v\n/proc says\n%+v", proto, family, asked, read)
				}
			}
		}
		var asked, read []host.Flow
		if err := Each(context.Background(), func(e *Entry) error { asked = append(asked, e.Flow); return nil }); err != nil {
			t.Fatal(err)
		}
		if err := eachOfProc("", func(e *Entry) error {
			if e.Timeout == 0 {
				t.Errorf("no timeout: %+v", e)
			}
			read = append(read, e.Flow)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		const rest = 1<<7 | 1<<8 // that translation was thought of (IPS_SRC_NAT_DONE, IPS_DST_NAT_DONE): nobody asks
		byFlow := func(a, b host.Flow) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Orig.Src.Compare(b.Orig.Src), cmp.Compare(a.Orig.SrcPort, b.Orig.SrcPort), cmp.Compare(a.Orig.DstPort, b.Orig.DstPort))
		}
		for i := range asked {
			asked[i].Status &^= rest
		}
		slices.SortFunc(asked, byFlow)
		slices.SortFunc(read, byFlow)
		if !slices.Equal(asked, read) || len(asked) < 6 {
			t.Errorf("netlink says\n%+v\n/proc says\n%+v", asked, read)
		}
		if !slices.ContainsFunc(read, func(f host.Flow) bool { return f.Status&host.StatusDNAT != 0 && f.Mark == 0x1f }) {
			t.Errorf("no entry is translated and has the mark:\n%+v", read)
		}
	})
}

// TestUnread: what no file has is told, and is not none.
func TestUnread(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"proc/thread-self/net/tcp": "  sl  local_address rem_address   st\n   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 x\n"})
	c, notes := Read(Options{Root: root, Recorded: &Recorded{}, Tracked: true, Expect: 1})
	var what []string
	for _, u := range c.Unread {
		what = append(what, u.What)
	}
	if got := strings.Join(what, ", "); !strings.HasPrefix(got, "the table of tracked connections, the sockets") || len(notes) < 2 {
		t.Errorf("unread: %s; notes %q", got, notes)
	}
	list, err := procSockets(root, unix.IPPROTO_TCP, unix.AF_INET)
	if want := netip.MustParseAddrPort("127.0.0.1:22"); err != nil || len(list) != 1 || list[0].Local != want || !list[0].Listening || list[0].inode != 7 {
		t.Errorf("%+v, %v", list, err)
	}
}

func FuzzProc(f *testing.F) {
	f.Add("ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=22 src=10.0.0.2 dst=10.0.0.1 sport=22 dport=40000 [ASSURED] mark=0 use=2\n")
	f.Add("ipv4     2 gre      47 29 timeout=30, stream_timeout=180 src=10.0.0.1 dst=10.0.0.2 srckey=0x0 dstkey=0x64 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 srckey=0x64 dstkey=0x0 mark=0 zone=1 use=1\n")
	f.Add("   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 x\n")
	f.Add("   0: 0100007:0016 0:0 0A a b c d e f g h\n")
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseEntries(strings.NewReader(text), func(e *Entry) error {
			if !e.Orig.Src.IsValid() || !e.Reply.Dst.IsValid() || e.Protocol == 0 {
				t.Errorf("%q: %+v", text, e)
			}
			return nil
		})
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			list, _ := parseSockets(proto, strings.NewReader(text))
			for _, s := range list {
				if !s.Local.IsValid() || s.Local.Port() == 0 {
					t.Errorf("%q: %+v", text, s)
				}
			}
		}
	})
}
