package etc

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// words splits as providers/kmod does, for lines without quotes around blanks.
func split(line string) (out []host.ModprobeArg) {
	at := 0
	for _, w := range strings.Fields(line) {
		at += strings.Index(line[at:], w)
		out = append(out, host.ModprobeArg{Text: w, Span: host.Span{Start: at, End: at + len(w)}})
		at += len(w)
	}
	return out
}

// TestRefusedParams has lines as people write them; a test on machines holds
// them to what modprobe does.
func TestRefusedParams(t *testing.T) {
	const modern, old = "6.1.0-28-amd64", "3.10.0-1160.el7.x86_64"
	for _, c := range []struct {
		kernel, line string
		refused      string // the words
		meant        uint32
	}{
		{modern, "hashsize=262144", "", 0},
		{modern, "hashsize = 262144", "hashsize = 262144", 262144},
		{modern, "hashsize= 262144", "hashsize= 262144", 262144},
		{modern, "hashsize =262144 acct=1", "hashsize =262144", 262144},
		{modern, "hashsize", "hashsize", 0},
		{modern, "hashsize 262144", "hashsize 262144", 262144},
		{modern, "hashsize acct=1", "hashsize", 0},
		{modern, "hashsize=262144;", "hashsize=262144;", 262144},
		{modern, "hashsize=256k", "hashsize=256k", 0},
		{modern, "hashsize=262,144", "hashsize=262,144", 0},
		{modern, `hashsize="262144"`, "", 0},
		{modern, `"hashsize=262144"`, "", 0},
		{modern, "hashsize=0", "", 0},
		{modern, "hashsize=0x40000", "", 0},
		{modern, "hashsize=08", "hashsize=08", 0},
		{modern, "hashsize=4294967296", "hashsize=4294967296", 0},
		{modern, "hashsize=-1", "hashsize=-1", 0},
		{modern, "hashsize=1_000", "hashsize=1_000", 0},
		{modern, "acct", "", 0},
		{modern, "acct = 1", "", 0},
		{modern, "acct=maybe", "acct=maybe", 0},
		{modern, "no_such=1 # a comment", "", 0},
		{old, "no_such=1", "no_such=1", 0},
		{old, "hashsize=5 acct=1 tstamp=0", "", 0},
		{"", "no_such=1", "", 0},
	} {
		var got string
		var meant uint32
		for _, r := range RefusedParams(c.kernel, split(c.line)) {
			got, meant = c.line[r.Span.Start:r.Span.End], r.Meant
			if r.Why == "" {
				t.Errorf("%s: refused without a reason", c.line)
			}
		}
		if got != c.refused || meant != c.meant {
			t.Errorf("%s on %s: refused %q, meant %d; want %q, %d", c.line, c.kernel, got, meant, c.refused, c.meant)
		}
	}
}
