package differential

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/providers/iptables"
)

// render prints a ruleset again from what was parsed of it.
func render(set host.Ruleset) string {
	return printWith(set, func(r host.Rule) []string { return r.Words })
}

func printWith(set host.Ruleset, words func(host.Rule) []string) string {
	var b strings.Builder
	for _, t := range set.Tables {
		b.WriteString("*" + t.Name + "\n")
		for _, c := range t.Chains {
			b.WriteString(":" + c.Name + " " + c.Policy + " [0:0]\n")
		}
		for _, r := range t.Rules {
			b.WriteString("-A " + r.Chain)
			for _, w := range words(r) {
				b.WriteString(" " + iptables.Quote(w))
			}
			b.WriteString("\n")
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// Other words for the same options (iptables(8)).
var longer = map[string][]string{
	"-s": {"--source", "--src"}, "-d": {"--destination", "--dst"}, "-i": {"--in-interface"}, "-o": {"--out-interface"}, "-p": {"--protocol", "--proto"},
	"-j": {"--jump"}, "-g": {"--goto"}, "-m": {"--match"}, "--sport": {"--source-port"}, "--dport": {"--destination-port"},
	"--sports": {"--source-ports"}, "--dports": {"--destination-ports"},
}

// respell writes a generated ruleset in other words: options by other names,
// matches in another order, states by the other module and in another order,
// protocols by number, NOTRACK by its other name. With old, the negation
// stands where only old versions of iptables take it.
func respell(r *rand.Rand, set host.Ruleset, old bool) string {
	coin := func() bool { return r.IntN(2) == 0 }
	return printWith(set, func(rule host.Rule) []string {
		// What stands ahead of the first -m, each match, and the target.
		groups, target := [][]string{nil}, []string(nil)
		for i := 0; i < len(rule.Words); i++ {
			switch w := rule.Words[i]; {
			case w == "-j" || w == "-g":
				target = slices.Clone(rule.Words[i:])
				i = len(rule.Words)
			case w == "-m":
				groups = append(groups, []string{w, rule.Words[i+1]})
				i++
			default:
				groups[len(groups)-1] = append(groups[len(groups)-1], w)
			}
		}
		if slices.Equal(target, []string{"-j", "CT", "--notrack"}) && coin() {
			target = []string{"-j", "NOTRACK"}
		}
		matches := groups[1:]
		r.Shuffle(len(matches), func(i, k int) { matches[i], matches[k] = matches[k], matches[i] })
		states := 0
		for _, g := range matches {
			if g[1] == "state" || g[1] == "conntrack" {
				states++
			}
		}
		var out []string
		for _, g := range groups {
			if len(g) > 2 && g[0] == "-m" && g[1] == "state" && states == 1 && coin() {
				g = slices.Clone(g)
				g[1] = "conntrack"
				g[slices.Index(g, "--state")] = "--ctstate"
			}
			for i := 0; i < len(g); i++ {
				w, value := g[i], ""
				if i+1 < len(g) {
					value = g[i+1]
				}
				switch {
				case w == "!" && old && i+2 < len(g) && slices.Contains([]string{"-s", "-d", "-i", "-o", "-p"}, value):
					out = append(out, value, "!")
					i++
				case (w == "--state" || w == "--ctstate") && value != "":
					list := strings.Split(value, ",")
					r.Shuffle(len(list), func(i, k int) { list[i], list[k] = list[k], list[i] })
					out = append(out, w, strings.Join(list, ","))
					i++
				case w == "-p" && value == "tcp" && coin():
					out = append(out, w, "6")
					i++
				case w == "--comment": // says what it likes, as an option too
					out = append(out, w, value)
					i++
				case len(longer[w]) > 0 && coin():
					out = append(out, longer[w][r.IntN(len(longer[w]))])
				default:
					out = append(out, w)
				}
			}
		}
		return append(out, target...)
	})
}

// TestOtherWords: no verdict changes when a ruleset is written anew.
// TestAgainstKernel holds the same for every ruleset that the kernel is asked about.
func TestOtherWords(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 11))
	l := newLab(t, r)
	verdicts := map[verdict.Verdict]int{}
	changed := 0
	for n := range 500 {
		f, b := host.Families[n%2], []host.Backend{host.NFT, host.Legacy}[n/2%2]
		g := &generator{Rand: r, family: f, vague: 6}
		text := g.ruleset()
		set := l.parse(b, f, text)
		spelled := respell(r, set, true)
		if spelled != text {
			changed++
		}
		again := l.parse(b, f, spelled)
		e := l.evaluator(set)
		for _, o := range []*verdict.Evaluator{l.evaluator(l.parse(b, f, render(set))), l.evaluator(again), l.evaluator(l.parse(b, f, render(again)))} {
			for range 30 {
				p, _ := l.random(f)
				want, got := e.Verdict(&p), o.Verdict(&p)
				verdicts[want.Verdict]++
				if want.Verdict != got.Verdict || want.Untracked != got.Untracked {
					t.Fatalf("%s %s: %s by %q, and in other words %s by %q\n%+v\n%s\n%s", b, f, want.Verdict, want.Rule, got.Verdict, got.Rule, p, text, spelled)
				}
			}
		}
	}
	if changed < 450 || verdicts[verdict.Accepted] < 5000 || verdicts[verdict.Dropped] < 5000 {
		t.Errorf("%d rulesets in other words, verdicts %v: the test says little", changed, verdicts)
	}
}

// FuzzRendering: what parses and is printed again parses to the same rules,
// which say the same of every packet.
func FuzzRendering(f *testing.F) {
	f.Add("*0\n-A!0\nCOMMIT", uint64(0))
	for seed := range uint64(12) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), family: host.Families[seed%2], vague: 60}
		text := "*raw\n-A PREROUTING " + g.matches("PREROUTING") + " -j CT --notrack\nCOMMIT\n*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:A -\n"
		for _, chain := range []string{"INPUT", "FORWARD", "OUTPUT", "A"} {
			text += "-A " + chain + " " + g.matches("POSTROUTING") + " " + g.target("filter", chain, "A") + "\n"
		}
		f.Add(text+"COMMIT\n", seed)
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		if len(text) > 1<<12 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 2))
		l := newLab(t, r)
		family, backend := host.Families[seed%2], []host.Backend{host.NFT, host.Legacy}[seed/2%2]
		set, err := iptables.Parse(family, text)
		if err != nil {
			return
		}
		set.Backend, set.Primary = backend, true
		printed := render(set)
		again, err := iptables.Parse(family, printed)
		if err != nil {
			t.Fatalf("what was printed does not parse: %v\n%q\n%q", err, text, printed)
		}
		again.Backend, again.Primary = backend, true
		if twice := render(again); twice != printed {
			t.Fatalf("printed again it differs:\n%q\n%q", printed, twice)
		}
		e, o := l.evaluator(set), l.evaluator(again)
		for range 20 {
			p, _ := l.random(family)
			if want, got := e.Verdict(&p), o.Verdict(&p); want.Verdict != got.Verdict || want.Untracked != got.Untracked {
				t.Fatalf("%s by %q, printed again %s by %q\n%+v\n%q\n%q", want.Verdict, want.Rule, got.Verdict, got.Rule, p, text, printed)
			}
		}
	})
}

