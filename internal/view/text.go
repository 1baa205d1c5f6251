package view

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
)

// The SGR sequences that text may hold: the only escapes that ctplan prints.
const (
	reset  = "\x1b[0m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
)

// Text renders a plan for a terminal: what it is about, one block per change
// or per reason to refuse, warnings, and the summary last, where it stays on
// the screen. Errors are those of w.
func Text(w io.Writer, p planner.Plan, o Options) error {
	t := &textWriter{o: o}
	if t.o.Width <= 0 {
		t.o.Width = 80
	}
	t.head(p)
	if p.Blocked() {
		t.blocks(p)
		if o.Verb == Drift {
			t.differences(p)
		}
	} else {
		if o.Verb == Drift && len(p.Changes) > 0 {
			t.prose("", "- stands on the host now, + is what apply would put there.")
			t.line("")
		}
		for _, c := range p.Changes {
			t.change(c)
		}
	}
	t.impact(p)
	t.forecast(p)
	t.warnings(p)
	t.summary(p)
	_, err := io.WriteString(w, t.b.String())
	return err
}

// FleetText renders several plans, one after the other, and a line that counts
// the hosts.
func FleetText(w io.Writer, plans []planner.Plan, o Options) error {
	for _, p := range plans {
		if err := Text(w, p, o); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, FleetSummary(plans)+"\n")
	return err
}

// textWriter collects lines. Everything that it is given has been cleaned.
type textWriter struct {
	b strings.Builder
	o Options
}

func (t *textWriter) paint(sgr, s string) string {
	if !t.o.Color || sgr == "" || s == "" {
		return s
	}
	return sgr + s + reset
}

func (t *textWriter) line(s string) {
	t.b.WriteString(strings.TrimRight(s, " ") + "\n")
}

// prose writes words within the width, behind a label of the first line; the
// lines that follow stand under the first word.
func (t *textWriter) prose(label, text string) { t.painted("", label, text) }

func (t *textWriter) painted(sgr, label, text string) {
	indent := utf8.RuneCountInString(label)
	for i, l := range wrap(text, t.o.Width-indent) {
		if i > 0 {
			label = strings.Repeat(" ", indent)
		}
		t.line(label + t.paint(sgr, l))
	}
}

// wrap breaks a text between words. A word longer than width stands alone.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Split(text, " ") {
		last := lines[len(lines)-1]
		switch {
		case last == "":
			lines[len(lines)-1] = word
		case utf8.RuneCountInString(last)+1+utf8.RuneCountInString(word) <= width:
			lines[len(lines)-1] += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}

func (t *textWriter) head(p planner.Plan) {
	what := map[Verb]string{Plan: "plan for", Apply: "plan for", Applied: "applied to", Drift: "drift of"}[t.o.Verb]
	if what == "" {
		what = "plan for"
	}
	mode := "mode " + Clean(string(p.Mode))
	switch p.Mode {
	case declared.GoingBack:
		mode = "rollback"
	case declared.Unmanaged:
		mode = "unmanaged: no conntrack block matches it"
	}
	t.line(t.paint(bold, what+" "+hostName(p)) + ", " + mode)
	if p.Block != "" {
		at := ""
		if p.Source.File != "" {
			at = " at " + Clean(p.Source.String())
		}
		t.line(t.paint(dim, `conntrack "`+Clean(p.Block)+`"`+at))
	}
	t.line("")
}

func (t *textWriter) change(c change.Change) {
	m := c.Meta()
	t.headline(c)
	for _, r := range m.Reasons {
		t.prose("    ", Clean(r))
	}
	if at := places(m.Sources); at != "" {
		t.painted(dim, "    ", "asked for at "+at)
	}
	if m.Disrupts != "" {
		t.painted(yellow, "    ", "disrupts: "+Clean(m.Disrupts))
	}
	t.causes(c)
	rows := body(c, t.o.Full)
	if len(rows) > 0 {
		t.line("")
	}
	for _, r := range rows {
		t.row(r)
	}
	t.line("")
}

// headline is "~ address  what it does".
func (t *textWriter) headline(c change.Change) {
	m := c.Meta()
	glyph, sgr := glyph(m.Action)
	address, effect := Clean(m.Address), effect(c)
	head := t.paint(sgr, glyph) + " " + t.paint(bold, address)
	if effect == "" || 4+utf8.RuneCountInString(address)+utf8.RuneCountInString(effect) <= t.o.Width {
		t.line(head + "  " + effect)
		return
	}
	t.line(head)
	t.prose("    ", effect)
}

