package nft

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
)

// corpus is a ruleset with every kind of expression that nft 1.0.6 can write
// and the machines that run the tests can load.
const corpus = "testdata/corpus.nft"

// ruleID names a rule as both nft and the kernel do.
type ruleID struct{ family, table, chain, handle string }

// listed are the rules that nft lists, as it writes them: without what counters
// have counted, and with the elements of sets in the order of their texts.
func listed(text string) map[ruleID]string {
	rules := map[ruleID]string{}
	var at ruleID
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		rule, handle, isRule := strings.Cut(strings.TrimSpace(line), " # handle ")
		switch {
		case len(words) > 2 && words[0] == "table":
			at = ruleID{family: words[1], table: words[2]}
		case len(words) > 2 && words[0] == "chain" && words[2] == "{":
			at.chain = words[1]
		case len(words) > 2 && words[2] == "{" && strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, "\t\t"): // a set, an object
			at.chain = ""
		case isRule && at.chain != "":
			at.handle = handle
			rules[at] = normal(rule)
		}
	}
	return rules
}

var (
	counted = regexp.MustCompile(`counter packets \d+ bytes \d+ ?`)
	inSet   = regexp.MustCompile(`\{ [^{}]* \}`)
	quota   = regexp.MustCompile(` used \d+ bytes`)
)

func normal(rule string) string {
	rule = quota.ReplaceAllString(counted.ReplaceAllString(rule, ""), "")
	return strings.TrimSpace(inSet.ReplaceAllStringFunc(rule, func(set string) string {
		elements := strings.Split(strings.Trim(set, "{ }"), ", ")
		slices.Sort(elements)
		return "{ " + strings.Join(elements, ", ") + " }"
	}))
}

// TestCorpus holds what is read of a ruleset against what nft says of it: the
// texts against its listing, the programs against its own reading of them.
func TestCorpus(t *testing.T) {
	ruleset, err := os.ReadFile(corpus)
	if err != nil {
		t.Fatal(err)
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.RunInput(string(ruleset), "nft", "-f", "-")
		tables, err := Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		want, programs := listed(ns.Run("nft", "-a", "list", "ruleset")), debugged(ns.Run("nft", "--debug=netlink", "-a", "list", "ruleset"))
		seen := 0
		for _, table := range tables {
			if !table.Whole || table.Dormant != (table.Name == "asleep") {
				t.Errorf("%s %s: whole %v, dormant %v", table.Family, table.Name, table.Whole, table.Dormant)
			}
			for _, chain := range table.Chains {
				for _, rule := range chain.Rules {
					seen++
					id := ruleID{table.Family, table.Name, chain.Name, fmt.Sprint(rule.Handle)}
					if got := normal(rule.Text); got != want[id] && otherwise[want[id]] != got {
						t.Errorf("%v\n got %s\nwant %s", id, got, want[id])
					}
					if got := debug(rule.Exprs); got != programs[id] {
						t.Errorf("%v: %s\n got %s\nwant %s", id, rule.Text, got, programs[id])
					}
				}
			}
			for _, set := range table.Sets {
				if w, ok := elementsOf[set.Name]; ok && string(set.Elements) != w {
					t.Errorf("set %s: %q, want %q", set.Name, set.Elements, w)
				}
				if set.Unread != (set.Name == "seen") {
					t.Errorf("set %s: unread %v", set.Name, set.Unread)
				}
			}
		}
		if seen != len(want) || len(want) < 100 {
			t.Errorf("%d rules, and nft lists %d", seen, len(want))
		}
		checkChains(t, tables)
	})
}

// otherwise are the rules that are written in other words than nft's.
var otherwise = map[string]string{
	`drop comment "the \\ end"`: `drop comment "the \\\\ end"`, // nft has no escapes, which a comment may pretend
	`ip dscp set cs1`:           `meta nfproto ipv4 @nh,0,16 set @nh,0,16 & 65283 | 32`,
	`ct event set new`:          `ct event set 1`,
}

// elementsOf are the elements of the sets, in the order of their keys.
var elementsOf = map[string]string{
	"v4":     "0a000000-0affffff c0000201 c6336407-c6336409 ffffff00-ffffffff",
	"v6":     "20010db8000000000000000000000001 fd000000000000000000000000000000-fdffffffffffffffffffffffffffffff",
	"host4":  "01020304 05060708",
	"gone":   "08080808 09090909~",
	"seen":   "",
	"both":   "0102030400160000 0102030500500000",
	"ranges": "0102030400050000" + "6c6f0000000000000000000000000000 0a00000000500000" + "65746830000000000000000000000000-0affffff005a0000" + "65746830000000000000000000000000",
	"ports":  "0001-03ff 1f90 ea60-ffff",
	"whole":  "0000-ffff",
	"marks":  "00000010-0000001f 00000100",
	"ways":   "*:=continue 0000-0015:=drop 0016:=accept 0050:=jump=web",
	"nets":   "0a000000-0a7fffff:=accept 0a800000-0affffff:=goto=web 0b000000-0bffffff:=drop",
	"to":     "0050:0a000001 01bb:0a000002",
	"counts": "01020304:@c",
}

func checkChains(t *testing.T, tables []host.NFTTable) {
	var got []string
	for _, table := range tables {
		for _, c := range table.Chains {
			got = append(got, fmt.Sprintf("%s %s %s: %s %s %d %s %q", table.Family, table.Name, c.Name, c.Type, c.Hook, c.Priority, c.Policy, c.Devices))
		}
	}
	want := []string{
		`inet filter web:   0  []`,
		`inet filter early: filter prerouting -305 accept []`,
		`inet filter input: filter input 0 drop []`,
		`inet filter marks: filter output -150 accept []`,
		`inet filter nats: nat prerouting -100 accept []`,
		`inet filter posts: nat postrouting 100 accept []`,
		`inet filter tp: filter prerouting -150 accept []`,
		`ip four c: filter forward 0 accept []`,
		`ip6 six c: filter input 5 drop []`,
		`bridge br c: filter forward 0 accept []`,
		`arp a c: filter input 0 accept []`,
		`netdev nd c: filter ingress -500 accept ["lo"]`,
		`inet asleep c: filter input 0 drop []`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("chains:\n%s", strings.Join(got, "\n"))
	}
}
