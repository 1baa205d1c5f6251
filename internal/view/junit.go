package view

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/ctplan/ctplan/planner"
)

// The elements of JUnit's XML that continuous integration reads.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Hostname string      `xml:"hostname,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Failure *junitFailure `xml:"failure"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",cdata"`
}

// JUnit renders drift as a report of tests: one for each object that differs
// and for each safety check that stands in the way, which fails with what Text
// says of it; one that passes where the host is as declared. Errors are those
// of w.
func JUnit(w io.Writer, p planner.Plan, o Options) error {
	o.Color, o.Verb = false, Drift
	s := junitSuite{Name: "ctplan drift", Hostname: hostName(p)}
	class := "ctplan." + strings.ReplaceAll(hostName(p), ".", "_") // dots part packages
	add := func(name, kind, message string, write func(*textWriter)) {
		t := &textWriter{o: o}
		if t.o.Width <= 0 {
			t.o.Width = 80
		}
		write(t)
		s.Cases = append(s.Cases, junitCase{class, name, &junitFailure{message, kind, t.b.String()}})
	}
	for _, c := range p.Changes {
		message := c.Meta().Action.String()
		if why := o.Causes[c.Meta().Address]; len(why) > 0 {
			message += ": " + causeLine(why[0])
		}
		add(Clean(c.Meta().Address), "drift", message, func(t *textWriter) { t.change(c) })
	}
	for i, b := range p.Blocks {
		name := fmt.Sprintf("%s: %s", Clean(string(b.Risk)), Clean(b.Address))
		add(name, "blocked", Clean(b.Why), func(t *textWriter) {
			t.blocks(planner.Plan{Blocks: p.Blocks[i : i+1]})
		})
	}
	s.Failures = len(s.Cases)
	if len(s.Cases) == 0 {
		s.Cases = append(s.Cases, junitCase{Class: class, Name: Summary(p, Drift)})
	}
	s.Tests = len(s.Cases)
	out, err := xml.MarshalIndent(junitSuites{Tests: s.Tests, Failures: s.Failures, Suites: []junitSuite{s}}, "", "  ")
	if err != nil {
		return fmt.Errorf("write junit: %w", err)
	}
	_, err = w.Write([]byte(xml.Header + string(out) + "\n"))
	return err
}
