package differential

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

// The host under test has two interfaces. Behind both is one other namespace,
// which sends and receives frames and has no addresses of its own.
const (
	inside  = "vin"
	outside = "vout"
)

var (
	hostIn  = map[host.Family]netip.Addr{host.IPv4: netip.MustParseAddr("10.1.0.1"), host.IPv6: netip.MustParseAddr("fd01::1")}
	hostOut = map[host.Family]netip.Addr{host.IPv4: netip.MustParseAddr("10.2.0.1"), host.IPv6: netip.MustParseAddr("fd02::1")}
)

// near and far are addresses behind vin and vout.
func near(f host.Family, i int) netip.Addr { return offset(hostIn[f], i) }
func far(f host.Family, i int) netip.Addr  { return offset(hostOut[f], i) }

func offset(a netip.Addr, i int) netip.Addr {
	for range 9 + i {
		a = a.Next()
	}
	return a
}

const peers = 4 // addresses behind each interface

// wire sends and sees packets.
type wire struct {
	t               testing.TB
	sendIn, sendOut int            // frames towards vin and vout
	indexIn         int            // of the peers
	indexOut        int            //
	macIn, macOut   [6]byte        // of vin and vout
	peerIn, peerOut [6]byte        // of their peers
	captures        []int          // frames that arrive at the peers
	locals          map[[2]int]int // raw sockets of the host, by family and protocol
	raw4, raw6      int            // for sending from the host
	buf             []byte
	parts           map[partOf]*partial
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// newWire furnishes the namespace that the process stands in.
func newWire(t testing.TB) *wire {
	w := &wire{t: t, locals: map[[2]int]int{}, buf: make([]byte, 65536), parts: map[partOf]*partial{}}
	here := must(os.Open("/proc/thread-self/ns/net"))(t)
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		write(t, key, "1")
	}
	for key, v := range map[string]string{
		"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0", "net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/default/router_solicitations": "0",
	} {
		write(t, key, v)
	}

	peer := make(chan int)
	done := make(chan struct{})
	go func() { // one thread in a namespace of its own
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			peer <- -1
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			fd = -1
		}
		peer <- fd
		<-done
		link := func(name string) (int, [6]byte) {
			l, err := netlink.LinkByName(name)
			check(t, err)
			check(t, netlink.LinkSetUp(l))
			return l.Attrs().Index, [6]byte(l.Attrs().HardwareAddr)
		}
		w.indexIn, w.peerIn = link("pin")
		w.indexOut, w.peerOut = link("pout")
		for _, ix := range []int{w.indexIn, w.indexOut} {
			fd := must(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, 0))(t)
			check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ix}))
			if ix == w.indexIn {
				w.sendIn = fd
			} else {
				w.sendOut = fd
			}
			for _, proto := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
				fd := must(unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0))(t)
				check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
				check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ix, Protocol: proto<<8 | proto>>8}))
				w.captures = append(w.captures, fd)
			}
		}
		peer <- 0
		<-done // the namespace lives as long as its thread
	}()
	fd := <-peer
	if fd < 0 {
		t.Fatal("no second namespace")
	}
	for _, name := range []string{inside, outside} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[1:], PeerNamespace: netlink.NsFd(fd)}))
	}
	close2 := func(name string) netlink.Link {
		l := must(netlink.LinkByName(name))(t)
		check(t, netlink.LinkSetUp(l))
		return l
	}
	vin, vout := close2(inside), close2(outside)
	w.macIn, w.macOut = [6]byte(vin.Attrs().HardwareAddr), [6]byte(vout.Attrs().HardwareAddr)
	done <- struct{}{}
	<-peer
	t.Cleanup(func() { close(done); here.Close() })

	for _, f := range host.Families {
		for _, side := range []struct {
			l    netlink.Link
			host netip.Addr
			mac  [6]byte
			peer func(host.Family, int) netip.Addr
		}{{vin, hostIn[f], w.peerIn, near}, {vout, hostOut[f], w.peerOut, far}} {
			bits := 24
			if f == host.IPv6 {
				bits = 64
			}
			check(t, netlink.AddrAdd(side.l, &netlink.Addr{IPNet: &net.IPNet{IP: side.host.AsSlice(), Mask: net.CIDRMask(bits, side.host.BitLen())}, Flags: unix.IFA_F_NODAD}))
			for i := range peers {
				check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: side.l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: side.peer(f, i).AsSlice(), HardwareAddr: side.mac[:]}))
			}
		}
	}
	check(t, nstest.Settle())
	for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
		icmp := unix.IPPROTO_ICMP
		if domain == unix.AF_INET6 {
			icmp = unix.IPPROTO_ICMPV6
		}
		for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, icmp} {
			fd := must(unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_NONBLOCK, proto))(t)
			check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
			w.locals[[2]int{domain, proto}] = fd
		}
	}
	w.raw4 = must(unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW))(t)
	w.raw6 = must(unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW))(t)
	return w
}

func write(t testing.TB, key, value string) {
	t.Helper()
	check(t, os.WriteFile("/proc/sys/"+key, []byte(value), 0o644))
}

// inject sends an IP packet towards the host, through vin or vout.
func (w *wire) inject(fromNear bool, six bool, ip []byte) {
	fd, ix, dst, src := w.sendIn, w.indexIn, w.macIn, w.peerIn
	if !fromNear {
		fd, ix, dst, src = w.sendOut, w.indexOut, w.macOut, w.peerOut
	}
	typ := uint16(unix.ETH_P_IP)
	if six {
		typ = unix.ETH_P_IPV6
	}
	frame := append(append(append(make([]byte, 0, 14+len(ip)), dst[:]...), src[:]...), byte(typ>>8), byte(typ))
	frame = append(frame, ip...)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ix}); err != nil {
		w.t.Fatalf("sending a frame: %v", err)
	}
}

