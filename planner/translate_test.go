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

// inexact are the kinds of conversations that grades of a plan speak of, as shapes
// name them, and "errors" for errors of ICMP.
func inexact(t testing.TB, p Plan) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	read := func(text string) {
		known := false
		for _, of := range []struct {
			text    string
			classes []string
		}{
			{"of TCP", []string{"tcp"}}, {"of UDP", []string{"udp"}}, {"pings", []string{"icmp"}}, {"errors of ICMP", []string{"errors"}}, {"neighbour discovery", nil},
			{"protocols other than TCP, UDP and ICMP", []string{"other"}}, {"every packet but those of TCP", []string{"udp", "icmp", "other"}}, {"show no sign of being one", []string{"udp", "other"}},
		} {
			if strings.Contains(text, of.text) {
				known = true
				for _, c := range of.classes {
					out[c] = true
				}
			}
		}
		if !known {
			t.Fatalf("not read: %s", text)
		}
	}
	for _, c := range p.Changes {
		if c, ok := c.(*change.RulesChange); ok {
			for _, w := range c.Twins {
				if w.Grade != "exact" {
					read(strings.Join(w.Why, "; "))
				}
			}
		}
	}
	for _, w := range p.Warnings {
		if strings.Contains(w.Text, "it stays, since it asks for what is untracked itself") {
			read(w.Text)
		}
	}
	return out
}

// coverage counts what twins were held against.
type coverage struct{ rulesets, conversations, classes, again int }

// exactly holds conversations against rules before and after, but for those that
// the plan does not call exact. Of one class one conversation is judged, and others
// again now and then, which shows that the classes are none too wide.
func exactly(t testing.TB, r *rand.Rand, d declared.Desired, p Plan, before, after host.Ruleset, n int, sum *coverage) {
	t.Helper()
	f := before.Family
	facts := verdict.Facts{Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(localAddress[f]), 24)}}
	was, is := xt.NewEvaluator(f, []host.Ruleset{before}, facts), xt.NewEvaluator(f, []host.Ruleset{after}, facts)
	c, skip := conversationsOf(r, f, before, after), inexact(t, p)
	everything := d.Chains[0].Rules[0].Text == "-j CT --notrack"
	judged := map[class]bool{}
	sum.rulesets++
	for i := range n {
		v := c.draw(r)
		s := c.shapes[v.shape].class
		if skip[s] {
			continue
		}
		sum.conversations++
		k := c.class(v)
		switch {
		case !judged[k]:
			judged[k] = true
			sum.classes++
		case i%1000 == 0:
			sum.again++
		default:
			continue
		}
		list := c.packets(v)
		if last := len(list) - 1; skip["errors"] && list[last].State == verdict.StateRelated {
			list = list[:last]
		}
		x, a := fate(was, list)
		if last := len(list) - 1; !everything && s == "tcp" && list[last].State == verdict.StateRelated {
			list[last].State = verdict.StateInvalid // ICMP is tracked, and knows nothing of what its errors are about
		}
		if y, b := fate(is, list); x != y || a.Verdict != b.Verdict {
			t.Fatalf("%v: %d packets, then %s by %s; translated %d, then %s by %s\nof %+v\n%s\n%s", d.Chains[0].Rules[0].Text, x, a.Verdict, a.Rule, y, b.Verdict, b.Rule,
				list[min(x, y, len(list)-1)], newKernel(before).text(), newKernel(after).text())
		}
	}
}

// TestTranslatedIsExact holds rulesets whose rules on state have twins against many
// conversations, of all kinds that the plan calls exact: with tracking before, and
// without it behind. CTPLAN_RULESETS asks for more of them, CTPLAN_CONVERSATIONS for
// more of these with each.
func TestTranslatedIsExact(t *testing.T) {
	rulesets, talks := asked(t, "CTPLAN_RULESETS", 300), asked(t, "CTPLAN_CONVERSATIONS", 300)
	twins := map[string]int{}
	whole := 0
	var sum coverage
	for seed := range uint64(rulesets) {
		r := rand.New(rand.NewPCG(seed, 26))
		f := pick(r, host.Families...)
		before := parseLines(t, f, statefulRuleset(r, f == host.IPv6))
		d := untracking(f, pick(r, "", "-p tcp", "-p tcp"))
		after, p := translated(t, d, before)
		exact := true
		for _, c := range p.Changes {
			if c, ok := c.(*change.RulesChange); ok {
				for _, w := range c.Twins {
					twins[w.Grade]++
					exact = exact && w.Grade == "exact"
				}
			}
		}
		if exact {
			whole++
		}
		again := Diff(d, testHost(after))
		if len(again.Changes) > 0 {
			t.Fatalf("ruleset %d: a second plan changes %q\n%s", seed, again.Changes[0].(*change.RulesChange).After, strings.Join(again.Changes[0].(*change.RulesChange).Before, "\n"))
		}
		exactly(t, r, d, p, before, after, talks, &sum)
	}
	t.Logf("%d of %d rulesets are exact as a whole, their rules on state %v; of %d conversations judged %d, one of each class, and %d again", whole, rulesets, twins, sum.conversations, sum.classes, sum.again)
	if whole < rulesets/6 || sum.conversations < rulesets*talks/3 {
		t.Errorf("%d of %d rulesets are exact, and %d conversations were drawn", whole, rulesets, sum.conversations)
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
	talks := asked(t, "CTPLAN_CONVERSATIONS", 20_000)
	var sum coverage
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
				exactly(t, rand.New(rand.NewPCG(26, 26)), d, p, before, after, talks, &sum)
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
	t.Logf("of %d conversations judged %d, one of each class, and %d again", sum.conversations, sum.classes, sum.again)
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
