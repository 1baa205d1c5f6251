package view

import (
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/cause"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/providers/trace"
)

// timeFormat is a time for people, with its zone: logs and people stand in
// different ones.
const timeFormat = "2006-01-02 15:04:05 MST"

// causes writes why an object differs, and what shows it.
func (t *textWriter) causes(c change.Change) {
	for _, why := range t.o.Causes[c.Meta().Address] {
		sgr := cyan
		if why.Kind == cause.Unknown {
			sgr = dim
		}
		t.painted(sgr, "    ", causeLine(why))
		for _, r := range why.Evidence {
			t.painted(dim, "      ", evidence(r))
		}
	}
}

func (m *markdownWriter) causes(c change.Change) {
	for _, why := range m.o.Causes[c.Meta().Address] {
		m.item(prose(causeLine(why)))
		for _, r := range why.Evidence {
			m.b.WriteString("  ")
			m.item(code(evidence(r)))
		}
	}
}

// causeLine is a cause in one line, clean.
func causeLine(c cause.Cause) string {
	if c.Sure == "" {
		return Clean(c.Text)
	}
	return string(c.Sure) + " cause: " + Clean(c.Text)
}

// evidence is a record in one line, clean.
func evidence(r trace.Record) string {
	s := Clean(r.Where)
	if !r.Time.IsZero() {
		s += ", " + r.Time.Format(timeFormat)
	}
	if r.Text != "" {
		s += ": " + Clean(r.Text)
	}
	return s
}

type causeJSON struct {
	Kind      string         `json:"kind"`
	Certainty string         `json:"certainty,omitempty"`
	Text      string         `json:"text"`
	Evidence  []evidenceJSON `json:"evidence"`
}

type evidenceJSON struct {
	Where string `json:"where"`
	Text  string `json:"text"`
	Time  string `json:"time,omitempty"` // RFC 3339
}

func causesJSON(causes []cause.Cause) (out []causeJSON) {
	for _, c := range causes {
		j := causeJSON{Kind: string(c.Kind), Certainty: string(c.Sure), Text: c.Text, Evidence: []evidenceJSON{}}
		for _, r := range c.Evidence {
			e := evidenceJSON{Where: r.Where, Text: r.Text}
			if !r.Time.IsZero() {
				e.Time = r.Time.Format(time.RFC3339)
			}
			j.Evidence = append(j.Evidence, e)
		}
		out = append(out, j)
	}
	return out
}

// shortCause is the first cause in a few words: "hand, likely".
func shortCause(causes []cause.Cause) string {
	if len(causes) == 0 || causes[0].Kind == cause.Unknown {
		return "cause not known"
	}
	return strings.ReplaceAll(string(causes[0].Kind), "_", " ") + ", " + string(causes[0].Sure)
}
