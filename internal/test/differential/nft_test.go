package differential

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	nftverdict "github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/providers/nft"
)

// refusedLine is where nft finds an error.
var refusedLine = regexp.MustCompile(`/dev/stdin:(\d+):.*`)

// unknowable is what rules have that depend on more than the packet.
var unknowable = regexp.MustCompile(`limit|dnat|numgen|quota|ct count|maxseg|ct packets|meta cpu|statistic|rcheck|connbytes`)

// loadNative makes the ruleset stand in the kernel. Lines that nft refuses,
// because what they ask for can never be, are taken out.
func (l *lab) loadNative(text string) string {
	l.t.Helper()
	for range 200 {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return text
		}
		lines := strings.Split(text, "\n")
		for _, m := range refusedLine.FindAllStringSubmatch(string(out), -1) {
			n, _ := strconv.Atoi(m[1])
			if n > len(lines) || !strings.HasPrefix(lines[n-1], "    ") || strings.Contains(lines[n-1], "type filter") {
				l.t.Fatalf("nft: %v\n%s\n%s", err, out, numbered(text))
			}
			if os.Getenv("CTPLAN_REFUSED") != "" {
				fmt.Println(strings.TrimSpace(lines[n-1]), "::", m[0])
			}
			lines[n-1] = ""
		}
		if text = strings.Join(lines, "\n"); !refusedLine.Match(out) {
			l.t.Fatalf("nft: %v\n%s\n%s", err, out, numbered(text))
		}
	}
	l.t.Fatalf("nft takes nothing of\n%s", numbered(text))
	return ""
}

// nativeEvaluator reads what stands in the kernel, and beside it a ruleset of
// iptables.
func (l *lab) nativeEvaluator(f host.Family, set *host.Ruleset) (*verdict.Evaluator, []host.NFTTable) {
	l.t.Helper()
	tables, err := nft.Read(func(family, table string) bool {
		return set != nil && set.Backend == host.NFT && (family == "ip" || family == "ip6") && !strings.HasPrefix(table, "t")
	})
	check(l.t, err)
	links, err := nft.Links()
	check(l.t, err)
	bits := 24
	if f == host.IPv6 {
		bits = 64
	}
	c := verdict.NewCompiler(f, verdict.Facts{Sets: l.sets, Interfaces: links, Addresses: []netip.Prefix{netip.PrefixFrom(hostIn[f], bits), netip.PrefixFrom(hostOut[f], bits)}}, false)
	var all []*verdict.Table
	if set != nil {
		for _, name := range set.TableNames() {
			if sections := set.Sections(name); len(sections) > 0 {
				all = append(all, c.Table(verdict.TableID{Backend: set.Backend, Table: name}, xt.XTables(f), xt.Sources(name, sections)))
			}
		}
	}
	return c.Evaluator(append(all, nftverdict.Tables(c, f, tables, links, "")...)), tables
}

// TestNativeAgainstKernel is the proof of the evaluator for nftables' own rules,
// in a third of the rulesets with iptables' beside them. CTPLAN_RULESETS says how
// many rulesets, CTPLAN_SEED where the generator begins.
func TestNativeAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		total, seed := draws(2000)
		r := rand.New(rand.NewPCG(seed, 12))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		// Tracking stays on while rulesets come and go.
		keep := "*mangle\n:POSTROUTING ACCEPT\n-A POSTROUTING -m conntrack --ctstate NEW\nCOMMIT\n"
		ns.Use(host.Legacy)
		for _, f := range host.Families {
			l.load(f, keep)
		}
		l.establish()
		var verdicts [3]int
		var rules, lost, vague, unread int
		for n := range total {
			f := host.Families[n%2]
			g := newNative(r, f, 4)
			text := l.loadNative(g.ruleset())
			rules += strings.Count(text, "\n    ")
			var set *host.Ruleset
			if n%3 == 0 {
				b := []host.Backend{host.NFT, host.Legacy}[n/3%2]
				x := &generator{Rand: r, family: f, vague: 2}
				xtext := x.ruleset()
				parsed := l.parse(b, f, xtext)
				set = &parsed
				ns.Use(b)
				l.load(f, xtext)
				text += "\n" + xtext
			}
			e, _ := l.nativeEvaluator(f, set)
			raw := e
			if set != nil && set.Backend == host.NFT {
				raw, _ = l.nativeEvaluator(f, nil) // as of tables that iptables cannot show
			}
			probes := map[uint32]*probe{}
			for range 30 {
				q := l.probe(f)
				q.decide(e)
				probes[q.id] = q
			}
			l.collect(probes)
			for _, q := range probes {
				verdicts[q.decision.Verdict]++
				if d := q.by(raw); d.Verdict != verdict.Unknown && q.decision.Verdict != verdict.Unknown && d.Verdict != q.decision.Verdict {
					t.Errorf("%s, ruleset %d: %s by %q, and as the kernel has it %s by %q\n%+v\n%s", f, n, q.decision.Verdict, q.decision.Rule, d.Verdict, d.Rule, q.packets, text)
				} else if d.Verdict == verdict.Unknown && q.decision.Verdict != verdict.Unknown {
					unread++
					if os.Getenv("CTPLAN_UNKNOWN") != "" {
						fmt.Println("unknown as the kernel has it:", d.Rule)
					}
				}
				if q.decision.Verdict == verdict.Unknown {
					if unknowable.MatchString(q.decision.Rule.String()) {
						vague++
					}
					if os.Getenv("CTPLAN_UNKNOWN") != "" {
						fmt.Println("unknown:", q.decision.Rule)
					}
					continue
				}
				if q.arrives() && !q.seen && l.again(q) {
					lost++
				}
				if q.seen != q.arrives() {
					t.Errorf("%s, ruleset %d: %s by %q, but arrived: %v\n%+v\n%s", f, n, q.decision.Verdict, q.decision.Rule, q.seen, q.packets, text)
					break
				}
			}
			if t.Failed() {
				return
			}
			if set != nil && set.Backend == host.Legacy {
				l.load(f, "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"+keep)
			}
		}
		all := verdicts[0] + verdicts[1] + verdicts[2]
		share := 100 * float64(verdicts[verdict.Unknown]-vague) / float64(all)
		fmt.Printf("%d rulesets of %d rules, %d packets: %d accepted, %d dropped, %.2f %% unknown, and %d by rates and the like, %d unknown in the kernel's form alone, %d sent twice\n", total, rules, all, verdicts[verdict.Accepted], verdicts[verdict.Dropped], share, vague, unread, lost)
		if share := 100 * float64(unread) / float64(all); share >= 2 && total >= 200 {
			t.Errorf("%.2f %% of the verdicts are unknown where rules of iptables are read as the kernel has them", share)
		}
		if share >= 2 && total >= 200 {
			t.Errorf("%.2f %% of the verdicts are unknown: fewer than 2 %% may be", share)
		}
		if lost > all/5000 {
			t.Errorf("%d packets arrived at the second try only", lost)
		}
		if total >= 200 && (verdicts[verdict.Accepted]*5 < all || verdicts[verdict.Dropped]*5 < all) {
			t.Errorf("one verdict is rare: the test says little")
		}
	})
}
