package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/flows"
)

// strict lets in what tracking knows, and connections to a few ports that begin
// with a SYN. PING stands for what neighbours need in IPv6.
const strict = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
PING
-A INPUT -m state --state INVALID -j DROP
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8001 --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j ACCEPT
-A INPUT -p udp -m udp --dport 5300 -m state --state NEW -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m state --state INVALID -j DROP
-A OUTPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j DROP
-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// untrackedAll takes all of it out of tracking.
const untrackedAll = `
conntrack "x" {
  mode           = "notrack"
  stateful_rules = "remove"
  notrack "all" {}
  accept "service" {
    protocol   = "tcp"
    local_port = 8001
  }
  accept "lookup" {
    protocol   = "udp"
    local_port = 5300
  }
  accept "calls" {
    protocol    = "tcp"
    remote_port = 443
    initiator   = "local"
  }
  accept "asks" {
    protocol    = "udp"
    remote_port = 53
  }
  allow_risk = ["exposed"]
}
`

// strictHost is a host under the strict rules, between two others.
func strictHost(t *testing.T, b live.Backend, loose int) (h *host, here, near, far *space) {
	t.Helper()
	h = newHost(t, b, "strict")
	here, near, far = network(t, h)
	h.RunInput(strings.Replace(strict, "PING\n", "", 1), "iptables-restore")
	h.RunInput(strings.Replace(strict, "PING", "-A INPUT -p ipv6-icmp -j ACCEPT\n-A OUTPUT -p ipv6-icmp -j ACCEPT", 1), "ip6tables-restore")
	h.sh(fmt.Sprintf("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=%d", loose))
	return h, here, near, far
}

// opener opens connections of each kind through the strict rules.
type opener func(n int) []*talk

func openers(t *testing.T, here, near, far *space) opener {
	t.Helper()
	type kind struct {
		from    *space
		l       net.Listener
		service string
		family  live.Family
	}
	var kinds []kind
	for _, f := range live.Families {
		in, out := net.JoinHostPort(nearHost[f], "8001"), net.JoinHostPort(farAddr[f], "443")
		kinds = append(kinds, kind{near, listen(t, here, in), "tcp/8001 in", f}, kind{here, listen(t, far, out), "tcp/443 out", f})
	}
	return func(n int) (talks []*talk) {
		t.Helper()
		for range n {
			for _, k := range kinds {
				a, b := connect(t, k.from, k.l, "")
				t.Cleanup(func() {
					a.Close()
					b.Close()
				})
				talks = append(talks, &talk{service: k.service, family: k.family, a: a, b: b})
			}
		}
		return talks
	}
}

// halfClose closes one way of a connection; what is left is one that echoes.
func halfClose(t *testing.T, k *talk) *talk {
	t.Helper()
	if err := k.a.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return &talk{service: k.service + ", half closed", family: k.family, a: oneWay{k.b.(net.Conn), k.a.(net.Conn)}, b: nothing{}}
}

// oneWay is what is sent at one end and read at the other.
type oneWay struct{ from, to net.Conn }

func (o oneWay) Write(b []byte) (int, error) { return o.from.Write(b) }
func (o oneWay) Close() error                { return nil }
func (o oneWay) Read(b []byte) (int, error) {
	o.to.SetReadDeadline(time.Now().Add(crossing))
	return o.to.Read(b)
}

// rounds is how often to go there and back: CTPLAN_CARRY_ROUNDS, or twice.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("CTPLAN_CARRY_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 2
}