// coverage counts what was generated, by backend, family and built-in chain.
type coverage map[string]int

func (c coverage) note(b host.Backend, f host.Family, set host.Ruleset) {
	for _, t := range set.Tables {
		for _, d := range t.Chains {
			if t.Name == "filter" && d.Policy != "-" {
				c[fmt.Sprintf("%s %s %s policy %s", b, f, d.Name, d.Policy)]++
			}
		}
		for _, r := range t.Rules {
			hook, depth, _ := strings.Cut(r.Chain, "-")
			add := func(what string) { c[fmt.Sprintf("%s %s %s %s", b, f, hook, what)]++ }
			if depth == "3" {
				add("three deep")
			}
			match := "address"
			not := false
			for i, w := range r.Words {
				switch {
				case i > 0 && (r.Words[i-1] == "--comment"):
				case w == "-m" && i+1 < len(r.Words):
					match = r.Words[i+1]
					add(match)
					if match == "hashlimit" && slices.Contains(r.Words, "few") {
						add("hashlimit that never matches")
					} else if match == "hashlimit" && slices.Contains(r.Words, "many") || match == "limit" && slices.Contains(r.Words, "10000/sec") {
						add(match + " that always matches")
					}
				case w == "!":
					not = true
				case not:
					not = false
					switch w {
					case "-s", "-d", "-i", "-o", "-p":
						match = w
					}
					add("! " + match)
				case w == "-g":
					add("goto")
				case i > 0 && r.Words[i-1] == "-j" && (w == "RETURN" || w == "CT" || strings.Contains(w, hook+"-")):
					add(strings.SplitN(w, "-", 2)[0])
				}
			}
		}
	}
}

// missing is what every proof must have had and this one had not.
func (c coverage) missing() (list []string) {
	for _, b := range []host.Backend{host.NFT, host.Legacy} {
		for _, f := range host.Families {
			icmp := map[host.Family]string{host.IPv4: "icmp", host.IPv6: "icmp6"}[f]
			need := func(hook string, what ...string) {
				for _, w := range what {
					if key := fmt.Sprintf("%s %s %s %s", b, f, hook, w); c[key] == 0 {
						list = append(list, key)
					}
				}
			}
			for _, hook := range []string{"INPUT", "FORWARD", "OUTPUT"} {
				need(hook, "policy ACCEPT", "policy DROP", "three deep", "goto", "RETURN", hook,
					"tcp", "! tcp", "udp", "! udp", icmp, "! "+icmp, "multiport", "! multiport", "state", "! state", "conntrack", "! conntrack", "comment", "iprange", "! iprange",
					"addrtype", "! addrtype", "limit", "limit that always matches", "hashlimit", "hashlimit that always matches", "hashlimit that never matches",
					"mark", "! mark", "connmark", "! connmark", "set", "! set", "pkttype", "! pkttype", "length", "! length", "recent", "! recent", "! -s", "! -d", "! -p")
			}
			for _, hook := range []string{"INPUT", "FORWARD"} {
				need(hook, "mac", "! mac", "physdev", "! physdev", "! -i")
			}
			need("OUTPUT", "owner", "! owner", "! -o", "CT")
			need("PREROUTING", "CT")
		}
	}
	return list
}
