package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// evaluator compiles tables. plain makes no conditions of anything, so that
// programs say all.
func evaluator(f host.Family, plain bool, tables ...host.NFTTable) *verdict.Evaluator {
	c := verdict.NewCompiler(f, verdict.Facts{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}, Interfaces: links}, false)
	names := map[uint32]string{}
	for name, index := range links {
		names[index] = name
	}
	var out []*verdict.Table
	for i := range tables {
		if !plain {
			out = append(out, Tables(c, f, tables[i:i+1], links, "")...)
			continue
		}
		l := &language{family: f, table: &tables[i], names: names, plain: true}
		out = append(out, c.Table(verdict.TableID{Native: tables[i].Family, Table: tables[i].Name}, l, l.sources()))
	}
	return c.Evaluator(out)
}

var links = map[string]uint32{"lo": 1, "eth0": 2, "eth1": 3}

// program reads expressions as a snapshot has them.
func program(t testing.TB, text string) host.NFTProgram {
	t.Helper()
	var p host.NFTProgram
	if err := p.UnmarshalText([]byte(text)); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return p
}

// input is a table with one rule, which accepts, and a policy that drops.
func input(t testing.TB, text string, sets ...host.NFTSet) host.NFTTable {
	t.Helper()
	if !strings.Contains(text, "verdict=") && !strings.Contains(text, "set=map") {
		text += "; immediate verdict=accept"
	}
	return host.NFTTable{Family: "inet", Name: "t", Whole: true, Sets: sets, Chains: []host.NFTChain{
		{Name: "in", Type: "filter", Hook: "input", Policy: "drop", Rules: []host.NFTRule{{Handle: 3, Text: "a rule", Exprs: program(t, text)}}},
		{Name: "sub", Rules: []host.NFTRule{{Handle: 4, Text: "accept", Exprs: program(t, "immediate verdict=accept")}}},
	}}
}

// packet is one to this host, of which everything is known.
func packet() verdict.Packet {
	t := host.Tuple{Src: netip.MustParseAddr("10.0.0.9"), Dst: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, DstPort: 80}
	return verdict.Packet{
		Hook: verdict.HookInput, Protocol: 6, State: verdict.StateNew, TCPFlags: verdict.TCPSyn, Tuple: t, Orig: t, Reply: host.Tuple{Src: t.Dst, Dst: t.Src, SrcPort: 80, DstPort: 40000},
		Known: verdict.KnownMark | verdict.KnownConnMark | verdict.KnownStatus | verdict.KnownTuples | verdict.KnownLength | verdict.KnownMAC | verdict.KnownPktType | verdict.KnownUnbridged | verdict.KnownReply | verdict.KnownWayBack,
		In:    "eth0", Mark: 0x12, ConnMark: 0x34, Length: 60, MAC: [6]byte{2, 0, 0, 0, 0, 1}, Status: host.StatusConfirmed,
	}
}

// Sets that rules in tests name.
var (
	portSet   = host.NFTSet{Name: "ports", KeyLen: 2, Elements: "0016 0050-0063 01bb"}
	filledSet = host.NFTSet{Name: "filled", KeyLen: 4, Flags: host.NFTSetEval, Elements: "", Unread: true}
	rateSet   = host.NFTSet{Name: "rates", KeyLen: 4, Exprs: []string{"limit"}, Elements: "0a000009"}
	pairSet   = host.NFTSet{Name: "pairs", KeyLen: 8, Flags: host.NFTSetInterval | host.NFTSetConcat, Fields: []uint32{4, 2}, Elements: "0a00000000500000-0a0000ff00510000 0b00000000500000"}
	stateMap  = host.NFTSet{Name: "map", KeyLen: 4, Flags: host.NFTSetMap, DataType: host.NFTVerdicts, Elements: "02000000:=accept 08000000:=jump=sub 01000000:=drop"}
	portMap   = host.NFTSet{Name: "map", KeyLen: 2, Flags: host.NFTSetMap, DataType: host.NFTVerdicts, Elements: "0050:=accept 0051:=drop *:=continue"}
	markMap   = host.NFTSet{Name: "marks", KeyLen: 2, Flags: host.NFTSetMap, DataLen: 4, Elements: "0050:05000000"}
)