// TestCarriedOver leaves tracking and comes back, by hand: connections that were
// opened before, and those that were opened untracked, both ways, half closed,
// idle and in use, all live, whatever tcp_loose says; and the plan says so.
func TestCarriedOver(t *testing.T) {
	for _, b := range backends {
		for loose := range 2 {
			t.Run(fmt.Sprintf("%s,loose=%d", b, loose), func(t *testing.T) {
				h, here, near, far := strictHost(t, b, loose)
				open := openers(t, here, near, far)
				talks := open(5)
				path := h.config(untrackedAll)
				for range rounds() {
					before := h.entries()
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					if now := h.entries(); before == 0 || now != 0 {
						t.Errorf("%d entries before nothing is tracked any more, %d after", before, now)
					}
					allLive(t, h, "leaving tracking", talks)
					more := open(5)
					more[0] = halfClose(t, more[0])
					more[1] = halfClose(t, more[1])
					talks = append(talks, more...)
					allLive(t, h, "opening more", talks)
					r := h.ctplan(exitOK, "rollback", "--auto-approve")
					if want := fmt.Sprintf("of %d open connections: %[1]d kept, carried over", len(talks)); !strings.Contains(r.stdout, want) {
						t.Errorf("not said: %q\n%s", want, r.stdout)
					}
					if got := h.entries(); got != len(talks) {
						t.Errorf("%d entries for %d connections:\n%s", got, len(talks), h.sh("conntrack -L 2>&1; conntrack -L -f ipv6 2>&1"))
					}
					// Idle ones stay as long as any.
					if short := h.sh(`conntrack -L -p tcp 2>/dev/null | awk '$3 <= 300' | wc -l`); strings.TrimSpace(short) != "0" {
						t.Errorf("%s entries go in five minutes:\n%s", strings.TrimSpace(short), h.sh("conntrack -L -p tcp 2>/dev/null"))
					}
					allLive(t, h, "rollback", talks)
				}
			})
		}
	}
}

// allLive fails the test unless every connection is.
func allLive(t *testing.T, h *host, after string, talks []*talk) {
	t.Helper()
	if now := living(talks); total(now) != len(talks) {
		t.Fatalf("after %s: %d of %d connections live: %v\n%s", after, total(now), len(talks), now, h.sh("conntrack -L 2>&1; conntrack -L -f ipv6 2>&1; iptables-save; true"))
	}
}

// TestCarriedBack is the same where nobody is asked: a change that nobody confirms.
func TestCarriedBack(t *testing.T) {
	for _, b := range backends {
		for loose := range 2 {
			t.Run(fmt.Sprintf("%s,loose=%d", b, loose), func(t *testing.T) {
				h, here, near, far := strictHost(t, b, loose)
				open := openers(t, here, near, far)
				talks := open(5)
				h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "5s", h.config(untrackedAll))
				more := open(5)
				more[3] = halfClose(t, more[3])
				talks = append(talks, more...)
				allLive(t, h, "leaving tracking", talks)
				for deadline := time.Now().Add(30 * time.Second); !strings.Contains(h.ctplan(exitOK, "history").stdout, "rolled back"); time.Sleep(100 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("nothing was taken back")
					}
				}
				allLive(t, h, "a change that nobody confirmed", talks)
			})
		}
	}
}

// TestCarriedThroughRecovery kills apply and rollback half way, when rules have
// changed; connections come up then, and all live once ctplan recover has been.
func TestCarriedThroughRecovery(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			h, here, near, far := strictHost(t, b, 0)
			open := openers(t, here, near, far)
			talks := open(3)
			path := h.config(untrackedAll)
			before := h.rules()
			h.killed("apply", "--auto-approve", path)
			talks = append(talks, open(3)...)
			h.ctplan(exitOK, "recover")
			if b == live.NFT { // legacy keeps an empty table
				same(t, "after recovery", before, h.rules())
			}
			allLive(t, h, "apply that was killed", talks)

			h.ctplan(exitOK, "apply", "--auto-approve", path)
			talks = append(talks, open(3)...)
			h.killed("rollback", "--auto-approve")
			allLive(t, h, "rollback that was killed", talks)
			h.ctplan(exitOK, "recover")
			allLive(t, h, "its recovery", talks)
			h.ctplan(exitOK, "rollback", "--auto-approve")
			if b == live.NFT { // legacy keeps an empty table
				same(t, "after rollback", before, h.rules())
			}
			allLive(t, h, "rollback", talks)
		})
	}
}

