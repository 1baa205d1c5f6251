package view

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/internal/verify"
	"github.com/ctplan/ctplan/planner/declared"
)

func failingReport() *verify.Report {
	return &verify.Report{
		FormatVersion: 1, Host: "nat-1", Kernel: "6.1.0-28-amd64", Mode: "tuned", Block: "gateway", Source: &declared.Pos{File: "nat.hcl", Line: 3},
		Since: verify.Since{Time: time.Date(2027, 1, 2, 3, 4, 5, 0, time.Local), Transaction: 7}, Watched: 60.02,
		Checks: []verify.Check{
			{Name: "tuned.max", Result: verify.Pass, What: "the table takes 524,288 entries", Evidence: []string{}},
			{Name: "tuned.boot.max", Result: verify.Fail, What: "the next boot ends with 524,288 entries", Why: "it ends with 1,000: /etc/sysctl.d/\x1b[2J.conf:1", Evidence: []string{"found in \x1b]0;evil\x07\u202efile"}},
			{Name: "table_full", Result: verify.Skip, What: `no "table full, dropping packet" in the kernel's log`, Why: "none was found, but the logs reach back to 2027-01-02 03:04:06 only", Evidence: []string{"/dev/kmsg: 0 messages", "journal: not read: there is no journalctl"}},
		},
		Summary: verify.Summary{Text: "verify: 1 check fails, 1 check passes, 1 was skipped", Pass: 1, Fail: 1, Skip: 1},
	}
}

// TestVerify holds what verify prints, and that nothing in it moves a cursor.
func TestVerify(t *testing.T) {
	for name, o := range map[string]Options{"verify.txt": {}, "verify.color": {Color: true}, "verify-full.txt": {Full: true, Width: 60}} {
		var b bytes.Buffer
		if err := Verify(&b, failingReport(), o); err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b.Bytes())
		plain := regexp.MustCompile(`\x1b\[[0-9]+m`).ReplaceAllString(b.String(), "")
		if strings.ContainsAny(plain, "\x1b\x07\u202e") {
			t.Errorf("%s: control characters in %q", name, plain)
		}
		if !o.Color && plain != b.String() {
			t.Errorf("%s is coloured", name)
		}
	}
	r := failingReport()
	r.Mode, r.Block, r.Source, r.Since.Transaction, r.Watched, r.Checks = "unmanaged", "", nil, 0, 0, r.Checks[:1]
	r.Summary = verify.Summary{Text: "verify: 1 check passes", Pass: 1}
	var b bytes.Buffer
	if err := Verify(&b, r, Options{}); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "verify-unmanaged.txt", b.Bytes())
}
