package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	live "github.com/ctplan/ctplan/planner/host"
)

// talk is a connection with both its ends in hand.
type talk struct {
	service string // as ctplan names it
	family  live.Family
	a, b    io.ReadWriteCloser
}

// crossing is how long a byte may take.
const crossing = 700 * time.Millisecond

// alive is whether a byte still gets across both ways.
func (k *talk) alive() bool {
	buf := make([]byte, 1)
	for _, end := range []any{k.a, k.b} {
		if c, ok := end.(net.Conn); ok {
			c.SetDeadline(time.Now().Add(crossing))
		}
	}
	for _, way := range [][2]io.ReadWriter{{k.a, k.b}, {k.b, k.a}} {
		if _, err := way[0].Write([]byte{1}); err != nil {
			return false
		}
		if _, err := way[1].Read(buf); err != nil {
			return false
		}
	}
	return true
}

func familyOf(addr string) live.Family {
	if strings.Contains(addr, ":") {
		return live.IPv6
	}
	return live.IPv4
}

// open makes n connections from one space to an address of another.
func open(t *testing.T, from, to *space, network, src, dst string, port, n int, service string) []*talk {
	t.Helper()
	family := familyOf(dst)
	var out []*talk
	target := net.JoinHostPort(dst, fmt.Sprint(port))
	if network == "udp" {
		for i := range n {
			k := &talk{service: service, family: family}
			a, b := &net.UDPAddr{IP: net.ParseIP(src), Port: 33000 + port + i}, &net.UDPAddr{IP: net.ParseIP(dst), Port: port}
			reuse := func(local, remote *net.UDPAddr) (net.Conn, error) {
				d := net.Dialer{LocalAddr: local, Control: reusePort}
				return d.Dial("udp", remote.String())
			}
			from.do(t, func() (err error) { k.a, err = reuse(a, b); return err })
			to.do(t, func() (err error) { k.b, err = reuse(b, a); return err })
			out = append(out, k)
		}
		return out
	}
	l := listen(t, to, target)
	for range n {
		k := &talk{service: service, family: family}
		k.a, k.b = connect(t, from, l, "")
		out = append(out, k)
	}
	return out
}

func listen(t *testing.T, at *space, address string) (l net.Listener) {
	t.Helper()
	at.do(t, func() (err error) { l, err = net.Listen("tcp", address); return err })
	t.Cleanup(func() { l.Close() })
	return l
}

// connect opens a TCP connection, from a port of its own choice or from src.
func connect(t *testing.T, from *space, l net.Listener, src string) (a, b net.Conn) {
	t.Helper()
	from.do(t, func() (err error) {
		d := net.Dialer{Timeout: 3 * time.Second, Control: reusePort}
		if src != "" {
			if d.LocalAddr, err = net.ResolveTCPAddr("tcp", src); err != nil {
				return err
			}
		}
		a, err = d.Dial("tcp", l.Addr().String())
		return err
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(3 * time.Second))
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// ftpTalk opens a control connection from client to server with a data connection,
// as a server and a client of FTP do: the kernel's helper reads the lines
// (RFC 959), and takes the data connection for RELATED.
func ftpTalk(t *testing.T, client, server *space, clientAddr, serverAddr string, active bool) []*talk {
	t.Helper()
	l, ok := ftpServers[serverAddr]
	if !ok || l.t != t {
		l = ftpServer{t, listen(t, server, net.JoinHostPort(serverAddr, "21"))}
		ftpServers[serverAddr] = l
	}
	a, b := connect(t, client, l.l, "")
	say := func(from, to net.Conn, line string) {
		t.Helper()
		if _, err := io.WriteString(from, line+"\r\n"); err != nil {
			t.Fatal(err)
		}
		to.SetReadDeadline(time.Now().Add(3 * time.Second))
		r := bufio.NewReaderSize(to, 1)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatalf("waiting for %q: %v", line, err)
		}
	}
	say(b, a, "220 ready")
	say(a, b, "USER x")
	say(b, a, "230 in")
	words := func(at net.Listener) string {
		tcp := at.Addr().(*net.TCPAddr)
		return strings.ReplaceAll(fmt.Sprintf("%s.%d.%d", tcp.IP, tcp.Port/256, tcp.Port%256), ".", ",")
	}
	data := &talk{family: live.IPv4, service: "tcp/high ports in"}
	if active {
		data.service = "tcp/high ports out"
		at := listen(t, client, clientAddr+":0")
		say(a, b, "PORT "+words(at))
		say(b, a, "200 go")
		data.a, data.b = connect(t, server, at, serverAddr+":20")
	} else {
		at := listen(t, server, serverAddr+":0")
		say(a, b, "PASV")
		say(b, a, "227 Entering Passive Mode ("+words(at)+")")
		data.a, data.b = connect(t, client, at, "")
	}
	return []*talk{{service: "tcp/21 in", family: live.IPv4, a: a, b: b}, data}
}

// ftpServers are the listening sockets of port 21, one a test.
var ftpServers = map[string]ftpServer{}

type ftpServer struct {
	t *testing.T
	l net.Listener
}

// rawEnd is a raw socket to one address.
type rawEnd struct {
	fd     int
	header int // bytes before the payload as it is read
	wrap   func() []byte
	fits   func(packet []byte) bool
}

func (r *rawEnd) Write(b []byte) (int, error) { return len(b), unix.Send(r.fd, r.wrap(), 0) }
func (r *rawEnd) Close() error                { return unix.Close(r.fd) }

// Read waits for a packet that fits.
func (r *rawEnd) Read(b []byte) (int, error) {
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(crossing); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if n > r.header && r.fits(buf[r.header:n]) {
			return 1, nil
		}
	}
	return 0, unix.ETIMEDOUT
}

