package verdict

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Program is a rule as steps over registers, for what Conditions and a Target
// cannot say: how nft's rules come. Steps are carried out one after the other
// until one is not met; what they change stays changed.
//
// Registers are 64 bytes, as in the kernel (NFT_REG32_00 to _15). Of each bit it
// is known, or not, what it is. Numbers of the host stand in little-endian order.
type Program struct {
	steps  []step
	sets   bool // it sets marks
	reads  bool // it reads marks
	states bool // it asks for the state, or what else a connection has
	early  bool // it decides how the packet is tracked
	zones  bool // by a template
	rated  bool // it asks for a rate
}

// registerBytes is the size of the register file.
const registerBytes = 64

type stepKind uint8

const (
	stepLoad      stepKind = iota // field, to dst
	stepValue                     // a, to dst
	stepCondition                 // cond
	stepCompare                   // op; src against a, or a to b
	stepMask                      // src & a ^ b, to dst
	stepJoin                      // op; src and src2, to dst
	stepShift                     // by amount to the left, or to the right, src to dst
	stepSwap                      // the bytes of numbers of width, src to dst
	stepLookup                    // src in set; with data, to dst
	stepChoose                    // src in set, whose data are targets
	stepMark                      // src becomes the packet's mark
	stepConnMark                  // the connection's
	stepUntrack
	stepTemplate // src is its zone, or n is 0
)

// step is one of a Program.
type step struct {
	kind           stepKind
	op             Comparison
	not            bool
	dst, src, src2 uint8 // offsets in the registers
	n              uint8 // bytes
	amount, width  uint8
	field          Field
	a, b           []byte
	set            *ByteSet
	cond           *Condition
}

// Comparison is how two values are compared or joined.
type Comparison uint8

// The comparisons, of bytes from the left, and the ways to join.
const (
	Equal Comparison = iota
	Less
	LessOrEqual
	Greater
	GreaterOrEqual
	Within
	And
	Or
	Xor
)

// Span are bytes of the registers.
type Span struct{ At, Len int }

func (s Span) ok() bool { return s.At >= 0 && s.Len > 0 && s.At+s.Len <= registerBytes }

// add adds a step over spans. A program that leaves the registers is none that
// a kernel has: nobody can know what it does.
func (p *Program) add(s step, spans ...Span) {
	for _, span := range spans {
		if !span.ok() {
			s = step{kind: stepCondition, cond: &Condition{kind: matchUnknown}}
		}
	}
	p.steps = append(p.steps, s)
}

// Load loads a field. Where the packet has none, the rule ends.
func (p *Program) Load(f Field, to int) {
	p.reads = p.reads || f.Kind == FieldMark || f.Kind == FieldConnMark
	p.states = p.states || f.Kind == FieldOfConnection || f.Kind >= FieldState && f.Kind <= FieldZone
	p.add(step{kind: stepLoad, field: f, dst: uint8(to), n: uint8(f.Size())}, Span{to, f.Size()})
}

// Value loads a value.
func (p *Program) Value(v []byte, at int) {
	p.add(step{kind: stepValue, a: v, dst: uint8(at), n: uint8(len(v))}, Span{at, len(v)})
}

// Rate asks for what so many packets in a time meet, and no more; Vague for what
// nobody can know.
func (p *Program) Rate() {
	p.rated = true
	p.add(step{kind: stepCondition, cond: &Condition{kind: matchRate}})
}

// Vague is as Rate.
func (p *Program) Vague() { p.add(step{kind: stepCondition, cond: &Condition{kind: matchUnknown}}) }

// Require asks for a condition.
func (p *Program) Require(c Condition) {
	p.reads = p.reads || c.kind == matchMark || c.kind == matchCMark
	p.states = p.states || c.kind == matchCT || c.kind == matchTrackedOnly
	p.add(step{kind: stepCondition, cond: &c})
}

