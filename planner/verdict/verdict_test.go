package verdict_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/iptables"
)

// parse reads what iptables-save prints, as the rules of one backend.
func parse(t testing.TB, f host.Family, text string) host.Ruleset {
	t.Helper()
	r, err := iptables.Parse(f, text)
	if err != nil {
		t.Fatal(err)
	}
	r.Backend, r.Primary = host.NFT, true
	return r
}

func packet(hook verdict.Hook, proto uint8, src, dst string, sport, dport uint16, state verdict.State) *verdict.Packet {
	p := &verdict.Packet{Hook: hook, Protocol: proto, State: state, Tuple: host.Tuple{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SrcPort: sport, DstPort: dport}}
	if hook != verdict.HookOutput {
		p.In = "eth0"
	}
	if hook != verdict.HookInput {
		p.Out = "eth1"
	}
	if proto == protocol.TCP {
		p.TCPFlags = verdict.TCPAck
	}
	return p
}

// TestVerdict pins what the kernel cannot be asked about: what is unknown, and
// which rule is named.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name, rules string
		state       verdict.State
		want        verdict.Verdict
		rule        string
	}{
		{"policy", ":INPUT DROP\n", verdict.StateNew, verdict.Dropped, "policy DROP of INPUT"},
		{"first match", ":INPUT DROP\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -j DROP\n", verdict.StateNew, verdict.Accepted, "-A INPUT -p tcp -j ACCEPT"},
		{"a rate decides", ":INPUT DROP\n-A INPUT -m limit --limit 1/sec -j ACCEPT\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m limit --limit 1/sec -j ACCEPT"},
		{"a rate does not decide", ":INPUT ACCEPT\n-A INPUT -m limit --limit 1/sec -j ACCEPT\n", verdict.StateNew, verdict.Accepted, "policy ACCEPT of INPUT"},
		{"a rate for a log", ":INPUT DROP\n-A INPUT -m limit --limit 1/sec -j LOG\n-A INPUT -j ACCEPT\n", verdict.StateNew, verdict.Accepted, "-A INPUT -j ACCEPT"},
		{"both ways through a chain", ":INPUT DROP\n:A -\n-A INPUT -m limit --limit 1/sec -j A\n-A INPUT -j ACCEPT\n-A A -j ACCEPT\n", verdict.StateNew, verdict.Accepted, "-A INPUT -j ACCEPT"},
		{"a chain that may drop", ":INPUT ACCEPT\n:A -\n-A INPUT -j A\n-A A -m quota --quota 5 -j RETURN\n-A A -j DROP\n", verdict.StateNew, verdict.Unknown, "-A A -m quota --quota 5 -j RETURN"},
		{"goto does not come back", ":INPUT DROP\n:A -\n:B -\n-A INPUT -j A\n-A INPUT -j ACCEPT\n-A A -g B\n-A A -j DROP\n", verdict.StateNew, verdict.Accepted, "-A INPUT -j ACCEPT"},
		{"an unknown match", ":INPUT ACCEPT\n-A INPUT -m frobnicate --level 5 -j DROP\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m frobnicate --level 5 -j DROP"},
		{"an unknown match that cannot matter", ":INPUT ACCEPT\n-A INPUT -p udp -m frobnicate --level 5 -j DROP\n", verdict.StateNew, verdict.Accepted, "policy ACCEPT of INPUT"},
		{"a missing chain", ":INPUT ACCEPT\n-A INPUT -j NOWHERE\n", verdict.StateNew, verdict.Unknown, "-A INPUT -j NOWHERE"},
		{"a circle", ":INPUT ACCEPT\n:A -\n-A INPUT -j A\n-A A -j A\n", verdict.StateNew, verdict.Unknown, "-A A -j A"},
		{"a mark nobody set", ":INPUT ACCEPT\n-A INPUT -m mark --mark 0x1 -j DROP\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m mark --mark 0x1 -j DROP"},
		{"a mark that was set", ":INPUT ACCEPT\n-A INPUT -j MARK --set-xmark 0x1/0xf\n-A INPUT -m mark --mark 0x1/0x3 -j DROP\n", verdict.StateNew, verdict.Dropped, "-A INPUT -m mark --mark 0x1/0x3 -j DROP"},
		{"a mark that may have been set", ":INPUT ACCEPT\n-A INPUT -m limit --limit 1/sec -j MARK --set-xmark 0x1/0xf\n-A INPUT -m mark --mark 0x1/0x3 -j DROP\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m mark --mark 0x1/0x3 -j DROP"},
		{"a program decides", ":INPUT ACCEPT\n-A INPUT -j NFQUEUE --queue-num 0\n", verdict.StateNew, verdict.Unknown, "-A INPUT -j NFQUEUE --queue-num 0"},
		{"states that agree", ":INPUT DROP\n-A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT\n", verdict.StateNew | verdict.StateEstablished, verdict.Accepted, "-A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT"},
		{"states that do not", ":INPUT DROP\n-A INPUT -m state --state NEW -j ACCEPT\n", verdict.StateNew | verdict.StateEstablished, verdict.Unknown, "-A INPUT -m state --state NEW -j ACCEPT"},
		{"a rule for the other family", ":INPUT DROP\n-A INPUT -6 -j ACCEPT\n-A INPUT -4 -p tcp -j ACCEPT\n", verdict.StateNew, verdict.Accepted, "-A INPUT -4 -p tcp -j ACCEPT"},
		{"a chain with the name of a target", ":INPUT DROP\n:TARPIT -\n-A INPUT -j TARPIT\n-A TARPIT -j ACCEPT\n", verdict.StateNew, verdict.Accepted, "-A TARPIT -j ACCEPT"},
		{"a program may mark", ":INPUT ACCEPT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n-A PREROUTING -j NFQUEUE --queue-num 0 --queue-bypass\nCOMMIT\n*filter\n-A INPUT -m mark --mark 0x1 -j DROP\n", verdict.StateNew, verdict.Unknown, "-A PREROUTING -j NFQUEUE --queue-num 0 --queue-bypass"},
		{"a mark that is computed", ":INPUT ACCEPT\n-A INPUT -j MARK --set-xmark 0x0/0xffffffff\n-A INPUT -j HMARK --hmark-tuple src --hmark-mod 8\n-A INPUT -m mark --mark 0x0 -j DROP\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m mark --mark 0x0 -j DROP"},
		{"nat marks first packets alone", ":INPUT DROP\n-A INPUT -m mark --mark 0x1 -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n", verdict.StateNew, verdict.Accepted, "-A INPUT -m mark --mark 0x1 -j ACCEPT"},
		{"nat may have marked", ":INPUT DROP\n-A INPUT -m mark --mark 0x1 -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n", verdict.StateNew | verdict.StateEstablished, verdict.Unknown, "-A INPUT -m mark --mark 0x1 -j ACCEPT"},
		{"nat's policy", ":INPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", verdict.StateNew, verdict.Dropped, "policy DROP of PREROUTING"},
		{"nat's policy is for first packets", ":INPUT ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", verdict.StateEstablished, verdict.Accepted, "-A INPUT -j ACCEPT"},
		{"nat's policy may count", ":INPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", verdict.StateNew | verdict.StateEstablished, verdict.Unknown, "policy DROP of PREROUTING"},
		{"a header that no packet here has", ":INPUT ACCEPT\n-A INPUT -m rt --rt-type 0 -j DROP\n-A INPUT -m rt ! --rt-type 0 -j DROP\n", verdict.StateNew, verdict.Accepted, "policy ACCEPT of INPUT"},
		{"an unknown set", ":INPUT ACCEPT\n-A INPUT -m set --match-set bad src -j DROP\n", verdict.StateNew, verdict.Unknown, "-A INPUT -m set --match-set bad src -j DROP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := parse(t, host.IPv4, "*filter\n"+tt.rules+"COMMIT\n")
			e := xt.NewEvaluator(host.IPv4, []host.Ruleset{r}, verdict.Facts{})
			got := e.Verdict(packet(verdict.HookInput, protocol.TCP, "10.0.0.9", "10.0.0.1", 40000, 80, tt.state))
			if got.Verdict == verdict.Dropped && !e.MayRefuse(verdict.HookInput) {
				t.Error("it is dropped where nothing may be")
			}
			if got.Verdict != tt.want || got.Rule.String() != tt.rule {
				t.Errorf("%s by %q, want %s by %q", got.Verdict, got.Rule, tt.want, tt.rule)
			}
		})
	}
}

