package planner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func packet(hook Hook, proto uint8, src, dst string, sport, dport uint16, state State) *Packet {
	p := &Packet{Hook: hook, Protocol: proto, State: state, Tuple: Tuple{netip.MustParseAddr(src), netip.MustParseAddr(dst), sport, dport}}
	if hook != HookOutput {
		p.In = "eth0"
	}
	if hook != HookInput {
		p.Out = "eth1"
	}
	if proto == protoTCP {
		p.TCPFlags = TCPAck
	}
	return p
}

// TestVerdict pins what the kernel cannot be asked about: what is unknown, and
// which rule is named.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name, rules string
		state       State
		want        Verdict
		rule        string
	}{
		{"policy", ":INPUT DROP\n", StateNew, Dropped, "policy DROP of INPUT"},
		{"first match", ":INPUT DROP\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -j DROP\n", StateNew, Accepted, "-A INPUT -p tcp -j ACCEPT"},
		{"a rate decides", ":INPUT DROP\n-A INPUT -m limit --limit 1/sec -j ACCEPT\n", StateNew, Unknown, "-A INPUT -m limit --limit 1/sec -j ACCEPT"},
		{"a rate does not decide", ":INPUT ACCEPT\n-A INPUT -m limit --limit 1/sec -j ACCEPT\n", StateNew, Accepted, "policy ACCEPT of INPUT"},
		{"a rate for a log", ":INPUT DROP\n-A INPUT -m limit --limit 1/sec -j LOG\n-A INPUT -j ACCEPT\n", StateNew, Accepted, "-A INPUT -j ACCEPT"},
		{"both ways through a chain", ":INPUT DROP\n:A -\n-A INPUT -m limit --limit 1/sec -j A\n-A INPUT -j ACCEPT\n-A A -j ACCEPT\n", StateNew, Accepted, "-A INPUT -j ACCEPT"},
		{"a chain that may drop", ":INPUT ACCEPT\n:A -\n-A INPUT -j A\n-A A -m quota --quota 5 -j RETURN\n-A A -j DROP\n", StateNew, Unknown, "-A A -m quota --quota 5 -j RETURN"},
		{"goto does not come back", ":INPUT DROP\n:A -\n:B -\n-A INPUT -j A\n-A INPUT -j ACCEPT\n-A A -g B\n-A A -j DROP\n", StateNew, Accepted, "-A INPUT -j ACCEPT"},
		{"an unknown match", ":INPUT ACCEPT\n-A INPUT -m frobnicate --level 5 -j DROP\n", StateNew, Unknown, "-A INPUT -m frobnicate --level 5 -j DROP"},
		{"an unknown match that cannot matter", ":INPUT ACCEPT\n-A INPUT -p udp -m frobnicate --level 5 -j DROP\n", StateNew, Accepted, "policy ACCEPT of INPUT"},
		{"a missing chain", ":INPUT ACCEPT\n-A INPUT -j NOWHERE\n", StateNew, Unknown, "-A INPUT -j NOWHERE"},
		{"a circle", ":INPUT ACCEPT\n:A -\n-A INPUT -j A\n-A A -j A\n", StateNew, Unknown, "-A A -j A"},
		{"a mark nobody set", ":INPUT ACCEPT\n-A INPUT -m mark --mark 0x1 -j DROP\n", StateNew, Unknown, "-A INPUT -m mark --mark 0x1 -j DROP"},
		{"a mark that was set", ":INPUT ACCEPT\n-A INPUT -j MARK --set-xmark 0x1/0xf\n-A INPUT -m mark --mark 0x1/0x3 -j DROP\n", StateNew, Dropped, "-A INPUT -m mark --mark 0x1/0x3 -j DROP"},
		{"a mark that may have been set", ":INPUT ACCEPT\n-A INPUT -m limit --limit 1/sec -j MARK --set-xmark 0x1/0xf\n-A INPUT -m mark --mark 0x1/0x3 -j DROP\n", StateNew, Unknown, "-A INPUT -m mark --mark 0x1/0x3 -j DROP"},
		{"a program decides", ":INPUT ACCEPT\n-A INPUT -j NFQUEUE --queue-num 0\n", StateNew, Unknown, "-A INPUT -j NFQUEUE --queue-num 0"},
		{"states that agree", ":INPUT DROP\n-A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT\n", StateNew | StateEstablished, Accepted, "-A INPUT -m state --state NEW,ESTABLISHED -j ACCEPT"},
		{"states that do not", ":INPUT DROP\n-A INPUT -m state --state NEW -j ACCEPT\n", StateNew | StateEstablished, Unknown, "-A INPUT -m state --state NEW -j ACCEPT"},
		{"a rule for the other family", ":INPUT DROP\n-A INPUT -6 -j ACCEPT\n-A INPUT -4 -p tcp -j ACCEPT\n", StateNew, Accepted, "-A INPUT -4 -p tcp -j ACCEPT"},
		{"a chain with the name of a target", ":INPUT DROP\n:TARPIT -\n-A INPUT -j TARPIT\n-A TARPIT -j ACCEPT\n", StateNew, Accepted, "-A TARPIT -j ACCEPT"},
		{"a program may mark", ":INPUT ACCEPT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n-A PREROUTING -j NFQUEUE --queue-num 0 --queue-bypass\nCOMMIT\n*filter\n-A INPUT -m mark --mark 0x1 -j DROP\n", StateNew, Unknown, "-A PREROUTING -j NFQUEUE --queue-num 0 --queue-bypass"},
		{"a mark that is computed", ":INPUT ACCEPT\n-A INPUT -j MARK --set-xmark 0x0/0xffffffff\n-A INPUT -j HMARK --hmark-tuple src --hmark-mod 8\n-A INPUT -m mark --mark 0x0 -j DROP\n", StateNew, Unknown, "-A INPUT -m mark --mark 0x0 -j DROP"},
		{"nat marks first packets alone", ":INPUT DROP\n-A INPUT -m mark --mark 0x1 -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n", StateNew, Accepted, "-A INPUT -m mark --mark 0x1 -j ACCEPT"},
		{"nat may have marked", ":INPUT DROP\n-A INPUT -m mark --mark 0x1 -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\n", StateNew | StateEstablished, Unknown, "-A INPUT -m mark --mark 0x1 -j ACCEPT"},
		{"nat's policy", ":INPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", StateNew, Dropped, "policy DROP of PREROUTING"},
		{"nat's policy is for first packets", ":INPUT ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", StateEstablished, Accepted, "-A INPUT -j ACCEPT"},
		{"nat's policy may count", ":INPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING DROP\n", StateNew | StateEstablished, Unknown, "policy DROP of PREROUTING"},
		{"a header that no packet here has", ":INPUT ACCEPT\n-A INPUT -m rt --rt-type 0 -j DROP\n-A INPUT -m rt ! --rt-type 0 -j DROP\n", StateNew, Accepted, "policy ACCEPT of INPUT"},
		{"an unknown set", ":INPUT ACCEPT\n-A INPUT -m set --match-set bad src -j DROP\n", StateNew, Unknown, "-A INPUT -m set --match-set bad src -j DROP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := parseLines(t, IPv4, "*filter\n"+tt.rules+"COMMIT\n")
			got := NewEvaluator(IPv4, []Ruleset{r}, Facts{}).Verdict(packet(HookInput, protoTCP, "10.0.0.9", "10.0.0.1", 40000, 80, tt.state))
			if got.Verdict != tt.want || got.Rule.String() != tt.rule {
				t.Errorf("%s by %q, want %s by %q", got.Verdict, got.Rule, tt.want, tt.rule)
			}
		})
	}
}

