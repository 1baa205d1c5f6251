package iptables_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func ports(list ...uint16) []host.PortRange {
	var out []host.PortRange
	for _, p := range list {
		out = append(out, host.PortRange{From: p, To: p})
	}
	return out
}

// sections loads rendered chains, as a plan would.
func sections(chains []declared.Chain, f host.Family) []change.Section {
	var out []change.Section
	for _, c := range chains {
		if c.Family != f {
			continue
		}
		op := change.RuleOp{Kind: change.SetChain, Chain: c.Name}
		for _, r := range c.Rules {
			op.Rules = append(op.Rules, r.Text)
		}
		out = append(out, change.Section{Table: c.Table, Ops: []change.RuleOp{op}})
	}
	return out
}

func TestRenderGolden(t *testing.T) {
	both, v4 := host.Families, []host.Family{host.IPv4}
	d := declared.Desired{
		Mode: declared.Notrack,
		Notrack: []declared.Traffic{
			{Name: "tcp", Protocol: "tcp", Direction: declared.Both, Families: both},
			{Name: "routed", Protocol: "udp", Local: prefixes("10.0.0.0/8"), RemotePorts: ports(53), Interface: "eth0", Direction: declared.Forward, Families: v4},
			{Name: "in", Direction: declared.In, Families: v4},
		},
		Accept: []declared.Traffic{
			{Name: "amazon-api", Protocol: "tcp", Remote: prefixes("54.239.25.200/32"), RemotePorts: ports(443), Direction: declared.Both, Initiator: declared.LocalSide, Families: both},
			{Name: "ssh", Protocol: "tcp", LocalPorts: ports(22), Direction: declared.Both, Initiator: declared.RemoteSide, Families: both},
			{Name: "egress", Protocol: "tcp", Direction: declared.Out, Families: both},
			{Name: "mixed", Protocol: "udp", Remote: prefixes("10.1.2.3/8", "2001:db8::/32", "::1/128", "0.0.0.0/0"), Local: prefixes("192.0.2.1/32", "2001:db8::1/128"), Direction: declared.In, Families: both},
			{Name: "ping", Protocol: "icmp", Direction: declared.Both, Families: both},
			{Name: "nd.6", Protocol: "icmpv6", Direction: declared.In, Families: both},
			{Name: "many", Protocol: "tcp", LocalPorts: append(ports(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), host.PortRange{From: 100, To: 200}), RemotePorts: []host.PortRange{{From: 1024, To: 65535}}, Direction: declared.In, Families: v4},
			{Name: "all-ports", Protocol: "tcp", LocalPorts: []host.PortRange{{From: 0, To: 65535}}, Direction: declared.In, Families: v4},
			{Name: "routed", Protocol: "udplite", Local: prefixes("10.0.0.0/8"), RemotePorts: ports(53), Interface: "eth+", Direction: declared.Forward, Families: v4},
			{Name: "gre", Protocol: "47", Interface: "+", Direction: declared.In, Families: v4},
			{Name: "experimental", Protocol: "253", Direction: declared.In, Families: v4},
		},
	}
	chains := iptables.Render(d, host.Live{})
	var b strings.Builder
	for _, f := range host.Families {
		script, err := iptables.Script(sections(chains, f))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "# %s\n%s", f, script)
	}
	golden.Check(t, "render.golden", []byte(b.String()))
	for _, c := range chains {
		if c.Name != declared.OwnPrefix+c.Hook || len(c.Rules) == 0 {
			t.Errorf("chain %+v", c)
		}
	}
}

