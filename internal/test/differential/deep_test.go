package differential

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/planner"
)

// The kernel follows 16 jumps (NFT_JUMP_STACK_SIZE in
// include/net/netfilter/nf_tables.h).
const deepest = 14

// deep writes a ruleset of at least n rules whose chains lead fourteen deep:
// most rules are narrow, so that packets come far.
func (g *generator) deep(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n")
	hooks := []string{"INPUT", "FORWARD", "OUTPUT"}
	for _, h := range hooks {
		fmt.Fprintf(&b, ":%s %s [0:0]\n", h, pick(g, "ACCEPT", "DROP"))
	}
	name := func(hook string, depth int) string {
		if depth == 0 {
			return hook
		}
		return fmt.Sprintf("%s-%d", hook, depth)
	}
	for _, h := range hooks {
		for d := 1; d <= deepest; d++ {
			fmt.Fprintf(&b, ":%s - [0:0]\n", name(h, d))
		}
	}
	each := n/len(hooks)/(deepest+1) + 1
	for _, h := range hooks {
		for d := range deepest + 1 {
			for i := range each {
				m := ""
				for m == "" || !strings.Contains(m, "-s ") && !strings.Contains(m, "-d ") && !strings.Contains(m, "port") {
					m = g.matches(h)
				}
				target := pick(g, "", "-j MARK --set-xmark 0x1/0x1", "-j MARK --set-xmark 0x2/0x3")
				if g.IntN(40) == 0 {
					target = g.target("filter", h, "")
				}
				switch {
				case i == each/2 && d < deepest: // one rule of each chain leads on
					m, target = "", pick(g, "-j ", "-j ", "-j ", "-g ")+name(h, d+1)
				case i == each-1 && d%4 == 2:
					m, target = pick(g, "-p tcp", "-p udp", "-m mark --mark 0x1/0x1", "-s "+g.prefix()), pick(g, "-j ACCEPT", "-j DROP")
				}
				rule := m + " " + target
				if !strings.Contains(m, `"`) {
					rule = strings.Join(strings.Fields(rule), " ")
				}
				fmt.Fprintf(&b, "-A %s %s\n", name(h, d), strings.TrimSpace(rule))
			}
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

var comments = regexp.MustCompile(`(?m)^#.*\n`)
var chainCounters = regexp.MustCompile(`(?m)^(:\S+ \S+) \[\d+:\d+\]$`)

// bare is what iptables-save prints, without the time and the packets.
func (l *lab) bare(f planner.Family) string {
	return chainCounters.ReplaceAllString(comments.ReplaceAllString(l.save(f), ""), "$1")
}

// TestFiveThousandRules loads a ruleset of that size with deep chains: every
// rule parses, prints again byte for byte as iptables-save has printed it,
// loads again as the same, and the evaluator says of packets what the kernel
// does.
func TestFiveThousandRules(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		const rules, packets = 5000, 600
		r := rand.New(rand.NewPCG(3, 14))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		for i, b := range []planner.Backend{planner.NFT, planner.Legacy} {
			ns.Use(b)
			for _, f := range planner.Families {
				l.load(f, "*mangle\n:POSTROUTING ACCEPT\n-A POSTROUTING -m conntrack --ctstate NEW\nCOMMIT\n") // tracking stays on
			}
			if i == 0 {
				l.establish()
			}
			for _, f := range planner.Families {
				g := &generator{Rand: r, family: f}
				l.load(f, g.deep(rules))
				saved := l.bare(f)
				set := l.parse(b, f, saved)
				printed, n := "", 0
				for _, table := range set.Tables {
					n += len(table.Rules)
					printed += "*" + table.Name + "\n" + strings.Join(planner.Model(set, table.Name).Lines(), "\n") + "\nCOMMIT\n"
				}
				if n < rules {
					t.Fatalf("%d rules parsed", n)
				}
				if diff := textdiff.Unified("iptables-save", "printed again", saved, printed, 1); diff != "" {
					t.Fatalf("%s %s:\n%s", b, f, diff)
				}
				// The same from the words of each rule, which the kernel then judges.
				l.load(f, render(set))
				if again := l.bare(f); again != saved {
					t.Fatalf("%s %s, loaded again:\n%s", b, f, textdiff.Unified("before", "after", saved, again, 1))
				}
				e := l.evaluator(set)
				depths, unknown, agree := map[string]int{}, 0, 0
				for range packets / 30 {
					probes := map[uint32]*probe{}
					for range 30 {
						q := l.probe(f)
						q.decide(e)
						probes[q.id] = q
					}
					l.collect(probes)
					for _, q := range probes {
						if q.decision.Verdict == planner.Unknown {
							unknown++
							continue
						}
						if q.decision.Verdict == planner.Accepted && !q.seen {
							l.again(q)
						}
						if q.seen != (q.decision.Verdict == planner.Accepted) {
							t.Fatalf("%s %s: %s by %q, but arrived: %v\n%+v", b, f, q.decision.Verdict, q.decision.Rule, q.seen, q.packets)
						}
						agree++
						_, depth, _ := strings.Cut(q.decision.Rule.Chain, "-")
						depths[depth]++
					}
				}
				fmt.Printf("%s %s: %d rules, %d packets as the kernel decides, %d unknown, decided by chains so deep: %v\n", b, f, n, agree, unknown, depths)
				if unknown*20 > packets || len(depths) < 8 {
					t.Errorf("%d unknown, decided at %d depths: the test says little", unknown, len(depths))
				}
				l.load(f, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")
			}
		}
	})
}
