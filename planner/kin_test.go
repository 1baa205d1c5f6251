package planner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// kinRules look at ports in every way that iptables has for it.
var kinRules = []string{
	"-A INPUT -p tcp -m tcp --dport %d -m state --state NEW,ESTABLISHED -j ACCEPT",
	"-A INPUT -p tcp -m tcp --sport %[1]d:%[2]d -j ACCEPT",
	"-A INPUT -p udp -m multiport --dports %d,%d -j DROP",
	"-A OUTPUT -p tcp -m multiport --ports %d,%d -m state --state ESTABLISHED -j ACCEPT",
	"-A INPUT -p tcp -m conntrack --ctorigdstport %[1]d:%[2]d -j DROP",
	"-A OUTPUT -p tcp -m conntrack --ctreplsrcport %d -j DROP",
	"-A INPUT -p udp -m udp ! --sport %d -j ACCEPT",
	"-A FORWARD -s 10.0.1.0/24 -p tcp -m tcp --dport %d -j DROP",
}

// TestKin holds what is judged once for many connections against each judged by
// itself, and a list that comes bit by bit against one that is there.
func TestKin(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 12))
		ports := []uint16{21, 22, 23, 80, 443, 1023, 1024, 32767, 32768, 40000, 65534, 65535, 1}
		port := func() int { return int(ports[r.IntN(len(ports))]) }
		var b strings.Builder
		b.WriteString("*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT DROP\n")
		for range 2 + r.IntN(20) {
			low, high := port(), port()
			if low > high {
				low, high = high, low
			}
			line := kinRules[r.IntN(len(kinRules))]
			if n := strings.Count(line, "%"); n == 1 {
				line = fmt.Sprintf(line, low)
			} else {
				line = fmt.Sprintf(line, low, high)
			}
			b.WriteString(line + "\n")
		}
		b.WriteString("-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A OUTPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n")
		addrs := []string{"10.0.0.1", "10.0.1.1", "10.0.0.7", "10.0.1.7", "192.0.2.9"}
		var flows []host.Flow
		for range 150 {
			proto := uint8([]int{protocol.TCP, protocol.UDP}[r.IntN(2)])
			a := netip.AddrPortFrom(netip.MustParseAddr(addrs[r.IntN(len(addrs))]), uint16(port()+r.IntN(3)-1))
			z := netip.AddrPortFrom(netip.MustParseAddr(addrs[r.IntN(len(addrs))]), uint16(port()+r.IntN(3)-1))
			if a.Addr() == z.Addr() || a.Port() == 0 || z.Port() == 0 {
				continue
			}
			f := tracked(t, fmt.Sprintf("%d %s %s", proto, a, z))
			f.Liberal = r.IntN(4) == 0
			f.Mark = uint32(r.IntN(2))
			if r.IntN(4) == 0 {
				f.Status = host.StatusConfirmed
			}
			if r.IntN(10) == 0 {
				f.Reply.DstPort++ // translated
			}
			flows = append(flows, f)
		}
		d := untrackTCP(map[string][]string{"INPUT": {"-p tcp -m tcp --dport 22:80 -j ACCEPT"}, "OUTPUT": {"-p tcp -m tcp --sport 22:80 -j ACCEPT"}})
		got := impactPlan(t, d, b.String(), host.Connections{Flows: flows})
		want := map[string]int64{}
		for i := range flows {
			for _, g := range impactPlan(t, d, b.String(), host.Connections{Flows: flows[i : i+1]}).Impact.Groups {
				want[fmt.Sprint(g.Result, g.Service, g.Before, g.After, g.Stage)] += g.Count
			}
		}
		for _, g := range got.Impact.Groups {
			key := fmt.Sprint(g.Result, g.Service, g.Before, g.After, g.Stage)
			if want[key] -= g.Count; want[key] == 0 {
				delete(want, key)
			}
		}
		if len(want) > 0 {
			t.Fatalf("seed %d: judged one by one there are more, or fewer: %v\n%s", seed, want, b.String())
		}
		asked := 0
		came := impactPlan(t, d, b.String(), host.Connections{Coming: func(n int) ([]host.Flow, bool) {
			asked++
			there := min(n+1+asked%7, len(flows))
			return flows[:there], there == len(flows)
		}})
		if !reflect.DeepEqual(got.Impact, came.Impact) || asked < 10 {
			t.Fatalf("seed %d: while they come, asked %d times, the plan has\n%+v\nnot\n%+v", seed, asked, came.Impact, got.Impact)
		}
	}
}
