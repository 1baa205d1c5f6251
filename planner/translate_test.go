package planner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// asked is a number that a variable asks for.
func asked(t testing.TB, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// statefulRuleset is a filter table as people write it, with rules on state of
// every kind that has twins.
func statefulRuleset(r *rand.Rand, six bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:INPUT %s\n:FORWARD %s\n:OUTPUT %s\n:svc -\n:guard -\n", pick(r, "DROP", "ACCEPT"), pick(r, "DROP", "ACCEPT"), pick(r, "DROP", "ACCEPT", "ACCEPT"))
	match := func() string { return pick(r, "-m state --state ", "-m conntrack --ctstate ") }
	source := func() string {
		if six {
			return pick(r, "", "", "-s 2001:db8:1::/48 ", "! -s 2001:db8:1::/48 ", "-s 2001:db8::7/128 ")
		}
		return pick(r, "", "", "-s 10.0.0.0/8 ", "! -s 10.0.0.0/8 ", "-s 203.0.113.7/32 ")
	}
	icmp, icmpType := "icmp", "-m icmp --icmp-type 8 "
	if six {
		icmp, icmpType = "ipv6-icmp", "-m icmp6 --icmpv6-type 128 "
	}
	for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT", "svc", "guard"} {
		in := ""
		if chain != "OUTPUT" && r.IntN(3) == 0 {
			in = "-i eth0 "
		}
		jumps := []string{"ACCEPT", "DROP", "ACCEPT", "REJECT", "RETURN", "LOG"}
		if len(chain) > 5 || chain == "INPUT" {
			jumps = append(jumps, "svc", "guard")
		}
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, "-A %s %s%s%s -j ACCEPT\n", chain, pick(r, "", "", "-p tcp "), match(), pick(r, "RELATED,ESTABLISHED", "ESTABLISHED", "NEW,RELATED,ESTABLISHED", "NEW,ESTABLISHED"))
		}
		for range r.IntN(6) {
			target := pick(r, jumps...)
			if chain == "svc" && target == "svc" || chain == "guard" {
				target = pick(r, "ACCEPT", "DROP", "RETURN")
			}
			var m string
			switch r.IntN(9) {
			case 0:
				m = match() + "INVALID"
			case 1:
				m = fmt.Sprintf("%s-p tcp -m tcp --dport %d %s%s", source(), pick(r, 22, 80, 443, 5432), match(), pick(r, "NEW", "NEW,ESTABLISHED", "ESTABLISHED"))
			case 2:
				m = fmt.Sprintf("%s%s-p tcp -m multiport --dports 22,80,8000:8010 %sNEW", source(), in, match())
			case 3:
				m = fmt.Sprintf("%s-p udp -m udp --dport %d %s%s", source(), pick(r, 53, 123), match(), pick(r, "NEW", "NEW,ESTABLISHED", "ESTABLISHED"))
			case 4:
				m = fmt.Sprintf("-p %s %s%s%s", icmp, pick(r, "", icmpType), match(), pick(r, "NEW", "RELATED", "NEW,RELATED,ESTABLISHED", "ESTABLISHED"))
			case 5:
				m = fmt.Sprintf("-p tcp -m tcp %s--tcp-flags FIN,SYN,RST,ACK SYN %sNEW", pick(r, "! ", ""), match())
			case 6:
				m = fmt.Sprintf("%s-p tcp -m conntrack ! --ctstate %s", in, pick(r, "INVALID", "RELATED,ESTABLISHED", "NEW"))
			case 7:
				m = source() + "-p tcp"
			case 8:
				m = fmt.Sprintf("-p tcp -m tcp --dport 22 %sNEW -m limit --limit 5/min", match())
			}
			fmt.Fprintf(&b, "-A %s %s -j %s\n", chain, m, target)
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// untracking declares that a protocol, or all, leaves tracking.
func untracking(f host.Family, proto string) declared.Desired {
	rule := strings.TrimSpace(proto + " -j CT --notrack")
	prefix := ""
	if f == host.IPv6 {
		prefix = "6:"
	}
	d := declaring(prefix+"raw PREROUTING "+rule, prefix+"raw OUTPUT "+rule)
	d.StatefulRules, d.AllowRisk, d.Families = declared.TranslateStateful, declared.Risks, []host.Family{f}
	return d
}

// translated is a host with the plan for it carried out.
func translated(t testing.TB, d declared.Desired, before host.Ruleset) (host.Ruleset, Plan) {
	t.Helper()
	p := Diff(d, testHost(before))
	if p.Blocked() {
		t.Fatalf("blocked: %+v", p.Blocks)
	}
	k := newKernel(before)
	for _, s := range rulesSections(p) {
		k.run(t, s)
	}
	return quotedLines(t, before.Family, k.text()), p
}

// quotedLines is parseLines with the quotes of comments read.
func quotedLines(t testing.TB, f host.Family, text string) host.Ruleset {
	r := parseLines(t, f, text)
	for i := range r.Tables {
		rules := r.Tables[i].Rules
		for k := range rules {
			rules[k].Text = strings.TrimSpace(strings.TrimPrefix(strings.Split(text, "\n")[rules[k].Line-1], "-A "+rules[k].Chain))
			rules[k].Words = xtables.Words(rules[k].Text)
		}
	}
	return r
}

// A talk is the packets of a conversation in order; one that is refused ends it.
type talk []verdict.Packet

// randomTalk is a conversation that keeps to its protocol, to, from or through the host.
func randomTalk(r *rand.Rand, six bool) talk {
	hosts, peers := []string{"192.0.2.1"}, []string{"10.1.2.3", "203.0.113.7", "198.51.100.9"}
	if six {
		hosts, peers = []string{"2001:db8:ff::1"}, []string{"2001:db8:1::3", "2001:db8::7", "2001:db8:2::9"}
	}
	t := host.Tuple{
		Src: netip.MustParseAddr(pick(r, peers...)), Dst: netip.MustParseAddr(pick(r, hosts...)),
		SrcPort: uint16(32768 + r.IntN(28000)), DstPort: pick(r, uint16(22), 80, 443, 5432, 53, 123, 8003, uint16(1+r.IntN(65535))),
	}
	way := pick(r, verdict.HookInput, verdict.HookOutput, verdict.HookForward)
	in, out := pick(r, "eth0", "eth1"), "eth1"
	if in == "eth1" {
		out = "eth0"
	}
	if way == verdict.HookOutput {
		t.Src, t.Dst = t.Dst, t.Src
	}
	turned := host.Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort}
	packet := func(back bool, state verdict.State) verdict.Packet {
		p := verdict.Packet{Hook: way, State: state, Tuple: t, Orig: t, Reply: turned, IsReply: back, Known: verdict.KnownReply | verdict.KnownTuples | verdict.KnownStatus | verdict.KnownUnbridged}
		if back {
			p.Tuple = turned
			switch way {
			case verdict.HookInput:
				p.Hook = verdict.HookOutput
			case verdict.HookOutput:
				p.Hook = verdict.HookInput
			}
		}
		switch p.Hook {
		case verdict.HookInput:
			p.In = in
		case verdict.HookOutput:
			p.Out = in
		case verdict.HookForward:
			if p.In, p.Out = in, out; back {
				p.In, p.Out = out, in
			}
		}
		return p
	}
	const ack = verdict.TCPAck
	var list talk
	tcp := func(back bool, state verdict.State, flags uint8) {
		p := packet(back, state)
		p.Protocol, p.TCPFlags = protocol.TCP, flags
		list = append(list, p)
	}
	plain := func(proto uint8, back bool, state verdict.State, typ uint8) {
		p := packet(back, state)
		p.Protocol, p.ICMPType = proto, typ
		list = append(list, p)
	}
	request, answer, errors, icmp := uint8(8), uint8(0), []uint8{3, 5, 11, 12}, uint8(protocol.ICMP)
	if six {
		request, answer, errors, icmp = 128, 129, []uint8{1, 2, 3, 4}, protocol.ICMPv6
	}
	const est = verdict.StateEstablished
	switch r.IntN(6) {
	case 0, 1, 2:
		tcp(false, verdict.StateNew, verdict.TCPSyn)
		tcp(true, est, verdict.TCPSyn|ack)
		tcp(false, est, ack)
		for range r.IntN(3) {
			tcp(r.IntN(2) == 0, est, ack|pick(r, uint8(0), verdict.TCPPsh, verdict.TCPUrg))
		}
		tcp(r.IntN(2) == 0, est, pick(r, verdict.TCPFin|ack, uint8(verdict.TCPRst), verdict.TCPRst|ack))
		plain(icmp, r.IntN(2) == 0, verdict.StateRelated, pick(r, errors...))
	case 3:
		plain(protocol.UDP, false, verdict.StateNew, 0)
		plain(protocol.UDP, true, est, 0)
		plain(protocol.UDP, false, est, 0)
		plain(icmp, true, verdict.StateRelated, pick(r, errors...))
	case 4:
		plain(icmp, false, verdict.StateNew, request)
		plain(icmp, true, est, answer)
		plain(icmp, false, est, request)
	default:
		proto := pick(r, uint8(protocol.GRE), 50, protocol.SCTP)
		plain(proto, false, verdict.StateNew, 0)
		plain(proto, true, est, 0)
	}
	return list
}

