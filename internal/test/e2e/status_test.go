package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/view"
)

// status reads the status of the host.
func (h *host) status(args ...string) (s view.Status) {
	h.t.Helper()
	r := h.ctplan(exitOK, append([]string{"status", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		h.t.Fatalf("reading JSON: %v\n%s", err, r.stdout)
	}
	return s
}

// TestStatus reads a table of real connections of several kinds: who opened
// them, whether they were answered, which of them are translated.
func TestStatus(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			server, client := newHost(t, backend, "web-1"), newHost(t, backend, "client-1")
			server.sh(fmt.Sprintf(`
				ip link add eth1 type veth peer name eth1 netns %d
				ip addr add 10.79.0.1/24 dev eth1
				ip addr add fd79::1/64 dev eth1 nodad
				ip link set eth1 up
				ip link add sink type veth peer name nobody
				ip addr add 10.80.0.1/24 dev sink
				ip link set sink up
				ip link set nobody up
				ip neigh add 10.80.0.9 lladdr 02:00:00:00:00:09 dev sink nud permanent
				sysctl -qw net.ipv4.ip_forward=1`, client.pid()))
			client.sh(`
				for i in 2 3 4; do ip addr add 10.79.0.$i/24 dev eth1; done
				ip addr add fd79::2/64 dev eth1 nodad
				ip link set eth1 up
				ip route add 10.80.0.0/24 via 10.79.0.1`)
			if s := server.status(); s.Tracking != view.TrackingIdle || s.Entries != 0 || s.Table == nil || s.Table.Entries != 0 {
				t.Errorf("before any rule: %+v", s)
			}
			server.sh(`
				iptables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
				ip6tables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
				iptables -t nat -A PREROUTING -p tcp --dport 8443 -j REDIRECT --to-ports 443`)
			server.start("serve", "10.79.0.1:443", "[fd79::1]:443")
			client.start("mix", "tcp 10.79.0.2 10.79.0.1:443 30", "tcp 10.79.0.3 10.79.0.1:443 6", "tcp fd79::2 [fd79::1]:443 8", "tcp 10.79.0.4 10.79.0.1:8443 4",
				"udp 10.79.0.2 10.80.0.9:123 5")
			server.start("mix", "udp 10.79.0.1 10.79.0.4:514 7", "syn 10.80.0.1 10.80.0.9:25 3", "udp 127.0.0.1 127.0.0.1:9 2")

			before := server.state()
			s := server.status("--top", "20")
			same(t, "status changed the host", before, server.state())
			listed := strings.Count(server.sh("conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null"), "\n")
			if int64(listed) != s.Table.Entries || s.Entries != s.Table.Entries {
				t.Errorf("conntrack lists %d, status %d of %d", listed, s.Table.Entries, s.Entries)
			}
			if s.Tracking != view.TrackingActive || s.AskersAll != 3 || len(s.Askers) != 2 ||
				!slices.Contains(s.Askers, census.Asker{Where: "ipv4 filter INPUT", Rule: "-m state --state RELATED,ESTABLISHED -j ACCEPT"}) {
				t.Errorf("tracking %q for %d rules: %+v", s.Tracking, s.AskersAll, s.Askers)
			}
			for _, want := range []census.State{
				{Protocol: "tcp", State: "ESTABLISHED", Entries: 48, Assured: 48},
				{Protocol: "tcp", State: "SYN_SENT", Entries: 3, Unreplied: 3},
				{Protocol: "udp", Entries: 14, Unreplied: 14},
			} {
				if !slices.ContainsFunc(s.Table.States, func(got census.State) bool {
					longest := got.Longest
					got.Longest = 0
					return got == want && longest > 20
				}) {
					t.Errorf("no state %+v in %+v", want, s.Table.States)
				}
			}
			for service, want := range map[string][4]int64{ // entries, unreplied, translated, frees
				"tcp/443 in": {48, 0, 4, 44}, "udp/514 out": {7, 7, 0, 7}, "tcp/25 out": {3, 3, 0, 3}, "udp/123 forward": {5, 5, 0, 5}, "udp/9 lo": {2, 2, 0, 2},
			} {
				i := slices.IndexFunc(s.Table.Services, func(got census.Service) bool { return got.Service == service })
				if i < 0 {
					t.Errorf("no service %s in %+v", service, s.Table.Services)
				} else if got := s.Table.Services[i]; [4]int64{got.Entries, got.Unreplied, got.Translated, got.Frees} != want {
					t.Errorf("%+v, want %v", got, want)
				}
			}
			for _, p := range []struct {
				peers   census.Peers
				address string
				entries int64
			}{
				{s.Table.Opens, "10.79.0.2", 35}, {s.Table.Opens, "10.79.0.3", 6}, {s.Table.Opens, "10.79.0.4", 4}, {s.Table.Opens, "fd79::2", 8},
				{s.Table.Calls, "10.79.0.4", 7}, {s.Table.Calls, "10.80.0.9", 8},
			} {
				if !slices.Contains(p.peers.Peers, census.Peer{Address: p.address, Entries: p.entries}) {
					t.Errorf("no %s with %d in %+v", p.address, p.entries, p.peers)
				}
			}
			text := server.ctplan(exitOK, "status").stdout
			for _, want := range []string{"tracking ", "active: 3 rules here ask for it", "ESTABLISHED", "tcp/443 in", "44, 17 KiB", "who opens", "who is called", "the longest wait is 4 d 23 h (tcp ESTABLISHED)"} {
				if !strings.Contains(text, want) {
					t.Errorf("the screen does not say %q:\n%s", want, text)
				}
			}
		})
	}
}