// killed runs ctplan, and kills it when its first step that changes rules is done.
func (h *host) killed(args ...string) {
	h.t.Helper()
	known, _ := filepath.Glob(h.Path("/var/lib/ctplan/*.journal"))
	cmd := h.command(args...)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			h.t.Fatalf("ctplan %s ended before it was killed: %v", strings.Join(args, " "), err)
		case <-time.After(time.Millisecond):
		}
		now, _ := filepath.Glob(h.Path("/var/lib/ctplan/*.journal"))
		if len(now) == len(known) {
			continue
		}
		if text, _ := os.ReadFile(now[len(now)-1]); bytes.Contains(text, []byte(`{"kind":"done"`)) {
			cmd.Process.Kill()
			<-ended
			return
		}
	}
}

// TestFullTableEmptied is the cure for a table that one service has filled: what it
// tracks no more leaves, and others open connections at once. On the way back what
// was routed and taken out is there again.
func TestFullTableEmptied(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			nstest.Machine(t)
			h, here, near, far := strictHost(t, b, 0)
			h.sh("iptables -A FORWARD -p tcp --dport 8001 -j ACCEPT; iptables -A FORWARD -p tcp --sport 8001 -j ACCEPT")
			open := openers(t, here, near, far)
			talks := open(3)
			const most = 3000
			if err := os.WriteFile(nstest.Max, []byte(strconv.Itoa(most)), 0); err != nil {
				t.Fatal(err)
			}
			fill := func(n int, dst string) {
				here.do(t, func() error {
					table, err := flows.OpenTable()
					for i := 0; err == nil && i < n; i++ {
						a, to := netip.AddrFrom4([4]byte{10, 31, 100 + byte(i>>8), byte(i)}), netip.MustParseAddr(dst)
						err = table.Put(&live.Flow{Protocol: 6, Orig: live.Tuple{Src: a, Dst: to, SrcPort: 4000, DstPort: 8001}, Reply: live.Tuple{Src: to, Dst: a, SrcPort: 8001, DstPort: 4000}}, 400_000)
					}
					if err == nil {
						_, err = table.Close()
					}
					return err
				})
			}
			const routed = 200
			fill(routed, farAddr[live.IPv4])
			fill(most-routed, nearHost[live.IPv4])
			if n := h.entries(); n < most {
				t.Fatalf("%d entries: the table is not full", n)
			}
			l := listen(t, far, net.JoinHostPort(farAddr[live.IPv4], "4443"))
			try := func() (err error) {
				here.do(t, func() error {
					var c net.Conn
					if c, err = net.DialTimeout("tcp", l.Addr().String(), crossing); err == nil {
						c.Close()
					}
					return nil
				})
				return err
			}
			if try() == nil {
				t.Fatal("a connection opens though the table is full")
			}
			path := h.config(`
conntrack "x" {
  mode       = "notrack"
  families   = ["ipv4"]
  allow_risk = ["stateful_rules", "exposed", "one_sided"]
  notrack "service" {
    protocol   = "tcp"
    local_port = 8001
  }
  notrack "behind" {
    protocol    = "tcp"
    remote_port = 8001
    direction   = "forward"
  }
  accept "service" {
    protocol   = "tcp"
    local_port = 8001
  }
}
`)
			r := h.ctplan(exitOK, "apply", "--auto-approve", path)
			said(t, r.stdout, "leave with their connections, and are taken out", fmt.Sprintf("of %d will be left", most))
			if n := h.entries(); n > 9 {
				t.Errorf("%d entries are left", n)
			}
			if err := try(); err != nil {
				t.Errorf("a connection that is tracked does not open: %v", err)
			}
			allLive(t, h, "the table was emptied", talks)
			h.ctplan(exitOK, "rollback", "--auto-approve")
			if n := h.entries(); n < routed+len(talks) || n > routed+len(talks)+4 {
				t.Errorf("%d entries for %d connections that are open and %d that were routed", n, len(talks), routed)
			}
			allLive(t, h, "rollback", talks)
		})
	}
}