func rawSocket(t *testing.T, at *space, proto int, remote string) (fd, header int) {
	t.Helper()
	at.do(t, func() (err error) {
		a := netip.MustParseAddr(remote)
		domain, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: a.As16()})
		if a.Is4() {
			domain, addr, header = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}, 20
		}
		if fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto); err != nil {
			return err
		}
		limit := unix.NsecToTimeval(int64(crossing))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		return unix.Connect(fd, addr)
	})
	return fd, header
}

// nothing is the far end of what answers by itself.
type nothing struct{}

func (nothing) Read(b []byte) (int, error)  { return 1, nil }
func (nothing) Write(b []byte) (int, error) { return len(b), nil }
func (nothing) Close() error                { return nil }

// ping is an ICMP echo that the kernel at the other end answers.
func ping(t *testing.T, from *space, to string, id uint16, service string) *talk {
	t.Helper()
	proto, ask, answer := unix.IPPROTO_ICMP, byte(8), byte(0)
	if familyOf(to) == live.IPv6 {
		proto, ask, answer = unix.IPPROTO_ICMPV6, 128, 129
	}
	fd, header := rawSocket(t, from, proto, to)
	seq := uint16(0)
	r := &rawEnd{fd: fd, header: header}
	r.wrap = func() []byte {
		seq++
		p := []byte{ask, 0, 0, 0, byte(id >> 8), byte(id), byte(seq >> 8), byte(seq)}
		sum := uint32(0)
		for i := 0; i < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		binary.BigEndian.PutUint16(p[2:], ^uint16(sum+sum>>16)) // of ICMPv6 the kernel makes it
		return p
	}
	r.fits = func(p []byte) bool {
		return len(p) >= 8 && p[0] == answer && binary.BigEndian.Uint16(p[4:]) == id && binary.BigEndian.Uint16(p[6:]) == seq
	}
	return &talk{service: service, family: familyOf(to), a: echo{r}, b: nothing{}}
}

// echo writes and reads on one socket what the talk expects at two ends.
type echo struct{ *rawEnd }

// tunnel is GRE without a tunnel: packets of the protocol, both ways.
func tunnel(t *testing.T, from, to *space, src, dst, service string) *talk {
	t.Helper()
	end := func(at *space, remote string, mine byte) *rawEnd {
		fd, header := rawSocket(t, at, unix.IPPROTO_GRE, remote)
		return &rawEnd{fd: fd, header: header, wrap: func() []byte { return []byte{0, 0, 0x88, 0xb5, mine} }, fits: func(p []byte) bool { return len(p) == 5 && p[4] != mine }}
	}
	return &talk{service: service, family: familyOf(dst), a: end(from, dst, 1), b: end(to, src, 2)}
}