func (t *textWriter) row(r row) {
	const indent = "  "
	note := ""
	if r.note != "" {
		note = "  " + t.paint(dim, "# "+r.note)
	}
	switch r.mark {
	case added:
		t.line(indent + t.paint(green, "+ "+r.text) + note)
	case gone:
		t.line(indent + t.paint(red, "- "+r.text))
	case header:
		t.line(indent + t.paint(cyan, r.text))
	case elided:
		t.line(indent + "  " + t.paint(dim, "… "+r.text))
	default:
		t.line(indent + "  " + r.text)
	}
}

func (t *textWriter) blocks(p planner.Plan) {
	for i, b := range p.Blocks {
		number := fmt.Sprintf("%d. ", i+1)
		indent := strings.Repeat(" ", len(number))
		by := ""
		if b.Risk != "" {
			by = " by " + Clean(string(b.Risk))
		}
		t.line(t.paint(red, number+"BLOCKED"+by) + ": " + t.paint(bold, Clean(b.Address)))
		if b.Where != "" {
			t.prose(indent+"where     ", Clean(b.Where))
		}
		t.prose(indent+"why       ", Clean(b.Why))
		if b.Remedy != "" {
			t.prose(indent+"remedy    ", Clean(b.Remedy))
		}
		for _, c := range b.Commands {
			t.line(indent + "          " + Clean(c)) // never wrapped: it is there to be copied
		}
		if !remedyOverrides(b) {
			t.prose(indent+"override  ", override(b))
		}
		if b.Source.File != "" {
			t.painted(dim, indent+"asked at  ", Clean(b.Source.String()))
		}
		t.line("")
	}
}

// remedyOverrides is whether the remedy has said how to override the block.
func remedyOverrides(b change.Block) bool {
	return b.Override && strings.Contains(b.Remedy, "allow_risk")
}

// override says how to go on in spite of a block.
func override(b change.Block) string {
	if !b.Override {
		return "none: this check always holds"
	}
	return fmt.Sprintf(`allow_risk = ["%s"] in the conntrack block`, Clean(string(b.Risk)))
}

// differences lists what differs on a host that apply may not change: drift
// must name every object.
func (t *textWriter) differences(p planner.Plan) {
	for _, c := range p.Changes {
		t.headline(c)
		t.causes(c)
	}
	if len(p.Changes) > 0 {
		t.line("")
	}
}

func (t *textWriter) warnings(p planner.Plan) {
	for _, w := range p.Warnings {
		head := t.paint(yellow, "warning:")
		if w.Address == "" {
			for _, l := range wrap(Clean(w.Text), t.o.Width-len("warning: ")) {
				t.line(head + " " + l)
				head = "   "
			}
		} else {
			t.line(head + " " + t.paint(bold, Clean(w.Address)))
			t.prose("    ", Clean(w.Text))
		}
		for _, c := range w.Commands {
			t.line("      " + Clean(c)) // never wrapped: it is there to be copied
		}
		if w.Source.File != "" {
			t.painted(dim, "    ", Clean(w.Source.String()))
		}
	}
	if len(p.Warnings) > 0 {
		t.line("")
	}
}

func (t *textWriter) summary(p planner.Plan) {
	sgr := bold
	switch {
	case p.Blocked():
		sgr = red
	case p.Empty():
		sgr = green
	}
	t.line(t.paint(sgr, Summary(p, t.o.Verb)))
}

func glyph(a change.Action) (glyph, sgr string) {
	switch a {
	case change.Create:
		return "+", green
	case change.Update:
		return "~", yellow
	case change.Delete:
		return "-", red
	default:
		return "!", cyan
	}
}

// places lists positions in the HCL, safe to print.
func places(at []declared.Pos) string {
	var s []string
	file := ""
	for _, p := range at {
		switch p.File {
		case "":
			continue
		case file:
			s = append(s, fmt.Sprintf(":%d", p.Line))
		default:
			s = append(s, Clean(p.String()))
		}
		file = p.File
	}
	return strings.Join(s, ", ")
}