func TestExpressions(t *testing.T) {
	const dport, saddr = "payload dst=1 base=2 offset=2 len=2", "payload dst=1 base=1 offset=12 len=4"
	change := func(f func(p *verdict.Packet)) func(*verdict.Packet) { return f }
	less := func(k verdict.Known) func(*verdict.Packet) { return func(p *verdict.Packet) { p.Known &^= k } }
	for _, tt := range []struct {
		text string
		with func(*verdict.Packet) // what is else of the packet
		want verdict.Verdict
		sets []host.NFTSet
	}{
		{text: "counter", want: verdict.Accepted},
		{text: "log; counter; immediate verdict=continue", want: verdict.Dropped},
		{text: dport + "; cmp src=1 data=0050", want: verdict.Accepted},
		{text: dport + "; cmp src=1 data=0051", want: verdict.Dropped},
		{text: dport + "; cmp src=1 op=1 data=0051", want: verdict.Accepted},
		{text: dport + "; cmp src=1 op=2 data=0050", want: verdict.Dropped},
		{text: dport + "; cmp src=1 op=3 data=0050", want: verdict.Accepted},
		{text: dport + "; cmp src=1 op=4 data=004f", want: verdict.Accepted},
		{text: dport + "; cmp src=1 op=5 data=0051", want: verdict.Dropped},
		{text: dport + "; range src=1 data=0040 to=0060", want: verdict.Accepted},
		{text: dport + "; range src=1 op=1 data=0040 to=0060", want: verdict.Dropped},
		{text: dport + "; cmp src=1 op=5 data=0040; cmp src=1 op=3 data=0060", want: verdict.Accepted},
		{text: "meta dst=1 key=16; cmp src=1 data=06; " + dport + "; cmp src=1 op=2 data=0050", want: verdict.Dropped},
		{text: dport + "; lookup src=1 set=ports", want: verdict.Accepted, sets: []host.NFTSet{portSet}},
		{text: dport + "; lookup src=1 set=ports flags=1", want: verdict.Dropped, sets: []host.NFTSet{portSet}},
		{text: "meta dst=1 key=16; cmp src=1 data=06; " + dport + "; lookup src=1 set=ports", want: verdict.Accepted, sets: []host.NFTSet{portSet}},
		{text: dport + "; lookup src=1 set=none", want: verdict.Unknown},
		{text: saddr + "; cmp src=1 data=0a000009", want: verdict.Accepted},
		{text: saddr + "; bitwise src=1 dst=1 len=4 mask=ffffff00 xor=00000000; cmp src=1 data=0a000000", want: verdict.Accepted},
		{text: saddr + "; bitwise src=1 dst=1 len=4 mask=ffffff00 xor=00000000; cmp src=1 op=1 data=0a000000", want: verdict.Dropped},
		{text: "payload dst=1 base=1 offset=12 len=3; cmp src=1 data=0a0000", want: verdict.Accepted},
		{text: saddr + "; range src=1 data=0a000001 to=0a000008", want: verdict.Dropped},
		{text: saddr + "; lookup src=1 set=filled", want: verdict.Unknown, sets: []host.NFTSet{filledSet}},
		{text: saddr + "; lookup src=1 set=rates", want: verdict.Unknown, sets: []host.NFTSet{rateSet}},
		{text: saddr + "; payload dst=9 base=2 offset=2 len=2; lookup src=1 set=pairs", want: verdict.Accepted, sets: []host.NFTSet{pairSet}},
		{text: saddr + "; payload dst=9 base=2 offset=0 len=2; lookup src=1 set=pairs", want: verdict.Dropped, sets: []host.NFTSet{pairSet}},
		{text: "payload dst=1 base=1 offset=6 len=2; bitwise src=1 dst=1 len=2 mask=1fff xor=0000; cmp src=1 op=1 data=0000", want: verdict.Dropped},
		{text: "payload dst=1 base=1 offset=8 len=1; cmp src=1 data=40", want: verdict.Unknown}, // the time to live
		{text: "payload dst=1 offset=6 len=6; cmp src=1 data=020000000001", want: verdict.Accepted},
		{text: "payload dst=1 offset=6 len=6; cmp src=1 data=020000000001", want: verdict.Unknown, with: less(verdict.KnownMAC)},
		{text: "meta dst=1 key=16; cmp src=1 data=11", want: verdict.Dropped},
		{text: "meta dst=1 key=15; cmp src=1 data=0a", want: verdict.Dropped},
		{text: "meta dst=1 key=15; cmp src=1 op=1 data=0a", want: verdict.Accepted},
		{text: "meta dst=1 key=1; cmp src=1 data=0800", want: verdict.Accepted},
		{text: "meta dst=1; cmp src=1 data=3c000000", want: verdict.Accepted},
		{text: "meta dst=1; byteorder src=1 dst=1 op=1 len=4 size=4; cmp src=1 op=4 data=0000003b", want: verdict.Accepted},
		{text: "meta dst=1 key=3; cmp src=1 data=12000000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; bitwise src=1 dst=1 len=4 mask=0f000000 xor=00000000; cmp src=1 data=02000000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; bitwise src=1 dst=1 len=4 op=2 data=04000000; cmp src=1 data=01000000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; bitwise src=1 dst=1 len=4 op=1 data=04000000; cmp src=1 data=20010000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; immediate dst=9 data=03000000; bitwise src=1 src2=9 dst=1 len=4 op=4; cmp src=1 data=13000000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; cmp src=1 data=12000000", want: verdict.Unknown, with: less(verdict.KnownMark)},
		{text: "immediate dst=1 data=07000000; meta key=3 src=1 sets; meta dst=1 key=3; cmp src=1 data=07000000", want: verdict.Accepted},
		{text: "meta dst=1 key=3; cmp src=1 data=12000000; immediate dst=1 data=07000000; meta key=3 src=1 sets", want: verdict.Accepted},
		{text: "ct dst=1 key=3; meta key=3 src=1 sets; meta dst=1 key=3; cmp src=1 data=34000000", want: verdict.Accepted},
		{text: dport + "; lookup src=1 dst=1 set=marks; cmp src=1 data=05000000", want: verdict.Accepted, sets: []host.NFTSet{markMap}},
		{text: "meta dst=1 key=4; cmp src=1 data=02000000", want: verdict.Accepted},
		{text: "meta dst=1 key=4; cmp src=1 data=01000000", want: verdict.Dropped, with: func(p *verdict.Packet) { p.In = verdict.SomeInterface }},
		{text: "meta dst=1 key=4; cmp src=1 data=02000000", want: verdict.Unknown, with: func(p *verdict.Packet) { p.In = verdict.SomeInterface }},
		{text: "meta dst=1 key=6; cmp src=1 data=65746830000000000000000000000000", want: verdict.Accepted},
		{text: "meta dst=1 key=6; cmp src=1 data=657468", want: verdict.Accepted},
		{text: "meta dst=1 key=7; cmp src=1 op=1 data=657468", want: verdict.Accepted}, // what comes in leaves by none
		{text: "meta dst=1 key=19; cmp src=1 data=00", want: verdict.Accepted},
		{text: "meta dst=1 key=20; cmp src=1 data=00000000", want: verdict.Unknown},
		{text: "ct dst=1; cmp src=1 data=08000000", want: verdict.Accepted},
		{text: "ct dst=1; bitwise src=1 dst=1 len=4 mask=0a000000 xor=00000000; cmp src=1 op=1 data=00000000", want: verdict.Accepted, with: func(p *verdict.Packet) { p.State = verdict.StateNew | verdict.StateEstablished }},
		{text: "ct dst=1; cmp src=1 data=08000000", want: verdict.Unknown, with: func(p *verdict.Packet) { p.State = verdict.StateNew | verdict.StateEstablished }},
		{text: "ct dst=1; cmp src=1 data=40000000", want: verdict.Accepted, with: func(p *verdict.Packet) { p.State = verdict.StateUntracked }},
		{text: "ct dst=1; lookup src=1 set=map", want: verdict.Accepted, sets: []host.NFTSet{stateMap}},
		{text: "ct dst=1; lookup src=1 set=map", want: verdict.Accepted, sets: []host.NFTSet{stateMap}, with: func(p *verdict.Packet) { p.State = verdict.StateNew | verdict.StateEstablished }},
		{text: "ct dst=1; lookup src=1 set=map", want: verdict.Dropped, sets: []host.NFTSet{stateMap}, with: func(p *verdict.Packet) { p.State = verdict.StateUntracked }},
		{text: "ct dst=1; lookup src=1 set=map", want: verdict.Unknown, sets: []host.NFTSet{stateMap}, with: func(p *verdict.Packet) { p.State = verdict.StateUntracked | verdict.StateEstablished }},
		{text: dport + "; lookup src=1 set=map", want: verdict.Accepted, sets: []host.NFTSet{portMap}},
		{text: dport + "; lookup src=1 set=map", want: verdict.Dropped, sets: []host.NFTSet{portMap}, with: func(p *verdict.Packet) { p.DstPort = 82 }},
		{text: "ct dst=1 key=1; cmp src=1 data=00", want: verdict.Accepted},
		{text: "ct dst=1 key=2; bitwise src=1 dst=1 len=4 mask=08000000 xor=00000000; cmp src=1 op=1 data=00000000", want: verdict.Accepted},
		{text: "ct dst=1 key=3; cmp src=1 data=34000000", want: verdict.Accepted},
		{text: "ct dst=1 key=3; cmp src=1 op=1 data=35000000", want: verdict.Dropped, with: func(p *verdict.Packet) { p.State = verdict.StateUntracked }},
		{text: "ct dst=1 key=8 dir=reply; cmp src=1 data=0a000001", want: verdict.Accepted},
		{text: "ct dst=1 key=12 dir=original; cmp src=1 data=0050", want: verdict.Accepted},
		{text: "ct dst=1 key=12 dir=original; cmp src=1 data=0050", want: verdict.Unknown, with: less(verdict.KnownTuples)},
		{text: "ct dst=1 key=6; cmp src=1 data=66747000000000000000000000000000", want: verdict.Unknown},
		{text: "ct dst=1 key=6; cmp src=1 data=66747000000000000000000000000000", want: verdict.Dropped, with: func(p *verdict.Packet) { p.State = verdict.StateUntracked }},
		{text: "fib dst=1 key=3 flags=2; cmp src=1 data=02000000", want: verdict.Accepted},
		{text: "fib dst=1 key=3 flags=1; cmp src=1 data=02000000", want: verdict.Dropped},
		{text: "fib dst=1 key=1 flags=41; cmp src=1 data=00", want: verdict.Dropped},
		{text: "fib dst=1 key=1 flags=41; cmp src=1 data=00", want: verdict.Unknown, with: less(verdict.KnownWayBack)},
		{text: "exthdr dst=1 key=44 len=1 flags=1; cmp src=1 data=01", want: verdict.Dropped},
		{text: "exthdr dst=1 key=44 len=1 flags=1; cmp src=1 data=00", want: verdict.Accepted},
		{text: "exthdr dst=1 key=2 offset=2 len=2 op=1; cmp src=1 data=05b4", want: verdict.Unknown},
		{text: "rt dst=1 key=1; cmp src=1 data=0a000001", want: verdict.Unknown},
		{text: "socket dst=1; cmp src=1 data=01", want: verdict.Unknown},
		{text: "numgen dst=1 size=2; cmp src=1 data=00000000", want: verdict.Unknown},
		{text: "limit", want: verdict.Unknown},
		{text: "quota", want: verdict.Unknown},
		{text: "connlimit", want: verdict.Unknown},
		{text: "objref key=1 object=a", want: verdict.Accepted},
		{text: "objref key=4 object=a", want: verdict.Unknown},
		{text: "dynset src=1 set=filled", want: verdict.Unknown, sets: []host.NFTSet{filledSet}},
		{text: "reject", want: verdict.Dropped},
		{text: "queue", want: verdict.Unknown},
		{text: "tproxy", want: verdict.Unknown},
		{text: "what+comes+next", want: verdict.Unknown},
		{text: "match object=comment", want: verdict.Accepted},
		{text: "match object=conntrack/3", want: verdict.Unknown},
		{text: "immediate verdict=jump chain=sub", want: verdict.Accepted},
		{text: "immediate verdict=goto chain=none", want: verdict.Unknown},
		{text: "immediate verdict=return", want: verdict.Dropped},
		{text: "immediate verdict=break; immediate verdict=accept", want: verdict.Dropped},
		{text: "payload base=1 offset=1 len=1 src=1 sets", want: verdict.Accepted}, // its type of service
		{text: "payload base=1 offset=16 len=4 src=1 sets", want: verdict.Unknown}, // its destination
		{text: "payload dst=99 base=1 len=4; cmp src=99 data=00", want: verdict.Unknown},
		{text: "payload dst=23 base=1 len=60; cmp src=23 data=00000000000000000000", want: verdict.Unknown},
		{text: "bitwise src=1 dst=1 len=4 mask=00 xor=00", want: verdict.Unknown},
	} {
		p := packet()
		if tt.with != nil {
			change(tt.with)(&p)
		}
		for _, plain := range []bool{false, true} {
			d := evaluator(host.IPv4, plain, input(t, tt.text, tt.sets...)).Verdict(&p)
			if d.Verdict != tt.want {
				t.Errorf("%s (plain: %v): %s by %s, want %s", tt.text, plain, d.Verdict, d.Rule, tt.want)
			}
		}
	}
}

