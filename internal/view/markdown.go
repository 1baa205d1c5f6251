package view

import (
	"fmt"
	"io"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
)

// Markdown renders a plan for a review comment: the summary first, then reasons
// to refuse and warnings, and what each change does folded away. It is GitHub's
// and GitLab's dialect with <details>. Errors are those of w.
func Markdown(w io.Writer, p planner.Plan, o Options) error {
	m := &markdownWriter{o: o}
	m.plan(p)
	return m.flush(w)
}

// FleetMarkdown renders several plans in one comment, a line for each first.
func FleetMarkdown(w io.Writer, plans []planner.Plan, o Options) error {
	m := &markdownWriter{o: o}
	m.para("## ctplan: " + prose(FleetSummary(plans)))
	for _, p := range plans {
		m.item(code(hostName(p)) + ": " + prose(Summary(p, o.Verb)))
	}
	m.para("")
	for _, p := range plans {
		m.plan(p)
	}
	return m.flush(w)
}

// markdownWriter collects markdown. Its methods take finished markdown: what
// comes from a plan has been through prose, code or html, and code blocks
// through fence.
type markdownWriter struct {
	b strings.Builder
	o Options
}

func (m *markdownWriter) flush(w io.Writer) error {
	_, err := io.WriteString(w, strings.TrimRight(m.b.String(), "\n")+"\n")
	return err
}

func (m *markdownWriter) para(s string) { m.b.WriteString(s + "\n\n") }
func (m *markdownWriter) item(s string) { m.b.WriteString("- " + s + "\n") }

func (m *markdownWriter) plan(p planner.Plan) {
	m.para("### " + code(hostName(p)) + ": " + prose(Summary(p, m.o.Verb)))
	mode := "mode " + code(string(p.Mode))
	if p.Mode == declared.Unmanaged {
		mode = "unmanaged"
	}
	if p.Block != "" {
		mode += ", `conntrack` " + code(p.Block)
	}
	if p.Source.File != "" {
		mode += " at " + code(p.Source.String())
	}
	m.para(mode)

	for i, b := range p.Blocks {
		m.para(fmt.Sprintf("#### ⛔ %d. %s on %s", i+1, code(string(b.Risk)), code(b.Address)))
		if b.Where != "" {
			m.item("**where:** " + code(b.Where))
		}
		m.item("**why:** " + prose(b.Why))
		if b.Remedy != "" {
			m.item("**remedy:** " + prose(b.Remedy))
		}
		for _, c := range b.Commands {
			m.item(code(c))
		}
		switch {
		case remedyOverrides(b):
		case b.Override:
			m.item("**override:** in the conntrack block, " + code(fmt.Sprintf("allow_risk = [%q]", b.Risk)))
		default:
			m.item("**override:** none, this check always holds")
		}
		if b.Source.File != "" {
			m.item("asked for at " + code(b.Source.String()))
		}
		m.para("")
	}
	m.impact(p)
	m.forecast(p)
	for _, w := range p.Warnings {
		s := "> ⚠️ "
		if w.Address != "" {
			s += code(w.Address) + ": "
		}
		s += prose(w.Text)
		for _, c := range w.Commands {
			s += " " + code(c)
		}
		if w.Source.File != "" {
			s += " (" + code(w.Source.String()) + ")"
		}
		m.para(s)
	}
	for _, c := range p.Changes {
		switch {
		case !p.Blocked():
			m.change(c)
		case m.o.Verb == Drift:
			m.item(changeTitle(c))
			m.causes(c)
		}
	}
	m.b.WriteString("\n")
}

// changeTitle is a change in one line of markdown.
func changeTitle(c change.Change) string {
	g, _ := glyph(c.Meta().Action)
	s := code(g) + " " + code(c.Meta().Address)
	if e := effect(c); e != "" {
		s += " " + prose(e)
	}
	return s
}

func (m *markdownWriter) change(c change.Change) {
	meta := c.Meta()
	g, _ := glyph(meta.Action)
	title := "<code>" + html(g+" "+meta.Address) + "</code>"
	if e := effect(c); e != "" {
		title += " <code>" + html(e) + "</code>"
	}
	m.para("<details><summary>" + title + "</summary>")
	for _, r := range meta.Reasons {
		m.item("**why:** " + prose(r))
	}
	if len(meta.Sources) > 0 {
		var at []string
		for _, p := range meta.Sources {
			if p.File != "" {
				at = append(at, code(p.String()))
			}
		}
		if len(at) > 0 {
			m.item("asked for at " + strings.Join(at, ", "))
		}
	}
	if meta.Disrupts != "" {
		m.item("**disrupts:** " + prose(meta.Disrupts))
	}
	m.causes(c)
	m.b.WriteString("\n")
	if rows := body(c, m.o.Full); len(rows) > 0 {
		m.fence(rows)
	}
	m.para("</details>")
}

// fence writes rows as a diff in a code block whose fence is longer than any
// run of backticks within, so that nothing can end it.
func (m *markdownWriter) fence(rows []row) {
	var b strings.Builder
	for _, r := range rows {
		switch r.mark {
		case header:
			b.WriteString(r.text)
		case elided:
			b.WriteString("  … " + r.text)
		default:
			b.WriteString(string(r.mark) + r.text)
		}
		if r.note != "" {
			b.WriteString("  # " + r.note)
		}
		b.WriteByte('\n')
	}
	ticks := strings.Repeat("`", max(3, longestRun(b.String())+1))
	m.para(ticks + "diff\n" + b.String() + ticks)
}

// code is a code span: its content is shown as it is, and neither mentions
// nor links grow from it.
func code(s string) string {
	s = Clean(s)
	if s == "" {
		s = " "
	}
	ticks := strings.Repeat("`", longestRun(s)+1)
	if strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") || (strings.HasPrefix(s, " ") && strings.HasSuffix(s, " ")) {
		s = " " + s + " "
	}
	return ticks + s + ticks
}

func longestRun(s string) int {
	longest, run := 0, 0
	for i := range len(s) {
		if s[i] != '`' {
			run = 0
			continue
		}
		run++
		longest = max(longest, run)
	}
	return longest
}

// noJoin keeps what follows a character from being read together with it, as
// a mention, a reference to an issue or a link; it has no width.
const noJoin = "&#8288;"

// mdEscaper covers what could begin a markdown construct, HTML, a mention or a
// link in the middle of a line.
var mdEscaper = strings.NewReplacer(
	"&", "&amp;", "<", "&lt;", ">", "&gt;",
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "~", `\~`, "|", `\|`,
	"[", `\[`, "]", `\]`, "(", `\(`, ")", `\)`, "{", `\{`, "}", `\}`,
	"!", `\!`, "$", `\$`, "@", "&#64;"+noJoin, "#", "&#35;"+noJoin,
	"://", ":"+noJoin+"//", "www.", "www"+noJoin+".", "WWW.", "WWW"+noJoin+".",
)

// prose is running text outside of code. It never begins a line.
func prose(s string) string { return mdEscaper.Replace(Clean(s)) }

var htmlEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;", "@", "&#64;"+noJoin)

// html is text inside of an HTML tag's content, where markdown is not read.
func html(s string) string { return htmlEscaper.Replace(Clean(s)) }