// fate is what becomes of a conversation: how many packets of it pass, and what
// stops it.
func fate(e *verdict.Evaluator, list talk) (int, verdict.Decision) {
	for i := range list {
		if d := e.Verdict(&list[i]); d.Verdict != verdict.Accepted {
			return i, d
		}
	}
	return len(list), verdict.Decision{Verdict: verdict.Accepted}
}

// TestTranslatedIsExact holds rulesets whose twins are all called exact against
// many conversations: with tracking before, and without it behind. CTPLAN_RULESETS
// asks for more of them, CTPLAN_CONVERSATIONS for more of these with each.
func TestTranslatedIsExact(t *testing.T) {
	rulesets, talks := asked(t, "CTPLAN_RULESETS", 300), asked(t, "CTPLAN_CONVERSATIONS", 300)
	exact, twins := 0, 0
	for seed := range uint64(rulesets) {
		r := rand.New(rand.NewPCG(seed, 26))
		f := pick(r, host.Families...)
		before := parseLines(t, f, statefulRuleset(r, f == host.IPv6))
		d := untracking(f, pick(r, "", "-p tcp", "-p tcp"))
		after, p := translated(t, d, before)
		grades := map[string]int{}
		for _, c := range p.Changes {
			if c, ok := c.(*change.RulesChange); ok {
				for _, w := range c.Twins {
					grades[w.Grade]++
					twins++
				}
			}
		}
		again := Diff(d, testHost(after))
		if len(again.Changes) > 0 {
			t.Fatalf("ruleset %d: a second plan changes %q\n%s", seed, again.Changes[0].(*change.RulesChange).After, strings.Join(again.Changes[0].(*change.RulesChange).Before, "\n"))
		}
		if len(grades) > 1 || grades["exact"] == 0 {
			continue
		}
		exact++
		was, is := xt.NewEvaluator(f, []host.Ruleset{before}, verdict.Facts{}), xt.NewEvaluator(f, []host.Ruleset{after}, verdict.Facts{})
		for range talks {
			list := randomTalk(r, f == host.IPv6)
			n, a := fate(was, list)
			if d.Chains[0].Rules[0].Text != "-j CT --notrack" && list[0].Protocol == protocol.TCP {
				for i := range list { // ICMP is tracked, and knows nothing of what its errors are about
					if list[i].State == verdict.StateRelated {
						list[i].State = verdict.StateInvalid
					}
				}
			}
			m, b := fate(is, list)
			if n != m || a.Verdict != b.Verdict {
				t.Fatalf("ruleset %d, %v: %d packets, then %s by %s; translated %d, then %s by %s\nof %+v\n%s\n%s", seed, d.Chains[0].Rules[0].Text, n, a.Verdict, a.Rule, m, b.Verdict, b.Rule,
					list[min(n, m, len(list)-1)], newKernel(before).text(), newKernel(after).text())
			}
		}
	}
	t.Logf("%d of %d rulesets are exact, of %d rules on state", exact, rulesets, twins)
	if exact < rulesets/6 {
		t.Errorf("only %d of %d rulesets were judged", exact, rulesets)
	}
}

