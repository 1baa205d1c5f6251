// Package view shows plans to people and programs: as text on a terminal, as
// markdown in a code review, as JSON. It is the one renderer behind plan, show,
// apply and drift, so that what was reviewed is what the operator confirms.
//
// It owns wording, layout and what is safe to print. It promises that nothing
// a plan carries, whoever wrote it, reaches the terminal as a control
// character or breaks out of its place in markdown, that nothing is left out
// without saying so, and that equal plans render equally. It never touches the
// host, decides nothing, and knows neither terminals nor the environment: the
// caller says whether to colour and how wide to write.
package view

import (
	"fmt"
	"strings"

	"github.com/ctplan/ctplan/internal/cause"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
)

// Verb is what the plan is shown for. It changes the wording alone.
type Verb string

// The verbs. The zero Verb is Plan.
const (
	Plan    Verb = "plan"    // what apply would do
	Apply   Verb = "apply"   // what apply is about to do
	Applied Verb = "applied" // what apply has done
	Drift   Verb = "drift"   // how the host differs from what is declared
)

// Options say how to render.
type Options struct {
	Verb  Verb
	Color bool // text: SGR colours
	Width int  // text: columns of the terminal; 0 means 80
	Full  bool // text, markdown: long runs of lines in full
	ASCII bool // text: bars of characters that every terminal has

	// Causes are why objects differ, by the addresses of their changes; nil
	// where nobody has looked.
	Causes map[string][]cause.Cause
}

// Summary is the one line that ends every rendering, without a newline. It is
// safe to print on a terminal.
func Summary(p planner.Plan, v Verb) string {
	if p.Blocked() {
		s := "blocked: " + count(len(p.Blocks), "reason")
		if v == Drift {
			return "drift: " + differ(len(p.Changes)) + "; apply is " + s
		}
		if n := len(p.Changes); n > 0 {
			s += ", " + count(n, "change") + " held back"
		}
		return s
	}
	host := hostName(p)
	if p.Empty() {
		none := "no changes: "
		switch {
		case v == Drift:
			none = "no drift: "
		case v == Applied:
			none = "nothing to do: "
		}
		if p.Mode == declared.Unmanaged {
			return none + "no conntrack block matches " + host
		}
		return none + host + " is as " + declarer(p) + " declares"
	}
	if v == Drift {
		return "drift: " + differ(len(p.Changes)) + " from what " + declarer(p) + " declares"
	}
	t := tally(p)
	words := [4]string{"to create", "to update", "to delete", "to run"}
	head := "plan: "
	if v == Applied {
		words, head = [4]string{"created", "updated", "deleted", "run"}, "applied: "
	}
	var parts []string
	for i, n := range [4]int{t.Create, t.Update, t.Delete, t.Run} {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, words[i]))
		}
	}
	return head + strings.Join(parts, ", ")
}

// FleetSummary is the line that ends the rendering of several plans.
func FleetSummary(plans []planner.Plan) string {
	var change, blocked, same int
	for _, p := range plans {
		switch {
		case p.Blocked():
			blocked++
		case p.Empty():
			same++
		default:
			change++
		}
	}
	return fmt.Sprintf("%s: %d to change, %d blocked, %d with nothing to change", count(len(plans), "host"), change, blocked, same)
}

// totals counts a plan's changes by action.
type totals struct{ Create, Update, Delete, Run int }

func tally(p planner.Plan) totals {
	var t totals
	for _, c := range p.Changes {
		switch c.Meta().Action {
		case change.Create:
			t.Create++
		case change.Update:
			t.Update++
		case change.Delete:
			t.Delete++
		default:
			t.Run++
		}
	}
	return t
}

// declared names what the host was compared with.
func declarer(p planner.Plan) string {
	if p.Source.File != "" {
		return Clean(p.Source.String())
	}
	if p.Mode == declared.Unmanaged {
		return "an unmanaged host"
	}
	return "the configuration"
}

func hostName(p planner.Plan) string {
	if p.Host.Name == "" {
		return "this host"
	}
	return Clean(p.Host.Name)
}

func differ(n int) string {
	if n == 1 {
		return "1 object differs"
	}
	return fmt.Sprintf("%d objects differ", n)
}

// count prints n with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
