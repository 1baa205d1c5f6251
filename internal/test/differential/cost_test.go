package differential

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// TestCostOfJoining measures what a packet costs that is routed, by what keeps
// parts of datagrams alive: the time of the processor for sending it, which
// takes it through all hooks, to where it arrives. It runs where CTPLAN_COST is
// set: docs/tracking.md has what it prints.
func TestCostOfJoining(t *testing.T) {
	if os.Getenv("CTPLAN_COST") == "" {
		t.Skip("CTPLAN_COST is not set")
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		runtime.LockOSThread()
		ns.Use(host.NFT)
		w := newWire(t)
		fmt.Printf("%-6s %-38s %14s %18s\n", "", "", "ns, whole", "ns, in parts")
		for _, f := range host.Families {
			l := &lab{wire: w, t: t}
			let := "-m ipv6header --header frag --soft -j ACCEPT"
			if f == host.IPv4 {
				let = "-f -j ACCEPT"
			}
			const ports = "-A FORWARD -p udp --dport 1003 -j ACCEPT\nCOMMIT\n"
			const head = "*filter\n:FORWARD DROP\n"
			cases := []struct{ name, rules string }{
				{"nothing (parts are lost)", head + ports},
				{"-m socket, in a chain without a jump", head + ":JOIN -\n-A JOIN -m socket -j RETURN\n" + ports},
				{let, head + "-A FORWARD " + let + "\n" + ports},
				{"tracking", head + "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n" + ports},
			}
			took := make([][2][]time.Duration, len(cases))
			for range 10 { // in turns, since what else the machine does comes and goes
				for i, c := range cases {
					l.load(f, c.rules)
					took[i][0] = append(took[i][0], l.costOf(f, 1003, false)...)
					took[i][1] = append(took[i][1], l.costOf(f, 1003, true)...)
				}
			}
			for i, c := range cases {
				fmt.Printf("%-6s %-38.38s %14d %18d\n", f, c.name, quartile(took[i][0]).Nanoseconds(), quartile(took[i][1]).Nanoseconds())
			}
		}
	})
}

// TestCostOfOwnTraffic measures what a packet costs that is routed, by what
// keeps a NOTRACK rule of a host's own service from taking it out of tracking. It
// runs where CTPLAN_COST is set: docs/tracking.md has what it prints.
func TestCostOfOwnTraffic(t *testing.T) {
	if os.Getenv("CTPLAN_COST") == "" {
		t.Skip("CTPLAN_COST is not set")
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		runtime.LockOSThread()
		w := newWire(t)
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			for _, f := range host.Families {
				l := &lab{wire: w, t: t}
				const rule = "-A PREROUTING -p udp -m udp --dport 1003"
				type way struct{ name, rules string }
				cases := []way{
					{"no rule", "*raw\nCOMMIT\n"},
					{"ports alone", "*raw\n" + rule + " -j CT --notrack\nCOMMIT\n"},
					{"addrtype", "*raw\n" + rule + " -m addrtype --dst-type LOCAL -j CT --notrack\nCOMMIT\n"},
					{"addrtype first", "*raw\n-A PREROUTING -m addrtype --dst-type LOCAL -p udp -m udp --dport 1003 -j CT --notrack\nCOMMIT\n"},
				}
				for _, n := range []int{1, 10, 100} {
					text := "*raw\n"
					for i := range n {
						text += "-A PREROUTING -d " + near(f, 1000+i).String() + " -p udp -m udp --dport 1003 -j CT --notrack\n"
					}
					cases = append(cases, way{fmt.Sprintf("%d addresses, a rule each", n), text + "COMMIT\n"})
				}
				if b == host.NFT {
					family := map[host.Family]string{host.IPv4: "ip", host.IPv6: "ip6"}[f]
					cases = append(cases, way{"fib, in a table of nft", "table " + family + " own {\n chain pre { type filter hook prerouting priority raw\n udp dport 1003 fib daddr type local notrack\n }\n}\n"})
				}
				took := make([][2][]time.Duration, len(cases))
				for range 10 {
					for i, c := range cases {
						native := strings.HasPrefix(c.rules, "table")
						if native {
							l.load(f, "*raw\nCOMMIT\n")
							l.loadNative(c.rules)
						} else {
							l.load(f, c.rules)
						}
						took[i][0] = append(took[i][0], l.costOf(f, 1003, false)...)
						took[i][1] = append(took[i][1], l.costOf(f, 1004, false)...)
						if native {
							l.loadNative("delete " + strings.Join(strings.Fields(c.rules)[:3], " ") + "\n")
						}
					}
				}
				for i, c := range cases {
					fmt.Printf("%-6s %-6s %-30.30s %8d %8d\n", b, f, c.name, quartile(took[i][0]).Nanoseconds(), quartile(took[i][1]).Nanoseconds())
				}
				l.load(f, "*raw\nCOMMIT\n")
			}
		}
	})
}

func quartile(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/4]
}

// costOf is what packets to a port take, alone or as one of the three parts of a datagram.
func (l *lab) costOf(f host.Family, port uint16, apart bool) (took []time.Duration) {
	const rounds, each = 20, 60
	p := verdict.Packet{Protocol: unix.IPPROTO_UDP, Hook: verdict.HookForward, Tuple: host.Tuple{Src: near(f, 0), Dst: far(f, 0), SrcPort: 40000, DstPort: port}}
	l.sides(&p, true)
	data := make([]byte, 1400)
	if apart {
		data = make([]byte, 3*partBytes-8)
	}
	ip := l.made(&p, data)
	for range rounds {
		var sent int
		begun := threadTime(l.t)
		for range each {
			if !apart {
				l.inject(true, f == host.IPv6, ip)
				sent++
				continue
			}
			l.nextID++
			for _, part := range cut(ip, l.nextID) {
				l.inject(true, f == host.IPv6, part)
				sent++
			}
		}
		took = append(took, (threadTime(l.t)-begun)/time.Duration(sent))
		l.seen(func(uint32, uint8, netip.Addr) {}, func(uint32, uint8, netip.Addr) {})
	}
	return took
}

func threadTime(t testing.TB) time.Duration {
	var at unix.Timespec
	check(t, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at))
	return time.Duration(at.Nano())
}
