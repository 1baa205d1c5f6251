package verdict

import (
	"bytes"
	"cmp"
	"math/bits"
	"slices"
)

// ByteSet is a set of values of a program's registers, or a map of them: to
// values, or to the targets of a rule.
type ByteSet struct {
	keyLen, dataLen int
	// Open is whether it may hold others than those that are known, or not hold
	// those: packets fill it, or it was not read.
	Open bool
	// Doubtful is whether nobody knows of a member whether it lets a packet match:
	// it has a rate or a quota.
	Doubtful bool

	parts   []int            // of a concatenation: the bytes of each part, each of which takes whole fours
	exact   map[string]int32 // of a value: where its data or target are
	spans   []byteSpan       // in their order
	overlap bool             // some lie over others: they are looked through
	mixed   []mixedSpans
	rest    int32  // of what is nowhere else; -1: none
	only    string // its one member; empty: it has more, or ranges

	data   [][]byte
	target []int32
}

// byteSpan is a range of values, of a concatenation: a range in each part.
type byteSpan struct {
	first, last string
	at          int32
}

// mixedSpans are ranges of concatenations that have single values in the same
// bits: found by those.
type mixedSpans struct {
	mask  []byte
	found map[string][]byteSpan
}

// NewByteSet is an empty set of values of so many bytes. parts are those of a
// concatenation, nil for others; a map of values has dataLen bytes for each.
func NewByteSet(keyLen, dataLen int, parts []int) *ByteSet {
	whole := 0
	for _, n := range parts {
		whole += (n + 3) &^ 3
	}
	if whole != keyLen {
		parts = nil
	}
	return &ByteSet{keyLen: keyLen, dataLen: dataLen, parts: parts, exact: map[string]int32{}, rest: -1}
}

// Member is what a value, or a range of values, leads to.
type Member struct {
	First, Last []byte // Last is nil for one value, both are for what is nowhere else
	Data        []byte // of a map of values
	Target      int    // of a map of targets
}

// Add adds a member. It reports false for one that the set cannot have.
func (s *ByteSet) Add(m Member) bool {
	if len(m.Data) < s.dataLen || m.First != nil && len(m.First) != s.keyLen || m.Last != nil && len(m.Last) != s.keyLen {
		return false
	}
	at := int32(len(s.target))
	s.target = append(s.target, int32(m.Target))
	if s.dataLen > 0 {
		s.data = append(s.data, m.Data[:s.dataLen])
	}
	span := byteSpan{string(m.First), string(m.Last), at}
	switch {
	case m.First == nil:
		s.rest = at
	case m.Last == nil || span.first == span.last:
		s.exact[span.first] = at
	case s.parts != nil:
		s.addMixed(span)
	default:
		s.spans = append(s.spans, span)
	}
	return true
}

// maxMixed bounds the kinds of ranges that are kept apart.
const maxMixed = 64

func (s *ByteSet) addMixed(span byteSpan) {
	mask := make([]byte, s.keyLen)
	at := 0
	for _, n := range s.parts {
		if len(s.mixed) < maxMixed {
			for i := range n { // the leading bits that both ends have in common
				differ := span.first[at+i] ^ span.last[at+i]
				mask[at+i] = ^(0xff >> bits.LeadingZeros8(differ))
				if differ != 0 {
					break
				}
			}
		}
		at += (n + 3) &^ 3
	}
	i := slices.IndexFunc(s.mixed, func(m mixedSpans) bool { return bytes.Equal(m.mask, mask) })
	if i < 0 {
		i = len(s.mixed)
		s.mixed = append(s.mixed, mixedSpans{mask, map[string][]byteSpan{}})
	}
	var buf [registerBytes]byte
	key := string(s.mixed[i].key(&buf, []byte(span.first)))
	s.mixed[i].found[key] = append(s.mixed[i].found[key], span)
}

func (m *mixedSpans) key(buf *[registerBytes]byte, v []byte) []byte {
	for i := range v {
		buf[i] = v[i] & m.mask[i]
	}
	return buf[:len(v)]
}

// Len is how many members it has.
func (s *ByteSet) Len() int { return len(s.target) }