// TestRawOfTwoBackends: whose raw table comes first depends on which was made
// first, and a template keeps NOTRACK from having an effect.
func TestRawOfTwoBackends(t *testing.T) {
	raw := func(b Backend, rule string) Ruleset {
		r := parseLines(t, IPv4, "*raw\n:PREROUTING ACCEPT\n-A PREROUTING "+rule+"\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -m state --state UNTRACKED -j ACCEPT\nCOMMIT\n")
		r.Backend = b
		return r
	}
	for _, tt := range []struct {
		a, b string
		want Verdict
	}{
		{"-j CT --notrack", "-p udp -j CT --notrack", Accepted},
		{"-j CT --notrack", "-j CT --helper ftp", Unknown},
		{"-j CT --helper ftp", "-j CT --notrack", Unknown},
		{"-j CT --helper ftp", "-j LOG", Dropped},
	} {
		sets := []Ruleset{raw(NFT, tt.a), raw(Legacy, tt.b)}
		if got := NewEvaluator(IPv4, sets, Facts{}).Verdict(packet(HookInput, protoTCP, "10.0.0.9", "10.0.0.1", 40000, 80, StateNew)); got.Verdict != tt.want {
			t.Errorf("%s and %s: %s by %q, want %s", tt.a, tt.b, got.Verdict, got.Rule, tt.want)
		}
	}
}