// TestNothingGetsIn forges packets in the middle of connections that are none: of
// peers without a socket here, of one that has ended, and of one whose address was
// banned meanwhile. What carries connections over lets none of them in that it would not let in without.
func TestNothingGetsIn(t *testing.T) {
	for _, flags := range [][]string{nil, {"--no-carry"}} {
		t.Run(strings.Join(append([]string{"rollback"}, flags...), " "), func(t *testing.T) {
			h, here, near, far := strictHost(t, live.NFT, 1)
			open := openers(t, here, near, far)
			forge := forger(t, near, here)
			if got := forge(5001); got != 0 {
				t.Fatalf("%d forged packets of nobody got in while all is tracked", got)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", h.config(untrackedAll))
			if got := forge(5001); got == 0 {
				t.Fatal("no forged packet got in while nothing is tracked: the test does not see them")
			}
			var ended, banned uint16
			for _, k := range open(2) {
				if k.service == "tcp/8001 in" && k.family == live.IPv4 {
					port := uint16(k.a.(net.Conn).LocalAddr().(*net.TCPAddr).Port)
					if ended == 0 {
						ended = port
						k.a.(*net.TCPConn).SetLinger(0)
						k.a.Close()
						k.b.Close()
						continue
					}
					banned = port
				}
			}
			h.sh(fmt.Sprintf("iptables -I INPUT -p tcp --sport %d -j DROP", banned))
			h.ctplan(exitOK, append([]string{"rollback", "--auto-approve"}, flags...)...)
			h.sh(fmt.Sprintf("iptables -D INPUT -p tcp --sport %d -j DROP", banned))
			for what, port := range map[string]uint16{"of nobody": 5001, "of a connection that has ended": ended, "of one that was banned": banned} {
				if got := forge(port); got != 0 {
					t.Errorf("%d forged packets %s got in\n%s", got, what, h.sh("conntrack -L 2>/dev/null"))
				}
			}
		})
	}
}

// forger sends packets of TCP from a port of near to port 8001 of here that begin no
// connection, and says how many came through the rules.
func forger(t *testing.T, near, here *space) func(port uint16) int {
	t.Helper()
	out, _ := rawSocket(t, near, unix.IPPROTO_TCP, nearHost[live.IPv4])
	in, header := rawSocket(t, here, unix.IPPROTO_TCP, nearAddr[live.IPv4])
	t.Cleanup(func() { unix.Close(out); unix.Close(in) })
	const mark = 0x7a7a // in the urgent pointer
	src, dst := netip.MustParseAddr(nearAddr[live.IPv4]).As4(), netip.MustParseAddr(nearHost[live.IPv4]).As4()
	return func(port uint16) (got int) {
		for i := range 3 {
			p := make([]byte, 20)
			binary.BigEndian.PutUint16(p, port)
			binary.BigEndian.PutUint16(p[2:], 8001)
			binary.BigEndian.PutUint32(p[4:], 0x10000000*uint32(i+1))
			p[12], p[13] = 5<<4, 0x10 // ACK
			binary.BigEndian.PutUint16(p[14:], 1000)
			binary.BigEndian.PutUint16(p[18:], mark)
			sum := uint32(unix.IPPROTO_TCP + len(p))
			for _, b := range [][]byte{src[:], dst[:], p} {
				for k := 0; k < len(b); k += 2 {
					sum += uint32(binary.BigEndian.Uint16(b[k:]))
				}
			}
			for sum > 0xffff {
				sum = sum>>16 + sum&0xffff
			}
			binary.BigEndian.PutUint16(p[16:], ^uint16(sum))
			if err := unix.Send(out, p, 0); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 2048)
		for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			n, _, err := unix.Recvfrom(in, buf, unix.MSG_DONTWAIT)
			if err == nil && n >= header+20 && binary.BigEndian.Uint16(buf[header:]) == port && binary.BigEndian.Uint16(buf[header+18:]) == mark {
				got++
			}
		}
		return got
	}
}