// Seal is called once all members are there.
func (s *ByteSet) Seal() {
	slices.SortFunc(s.spans, func(a, b byteSpan) int { return cmp.Compare(a.first, b.first) })
	for i := 1; i < len(s.spans); i++ {
		s.overlap = s.overlap || s.spans[i].first <= s.spans[i-1].last
	}
	if len(s.target) == 1 && !s.Open {
		for key := range s.exact {
			s.only = key
		}
	}
}

// find says whether a value is in the set, and where what it leads to is: -1
// where that is not known.
func (s *ByteSet) find(key, known []byte) (Truth, int) {
	t, at := No, -1
	if bytes.Equal(known, allKnown[:len(known)]) {
		if at = s.findKnown(key); at >= 0 {
			t = Yes
		}
	} else {
		t, at = s.findPartly(key, known)
	}
	if s.Open || s.Doubtful && t == Yes {
		t = Maybe
	}
	return t, at
}

// findKnown is where what a value leads to is; -1: it is not in the set.
func (s *ByteSet) findKnown(key []byte) int {
	if at, ok := s.exact[string(key)]; ok {
		return int(at)
	}
	if len(s.spans) > 0 {
		i, end := 0, len(s.spans) // by hand: what it is given must stay on the stack
		for i < end {
			if mid := (i + end) / 2; compareString(s.spans[mid].first, key) <= 0 {
				i = mid + 1
			} else {
				end = mid
			}
		}
		i-- // the last that does not begin behind it
		for ; i >= 0; i-- {
			if compareString(s.spans[i].last, key) >= 0 {
				return int(s.spans[i].at)
			}
			if !s.overlap {
				break
			}
		}
	}
	var buf [registerBytes]byte
	for i := range s.mixed {
		m := &s.mixed[i]
		for _, e := range m.found[string(m.key(&buf, key))] {
			if s.holds(&e, key, allKnown[:len(key)]) == Yes {
				return int(e.at)
			}
		}
	}
	return int(s.rest)
}

// compareString orders text and bytes.
func compareString(a string, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return int(a[i]) - int(b[i])
		}
	}
	return len(a) - len(b)
}

// holds is whether a value, of which some bits are known, is in a range.
func (s *ByteSet) holds(e *byteSpan, key, known []byte) Truth {
	if s.parts == nil {
		return between(key, known, e.first, e.last)
	}
	t, at := Yes, 0
	for _, n := range s.parts {
		t = min(t, between(key[at:at+n], known[at:at+n], e.first[at:at+n], e.last[at:at+n]))
		at += (n + 3) &^ 3
	}
	return t
}

func between(v, known []byte, first, last string) Truth {
	return min(bounds(v, known, first, GreaterOrEqual), bounds(v, known, last, LessOrEqual))
}

// maxTried is how many members are tried one after the other with a value of
// which only some bits are known.
const maxTried = 4096

// findPartly looks for a value of which some bits are known.
func (s *ByteSet) findPartly(key, known []byte) (Truth, int) {
	if len(s.target) > maxTried {
		return Maybe, -1
	}
	t, n, at := No, 0, -1
	s.each(key, known, func(where int, certain bool) {
		if t = max(t, Maybe); certain {
			t = Yes
		}
		n++
		at = where
	})
	switch {
	case n == 0 && s.rest >= 0:
		return Yes, int(s.rest)
	case s.rest >= 0:
		return Yes, -1
	case n > 1:
		at = -1
	}
	return t, at
}

// each calls f with every member that a value of which some bits are known may
// be, and whether it surely is; not with what stands for the rest.
func (s *ByteSet) each(key, known []byte, f func(at int, certain bool)) {
	all := len(s.target) > maxTried
	try := func(e byteSpan) {
		if all {
			f(int(e.at), false)
			return
		}
		if t := s.holds(&e, key, known); t != No {
			f(int(e.at), t == Yes)
		}
	}
	for v, at := range s.exact {
		try(byteSpan{v, v, at})
	}
	for _, e := range s.spans {
		try(e)
	}
	for i := range s.mixed {
		for _, list := range s.mixed[i].found {
			for _, e := range list {
				try(e)
			}
		}
	}
}
