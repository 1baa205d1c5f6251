package view

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/census"
	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/host"
)

func ptr[T any](v T) *T { return &v }

// busyStatus is a web server with its own resolver whose table fills.
func busyStatus() Status {
	now := time.Date(2026, 11, 28, 3, 4, 5, 0, time.UTC)
	return Status{
		FormatVersion: planner.FormatVersion, Time: now, Host: "web-1", Kernel: "6.1.0-18-amd64",
		Mode: "notrack", ModeSource: "ipv4 raw CTPLAN-PREROUTING takes packets out of tracking",
		Conntrack: host.ConntrackModule, Loaded: true, Tracking: TrackingActive, HeldBy: []string{"xt_conntrack", "xt_CT"},
		Askers: []census.Asker{
			{Where: "ipv4 filter INPUT", Rule: "-m state --state RELATED,ESTABLISHED -j ACCEPT"},
			{Where: "inet firewall input", Rule: "ct state established accept"},
		}, AskersAll: 5,
		Entries: 219_003, Max: 262_144, Buckets: 65_536, ChainLength: 6.683, MemoryBytes: 84_621_440, FullBytes: 101_187_584,
		Growth: &GrowthStatus{Growth: census.Growth{Seconds: 0.41, PerSecond: 412.3, Error: 31.8}, FullIn: ptr(104.63)},
		Table: &census.Table{
			Entries: 214_003, Translated: 5_000, Expected: 1, TimedOut: 5_000,
			States: []census.State{
				{Protocol: "udp", Entries: 120_000, Unreplied: 90_000, Assured: 20_000, Longest: 119},
				{Protocol: "tcp", State: "SYN_SENT", Entries: 3, Unreplied: 3, Longest: 118},
				{Protocol: "tcp", State: "ESTABLISHED", Entries: 90_000, Assured: 90_000, Longest: 431_999},
				{Protocol: "icmpv6", Entries: 4_000, Unreplied: 4_000, Longest: 29},
			},
			Services: []census.Service{
				{Service: "udp/53 in", Entries: 110_000, Unreplied: 90_000, Frees: 110_000, FreesBytes: 42_240_000},
				{Service: "tcp/443 in", Entries: 85_000, Frees: 85_000, FreesBytes: 32_640_000},
				{Service: "tcp/8080 forward", Entries: 5_000, Translated: 5_000},
			},
			OtherServices: census.Others{Services: 1_203, Entries: 14_003},
			Opens: census.Peers{Entries: 200_000, Peers: []census.Peer{
				{Address: "198.51.100.7", Entries: 60_000}, {Address: "203.0.113.200", Entries: 412, Error: 195},
			}},
			Calls:   census.Peers{Entries: 14_003, Peers: []census.Peer{{Address: "2001:db8:1234:5678:9abc:def0:1234:5678", Entries: 14_000}}},
			Waits:   []census.Wait{{Seconds: 10, Entries: 40_000}, {Seconds: 60, Entries: 70_000}, {Seconds: 600, Entries: 14_003}, {Seconds: 3600}, {Seconds: 86_400}, {Entries: 90_000}},
			Longest: 431_999,
		},
		Drops: &DropStatus{
			DropCounts: DropCounts{Drop: ptr(uint64(12)), EarlyDrop: ptr(uint64(3_000)), InsertFailed: ptr(uint64(0))}, Source: "netlink",
			Recent: &DropCounts{Drop: ptr(uint64(0)), EarlyDrop: ptr(uint64(7))}, Seconds: 0.6,
		},
		Log: &LogStatus{Messages: 3, Last: ptr(now.Add(-90 * time.Second)), Since: ptr(now.Add(-24 * time.Hour)), Sources: []string{"/dev/kmsg", "journal"}},
		Chains: []ChainStatus{
			{Family: "ipv4", Table: "raw", Chain: "CTPLAN-PREROUTING", Rules: 1, Packets: 1_234_567, Bytes: 99},
			{Family: "ipv4", Table: "filter", Chain: "CTPLAN-INPUT", Rules: 12, Packets: 7},
		},
		Forecast: boot.Forecast{Module: boot.Module{State: boot.ModuleLoaded, Source: "x"}, Max: &boot.Value{Known: true, Value: 65_536}},
		Notes:    []string{},
	}
}

// idleStatus is a host where nothing asks for tracking and next to nothing is known.
func idleStatus() Status {
	return Status{
		FormatVersion: planner.FormatVersion, Host: "api-1", Kernel: "6.18.0", ModeSource: "ctplan has no rules here, and no transaction that set sizes",
		Conntrack: host.ConntrackBuiltin, Loaded: true, Tracking: TrackingIdle, Askers: []census.Asker{}, HeldBy: []string{},
		Max: 65_536, Buckets: 65_536, MemoryBytes: 524_288, FullBytes: 25_690_112,
		Growth: &GrowthStatus{Growth: census.Growth{Seconds: 0.4, Error: 2.5}}, Table: &census.Table{},
		Drops: &DropStatus{Source: "netlink"}, Log: &LogStatus{Sources: []string{}},
		Chains: []ChainStatus{}, Notes: []string{"reading ip6tables: \x1b[2J no such file"},
	}
}