// stateful is what many hosts have: default drop, and replies by their state.
const stateful = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,8080 -m state --state NEW -j ACCEPT
-A INPUT -s NEAR -p tcp -m tcp --dport 21 -m state --state NEW -j ACCEPT
-A INPUT -p udp -m udp --dport 53 -j ACCEPT
-A INPUT -s NEAR -p gre -m state --state NEW -j ACCEPT
-A INPUT -p ICMP -m state --state NEW -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s NEAR -m state --state NEW -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// guard loads the stateful rules. Neighbour discovery is tracked by nobody, so
// that state does not let it in.
func guard(h *host) {
	h.t.Helper()
	h.RunInput(strings.NewReplacer("NEAR", "10.31.0.0/24", "ICMP", "icmp").Replace(stateful), "iptables-restore")
	h.RunInput(strings.NewReplacer("NEAR", "fd31::/64", "-A INPUT -p ICMP -m state --state NEW", "-A INPUT -p ipv6-icmp", "-A OUTPUT -o lo", "-A OUTPUT -p ipv6-icmp -j ACCEPT\n-A OUTPUT -o lo").Replace(stateful), "ip6tables-restore")
}

// crossroads is a stateful host between two others, with a crowd that is
// connected to it and through it, counted as living does.
func crossroads(t *testing.T, b live.Backend) (h *host, talks []*talk, before map[string]int) {
	t.Helper()
	h = newHost(t, b, "crossroads")
	here, near, far := network(t, h)
	guard(h)
	talks = crowd(t, h, here, near, far)
	before = living(talks)
	if all := total(before); all != len(talks) {
		t.Fatalf("of %d connections %d work under the stateful rules: %v", len(talks), all, before)
	}
	return h, talks, before
}

// crowd opens connections of every kind through the stateful rules, and shows
// that each works.
func crowd(t *testing.T, h *host, here, near, far *space) []*talk {
	t.Helper()
	v4, v6 := live.IPv4, live.IPv6
	talks := slices.Concat(
		open(t, near, here, "tcp", "", nearHost[v4], 8080, 20, "tcp/8080 in"),
		open(t, near, here, "tcp", "", nearHost[v4], 22, 10, "tcp/22 in"),
		open(t, here, far, "tcp", "", farAddr[v4], 443, 20, "tcp/443 out"),
		open(t, near, far, "tcp", "", farAddr[v4], 80, 20, "tcp/80 forward"),
		open(t, near, here, "udp", nearAddr[v4], nearHost[v4], 53, 20, "udp/53 in"),
		open(t, here, near, "udp", nearHost[v4], nearAddr[v4], 123, 20, "udp/123 out"),
		open(t, near, far, "udp", nearAddr[v4], farAddr[v4], 514, 20, "udp/514 forward"),
		open(t, near, here, "tcp", "", nearHost[v6], 8080, 10, "tcp/8080 in"),
		open(t, here, far, "tcp", "", farAddr[v6], 443, 10, "tcp/443 out"),
		open(t, near, far, "tcp", "", farAddr[v6], 80, 10, "tcp/80 forward"),
		open(t, near, here, "udp", nearAddr[v6], nearHost[v6], 53, 10, "udp/53 in"),
		open(t, here, near, "udp", nearHost[v6], nearAddr[v6], 123, 10, "udp/123 out"),
		[]*talk{tunnel(t, near, here, nearAddr[v4], nearHost[v4], "gre in")},
	)
	for i := range 5 {
		talks = append(talks, ftpTalk(t, near, here, nearAddr[v4], nearHost[v4], i%2 == 1)...)
	}
	for i := range 3 {
		talks = append(talks, ping(t, near, nearHost[v4], uint16(100+i), "icmp in"), ping(t, here, farAddr[v4], uint16(200+i), "icmp out"),
			ping(t, near, farAddr[v4], uint16(300+i), "icmp forward"), ping(t, near, nearHost[v6], uint16(400+i), "icmpv6 in"))
	}
	t.Cleanup(func() {
		for _, k := range talks {
			k.a.Close()
			k.b.Close()
		}
	})
	if len(talks) < 200 {
		t.Fatalf("only %d connections", len(talks))
	}
	return talks
}
