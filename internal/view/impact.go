package view

import (
	"fmt"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/words"
)

// maxGroups is how many groups of connections are shown unless all are asked for.
const maxGroups = 20

// impactHead counts the connections, or says that nobody can; it is clean.
func impactHead(im *impact.Impact) string {
	all := im.Lost + im.Unknown + im.Gained + im.Kept
	if len(im.NotKnown) > 0 {
		unread := Clean("not known, since these could not be read: " + strings.Join(im.NotKnown, ", "))
		if all == 0 {
			return unread
		}
		return unread + "; of what was read: " + impactCounts(im)
	}
	if all == 0 {
		return "no open connections are touched by the rules"
	}
	return "of " + count(int(all), "open connection") + ": " + impactCounts(im)
}

func impactCounts(im *impact.Impact) string {
	var parts []string
	for _, c := range []struct {
		n    int64
		what string
	}{{im.Lost, "lost"}, {im.Unknown, "unknown"}, {im.Gained, "gained"}, {im.Kept, "kept"}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	text := strings.Join(parts, ", ")
	switch im.Carried {
	case 0:
	case im.Kept:
		text += ", carried over"
	default:
		text += fmt.Sprintf(", %d of them carried over", im.Carried)
	}
	return text
}

// tableText is what becomes of the kernel's table; it is clean.
func tableText(t *impact.Table) string {
	text := fmt.Sprintf("%d of its %s leave with their connections, and are taken out: %d", t.TakenOut, words.Plural(int(t.Entries), "entry", "entries"), t.Left)
	if t.Max > 0 {
		text += fmt.Sprintf(" of %d", t.Max)
	}
	return text + " will be left"
}

// Table says what became of the kernel's table in a transaction; "" where nothing did.
func Table(t *journal.Table) string {
	var parts []string
	if t.Over > 0 {
		parts = append(parts, words.Plural(int(t.Over), "open connection was", "open connections were")+" carried over into tracking")
	}
	if t.Out > 0 {
		parts = append(parts, words.Plural(int(t.Out), "entry was", "entries were")+" taken out of its table")
	}
	return strings.Join(parts, ", ")
}

// impactGroups are the groups to show, and how many are left out.
func impactGroups(im *impact.Impact, full bool) (groups []impact.FlowGroup, left int) {
	for _, g := range im.Groups {
		if g.Result == impact.FlowKept && !g.Operator {
			continue
		}
		if !full && len(groups) == maxGroups {
			left++
			continue
		}
		groups = append(groups, g)
	}
	return groups, left
}

func groupTitle(g impact.FlowGroup) string {
	title := fmt.Sprintf("%s  %s %s, %s", g.Result, g.Family, g.Service, count(int(g.Count), "connection"))
	if g.Fragments {
		title += ": datagrams in fragments alone"
	}
	if g.Operator {
		title += ": the session that you are working through"
	}
	return Clean(title)
}

// groupLines are what explains a group, a label and text each.
func groupLines(g impact.FlowGroup) [][2]string {
	var out [][2]string
	add := func(label, text string) {
		if text != "" {
			out = append(out, [2]string{label, Clean(text)})
		}
	}
	if len(g.Examples) > 0 {
		text := strings.Join(g.Examples, ", ")
		if g.Count > int64(len(g.Examples)) {
			text += ", …"
		}
		add("such as", text)
	}
	if g.Result != impact.FlowKept {
		add("today", g.Before)
		add("then", g.After)
	}
	if g.Stage != "" {
		add("while", g.Stage+" is changed")
	}
	return out
}

func resultColour(r impact.FlowResult) string {
	switch r {
	case impact.FlowLost:
		return red
	case impact.FlowUnknown:
		return yellow
	}
	return green
}

func (t *textWriter) impact(p planner.Plan) {
	im := p.Impact
	if im == nil {
		return
	}
	t.line(t.paint(bold, "impact") + " " + impactHead(im))
	groups, left := impactGroups(im, t.o.Full)
	for _, g := range groups {
		t.line("  " + t.paint(resultColour(g.Result), groupTitle(g)))
		for _, l := range groupLines(g) {
			t.prose(fmt.Sprintf("      %-8s", l[0]), l[1])
		}
	}
	if left > 0 {
		t.line(fmt.Sprintf("  … %d more groups of connections (--full shows all)", left))
	}
	if im.Table != nil {
		t.prose("  table ", tableText(im.Table))
	}
	t.line("")
}

func (m *markdownWriter) impact(p planner.Plan) {
	im := p.Impact
	if im == nil {
		return
	}
	m.para("**impact** " + prose(impactHead(im)))
	groups, left := impactGroups(im, m.o.Full)
	for _, g := range groups {
		m.item("**" + prose(groupTitle(g)) + "**")
		for _, l := range groupLines(g) {
			m.b.WriteString("  - " + l[0] + " " + code(l[1]) + "\n")
		}
	}
	if left > 0 {
		m.item(fmt.Sprintf("%d more groups of connections", left))
	}
	if im.Table != nil {
		m.item("table: " + prose(tableText(im.Table)))
	}
	if len(groups) > 0 || im.Table != nil {
		m.para("")
	}
}
