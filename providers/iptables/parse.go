package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// maxLine is the longest line, with its newline, that iptables-restore reads
// as one: it takes the rest for a line of its own.
const maxLine = 10239

// SyntaxError is a line that iptables-restore would not take for what
// iptables-save writes.
type SyntaxError struct {
	File    string // empty for rules in the kernel
	Family  host.Family
	Line    int // from 1
	Problem string
}

func (e *SyntaxError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("reading the %s rules in the kernel: line %d of iptables-save: %s", e.Family, e.Line, e.Problem)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Problem)
}

// Parse reads the text of iptables-save, with or without counters: any number
// of sections, also several of one table. Strings of the result are parts of
// text wherever nothing is escaped. It reads what iptables-restore reads, and
// a last line without its newline; of commands it takes -A alone, which is
// the only one that iptables-save writes. Errors are *SyntaxError.
func Parse(f host.Family, text string) (host.Ruleset, error) {
	p := newParser(f)
	p.rules = make([]host.Rule, 0, strings.Count(text, "\n-A ")+1)
	p.feed(text)
	return p.finish()
}

// ParseFile is Parse for a saved rules file. It also refuses what works in the
// kernel but not from a file: lines longer than iptables-restore can read.
func ParseFile(f host.Family, file host.File) (host.Ruleset, error) {
	rs, err := Parse(f, file.Content)
	if err == nil {
		err = checkLines(file.Content)
	}
	if syntax, ok := err.(*SyntaxError); ok {
		syntax.File, syntax.Family = file.Path, f
	}
	if err != nil {
		return host.Ruleset{}, err
	}
	rs.File = &file
	return rs, nil
}

func checkLines(text string) error {
	for n := 1; len(text) > maxLine; n++ {
		i := strings.IndexByte(text, '\n') + 1
		if i == 0 {
			i = len(text)
		}
		if i > maxLine {
			return &SyntaxError{Line: n, Problem: fmt.Sprintf("the line is longer than the %d bytes that iptables-restore reads", maxLine)}
		}
		text = text[i:]
	}
	return nil
}

// parser walks a text once, as it comes. Rules and words of all tables share
// two arenas.
type parser struct {
	family host.Family
	fed    int // bytes of text before this piece
	line   int
	tables []host.Table
	rules  []host.Rule
	words  []string
	buf    []byte

	table   int    // index of the open table; -1 between tables
	first   int    // index in rules of the open table's first
	problem string // what is wrong with the line; nothing is read behind it
}

func newParser(f host.Family) *parser { return &parser{family: f, table: -1} }

// feed reads the next lines of the text. A line without its newline is the last.
func (p *parser) feed(text string) {
	for pos := 0; pos < len(text) && p.problem == ""; {
		p.line++
		end := len(text)
		if i := strings.IndexByte(text[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		line := strings.TrimSuffix(text[pos:end], "\n")
		p.problem = p.statement(line, host.Span{Start: p.fed + pos, End: p.fed + end})
		pos = end
	}
	p.fed += len(text)
}

// finish returns what was read.
func (p *parser) finish() (host.Ruleset, error) {
	if p.problem == "" && p.table >= 0 {
		p.problem = "the text ends within table " + p.tables[p.table].Name + ", before its COMMIT"
	}
	if p.problem != "" {
		return host.Ruleset{}, &SyntaxError{Family: p.family, Line: p.line, Problem: p.problem}
	}
	return host.Ruleset{Family: p.family, Tables: p.tables}, nil
}

func (p *parser) statement(line string, span host.Span) string {
	// Comments begin at the first column, and only there.
	if line == "" || line[0] == '#' {
		return ""
	}
	if problem := unreadable(line); problem != "" {
		return problem
	}
	if p.table < 0 {
		if line[0] != '*' {
			return "a line outside of a table: *NAME must come first"
		}
		name, _ := field(line[1:])
		if name == "" {
			return "a table without a name"
		}
		p.tables = append(p.tables, host.Table{Name: name, Span: span})
		p.table, p.first = len(p.tables)-1, len(p.rules)
		return ""
	}
	t := &p.tables[p.table]
	switch {
	case line == "COMMIT":
		t.Rules = p.rules[p.first:len(p.rules):len(p.rules)]
		t.Commit, t.Span.End = span, span.End
		p.table = -1
		return ""
	case line[0] == ':':
		name, rest := field(line[1:])
		policy, _ := field(rest)
		if name == "" || policy == "" {
			return "a chain needs a name and a policy: \":NAME POLICY [0:0]\""
		}
		t.Chains = append(t.Chains, host.ChainDecl{Name: name, Policy: policy, Line: p.line, Span: span})
		return ""
	case line[0] == '*':
		return "table " + t.Name + " has no COMMIT before this next table"
	}
	return p.rule(line, span)
}

// rule reads "[packets:bytes] -A CHAIN …".
func (p *parser) rule(line string, span host.Span) string {
	rest := line
	if rest[0] == '[' {
		i := strings.IndexByte(rest, ']')
		if i < 0 || !strings.Contains(rest[:i], ":") {
			return "counters must look like [packets:bytes]"
		}
		rest = rest[i+1:]
	}
	rest = trimLeft(rest)
	switch {
	case strings.HasPrefix(rest, "-A"):
		rest = rest[len("-A"):]
	case strings.HasPrefix(rest, "--append "):
		rest = rest[len("--append "):]
	case rest == "":
		return "a line of spaces alone, which iptables-restore refuses"
	default:
		word, _ := field(rest)
		return fmt.Sprintf("%.40q: only \"-A CHAIN …\" is understood; load the file and save it again with iptables-save", word)
	}
	chain, rest := field(rest)
	if chain == "" {
		return "-A without a chain"
	}
	if strings.IndexByte(chain, '"') >= 0 {
		return "a chain's name in quotes"
	}
	rest = strings.TrimRight(trimLeft(rest), " \t")

	// A rule's words lie side by side in the arena; a word takes two bytes at least.
	if most := len(rest)/2 + 1; cap(p.words)-len(p.words) < most {
		p.words = make([]string, 0, max(most, 16<<10))
	}
	start := len(p.words)
	var closed bool
	p.words, p.buf, closed = xtables.SplitWords(p.words, rest, p.buf)
	if !closed {
		return "a quote is not closed on its line (a line break within a comment?): iptables-restore cannot read this rule; replace it"
	}
	if len(p.rules) == cap(p.rules) {
		// Room that is not used costs nothing, moving what is there does.
		p.rules = slices.Grow(p.rules, max(64, 3*len(p.rules)))
	}
	p.rules = append(p.rules, host.Rule{
		Chain: chain,
		Words: p.words[start:len(p.words):len(p.words)],
		Text:  rest,
		Line:  p.line,
		Span:  span,
	})
	return ""
}

// unreadable tells of bytes that end a line early or belong to another system.
func unreadable(line string) string {
	if line[len(line)-1] == '\r' {
		return "the line ends in a carriage return (a DOS file?), which iptables-restore takes for a part of the last word"
	}
	if strings.IndexByte(line, 0) >= 0 {
		return "the line holds a zero byte"
	}
	return ""
}

// field cuts the first word off s, quotes not considered.
func field(s string) (word, rest string) {
	s = trimLeft(s)
	for i := 0; i < len(s); i++ {
		if s[i] == ' ' || s[i] == '\t' {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

func trimLeft(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	return s
}
