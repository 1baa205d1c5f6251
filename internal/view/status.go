package view

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/host"
)

// Tracking is what connection tracking does in this network namespace.
type Tracking string

// The states. TrackingUnknown is where rules could not be read, or where there
// are entries and no rule that asks for them.
const (
	TrackingAbsent   Tracking = "absent"   // the kernel has none
	TrackingUnloaded Tracking = "unloaded" // a module that is not loaded
	TrackingIdle     Tracking = "idle"     // nothing asks for it here
	TrackingActive   Tracking = "active"
	TrackingUnknown  Tracking = "unknown"
)

// Status is connection tracking on a host at one moment: see docs/json.md.
type Status struct {
	FormatVersion int       `json:"format_version"`
	Host          string    `json:"host"`
	Kernel        string    `json:"kernel"`
	Time          time.Time `json:"time"`
	Mode          string    `json:"mode"` // empty: not known
	ModeSource    string    `json:"mode_source"`

	Conntrack host.ConntrackKind `json:"conntrack"`
	Loaded    bool               `json:"loaded"`
	Tracking  Tracking           `json:"tracking"`
	Askers    []census.Asker     `json:"askers"` // at most a few
	AskersAll int                `json:"askers_total"`
	HeldBy    []string           `json:"held_by"` // modules that keep nf_conntrack loaded

	Entries     int64   `json:"entries"`
	Max         int64   `json:"max"`
	Buckets     int64   `json:"buckets"`
	ChainLength float64 `json:"chain_length"`
	MemoryBytes int64   `json:"memory_bytes"`
	FullBytes   int64   `json:"memory_full_bytes"` // 0 without a limit

	Growth *GrowthStatus `json:"growth,omitempty"`
	Table  *census.Table `json:"table,omitempty"`
	Drops  *DropStatus   `json:"drops,omitempty"`
	Log    *LogStatus    `json:"log,omitempty"`

	Chains   []ChainStatus `json:"chains"`
	Forecast boot.Forecast `json:"forecast"`
	Notes    []string      `json:"notes"` // what could not be read
}

// GrowthStatus is the growth of the table, and what it leads to.
type GrowthStatus struct {
	census.Growth
	// FullIn is in how many seconds the table is full; nil where it is not known
	// to become full.
	FullIn *float64 `json:"full_in_seconds,omitempty"`
	// LevelsOff is how many entries there will be where short-lived ones are what
	// grows; nil where they cannot be all the growth, or would fill the table too.
	LevelsOff *int64 `json:"levels_off_at,omitempty"`
}

// DropStatus is what was lost, since the network namespace was made.
type DropStatus struct {
	DropCounts
	Source  string      `json:"source"`
	Recent  *DropCounts `json:"recent,omitempty"` // of these, while it was watched
	Seconds float64     `json:"seconds"`          // for which it was
}

// DropCounts are packets and connections lost. What the kernel does not count is
// nil.
type DropCounts struct {
	Drop         *uint64 `json:"drop,omitempty"`
	EarlyDrop    *uint64 `json:"early_drop,omitempty"`
	InsertFailed *uint64 `json:"insert_failed,omitempty"`
	ChainTooLong *uint64 `json:"chaintoolong,omitempty"`
}

// named are the counts by the kernel's names for them.
func (c *DropCounts) named() []namedCount {
	if c == nil {
		return nil
	}
	return []namedCount{{"drop", c.Drop}, {"early_drop", c.EarlyDrop}, {"insert_failed", c.InsertFailed}, {"chaintoolong", c.ChainTooLong}}
}

type namedCount struct {
	name string
	n    *uint64
}

// LogStatus is what the kernel's log says of a full table.
type LogStatus struct {
	Messages int64      `json:"messages"`
	Last     *time.Time `json:"last,omitempty"`
	Since    *time.Time `json:"since,omitempty"` // from when on the log was read without a gap
	Sources  []string   `json:"sources"`         // that were read
}

