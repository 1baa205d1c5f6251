package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	live "github.com/ctplan/ctplan/planner/host"
)

// The symmetry checks name what would break, before it does. Each test here
// shows three things on a real kernel: that it works to begin with, that it
// breaks when the plan is forced, and that it works with the remedy.

// dialTimeout is how long a connection may take: a SYN is sent twice in it.
const dialTimeout = 2500 * time.Millisecond

// attempt is one configuration of such a test.
type attempt struct {
	name   string
	hcl    string
	said   []string // what the plan says, each on what may be several lines
	unsaid []string
	works  bool
}

// forced applies each attempt to a fresh host, and tries what works tells of.
func forced(t *testing.T, attempts []attempt, setup func(t *testing.T, h *host) (works func() error)) {
	for _, b := range backends {
		for _, a := range attempts {
			t.Run(a.name+"/"+string(b), func(t *testing.T) {
				h := newHost(t, b, "halfway")
				works := setup(t, h)
				if err := works(); err != nil {
					t.Fatalf("it does not work to begin with: %v\n%s", err, h.rules())
				}
				config := func(risks string) string {
					return h.config("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n allow_risk = [" + risks + "]\n" + a.hcl + "\n}\n")
				}
				status := exitOK
				if !a.works && strings.Contains(strings.Join(a.said, " "), "BLOCKED") {
					status = exitBlocked
				}
				text := strings.Join(strings.Fields(h.ctplan(status, "plan", config("")).stdout), " ")
				for _, want := range a.said {
					if !strings.Contains(text, want) {
						t.Errorf("the plan does not say %q:\n%s", want, text)
					}
				}
				for _, not := range a.unsaid {
					if strings.Contains(text, not) {
						t.Errorf("the plan says %q:\n%s", not, text)
					}
				}
				h.ctplan(exitOK, "apply", "--auto-approve", config(`"one_sided", "related", "lost_flows", "lost_services"`))
				if err := works(); (err == nil) != a.works {
					t.Errorf("it works: %v (%v), want %v\n%s", err == nil, err, a.works, h.rules())
				}
			})
		}
	}
}

// dial opens a connection between two spaces and says whether bytes pass.
func dial(t *testing.T, from, to *space, dst string, port int) error {
	target := net.JoinHostPort(dst, fmt.Sprint(port))
	var l net.Listener
	to.do(t, func() (err error) { l, err = net.Listen("tcp", target); return err })
	defer l.Close()
	return dialTo(t, from, l, target)
}

