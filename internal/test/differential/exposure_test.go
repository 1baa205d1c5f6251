package differential

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/providers/iptables"
)

// knock is a first packet that is sent under the rules as they are, and again
// under those of a plan.
type knock struct {
	from   netip.Addr
	packet verdict.Packet
	before bool // it arrives
	after  bool
}

func (k *knock) String() string {
	p := &k.packet
	return fmt.Sprintf("%s %d %s:%d -> %s:%d type %d in %s out %s", p.Hook, p.Protocol, p.Src, p.SrcPort, p.Dst, p.DstPort, p.ICMPType, p.In, p.Out)
}

// stateful writes rulesets on connection state as people write them, with what
// they refuse.
type stateful struct {
	*rand.Rand
	six bool
}

func (g *stateful) pick(list ...string) string { return list[g.IntN(len(list))] }

// names are networks that rules name: of peers, parts of them, of nobody near.
func (g *stateful) net() string {
	if g.six {
		return g.pick("fd01::/64", "fd01::a/128", "fd01::8/125", "fd02::/64", "fd02::c/128", "2001:db8:66::/48", "fd00::/8")
	}
	return g.pick("10.1.0.0/24", "10.1.0.10/32", "10.1.0.8/29", "10.2.0.0/24", "10.2.0.12/32", "198.18.0.0/15", "10.0.0.0/8")
}

var namedPorts = []uint16{22, 53, 80, 443, 3306, 7005, 8080}

func (g *stateful) port() string { return fmt.Sprint(namedPorts[g.IntN(len(namedPorts))]) }

func (g *stateful) source(hook string) string {
	out := ""
	if g.IntN(5) == 0 {
		out = g.pick("-i vin ", "-i vout ", "! -i vin ")
	}
	if hook == "FORWARD" && g.IntN(4) == 0 {
		out += g.pick("-o vin ", "-o vout ")
	}
	if g.IntN(2) == 0 {
		out = g.pick("", "", "! ") + "-s " + g.net() + " " + out
	}
	return out
}