// Compare compares a register with a value.
func (p *Program) Compare(at int, op Comparison, not bool, value []byte) {
	p.add(step{kind: stepCompare, op: op, not: not, src: uint8(at), n: uint8(len(value)), a: value}, Span{at, len(value)})
}

// Between asks for a register in a range, its ends, which are of one length,
// among it.
func (p *Program) Between(at int, not bool, first, last []byte) {
	p.add(step{kind: stepCompare, op: Within, not: not, src: uint8(at), n: uint8(len(first)), a: first, b: last}, Span{at, len(first)}, Span{at, len(last)})
}

// Mask computes register & mask ^ xor, both of the length of mask.
func (p *Program) Mask(from, to int, mask, xor []byte) {
	p.add(step{kind: stepMask, src: uint8(from), dst: uint8(to), n: uint8(len(mask)), a: mask, b: xor}, Span{from, len(mask)}, Span{to, len(mask)}, Span{to, len(xor)})
}

// Join computes one register and, or, xor another.
func (p *Program) Join(op Comparison, from, with, to, n int) {
	p.add(step{kind: stepJoin, op: op, src: uint8(from), src2: uint8(with), dst: uint8(to), n: uint8(n)}, Span{from, n}, Span{with, n}, Span{to, n})
}

// Shift shifts a register of n bytes by so many bits, fewer than 32, its words
// of 4 bytes as numbers of the host with the highest first.
func (p *Program) Shift(from, to, n int, right bool, bits uint8) {
	n = (n + 3) &^ 3
	span := Span{from, n}
	if bits == 0 || bits > 31 {
		span.Len = 0
	}
	p.add(step{kind: stepShift, not: right, src: uint8(from), dst: uint8(to), n: uint8(n), amount: bits}, span, Span{to, n})
}

// Swap turns the bytes of each number of width bytes around.
func (p *Program) Swap(from, to, n, width int) {
	span := Span{from, n}
	if width < 1 || n%width != 0 {
		span.Len = 0
	}
	p.add(step{kind: stepSwap, src: uint8(from), dst: uint8(to), n: uint8(n), width: uint8(width)}, span, Span{to, n})
}

// Lookup asks for a register in a set.
func (p *Program) Lookup(at int, not bool, s *ByteSet) {
	p.add(step{kind: stepLookup, not: not, src: uint8(at), n: uint8(s.keyLen), set: s}, Span{at, s.keyLen})
}

// Map asks for a register in a map, and loads what is there.
func (p *Program) Map(at int, s *ByteSet, to int) {
	p.add(step{kind: stepLookup, src: uint8(at), n: uint8(s.keyLen), set: s, dst: uint8(to), width: uint8(s.dataLen)}, Span{at, s.keyLen}, Span{to, s.dataLen})
}

// Choose asks for a register in a map of the rule's targets.
func (p *Program) Choose(at int, s *ByteSet) {
	p.add(step{kind: stepChoose, src: uint8(at), n: uint8(s.keyLen), set: s}, Span{at, s.keyLen})
}

// SetMark sets the packet's mark to a register.
func (p *Program) SetMark(from int) {
	p.sets = true
	p.add(step{kind: stepMark, src: uint8(from), n: 4}, Span{from, 4})
}

// SetConnMark sets the connection's mark to a register.
func (p *Program) SetConnMark(from int) {
	p.sets = true
	p.add(step{kind: stepConnMark, src: uint8(from), n: 4}, Span{from, 4})
}

// Untrack keeps the packet out of tracking.
func (p *Program) Untrack() {
	p.early = true
	p.add(step{kind: stepUntrack})
}

// Template attaches a template that puts both ways of a connection in the zone
// that a register holds, in 2 bytes; known is false where it does something else.
func (p *Program) Template(from int, known bool) {
	p.early, p.zones = true, true
	s := step{kind: stepTemplate, src: uint8(from)}
	if known {
		s.n = 2
	}
	p.add(s, Span{from, 2})
}