// TestLoMarks: what raw OUTPUT marks, mangle OUTPUT may mark again before the
// packet comes in over lo.
func TestLoMarks(t *testing.T) {
	r := parseLines(t, IPv4, "*raw\n:OUTPUT ACCEPT\n-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff\nCOMMIT\n*mangle\n:OUTPUT ACCEPT\n-A OUTPUT -j MARK --set-xmark 0x2/0xffffffff\nCOMMIT\n*filter\n:INPUT ACCEPT\n-A INPUT -m mark --mark 0x1 -j DROP\nCOMMIT\n")
	p := packet(HookInput, protoTCP, "127.0.0.1", "127.0.0.1", 40000, 80, StateNew)
	p.In = "lo"
	if got := NewEvaluator(IPv4, []Ruleset{r}, Facts{}).Verdict(p); got.Verdict != Unknown {
		t.Errorf("%s by %q", got.Verdict, got.Rule)
	}
}

// TestTableTwice: of a saved file that has a table twice, the last stands.
func TestTableTwice(t *testing.T) {
	r := parseLines(t, IPv4, "*filter\n:INPUT DROP\n-A INPUT -j ACCEPT\nCOMMIT\n*filter\n:INPUT DROP\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n")
	j := newJudge(Desired{}, Live{}, IPv4, []*Ruleset{&r}, nil, nil)
	if got := j.end().Verdict(packet(HookInput, protoTCP, "10.0.0.9", "10.0.0.1", 40000, 80, StateNew)); got.Verdict != Dropped {
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
	e := NewEvaluator(IPv4, []Ruleset{parseLines(t, IPv4, text)}, Facts{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}})
	p := packet(HookInput, protoTCP, "10.9.9.9", "10.0.0.1", 4, 70, StateNew)
	if n := testing.AllocsPerRun(100, func() { e.Verdict(p) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// TestCostIsFlat holds the cost of a packet against the number of rules.
func TestCostIsFlat(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	var first float64
	for _, n := range []int{10, 100, 1000, 5000} {
		e := NewEvaluator(IPv4, []Ruleset{parseLines(t, IPv4, manyRules(r, n))}, Facts{})
		p := packet(HookInput, protoTCP, "10.9.9.9", "10.0.0.1", 4, 61000, StateNew)
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
		tb := Table{Name: "filter", Chains: []ChainDecl{{Name: "INPUT", Policy: "ACCEPT"}, {Name: "OUTPUT", Policy: "DROP"}, {Name: "A", Policy: "-"}, {Name: "B", Policy: "-"}}}
		for line := range strings.Lines(text) {
			w := strings.Fields(line)
			if len(w) > 1 && w[0] == "-A" {
				tb.Rules = append(tb.Rules, Rule{Chain: w[1], Words: w[2:], Text: strings.Join(w[2:], " ")})
			}
		}
		raw := tb
		raw.Name = "raw"
		raw.Chains = []ChainDecl{{Name: "PREROUTING", Policy: "ACCEPT"}, {Name: "INPUT", Policy: "-"}, {Name: "A", Policy: "-"}}
		rules := Ruleset{Family: IPv4, Backend: Legacy, Primary: true, Tables: []Table{tb, raw}}
		e := NewEvaluator(IPv4, []Ruleset{rules}, Facts{})
		// The same rules with their words given anew.
		again := NewEvaluator(IPv4, []Ruleset{rules}, Facts{})
		for _, hook := range []Hook{HookInput, HookForward, HookOutput} {
			p := packet(hook, proto, "10.0.0.9", "10.0.0.1", 40000, port, 0)
			a, b := e.Verdict(p), again.Verdict(p)
			if a.Verdict != b.Verdict || a.Rule.String() != b.Rule.String() {
				t.Fatalf("%v and %v", a, b)
			}
			if (a.Verdict == Unknown) && a.Rule == nil {
				t.Fatalf("unknown without a rule")
			}
		}
	})
}
