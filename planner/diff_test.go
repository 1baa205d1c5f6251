package planner

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// Over generated hosts and pairs of declarations: a plan leaves nothing to
// plan, its inverse leaves the old rules, foreign rules that do not have to go
// stay as they are, and what both states let through is let through by every
// state in between.
func TestRulesProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	flows := worldFlows()
	inBetween, changed := 0, 0
	for range 100 {
		k := newKernel(parseLines(t, host.IPv4, randomForeign(r)))
		for range 3 {
			d := randomDesired(r)
			before := k.text()
			p := Diff(d, testHost(parseLines(t, host.IPv4, before)))
			if p.Blocked() {
				t.Fatalf("blocked although every risk is accepted: %+v", p.Blocks)
			}
			if again := Diff(d, testHost(parseLines(t, host.IPv4, before))); !reflect.DeepEqual(p, again) {
				t.Fatal("two plans of one input differ")
			}
			sections := rulesSections(p)
			var states [][]bool
			observe := func() {
				seen := make([]bool, len(flows))
				for i, f := range flows {
					seen[i] = k.accepts(f)
				}
				states = append(states, seen)
			}
			observe()
			for _, s := range sections {
				k.run(t, s)
				observe()
			}
			first, last := states[0], states[len(states)-1]
			for n, state := range states {
				for i, f := range flows {
					if first[i] && last[i] && !state[i] {
						t.Fatalf("%+v is let through before and after, but not after section %d of %d\nmode %s\nbefore:\n%s\nsections: %+v", f, n, len(sections), d.Mode, before, sections)
					}
				}
			}
			inBetween += max(0, len(states)-2)
			if len(sections) > 0 {
				changed++
			}

			after := k.text()
			if left := rulesSections(Diff(d, testHost(parseLines(t, host.IPv4, after)))); len(left) > 0 {
				t.Fatalf("a second plan is not empty: %+v\nbefore:\n%s\nafter:\n%s", left, before, after)
			}
			if got, want := foreignLines(after), foreignLines(before); !isSubsequence(got, want) {
				t.Fatalf("foreign rules changed:\n%s\nafter:\n%s", before, after)
			}
			// And back, from every prefix of the sections.
			for n := len(sections); n >= 0; n-- {
				back := newKernel(parseLines(t, host.IPv4, before))
				for _, s := range sections[:n] {
					back.run(t, s)
				}
				undo := change.Step{Rules: &change.RulesStep{Sections: sections[:n]}}.Inverse()
				for _, s := range undo.Rules.Sections {
					back.run(t, s)
				}
				if got := back.text(); !sameTables(got, before) {
					t.Fatalf("undoing %d sections gives\n%s\nnot\n%s", n, got, before)
				}
			}
		}
	}
	if inBetween < 100 || changed < 200 {
		t.Errorf("only %d intermediate states and %d changes were tried", inBetween, changed)
	}
}

// sameTables compares tables rule by rule; the order in which user chains are
// declared means nothing.
func sameTables(a, b string) bool {
	sorted := func(s string) []string {
		var chains []string
		for l := range strings.SplitSeq(s, "\n") {
			if strings.HasPrefix(l, ":") {
				chains = append(chains, l)
			}
		}
		slices.Sort(chains)
		return chains
	}
	return slices.Equal(foreignOrOwnRules(a), foreignOrOwnRules(b)) && slices.Equal(sorted(a), sorted(b))
}

func foreignOrOwnRules(s string) []string {
	var byChain []string
	for l := range strings.SplitSeq(s, "\n") {
		if strings.HasPrefix(l, "-A ") || strings.HasPrefix(l, "*") {
			byChain = append(byChain, l)
		}
	}
	// Stable by chain: rules of different chains may be printed in any order.
	slices.SortStableFunc(byChain, func(a, b string) int { return strings.Compare(chainOf(a), chainOf(b)) })
	return byChain
}

func chainOf(line string) string {
	if f := strings.Fields(line); len(f) > 1 {
		return f[1]
	}
	return ""
}

func foreignLines(s string) []string {
	var out []string
	for l := range strings.SplitSeq(s, "\n") {
		if strings.HasPrefix(l, "-A ") && !strings.Contains(l, declared.OwnPrefix) {
			out = append(out, l)
		}
	}
	return out
}

func isSubsequence(sub, all []string) bool {
	for _, l := range all {
		if len(sub) > 0 && sub[0] == l {
			sub = sub[1:]
		}
	}
	return len(sub) == 0
}

// The saved file gets what the kernel gets, and a second plan leaves it alone.
func TestSavedRulesProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	edited := 0
	for range 100 {
		content := "# saved by hand\n" + randomForeign(r) + "# end\n"
		for range 2 {
			d := randomDesired(r)
			l := testHost(host.Ruleset{Family: host.IPv4, Backend: host.NFT, Primary: true})
			saved := parseLines(t, host.IPv4, content)
			saved.Backend, saved.Primary = "", false
			saved.File = &host.File{Path: "/etc/iptables/rules.v4", Exists: true, Content: content, Mode: 0o640, UID: 1, GID: 2}
			l.SavedRules = []host.Ruleset{saved}
			p := Diff(d, l)
			for _, c := range p.Changes {
				if f, ok := c.(*change.FileChange); ok && f.Before.Path == saved.File.Path {
					if f.After.Mode != 0o640 || f.After.UID != 1 || f.After.GID != 2 {
						t.Fatalf("mode or owner changed: %+v", f.After)
					}
					if !isSubsequence(othersLines(f.After.Content), othersLines(content)) {
						t.Fatalf("other lines changed:\n%s\nnow\n%s", content, f.After.Content)
					}
					content = f.After.Content
					edited++
				}
			}
			after := parseLines(t, host.IPv4, content)
			after.Backend, after.Primary = "", false
			after.File = &host.File{Path: "/etc/iptables/rules.v4", Exists: true, Content: content}
			l.SavedRules = []host.Ruleset{after}
			for _, c := range Diff(d, l).Changes {
				if f, ok := c.(*change.FileChange); ok && f.Before.Path == saved.File.Path {
					t.Fatalf("a second plan edits the file again:\n%s\nto\n%s", content, f.After.Content)
				}
			}
			// What boot restores from it is what a host with these rules would have.
			kernelPlan := Diff(d, testHost(parseLines(t, host.IPv4, content)))
			for _, c := range kernelPlan.Changes {
				if rc, ok := c.(*change.RulesChange); ok {
					t.Fatalf("rules restored from the file are not as declared: %+v\n%s", rc, content)
				}
			}
		}
	}
	if edited < 100 {
		t.Errorf("only %d edits were tried", edited)
	}
}

func othersLines(s string) []string {
	var out []string
	for l := range strings.SplitAfterSeq(s, "\n") {
		if !strings.Contains(l, declared.OwnPrefix) {
			out = append(out, l)
		}
	}
	// A table that the file did not have is new as a whole.
	return slices.DeleteFunc(out, func(l string) bool {
		return l == "COMMIT\n" || strings.HasPrefix(l, "*") || strings.HasPrefix(l, ":")
	})
}