// TestTranslateSamples shows what becomes of rules as ufw, Shorewall, firewalld,
// fail2ban and people write them, and that the way there and back by another
// configuration ends where it began.
func TestTranslateSamples(t *testing.T) {
	files, err := filepath.Glob("testdata/translate/*.rules")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d rulesets, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".rules")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			before := quotedLines(t, host.IPv4, string(text))
			var out strings.Builder
			for _, proto := range []string{"-p tcp", ""} {
				d := untracking(host.IPv4, proto)
				after, p := translated(t, d, before)
				fmt.Fprintf(&out, "notrack %s\n", words.Or(proto, "all"))
				for _, w := range p.Changes[0].(*change.RulesChange).Twins {
					fmt.Fprintf(&out, "\n- %s\n", w.Rule)
					for _, twin := range w.Twins {
						fmt.Fprintf(&out, "+ %s\n", twin)
					}
					if w.Stays {
						fmt.Fprintf(&out, "+ %s\n", w.Rule)
					}
					fmt.Fprintf(&out, "  %s\n", strings.Join(append([]string{w.Grade}, w.Why...), ": "))
				}
				out.WriteString("\n")
				if again := Diff(d, testHost(after)); !again.Empty() {
					t.Errorf("a second plan changes %v", again.Changes[0].Meta())
				}
				alike(t, before, after, proto)
				tuned := d
				tuned.Mode, tuned.Chains, tuned.Max, tuned.Hashsize = declared.Tuned, nil, &declared.Setting{Value: 1000}, &declared.Setting{Value: 512}
				back, _ := translated(t, tuned, after)
				if got, want := meaning(back), meaning(before); got != want {
					t.Errorf("back from %q:\n%s\nwant:\n%s", proto, got, want)
				}
			}
			golden.Check(t, "translate/"+name+".txt", []byte(out.String()))
		})
	}
}

