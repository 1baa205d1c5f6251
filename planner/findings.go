package planner

import (
	"cmp"
	"fmt"
	"slices"
)

// Block is one reason why a plan may not be applied.
type Block struct {
	Risk    Risk   `json:"risk"`
	Address string `json:"address"` // the object it is about
	Where   string `json:"where"`   // the exact rule, file:line or module
	Why     string `json:"why"`     // what would go wrong: a sentence without a full stop
	Remedy  string `json:"remedy"`  // what to do about it: the same
	// Override is whether allow_risk lifts it.
	Override bool `json:"override"`
	Source   Pos  `json:"source"`
	// Commands are what to run about it, a shell command each.
	Commands []string `json:"commands,omitempty"`
}

// Warning is something to know that blocks nothing.
type Warning struct {
	Address string `json:"address,omitempty"`
	Text    string `json:"text"`
	Source  Pos    `json:"source"`
	// Commands are what to run about it, a shell command each.
	Commands []string `json:"commands,omitempty"`
}

// MaxNamed is how many objects of one kind are named one by one.
const MaxNamed = 10

// Findings are what a stage has to say beside its changes, in the order in
// which it came upon them.
type Findings struct {
	Blocks   []Block
	Warnings []Warning
}

// Add takes in what another stage found; a warning that is there already, once.
func (f *Findings) Add(more Findings) {
	f.Blocks = append(f.Blocks, more.Blocks...)
	for _, w := range more.Warnings {
		f.warn(w)
	}
}

func (f *Findings) warn(w Warning) {
	if !slices.ContainsFunc(f.Warnings, func(o Warning) bool { return o.Address == w.Address && o.Text == w.Text && o.Source == w.Source }) {
		f.Warnings = append(f.Warnings, w)
	}
}

// Report collects the findings of one stage.
type Report struct {
	Findings
	accepts []Risk // a block of such a risk is a warning
	source  Pos    // of blocks that name none
}

// NewReport is an empty report about what d declares.
func NewReport(d Desired) Report { return Report{accepts: d.AllowRisk, source: d.ModeSource} }

// Warn records something to know.
func (r *Report) Warn(address, text string, source Pos, commands ...string) {
	r.warn(Warning{Address: address, Text: text, Source: source, Commands: commands})
}

// Block records a reason not to go on, unless the HCL accepts the risk. It
// reports whether the risk is accepted.
func (r *Report) Block(b Block) bool {
	if b.Override && slices.Contains(r.accepts, b.Risk) {
		r.Warn(b.Address, fmt.Sprintf("%s: %s (allow_risk accepts %s)", b.Where, b.Why, b.Risk), b.Source)
		return true
	}
	if b.Source == (Pos{}) {
		b.Source = r.source
	}
	r.Blocks = append(r.Blocks, b)
	return false
}

func SortPos(at []Pos) []Pos {
	slices.SortFunc(at, func(a, b Pos) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line)) })
	return at
}