// emit sends an IP packet from the host itself. That the firewall refuses it
// is an answer, not an error.
func (w *wire) emit(dst netip.Addr, ip []byte) {
	if dst.Is4() {
		unix.Sendto(w.raw4, ip, 0, &unix.SockaddrInet4{Addr: dst.As4()})
		return
	}
	unix.Sendto(w.raw6, ip, 0, &unix.SockaddrInet6{Addr: dst.As16()})
}

// mark begins the payload of every packet of the test, followed by its number.
const mark = "ctpl"

// seen collects what has arrived: by number, at the peers and in the host.
func (w *wire) seen(peer, local func(id uint32, proto uint8, src netip.Addr)) {
	for _, fd := range w.captures {
		for {
			n, _, err := unix.Recvfrom(fd, w.buf, 0)
			if err != nil {
				break
			}
			if id, proto, src, ok := w.parse(w.buf[:n]); ok {
				peer(id, proto, src)
			}
		}
	}
	for key, fd := range w.locals {
		for {
			n, from, err := unix.Recvfrom(fd, w.buf, 0)
			if err != nil {
				break
			}
			if key[0] == unix.AF_INET {
				if id, proto, src, ok := w.parse(w.buf[:n]); ok {
					local(id, proto, src)
				}
			} else if id, ok := number(w.buf[:n]); ok {
				local(id, uint8(key[1]), netip.AddrFrom16(from.(*unix.SockaddrInet6).Addr))
			}
		}
	}
}

// answered returns the sequence number of the SYN-ACK that comes from an
// address and port of the host.
func (w *wire) answered(host netip.Addr, port uint16) uint32 {
	for range 100 {
		for _, fd := range w.captures {
			for {
				n, _, err := unix.Recvfrom(fd, w.buf, 0)
				if err != nil {
					break
				}
				if n < 40 {
					continue
				}
				l4, from := w.buf[20:n], netip.AddrFrom4([4]byte(w.buf[12:16]))
				if w.buf[0]>>4 == 6 {
					l4, from = w.buf[40:n], netip.AddrFrom16([16]byte(w.buf[8:24]))
				}
				if from == host && len(l4) >= 20 && binary.BigEndian.Uint16(l4) == port && l4[13] == 0x12 {
					return binary.BigEndian.Uint32(l4[4:])
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
	w.t.Fatal("the host does not answer a SYN")
	return 0
}

func number(b []byte) (uint32, bool) {
	if len(b) < 8 || string(b[len(b)-8:len(b)-4]) != mark {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[len(b)-4:]), true
}

func (w *wire) parse(ip []byte) (id uint32, proto uint8, src netip.Addr, ok bool) {
	if len(ip) < 20 {
		return
	}
	if ip[0]>>4 == 4 {
		ip = ip[:min(len(ip), int(binary.BigEndian.Uint16(ip[2:])))]
		proto, src = ip[9], netip.AddrFrom4([4]byte(ip[12:16]))
	} else if len(ip) >= 40 {
		proto, src = ip[6], netip.AddrFrom16([16]byte(ip[8:24]))
	}
	if key, isPart := partKey(ip); isPart {
		id, proto, ok = w.join(key, ip)
		return
	}
	id, ok = number(ip)
	return
}

// build makes an IP packet. l4 comes without a checksum, which stands at sum;
// sum < 0: the protocol has none here.
func build(proto uint8, src, dst netip.Addr, l4 []byte, sum int) []byte {
	if sum >= 0 {
		var pseudo []byte
		if proto != unix.IPPROTO_ICMP {
			pseudo = append(append(pseudo, src.AsSlice()...), dst.AsSlice()...)
			pseudo = append(pseudo, 0, 0, byte(len(l4)>>8), byte(len(l4)), 0, 0, 0, proto)
		}
		binary.BigEndian.PutUint16(l4[sum:], checksum(pseudo, l4))
	}
	if src.Is4() {
		h := make([]byte, 20, 20+len(l4))
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(nil, h))
		return append(h, l4...)
	}
	h := make([]byte, 40, 40+len(l4))
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, l4...)
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func tcp(src, dst netip.Addr, sport, dport uint16, flags uint8, payload []byte) []byte {
	return tcpAt(src, dst, sport, dport, flags, 1000, 1000, payload)
}

func tcpAt(src, dst netip.Addr, sport, dport uint16, flags uint8, seq, ack uint32, payload []byte) []byte {
	l4 := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	binary.BigEndian.PutUint32(l4[4:], seq)
	binary.BigEndian.PutUint32(l4[8:], ack)
	l4[12], l4[13], l4[14] = 5<<4, flags, 0xff
	return build(unix.IPPROTO_TCP, src, dst, append(l4, payload...), 16)
}

func udp(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	l4 := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	return build(unix.IPPROTO_UDP, src, dst, append(l4, payload...), 6)
}

func icmp(src, dst netip.Addr, typ, code uint8, id uint16, payload []byte) []byte {
	l4 := make([]byte, 8, 8+len(payload))
	l4[0], l4[1] = typ, code
	binary.BigEndian.PutUint16(l4[4:], id)
	proto := uint8(unix.IPPROTO_ICMP)
	if src.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	return build(proto, src, dst, append(l4, payload...), 2)
}

// payload is n bytes of padding, the mark and the number.
func payload(n int, id uint32) []byte {
	b := make([]byte, n, n+8)
	b = append(b, mark...)
	return binary.BigEndian.AppendUint32(b, id)
}