func (g *stateful) proto() string {
	icmp := "-p icmp -m icmp --icmp-type 8"
	if g.six {
		icmp = "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
	}
	tcp := func() string {
		return g.pick("-p tcp -m tcp --dport "+g.port(), "-p tcp -m tcp --dport "+g.port(), "-p tcp -m multiport --dports "+g.port()+",9000:9010", "-p tcp -m tcp ! --dport "+g.port(), "-p tcp")
	}
	return g.pick(tcp(), tcp(), tcp(), "-p udp -m udp --dport "+g.port(), "-p udp", icmp, strings.Fields(icmp)[0]+" "+strings.Fields(icmp)[1], "", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN")
}

func (g *stateful) state() string {
	return g.pick("", "", "", "-m state --state NEW", "-m state --state NEW", "-m state --state NEW", "-m conntrack --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED", "-m conntrack --ctstate ESTABLISHED", "-m conntrack --ctstate INVALID",
		"-m conntrack ! --ctstate NEW", "-m conntrack ! --ctstate INVALID", "-m conntrack --ctstate NEW,UNTRACKED", "-m conntrack ! --ctstate ESTABLISHED", "-m conntrack --ctstate NEW,ESTABLISHED", "-m conntrack --ctdir ORIGINAL", "-m conntrack --ctstate INVALID,NEW")
}

func (g *stateful) target(proto, next string) string {
	refuse := []string{"-j DROP", "-j REJECT"}
	if strings.HasPrefix(proto, "-p tcp") {
		refuse = append(refuse, "-j REJECT --reject-with tcp-reset")
	}
	switch n := g.IntN(10); {
	case n < 4:
		return g.pick("-j ACCEPT")
	case n < 8 || next == "":
		return g.pick(refuse...)
	case n < 9:
		return g.pick("-j ", "-g ") + next
	}
	return g.pick("-j RETURN", "-j LOG")
}

func (g *stateful) ruleset() string {
	var b strings.Builder
	policy := func() string { return g.pick("ACCEPT", "DROP", "DROP") }
	fmt.Fprintf(&b, "*filter\n:INPUT %s [0:0]\n:FORWARD %s [0:0]\n:OUTPUT ACCEPT [0:0]\n:guard-INPUT - [0:0]\n:guard-FORWARD - [0:0]\n", policy(), policy())
	for _, hook := range []string{"INPUT", "FORWARD"} {
		if g.IntN(2) == 0 {
			fmt.Fprintf(&b, "-A %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n", hook)
		}
		for _, chain := range []string{hook, "guard-" + hook} {
			next := ""
			if chain == hook {
				next = "guard-" + hook
			}
			for range 1 + g.IntN(6) {
				proto := g.proto()
				fmt.Fprintf(&b, "%s\n", strings.Join(strings.Fields("-A "+chain+" "+g.source(hook)+proto+" "+g.state()+" "+g.target(proto, next)), " "))
			}
		}
	}
	b.WriteString("COMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n")
	if g.IntN(8) == 0 {
		b.WriteString(g.pick("-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack\n-A OUTPUT -p udp -m udp --sport 53 -j CT --notrack\n", "-A PREROUTING -p udp -j CT --notrack\n-A OUTPUT -p udp -j CT --notrack\n"))
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// desired is what somebody declares for such a host.
func (g *stateful) desired(f host.Family) declared.Desired {
	d := declared.Desired{Block: "x", Mode: declared.Notrack, Source: declared.Pos{File: "x.hcl", Line: 1}, ModeSource: declared.Pos{File: "x.hcl", Line: 2}, StatefulRules: declared.RemoveStateful, AllowRisk: declared.Risks, Families: []host.Family{f}}
	if g.IntN(4) == 0 {
		d.Mode = declared.Disabled
	}
	if g.IntN(4) == 0 && d.Mode == declared.Notrack {
		d.StatefulRules = declared.RefuseStateful
	}
	line := 10
	traffic := func(name string) declared.Traffic {
		line++
		return declared.Traffic{Name: name, Direction: declared.Both, Families: d.Families, Source: declared.Pos{File: "x.hcl", Line: line}}
	}
	ports := func() []host.PortRange {
		p := namedPorts[g.IntN(len(namedPorts))]
		return []host.PortRange{{From: p, To: p + uint16(g.IntN(3))}}
	}
	if d.Mode == declared.Notrack {
		all := traffic("all")
		switch g.IntN(5) {
		case 0:
			all.Protocol = "tcp"
		case 1:
			all.Protocol, all.LocalPorts = "tcp", ports()
		case 2:
			all.Protocol = "udp"
		}
		d.Notrack = append(d.Notrack, all)
	}
	for i := range g.IntN(4) {
		a := traffic(fmt.Sprint("a", i))
		if g.IntN(3) == 0 {
			a.Direction = declared.Forward
		}
		switch a.Protocol = g.pick("tcp", "tcp", "udp", "icmp", ""); {
		case a.Protocol == "icmp" && g.six:
			a.Protocol = "ipv6-icmp"
		case a.Protocol == "tcp" || a.Protocol == "udp":
			if g.IntN(3) > 0 {
				a.LocalPorts = ports()
			} else {
				a.RemotePorts = ports()
			}
			if a.Protocol == "tcp" && g.IntN(3) == 0 {
				a.Initiator = []declared.Initiator{declared.LocalSide, declared.RemoteSide}[g.IntN(2)]
			}
		}
		if g.IntN(3) == 0 {
			a.Remote = []netip.Prefix{netip.MustParsePrefix(g.net())}
		}
		d.Accept = append(d.Accept, a)
	}
	d.Chains = iptables.Render(d, host.Live{})
	return d
}

// defaultRoutes has what is nowhere near behind vout.
func (l *lab) defaultRoutes() {
	for _, f := range host.Families {
		link := must(netlink.LinkByName(outside))(l.t)
		any := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if f == host.IPv6 {
			any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		check(l.t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: any, Gw: far(f, 0).AsSlice()}))
	}
}

// reach has frames to an address go to the peer that it is behind.
func (l *lab) reach(a netip.Addr) {
	for _, side := range []struct {
		name string
		host map[host.Family]netip.Addr
		mac  [6]byte
	}{{inside, hostIn, l.peerIn}, {outside, hostOut, l.peerOut}} {
		f, bits := host.IPv4, 24
		if a.Is6() {
			f, bits = host.IPv6, 64
		}
		if netip.PrefixFrom(side.host[f], bits).Contains(a) {
			link := must(netlink.LinkByName(side.name))(l.t)
			check(l.t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: side.mac[:]}))
		}
	}
}

// live is the host under test as ctplan reads it.
func (l *lab) live(set host.Ruleset) host.Live {
	c := &host.Connections{Flows: []host.Flow{}, Sockets: []host.Socket{}}
	for _, f := range host.Families {
		bits, any := 24, netip.MustParsePrefix("0.0.0.0/0")
		if f == host.IPv6 {
			bits, any = 64, netip.MustParsePrefix("::/0")
		}
		for _, side := range []struct {
			name string
			addr netip.Addr
		}{{inside, hostIn[f]}, {outside, hostOut[f]}} {
			p := netip.PrefixFrom(side.addr, bits)
			c.Addresses = append(c.Addresses, host.Address{Interface: side.name, Prefix: p})
			c.Routes = append(c.Routes, host.Route{Prefix: p.Masked(), Interface: side.name})
		}
		c.Routes = append(c.Routes, host.Route{Prefix: any, Interface: outside})
	}
	return host.Live{Host: host.Host{Name: "x", Kernel: "6.1", CPUs: 1, PageSize: 4096, PointerSize: 8}, Conntrack: host.Conntrack{Kind: host.ConntrackBuiltin, Loaded: true, InitialNetns: true}, Rulesets: []host.Ruleset{set}, Connections: c}
}

