package differential

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// draws is how many rulesets to make up, and where the generator begins.
func draws(rulesets int) (total int, seed uint64) {
	total, seed = rulesets, 1
	if testing.Short() {
		total = 200
	}
	if n, err := strconv.Atoi(os.Getenv("CTPLAN_RULESETS")); err == nil {
		total = n
	}
	if n, err := strconv.ParseUint(os.Getenv("CTPLAN_SEED"), 10, 64); err == nil {
		seed = n
	}
	return total, seed
}

// TestAgainstKernel is the proof of the evaluator. CTPLAN_RULESETS says how
// many rulesets, CTPLAN_SEED where the generator begins.
func TestAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		total, seed := draws(2200)
		r := rand.New(rand.NewPCG(seed, 5))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		var known, unknown, verdicts [2]int
		var rules, lost, rated, proxied int
		cover := coverage{}
		for i, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			// Tracking stays on while rulesets come and go.
			other := map[host.Backend]string{host.NFT: "legacy", host.Legacy: "nft"}[b]
			for _, tool := range []string{"iptables-", "ip6tables-"} {
				ns.Run(tool+other, "-t", "mangle", "-A", "POSTROUTING", "-m", "conntrack", "--ctstate", "NEW")
			}
			if i == 0 {
				l.establish()
			}
			for n := range total / 2 {
				f := host.Families[n%2]
				g := &generator{Rand: r, family: f, vague: 6}
				text := g.ruleset()
				set := l.parse(b, f, text)
				for i := range set.Tables {
					rules += len(set.Tables[i].Rules)
				}
				cover.note(b, f, set)
				e := l.evaluator(set)
				// However a ruleset is written, it says the same; and for some of
				// them as the kernel prints it.
				same := []*verdict.Evaluator{l.evaluator(l.parse(b, f, respell(r, set, true)))}
				var exact *verdict.Evaluator
				if as := settled(text); as != text {
					exact = l.evaluator(l.parse(b, f, as))
				}
				if n%8 == 0 {
					text = respell(r, set, false)
					l.load(f, text)
					same = append(same, l.evaluator(l.parse(b, f, l.save(f))))
				} else {
					l.load(f, text)
				}
				probes := map[uint32]*probe{}
				for range 30 {
					q := l.probe(f)
					q.decide(e)
					for _, o := range same {
						if got := q.by(o); got.Verdict != q.decision.Verdict || got.Untracked != q.decision.Untracked {
							t.Errorf("%s %s, ruleset %d: %s by %q, and in other words %s by %q\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, got.Verdict, got.Rule, q.packets, text)
						}
					}
					q.unknown = q.decision.Verdict == verdict.Unknown
					if exact != nil {
						got := q.by(exact)
						if !q.unknown && got.Verdict != verdict.Unknown && got.Verdict != q.decision.Verdict {
							t.Errorf("%s %s, ruleset %d: %s by %q, but as the rates are, %s by %q\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, got.Verdict, got.Rule, q.packets, text)
						}
						q.decision = got
					}
					probes[q.id] = q
				}
				l.collect(probes)
				for _, q := range probes {
					if q.unknown {
						unknown[i]++
					} else {
						known[i]++
					}
					switch {
					case q.decision.Verdict == verdict.Unknown:
						continue
					case q.unknown:
						rated++
					case q.decision.Verdict == verdict.Accepted:
						verdicts[0]++
					default:
						verdicts[1]++
					}
					if q.arrives() && !q.seen && l.again(q) {
						lost++ // on the wire, not by a rule
					}
					if q.decision.Proxied != nil {
						proxied++
					}
					if q.seen != q.arrives() {
						t.Errorf("%s %s, ruleset %d: %s by %q, but arrived: %v\n%+v\n%s", b, f, n, q.decision.Verdict, q.decision.Rule, q.seen, q.packets, text)
						if testing.Verbose() {
							t.FailNow()
						}
						break
					}
				}
				if t.Failed() {
					return
				}
			}
			for _, tool := range []string{"iptables-", "ip6tables-"} {
				ns.Run(tool+other, "-t", "mangle", "-F")
			}
			for _, f := range host.Families {
				l.load(f, "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n")
			}
		}
		all := known[0] + known[1] + unknown[0] + unknown[1]
		share := 100 * float64(unknown[0]+unknown[1]) / float64(all)
		fmt.Printf("%d rulesets of %d rules, %d packets: %d accepted, %d dropped, %.2f %% unknown (%d of them by rates that the test knows), %d sent twice, %d answered by SYN proxies\n", total, rules, all, verdicts[0], verdicts[1], share, rated, lost, proxied)
		if missing := cover.missing(); total >= 2000 && len(missing) > 0 {
			t.Errorf("not generated: %s", strings.Join(missing, "; "))
		}
		if total >= 2000 && proxied < 10 {
			t.Errorf("SYN proxies answered %d packets: the test says little of them", proxied)
		}
		if lost > all/5000 {
			t.Errorf("%d packets arrived at the second try only", lost)
		}
		if share >= 2 {
			t.Errorf("%.2f %% of the verdicts are unknown: fewer than 2 %% may be", share)
		}
		if verdicts[0]*5 < all || verdicts[1]*5 < all {
			t.Errorf("one verdict is rare: the test says little")
		}
	})
}