// TestDispatch holds what runs before rules: hooks, priorities, types and
// tables.
func TestDispatch(t *testing.T) {
	rule := func(text string) []host.NFTRule {
		return []host.NFTRule{{Handle: 9, Text: text, Exprs: program(t, text)}}
	}
	const accept, drop = "immediate verdict=accept", "immediate verdict=drop"
	chain := func(hook string, priority int, policy, text string) host.NFTChain {
		return host.NFTChain{Name: fmt.Sprintf("%s%d", hook, priority), Type: "filter", Hook: hook, Priority: priority, Policy: policy, Rules: rule(text)}
	}
	table := func(family string, chains ...host.NFTChain) host.NFTTable {
		return host.NFTTable{Family: family, Name: "t", Whole: true, Chains: chains}
	}
	nat := chain("prerouting", 0, "accept", "nat key=1 src=1")
	nat.Type = "nat"
	snat := chain("postrouting", 100, "accept", "masq")
	snat.Type = "nat"
	ingress := chain("ingress", 0, "accept", drop)
	ingress.Devices = []string{"eth1"}
	ours := ingress
	ours.Devices = []string{"eth1", "eth0"}
	dormant := table("ip", chain("input", 0, "drop", drop))
	dormant.Dormant = true
	unread := host.NFTTable{Family: "inet", Name: "t", Drops: true, Chains: []host.NFTChain{{Name: "in", Type: "filter", Hook: "input", Policy: "accept"}}}
	harmless := unread
	harmless.Drops = false
	bridge := table("bridge", chain("forward", 0, "drop", drop))
	const untracked = "ct dst=1; cmp src=1 data=40000000; "
	for name, tt := range map[string]struct {
		tables []host.NFTTable
		want   verdict.Verdict
		by     string
	}{
		"accept ends one base chain": {[]host.NFTTable{table("inet", chain("input", 0, "accept", accept), chain("input", 10, "drop", "counter"))}, verdict.Dropped, "policy drop of inet t input10"},
		"another table":              {[]host.NFTTable{table("inet", chain("input", 0, "accept", accept)), table("ip", chain("input", -5, "accept", drop))}, verdict.Dropped, "ip t input-5 handle 9: immediate verdict=drop"},
		"another family":             {[]host.NFTTable{table("ip6", chain("input", 0, "drop", drop))}, verdict.Accepted, "no rule"},
		"another hook":               {[]host.NFTTable{table("ip", chain("forward", 0, "drop", drop), chain("output", 0, "drop", drop))}, verdict.Accepted, "no rule"},
		"dormant":                    {[]host.NFTTable{dormant}, verdict.Accepted, "no rule"},
		"notrack":                    {[]host.NFTTable{table("ip", chain("prerouting", -300, "accept", "notrack"), chain("input", 0, "drop", untracked+accept))}, verdict.Accepted, "ip t input0 handle 9: " + untracked + accept},
		"notrack too late":           {[]host.NFTTable{table("ip", chain("prerouting", -150, "accept", "notrack"), chain("input", 0, "drop", untracked+accept))}, verdict.Dropped, "policy drop of ip t input0"},
		"destination translated":     {[]host.NFTTable{table("ip", nat)}, verdict.Unknown, "ip t prerouting0 handle 9: nat key=1 src=1"},
		"source translated":          {[]host.NFTTable{table("ip", snat)}, verdict.Accepted, "no rule"},
		"ingress elsewhere":          {[]host.NFTTable{table("netdev", ingress)}, verdict.Accepted, "policy accept of netdev t ingress0 (ingress)"},
		"ingress":                    {[]host.NFTTable{table("netdev", ours)}, verdict.Dropped, "netdev t ingress0 handle 9: " + drop},
		"not read":                   {[]host.NFTTable{unread}, verdict.Unknown, "inet t in: what its rules say is not known"},
		"not read, and drops none":   {[]host.NFTTable{harmless}, verdict.Accepted, "no rule"},
		"bridge":                     {[]host.NFTTable{bridge}, verdict.Accepted, "no rule"},
	} {
		p := packet()
		d := evaluator(host.IPv4, false, tt.tables...).Verdict(&p)
		if by := strings.ReplaceAll(d.Rule.String(), "policy accept of bridge t forward0", "no rule"); d.Verdict != tt.want || by != tt.by {
			t.Errorf("%s: %s by %q, want %s by %q", name, d.Verdict, d.Rule, tt.want, tt.by)
		}
	}
	c := verdict.NewCompiler(host.IPv4, verdict.Facts{}, false)
	p := packet()
	if d := c.Evaluator(Tables(c, host.IPv4, nil, nil, "permission denied")).Verdict(&p); d.Verdict != verdict.Unknown || !strings.Contains(d.Rule.String(), "permission denied") {
		t.Errorf("tables that could not be read: %s by %s", d.Verdict, d.Rule)
	}
	p.Known &^= verdict.KnownUnbridged
	if d := evaluator(host.IPv4, false, bridge).Verdict(&p); d.Verdict != verdict.Unknown {
		t.Errorf("through a bridge: %s by %s", d.Verdict, d.Rule)
	}
}