// machine is the registers of a program that runs. A value that is one of a few
// is known by them beside its bits: states are.
type machine struct {
	val, known [registerBytes]byte
	few        [maxFew]uint32
	fewN       uint8
	fewAt      uint8
	// not is what the register at notAt does not hold, whatever it holds: what lo
	// has, of another interface. Empty: nothing is known of that kind.
	not   string
	notAt uint8
}

// maxFew is how many values a register may be known to have one of.
const maxFew = 8

// touch is for a register that is about to be written.
func (m *machine) touch(at, n uint8) {
	if m.fewN > 0 && at < m.fewAt+4 && m.fewAt < at+n {
		m.fewN = 0
	}
	if m.not != "" && at < m.notAt+4 && m.notAt < at+n {
		m.not = ""
	}
}

// clear makes a register known to be 0, to the end of its word.
func (m *machine) clear(at, n uint8) {
	m.touch(at, n)
	for i, end := at, min((at+n+3)&^3, registerBytes); i < end; i++ {
		m.val[i], m.known[i] = 0, 0xff
	}
}

// forget makes a register unknown.
func (m *machine) forget(at, n uint8) {
	n = min(n, registerBytes-at)
	m.clear(at, n)
	for i := at; i < at+n; i++ {
		m.known[i] = 0
	}
}

func (m *machine) put(at uint8, v []byte) {
	m.clear(at, uint8(len(v)))
	copy(m.val[at:], v)
}

func (m *machine) put32(at uint8, v, known uint32) {
	m.clear(at, 4)
	binary.LittleEndian.PutUint32(m.val[at:], v&known)
	binary.LittleEndian.PutUint32(m.known[at:], known)
}

func (m *machine) get32(at uint8) (v, known uint32) {
	return binary.LittleEndian.Uint32(m.val[at:]), binary.LittleEndian.Uint32(m.known[at:])
}

// putFew makes a register one of a few numbers.
func (m *machine) putFew(at uint8, list []uint32) {
	known := ^uint32(0)
	for _, v := range list[1:] {
		known &^= v ^ list[0]
	}
	m.put32(at, list[0], known)
	if len(list) > 1 {
		m.fewAt, m.fewN = at, uint8(copy(m.few[:], list))
	}
}

// oneOf is the few values of a register, if it is such a one.
func (m *machine) oneOf(at, n uint8) []uint32 {
	if m.fewN == 0 || at != m.fewAt || n > 4 {
		return nil
	}
	return m.few[:m.fewN]
}

// run carries out the program. It returns whether the packet comes to its end,
// and leaves in chosen which of the rule's targets it takes then. Marks and
// tracking change on the way, unless dry; rates are taken to be met if rated.
func (s *walk) run(p *Program, r *Rule, before Truth, dry, rated bool) Truth {
	var m machine
	t := Yes
	for i := range p.steps {
		st := &p.steps[i]
		got := Yes
		switch st.kind {
		case stepLoad:
			got = s.load(&m, &st.field, st.dst, st.n)
		case stepValue:
			m.put(st.dst, st.a)
		case stepCondition:
			if st.cond.kind == matchRate && rated {
				continue
			}
			got = st.cond.eval(s)
		case stepCompare:
			got = m.compare(st).invert(st.not)
		case stepMask, stepJoin, stepShift, stepSwap:
			m.compute(st)
		case stepLookup:
			got = m.lookup(st)
		case stepChoose:
			got = s.choose(&m, st)
		default:
			if !dry {
				sure := s.sure
				s.sure = sure && min(before, t) == Yes
				got = s.effect(&m, st, r)
				s.sure = sure
			}
		}
		if t = min(t, got); t == No {
			return No
		}
	}
	return t
}

// compare is whether a register compares so with a value.
func (m *machine) compare(st *step) Truth {
	if list := m.oneOf(st.src, st.n); list != nil {
		yes, no := false, false
		for _, v := range list {
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], v)
			hit := st.compare(b[:st.n], allKnown[:st.n]) == Yes
			yes, no = yes || hit, no || !hit
		}
		return both(!no, yes)
	}
	t := st.compare(m.val[st.src:st.src+st.n], m.known[st.src:st.src+st.n])
	if t == Maybe && st.op == Equal && m.not != "" && st.src == m.notAt && string(st.a) == m.not {
		return No
	}
	return t
}

