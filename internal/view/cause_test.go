package view

import (
	"bytes"
	"encoding/xml"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/cause"
	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/trace"
)

func causesOf(p planner.Plan, s string) map[string][]cause.Cause {
	at := time.Date(2026, 11, 28, 17, 29, 41, 0, time.UTC)
	causes := map[string][]cause.Cause{}
	for _, c := range p.Changes {
		causes[c.Meta().Address] = []cause.Cause{
			{
				Kind: cause.Hand, Sure: cause.Likely, Text: "alice ran /usr/sbin/iptables " + s + " with sudo",
				Evidence: []trace.Record{{Where: "/var/log/auth.log:1042", Text: "sudo: alice : " + s, Time: at}},
			},
			{Kind: cause.Reboot, Sure: cause.Possible, Text: "the host was restarted", Evidence: []trace.Record{{Where: "/proc/stat"}}},
		}
	}
	return causes
}

func TestGoldenCauses(t *testing.T) {
	unknown := map[string][]cause.Cause{"iptables.ipv4.filter": {{Kind: cause.Unknown, Text: "cause not known"}}}
	table := host.Conntrack{Loaded: true, Count: 812, Max: 65536}
	for _, tt := range []struct {
		name   string
		plan   planner.Plan
		causes map[string][]cause.Cause
		table  host.Conntrack
	}{
		{"causes", driftPlan(), causesOf(driftPlan(), "-D INPUT 1"), table},
		{"causes-none", emptyPlan(), nil, host.Conntrack{}},
		{"causes-unknown", driftPlan(), unknown, host.Conntrack{Loaded: true}},
		{"causes-blocked", blockedPlan(), causesOf(blockedPlan(), "-F"), table},
		{"causes-hostile", hostilePlan(nasty), causesOf(hostilePlan(nasty), nasty), table},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Verb: Drift, Causes: tt.causes}
			for ext, render := range map[string]func(*bytes.Buffer) error{
				"txt":    func(b *bytes.Buffer) error { return Text(b, tt.plan, o) },
				"md":     func(b *bytes.Buffer) error { return Markdown(b, tt.plan, o) },
				"json":   func(b *bytes.Buffer) error { return JSON(b, tt.plan, o) },
				"xml":    func(b *bytes.Buffer) error { return JUnit(b, tt.plan, o) },
				"nagios": func(b *bytes.Buffer) error { return Nagios(b, tt.plan, tt.table, o) },
			} {
				var b bytes.Buffer
				if err := render(&b); err != nil {
					t.Fatal(err)
				}
				golden.Check(t, tt.name+"."+ext, b.Bytes())
			}
		})
	}
}

func TestNagiosError(t *testing.T) {
	var b bytes.Buffer
	if err := NagiosError(&b, errors.New("reading a|b\nfailed")); err != nil {
		t.Fatal(err)
	}
	if want := "CTPLAN UNKNOWN - reading a¦b\\nfailed\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// perf is the line of a plugin: text without a bar, then performance data.
var perf = regexp.MustCompile(`^CTPLAN (OK|CRITICAL) - [^|\n]+ \| drift=\d+;;0;0 blocks=\d+;;0;0( entries=\d+;;;0;\d*)?\n$`)

// FuzzDriftFormats holds that whatever a plan and its causes carry, JUnit is
// well-formed XML with as many failures as it says, and that the plugin's line
// is one line.
func FuzzDriftFormats(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range []planner.Plan{hostilePlan(s), hostileBlocked(s)} {
			o := Options{Verb: Drift, Causes: causesOf(p, s)}
			var b bytes.Buffer
			if err := JUnit(&b, p, o); err != nil {
				t.Fatal(err)
			}
			var got junitSuites
			if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
				t.Fatalf("%v in\n%s", err, b.String())
			}
			n := 0
			for _, c := range got.Suites[0].Cases {
				if c.Failure != nil {
					n++
					safe(t, c.Failure.Text)
				}
			}
			if n != got.Failures || n != len(p.Changes)+len(p.Blocks) {
				t.Errorf("%d failures, %d said, of %d changes and %d blocks", n, got.Failures, len(p.Changes), len(p.Blocks))
			}
			b.Reset()
			if err := Nagios(&b, p, host.Conntrack{Loaded: len(s)%2 == 0}, o); err != nil {
				t.Fatal(err)
			}
			safe(t, b.String())
			if !perf.MatchString(b.String()) {
				t.Errorf("not a line of a plugin: %q", b.String())
			}
			b.Reset()
			if err := Text(&b, p, o); err != nil {
				t.Fatal(err)
			}
			safe(t, b.String())
			b.Reset()
			if err := Markdown(&b, p, o); err != nil {
				t.Fatal(err)
			}
			safe(t, b.String())
			outside(t, strings.ReplaceAll(b.String(), "\n  - ", "\n- "))
		}
	})
}
