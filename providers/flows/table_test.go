package flows

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

// changing is what of an entry is another each time that it is listed, and what
// is not kept: that TCP is not held to its window shows nowhere in these lines.
var changing = regexp.MustCompile(`(?m)^(\S+\s+\d+ )\d+| use=\d+| packets=\d+ bytes=\d+`)

// listed is the table as conntrack(8) lists it.
func listed(ns *nstest.NS) []string {
	text := ns.Run("sh", "-c", "conntrack -L -o extended 2>/dev/null")
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			words := strings.Fields(line)
			words[4] = "" // seconds left
			out = append(out, changing.ReplaceAllString(strings.Join(words, " "), ""))
		}
	}
	slices.Sort(out)
	return out
}

// echoed talks over a connection, both ways.
func echoed(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := way[1].Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSaveRestore takes entries out and puts them in again: plain ones of both
// families, translated, marked, labelled, in a zone, with a helper, closing. They
// are listed as before, and connections of TCP live on, whose packets no rule
// lets in unless tracking knows them.
func TestSaveRestore(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		ns.Run("sh", "-ec", `
			ip addr add 10.9.0.1/24 dev lo
			ip addr add fd09::1/64 dev lo nodad
			sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0
			iptables -t raw -A PREROUTING -p tcp --dport 7000 -j CT --zone 5
			iptables -t raw -A OUTPUT -p tcp --dport 7000 -j CT --zone 5
			iptables -t raw -A PREROUTING -p tcp --sport 7000 -j CT --zone 5
			iptables -t raw -A OUTPUT -p tcp --sport 7000 -j CT --zone 5
			iptables -t raw -A OUTPUT -p tcp --dport 21 -j CT --helper ftp
			iptables -t nat -A OUTPUT -p tcp -d 10.9.0.1 --dport 9000 -j DNAT --to 127.0.0.1:9001
			iptables -t nat -A POSTROUTING -p tcp --dport 9002 -j SNAT --to 10.9.0.1:30000-31000
			iptables -t nat -A OUTPUT -p udp --dport 9003 -j REDIRECT --to-ports 9004
			iptables -t mangle -A OUTPUT -p tcp --dport 9005 -j CONNMARK --set-mark 0x2a
			iptables -A OUTPUT -p tcp --dport 9005 -m connlabel --label 3 --set
			iptables -A INPUT -m conntrack --ctstate INVALID -j DROP
			iptables -A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP
			ip6tables -A INPUT -m conntrack --ctstate INVALID -j DROP
			ip6tables -A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP`)
		type pair struct{ a, b net.Conn }
		var talks []pair
		for _, at := range []struct{ listen, dial string }{
			{"127.0.0.1:8000", ""}, {"[fd09::1]:8000", ""}, {"127.0.0.1:7000", ""}, {"127.0.0.1:21", ""},
			{"127.0.0.1:9001", "10.9.0.1:9000"}, {"127.0.0.1:9002", ""}, {"127.0.0.1:9005", ""},
		} {
			l, err := net.Listen("tcp", at.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dial := at.dial
			if dial == "" {
				dial = at.listen
			}
			a, err := net.Dial("tcp", dial)
			if err != nil {
				t.Fatalf("%s: %v", dial, err)
			}
			defer a.Close()
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			talks = append(talks, pair{a, b})
			echoed(t, a, b)
		}
		l, err := net.Listen("tcp", "127.0.0.1:8001")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		half, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := half.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); strings.Contains(strings.Join(listed(ns), " "), "FIN_WAIT") && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond) // the other end's answer is on its way
		}
		u, err := net.Dial("udp", "127.0.0.1:9003")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.Write([]byte("x"))

		before := listed(ns)
		labels := labelled(t)
		if labels == "" {
			t.Error("nothing is labelled")
		}
		var file bytes.Buffer
		if n := saveAll(t, &file); n != len(before) || n < 9 {
			t.Fatalf("%d saved, of\n%s", n, strings.Join(before, "\n"))
		}
		done := eachSaved(t, file.Bytes(), (*Table).Remove)
		if now := listed(ns); len(now) > 0 || done.Done != int64(len(before)) {
			t.Fatalf("taken out %+v; left:\n%s", done, strings.Join(now, "\n"))
		}
		if done = eachSaved(t, file.Bytes(), (*Table).Remove); done.Gone != int64(len(before)) {
			t.Errorf("taken out again: %+v", done)
		}
		done = eachSaved(t, file.Bytes(), func(tb *Table, s *Saved) error { return tb.Restore(s, s.Timeout) })
		if now := listed(ns); !slices.Equal(before, now) || done.Done != int64(len(before)) {
			t.Fatalf("put in again %+v:\n%s\nand before:\n%s", done, strings.Join(now, "\n"), strings.Join(before, "\n"))
		}
		if now := labelled(t); now != labels {
			t.Errorf("labels %q, and before %q", now, labels)
		}
		if done = eachSaved(t, file.Bytes(), func(tb *Table, s *Saved) error { return tb.Restore(s, s.Timeout) }); done.Present != int64(len(before)) {
			t.Errorf("put in once more: %+v", done)
		}
		for _, p := range talks {
			echoed(t, p.a, p.b)
		}
		other.Write([]byte("x"))
		if _, err := half.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if got := ns.Run("sh", "-c", "conntrack -L -m 0x2a 2>/dev/null"); !strings.Contains(got, "dport=9005") {
			t.Errorf("the mark is not kept: %s", got)
		}
	})
}

