package iptables

import (
	"bytes"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// printed takes what iptables-save prints, as it comes, and makes a Raw of it:
// out goes what changes by itself, and what stays is parsed at once.
type printed struct {
	text   strings.Builder // what stays; strings of the ruleset are parts of it
	parsed int             // bytes of text that the parser has had
	parser *parser

	head         string // the first line, a part of it
	pristine     bool   // in a table that holds nothing so far
	pending      []byte // the lines of that table
	incompatible []string
}

func newPrinted(f host.Family) *printed { return &printed{parser: newParser(f)} }

// feed takes the next lines. It keeps nothing of them.
func (p *printed) feed(lines []byte) {
	if p.head == "" {
		head, _, _ := bytes.Cut(lines, []byte("\n"))
		p.head = string(head[:min(len(head), 200)])
	}
	p.normalise(lines)
	p.parser.feed(p.text.String()[p.parsed:])
	p.parsed = p.text.Len()
}

// raw is the Raw of all that was fed. Nothing can be fed after it.
func (p *printed) raw() Raw {
	p.settle(false) // a table that was cut off: for the parser to refuse
	p.parser.feed(p.text.String()[p.parsed:])
	r := Raw{Family: p.parser.family, Text: p.text.String(), Incompatible: p.incompatible}
	r.Backend, r.Version = header(p.head)
	r.set, r.err = p.parser.finish()
	r.parsed = r.Text
	return r
}

// normalise adds to the text what lines hold, without what changes by itself:
// comments (they carry the date), counters, and tables that hold nothing. It
// remembers the tables that iptables-nft-save says it cannot show, or not whole.
func (p *printed) normalise(lines []byte) {
	copied := 0 // lines[:copied] is dealt with; rules are copied in long runs
	for pos := 0; pos < len(lines); {
		end := len(lines)
		if i := bytes.IndexByte(lines[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		line := lines[pos:end]
		start := pos
		pos = end
		switch line[0] {
		case '-':
			p.settle(false)
			continue
		case '#':
			p.write(lines[copied:start])
			p.comment(line)
		case '*':
			p.write(lines[copied:start])
			p.settle(false) // of a table that was not closed
			p.pristine = true
			p.write(line)
		case ':':
			p.write(lines[copied:start])
			i := bytes.IndexByte(line, '[')
			if i < 0 || !bytes.HasSuffix(line[:i], []byte(" ACCEPT ")) {
				p.settle(false)
			}
			if i >= 0 && len(line)-i >= len("[0:0]\n") {
				p.write(line[:i])
				line = []byte("[0:0]\n")
			}
			p.write(line)
		case '[':
			p.write(lines[copied:start])
			p.settle(false)
			if i := bytes.Index(line, []byte("] ")); i >= 0 {
				line = line[i+2:]
			}
			p.write(line)
		case 'C':
			if !p.pristine || strings.TrimSpace(string(line)) != "COMMIT" {
				continue
			}
			p.write(lines[copied:end])
			p.settle(true)
		default:
			continue
		}
		copied = end
	}
	p.write(lines[copied:])
}

// settle ends the wait for whether a table holds anything.
func (p *printed) settle(empty bool) {
	if !p.pristine {
		return
	}
	p.pristine = false
	if !empty {
		p.write(p.pending)
	}
	p.pending = p.pending[:0]
}

// write adds to the text, or to the table that may turn out to hold nothing.
func (p *printed) write(b []byte) {
	if p.pristine {
		p.pending = append(p.pending, b...)
		return
	}
	if p.text.Cap()-p.text.Len() < len(b) {
		// Room that is not used costs nothing, moving what is there does.
		p.text.Grow(max(len(b), 16<<10, 2*p.text.Cap()))
	}
	p.text.Write(b)
}

func (p *printed) comment(line []byte) {
	if rest, ok := bytes.CutPrefix(line, []byte("# Table `")); ok {
		if name, what, ok := bytes.Cut(rest, []byte("' ")); ok && bytes.Contains(what, []byte("incompatible")) {
			p.incompatible = append(p.incompatible, strings.ToValidUTF8(string(name), "\uFFFD"))
		}
	}
}
