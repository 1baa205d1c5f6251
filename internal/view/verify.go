package view

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/verify"
)

// Verify renders what verify found, for a terminal: a line for each check, what
// was found below those that fail, and the summary last. Errors are those of w.
func Verify(w io.Writer, r *verify.Report, o Options) error {
	t := &textWriter{o: o}
	if t.o.Width <= 0 {
		t.o.Width = 100
	}
	t.verifyHead(r)
	longest := 0
	for _, c := range r.Checks {
		longest = max(longest, utf8.RuneCountInString(Clean(c.Name)))
	}
	for _, c := range r.Checks {
		sgr := map[verify.Result]string{verify.Pass: green, verify.Fail: red, verify.Skip: yellow}[c.Result]
		name := Clean(c.Name)
		label := string(c.Result) + "  " + name + strings.Repeat(" ", longest-utf8.RuneCountInString(name)+2)
		indent := strings.Repeat(" ", utf8.RuneCountInString(label))
		for i, l := range wrap(Clean(c.Text()), max(20, t.o.Width-len(indent))) {
			if i == 0 {
				t.line(t.paint(sgr, string(c.Result)) + strings.TrimPrefix(label, string(c.Result)) + l)
				continue
			}
			t.line(indent + l)
		}
		if c.Result == verify.Fail || o.Full {
			for _, e := range c.Evidence {
				t.line(indent + "- " + Clean(e))
			}
		}
	}
	t.line("")
	sgr := green
	if r.Summary.Fail > 0 {
		sgr = red
	}
	t.line(t.paint(sgr, Clean(r.Summary.Text)))
	_, err := io.WriteString(w, t.b.String())
	return err
}

func (t *textWriter) verifyHead(r *verify.Report) {
	host := Clean(r.Host)
	if host == "" {
		host = "this host"
	}
	mode := "mode " + Clean(r.Mode)
	if r.Mode == "unmanaged" {
		mode = "unmanaged: no conntrack block matches it"
	}
	t.line(t.paint(bold, "verify of "+host) + ", " + mode)
	if r.Block != "" {
		at := ""
		if r.Source != nil {
			at = " at " + Clean(r.Source.String())
		}
		t.line(t.paint(dim, `conntrack "`+Clean(r.Block)+`"`+at))
	}
	since := fmt.Sprintf("since transaction %d of %s", r.Since.Transaction, r.Since.Time.Local().Format(time.DateTime))
	if r.Since.Transaction == 0 {
		since = "since boot at " + r.Since.Time.Local().Format(time.DateTime) + ": no change by ctplan is known"
	}
	if r.Watched > 0 {
		since += fmt.Sprintf(", watched for %.0f s", r.Watched)
	}
	t.line(t.paint(dim, since))
	t.line("")
}