// TestMayRefuse: by what may be refused at input, through and at output, as bits.
func TestMayRefuse(t *testing.T) {
	const input, forward, output = 1, 2, 4
	for name, tt := range map[string]struct {
		rules string
		want  int
	}{
		"nothing":                 {"*filter\n:INPUT ACCEPT\n:A -\n-A INPUT -j A\n-A A -p tcp -j ACCEPT\n-A A -j LOG\n", 0},
		"a policy":                {"*filter\n:INPUT ACCEPT\n:FORWARD DROP\n", forward},
		"a rule":                  {"*filter\n:INPUT ACCEPT\n-A INPUT -s 10.0.0.0/8 -j REJECT\n", input},
		"a chain that is called":  {"*filter\n:OUTPUT ACCEPT\n:A -\n:B -\n-A OUTPUT -j A\n-A A -g B\n-A B -j DROP\n", output},
		"a chain that nobody is":  {"*filter\n:INPUT ACCEPT\n:A -\n-A A -j DROP\n", 0},
		"what comes in":           {"*raw\n:PREROUTING ACCEPT\n-A PREROUTING -j DROP\n", input | forward},
		"what leaves":             {"*mangle\n:POSTROUTING ACCEPT\n-A POSTROUTING -j DROP\n", forward | output},
		"a program":               {"*filter\n:INPUT ACCEPT\n-A INPUT -j NFQUEUE\n", input},
		"a target nobody knows":   {"*filter\n:INPUT ACCEPT\n-A INPUT -j FROBNICATE\n", input},
		"nothing that is tracked": {"*raw\n:PREROUTING ACCEPT\n-A PREROUTING -j NOTRACK\n", 0},
	} {
		e := xt.NewEvaluator(host.IPv4, []host.Ruleset{parse(t, host.IPv4, tt.rules+"COMMIT\n")}, verdict.Facts{})
		got := 0
		for bit, hook := range map[int]verdict.Hook{input: verdict.HookInput, forward: verdict.HookForward, output: verdict.HookOutput} {
			if e.MayRefuse(hook) {
				got |= bit
			}
		}
		if got != tt.want {
			t.Errorf("%s: %03b, want %03b", name, got, tt.want)
		}
	}
}

