package view

import (
	"fmt"
	"io"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/host"
)

// The states of a monitoring plugin and its exit statuses
// (https://www.monitoring-plugins.org/doc/guidelines.html).
const (
	NagiosOK       = 0
	NagiosCritical = 2
	NagiosUnknown  = 3
)

// nagiosNamed is how many objects the line names.
const nagiosNamed = 3

// Nagios renders drift as the line of a monitoring plugin, with performance
// data: how many objects differ, how many safety checks stand in the way, and
// the entries of the table against its maximum where there is a table.
// Errors are those of w.
func Nagios(w io.Writer, p planner.Plan, c host.Conntrack, o Options) error {
	state := "OK"
	if !p.Empty() {
		state = "CRITICAL"
	}
	text := Summary(p, Drift)
	var named []string
	for i, ch := range p.Changes {
		if i == nagiosNamed {
			named = append(named, fmt.Sprintf("%d more", len(p.Changes)-i))
			break
		}
		s := Clean(ch.Meta().Address)
		if o.Causes != nil {
			s += " (" + shortCause(o.Causes[ch.Meta().Address]) + ")"
		}
		named = append(named, s)
	}
	for i, b := range p.Blocks {
		if len(p.Changes) > 0 || i == nagiosNamed {
			break
		}
		named = append(named, Clean(b.Address)+" (blocked by "+Clean(string(b.Risk))+")")
	}
	if len(named) > 0 {
		text = hostName(p) + ": " + strings.TrimPrefix(text, "drift: ") + ": " + strings.Join(named, ", ")
	}
	perf := fmt.Sprintf("drift=%d;;0;0 blocks=%d;;0;0", len(p.Changes), len(p.Blocks))
	if c.Loaded {
		perf += fmt.Sprintf(" entries=%d;;;0;", c.Count)
		if c.Max > 0 {
			perf += fmt.Sprint(c.Max)
		}
	}
	return nagiosLine(w, state, text, perf)
}

// NagiosError is the line of a check that could not be made.
func NagiosError(w io.Writer, err error) error {
	return nagiosLine(w, "UNKNOWN", Clean(err.Error()), "")
}

// nagiosLine writes a line. Behind a bar stands the performance data, so
// there is none in the text.
func nagiosLine(w io.Writer, state, text, perf string) error {
	line := "CTPLAN " + state + " - " + strings.ReplaceAll(text, "|", "¦")
	if perf != "" {
		line += " | " + perf
	}
	_, err := io.WriteString(w, line+"\n")
	return err
}