// randomDesired makes declarations of every kind that schema lets through.
func randomDesired(r *rand.Rand) declared.Desired {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	somePorts := func() []host.PortRange {
		var out []host.PortRange
		for range []int{0, 0, 1, 1, 2, 5, 15, 20}[r.IntN(8)] {
			p := host.PortRange{From: uint16(r.IntN(65536))}
			p.To = p.From
			if r.IntN(4) == 0 {
				p.To += uint16(r.IntN(65536 - int(p.From)))
			}
			if r.IntN(10) == 0 {
				p.From = 0
			}
			if r.IntN(10) == 0 {
				p.To = 65535
			}
			out = append(out, p)
		}
		return out
	}
	someAddresses := func() []netip.Prefix {
		var out []netip.Prefix
		for range []int{0, 0, 1, 2, 3}[r.IntN(5)] {
			if r.IntN(2) == 0 {
				a := netip.AddrFrom4([4]byte{byte(1 + r.IntN(220)), byte(r.IntN(256)), 0, byte(r.IntN(256))})
				out = append(out, netip.PrefixFrom(a, []int{0, 8, 13, 24, 31, 32, 32, 32}[r.IntN(8)]))
			} else {
				a := netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, byte(r.IntN(3)), 5: byte(r.IntN(256)), 10: byte(r.IntN(256)), 15: byte(r.IntN(256))})
				out = append(out, netip.PrefixFrom(a, []int{0, 29, 32, 64, 127, 128, 128}[r.IntN(7)]))
			}
		}
		return out
	}
	traffic := func(accept bool, i int) declared.Traffic {
		t := declared.Traffic{
			Name:      pick("a", "amazon-api", "a.b_c", "-x", "--", ".", strings.Repeat("n", 64)) + fmt.Sprint(i),
			Protocol:  pick("", "tcp", "tcp", "tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmpv6", "ipv6-icmp", "47", "gre", "esp", "6", "17", "1", "58", "253", "200", "all"),
			Local:     someAddresses(),
			Remote:    someAddresses(),
			Interface: pick("", "", "eth0", "eth+", "+", "br-0.1"),
			Direction: []declared.Direction{declared.Both, declared.In, declared.Out, declared.Forward}[r.IntN(4)],
			Families:  [][]host.Family{host.Families, {host.IPv4}, {host.IPv6}}[r.IntN(3)],
		}
		if slices.Contains([]string{"tcp", "udp", "sctp", "dccp", "udplite", "6", "17"}, t.Protocol) {
			t.LocalPorts, t.RemotePorts = somePorts(), somePorts()
		}
		if accept && (t.Protocol == "tcp" || t.Protocol == "6") {
			t.Initiator = []declared.Initiator{declared.EitherSide, declared.LocalSide, declared.RemoteSide}[r.IntN(3)]
		}
		return t
	}
	d := declared.Desired{Mode: declared.Notrack}
	for i := range 1 + r.IntN(8) {
		d.Notrack = append(d.Notrack, traffic(false, i))
	}
	for i := range 1 + r.IntN(12) {
		d.Accept = append(d.Accept, traffic(true, i))
	}
	return d
}

// TestRenderSurvivesTheKernel loads random declarations and reads them back:
// what iptables-save prints must be what Render wrote, letter for letter.
func TestRenderSurvivesTheKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			for range 25 {
				roundTrip(t, b, iptables.Render(randomDesired(r), host.Live{}))
			}
		}
	})
}

func roundTrip(t *testing.T, b host.Backend, chains []declared.Chain) {
	t.Helper()
	var tools iptables.Tools
	want := map[string][]string{}
	for _, c := range chains {
		for _, r := range c.Rules {
			key := fmt.Sprint(c.Family, " ", c.Table, " ", c.Name)
			want[key] = append(want[key], r.Text)
		}
	}
	for _, f := range host.Families {
		secs := sections(chains, f)
		if err := tools.Test(t.Context(), f, b, secs); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if err := tools.Commit(t.Context(), f, b, secs); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	}
	got := map[string][]string{}
	for _, rs := range read(t, tools) {
		if rs.Backend != b {
			continue
		}
		for _, table := range rs.Tables {
			for _, r := range table.Rules {
				key := fmt.Sprint(rs.Family, " ", table.Name, " ", r.Chain)
				got[key] = append(got[key], r.Text)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s: rendered (-) and read back (+) differ:\n%s", b, diff)
	}
	for _, f := range host.Families {
		var drop []change.Section
		for _, c := range chains {
			if c.Family == f {
				drop = append(drop, change.Section{Table: c.Table, Ops: []change.RuleOp{{Kind: change.DropChain, Chain: c.Name}}})
			}
		}
		if err := tools.Commit(t.Context(), f, b, drop); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	}
}

// read reads and parses everything.
func read(t *testing.T, tools iptables.Tools) []host.Ruleset {
	t.Helper()
	raws, notes, err := tools.Read(t.Context())
	if err != nil || len(notes) > 0 {
		t.Fatal(err, notes)
	}
	var out []host.Ruleset
	for _, raw := range raws {
		rs, err := iptables.Parse(raw.Family, raw.Text)
		if err != nil {
			t.Fatal(err)
		}
		rs.Backend, rs.Primary = raw.Backend, raw.Primary
		out = append(out, rs)
	}
	return out
}
