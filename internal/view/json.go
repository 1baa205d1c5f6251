package view

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/textdiff"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// JSON renders a plan as one object, followed by a newline; docs/json.md names
// its fields. Options other than Verb change nothing. Errors are those of w.
func JSON(w io.Writer, p planner.Plan, o Options) error {
	return EncodeJSON(w, planObject{
		FormatVersion: planner.FormatVersion,
		Command:       command(o.Verb),
		planJSON:      newPlanJSON(p, o),
	})
}

// FleetJSON renders several plans as one object with a list of them.
func FleetJSON(w io.Writer, plans []planner.Plan, o Options) error {
	f := fleetObject{
		FormatVersion: planner.FormatVersion,
		Command:       command(o.Verb),
		Plans:         []planJSON{},
		Summary:       FleetSummary(plans),
	}
	for _, p := range plans {
		f.Plans = append(f.Plans, newPlanJSON(p, o))
	}
	return EncodeJSON(w, f)
}

// EncodeJSON writes v as indented JSON that is safe on a terminal: characters
// that encoding/json lets through and that turn, hide or control text are
// written as \u escapes, which read back as the same string. Bytes that are
// not UTF-8 become U+FFFD.
func EncodeJSON[T any](w io.Writer, v T) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // this is not HTML, and rules are full of < and >
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write json: %w", err)
	}
	_, err := w.Write(escapeJSON(b.Bytes()))
	return err
}

// escapeJSON works on a whole document: outside of strings JSON is printable
// ASCII and newlines, so every other character stands in a string.
func escapeJSON(doc []byte) []byte {
	out := make([]byte, 0, len(doc))
	for i := 0; i < len(doc); {
		r, size := utf8.DecodeRune(doc[i:])
		switch {
		case unicode.IsPrint(r) || r == '\n':
			out = append(out, doc[i:i+size]...)
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			hi, lo := (r-0x10000)>>10+0xD800, (r-0x10000)&0x3FF+0xDC00
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		}
		i += size
	}
	return out
}

func command(v Verb) string {
	if v == "" {
		v = Plan
	}
	return string(v)
}

type planObject struct {
	FormatVersion int    `json:"format_version"`
	Command       string `json:"command"`
	planJSON
}

type fleetObject struct {
	FormatVersion int        `json:"format_version"`
	Command       string     `json:"command"`
	Plans         []planJSON `json:"plans"`
	Summary       string     `json:"summary"`
}

type planJSON struct {
	Host     hostJSON        `json:"host"`
	Mode     string          `json:"mode"` // "unmanaged" where no block matches
	Block    string          `json:"block,omitempty"`
	Source   *declared.Pos   `json:"source,omitempty"`
	Changes  []changeJSON    `json:"changes"`
	Blocks   []blockJSON     `json:"blocks"`
	Warnings []warningJSON   `json:"warnings"`
	Impact   *impact.Impact  `json:"impact,omitempty"`
	Forecast *boot.Forecasts `json:"forecast,omitempty"`
	Summary  summaryJSON     `json:"summary"`
}

// hostJSON leaves out the machine ID, which machine-id(5) asks to keep private.
type hostJSON struct {
	Name   string `json:"name"`
	Kernel string `json:"kernel,omitempty"`
}

type summaryJSON struct {
	Text    string `json:"text"`
	Blocked bool   `json:"blocked"`
	Empty   bool   `json:"empty"`
	Create  int    `json:"create"`
	Update  int    `json:"update"`
	Delete  int    `json:"delete"`
	Run     int    `json:"run"`
}

type blockJSON struct {
	Risk     string        `json:"risk"`
	Address  string        `json:"address"`
	Where    string        `json:"where"`
	Why      string        `json:"why"`
	Remedy   string        `json:"remedy"`
	Override bool          `json:"override"`
	Source   *declared.Pos `json:"source,omitempty"`
	Commands []string      `json:"commands,omitempty"`
}

type warningJSON struct {
	Address string        `json:"address,omitempty"`
	Text    string        `json:"text"`
	Source  *declared.Pos `json:"source,omitempty"`

	Commands []string `json:"commands,omitempty"`
}

// changeJSON has exactly one of its last seven members, the one that Kind names.
// Values and modules are shown as apply's steps have them. Rules, files and
// services are not: a step says how to get there, a reader wants to see what is.
type changeJSON struct {
	Address  string         `json:"address"`
	Action   string         `json:"action"`
	Kind     string         `json:"kind"`
	Reasons  []string       `json:"reasons"`
	Sources  []declared.Pos `json:"sources"`
	Disrupts string         `json:"disrupts,omitempty"`
	Causes   []causeJSON    `json:"causes,omitempty"`

	Rules    *rulesJSON           `json:"rules,omitempty"`
	NFTables *nftablesJSON        `json:"nftables,omitempty"`
	File     *fileJSON            `json:"file,omitempty"`
	Sysctl   *change.SysctlStep   `json:"sysctl,omitempty"`
	Hashsize *change.HashsizeStep `json:"hashsize,omitempty"`
	Module   *change.ModuleStep   `json:"module,omitempty"`
	Service  *serviceJSON         `json:"service,omitempty"`
}

type rulesJSON struct {
	Family  string       `json:"family"`
	Backend string       `json:"backend"`
	Table   string       `json:"table"`
	Before  []string     `json:"before"`
	After   []string     `json:"after"`
	Origins []originJSON `json:"origins"` // in the order of After

	Twins []change.Twins `json:"twins,omitempty"`
}

type nftablesJSON struct {
	Family  string       `json:"family"`
	Table   string       `json:"table"`
	Before  []string     `json:"before"`
	After   []string     `json:"after"`
	Origins []originJSON `json:"origins"` // in the order of After
}

