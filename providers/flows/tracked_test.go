package flows

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

// TestEach lists a table in which every entry is known, and one that is longer
// than what is read ahead.
func TestEach(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		ns.Run("iptables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		ns.Run("ip6tables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		l, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send := func(to string) {
			t.Helper()
			u, err := net.Dial("udp", to)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if _, err := u.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		send("127.0.0.1:5300")
		var tcp, udp Entry
		if err := Each(t.Context(), func(e *Entry) error {
			switch e.Protocol {
			case unix.IPPROTO_TCP:
				tcp = *e
			case unix.IPPROTO_UDP:
				udp = *e
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if tcp.TCPState != 3 || tcp.Orig.Dst != netip.IPv6Loopback() || tcp.Status&host.StatusAssured == 0 || tcp.Timeout < 431_900 || tcp.Timeout > 432_000 {
			t.Errorf("TCP: %+v", tcp)
		}
		if udp.Orig.DstPort != 5300 || udp.Status&host.StatusSeenReply != 0 || udp.Timeout < 25 || udp.Timeout > 30 {
			t.Errorf("UDP: %+v", udp)
		}

		const many = 20_000
		fill(t, many)
		n, err := strconv.Atoi(strings.TrimSpace(ns.Run("cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[host.Tuple]bool{}
		if err := Each(t.Context(), func(e *Entry) error { seen[e.Orig] = true; return nil }); err != nil {
			t.Fatal(err)
		}
		if len(seen) != n || n < many {
			t.Errorf("%d entries listed of %d", len(seen), n)
		}
		enough := errors.New("enough")
		calls := 0
		if err := Each(t.Context(), func(*Entry) error { calls++; return enough }); !errors.Is(err, enough) || calls != 1 {
			t.Errorf("an error ends the list: %d calls, %v", calls, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls = 0
		err = Each(ctx, func(*Entry) error { calls++; cancel(); return nil })
		if !errors.Is(err, context.Canceled) || calls > ctxEvery {
			t.Errorf("cancelled: %d calls, %v", calls, err)
		}
		for range 50 { // each leaves its socket
			_ = Each(t.Context(), func(*Entry) error { return enough })
		}
		if open, err := os.ReadDir("/proc/self/fd"); err != nil || len(open) > 40 {
			t.Errorf("%d files are open, %v", len(open), err)
		}
		addresses, err := Addresses()
		if err != nil || len(addresses) != 2 || addresses[0].Prefix != netip.MustParsePrefix("127.0.0.1/8") {
			t.Errorf("addresses %+v, %v", addresses, err)
		}
	})
}

// fill makes n entries over lo.
func fill(t *testing.T, n int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i := range n {
		to := &unix.SockaddrInet4{Port: 10_000 + i}
		binary.BigEndian.PutUint32(to.Addr[:], 0x7f000001)
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// seed is a message that a kernel sent (6.18), of testdata/fuzz/FuzzEntry.
func seed(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/fuzz/FuzzEntry/" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, quoted, _ := strings.Cut(string(text), "[]byte(")
	msg, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ")"))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(msg)
}

// TestEntryCost: reading an entry allocates nothing, of either family.
func TestEntryCost(t *testing.T) {
	for _, name := range []string{"kernel-0", "kernel-1"} {
		msg := seed(t, name)
		var e Entry
		if n := testing.AllocsPerRun(100, func() {
			if !e.parse(msg) {
				t.Fatal("the entry is not whole")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzEntry reads whatever stands behind a netlink header. What is whole has
// all its addresses, and nothing of the entry before.
func FuzzEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x02\x00\x00\x00\x04\x00\x01\x80\xff\xff\x02\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var fresh Entry
		whole := fresh.parse(b)
		used := Entry{Timeout: 7}
		used.Mark, used.TCPState, used.Liberal, used.Protocol, used.Status = 1, 3, true, 6, 0xff
		if again := used.parse(b); again != whole || used != fresh {
			t.Errorf("%+v, but over another entry %+v", fresh, used)
		}
		if whole && (!fresh.Orig.Src.IsValid() || !fresh.Orig.Dst.IsValid() || !fresh.Reply.Src.IsValid() || !fresh.Reply.Dst.IsValid() || fresh.Protocol == 0) {
			t.Errorf("half an entry: %+v", fresh)
		}
	})
}