// random makes expressions that fit together more often than not.
func random(r *rand.Rand) string {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	load := pick("payload dst=1 base=2 offset=2 len=2", "payload dst=1 base=2 len=2", "payload dst=1 base=1 offset=12 len=4", "payload dst=1 base=1 offset=16 len=4", "meta dst=1 key=16", "meta dst=1 key=3",
		"meta dst=1 key=6", "meta dst=1 key=4", "ct dst=1", "ct dst=1 key=3", "ct dst=1 key=2", "payload dst=1 base=2 offset=13 len=1", "payload dst=1 base=2 len=1", "fib dst=1 key=3 flags=2", "meta dst=1", "meta dst=1 key=15")
	n, values := 4, []string{"02000000", "08000000", "00000000", "12000000", "0a000009", "0a000001", "3c000000"}
	switch {
	case strings.Contains(load, "len=2"):
		n, values = 2, []string{"0050", "9c40", "0016", "0000"}
	case strings.Contains(load, "key=6"):
		n, values = 16, []string{"65746830000000000000000000000000", "6c6f0000000000000000000000000000"}
	case strings.Contains(load, "len=1"), strings.Contains(load, "key=16"), strings.Contains(load, "key=15"):
		n, values = 1, []string{"06", "11", "02", "00", "0a", "08"}
	}
	mask := ""
	if r.IntN(3) == 0 {
		mask = fmt.Sprintf("; bitwise src=1 dst=1 len=%d mask=%s xor=%s", n, strings.Repeat(pick("0f", "ff", "02", "f0"), n), strings.Repeat(pick("00", "00", "01"), n))
	}
	value := pick(values...)
	switch r.IntN(5) {
	case 0:
		return load + mask + "; range src=1 data=" + strings.Repeat("00", n) + " to=" + value + fmt.Sprintf(" op=%d", r.IntN(2))
	case 1:
		return load + mask + fmt.Sprintf("; lookup src=1 set=s%d flags=%d", n, r.IntN(2))
	}
	return load + mask + fmt.Sprintf("; cmp src=1 op=%d data=%s", r.IntN(6), value)
}

