package differential

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ipsets that the rules name; their IPv6 twins end in 6.
var (
	setNames = []string{"hosts", "nets", "services", "netservices"}
	setDirs  = map[string][]string{"hosts": {"src", "dst"}, "nets": {"src", "dst"}, "services": {"src,dst", "dst,dst", "src,src"}, "netservices": {"src,dst", "dst,dst", "src,src"}}
)

const icmpv6 = 58

// makeSets makes the ipsets and returns them as ctplan reads them.
func makeSets(t testing.TB) map[string]*host.IPSet {
	for _, f := range host.Families {
		suffix, family := "", uint8(unix.AF_INET)
		if f == host.IPv6 {
			suffix, family = "6", unix.AF_INET6
		}
		for name, typ := range map[string]string{"hosts": "hash:ip", "nets": "hash:net", "services": "hash:ip,port", "netservices": "hash:net,port"} {
			check(t, netlink.IpsetCreate(name+suffix, typ, netlink.IpsetCreateOptions{Family: family}))
			for i := range 2 {
				a := near(f, i)
				e := netlink.IPSetEntry{IP: a.AsSlice()}
				if strings.Contains(typ, "net") {
					e.CIDR = uint8(a.BitLen() - 1 - i)
				}
				if strings.Contains(typ, "port") {
					proto, port := uint8(unix.IPPROTO_TCP), uint16(servicePorts[i])
					e.Protocol, e.Port = &proto, &port
				}
				check(t, netlink.IpsetAdd(name+suffix, &e))
			}
		}
		check(t, nstest.AddNomatch("nets"+suffix, netip.PrefixFrom(near(f, 1), near(f, 1).BitLen())))
	}
	c, notes := flows.Read(flows.Options{Sets: true})
	if len(c.Sets) != 2*len(setNames) {
		t.Fatalf("sets %v, notes %q", c.Sets, notes)
	}
	return c.Sets
}

// conn is a connection that tracking knows, with replies seen.
type conn struct {
	family      host.Family
	proto       uint8
	orig, reply host.Tuple
	from, to    verdict.Hook // what a packet passes in either direction
	fromNear    bool         // the original direction comes in through vin
}

// lab is the namespace, its connections and what packets there are.
type lab struct {
	*wire
	t        testing.TB
	r        *rand.Rand
	conns    map[host.Family][]conn
	sets     map[string]*host.IPSet
	nextPort uint16
	nextID   uint32
}

func (l *lab) port() uint16 {
	if l.nextPort++; l.nextPort > 28000 {
		l.nextPort = 0
	}
	return 32000 + l.nextPort
}

// newLab knows which connections there shall be, and has no wire yet.
func newLab(t testing.TB, r *rand.Rand) *lab {
	l := &lab{t: t, r: r, conns: map[host.Family][]conn{}}
	for _, f := range host.Families {
		for i := range peers {
			c, s, port := near(f, i), far(f, i), uint16(servicePorts[i])
			add := func(proto uint8, from, to verdict.Hook, a, b netip.Addr, fromNear bool) {
				t := host.Tuple{Src: a, Dst: b, SrcPort: 31000 + uint16(i), DstPort: port}
				l.conns[f] = append(l.conns[f], conn{f, proto, t, host.Tuple{Src: b, Dst: a, SrcPort: t.DstPort, DstPort: t.SrcPort}, from, to, fromNear})
			}
			if i == 0 {
				add(unix.IPPROTO_TCP, verdict.HookInput, verdict.HookOutput, c, hostIn[f], true)
			}
			add(unix.IPPROTO_TCP, verdict.HookForward, verdict.HookForward, c, s, true)
			add(unix.IPPROTO_UDP, verdict.HookForward, verdict.HookForward, s, c, false)
			add(unix.IPPROTO_UDP, verdict.HookInput, verdict.HookOutput, s, hostOut[f], false)
			add(unix.IPPROTO_UDP, verdict.HookOutput, verdict.HookInput, hostIn[f], c, true)
		}
	}
	return l
}

// establish makes the connections.
func (l *lab) establish() {
	for key, v := range map[string]string{
		"tcp_loose": "0", "tcp_be_liberal": "1", "udp_timeout": "30", "udp_timeout_stream": "3600", "tcp_timeout_syn_sent": "2", "tcp_timeout_syn_recv": "2", "tcp_timeout_close": "1", "icmp_timeout": "2", "icmpv6_timeout": "2", "generic_timeout": "2",
	} {
		write(l.t, "net/netfilter/nf_conntrack_"+key, v)
	}
	for _, f := range host.Families {
		l.listen(f, hostIn[f], uint16(servicePorts[0]))
	}
	for _, f := range host.Families {
		for _, c := range l.conns[f] {
			for _, step := range []struct {
				reply bool
				flags uint8
			}{{false, verdict.TCPSyn}, {true, verdict.TCPSyn | verdict.TCPAck}, {false, verdict.TCPAck}} {
				if c.proto == unix.IPPROTO_TCP && c.from == verdict.HookInput && step.reply {
					// The host's own socket answers, and wants its number back.
					seq := l.answered(c.reply.Src, c.reply.SrcPort)
					o := c.orig
					l.inject(true, f == host.IPv6, tcpAt(o.Src, o.Dst, o.SrcPort, o.DstPort, verdict.TCPAck, 1001, seq+1, nil))
					break
				}
				p := l.ofConn(c, step.reply, step.flags)
				l.send(&p, payload(0, 0))
			}
		}
	}
	// Only what is still there after two seconds is a stream to the kernel.
	time.Sleep(2200 * time.Millisecond)
	for _, f := range host.Families {
		for _, c := range l.conns[f] {
			if c.proto == unix.IPPROTO_UDP {
				p := l.ofConn(c, false, 0)
				l.send(&p, payload(0, 0))
			}
		}
	}
	l.seen(func(uint32, uint8, netip.Addr) {}, func(uint32, uint8, netip.Addr) {})
}

func (l *lab) listen(f host.Family, a netip.Addr, port uint16) {
	domain := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if f == host.IPv6 {
		domain = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = a.As4()
	}
	fd := must(unix.Socket(domain, unix.SOCK_STREAM, 0))(l.t)
	check(l.t, unix.Bind(fd, sa), unix.Listen(fd, 16))
}

func tool(f host.Family) string {
	if f == host.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// load makes the ruleset stand in the kernel.
func (l *lab) load(f host.Family, text string) {
	cmd := exec.Command(tool(f) + "-restore")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("%s-restore: %v\n%s\n%s", tool(f), err, out, numbered(text))
	}
}

// save is what iptables-save prints.
func (l *lab) save(f host.Family) string {
	out, err := exec.Command(tool(f) + "-save").Output()
	check(l.t, err)
	return string(bytes.TrimSpace(out)) + "\n"
}

func (l *lab) parse(b host.Backend, f host.Family, text string) host.Ruleset {
	l.t.Helper()
	set, err := iptables.Parse(f, text)
	check(l.t, err)
	set.Backend, set.Primary = b, true
	return set
}

// evaluator knows the host under test.
func (l *lab) evaluator(set host.Ruleset) *verdict.Evaluator {
	bits := 24
	if set.Family == host.IPv6 {
		bits = 64
	}
	return xt.NewEvaluator(set.Family, []host.Ruleset{set}, verdict.Facts{Sets: l.sets, Addresses: []netip.Prefix{netip.PrefixFrom(hostIn[set.Family], bits), netip.PrefixFrom(hostOut[set.Family], bits)}})
}

func numbered(text string) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(text) {
		n++
		fmt.Fprintf(&b, "%4d %s", n, line)
	}
	return b.String()
}