// ChainStatus is what one of ctplan's chains has treated since its rules were loaded.
type ChainStatus struct {
	Family  string `json:"family"`
	Table   string `json:"table"`
	Chain   string `json:"chain"`
	Rules   int    `json:"rules"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// StatusText renders a status for a terminal. Errors are those of w.
func StatusText(w io.Writer, s Status, o Options) error {
	t := &textWriter{o: o}
	if t.o.Width <= 0 {
		t.o.Width = 80
	}
	t.line(t.paint(bold, Clean(s.Host)) + ", kernel " + Clean(s.Kernel))
	t.mode(s)
	t.tracking(s)
	if s.Loaded {
		t.fill(s)
		t.growth(s)
		t.memory(s)
		t.waits(s)
		t.losses(s)
	}
	t.field("next boot", Boot(s.Forecast))
	if s.Table != nil && s.Table.Entries > 0 {
		t.states(s.Table)
		t.services(s.Table)
		t.peers(s.Table)
	}
	t.chains(s.Chains)
	for _, n := range s.Notes {
		t.painted(yellow, "not known: ", Clean(n))
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// field is a line of the upper part: a name, and words within the width.
func (t *textWriter) field(name, text string) { t.paintedField("", name, text) }

func (t *textWriter) paintedField(sgr, name, text string) {
	t.painted(sgr, fmt.Sprintf("%-10s", name), text)
}

func (t *textWriter) mode(s Status) {
	switch {
	case s.Mode == "":
		t.field("mode", "not known: "+Clean(s.ModeSource))
	default:
		t.field("mode", Clean(s.Mode)+": "+Clean(s.ModeSource))
	}
}

func (t *textWriter) tracking(s Status) {
	kind := "a loaded module"
	if s.Conntrack == host.ConntrackBuiltin {
		kind = "built in"
	}
	if len(s.HeldBy) > 0 {
		kind += " (held by " + Clean(strings.Join(s.HeldBy, ", ")) + ")"
	}
	switch s.Tracking {
	case TrackingAbsent:
		t.field("tracking", "this kernel has none")
	case TrackingUnloaded:
		t.field("tracking", "a module, not loaded: nothing is tracked")
	case TrackingActive:
		t.field("tracking", kind+", active: "+count(s.AskersAll, "rule")+" here "+verb(s.AskersAll, "asks", "ask")+" for it")
		for _, a := range s.Askers {
			t.prose("            ", Clean(a.Where+": "+a.Rule))
		}
		if more := s.AskersAll - len(s.Askers); more > 0 {
			t.prose("            ", fmt.Sprintf("and %s more", commas(int64(more))))
		}
	case TrackingIdle:
		t.field("tracking", kind+", idle: no rule here asks for it")
	default:
		why := "what asks for it could not be read whole"
		if s.Entries > 0 {
			why = "there are entries, and no rule here that asks for them: they are from before and wait for their timeouts, or something else tracks, as Open vSwitch, tc and IPVS do"
		}
		t.field("tracking", kind+"; whether it is active is not known: "+why)
	}
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// fill is how full the table is, as a bar.
func (t *textWriter) fill(s Status) {
	if s.Max <= 0 {
		t.field("entries", commas(s.Entries)+", without a limit")
		return
	}
	share := float64(s.Entries) / float64(s.Max)
	text := fmt.Sprintf("%s of %s (%s)", commas(s.Entries), commas(s.Max), percent(s.Entries, s.Max))
	sgr := green
	switch {
	case share >= 0.9:
		sgr = red
	case share >= 0.7:
		sgr = yellow
	}
	label := fmt.Sprintf("%-10s", "entries")
	width := min(40, t.o.Width-len(label)-2-len(text))
	if width >= 10 {
		t.line(label + t.bar(share, width, sgr) + "  " + text)
		return
	}
	t.line(label + text)
	if width = min(40, t.o.Width-len(label)); width >= 10 {
		t.line(strings.Repeat(" ", len(label)) + t.bar(share, width, sgr))
	}
}

// bar is a share of 1 in so many columns. Something is never shown as nothing,
// and less than all never as all.
func (t *textWriter) bar(share float64, width int, sgr string) string {
	n := min(int(share*float64(width)), width)
	if share > 0 && n == 0 {
		n = 1
	}
	on, off := "█", "░"
	if t.o.ASCII {
		on, off = "#", "."
	}
	return t.paint(sgr, strings.Repeat(on, n)) + t.paint(dim, strings.Repeat(off, width-n))
}

func (t *textWriter) growth(s Status) {
	g := s.Growth
	if s.Max > 0 && s.Entries >= s.Max {
		t.paintedField(red, "growth", "the table is full: packets that would open connections are dropped")
		return
	}
	if g == nil {
		t.field("growth", "not known: the number of entries was not read twice")
		return
	}
	rate := signed(g.PerSecond) + "/s"
	over := " over " + seconds(g.Seconds)
	switch {
	case g.FullIn != nil:
		at := s.Time.Add(time.Duration(*g.FullIn * float64(time.Second)))
		clock := at.Format("15:04:05")
		if *g.FullIn >= 12*3600 {
			clock = at.Format("2006-01-02 15:04")
		}
		text := fmt.Sprintf("%s (+-%s)%s; if it goes on, full in %s, at %s", rate, plain(g.Error), over, span(*g.FullIn), clock)
		sgr := yellow
		switch {
		case g.LevelsOff != nil:
			text += fmt.Sprintf("; if what grows is short-lived, as it may be, it levels off below %s", commas(*g.LevelsOff))
		case *g.FullIn < 3600:
			sgr = red
		}
		t.paintedField(sgr, "growth", text)
	case g.Grows(), g.Shrinks():
		t.field("growth", fmt.Sprintf("%s (+-%s)%s", rate, plain(g.Error), over))
	default:
		t.field("growth", fmt.Sprintf("none to be seen%s, to +-%s/s", over, plain(g.Error)))
	}
}

func (t *textWriter) memory(s Status) {
	text := bytesText(s.MemoryBytes) + " now"
	if s.FullBytes > 0 {
		text += ", " + bytesText(s.FullBytes) + " when full"
	}
	t.field("memory", text+fmt.Sprintf("; %s buckets, chains of %.2f on average", commas(s.Buckets), s.ChainLength))
}

func (t *textWriter) waits(s Status) {
	if s.Table == nil || s.Table.Entries == 0 {
		return
	}
	longest := ""
	for _, st := range s.Table.States {
		if st.Longest == s.Table.Longest {
			longest = strings.TrimSpace(st.Protocol + " " + st.State)
			break
		}
	}
	soon := s.Table.Waits[0].Entries + s.Table.Waits[1].Entries
	text := fmt.Sprintf("the longest wait is %s (%s); without another packet %s end within a minute", span(float64(s.Table.Longest)), longest, percent(soon, s.Table.Entries))
	if s.Table.TimedOut > 100 && s.Table.TimedOut > s.Entries/100 {
		text += fmt.Sprintf("; %s had timed out already and counted still", commas(s.Table.TimedOut))
	}
	t.field("timeouts", Clean(text))
}

// losses is what was dropped, as the kernel counts it and as it logged it.
func (t *textWriter) losses(s Status) {
	t.drops(s.Drops)
	l := s.Log
	switch {
	case l == nil:
	case l.Messages > 0:
		text := count(int(l.Messages), "message") + " of a full table"
		if l.Last != nil {
			text += ", the last at " + l.Last.Format("2006-01-02 15:04:05")
		}
		t.paintedField(red, "log", text)
	case l.Since != nil:
		t.field("log", "no message of a full table since "+l.Since.Format("2006-01-02 15:04:05")+" ("+Clean(strings.Join(l.Sources, ", "))+")")
	default:
		t.field("log", "whether the kernel has logged a full table is not known: no log could be read")
	}
}

func (t *textWriter) drops(d *DropStatus) {
	var parts []string
	sgr, known := "", false
	if d != nil {
		recent := d.Recent.named()
		for i, c := range d.named() {
			if c.n == nil {
				parts = append(parts, c.name+" not known")
				continue
			}
			known = true
			part := c.name + " " + commas(int64(*c.n))
			if *c.n > 0 && sgr == "" {
				sgr = yellow
			}
			if len(recent) > 0 && recent[i].n != nil && *recent[i].n > 0 {
				part += fmt.Sprintf(" (%s in the last %s)", commas(int64(*recent[i].n)), seconds(d.Seconds))
				sgr = red
			}
			parts = append(parts, part)
		}
	}
	if !known {
		t.field("drops", "not known")
		return
	}
	t.paintedField(sgr, "drops", strings.Join(parts, ", "))
}

func (t *textWriter) states(table *census.Table) {
	protocol, state := column{head: "protocol"}, column{head: "state"}
	entries, share := column{head: "entries", right: true}, column{head: "share", right: true, drop: 2}
	unreplied, assured := column{head: "unreplied", right: true}, column{head: "assured", right: true}
	longest := column{head: "longest", right: true, drop: 1}
	last := ""
	for _, s := range table.States {
		name := s.Protocol
		if name == last {
			name = ""
		}
		last = s.Protocol
		protocol.add(name)
		state.add(s.State)
		entries.add(commas(s.Entries))
		share.add(percent(s.Entries, table.Entries))
		unreplied.add(commas(s.Unreplied))
		assured.add(commas(s.Assured))
		longest.add(span(float64(s.Longest)))
	}
	t.line("")
	t.columns(protocol, state, entries, share, unreplied, assured, longest)
}

func (t *textWriter) services(table *census.Table) {
	service, entries, share := column{head: "service"}, column{head: "entries", right: true}, column{head: "share", right: true, drop: 2}
	unreplied := column{head: "unreplied", right: true, drop: 1}
	frees := column{head: "untracked it frees", right: true}
	for _, s := range table.Services {
		service.add(s.Service)
		entries.add(commas(s.Entries))
		share.add(percent(s.Entries, table.Entries))
		unreplied.add(commas(s.Unreplied))
		switch s.Frees {
		case 0:
			frees.add("nothing: translated")
		default:
			frees.add(fmt.Sprintf("%s, %s", commas(s.Frees), bytesText(s.FreesBytes)))
		}
	}
	if o := table.OtherServices; o.Services > 0 {
		service.add(fmt.Sprintf("%s more", commas(o.Services)))
		entries.add(commas(o.Entries))
		share.add(percent(o.Entries, table.Entries))
		unreplied.add("")
		frees.add("")
	}
	t.line("")
	t.columns(service, entries, share, unreplied, frees)
}

// peers are those who open connections and those who are called, side by side
// where there is room.
func (t *textWriter) peers(table *census.Table) {
	block := func(head string, p census.Peers) []string {
		address, entries, share := column{head: head}, column{head: "entries", right: true}, column{head: "share", right: true}
		for _, peer := range p.Peers {
			n := commas(peer.Entries)
			if peer.Error > 0 {
				n = commas(peer.Entries-peer.Error) + "-" + n
			}
			address.add(Clean(peer.Address))
			entries.add(n)
			share.add(percent(peer.Entries, p.Entries))
		}
		return t.rows(address, entries, share)
	}
	var left, right []string
	if len(table.Opens.Peers) > 0 {
		left = block("who opens", table.Opens)
	}
	if len(table.Calls.Peers) > 0 {
		right = block("who is called", table.Calls)
	}
	if len(left)+len(right) == 0 {
		return
	}
	t.line("")
	const gap = 4
	if len(left) > 0 && len(right) > 0 && utf8.RuneCountInString(left[0])+gap+utf8.RuneCountInString(right[0]) <= t.o.Width {
		blank := strings.Repeat(" ", utf8.RuneCountInString(left[0]))
		for i := range max(len(left), len(right)) {
			l, r := blank, ""
			if i < len(left) {
				l = left[i]
			}
			if i < len(right) {
				r = right[i]
			}
			t.headed(i, l+strings.Repeat(" ", gap)+r)
		}
		return
	}
	for k, b := range [][]string{left, right} {
		if k > 0 && len(left) > 0 && len(right) > 0 {
			t.line("")
		}
		for i, l := range b {
			t.headed(i, l)
		}
	}
}

func (t *textWriter) chains(list []ChainStatus) {
	if len(list) == 0 {
		t.line("")
		t.line("ctplan has no rules here")
		return
	}
	family, table, chain := column{head: "family", drop: 1}, column{head: "table"}, column{head: "chain"}
	rules, packets := column{head: "rules", right: true, drop: 2}, column{head: "packets", right: true}
	for _, c := range list {
		family.add(Clean(c.Family))
		table.add(Clean(c.Table))
		chain.add(Clean(c.Chain))
		rules.add(commas(int64(c.Rules)))
		packets.add(commas(int64(c.Packets)))
	}
	t.line("")
	t.columns(family, table, chain, rules, packets)
}
