package planner

import "slices"

// FormatVersion is the version of everything that ctplan writes as JSON.
const FormatVersion = 1

// Plan is what Diff returns. It is blocked when Blocks is not empty: then no
// change may be applied. An empty plan has neither.
type Plan struct {
	Host     Host
	Mode     Mode
	Block    string // label of the conntrack block
	Source   Pos
	Changes  []Change // in the order in which they are applied
	Blocks   []Block
	Warnings []Warning
	Impact   *Impact       // on the connections that were open; nil where none were read or no rule changes
	Forecast *BootForecast // what the host boots into; nil where nobody has looked: see Foreseen
}

// Blocked reports whether a safety check holds the plan back.
func (p Plan) Blocked() bool { return len(p.Blocks) > 0 }

// Empty reports whether the host is as declared.
func (p Plan) Empty() bool { return len(p.Changes) == 0 && len(p.Blocks) == 0 }

// Foreseen returns the plan with what the host boots into as it is and with
// the plan's files in place, and with a warning for each point in which the
// latter is not what is declared.
func (p Plan) Foreseen(d Desired, now, after Live) Plan {
	p.Forecast = &BootForecast{Foresee(now), Foresee(after)}
	if !p.Blocked() {
		p.Warnings = slices.Concat(p.Warnings, BootWarnings(d, after, p.Forecast.After))
	}
	return p
}
