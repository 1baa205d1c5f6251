package internal_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/xtables"
)

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	riskWord = regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	target   = regexp.MustCompile(`\b[A-Z]{4,}\b`)
)

// TestTrackingPage holds docs/tracking.md to the code: each word that its last
// column has for a judgement is one, each kind of work is on the page, and what a
// row says asks for that work is taken for it.
func TestTrackingPage(t *testing.T) {
	text, err := os.ReadFile("../docs/tracking.md")
	if err != nil {
		t.Fatal(err)
	}
	named, tried := map[declared.Risk]bool{}, 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) != 4 {
			continue
		}
		var risks []declared.Risk
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			switch word := declared.Risk(m[1]); {
			case slices.Contains(declared.Risks, word):
				risks = append(risks, word)
				named[word] = true
			case !slices.Contains([]string{"stateful_rules", "impact", "disabled", "notrack", "tuned"}, m[1]) && riskWord.MatchString(m[1]):
				t.Errorf("%q is no word of allow_risk:\n%s", word, line)
			}
		}
		if len(risks) == 0 || declared.Losses[risks[0]] == "" || risks[0] == declared.RiskRelated {
			continue
		}
		for _, rule := range asking(cells[1]) {
			tried++
			if got := xtables.WorkOf(xtables.Parse(strings.Fields(rule))); got != risks[0] {
				t.Errorf("%q is taken for %q, and the page says %q", rule, got, risks[0])
			}
		}
	}
	for risk := range declared.Losses {
		if !named[risk] {
			t.Errorf("%s is not on the page", risk)
		}
	}
	if tried < 14 {
		t.Errorf("only %d rules were tried", tried)
	}
}

// asking are the rules of iptables that a cell names.
func asking(cell string) (rules []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		switch words := strings.Fields(m[1]); {
		case words[0] == "-m" && len(words) == 2:
			rules = append(rules, m[1])
		case words[0] == "CT":
			rules = append(rules, "-j "+m[1]+" 5")
		case words[0] == "HMARK":
			rules = append(rules, "-j "+m[1])
		}
	}
	for _, name := range target.FindAllString(quoted.ReplaceAllString(cell, ""), -1) {
		rules = append(rules, "-j "+name)
	}
	return rules
}