// labelled are the labels of all entries that have some.
func labelled(t *testing.T) (out string) {
	t.Helper()
	var file bytes.Buffer
	saveAll(t, &file)
	if err := EachSaved(&file, func(s *Saved) error {
		for a := netlink.Walk(s.msg[4:]); a.Next(); {
			if a.Type == ctaLabels && strings.Trim(string(a.Value), "\x00") != "" {
				out += fmt.Sprintf("%d %x\n", s.Orig.DstPort, a.Value)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func saveAll(t *testing.T, to *bytes.Buffer) int {
	t.Helper()
	s, err := NewSaver(to)
	if err == nil {
		err = s.Save(t.Context(), func(*Entry) bool { return true })
	}
	if err == nil {
		err = s.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(s.N)
}

func eachSaved(t *testing.T, file []byte, do func(*Table, *Saved) error) Written {
	t.Helper()
	tb, err := OpenTable()
	if err != nil {
		t.Fatal(err)
	}
	if err := EachSaved(bytes.NewReader(file), func(s *Saved) error { return do(tb, s) }); err != nil {
		t.Fatal(err)
	}
	done, err := tb.Close()
	if err != nil {
		t.Fatal(err)
	}
	if n, why := done.Failed(); n > 0 {
		t.Errorf("%d refused: %s", n, why)
	}
	return done
}

// TestPut puts in entries of connections that nobody tracked, more than one batch
// of them; some are there already, and one is none that the kernel takes.
func TestPut(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		tuple := func(i int) host.Flow {
			a, b := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.MustParseAddr("10.0.0.1")
			return host.Flow{Protocol: []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[i%2],
				Orig: host.Tuple{Src: a, Dst: b, SrcPort: 40000, DstPort: 443}, Reply: host.Tuple{Src: b, Dst: a, SrcPort: 443, DstPort: 40000}}
		}
		put := func(from, to int) Written {
			tb, err := OpenTable()
			if err != nil {
				t.Fatal(err)
			}
			for i := from; i < to; i++ {
				f := tuple(i)
				if err := tb.Put(&f, 300); err != nil {
					t.Fatal(err)
				}
			}
			bad := tuple(0)
			bad.Reply.Src = netip.IPv6Loopback()
			if err := tb.Put(&bad, 300); err != nil {
				t.Fatal(err)
			}
			w, err := tb.Close()
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		if w := put(0, 1000); w.Done != 1000 || w.Present != 0 || len(w.Refused) != 1 {
			t.Errorf("first: %+v", w)
		}
		if w := put(500, 1500); w.Done != 500 || w.Present != 500 || len(w.Refused) != 1 {
			t.Errorf("half of them again: %+v", w)
		}
		n, tcp := 0, 0
		if err := Each(t.Context(), func(e *Entry) error {
			n++
			if e.Status&(host.StatusSeenReply|host.StatusAssured) != host.StatusSeenReply|host.StatusAssured || e.Timeout < 290 || e.Timeout > 300 {
				return fmt.Errorf("%+v", e)
			}
			if e.TCPState == tcpStateEstablished && e.Liberal {
				tcp++
			}
			return nil
		}); err != nil || n != 1500 || tcp != 750 {
			t.Errorf("%d entries, %d of TCP, %v", n, tcp, err)
		}
		tb, err := OpenTable()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{7, 2000} {
			f := tuple(i)
			tb.Renew(&f, 5000)
		}
		if w, err := tb.Close(); err != nil || w.Done != 1 || w.Gone != 1 {
			t.Errorf("renewed: %+v, %v", w, err)
		}
		if got := ns.Run("sh", "-c", "conntrack -L -s 10.1.0.7 2>/dev/null"); !strings.Contains(got, " 4999 ") && !strings.Contains(got, " 5000 ") {
			t.Errorf("not renewed: %s", got)
		}
	})
}

// FuzzSaved reads saved entries from whatever bytes there are, and asks for them.
func FuzzSaved(f *testing.F) {
	f.Add([]byte(savedHead))
	f.Add([]byte(savedHead + "\x08\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x80"))
	f.Add(append([]byte(savedHead), savedEntry(f)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		_ = EachSaved(bytes.NewReader(data), func(s *Saved) error {
			body := s.request(nil, 60)
			if bare, _ := without(body); len(body) < 4 || len(bare) < 4 {
				t.Fatalf("a request of %d bytes", len(body))
			}
			n++
			return nil
		})
		if n > len(data)/8 {
			t.Fatalf("%d entries in %d bytes", n, len(data))
		}
	})
}

// savedEntry is one translated entry as a file has it.
func savedEntry(tb testing.TB) []byte {
	tb.Helper()
	a, b, c := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	msg := []byte{unix.AF_INET, 0, 0, 0}
	msg = append(msg, appendTuple(ctaTupleOrig, unix.IPPROTO_TCP, host.Tuple{Src: a, Dst: b, SrcPort: 4000, DstPort: 443})...)
	msg = append(msg, appendTuple(ctaTupleReply, unix.IPPROTO_TCP, host.Tuple{Src: b, Dst: c, SrcPort: 443, DstPort: 5000})...)
	msg = append(msg, attribute(ctaStatus, be32(host.StatusSNAT|host.StatusSeenReply|host.StatusConfirmed))...)
	msg = append(msg, nested(ctaProtoInfo, nested(ctaProtoInfoTCP, attribute(ctaTCPState, []byte{3}), attribute(ctaTCPFlagsOrig, []byte{3, 0}), attribute(ctaTCPFlagsReply, []byte{3, 0})))...)
	var file bytes.Buffer
	s, err := NewSaver(&file)
	if err == nil {
		err = s.add(msg)
	}
	if err == nil {
		err = s.Flush()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return file.Bytes()[len(savedHead):]
}