// randomSets are the sets that those name.
func randomSets(r *rand.Rand) []host.NFTSet {
	pick := func(list ...host.Elements) host.Elements { return list[r.IntN(len(list))] }
	return []host.NFTSet{
		{Name: "s1", KeyLen: 1, Elements: pick("06 11", "02", "0a", "")},
		{Name: "s2", KeyLen: 2, Flags: host.NFTSetInterval, Elements: pick("0016 0050", "0000-03ff", "9c40", "0016-0020 0050-0051 *")},
		{Name: "s4", KeyLen: 4, Flags: host.NFTSetInterval, Elements: pick("02000000 04000000", "0a000000-0a0000ff", "08000000 40000000", "00000000")},
		{Name: "s16", KeyLen: 16, Elements: pick("65746830000000000000000000000000", "6c6f0000000000000000000000000000")},
	}
}

// TestConditionsSayTheSame compares what is made of rules with what their
// programs say: neither contradicts the other, whatever of the packet is known;
// and what is said of a packet of which less is known holds when more is.
func TestConditionsSayTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 12))
	var known, all int
	for n := range 4000 {
		f := host.Families[n%2]
		table := host.NFTTable{Family: "inet", Name: "t", Whole: true, Sets: randomSets(r), Chains: []host.NFTChain{{Name: "in", Type: "filter", Hook: "input", Policy: []string{"accept", "drop"}[r.IntN(2)]}}}
		for i := range 1 + r.IntN(20) {
			text := ""
			for range 1 + r.IntN(3) {
				text += random(r) + "; "
			}
			text += []string{"immediate verdict=accept", "immediate verdict=drop", "immediate dst=1 data=02000000; meta key=3 src=1 sets", "ct dst=1 key=3; meta key=3 src=1 sets"}[r.IntN(4)]
			table.Chains[0].Rules = append(table.Chains[0].Rules, host.NFTRule{Handle: uint64(i + 1), Text: text, Exprs: program(t, text)})
		}
		quick, plain := evaluator(f, false, table), evaluator(f, true, table)
		for range 10 {
			p := packet()
			p.Protocol = []uint8{6, 17, 1, 58}[r.IntN(4)]
			p.State = []verdict.State{1, 2, 4, 8, 16}[r.IntN(5)]
			p.DstPort, p.TCPFlags = []uint16{80, 22, 7}[r.IntN(3)], uint8(r.IntN(64))
			if f == host.IPv6 {
				p.Src, p.Dst = netip.MustParseAddr("fd00::9"), netip.MustParseAddr("fd00::1")
			}
			vague := p
			vague.Known &= verdict.Known(r.Uint32())
			vague.State |= verdict.State(r.IntN(32))
			if r.IntN(4) == 0 {
				vague.In = verdict.SomeInterface
			}
			d := []verdict.Decision{quick.Verdict(&p), plain.Verdict(&p), quick.Verdict(&vague), plain.Verdict(&vague)}
			for _, a := range d {
				if all++; a.Verdict != verdict.Unknown {
					known++
				}
				for _, b := range d {
					if a.Verdict != b.Verdict && a.Verdict != verdict.Unknown && b.Verdict != verdict.Unknown {
						t.Fatalf("%v\n%+v\n%+v\n%+v", d, p, vague, table.Chains)
					}
				}
			}
		}
	}
	if known*2 < all {
		t.Errorf("of %d verdicts %d are known, which shows little", all, known)
	}
}

