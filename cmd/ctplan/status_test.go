package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/suggest"
)

func TestModeOf(t *testing.T) {
	rules := func(table, chain, rule string) host.Live {
		return host.Live{Rulesets: []host.Ruleset{{Family: host.IPv4, Tables: []host.Table{{
			Name: table, Rules: []host.Rule{{Chain: chain, Words: strings.Fields(rule), Text: rule}},
		}}}}}
	}
	blocked := func(command string) host.Live {
		return host.Live{ModprobeFiles: []host.ModprobeFile{{
			File:    host.File{Path: "/etc/modprobe.d/netfilter.conf"},
			Entries: []host.ModprobeEntry{{Command: "install", Module: "nf_conntrack", Line: 2, Args: []host.ModprobeArg{{Text: command}}}},
		}}}
	}
	sized := journal.Transaction{Header: journal.Header{ID: 3, Time: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}, Outcome: journal.Committed,
		Steps: []journal.Step{{Step: change.Step{Sysctl: &change.SysctlStep{Key: "net.netfilter.nf_conntrack_max", After: "9"}}}}}
	undone := sized
	undone.ID, undone.Outcome = 4, journal.WasUndone
	back := journal.Transaction{Header: journal.Header{ID: 5, Back: true}, Outcome: journal.Committed}
	broken := journal.Transaction{Err: errors.New("journal 6 is broken")}
	for name, tt := range map[string]struct {
		live    host.Live
		history []journal.Transaction
		err     error
		mode    string
		source  string
	}{
		"nothing":        {mode: "", source: "ctplan has no rules here"},
		"untracks":       {live: rules("raw", "CTPLAN-OUTPUT", "-p tcp -j CT --notrack"), mode: "notrack", source: "ipv4 raw CTPLAN-OUTPUT"},
		"old words":      {live: rules("raw", "CTPLAN-OUTPUT", "-j NOTRACK"), mode: "notrack", source: "ipv4 raw"},
		"by others":      {live: rules("raw", "PREROUTING", "-j NOTRACK"), mode: "", source: "ctplan has no rules"},
		"blocks loading": {live: blocked("/bin/false"), mode: "disabled", source: "/etc/modprobe.d/netfilter.conf:2"},
		"logs loading":   {live: blocked("/usr/local/bin/log"), mode: "", source: "no rules"},
		"accepts alone":  {live: rules("filter", "CTPLAN-INPUT", "-p tcp -j ACCEPT"), mode: "disabled", source: "ipv4 filter CTPLAN-INPUT accepts"},
		"set sizes":      {history: []journal.Transaction{sized}, mode: "tuned", source: "transaction 3 of 2026-11-01"},
		"tried another":  {history: []journal.Transaction{sized, undone}, mode: "tuned", source: "transaction 3"},
		"went back":      {history: []journal.Transaction{sized, back}, mode: "", source: "transaction 5 has taken back"},
		"unreadable":     {history: []journal.Transaction{sized, broken}, mode: "", source: "journal 6 is broken"},
		"no journals":    {err: errors.New("the folder is shut"), mode: "", source: "the folder is shut"},
	} {
		mode, source := modeOf(tt.live, func() ([]journal.Transaction, error) { return tt.history, tt.err })
		if mode != tt.mode || !strings.Contains(source, tt.source) {
			t.Errorf("%s: %q, %q", name, mode, source)
		}
	}
}

// TestScreen draws within the terminal, and over all that was there before.
func TestScreen(t *testing.T) {
	text := "one\ntwo\nthree\nfour\n"
	if got, want := screen(text, "foot", 80, 24), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\nthree\x1b[K\r\nfour\x1b[K\r\nfoot\x1b[K\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := screen(text, "foot", 17, 3), "\x1b[Hone\x1b[K\r\ntwo\x1b[K\r\nfoot; 2 lines mor\x1b[K\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := screen(text, "foot", 80, 1); strings.Count(got, "\n") != 1 {
		t.Errorf("%q", got)
	}
}

func TestRecent(t *testing.T) {
	window := func(seconds int) []suggest.Reading {
		return []suggest.Reading{{}, {After: time.Duration(seconds) * time.Second}}
	}
	one, forty, ninety := window(1), window(40), window(90)
	for _, tt := range []struct{ windows, want [][]suggest.Reading }{
		{nil, nil},
		{[][]suggest.Reading{one, forty}, [][]suggest.Reading{one, forty}},
		{[][]suggest.Reading{one, forty, forty}, [][]suggest.Reading{forty, forty}},
		{[][]suggest.Reading{one, forty, ninety}, [][]suggest.Reading{ninety}},
		{[][]suggest.Reading{one, ninety, nil}, [][]suggest.Reading{ninety, nil}},
	} {
		got := recent(tt.windows)
		if !slices.EqualFunc(got, tt.want, func(a, b []suggest.Reading) bool { return slices.Equal(a, b) }) {
			t.Errorf("%v of %v, want %v", got, tt.windows, tt.want)
		}
	}
}

func TestUTF8Terminal(t *testing.T) {
	for environ, want := range map[string]bool{
		"LANG=C.UTF-8": true, "LANG=en_GB.utf8": true, "LANG=C": false, "": false,
		"LC_ALL=C LANG=C.UTF-8": false, "LC_ALL= LC_CTYPE=de_DE.UTF-8 LANG=C": true,
	} {
		if e := (&env{environ: strings.Fields(environ)}); e.utf8Terminal() != want {
			t.Errorf("%s: %v", environ, !want)
		}
	}
}

// TestTrack: loaded is not active.
func TestTrack(t *testing.T) {
	asks := host.Live{Rulesets: []host.Ruleset{{Tables: []host.Table{{Name: "filter", Rules: []host.Rule{{Chain: "INPUT", Words: []string{"-m", "state"}}}}}}}}
	for name, tt := range map[string]struct {
		live host.Live
		s    view.Status
		want view.Tracking
	}{
		"absent":         {s: view.Status{Conntrack: host.ConntrackAbsent}, want: view.TrackingAbsent},
		"not loaded":     {s: view.Status{Conntrack: host.ConntrackModule}, want: view.TrackingUnloaded},
		"idle":           {s: view.Status{Conntrack: host.ConntrackModule, Loaded: true}, want: view.TrackingIdle},
		"active":         {live: asks, s: view.Status{Conntrack: host.ConntrackBuiltin, Loaded: true}, want: view.TrackingActive},
		"left over":      {s: view.Status{Conntrack: host.ConntrackModule, Loaded: true, Entries: 5}, want: view.TrackingUnknown},
		"rules not read": {live: host.Live{Notes: []string{"x"}}, s: view.Status{Conntrack: host.ConntrackModule, Loaded: true}, want: view.TrackingUnknown},
		"rules hidden":   {live: host.Live{Rulesets: []host.Ruleset{{Incompatible: []string{"nat"}}}}, s: view.Status{Conntrack: host.ConntrackModule, Loaded: true}, want: view.TrackingUnknown},
	} {
		if track(tt.live, &tt.s); tt.s.Tracking != tt.want {
			t.Errorf("%s: %s, want %s", name, tt.s.Tracking, tt.want)
		}
	}
}