// TestRawOfTwoBackends: whose raw table comes first depends on which was made
// first, and a template keeps NOTRACK from having an effect.
func TestRawOfTwoBackends(t *testing.T) {
	raw := func(b host.Backend, rule string) host.Ruleset {
		r := parse(t, host.IPv4, "*raw\n:PREROUTING ACCEPT\n-A PREROUTING "+rule+"\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -m state --state UNTRACKED -j ACCEPT\nCOMMIT\n")
		r.Backend = b
		return r
	}
	for _, tt := range []struct {
		a, b string
		want verdict.Verdict
	}{
		{"-j CT --notrack", "-p udp -j CT --notrack", verdict.Accepted},
		{"-j CT --notrack", "-j CT --helper ftp", verdict.Unknown},
		{"-j CT --helper ftp", "-j CT --notrack", verdict.Unknown},
		{"-j CT --helper ftp", "-j LOG", verdict.Dropped},
	} {
		sets := []host.Ruleset{raw(host.NFT, tt.a), raw(host.Legacy, tt.b)}
		if got := xt.NewEvaluator(host.IPv4, sets, verdict.Facts{}).Verdict(packet(verdict.HookInput, protocol.TCP, "10.0.0.9", "10.0.0.1", 40000, 80, verdict.StateNew)); got.Verdict != tt.want {
			t.Errorf("%s and %s: %s by %q, want %s", tt.a, tt.b, got.Verdict, got.Rule, tt.want)
		}
	}
}

// TestLoMarks: what raw OUTPUT marks, mangle OUTPUT may mark again before the
// packet comes in over lo.
func TestLoMarks(t *testing.T) {
	r := parse(t, host.IPv4, "*raw\n:OUTPUT ACCEPT\n-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff\nCOMMIT\n*mangle\n:OUTPUT ACCEPT\n-A OUTPUT -j MARK --set-xmark 0x2/0xffffffff\nCOMMIT\n*filter\n:INPUT ACCEPT\n-A INPUT -m mark --mark 0x1 -j DROP\nCOMMIT\n")
	p := packet(verdict.HookInput, protocol.TCP, "127.0.0.1", "127.0.0.1", 40000, 80, verdict.StateNew)
	p.In = "lo"
	if got := xt.NewEvaluator(host.IPv4, []host.Ruleset{r}, verdict.Facts{}).Verdict(p); got.Verdict != verdict.Unknown {
		t.Errorf("%s by %q", got.Verdict, got.Rule)
	}
}