func dialTo(t *testing.T, from *space, l net.Listener, target string) error {
	var c net.Conn
	var failed error
	from.do(t, func() error { c, failed = net.DialTimeout("tcp", target, dialTimeout); return nil })
	if failed != nil {
		return failed
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	k := talk{a: c, b: s}
	if !k.alive() {
		return errors.New("connected, and no byte passes")
	}
	return nil
}

// TestOneSidedNotrack is the classic lock-out: NOTRACK for what comes in, and
// the SYN-ACK is INVALID.
func TestOneSidedNotrack(t *testing.T) {
	const accept = `accept "ssh" {
  protocol   = "tcp"
  local_port = 22
}
`
	forced(t, []attempt{
		{"one way", "notrack \"ssh\" {\n protocol = \"tcp\"\n local_port = 22\n direction = \"in\"\n}\n" + strings.Replace(accept, "}", "direction = \"in\"\n}", 1),
			[]string{"BLOCKED by one_sided", "-A CTPLAN-PREROUTING -p tcp -m tcp --dport 22", "the rest of it is dropped by: -A OUTPUT -m conntrack --ctstate INVALID -j DROP", `leave direction = "in" out of the notrack block "ssh"`}, nil, false},
		{"both ways", "notrack \"ssh\" {\n protocol = \"tcp\"\n local_port = 22\n}\n" + accept, nil, []string{"one_sided", "this rule takes"}, true},
	}, func(t *testing.T, h *host) func() error {
		here, near, _ := network(t, h)
		h.RunInput("*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n"+
			"-A OUTPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n", "iptables-restore")
		return func() error { return dial(t, near, here, nearHost[live.IPv4], 22) }
	})
}

// TestOneSidedForward: a port given as this host's own takes nothing of what is
// routed to that port out of tracking, which would be one way of it.
func TestOneSidedForward(t *testing.T) {
	const own = "notrack \"web\" {\n protocol = \"tcp\"\n local_port = 80\n}\naccept \"web\" {\n protocol = \"tcp\"\n local_port = 80\n}\n"
	forced(t, []attempt{
		{"this host's own", own, nil, []string{"one_sided", "this rule takes"}, true},
		{"both ways", own + "notrack \"through\" {\n protocol = \"tcp\"\n remote_port = 80\n direction = \"forward\"\n}\naccept \"through\" {\n protocol = \"tcp\"\n remote_port = 80\n direction = \"forward\"\n}\n" +
			"accept \"icmp\" {\n protocol = \"icmp\"\n direction = \"forward\"\n}\n", nil, []string{"one_sided"}, true},
		{"the host's address alone", strings.ReplaceAll(own, "local_port", "local = [\""+nearHost[live.IPv4]+"\", \""+nearHost[live.IPv6]+"\"]\n local_port"), nil, []string{"one_sided", "this rule takes"}, true},
	}, func(t *testing.T, h *host) func() error {
		_, near, far := network(t, h)
		h.RunInput("*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -s 10.31.0.0/24 -j ACCEPT\nCOMMIT\n", "iptables-restore")
		return func() error { return dial(t, near, far, farAddr[live.IPv4], 80) }
	})
}

// TestFTPData: without tracking, no helper lets the data connections in.
func TestFTPData(t *testing.T) {
	const control = "notrack \"tcp\" { protocol = \"tcp\" }\naccept \"icmp\" { protocol = \"icmp\" }\naccept \"ftp\" {\n protocol = \"tcp\"\n local_port = 21\n initiator = \"remote\"\n}\n"
	const passive = "accept \"ftp-passive\" {\n protocol = \"tcp\"\n local_port = \"50000-50100\"\n initiator = \"remote\"\n}\n"
	const active = "accept \"ftp-active\" {\n protocol = \"tcp\"\n local_port = 20\n remote_port = \"1024-65535\"\n initiator = \"local\"\n}\n"
	blocked := func(kinds ...string) []string {
		return append([]string{"BLOCKED by related", "-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp"}, kinds...)
	}
	for _, kind := range []string{"passive", "active"} {
		t.Run(kind, func(t *testing.T) {
			other := map[string]string{"passive": active, "active": passive}[kind]
			forced(t, []attempt{
				{"missing", control + other, blocked("accept \"ftp-" + kind + "\" with"), nil, false},
				{"declared", control + passive + active, nil, []string{"related"}, true},
			}, func(t *testing.T, h *host) func() error {
				here, near, _ := network(t, h)
				h.RunInput("*raw\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n"+
					"*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 21 -j ACCEPT\n-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n", "iptables-restore")
				return func() error { return ftp(t, here, near, kind == "passive") }
			})
		})
	}
}

// ftp is the little of RFC 959 that a data connection takes.
func ftp(t *testing.T, server, client *space, passive bool) error {
	address, peer := nearHost[live.IPv4], nearAddr[live.IPv4]
	comma := func(a string, port int) string {
		return fmt.Sprintf("%s,%d,%d", strings.ReplaceAll(a, ".", ","), port/256, port%256)
	}
	var l net.Listener
	server.do(t, func() (err error) { l, err = net.Listen("tcp", address+":21"); return err })
	defer l.Close()
	var c net.Conn
	var err error
	client.do(t, func() error { c, err = net.DialTimeout("tcp", address+":21", dialTimeout); return nil })
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	c.SetDeadline(time.Now().Add(4 * time.Second))
	s.SetDeadline(time.Now().Add(4 * time.Second))
	say := func(from net.Conn, to *bufio.Reader, line string) error {
		if _, err := io.WriteString(from, line+"\r\n"); err != nil {
			return err
		}
		_, err := to.ReadString('\n')
		return err
	}
	atClient, atServer := bufio.NewReader(c), bufio.NewReader(s)
	// The helper reads from the second line of each side on.
	if err := errors.Join(say(s, atClient, "220 ready"), say(c, atServer, "USER somebody"), say(s, atClient, "230 logged in")); err != nil {
		return err
	}
	var data net.Listener
	if passive {
		server.do(t, func() (err error) { data, err = net.Listen("tcp", address+":50005"); return err })
		defer data.Close()
		if err := errors.Join(say(c, atServer, "PASV"), say(s, atClient, "227 Entering Passive Mode ("+comma(address, 50005)+")")); err != nil {
			return err
		}
		return dialTo(t, client, data, address+":50005")
	}
	client.do(t, func() (err error) { data, err = net.Listen("tcp", peer+":40404"); return err })
	defer data.Close()
	if err := errors.Join(say(c, atServer, "PORT "+comma(peer, 40404)), say(s, atClient, "200 done")); err != nil {
		return err
	}
	var d net.Conn
	server.do(t, func() error {
		dialer := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address), Port: 20}, Control: reusePort}
		d, err = dialer.Dial("tcp", peer+":40404")
		return nil
	})
	if err != nil {
		return err
	}
	defer d.Close()
	return nil
}

