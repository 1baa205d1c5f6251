package differential

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/iptables"
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

// probe is a packet that was sent, and what the evaluator says of it.
type probe struct {
	id       uint32
	src      netip.Addr
	proto    uint8
	packets  []verdict.Packet // one, or the two of a packet over lo
	decision verdict.Decision
	unknown  bool // to the evaluator, if not to the test
	local    bool // it shall arrive in the host
	seen     bool
	whole    []byte // before it was taken apart
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

// ofConn is a packet of a connection.
func (l *lab) ofConn(c conn, reply bool, flags uint8) verdict.Packet {
	p := verdict.Packet{Hook: c.from, Protocol: c.proto, State: verdict.StateEstablished, Tuple: c.orig, Orig: c.orig, Reply: c.reply, IsReply: reply, TCPFlags: flags}
	fromNear := c.fromNear
	if reply {
		p.Hook, p.Tuple, fromNear = c.to, c.reply, !c.fromNear
	}
	p.Status = host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed
	p.Known = verdict.KnownStatus | verdict.KnownTuples | verdict.KnownReply
	if c.proto == unix.IPPROTO_UDP {
		p.Known &^= verdict.KnownStatus // assured after a while
	}
	l.sides(&p, fromNear)
	return p
}

// sides sets the interfaces of a packet that comes from the near side, or goes
// from the host towards the other one.
func (l *lab) sides(p *verdict.Packet, fromNear bool) {
	in, out := inside, outside
	if !fromNear {
		in, out = out, in
	}
	switch p.Hook {
	case verdict.HookInput:
		p.In = in
	case verdict.HookForward:
		p.In, p.Out = in, out
	default:
		p.Out = outside
		if p.Dst == near(host.IPv4, 0) || slices.ContainsFunc([]int{0, 1, 2, 3}, func(i int) bool { return p.Dst == near(host.IPv4, i) || p.Dst == near(host.IPv6, i) }) {
			p.Out = inside
		}
	}
}

// send builds the packet and sends it the way of its hook.
func (l *lab) send(p *verdict.Packet, data []byte) {
	ip := l.made(p, data)
	p.Length = uint32(len(ip))
	if p.Hook == verdict.HookOutput {
		l.emit(p.Dst, ip)
		return
	}
	l.inject(p.In == inside, p.Src.Is6(), ip)
}

// made builds the packet, of which then all is known.
func (l *lab) made(p *verdict.Packet, data []byte) (ip []byte) {
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		ip = tcp(p.Src, p.Dst, p.SrcPort, p.DstPort, p.TCPFlags, data)
	case unix.IPPROTO_UDP:
		ip = udp(p.Src, p.Dst, p.SrcPort, p.DstPort, data)
	case unix.IPPROTO_ICMP, icmpv6:
		ip = icmp(p.Src, p.Dst, p.ICMPType, p.ICMPCode, l.port(), data)
	default:
		ip = build(p.Protocol, p.Src, p.Dst, data, -1)
	}
	p.Known |= verdict.KnownLength | verdict.KnownMark | verdict.KnownPktType | verdict.KnownUnbridged
	if p.Hook == verdict.HookOutput {
		p.Known |= verdict.KnownUID | verdict.KnownGID
		return ip
	}
	p.Known |= verdict.KnownMAC
	if l.comesFrom(p.Src) == p.In {
		p.Known |= verdict.KnownWayBack
	}
	p.MAC = l.peerIn
	if p.In == outside {
		p.MAC = l.peerOut
	}
	return ip
}

// comesFrom is the interface that leads to one of the peers' addresses.
func (l *lab) comesFrom(a netip.Addr) string {
	for i := range peers {
		for _, f := range host.Families {
			switch a {
			case near(f, i):
				return inside
			case far(f, i):
				return outside
			}
		}
	}
	return ""
}

// random makes a packet of any kind. pad is what stands ahead of the mark.
func (l *lab) random(f host.Family) (p verdict.Packet, pad []byte) {
	pad = make([]byte, []int{0, 0, 20, 40, 100}[l.r.IntN(5)])
	if l.r.IntN(5) < 2 {
		c := l.conns[f][l.r.IntN(len(l.conns[f]))]
		p = l.ofConn(c, l.r.IntN(2) == 0, []uint8{verdict.TCPAck, verdict.TCPAck | verdict.TCPPsh}[l.r.IntN(2)])
		if l.r.IntN(6) == 0 {
			return l.related(f, c)
		}
		return p, pad
	}
	return l.fresh(f), pad
}