func manyRules(r *rand.Rand, n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n")
	for i := range n {
		m := ""
		switch r.IntN(6) {
		case 0:
			m = fmt.Sprintf("-s 10.%d.%d.%d/32 ", r.IntN(4), r.IntN(250), r.IntN(250))
		case 1:
			m = fmt.Sprintf("-s 10.%d.%d.0/24 -p tcp ", r.IntN(4), r.IntN(250))
		case 2, 3:
			m = fmt.Sprintf("-p tcp -m tcp --dport %d ", 1+r.IntN(60000))
		case 4:
			m = fmt.Sprintf("-p udp -m multiport --sports %d,%d:%d ", 1+r.IntN(60000), 100, 100+r.IntN(60))
		case 5:
			m = fmt.Sprintf("-d 10.%d.%d.%d/32 -i eth%d ", r.IntN(4), r.IntN(250), r.IntN(250), r.IntN(3))
		}
		fmt.Fprintf(&b, "-A INPUT %s-j %s\n", m, []string{"ACCEPT", "DROP", "MARK --set-xmark 0x1/0xff"}[(i+r.IntN(2))%3])
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func TestVerdictAllocatesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	text := strings.Replace(manyRules(r, 400), "COMMIT\n", "-A INPUT -m conntrack --ctstate NEW -m addrtype --dst-type LOCAL -m limit --limit 1/sec -j ACCEPT\nCOMMIT\n", 1)
	e := xt.NewEvaluator(host.IPv4, []host.Ruleset{parse(t, host.IPv4, text)}, verdict.Facts{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}})
	p := packet(verdict.HookInput, protocol.TCP, "10.9.9.9", "10.0.0.1", 4, 70, verdict.StateNew)
	if n := testing.AllocsPerRun(100, func() { e.Verdict(p) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// TestCostIsFlat holds the cost of a packet against the number of rules.
func TestCostIsFlat(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	var first float64
	for _, n := range []int{10, 100, 1000, 5000} {
		e := xt.NewEvaluator(host.IPv4, []host.Ruleset{parse(t, host.IPv4, manyRules(r, n))}, verdict.Facts{})
		p := packet(verdict.HookInput, protocol.TCP, "10.9.9.9", "10.0.0.1", 4, 61000, verdict.StateNew)
		best := 1e18
		for range 10 {
			start := time.Now()
			for range 2000 {
				e.Verdict(p)
			}
			best = min(best, float64(time.Since(start).Nanoseconds())/2000)
		}
		t.Logf("%5d rules: %4.0f ns a packet", n, best)
		if first == 0 {
			first = best
		}
		if best > 5*first+200 {
			t.Errorf("%d rules cost %.0f ns a packet, %.0f with 10", n, best, first)
		}
	}
}

// FuzzVerdict feeds the evaluator rules made of any words: it must not panic,
// must end, must name a rule when it does not know, and must say the same twice.
func FuzzVerdict(f *testing.F) {
	f.Add("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A INPUT -m state ! --state NEW -g A\n-A A -j INPUT\n", uint16(22), uint8(6))
	f.Add("-A INPUT -s 10.0.0.0/255.0.255.0 ! -i lo+ -m iprange --src-range 1.1.1.1 -m conntrack --ctstate SNAT --ctorigsrc ::1 -j NOTRACK\n", uint16(0), uint8(1))
	f.Add("-A INPUT -p 300 -m mark --mark 0x/ -m multiport --ports 1:,:2,9:1 -m u32 -j MARK --set-mark 1/z\n-A OUTPUT -f\n-A A -m set --match-set x\n", uint16(9), uint8(255))
	f.Fuzz(func(t *testing.T, text string, port uint16, proto uint8) {
		tb := host.Table{Name: "filter", Chains: []host.ChainDecl{{Name: "INPUT", Policy: "ACCEPT"}, {Name: "OUTPUT", Policy: "DROP"}, {Name: "A", Policy: "-"}, {Name: "B", Policy: "-"}}}
		for line := range strings.Lines(text) {
			w := strings.Fields(line)
			if len(w) > 1 && w[0] == "-A" {
				tb.Rules = append(tb.Rules, host.Rule{Chain: w[1], Words: w[2:], Text: strings.Join(w[2:], " ")})
			}
		}
		raw := tb
		raw.Name = "raw"
		raw.Chains = []host.ChainDecl{{Name: "PREROUTING", Policy: "ACCEPT"}, {Name: "INPUT", Policy: "-"}, {Name: "A", Policy: "-"}}
		rules := host.Ruleset{Family: host.IPv4, Backend: host.Legacy, Primary: true, Tables: []host.Table{tb, raw}}
		e := xt.NewEvaluator(host.IPv4, []host.Ruleset{rules}, verdict.Facts{})
		// The same rules with their words given anew.
		again := xt.NewEvaluator(host.IPv4, []host.Ruleset{rules}, verdict.Facts{})
		for _, hook := range []verdict.Hook{verdict.HookInput, verdict.HookForward, verdict.HookOutput} {
			p := packet(hook, proto, "10.0.0.9", "10.0.0.1", 40000, port, 0)
			a, b := e.Verdict(p), again.Verdict(p)
			if a.Verdict != b.Verdict || a.Rule.String() != b.Rule.String() {
				t.Fatalf("%v and %v", a, b)
			}
			if (a.Verdict == verdict.Unknown) && a.Rule == nil {
				t.Fatalf("unknown without a rule")
			}
		}
	})
}

func TestIndexScansTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 40 {
		set := parse(t, host.IPv4, manyRules(r, 20+r.IntN(600)))
		fast, slow := xt.NewEvaluator(host.IPv4, []host.Ruleset{set}, verdict.Facts{}), verdict.Unindexed(xt.NewEvaluator(host.IPv4, []host.Ruleset{set}, verdict.Facts{}))
		for range 300 {
			p := packet(verdict.HookInput, []uint8{protocol.TCP, protocol.UDP, protocol.ICMP}[r.IntN(3)], fmt.Sprintf("10.%d.%d.%d", r.IntN(4), r.IntN(250), r.IntN(250)), fmt.Sprintf("10.%d.%d.%d", r.IntN(4), r.IntN(250), r.IntN(250)),
				uint16(r.IntN(60000)), uint16(r.IntN(60000)), verdict.StateNew)
			p.In = []string{"eth0", "eth1", "lo", verdict.SomeInterface}[r.IntN(4)]
			// Half of the packets are made to meet a rule.
			if rules := set.Tables[0].Rules; r.IntN(2) == 0 {
				w := rules[r.IntN(len(rules))].Words
				for i := range len(w) - 1 {
					switch w[i] {
					case "-s":
						p.Src = netip.MustParsePrefix(w[i+1]).Addr()
					case "-d":
						p.Dst = netip.MustParsePrefix(w[i+1]).Addr()
					case "--dport":
						fmt.Sscan(w[i+1], &p.DstPort)
					case "--sports":
						fmt.Sscan(w[i+1], &p.SrcPort)
					}
				}
			}
			a, b := fast.Verdict(p), slow.Verdict(p)
			if a.Verdict != b.Verdict || a.Rule.String() != b.Rule.String() {
				t.Fatalf("%+v: the index says %s by %s, a scan %s by %s", p, a.Verdict, a.Rule, b.Verdict, b.Rule)
			}
		}
	}
}

// TestSetNomatch: of the members that hold an address the narrowest decides.
func TestSetNomatch(t *testing.T) {
	in := func(text string, out bool) host.IPSetEntry {
		return host.IPSetEntry{Prefix: netip.MustParsePrefix(text), Nomatch: out}
	}
	facts := verdict.Facts{Sets: map[string]*host.IPSet{"nets": {Type: "hash:net", Prefixes: []host.IPSetEntry{in("10.1.0.0/16", true), in("10.0.0.0/8", false), in("10.1.2.0/24", false)}}}}
	e := xt.NewEvaluator(host.IPv4, []host.Ruleset{parse(t, host.IPv4, "*filter\n:INPUT ACCEPT\n-A INPUT -m set --match-set nets src -j DROP\nCOMMIT\n")}, facts)
	for src, want := range map[string]verdict.Verdict{"10.2.0.1": verdict.Dropped, "10.1.9.9": verdict.Accepted, "10.1.2.9": verdict.Dropped, "11.0.0.1": verdict.Accepted} {
		if got := e.Verdict(packet(verdict.HookInput, protocol.TCP, src, "192.0.2.1", 40000, 80, verdict.StateNew)); got.Verdict != want {
			t.Errorf("%s is %s, want %s", src, got.Verdict, want)
		}
	}
}