func TestStatusText(t *testing.T) {
	full := idleStatus()
	full.Entries, full.Max, full.Tracking, full.Drops, full.Log, full.Table, full.Growth = 70_000, 65_536, TrackingUnknown, nil, nil, nil, nil
	levels := busyStatus()
	levels.Growth.LevelsOff, levels.Growth.FullIn = ptr(int64(230_000)), ptr(86_400.0*3)
	unloaded := Status{Host: "api-1", Kernel: "6.1.0", Mode: "disabled", ModeSource: "/etc/modprobe.d/netfilter.conf:1 keeps nf_conntrack from loading", Conntrack: host.ConntrackModule, Tracking: TrackingUnloaded}
	for name, tt := range map[string]struct {
		s Status
		o Options
	}{
		"status.txt":          {busyStatus(), Options{}},
		"status-wide.txt":     {busyStatus(), Options{Width: 120}},
		"status-narrow.txt":   {busyStatus(), Options{Width: 44, ASCII: true}},
		"status.color":        {busyStatus(), Options{Color: true}},
		"status-idle.txt":     {idleStatus(), Options{}},
		"status-full.txt":     {full, Options{}},
		"status-levels.txt":   {levels, Options{}},
		"status-unloaded.txt": {unloaded, Options{}},
	} {
		var b bytes.Buffer
		if err := StatusText(&b, tt.s, tt.o); err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b.Bytes())
	}
}

// TestStatusInDocs holds the screen of docs/operation.md to what is printed.
func TestStatusInDocs(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "operation.md"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := StatusText(&b, busyStatus(), Options{}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "```text\n"+b.String()+"```\n") {
		t.Errorf("docs/operation.md does not show this screen:\n%s", b.String())
	}
}

// TestStatusWidth: no line is wider than the terminal, from the width of a
// phone on, but for words that are.
func TestStatusWidth(t *testing.T) {
	for width := 56; width <= 120; width++ {
		var b bytes.Buffer
		if err := StatusText(&b, busyStatus(), Options{Width: width}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("at %d columns a line has %d: %s", width, n, line)
			}
		}
	}
}

// TestStatusHostile: names that others chose do not control the terminal.
func TestStatusHostile(t *testing.T) {
	s := busyStatus()
	evil := "\x1b]0;owned\x07\r\n\u202e"
	s.Host, s.Kernel, s.ModeSource, s.Askers[0].Rule, s.HeldBy[0], s.Notes = evil, evil, evil, evil, evil, []string{evil}
	s.Log.Messages, s.Log.Sources, s.Chains[0].Chain = 0, []string{evil}, evil
	var b bytes.Buffer
	if err := StatusText(&b, s, Options{}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\x07\r\u202e") {
		t.Errorf("%q", b.String())
	}
}

func TestBar(t *testing.T) {
	for share, want := range map[float64]string{0: "..........", 0.001: "#.........", 0.5: "#####.....", 0.999: "#########.", 1: "##########", 3: "##########"} {
		if got := (&textWriter{o: Options{ASCII: true}}).bar(share, 10, ""); got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		commas(0): "0", commas(999): "999", commas(1000): "1,000", commas(-1234567): "-1,234,567",
		percent(0, 10): "0 %", percent(1, 1000): "<1 %", percent(999, 1000): "99 %", percent(5, 5): "100 %", percent(1, 0): "-",
		span(0): "0 s", span(59.6): "1 min", span(61): "1 min 1 s", span(431_999): "4 d 23 h", span(7200): "2 h",
		signed(-0.04): "-0.0", signed(1234.5): "+1,235", bytesText(1): "1 KiB", bytesText(5 << 20): "5.0 MiB", bytesText(30 << 30): "30 GiB",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestStatusDocumented holds the section of docs/json.md about status to naming
// every field, and no other.
func TestStatusDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "json.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "\n## `status`\n")
	section, _, end := strings.Cut(section, "\n## ")
	if !ok || !end {
		t.Fatal("docs/json.md has no section about status")
	}
	fields := map[string]bool{}
	collect(reflect.TypeFor[Status](), fields)
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(section, -1) {
		documented[m[1]] = true
	}
	for f := range fields {
		if !documented[f] {
			t.Errorf("docs/json.md does not name the field %q of status", f)
		}
	}
	for d := range documented {
		if !fields[d] {
			t.Errorf("docs/json.md names %q, which status does not print", d)
		}
	}
	var b bytes.Buffer
	if err := EncodeJSON(&b, busyStatus()); err != nil {
		t.Fatal(err)
	}
	var back Status
	dec := json.NewDecoder(&b)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&back); err != nil || !reflect.DeepEqual(back.Growth, busyStatus().Growth) {
		t.Errorf("%v: %+v", err, back.Growth)
	}
}

// collect finds the names of a type's fields in JSON, but for those of a
// forecast, which plan documents.
func collect(t reflect.Type, into map[string]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[boot.Forecast]() {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			into[name] = true
		}
		collect(f.Type, into)
	}
}