// TestNoAllocation holds what a verdict over a thousand rules costs.
func TestNoAllocation(t *testing.T) {
	table := host.NFTTable{Family: "inet", Name: "t", Whole: true, Sets: []host.NFTSet{portSet, stateMap, pairSet}, Chains: []host.NFTChain{{Name: "sub"}, {Name: "in", Type: "filter", Hook: "input", Policy: "drop"}}}
	in := &table.Chains[1]
	add := func(text string) {
		in.Rules = append(in.Rules, host.NFTRule{Handle: uint64(len(in.Rules) + 1), Text: text, Exprs: program(t, text)})
	}
	add("ct dst=1; lookup src=1 set=map")
	add("payload dst=1 base=1 offset=12 len=4; payload dst=9 base=2 len=2; lookup src=1 set=pairs; immediate verdict=drop")
	for i := range 1000 {
		add(fmt.Sprintf("meta dst=1 key=16; cmp src=1 data=06; payload dst=1 base=1 offset=12 len=4; cmp src=1 data=0b%06x; payload dst=1 base=2 offset=2 len=2; lookup src=1 set=ports; immediate verdict=drop", i))
	}
	add("immediate verdict=accept")
	e := evaluator(host.IPv4, false, table)
	p := packet()
	p.State = verdict.StateUntracked
	if d := e.Verdict(&p); d.Verdict != verdict.Accepted {
		t.Fatalf("%s by %s", d.Verdict, d.Rule)
	}
	if n := testing.AllocsPerRun(100, func() { e.Verdict(&p) }); n > 0 {
		t.Errorf("a verdict allocates %v times", n)
	}
}

