package routes

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

// TestRead reads what ip made.
func TestRead(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		if r := Read(""); r.Partial != "" || len(r.Rules) != 5 || len(r.Routes) != 0 || len(r.Filters) != 0 {
			t.Errorf("of a bare namespace: %+v", r)
		}
		ns.Run("sh", "-ec", `
			ip link add v1 type veth peer name v2; ip link set v1 up; ip link set v2 up; ip addr add 10.1.0.1/24 dev v1; ip -6 addr add fd01::1/64 dev v1 nodad
			ip rule add fwmark 2 lookup 200 pref 100
			ip rule add not fwmark 0x10/0xf0 from 10.0.0.0/8 to 192.0.2.0/24 iif v1 lookup main suppress_prefixlength 0 pref 110
			ip rule add ipproto tcp dport 25-26 blackhole pref 120
			ip rule add uidrange 5-6 goto 32766 pref 130
			ip -6 rule add from fd01::/64 fwmark 0x3 unreachable pref 140
			ip route add default via 10.1.0.2 dev v1 table 200 metric 7
			ip route add blackhole 192.0.2.0/24 table 200
			ip -6 route add default via fd01::2 dev v1 table 200
			sysctl -qw net.ipv4.conf.v1.rp_filter=1 net.ipv4.conf.v1.src_valid_mark=1 net.ipv4.conf.v2.rp_filter=2 net.ipv4.conf.all.rp_filter=0`)
		r := Read("")
		if r.Partial != "" {
			t.Fatal(r.Partial)
		}
		var rules []host.RoutingRule
		for _, x := range r.Rules {
			if x.Custom() {
				rules = append(rules, x)
			}
		}
		p := netipPrefix
		want := []host.RoutingRule{
			{Family: host.IPv4, Priority: 100, Mark: 2, Mask: ^uint32(0), Action: "lookup", Table: 200},
			{Family: host.IPv4, Priority: 110, Not: true, From: p("10.0.0.0/8"), To: p("192.0.2.0/24"), In: "v1", Mark: 0x10, Mask: 0xf0, Action: "lookup", Table: host.TableMain, Suppress: 1},
			{Family: host.IPv4, Priority: 120, Protocol: 6, DPorts: host.PortRange{From: 25, To: 26}, Action: "blackhole"},
			{Family: host.IPv4, Priority: 130, Vague: true, Action: "goto", Table: 32766},
			{Family: host.IPv6, Priority: 140, From: p("fd01::/64"), Mark: 3, Mask: ^uint32(0), Action: "unreachable"},
		}
		if diff := cmp.Diff(want, rules, cmp.Comparer(func(a, b host.RoutingRule) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		var routes []host.RoutingRoute
		for _, x := range r.Routes {
			if x.Table == 200 {
				routes = append(routes, x)
			}
		}
		wantRoutes := []host.RoutingRoute{
			{Table: 200, Prefix: p("0.0.0.0/0"), Type: "unicast", Interface: "v1", Gateway: p("10.1.0.2/32").Addr(), Metric: 7},
			{Table: 200, Prefix: p("192.0.2.0/24"), Type: "blackhole"},
			{Table: 200, Prefix: p("::/0"), Type: "unicast", Interface: "v1", Gateway: p("fd01::2/128").Addr(), Metric: 1024},
		}
		if diff := cmp.Diff(wantRoutes, routes, cmp.Comparer(func(a, b host.RoutingRoute) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]host.RoutingLink{{Name: "v1", Filter: 1, Mark: true}}, r.Links); diff != "" {
			t.Error(diff)
		}
	})
}
