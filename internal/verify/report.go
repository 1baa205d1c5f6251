package verify

import (
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
)

// Report is what verify prints: see docs/json.md.
type Report struct {
	FormatVersion int           `json:"format_version"`
	Host          string        `json:"host"`
	Kernel        string        `json:"kernel"`
	Mode          string        `json:"mode"` // "unmanaged" where no block matches the host
	Block         string        `json:"block,omitempty"`
	Source        *declared.Pos `json:"source,omitempty"`
	Since         Since         `json:"since"`
	Watched       float64       `json:"watched_seconds"` // 0: counters were read once
	Checks        []Check       `json:"checks"`
	Summary       Summary       `json:"summary"`
}

// Since is from when on failures count.
type Since struct {
	Time        time.Time `json:"time"`
	Transaction int       `json:"transaction,omitempty"` // the change then; none: the time is that of the boot
}

// Summary counts the checks, and says it in a line.
type Summary struct {
	Text string `json:"text"`
	Pass int    `json:"pass"`
	Fail int    `json:"fail"`
	Skip int    `json:"skip"`
}

// NewReport makes the checks and reports them.
func NewReport(in Input) *Report {
	d := in.Desired
	r := &Report{
		FormatVersion: planner.FormatVersion,
		Host:          in.Live.Host.Name, Kernel: in.Live.Host.Kernel,
		Mode: string(d.Mode), Block: d.Block,
		Since:   Since{Time: in.Boot.UTC().Truncate(time.Second)},
		Watched: in.Watched.Seconds(),
		Checks:  Checks(in),
	}
	if d.Mode == declared.Unmanaged {
		r.Mode = "unmanaged"
	}
	if d.Source.File != "" {
		r.Source = &d.Source
	}
	if !in.Change.Time.IsZero() {
		r.Since = Since{in.Change.Time.UTC(), in.Change.ID}
	}
	r.Summary = summarise(r.Checks)
	return r
}

func summarise(checks []Check) Summary {
	var s Summary
	for _, c := range checks {
		switch c.Result {
		case Pass:
			s.Pass++
		case Fail:
			s.Fail++
		default:
			s.Skip++
		}
	}
	var parts []string
	if s.Fail > 0 {
		parts = append(parts, plural(s.Fail, "check fails", "checks fail"))
	}
	parts = append(parts, plural(s.Pass, "check passes", "checks pass"))
	if s.Skip > 0 {
		parts = append(parts, plural(s.Skip, "was skipped", "were skipped"))
	}
	s.Text = "verify: " + strings.Join(parts, ", ")
	return s
}