// fresh is a packet of no connection that tracking knows.
func (l *lab) fresh(f host.Family) (p verdict.Packet) {
	p.Hook = verdict.Hook(l.r.IntN(3))
	fromNear := l.r.IntN(2) == 0
	i := l.r.IntN(peers)
	a, b, own := near(f, i), far(f, l.r.IntN(peers)), hostIn[f]
	if !fromNear {
		a, b, own = b, a, hostOut[f]
	}
	p.Tuple = host.Tuple{Src: a, Dst: b, SrcPort: l.port(), DstPort: uint16(servicePorts[l.r.IntN(len(servicePorts))] + l.r.IntN(2))}
	switch p.Hook {
	case verdict.HookInput:
		p.Dst = own
	case verdict.HookOutput:
		p.Src, p.Dst = own, a
	}
	l.sides(&p, fromNear)
	p.State = verdict.StateNew
	switch l.r.IntN(10) {
	case 0, 1, 2, 3:
		p.Protocol, p.TCPFlags = unix.IPPROTO_TCP, verdict.TCPSyn
		if l.r.IntN(3) == 0 {
			p.TCPFlags = []uint8{verdict.TCPAck, verdict.TCPFin | verdict.TCPAck, 0, verdict.TCPSyn | verdict.TCPFin, verdict.TCPRst, verdict.TCPSyn | verdict.TCPAck}[l.r.IntN(6)]
			p.State = verdict.StateInvalid
		}
	case 4, 5, 6:
		p.Protocol = unix.IPPROTO_UDP
	case 7:
		p.Protocol = 253
		if p.Hook != verdict.HookForward {
			p.Protocol = unix.IPPROTO_UDP
		} else {
			p.SrcPort, p.DstPort = 0, 0
			p.State |= verdict.StateEstablished // nothing tells one such connection from the next
		}
	default:
		p.SrcPort, p.DstPort = 0, 0
		if f == host.IPv6 {
			p.Protocol, p.ICMPType = icmpv6, 128
		} else {
			p.Protocol, p.ICMPType = unix.IPPROTO_ICMP, 8
		}
		if l.r.IntN(4) == 0 { // an answer to nothing
			p.State = verdict.StateInvalid
			if p.ICMPType++; f == host.IPv4 {
				p.ICMPType = 0
			}
		}
	}
	p.Orig = p.Tuple
	p.Reply = host.Tuple{Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort}
	p.Known |= verdict.KnownTuples | verdict.KnownReply | verdict.KnownStatus | verdict.KnownConnMark
	if p.Protocol == icmpv6 || p.Protocol == unix.IPPROTO_ICMP || p.Protocol == 253 {
		p.Known &^= verdict.KnownTuples // their tuples have no ports, or ids in their place
	}
	if p.State&verdict.StateEstablished != 0 {
		p.Known = 0
	}
	return p
}

// related is an error about a packet of a connection, sent back along it.
func (l *lab) related(f host.Family, c conn) (verdict.Packet, []byte) {
	about := c.orig
	p := verdict.Packet{Hook: c.to, Protocol: unix.IPPROTO_ICMP, ICMPType: 3, ICMPCode: 3, State: verdict.StateRelated, Tuple: host.Tuple{Src: about.Dst, Dst: about.Src}}
	if f == host.IPv6 {
		p.Protocol, p.ICMPType, p.ICMPCode = icmpv6, 1, 4
	}
	l.sides(&p, !c.fromNear)
	var inner []byte
	if c.proto == unix.IPPROTO_TCP {
		inner = tcp(about.Src, about.Dst, about.SrcPort, about.DstPort, verdict.TCPAck, nil)
	} else {
		inner = udp(about.Src, about.Dst, about.SrcPort, about.DstPort, nil)
	}
	return p, inner
}

// headers are what stands ahead of a packet's payload.
func headers(p *verdict.Packet) []byte {
	n := 20
	if p.Src.Is6() {
		n = 40
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		n += 20
	case 253:
	default:
		n += 8
	}
	return make([]byte, n)
}