func BenchmarkVerdict(b *testing.B) {
	table := input(b, "meta dst=1 key=16; cmp src=1 data=06; payload dst=1 base=1 offset=12 len=4; payload dst=9 base=2 offset=2 len=2; lookup src=1 set=pairs", pairSet)
	e := evaluator(host.IPv4, false, table)
	p := packet()
	for b.Loop() {
		e.Verdict(&p)
	}
}

// FuzzTables takes whatever a snapshot may say: no panic, and nothing that is
// said of a packet is taken back when more of it is known.
func FuzzTables(f *testing.F) {
	f.Add("ct dst=1; lookup src=1 set=map", "02000000:=accept 08000000:=jump=sub", uint32(4), uint32(8), []byte{6, 1, 1, 80})
	f.Add("payload dst=1 base=1 offset=12 len=4; payload dst=9 base=2 offset=2 len=2; lookup src=1 set=map", "0a00000000500000-0a0000ff00510000 *", uint32(8), uint32(0), []byte{6, 1, 2, 22})
	f.Add("meta dst=1 key=3; bitwise src=1 dst=1 len=4 op=1 data=04000000; meta key=3 src=1 sets; lookup src=1 dst=1 set=map; cmp src=1 data=0000", "0000:0000", uint32(2), uint32(8), []byte{17, 3, 255, 0})
	f.Add("fib dst=22 key=1 flags=9; byteorder src=8 dst=20 op=1 len=16 size=2; ct dst=23 key=8 dir=reply; cmp src=23 op=3 data=ffffffff; notrack; immediate verdict=goto chain=in", "", uint32(16), uint32(1), []byte{1, 16, 7, 9})
	state := strings.Repeat("00", 146) + "0100" + "0000" + "0600" + strings.Repeat("00", 10) // struct xt_conntrack_mtinfo3: established, related
	f.Add("meta dst=1 key=16; cmp src=1 data=06; match object=conntrack/3 data="+state+"; immediate verdict=accept", "", uint32(4), uint32(0), []byte{6, 1, 1, 80})
	f.Add("match object=multiport/1 data=0102"+"1600"+"5000"+strings.Repeat("00", 44)+"; match object=addrtype/1 data=0000040000000000; match object=tcp data=0000ffff0000ffff00170200; target object=MARK/2 data=0100000001000000", "", uint32(4), uint32(0), []byte{6, 1, 1, 80})
	f.Add("match object=state data=40000000; match object=icmp data=08000000; match object=iprange/1 data=00; target object=CT/2 data=01000000", "", uint32(4), uint32(0), []byte{1, 1, 1, 80})
	f.Fuzz(func(t *testing.T, text, elements string, keyLen, flags uint32, seed []byte) {
		var p host.NFTProgram
		if p.UnmarshalText([]byte(text)) != nil || len(p) > 64 || len(elements) > 1<<12 {
			return
		}
		set := host.NFTSet{Name: "map", KeyLen: keyLen, Flags: flags, DataType: host.NFTVerdicts * (flags >> 3 & 1), DataLen: flags >> 8, Elements: host.Elements(elements), Fields: []uint32{4, flags >> 16}}
		tables := []host.NFTTable{{Family: "inet", Name: "t", Whole: true, Sets: []host.NFTSet{set}, Chains: []host.NFTChain{
			{Name: "pre", Type: "filter", Hook: "prerouting", Priority: -300, Rules: []host.NFTRule{{Handle: 1, Exprs: p}}},
			{Name: "in", Type: "filter", Hook: "input", Policy: "drop", Rules: []host.NFTRule{{Handle: 2, Exprs: p}, {Handle: 3, Exprs: program(t, "immediate verdict=jump chain=sub")}}},
			{Name: "sub", Rules: []host.NFTRule{{Handle: 4, Exprs: p}, {Handle: 5, Exprs: program(t, "immediate verdict=accept")}}},
		}}}
		for _, family := range host.Families {
			for range Networks(tables, family, false) {
			}
			for range Ports(tables, family) {
			}
			Rules(tables, family, func(*host.NFTRule) bool { return true })
			quick, plain := evaluator(family, false, tables...), evaluator(family, true, tables...)
			k := packet()
			if family == host.IPv6 {
				k.Src, k.Dst = netip.MustParseAddr("fd00::9"), netip.MustParseAddr("fd00::1")
			}
			if len(seed) >= 4 {
				k.Protocol, k.State, k.DstPort = seed[0], verdict.State(1<<(seed[1]%5)), uint16(seed[3])
			}
			vague := k
			if len(seed) >= 4 {
				vague.Known &= verdict.Known(seed[2]) << 2
				vague.State |= verdict.State(seed[1] & 31)
			}
			d := []verdict.Decision{quick.Verdict(&k), plain.Verdict(&k), quick.Verdict(&vague), plain.Verdict(&vague)}
			for _, a := range d {
				for _, b := range d {
					if a.Verdict != b.Verdict && a.Verdict != verdict.Unknown && b.Verdict != verdict.Unknown {
						t.Fatalf("%s by %s, and %s by %s", a.Verdict, a.Rule, b.Verdict, b.Rule)
					}
				}
			}
		}
	})
}