func (st *step) compare(reg, known []byte) Truth {
	switch st.op {
	case Equal:
		t := Yes
		for i, b := range st.a {
			if (reg[i]^b)&known[i] != 0 {
				return No
			}
			if known[i] != 0xff {
				t = Maybe
			}
		}
		return t
	case Within:
		return min(bounds(reg, known, st.a, GreaterOrEqual), bounds(reg, known, st.b, LessOrEqual))
	}
	return bounds(reg, known, st.a, st.op)
}

// What lo has in every network namespace, and no other interface: its index, and
// the type of its link (ARPHRD_LOOPBACK).
const (
	loopbackIndex, loopbackType           = 1, 772
	loopbackIndexBytes, loopbackTypeBytes = "\x01\x00\x00\x00", "\x04\x03"
)

// bounds compares the least and the greatest that a register may be.
func bounds[V []byte | string](reg, known []byte, with V, op Comparison) Truth {
	low, high := 0, 0 // of the least, and of the greatest, against the value
	for i := range len(with) {
		b := with[i]
		if low == 0 {
			low = int(reg[i]&known[i]) - int(b)
		}
		if high == 0 {
			high = int(reg[i]|^known[i]) - int(b)
		}
	}
	switch op {
	case Less:
		return both(low < 0, high < 0)
	case LessOrEqual:
		return both(low <= 0, high <= 0)
	case Greater:
		return both(low > 0, high > 0)
	}
	return both(low >= 0, high >= 0)
}

// both is what two answers agree on.
func both(a, b bool) Truth {
	if a != b {
		return Maybe
	}
	return TruthOf(a)
}

func (m *machine) compute(st *step) {
	n := st.n
	var val, known [registerBytes]byte
	list := m.oneOf(st.src, n)
	switch st.kind {
	case stepMask:
		for i := range n {
			mask := st.a[i]
			val[i] = m.val[st.src+i]&mask ^ st.b[i]
			known[i] = m.known[st.src+i] | ^mask
		}
	case stepJoin:
		list = nil
		for i := range n {
			a, ka, b, kb := m.val[st.src+i], m.known[st.src+i], m.val[st.src2+i], m.known[st.src2+i]
			switch st.op {
			case And:
				val[i], known[i] = a&b, ka&kb|ka&^a|kb&^b
			case Or:
				val[i], known[i] = a|b, ka&kb|ka&a|kb&b
			default:
				val[i], known[i] = a^b, ka&kb
			}
		}
	case stepShift:
		list = nil
		shift(val[:n], m.val[st.src:], st.not, st.amount, 0)
		shift(known[:n], m.known[st.src:], st.not, st.amount, 0xffffffff)
	case stepSwap:
		list = nil
		copy(val[:n], m.val[st.src:st.src+n])
		copy(known[:n], m.known[st.src:st.src+n])
		for i := uint8(0); i < n; i += st.width {
			slices.Reverse(val[i : i+st.width])
			slices.Reverse(known[i : i+st.width])
		}
	}
	if list != nil && n == 4 {
		var few [maxFew]uint32
		mask, xor := binary.LittleEndian.Uint32(st.a), binary.LittleEndian.Uint32(st.b)
		for i, v := range list {
			few[i] = v&mask ^ xor
		}
		m.putFew(st.dst, few[:len(list)])
		return
	}
	m.clear(st.dst, n)
	for i := range n {
		m.val[st.dst+i], m.known[st.dst+i] = val[i]&known[i], known[i]
	}
}

