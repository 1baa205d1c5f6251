package host

import (
	"encoding/hex"
	"fmt"
	"iter"
	"net/url"
	"strings"
)

// Hex is bytes that are text in hexadecimal digits.
type Hex []byte

// MarshalText is encoding.TextMarshaler's.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText is encoding.TextUnmarshaler's. It wants an even number of
// hexadecimal digits.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

// Elements are the elements of a set of nftables, in one string, so that a
// hundred thousand of them stay small: "KEY", "FIRST-LAST" or "*" for what is in
// no other element, in hexadecimal digits as the kernel has them, with a blank
// between two elements. What a map gives for one follows a colon: bytes, or a
// verdict, which is behind an equals sign: "=accept", "=jump=CHAIN". A "~" at the
// end says that the element goes by itself after a time.
type Elements string

// NFTElement is an element of a set or map.
type NFTElement struct {
	Any     bool   // it stands for all that no other element holds
	Key     []byte // the first of an interval
	Last    []byte // of an interval, the last that is in it; nil for a single value
	Data    []byte // map
	Verdict string // map of verdicts: as in NFTExpr
	Chain   string
	Object  string // map of objects: its name
	Expires bool   // it has a timeout
}

// Append adds an element.
func (l *Elements) Append(e NFTElement) { *l = Elements(e.append([]byte(*l))) }

// MakeElements are many elements, in their order.
func MakeElements(each iter.Seq[NFTElement]) Elements {
	var b []byte
	for e := range each {
		b = e.append(b)
	}
	return Elements(b)
}

func (e *NFTElement) append(b []byte) []byte {
	if len(b) > 0 {
		b = append(b, ' ')
	}
	if e.Any {
		b = append(b, '*')
	}
	b = hex.AppendEncode(b, e.Key)
	if e.Last != nil {
		b = hex.AppendEncode(append(b, '-'), e.Last)
	}
	switch {
	case e.Verdict != "":
		b = append(append(b, ":="...), escape(e.Verdict)...)
		if e.Chain != "" {
			b = append(append(b, '='), escape(e.Chain)...)
		}
	case e.Object != "":
		b = append(append(b, ":@"...), escape(e.Object)...)
	case e.Data != nil:
		b = hex.AppendEncode(append(b, ':'), e.Data)
	}
	if e.Expires {
		b = append(b, '~')
	}
	return b
}

// escape is a name without a character that means something in a text.
func escape(name string) string { return strings.ReplaceAll(url.QueryEscape(name), "~", "%7E") }

// All are the elements. The error is that of one that cannot be read, which is
// the last then.
func (l Elements) All() iter.Seq2[NFTElement, error] {
	return func(yield func(NFTElement, error) bool) {
		for word := range strings.FieldsSeq(string(l)) {
			e, err := parseElement(word)
			if err != nil {
				err = fmt.Errorf("element %q: %w", word, err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Lasting are those that do not go by themselves.
func (l Elements) Lasting() Elements {
	if !strings.Contains(string(l), "~") {
		return l
	}
	var b []byte
	for word := range strings.FieldsSeq(string(l)) {
		if strings.HasSuffix(word, "~") {
			continue
		}
		if len(b) > 0 {
			b = append(b, ' ')
		}
		b = append(b, word...)
	}
	return Elements(b)
}

// Len is how many there are.
func (l Elements) Len() int {
	if l == "" {
		return 0
	}
	return strings.Count(string(l), " ") + 1
}

func parseElement(word string) (e NFTElement, err error) {
	word, e.Expires = strings.CutSuffix(word, "~")
	key, data, isMap := strings.Cut(word, ":")
	first, last, isInterval := strings.Cut(key, "-")
	if e.Any = first == "*"; !e.Any {
		if e.Key, err = hex.DecodeString(first); err != nil {
			return e, err
		}
	}
	if isInterval {
		if e.Last, err = hex.DecodeString(last); err != nil {
			return e, err
		}
	}
	if !isMap {
		return e, nil
	}
	if v, ok := strings.CutPrefix(data, "="); ok {
		v, chain, _ := strings.Cut(v, "=")
		if e.Verdict, err = url.QueryUnescape(v); err == nil {
			e.Chain, err = url.QueryUnescape(chain)
		}
		return e, err
	}
	if v, ok := strings.CutPrefix(data, "@"); ok {
		e.Object, err = url.QueryUnescape(v)
		return e, err
	}
	e.Data, err = hex.DecodeString(data)
	return e, err
}
