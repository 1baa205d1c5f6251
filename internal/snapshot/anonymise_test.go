package snapshot

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

func TestAnonymise(t *testing.T) {
	addr := netip.MustParseAddr
	tuple := func(a, b string) host.Tuple {
		return host.Tuple{Src: addr(a), Dst: addr(b), SrcPort: 4000, DstPort: 443}
	}
	flow := func(a, b string) host.Flow {
		f := host.Flow{Protocol: 6, Orig: tuple(a, b)}
		f.Reply = host.Tuple{Src: f.Orig.Dst, Dst: f.Orig.Src, SrcPort: 443, DstPort: 4000}
		return f
	}
	s := &Snapshot{
		Rules: []Rules{{Family: host.IPv4, Text: "*filter\n-A INPUT -s 203.0.113.0/24 -j ACCEPT\n-A INPUT -s 203.0.113.128/25 -j DROP\n-A INPUT -d 192.0.2.200/32 -j DROP\n-A INPUT -m iprange --src-range 192.0.2.10-192.0.2.20 -j DROP\nCOMMIT\n"}},
		NFT: []host.NFTTable{{Family: "inet", Name: "fw",
			Chains: []host.NFTChain{{Name: "in", Rules: []host.NFTRule{{Text: "ip saddr 198.51.100.0/25 accept"}}}},
			Sets:   []host.NFTSet{{Name: "s", KeyLen: 4, Elements: "c6336440-c633645f"}, {Name: "c", KeyLen: 8, Elements: "01bb0000c6336401"}}}},
		Connections: &host.Connections{
			Flows:     []host.Flow{flow("10.0.0.1", "203.0.113.7"), flow("10.0.0.1", "203.0.113.200"), flow("9.9.9.9", "10.0.0.1"), flow("8.8.8.8", "10.0.0.1"), flow("9.9.9.9", "192.0.2.200"), flow("192.0.2.15", "10.0.0.1"), flow("2a00::1", "2a00::2"), flow("10.0.0.1", "198.51.100.70"), flow("10.0.0.1", "198.51.100.2"), flow("10.0.0.1", "198.51.100.1")},
			Addresses: []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}},
			Operator:  []host.Session{{Local: netip.MustParseAddrPort("10.0.0.1:22"), Remote: netip.MustParseAddrPort("9.9.9.9:5")}},
		},
	}
	s.Anonymise([]netip.Prefix{netip.MustParsePrefix("8.8.8.8/32")})
	f := s.Connections.Flows
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []string{"9.9.9.9", `"203.0.113.7"`, `"203.0.113.200"`, "2a00::", "198.51.100.70", `"198.51.100.2"`} {
		if strings.Contains(buf.String(), hidden) {
			t.Errorf("%s still shows", hidden)
		}
	}
	in := func(a netip.Addr, p string, not string) bool {
		return netip.MustParsePrefix(p).Contains(a) && (not == "" || !netip.MustParsePrefix(not).Contains(a))
	}
	switch {
	case !in(f[0].Orig.Dst, "203.0.113.0/24", "203.0.113.128/25"), !in(f[1].Orig.Dst, "203.0.113.128/25", ""):
		t.Errorf("networks that rules tell apart are mixed: %v, %v", f[0].Orig, f[1].Orig)
	case f[0].Orig.Src != addr("10.0.0.1"), f[4].Orig.Dst != addr("192.0.2.200"), f[3].Orig.Src != addr("8.8.8.8"):
		t.Error("an address that is the host's own, or named, changed")
	case f[2].Orig.Src != f[4].Orig.Src, f[2].Orig.Src != s.Connections.Operator[0].Remote.Addr(), f[2].Orig.Src != f[2].Reply.Dst:
		t.Error("one address has two stand-ins")
	case !in(f[5].Orig.Src, "192.0.2.8/29", "") && !in(f[5].Orig.Src, "192.0.2.16/30", "") && f[5].Orig.Src != addr("192.0.2.20"):
		t.Errorf("a range is left: %v", f[5].Orig)
	case !in(f[7].Orig.Dst, "198.51.100.64/27", ""), !in(f[8].Orig.Dst, "198.51.100.0/25", "198.51.100.64/27"), f[9].Orig.Dst != addr("198.51.100.1"):
		t.Errorf("what native nftables tells apart is mixed: %v, %v, %v", f[7].Orig, f[8].Orig, f[9].Orig)
	case f[6].Orig.Src == f[6].Orig.Dst:
		t.Error("two addresses have one stand-in")
	}
}