// shift shifts words of the host, the highest first (net/netfilter/nft_bitwise.c).
// fill is what comes in at the end.
func shift(dst, src []byte, right bool, bits uint8, fill uint32) {
	words := len(dst) / 4
	for i := range words {
		at := i
		if !right {
			at = words - 1 - i
		}
		w := binary.LittleEndian.Uint32(src[4*at:])
		if right {
			binary.LittleEndian.PutUint32(dst[4*at:], w>>bits|fill<<(32-bits))
		} else {
			binary.LittleEndian.PutUint32(dst[4*at:], w<<bits|fill>>(32-bits))
		}
		fill = w
	}
}

func (m *machine) lookup(st *step) Truth {
	t, at := m.find(st)
	if st.width == 0 {
		return t.invert(st.not)
	}
	switch {
	case t == No:
	case at < 0:
		m.forget(st.dst, st.width)
	default:
		m.put(st.dst, st.set.data[at])
	}
	return t
}

// find looks a register up: whether it is in the set, and where its data are; -1:
// not known.
func (m *machine) find(st *step) (t Truth, at int) {
	key, known := m.val[st.src:st.src+st.n], m.known[st.src:st.src+st.n]
	list := m.oneOf(st.src, st.n)
	if list == nil {
		if t, at = st.set.find(key, known); t == Maybe && m.not != "" && st.src == m.notAt && st.set.only == m.not {
			return No, -1
		}
		return t, at
	}
	t = No
	for i, v := range list {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], v)
		got, where := st.set.find(b[:st.n], allKnown[:st.n])
		switch {
		case i == 0:
			t, at = got, where
		case got != t || where != at:
			at = -1
			if got != t {
				t = Maybe
			}
		}
	}
	return t, at
}

var allKnown = [registerBytes]byte(bytes.Repeat([]byte{0xff}, registerBytes))

// choose looks a target up.
func (s *walk) choose(m *machine, st *step) Truth {
	s.chosen, s.mayChoose = 0, 0
	list := m.oneOf(st.src, st.n)
	if list == nil {
		t, at := m.find(st)
		if t != No {
			s.pick(m, st, at)
		}
		return t
	}
	t := No
	for i, v := range list {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], v)
		got, at := st.set.find(b[:st.n], allKnown[:st.n])
		if i == 0 {
			t = got
		} else if got != t {
			t = Maybe
		}
		if got == No {
			continue
		}
		s.pick(m, st, at)
	}
	return t
}

// pick notes one of the targets that are chosen, or all of which one may be.
func (s *walk) pick(m *machine, st *step, at int) {
	mark := func(target int32) {
		if s.mayChoose == 0 {
			s.chosen = target
		} else if s.chosen != target {
			s.chosen = several
		}
		s.mayChoose |= 1 << min(target, 63)
	}
	if at >= 0 {
		mark(st.set.target[at])
		return
	}
	st.set.each(m.val[st.src:st.src+st.n], m.known[st.src:st.src+st.n], func(at int, _ bool) { mark(st.set.target[at]) })
	if st.set.rest >= 0 {
		mark(st.set.target[st.set.rest])
	}
}

// several stands for more than one of a rule's targets.
const several = -1

// effect is what a step changes.
func (s *walk) effect(m *machine, st *step, r *Rule) Truth {
	switch st.kind {
	case stepMark:
		v, known := m.get32(st.src)
		s.mark, s.markBits = s.assign(s.mark, s.markBits, v, known, ^uint32(0), s.sure)
		s.kept, s.marks = 0, r.ref
	case stepConnMark:
		t := s.tracked(Yes, No)
		if t == No {
			break
		}
		v, known := m.get32(st.src)
		s.cmark, s.cmarkBits = s.assign(s.cmark, s.cmarkBits, v, known, ^uint32(0), s.sure && t == Yes)
	case stepUntrack:
		s.notrack(r)
	case stepTemplate:
		zone, known := m.get32(st.src)
		target := Target{kind: targetCT, mask: zoneUnknown}
		if st.n > 0 && known&0xffff == 0xffff {
			target.value, target.mask = zone&0xffff, zoneKnown
		}
		s.attach(r, &target)
	}
	return Yes
}