type originJSON struct {
	Rule   string       `json:"rule"`
	Source declared.Pos `json:"source"`
}

type fileJSON struct {
	Path   string         `json:"path"`
	Before *fileStateJSON `json:"before"` // null: does not exist
	After  *fileStateJSON `json:"after"`  // null: is removed
	Diff   string         `json:"diff"`
}

type fileStateJSON struct {
	Mode   string `json:"mode"`
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
	Target string `json:"target,omitempty"`
	// One of the two: base64 where the content is not UTF-8.
	Content       *string `json:"content,omitempty"`
	ContentBase64 *string `json:"content_base64,omitempty"`
}

type serviceJSON struct {
	Commands   [][]string `json:"commands"`
	Families   []string   `json:"families"`
	KeepsRules bool       `json:"keeps_rules"`
}

func newPlanJSON(p planner.Plan, o Options) planJSON {
	t := tally(p)
	j := planJSON{
		Host:     hostJSON{p.Host.Name, p.Host.Kernel},
		Mode:     string(p.Mode),
		Block:    p.Block,
		Source:   source(p.Source),
		Changes:  []changeJSON{},
		Blocks:   []blockJSON{},
		Warnings: []warningJSON{},
		Impact:   p.Impact,
		Forecast: p.Forecast,
		Summary: summaryJSON{
			Text: o.summary(p), Blocked: p.Blocked(), Empty: p.Empty(),
			Create: t.Create, Update: t.Update, Delete: t.Delete, Run: t.Run,
		},
	}
	if p.Mode == declared.Unmanaged {
		j.Mode = "unmanaged"
	}
	for _, c := range p.Changes {
		j.Changes = append(j.Changes, newChangeJSON(c, o))
	}
	for _, b := range p.Blocks {
		j.Blocks = append(j.Blocks, blockJSON{
			Risk: string(b.Risk), Address: b.Address, Where: b.Where, Why: b.Why,
			Remedy: b.Remedy, Override: b.Override, Source: source(b.Source), Commands: b.Commands,
		})
	}
	for _, w := range p.Warnings {
		j.Warnings = append(j.Warnings, warningJSON{w.Address, w.Text, source(w.Source), w.Commands})
	}
	return j
}

func newChangeJSON(c change.Change, o Options) changeJSON {
	m := c.Meta()
	j := changeJSON{
		Address:  m.Address,
		Action:   m.Action.String(),
		Reasons:  list(m.Reasons),
		Sources:  list(m.Sources),
		Disrupts: m.Disrupts,
		Causes:   causesJSON(o.Causes[m.Address]),
	}
	switch c := c.(type) {
	case *change.RulesChange:
		j.Kind = "rules"
		r := &rulesJSON{
			Family: string(c.Family), Backend: string(c.Backend), Table: c.Table,
			Before: list(c.Before), After: list(c.After), Twins: c.Twins,
		}
		r.Origins = originsJSON(c.After, c.Origin)
		j.Rules = r
	case *change.NFTChange:
		j.Kind = "nftables"
		j.NFTables = &nftablesJSON{Family: c.Family, Table: c.Table, Before: list(c.Before), After: list(c.After), Origins: originsJSON(c.After, c.Origin)}
	case *change.FileChange:
		j.Kind = "file"
		j.File = newFileJSON(c)
	case *change.SysctlChange:
		j.Kind = "sysctl"
		j.Sysctl = &change.SysctlStep{Key: c.Key, Before: c.Before, After: c.After}
	case *change.HashsizeChange:
		j.Kind = "hashsize"
		j.Hashsize = &change.HashsizeStep{Before: c.Before, After: c.After}
	case *change.ModuleChange:
		j.Kind = "module"
		j.Module = &change.ModuleStep{Module: c.Module, Load: c.Load}
	case *change.ServiceChange:
		j.Kind = "service"
		s := &serviceJSON{Commands: list(c.Step.Commands), Families: []string{}, KeepsRules: c.Step.KeepsRules}
		for _, r := range c.Step.Rules {
			s.Families = append(s.Families, string(r.Family))
		}
		j.Service = s
	}
	return j
}

// originsJSON are the lines that the HCL asked for, each once.
func originsJSON(lines []string, origin map[string]declared.Pos) []originJSON {
	out := []originJSON{}
	seen := make(map[string]bool)
	for _, line := range lines {
		if pos, ok := origin[line]; ok && !seen[line] {
			seen[line] = true
			out = append(out, originJSON{line, pos})
		}
	}
	return out
}

func newFileJSON(c *change.FileChange) *fileJSON {
	path := c.After.Path
	if path == "" {
		path = c.Before.Path
	}
	from, to := "a"+path, "b"+path
	if !c.Before.Exists {
		from = "/dev/null"
	}
	if !c.After.Exists {
		to = "/dev/null"
	}
	return &fileJSON{
		Path:   path,
		Before: fileState(c.Before),
		After:  fileState(c.After),
		Diff:   textdiff.Unified(Clean(from), Clean(to), c.Before.Content, c.After.Content, context),
	}
}

func fileState(f host.File) *fileStateJSON {
	if !f.Exists {
		return nil
	}
	j := &fileStateJSON{Mode: fmt.Sprintf("%04o", f.Mode), UID: f.UID, GID: f.GID, Target: f.Target}
	if utf8.ValidString(f.Content) {
		j.Content = &f.Content
	} else {
		b := base64.StdEncoding.EncodeToString([]byte(f.Content))
		j.ContentBase64 = &b
	}
	return j
}

func source(p declared.Pos) *declared.Pos {
	if p.File == "" {
		return nil
	}
	return &p
}

// list makes an absent list an empty one: null would be a second way to say none.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