// knocks are first packets from several strangers, to every port that a rule may name
// and to others, to the host and through it.
func (l *lab) knocks(f host.Family) (out []*knock) {
	nobody := map[host.Family][]string{host.IPv4: {"203.0.113.77", "198.18.0.7"}, host.IPv6: {"2001:db8:ffff::77", "2001:db8:66::7"}}
	from := []netip.Addr{near(f, 0), near(f, 1), far(f, 0), far(f, 2), netip.MustParseAddr(nobody[f][0]), netip.MustParseAddr(nobody[f][1])}
	add := func(p verdict.Packet) {
		out = append(out, &knock{from: p.Src, packet: p})
	}
	for _, a := range from {
		in, own, beyond := outside, hostOut[f], near(f, 3)
		if l.comesFrom(a) == inside {
			in, own, beyond = inside, hostIn[f], far(f, 3)
		}
		for _, routed := range []bool{false, true} {
			p := verdict.Packet{Hook: verdict.HookInput, In: in, Tuple: host.Tuple{Src: a, Dst: own}}
			if routed {
				p.Hook, p.Dst, p.Out = verdict.HookForward, beyond, inside
				if in == inside {
					p.Out = outside
				}
			}
			for _, port := range append(slices.Clone(namedPorts), 23, 9005, 40001) {
				p.DstPort = port
				p.Protocol, p.TCPFlags = unix.IPPROTO_TCP, verdict.TCPSyn
				add(p)
				if port == 53 || port == 80 {
					p.SrcPort = 443
					add(p)
					p.SrcPort = 0
				}
				p.Protocol, p.TCPFlags = unix.IPPROTO_UDP, 0
				add(p)
			}
			p.DstPort, p.Protocol, p.ICMPType = 0, unix.IPPROTO_ICMP, 8
			if f == host.IPv6 {
				p.Protocol, p.ICMPType = icmpv6, 128
			}
			add(p)
			if routed {
				p.Protocol, p.ICMPType = 253, 0
				add(p)
			}
		}
	}
	return out
}

