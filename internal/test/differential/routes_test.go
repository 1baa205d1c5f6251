package differential

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/routing"
	"github.com/ctplan/ctplan/providers/routes"
)

// TestRoutesAgainstKernel asks the kernel, as ip route get does, by which way
// packets of many marks go, over rules and tables that were made up.
func TestRoutesAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		r := rand.New(rand.NewPCG(3, 9))
		ns.Run("sh", "-ec", `for i in 1 2 3; do ip link add v$i type veth peer name w$i; ip link set v$i up; ip link set w$i up
			ip addr add 10.$i.0.1/24 dev v$i; ip -6 addr add fd0$i::1/64 dev v$i nodad; done; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`)
		one := func(list ...string) string { return list[r.IntN(len(list))] }
		asked, sure := 0, 0
		for range 60 {
			six := r.IntN(2) == 0
			ip, f := "ip", host.IPv4
			nets, gw := []string{"192.0.2.0/24", "198.51.100.0/24", "192.0.2.128/25"}, "10.%d.0.2"
			if six {
				ip, f = "ip -6", host.IPv6
				nets, gw = []string{"2001:db8:1::/48", "2001:db8:2::/48", "2001:db8:1:1::/64"}, "fd0%d::2"
			}
			var script, rules strings.Builder
			for range 1 + r.IntN(4) {
				mark := one("", "", "fwmark 1 ", "fwmark 0x2/0x2 ", "fwmark 0x10/0xf0 ", "not fwmark 1 ", "not fwmark 0x2/0xf ")
				action := one("lookup 100", "lookup 200", "lookup main suppress_prefixlength 0", "lookup 100 suppress_prefixlength 24", "blackhole", "unreachable", "prohibit")
				if not, ok := strings.CutPrefix(mark, "not "); ok {
					mark = "not " + not
				}
				fmt.Fprintf(&rules, "%s rule add %s%s%s pref %d\n", ip, mark, one("", "to "+one(nets...)+" "), action, 100+r.IntN(100))
			}
			for _, table := range []string{"main", "100", "200"} {
				for _, dst := range append(nets, "default") {
					switch r.IntN(4) {
					case 0, 1:
						n := 1 + r.IntN(3)
						fmt.Fprintf(&script, "%s route add %s via %s dev v%d table %s metric %d\n", ip, dst, fmt.Sprintf(gw, n), n, table, 1+r.IntN(5))
					case 2:
						fmt.Fprintf(&script, "%s route add %s %s table %s\n", ip, one("blackhole", "unreachable", "throw"), dst, table)
					}
				}
			}
			script.WriteString(rules.String()) // a gateway is looked up by the rules that stand
			ns.Run("sh", "-c", script.String()+"true")
			read := routes.Read("")
			if read.Partial != "" {
				t.Fatal(read.Partial)
			}
			m := routing.New(read, f)
			for range 40 {
				p := netip.MustParsePrefix(one(nets...)).Addr().As16()
				dst := netip.AddrFrom16(p).Unmap().Next()
				mark := []uint32{0, 1, 2, 3, 0x10, 0x12, 0x20}[r.IntN(7)]
				src := netip.MustParseAddr(map[bool]string{false: "10.1.0.1", true: "fd01::1"}[six])
				got := m.Of(routing.Packet{Src: src, Dst: dst, Protocol: 17, In: "lo", Mark: mark})
				list, err := netlink.RouteGetWithOptions(net.IP(dst.AsSlice()), &netlink.RouteGetOptions{Mark: mark, SrcAddr: src.AsSlice()})
				asked++
				if got.Unsure {
					continue
				}
				sure++
				name := ""
				if err == nil && len(list) > 0 {
					l, failed := netlink.LinkByIndex(list[0].LinkIndex)
					if failed != nil {
						t.Fatal(failed)
					}
					name = l.Attrs().Name
				}
				dead := err != nil || name == "lo"
				if got.Dead() != dead || !dead && (got.Interface != name || got.Gateway.IsValid() && !net.IP(got.Gateway.AsSlice()).Equal(list[0].Gw)) {
					t.Fatalf("%s with mark %#x: %s, and the kernel says %v (%v)\n%s\n%s", dst, mark, got, list, err, script.String(), ns.Run("sh", "-c", ip+" rule; "+ip+" route show table 100; "+ip+" route show table 200; "+ip+" route"))
				}
			}
			ns.Run("sh", "-c", ip+" rule flush; "+ip+" rule add lookup main pref 32766; "+ip+" rule add lookup default pref 32767; "+ip+" rule add lookup local pref 0; for t in main 100 200; do for n in "+strings.Join(nets, " ")+" default; do while "+ip+" route del $n table $t 2>/dev/null; do :; done; done; done")
		}
		if sure*10 < asked*8 {
			t.Errorf("of %d ways %d are sure", asked, sure)
		}
		t.Logf("%d ways, %d sure", asked, sure)
	})
}