func (l *lab) probe(f host.Family) *probe {
	l.nextID++
	q := &probe{id: l.nextID}
	p, pad := l.random(f)
	data := append(append([]byte(nil), pad...), payload(0, q.id)...)
	if l.r.IntN(20) == 0 && p.Protocol != 253 { // over lo: it goes out and comes in
		a := netip.MustParseAddr("127.0.0.1")
		if f == host.IPv6 {
			a = netip.IPv6Loopback()
		}
		out := verdict.Packet{Hook: verdict.HookOutput, Protocol: unix.IPPROTO_UDP, State: verdict.StateNew, Out: "lo", Tuple: host.Tuple{Src: a, Dst: a, SrcPort: l.port(), DstPort: 1003}}
		l.send(&out, data)
		in := out
		in.Hook, in.In, in.Out = verdict.HookInput, "lo", ""
		in.Known &^= verdict.KnownMark | verdict.KnownUID | verdict.KnownGID // what OUTPUT has set stays
		q.packets = []verdict.Packet{out, in}
	} else {
		l.send(&p, data)
		q.packets = []verdict.Packet{p}
	}
	last := &q.packets[len(q.packets)-1]
	q.src, q.proto, q.local = last.Src, last.Protocol, last.Hook == verdict.HookInput
	return q
}

// again sends a packet once more, and reports whether it arrives now.
func (l *lab) again(q *probe) bool {
	for i := range q.packets {
		if p := q.packets[i]; p.In != "lo" {
			l.send(&p, payload(int(p.Length)-len(headers(&p))-8, q.id))
		}
	}
	l.collect(map[uint32]*probe{q.id: q})
	return q.seen
}

// arrives is whether the packet shall come to whom it is sent: what a SYN proxy
// answers in that one's place does not.
func (q *probe) arrives() bool {
	return q.decision.Verdict == verdict.Accepted && q.decision.Proxied == nil
}

func (q *probe) decide(e *verdict.Evaluator) { q.decision = q.by(e) }

// by asks the evaluator; a packet over lo must pass twice.
func (q *probe) by(e *verdict.Evaluator) (d verdict.Decision) {
	open := false
	for i := range q.packets {
		d = e.Verdict(&q.packets[i])
		if d.Verdict == verdict.Dropped {
			return d
		}
		open = open || d.Verdict == verdict.Unknown
	}
	if open {
		d.Verdict = verdict.Unknown
	}
	return d
}

// draws is how many rulesets to make up, and where the generator begins.
func draws(rulesets int) (total int, seed uint64) {
	total, seed = rulesets, 1
	if testing.Short() {
		total = 200
	}
	if n, err := strconv.Atoi(os.Getenv("CTPLAN_RULESETS")); err == nil {
		total = n
	}
	if n, err := strconv.ParseUint(os.Getenv("CTPLAN_SEED"), 10, 64); err == nil {
		seed = n
	}
	return total, seed
}