// arrive sends first packets anew, and says which arrive: those that do not are
// sent again, since one may have been lost.
func (l *lab) arrive(all []*knock, set func(k *knock, seen bool), expect func(k *knock) bool) {
	check(l.t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	for round := range 3 {
		probes := map[uint32]*probe{}
		of := map[uint32]*knock{}
		for _, k := range all {
			if round > 0 && !expect(k) {
				continue
			}
			l.nextID++
			p := k.packet
			if p.SrcPort == 0 && protocol.CarriesPorts(p.Protocol) {
				p.SrcPort = l.port()
			}
			probes[l.nextID] = &probe{id: l.nextID, src: p.Src, proto: p.Protocol, local: p.Hook == verdict.HookInput}
			of[l.nextID] = k
			l.send(&p, payload(0, l.nextID))
		}
		if len(probes) == 0 {
			return
		}
		quiet := 0
		for before := -1; quiet < 2; {
			n := 0
			l.seenOf(probes)
			for _, q := range probes {
				if q.seen {
					n++
				}
			}
			if quiet++; n != before {
				quiet = 0
			}
			before = n
			time.Sleep(time.Duration(round) * 5 * time.Millisecond)
		}
		for id, q := range probes {
			if q.seen || round == 0 {
				set(of[id], q.seen)
			}
		}
	}
}

func (l *lab) seenOf(probes map[uint32]*probe) {
	note := func(local bool) func(uint32, uint8, netip.Addr) {
		return func(id uint32, proto uint8, src netip.Addr) {
			if q := probes[id]; q != nil && q.local == local && q.src == src && q.proto == proto {
				q.seen = true
			}
		}
	}
	l.seen(note(false), note(true))
}

// tells is whether the exposure names what this knock begins.
func tells(e impact.Exposure, k *knock) bool {
	if e.Stage != "" || e.Routed != (k.packet.Hook == verdict.HookForward) {
		return false
	}
	in := func(name string) bool {
		if name == impact.Anybody {
			return true
		}
		p, err := netip.ParsePrefix(name)
		if err != nil {
			a, _ := netip.ParseAddr(name)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		return p.Contains(k.from)
	}
	return slices.ContainsFunc(e.From, in) && slices.ContainsFunc(e.Services, func(s string) bool { return named(s, &k.packet) })
}

// named is whether a service of an exposure is that of a packet.
func named(s string, p *verdict.Packet) bool {
	s, from, hasFrom := strings.Cut(s, " from ")
	name, ports, hasPorts := strings.Cut(s, "/")
	proto, _ := protocol.Number(name)
	if name == "others" {
		return !protocol.CarriesPorts(p.Protocol) && p.Protocol != unix.IPPROTO_ICMP && p.Protocol != icmpv6
	}
	inRange := func(list string, port uint16) bool {
		for part := range strings.SplitSeq(list, ",") {
			lo, hi, isRange := strings.Cut(part, "-")
			if !isRange {
				hi = lo
			}
			a, _ := strconv.Atoi(lo)
			b, _ := strconv.Atoi(hi)
			if int(port) >= a && int(port) <= b {
				return true
			}
		}
		return false
	}
	sport := p.SrcPort
	if sport == 0 {
		sport = 40000
	}
	return proto == p.Protocol && (!hasPorts || inRange(ports, p.DstPort)) && (!hasFrom || inRange(from, sport))
}

// apply makes the plan's rules stand.
func (l *lab) apply(f host.Family, p planner.Plan) {
	for _, s := range planner.Steps(p) {
		if s.Rules == nil {
			continue
		}
		for _, section := range s.Rules.Sections {
			script := must(iptables.Script([]change.Section{section}))(l.t)
			cmd := exec.Command(tool(f)+"-restore", "--noflush", "-w")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				l.t.Fatalf("%v\n%s\n%s", err, out, script)
			}
		}
	}
}

// TestExposedAgainstKernel opens conversations anew before and after plans, from
// several strangers, to the host and through it: what newly gets in is told, and
// what is told gets in. CTPLAN_RULESETS and CTPLAN_SEED as in TestAgainstKernel.
func TestExposedAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		total, seed := draws(240)
		r := rand.New(rand.NewPCG(seed, 26))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.defaultRoutes()
		var sent, newly, told, unsure, asked, plans int
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			for n := range total / 2 {
				f := host.Families[n%2]
				g := &stateful{r, f == host.IPv6}
				text, d := g.ruleset(), g.desired(f)
				l.load(f, text)
				plan := planner.Diff(d, l.live(l.parse(b, f, l.save(f))))
				if plan.Impact == nil {
					continue
				}
				plans++
				knocks := l.knocks(f)
				var exact []*knock
				for _, e := range plan.Impact.Exposed {
					told++
					if e.Declared {
						asked++
					}
					if e.Unknown || e.Some || e.Stage != "" {
						unsure++
						continue
					}
					for _, o := range e.Openings {
						if p := o.Packet; p.Protocol != 253 || p.Hook == verdict.HookForward {
							if p.SrcPort == 40000 {
								p.SrcPort = 0
							}
							if slices.ContainsFunc(exact, func(k *knock) bool {
								q := &k.packet
								return p.SrcPort != 0 && q.Src == p.Dst && q.Dst == p.Src && q.SrcPort == p.DstPort && q.DstPort == p.SrcPort
							}) {
								continue // both would be one connection to tracking
							}
							l.reach(p.Dst)
							exact = append(exact, &knock{from: p.Src, packet: p})
						}
					}
				}
				all := append(knocks, exact...)
				sent += len(all)
				l.arrive(all, func(k *knock, seen bool) { k.before = seen }, func(*knock) bool { return false })
				l.apply(f, plan)
				l.arrive(all, func(k *knock, seen bool) { k.after = seen }, func(k *knock) bool { return !k.after && slices.Contains(exact, k) })
				fail := func(what string, k *knock) {
					t.Errorf("%s family %s seed %d ruleset %d: %s: %s\n%+v\n%s\nthen\n%s\n%+v", b, f, seed, n, what, k, d.Accept, text, l.save(f), plan.Impact.Exposed)
				}
				for _, k := range knocks {
					if k.before || !k.after {
						continue
					}
					newly++
					if !slices.ContainsFunc(plan.Impact.Exposed, func(e impact.Exposure) bool { return tells(e, k) }) {
						fail("gets in untold", k)
						break
					}
				}
				for _, k := range exact {
					if k.before || !k.after {
						fail(fmt.Sprintf("told, and before %v, after %v", k.before, k.after), k)
						break
					}
				}
				if t.Failed() {
					return
				}
			}
			for _, f := range host.Families {
				l.load(f, wide)
			}
		}
		fmt.Printf("%d rulesets, %d plans, %d first packets twice: %d newly got in; %d exposures told, %d of them asked for, %d not for sure\n", total, plans, sent, newly, told, asked, unsure)
		if newly < total || told < total/2 {
			t.Errorf("the test says little")
		}
	})
}
