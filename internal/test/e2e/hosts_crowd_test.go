package e2e

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	live "github.com/ctplan/ctplan/planner/host"
)

// kind are n connections alike, from one of the three hosts of network to another.
type kind struct {
	from, to, proto string // proto is tcp, udp, icmp, gre, ftp or active ftp
	family          live.Family
	port, n         int
	dial            string // address that is dialled, where translation leads on to the other
	at              int    // port that they arrive at, where that is another
	anywhere        bool   // they arrive at whichever of its addresses
}

// service is the name that ctplan has for them.
func (k kind) service() string {
	way := "forward"
	switch {
	case k.to == "here":
		way = "in"
	case k.from == "here":
		way = "out"
	}
	switch {
	case k.proto == "icmp" && k.family == live.IPv6:
		return "icmpv6 " + way
	case k.proto == "icmp":
		return "icmp " + way
	case k.proto == "gre":
		return "47 " + way
	}
	port := k.port
	if k.at != 0 {
		port = k.at
	}
	return fmt.Sprintf("%s/%d %s", k.proto, port, way)
}

// addresses of the three hosts, as one sees another.
func addressOf(name, seenFrom string, f live.Family) string {
	switch {
	case name == "near":
		return nearAddr[f]
	case name == "far":
		return farAddr[f]
	case seenFrom == "far":
		return farHost[f]
	}
	return nearHost[f]
}

// places are the three hosts of network.
type places map[string]*space

// crowd opens connections of all kinds, each of which works. Their source ports
// begin behind base.
func (p places) crowd(t *testing.T, base int, kinds []kind) []*talk {
	t.Helper()
	var talks []*talk
	for i, k := range kinds {
		dst := addressOf(k.to, k.from, k.family)
		src := addressOf(k.from, k.to, k.family)
		dial := k.dial
		if dial == "" {
			dial = dst
		}
		at := k.at
		if at == 0 {
			at = k.port
		}
		if k.anywhere {
			dst = "0.0.0.0"
		}
		from, to := p[k.from], p[k.to]
		for n := range k.n {
			switch k.proto {
			case "tcp":
				talks = append(talks, tcpTalk(t, from, to, net.JoinHostPort(dial, fmt.Sprint(k.port)), net.JoinHostPort(dst, fmt.Sprint(at))))
			case "udp":
				source := net.JoinHostPort(src, fmt.Sprint(base+100*i+n))
				talks = append(talks, udpTalk(t, from, to, source, net.JoinHostPort(dial, fmt.Sprint(k.port)), net.JoinHostPort(dst, fmt.Sprint(at))))
			case "icmp":
				talks = append(talks, ping(t, from, dial, uint16(base+100*i+n), ""))
			case "gre":
				talks = append(talks, tunnel(t, from, to, src, dst, ""))
			default:
				pair := ftpTalk(t, from, to, src, dst, k.proto == "active ftp")
				talks = append(talks, pair...)
				continue
			}
			last := talks[len(talks)-1]
			last.service, last.family = k.service(), k.family
		}
	}
	t.Cleanup(func() {
		for _, k := range talks {
			k.a.Close()
			k.b.Close()
		}
	})
	return talks
}

// tcpTalk dials an address that leads to another, where somebody goes on
// listening.
func tcpTalk(t *testing.T, from, to *space, dial, at string) *talk {
	t.Helper()
	k := &talk{}
	l := listenOnce(t, to, at)
	from.do(t, func() (err error) {
		k.a, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial("tcp", dial)
		return err
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(3 * time.Second))
	b, err := l.Accept()
	if err != nil {
		t.Fatalf("nobody came to %s by %s: %v", at, dial, err)
	}
	k.b = b
	return k
}

// listenOnce is what listens there since the first who asked.
func listenOnce(t *testing.T, at *space, address string) net.Listener {
	t.Helper()
	if at.listens == nil {
		at.listens = map[string]net.Listener{}
	}
	if at.listens[address] == nil {
		at.listens[address] = listen(t, at, address)
	}
	return at.listens[address]
}

// udpTalk sends to an address that leads to another, and connects that to
// whoever the datagram came from.
func udpTalk(t *testing.T, from, to *space, source, dial, at string) *talk {
	t.Helper()
	k := &talk{}
	var l *net.UDPConn
	local, err := net.ResolveUDPAddr("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	to.do(t, func() error {
		c, err := (&net.ListenConfig{Control: reusePort}).ListenPacket(t.Context(), "udp", at)
		if err == nil {
			l = c.(*net.UDPConn)
		}
		return err
	})
	defer l.Close()
	from.do(t, func() (err error) {
		mine, err := net.ResolveUDPAddr("udp", source)
		if err != nil {
			return err
		}
		k.a, err = (&net.Dialer{LocalAddr: mine, Control: reusePort}).Dial("udp", dial)
		if err == nil {
			_, err = k.a.Write([]byte{0})
		}
		return err
	})
	l.SetReadDeadline(time.Now().Add(3 * time.Second))
	_, peer, err := l.ReadFromUDP(make([]byte, 1))
	if err != nil {
		t.Fatalf("nothing came from %s to %s by %s: %v", source, at, dial, err)
	}
	to.do(t, func() (err error) {
		k.b, err = (&net.Dialer{LocalAddr: local, Control: reusePort}).Dial("udp", peer.String())
		return err
	})
	return k
}

// both are kinds in both families.
func both(kinds ...kind) []kind {
	var out []kind
	for _, k := range kinds {
		four, six := k, k
		four.family, six.family = live.IPv4, live.IPv6
		out = append(out, four, six)
	}
	return out
}

// only are kinds in IPv4 alone.
func only(kinds ...kind) []kind {
	out := slices.Clone(kinds)
	for i := range out {
		out[i].family = live.IPv4
	}
	return out
}

// onlySix are those of the kinds that are of IPv6.
func onlySix(kinds []kind) []kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return k.family != live.IPv6 })
}

// routeTo leads a network through a gateway.
func routeTo(network, gateway string) error {
	_, dst, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(gateway)})
}
