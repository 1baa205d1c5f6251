package host

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// NFTProgram are the expressions of a rule. As text it is one line, so that ten
// thousand rules stay small: expressions with "; " between them, each its name
// and then NAME=VALUE for every field that is not zero, by the names that
// NFTExpr has in JSON; numbers in decimal, bytes in hexadecimal digits, texts as
// in a URL's query, and inner programs as texts.
type NFTProgram []NFTExpr

// MarshalText is encoding.TextMarshaler's.
func (p NFTProgram) MarshalText() ([]byte, error) { return p.append(nil), nil }

func (p NFTProgram) append(b []byte) []byte {
	for i := range p {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = append(b, url.QueryEscape(p[i].Name)...)
		for _, f := range p[i].fields() {
			b = f.append(b)
		}
	}
	return b
}

// maxPrograms is how deep a program may lie in others.
const maxPrograms = 8

// UnmarshalText is encoding.TextUnmarshaler's.
func (p *NFTProgram) UnmarshalText(text []byte) error { return p.parse(string(text), maxPrograms) }

func (p *NFTProgram) parse(text string, depth int) error {
	*p = nil
	if text == "" {
		return nil
	}
	if depth == 0 {
		return fmt.Errorf("a program of nftables in more than %d others", maxPrograms)
	}
	list := make(NFTProgram, 0, strings.Count(text, ";")+1)
	for part := range strings.SplitSeq(text, "; ") {
		name, rest, _ := strings.Cut(part, " ")
		var e NFTExpr
		var err error
		if e.Name, err = url.QueryUnescape(name); err != nil || e.Name == "" {
			return fmt.Errorf("expression %q of nftables has no name", part)
		}
		if err := e.parse(rest, depth); err != nil {
			return fmt.Errorf("expression %q of nftables: %w", e.Name, err)
		}
		list = append(list, e)
	}
	*p = list
	return nil
}

func (e *NFTExpr) parse(text string, depth int) error {
	if text == "" {
		return nil
	}
	fields := e.fields()
	for word := range strings.SplitSeq(text, " ") {
		name, value, _ := strings.Cut(word, "=")
		known := false
		for _, f := range fields {
			if f.name != name {
				continue
			}
			known = true
			if err := f.parse(value, depth); err != nil {
				return fmt.Errorf("field %q: %w", word, err)
			}
		}
		if !known {
			return fmt.Errorf("unknown field %q", name)
		}
	}
	return nil
}

// exprField is a field of an expression: one of the pointers is set.
type exprField struct {
	name    string
	number  *uint32
	bytes   *Hex
	text    *string
	is      *bool
	program *NFTProgram
}

const exprFields = 24

// fields are those of an expression, in the order of its text.
func (e *NFTExpr) fields() [exprFields]exprField {
	return [exprFields]exprField{
		{name: "src", number: &e.Src}, {name: "src2", number: &e.Src2}, {name: "src3", number: &e.Src3}, {name: "src4", number: &e.Src4},
		{name: "dst", number: &e.Dst}, {name: "base", number: &e.Base}, {name: "offset", number: &e.Offset}, {name: "len", number: &e.Len},
		{name: "size", number: &e.Size}, {name: "key", number: &e.Key}, {name: "op", number: &e.Op}, {name: "flags", number: &e.Flags},
		{name: "code", number: &e.Code}, {name: "dir", text: &e.Dir}, {name: "sets", is: &e.Sets},
		{name: "data", bytes: &e.Data}, {name: "to", bytes: &e.To}, {name: "mask", bytes: &e.Mask}, {name: "xor", bytes: &e.Xor},
		{name: "verdict", text: &e.Verdict}, {name: "chain", text: &e.Chain}, {name: "set", text: &e.Set}, {name: "object", text: &e.Object},
		{name: "inner", program: &e.Inner},
	}
}

func (f *exprField) append(b []byte) []byte {
	head := func() { b = append(append(append(b, ' '), f.name...), '=') }
	switch {
	case f.number != nil && *f.number != 0:
		head()
		return strconv.AppendUint(b, uint64(*f.number), 10)
	case f.bytes != nil && len(*f.bytes) > 0:
		head()
		return hex.AppendEncode(b, *f.bytes)
	case f.text != nil && *f.text != "":
		head()
		return append(b, url.QueryEscape(*f.text)...)
	case f.is != nil && *f.is:
		return append(append(b, ' '), f.name...)
	case f.program != nil && len(*f.program) > 0:
		head()
		return append(b, url.QueryEscape(string(f.program.append(nil)))...)
	}
	return b
}

func (f *exprField) parse(value string, depth int) (err error) {
	switch {
	case f.number != nil:
		n, err := strconv.ParseUint(value, 10, 32)
		*f.number = uint32(n)
		return err
	case f.bytes != nil:
		return f.bytes.UnmarshalText([]byte(value))
	case f.text != nil:
		*f.text, err = url.QueryUnescape(value)
		return err
	case f.is != nil:
		*f.is = true
		return nil
	}
	text, err := url.QueryUnescape(value)
	if err != nil {
		return err
	}
	return f.program.parse(text, depth-1)
}