// alike holds conversations of TCP against rules before and after.
func alike(t *testing.T, before, after host.Ruleset, proto string) {
	t.Helper()
	r := rand.New(rand.NewPCG(26, 26))
	facts := verdict.Facts{Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}
	was, is := xt.NewEvaluator(host.IPv4, []host.Ruleset{before}, facts), xt.NewEvaluator(host.IPv4, []host.Ruleset{after}, facts)
	for range 20_000 {
		list := randomTalk(r, false)
		if list[0].Protocol != protocol.TCP {
			continue
		}
		n, a := fate(was, list)
		m, b := fate(is, list[:len(list)-1])
		if min(n, len(list)-1) != m || m < len(list)-1 && a.Verdict != b.Verdict {
			t.Fatalf("%q: %d packets, then %s by %s; translated %d, then %s by %s\nof %+v", proto, n, a.Verdict, a.Rule, m, b.Verdict, b.Rule, list[min(n, m)])
		}
	}
}

// meaning is the rules of the filter table by what they mean.
func meaning(r host.Ruleset) string {
	var lines []string
	for _, s := range r.Sections("filter") {
		for i := range s.Rules {
			lines = append(lines, s.Rules[i].Chain+" "+strings.ReplaceAll(xtables.Key(s.Rules[i].Words), "\x00", " "))
		}
	}
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(strings.Fields(a)[0], strings.Fields(b)[0]) })
	return strings.Join(lines, "\n")
}