// TestAgainstKernel is the proof of the evaluator. CTPLAN_RULESETS says how
// many rulesets, CTPLAN_SEED where the generator begins.
func TestAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		total, seed := draws(2200)
		r := rand.New(rand.NewPCG(seed, 5))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		var known, unknown, verdicts [2]int
		var rules, lost, rated, proxied int
		cover := coverage{}
		for i, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			// Tracking stays on while rulesets come and go.
			other := map[host.Backend]string{host.NFT: "legacy", host.Legacy: "nft"}[b]
			for _, tool := range []string{"iptables-", "ip6tables-"} {
				ns.Run(tool+other, "-t", "mangle", "-A", "POSTROUTING", "-m", "conntrack", "--ctstate", "NEW")
			}
			if i == 0 {
				l.establish()
			}
			for n := range total / 2 {
				f := host.Families[n%2]
				g := &generator{Rand: r, family: f, vague: 6}
				text := g.ruleset()
				set := l.parse(b, f, text)
				for i := range set.Tables {
					rules += len(set.Tables[i].Rules)
				}
				cover.note(b, f, set)
				e := l.evaluator(set)
				// However a ruleset is written, it says the same; and for some of
				// them as the kernel prints it.
				same := []*verdict.Evaluator{l.evaluator(l.parse(b, f, respell(r, set, true)))}
				var exact *verdict.Evaluator
				if as := settled(text); as != text {
					exact = l.evaluator(l.parse(b, f, as))
				}
				if n%8 == 0 {
					text = respell(r, set, false)
					l.load(f, text)
					same = append(same, l.evaluator(l.parse(b, f, l.save(f))))
				} else {
					l.load(f, text)
				}
				probes := map[uint32]*probe{}
				for range 30 {
					q := l.probe(f)
					q.decide(e)
					for _, o := range same {
						if got := q.by(o); got.Verdict != q.decision.Verdict || got.Untracked != q.decision.Untracked {
							t.Errorf("%s %s, ruleset %d: %s by %q, and in other words %s by %q\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, got.Verdict, got.Rule, q.packets, text)
						}
					}
					q.unknown = q.decision.Verdict == verdict.Unknown
					if exact != nil {
						got := q.by(exact)
						if !q.unknown && got.Verdict != verdict.Unknown && got.Verdict != q.decision.Verdict {
							t.Errorf("%s %s, ruleset %d: %s by %q, but as the rates are, %s by %q\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, got.Verdict, got.Rule, q.packets, text)
						}
						q.decision = got
					}
					probes[q.id] = q
				}
				l.collect(probes)
				for _, q := range probes {
					if q.unknown {
						unknown[i]++
					} else {
						known[i]++
					}
					switch {
					case q.decision.Verdict == verdict.Unknown:
						continue
					case q.unknown:
						rated++
					case q.decision.Verdict == verdict.Accepted:
						verdicts[0]++
					default:
						verdicts[1]++
					}
					if q.arrives() && !q.seen && l.again(q) {
						lost++ // on the wire, not by a rule
					}
					if q.decision.Proxied != nil {
						proxied++
					}
					if q.seen != q.arrives() {
						t.Errorf("%s %s, ruleset %d: %s by %q, but arrived: %v\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, q.seen, q.packets, text)
						if testing.Verbose() {
							t.FailNow()
						}
						break
					}
				}
				if t.Failed() {
					return
				}
			}
			for _, tool := range []string{"iptables-", "ip6tables-"} {
				ns.Run(tool+other, "-t", "mangle", "-F")
			}
			for _, f := range host.Families {
				l.load(f, "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")
			}
		}
		all := known[0] + known[1] + unknown[0] + unknown[1]
		share := 100 * float64(unknown[0]+unknown[1]) / float64(all)
		fmt.Printf("%d rulesets of %d rules, %d packets: %d accepted, %d dropped, %.2f %% unknown (%d of them by rates that the test knows), %d sent twice, %d answered by SYN proxies\n", total, rules, all, verdicts[0], verdicts[1], share, rated, lost, proxied)
		if missing := cover.missing(); total >= 2000 && len(missing) > 0 {
			t.Errorf("not generated: %s", strings.Join(missing, "; "))
		}
		if total >= 2000 && proxied < 10 {
			t.Errorf("SYN proxies answered %d packets: the test says little of them", proxied)
		}
		if lost > all/5000 {
			t.Errorf("%d packets arrived at the second try only", lost)
		}
		if share >= 2 {
			t.Errorf("%.2f %% of the verdicts are unknown: fewer than 2 %% may be", share)
		}
		if verdicts[0]*5 < all || verdicts[1]*5 < all {
			t.Errorf("one verdict is rare: the test says little")
		}
	})
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

// collect waits for the packets that should arrive, and a little longer.
func (l *lab) collect(probes map[uint32]*probe) {
	note := func(local bool) func(uint32, uint8, netip.Addr) {
		return func(id uint32, proto uint8, src netip.Addr) {
			if q := probes[id]; q != nil && q.local == local && q.src == src && q.proto == proto {
				q.seen = true
			}
		}
	}
	for wait := range 30 {
		l.seen(note(false), note(true))
		missing := false
		for _, q := range probes {
			missing = missing || q.arrives() && !q.seen
		}
		if !missing && wait > 0 {
			return
		}
		time.Sleep(time.Duration(wait) * time.Millisecond)
	}
}