// TestPathMTU sends what is too long for a link behind the next router. The
// router says so by ICMP; who does not hear of it waits for ever.
func TestPathMTU(t *testing.T) {
	const calls = "notrack \"tcp\" { protocol = \"tcp\" }\naccept \"calls\" {\n protocol = \"tcp\"\n remote_port = 8080\n initiator = \"local\"\n}\naccept \"nd\" { protocol = \"ipv6-icmp\" }\n"
	for _, f := range live.Families {
		t.Run(string(f), func(t *testing.T) {
			said := []string{"ICMP errors about this host's connections", "fragmentation-needed", `accept "icmp" with protocol = "icmp"`}
			icmp := "accept \"icmp\" { protocol = \"icmp\" }\n"
			without := calls
			if f == live.IPv6 {
				said = []string{"ICMP errors about this host's connections", "packet-too-big", `accept "icmpv6" with protocol = "ipv6-icmp"`}
				icmp, without = "", strings.Replace(calls, `accept "nd" { protocol = "ipv6-icmp" }`, "", 1)
			}
			forced(t, []attempt{
				{"missing", without, said, nil, false},
				{"accepted", calls + icmp, nil, []string{said[1]}, true},
			}, func(t *testing.T, h *host) func() error {
				here, _, far := network(t, h)
				deep := newSpace(t, "")
				dst := behind(t, far, deep, h)[f]
				for _, tool := range []string{"iptables", "ip6tables"} {
					nd := ""
					if tool == "ip6tables" {
						nd = "-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT\n"
					}
					h.RunInput("*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"+nd+"COMMIT\n", tool+"-restore")
				}
				return func() error {
					h.sh("ip route flush cache; ip -6 route flush cache") // what was learned before
					return transfer(t, here, deep, dst)
				}
			})
		})
	}
}

// behind puts a network behind another, over a link of 1300 bytes, and returns
// the addresses there.
func behind(t *testing.T, far, deep *space, h *host) map[live.Family]string {
	t.Helper()
	gateway := map[live.Family]string{live.IPv4: "10.33.0.1", live.IPv6: "fd33::1"}
	there := map[live.Family]string{live.IPv4: "10.33.0.2", live.IPv6: "fd33::2"}
	var fd int
	deep.do(t, func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	far.do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "deep", 1300
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up", PeerNamespace: netlink.NsFd(fd), PeerMTU: 1500}); err != nil {
			return err
		}
		if err := furnish("deep", gateway); err != nil {
			return err
		}
		for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := writeSys(key, "1"); err != nil {
				return err
			}
		}
		return nil
	})
	deep.do(t, func() error {
		defer unix.Close(fd)
		if err := furnish("up", there); err != nil {
			return err
		}
		for f, gw := range gateway {
			dst := "0.0.0.0/0"
			if f == live.IPv6 {
				dst = "::/0"
			}
			_, all, _ := net.ParseCIDR(dst)
			if err := netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP(gw)}); err != nil {
				return err
			}
		}
		return nil
	})
	h.sh("ip route add 10.33.0.0/24 via " + farAddr[live.IPv4] + "; ip -6 route add fd33::/64 via " + farAddr[live.IPv6])
	return there
}

func writeSys(key, value string) error {
	fd, err := unix.Open("/proc/sys/net/"+key, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// transfer sends 50,000 bytes.
func transfer(t *testing.T, from, to *space, dst string) error {
	const size = 50_000
	target := netip.AddrPortFrom(netip.MustParseAddr(dst), 8080).String()
	var l net.Listener
	to.do(t, func() (err error) { l, err = net.Listen("tcp", target); return err })
	defer l.Close()
	var c net.Conn
	var err error
	from.do(t, func() error { c, err = net.DialTimeout("tcp", target, dialTimeout); return nil })
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	deadline := time.Now().Add(4 * time.Second)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	go c.Write(make([]byte, size))
	_, err = io.ReadFull(s, make([]byte, size))
	return err
}