// mix opens sockets as its arguments say, "tcp FROM TO COUNT", "udp …" or "syn …",
// and keeps them until standard input closes.
func mix(args []string) error {
	for _, arg := range args {
		w := strings.Fields(arg)
		n, err := strconv.Atoi(w[3])
		if err != nil {
			return err
		}
		from := net.ParseIP(w[1])
		for range n {
			d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: from}}
			network := "tcp"
			switch w[0] {
			case "udp":
				network, d.LocalAddr = "udp", &net.UDPAddr{IP: from}
			case "syn":
				d.Timeout = 50 * time.Millisecond // nobody answers
			}
			conn, err := d.Dial(network, w[2])
			if w[0] == "syn" {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			if w[0] == "tcp" { // the echo: it is assured
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					return err
				}
			}
		}
	}
	return waitForEnd()
}

// TestStatusForetells fills a small table at a steady rate: what status says
// early on about when it will be full comes true within a quarter.
func TestStatusForetells(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			const limit, early = 2000, 300
			nstest.Machine(t)
			h := newHost(t, backend, "resolver-1")
			h.sh("iptables -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT; echo 300 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout")
			if err := os.WriteFile(nstest.Max, []byte(strconv.Itoa(limit)), 0); err != nil {
				t.Fatal(err)
			}
			h.start("drip")
			await := func(n int) time.Time {
				t.Helper()
				for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
					if h.entries() >= n {
						return time.Now()
					}
					if time.Since(begun) > 30*time.Second {
						t.Fatalf("%d entries after %s, and not %d", h.entries(), time.Since(begun), n)
					}
				}
			}
			await(early)
			s := h.status()
			if s.Growth == nil || s.Growth.FullIn == nil || s.Growth.LevelsOff != nil {
				t.Fatalf("at %d of %d growing at %d/s status foretells nothing, or less: %+v", s.Entries, s.Max, dripRate, s.Growth)
			}
			foretold := *s.Growth.FullIn
			truth := await(limit).Sub(s.Time).Seconds()
			t.Logf("at %d of %d, %+.0f/s (+-%.0f): foretold in %.2f s, full after %.2f s", s.Entries, s.Max, s.Growth.PerSecond, s.Growth.Error, foretold, truth)
			if foretold < truth*0.75 || foretold > truth*1.25 {
				t.Errorf("foretold in %.2f s, full after %.2f s", foretold, truth)
			}
			if truth < 3 {
				t.Errorf("full after %.2f s: the table fills too fast to foretell anything", truth)
			}

			// Full, it says so and what is lost.
			for range 100 {
				if s = h.status("--sample", "1ms"); s.Entries >= s.Max && *s.Drops.Drop+*s.Drops.EarlyDrop > 0 {
					break
				}
			}
			if s.Drops.Drop == nil || *s.Drops.Drop+*s.Drops.EarlyDrop == 0 || s.Growth.FullIn == nil || *s.Growth.FullIn != 0 {
				t.Errorf("with %d of %d entries: drops %+v, growth %+v", s.Entries, s.Max, s.Drops, s.Growth)
			}
		})
	}
}

// TestStatusWatch redraws a terminal until it is interrupted, and leaves the
// last screen there.
func TestStatusWatch(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	h.sh("iptables -A INPUT -m state --state ESTABLISHED -j ACCEPT")
	cmd := h.command("status", "--watch", "--interval", "500ms")
	cmd.Env = append(cmd.Env, "TERM=xterm", "NO_COLOR=1")
	text, _ := terminal(t, cmd)
	await := func(what string, ok func(string) bool) {
		t.Helper()
		for begun := time.Now(); !ok(text()); time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > 20*time.Second {
				t.Fatalf("no %s:\n%q", what, text())
			}
		}
	}
	await("second screen", func(s string) bool { return strings.Count(s, "\x1b[H") >= 2 })
	h.start("mix", "udp 127.0.0.1 127.0.0.1:5300 11")
	await("new entries", func(s string) bool { return strings.Contains(s, " 11 of ") })
	if s := text(); !strings.HasPrefix(s, "\x1b[?1049h") || strings.Contains(s, "\x1b[?1049l") || strings.Contains(s, "\x1b[1m") || !strings.Contains(s, "until Ctrl-C") {
		t.Errorf("%q", s)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	await("end", func(s string) bool { return strings.Contains(s, "\x1b[?1049l") })
	time.Sleep(50 * time.Millisecond)
	if _, last, _ := strings.Cut(text(), "\x1b[?1049l"); !strings.HasPrefix(last, "web-1, kernel ") || !strings.Contains(last, "udp/5300 lo") {
		t.Errorf("what is left on the terminal: %q", last)
	}
}
