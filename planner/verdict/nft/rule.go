package nft

import (
	"bytes"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Read is Language's.
func (l *language) Read(r *verdict.Rule, _ verdict.TableID, source *verdict.RuleSource) {
	b := builder{l: l, r: r}
	for i := range source.Exprs {
		b.last = i+1 == len(source.Exprs)
		if b.expression(&source.Exprs[i]); b.done {
			break
		}
	}
	b.finish()
}

// builder collects what one rule says. What Conditions can say becomes such,
// which is quick, and lets chains be searched; the rest is a program.
type builder struct {
	l *language
	r *verdict.Rule
	p verdict.Program

	programmed bool // the program has steps
	changes    bool // it changes something: what comes now must come behind that
	done       bool // a verdict is given, or the rule never matches
	last       bool // the expression at hand is the rule's last
	dead       bool // it never matches
	anything   bool // it does what nobody can know

	loads []load
	proto uint8 // that the rule asks for; 0: none, or several

	in, out bool // the rule asks for an interface
}

// load is what a register holds by the rule's text, before the program holds it.
type load struct {
	at, n     int
	field     verdict.Field
	mask, xor []byte // nil: as it was loaded
	used      bool   // a condition was made of it
	emitted   bool   // the program holds it
}

// register is where the bytes of one stand (enum nft_registers); -1: nowhere.
func register(n uint32) int {
	switch {
	case n >= 1 && n <= 4:
		return int(n-1) * 16
	case n >= 8 && n <= 23:
		return int(n-8) * 4
	}
	return -1
}

// program is the program, of which now is more.
func (b *builder) program() *verdict.Program {
	b.programmed = true
	return &b.p
}

// vague is for what nobody can know.
func (b *builder) vague() { b.program().Vague() }

// need adds a condition.
func (b *builder) need(c verdict.Condition) {
	if b.changes {
		b.program().Require(c)
		return
	}
	b.r.Match(c)
}

// never ends a rule that nothing matches.
func (b *builder) never() {
	b.need(verdict.Never())
	b.done, b.dead = true, true
}

// write makes room for what comes into a register.
func (b *builder) write(at, n int) {
	b.loads = slices.DeleteFunc(b.loads, func(l load) bool {
		over := l.at < at+n && at < l.at+l.n
		if over && !l.used && !l.emitted {
			b.emit(&l) // a packet that has no such thing does not match
		}
		return over
	})
}

func (b *builder) emit(l *load) {
	if l.emitted {
		return
	}
	l.emitted = true
	b.program().Load(l.field, l.at)
	if l.mask != nil {
		b.p.Mask(l.at, l.at, l.mask, l.xor)
	}
}

// read has the program hold what a register holds.
func (b *builder) read(at, n int) {
	for i := range b.loads {
		if l := &b.loads[i]; l.at < at+n && at < l.at+l.n {
			b.emit(l)
		}
	}
}

// settle has the program hold everything that an effect may change.
func (b *builder) settle() {
	for i := range b.loads {
		switch l := &b.loads[i]; l.field.Kind {
		case verdict.FieldMark, verdict.FieldConnMark, verdict.FieldState, verdict.FieldZone:
			b.emit(l)
		}
	}
	b.changes = true
}

// held is what a register holds, if that is all there is in n bytes from there.
func (b *builder) held(at, n int) *load {
	if b.l.plain {
		return nil
	}
	for i := range b.loads {
		if l := &b.loads[i]; l.at == at && n <= l.n {
			return l
		}
	}
	return nil
}

// field loads a field.
func (b *builder) field(dst uint32, f verdict.Field, n int) {
	at := register(dst)
	if at < 0 || n < 1 {
		b.vague()
		return
	}
	b.write(at, n)
	b.loads = append(b.loads, load{at: at, n: n, field: f})
}

// finish gives the rule what was collected.
func (b *builder) finish() {
	for i := range b.loads {
		if l := &b.loads[i]; !l.used && !b.dead {
			b.emit(l)
		}
	}
	if b.programmed {
		b.r.Run(&b.p)
	}
	if b.anything {
		b.r.Do(verdict.Anything)
	}
}

// do ends the rule with what it does.
func (b *builder) do(t verdict.Target) {
	b.r.Do(t)
	b.done = true
}

// expression adds one.
func (b *builder) expression(e *host.NFTExpr) {
	switch e.Name {
	case "payload":
		b.payload(e)
	case "meta":
		b.meta(e)
	case "ct":
		b.ct(e)
	case "fib":
		b.fib(e)
	case "exthdr":
		b.exthdr(e)
	case "rt", "socket", "osf", "xfrm", "tunnel":
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldDoubtful, Len: 16}, 16)
	case "numgen", "hash":
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldUnknown, Len: 4}, 4)
	case "immediate":
		b.immediate(e)
	case "cmp":
		b.cmp(e)
	case "range":
		b.inRange(e)
	case "bitwise":
		b.bitwise(e)
	case "byteorder":
		if from, to, n := register(e.Src), register(e.Dst), int(min(e.Len, 64)); from < 0 || to < 0 {
			b.vague()
		} else {
			b.read(from, n)
			b.write(to, n)
			b.program().Swap(from, to, n, int(min(e.Size, 64)))
		}
	case "lookup":
		b.lookup(e)
	case exprBridge:
		b.need(verdict.BridgePort(false))
	case "match":
		b.match(e)
	case "counter", "log", "last", "dup", "flow_offload", "trace":
	default:
		b.statement(e)
	}
}

// statement adds an expression that does something.
func (b *builder) statement(e *host.NFTExpr) {
	switch e.Name {
	case "limit":
		b.program().Rate()
	case "dynset":
		if slices.ContainsFunc(e.Inner, func(i host.NFTExpr) bool { return i.Name == "limit" }) {
			b.program().Rate()
		} else {
			b.vague() // the set may be full
		}
	case "quota", "connlimit":
		b.vague()
	case exprVague:
		b.vague()
		b.anything, b.done = true, true
	case "objref":
		b.object(e)
	case "notrack":
		b.settle()
		b.program().Untrack()
	case "reject":
		b.do(verdict.Drop)
	case "queue":
		b.do(verdict.Queue)
	case "nat":
		const destination = 1 // NFT_NAT_DNAT
		if e.Key == destination {
			b.do(verdict.Translate)
		} else {
			b.do(verdict.Accept)
		}
	case "masq":
		b.do(verdict.Accept)
	case "synproxy":
		b.proxy()
	case "redir":
		b.do(verdict.Translate)
	case "target":
		b.target(e)
	default: // tproxy, fwd, and what is not known here
		b.vague()
		b.anything = true
		if at := register(e.Dst); at >= 0 {
			b.field(e.Dst, verdict.Field{Kind: verdict.FieldDoubtful, Len: 16}, 16)
		}
	}
}

// Types of objects (NFT_OBJECT_…).
const (
	objectCounter, objectQuota, objectHelper, objectLimit, objectConnlimit = 1, 2, 3, 4, 5
	objectTimeout, objectSecmark, objectExpectation, objectSynproxy        = 7, 8, 9, 10
)

// object is what a named object does with the packet.
func (b *builder) object(e *host.NFTExpr) {
	kind := e.Key
	if e.Set == "" && kind == objectSynproxy {
		b.proxy()
		return
	}
	if e.Set != "" {
		s, at := b.l.set(e.Set), register(e.Src)
		if s == nil || at < 0 {
			b.vague()
			b.anything = true
			return
		}
		b.read(at, int(s.KeyLen))
		b.program().Lookup(at, false, s.bytes)
		kind = s.ObjectType
	}
	switch kind {
	case objectCounter, objectHelper, objectTimeout, objectSecmark, objectExpectation:
	case objectLimit:
		b.program().Rate()
	case objectQuota, objectConnlimit:
		b.vague()
	default:
		b.vague()
		b.anything = true
	}
}

// proxy is what synproxy does; what the rest of a rule does with what it leaves
// alone is not followed.
func (b *builder) proxy() {
	if b.last {
		b.do(verdict.NativeProxy)
		return
	}
	b.vague()
	b.anything = true
}

func (b *builder) immediate(e *host.NFTExpr) {
	switch {
	case e.Verdict == "break":
		b.never()
	case e.Verdict == "continue":
	case e.Verdict != "":
		b.do(target(e.Verdict, e.Chain))
	case register(e.Dst) < 0 || len(e.Data) == 0:
		b.vague()
	default:
		b.write(register(e.Dst), len(e.Data))
		b.program().Value(e.Data, register(e.Dst))
	}
}

// Operations of cmp, range and bitwise (enum nft_cmp_ops and others).
const (
	cmpEq, cmpNeq, cmpLt, cmpLte, cmpGt, cmpGte                               = 0, 1, 2, 3, 4, 5
	bitwiseBool, bitwiseLeft, bitwiseRight, bitwiseAnd, bitwiseOr, bitwiseXor = 0, 1, 2, 3, 4, 5
)

func (b *builder) cmp(e *host.NFTExpr) {
	at, n := register(e.Src), len(e.Data)
	if at < 0 || n == 0 || e.Op > cmpGte {
		b.vague()
		return
	}
	if l := b.held(at, n); l != nil && b.capture(l, e.Op, e.Data) {
		l.used = true
		return
	}
	b.read(at, n)
	op, not := verdict.Equal, false
	switch e.Op {
	case cmpNeq:
		not = true
	case cmpLt:
		op = verdict.Less
	case cmpLte:
		op = verdict.LessOrEqual
	case cmpGt:
		op = verdict.Greater
	case cmpGte:
		op = verdict.GreaterOrEqual
	}
	b.program().Compare(at, op, not, e.Data)
}

func (b *builder) inRange(e *host.NFTExpr) {
	at, n := register(e.Src), len(e.Data)
	if at < 0 || n == 0 || len(e.To) != n || e.Op > cmpNeq {
		b.vague()
		return
	}
	not := e.Op == cmpNeq
	if l := b.held(at, n); l != nil && b.captureRange(l, not, e.Data, e.To) {
		l.used = true
		return
	}
	b.read(at, n)
	b.program().Between(at, not, e.Data, e.To)
}

func (b *builder) bitwise(e *host.NFTExpr) {
	from, to, n := register(e.Src), register(e.Dst), int(e.Len)
	if from < 0 || to < 0 || n < 1 || n > 64 {
		b.vague()
		return
	}
	switch e.Op {
	case bitwiseBool:
		if len(e.Mask) != n || len(e.Xor) != n {
			b.vague()
			return
		}
		if l := b.held(from, n); l != nil && l.n == n && l.mask == nil && !l.emitted && from == to {
			l.mask, l.xor = e.Mask, e.Xor
			return
		}
		b.read(from, n)
		b.write(to, n)
		b.program().Mask(from, to, e.Mask, e.Xor)
	case bitwiseLeft, bitwiseRight:
		b.read(from, n)
		b.write(to, n)
		b.program().Shift(from, to, n, e.Op == bitwiseRight, uint8(min(number(e.Data), 255)))
	case bitwiseAnd, bitwiseOr, bitwiseXor:
		with := register(e.Src2)
		b.read(from, n)
		b.read(with, n)
		b.write(to, n)
		b.program().Join([]verdict.Comparison{verdict.And, verdict.Or, verdict.Xor}[e.Op-bitwiseAnd], from, with, to, n)
	default:
		b.vague()
	}
}

// number is one of the host, which is little-endian: others have no tables whose
// rules are read.
func number(b []byte) uint32 {
	var n uint32
	for i := min(len(b), 4) - 1; i >= 0; i-- {
		n = n<<8 | uint32(b[i])
	}
	return n
}

func (b *builder) lookup(e *host.NFTExpr) {
	const inverted = 1 // NFT_LOOKUP_F_INV
	at, s := register(e.Src), b.l.set(e.Set)
	if at < 0 || s == nil {
		b.vague()
		b.anything = b.anything || s == nil || s.Flags&host.NFTSetMap != 0
		return
	}
	not := e.Flags&inverted != 0
	if l := b.held(at, int(s.KeyLen)); l != nil && b.captureSet(l, not, s) {
		l.used = true
		return
	}
	b.read(at, int(s.KeyLen))
	switch {
	case s.Flags&host.NFTSetMap == 0:
		b.program().Lookup(at, not, s.bytes)
	case len(s.targets) > 0 || s.DataType == host.NFTVerdicts:
		b.choose(at, s)
	case register(e.Dst) < 0:
		b.program().Lookup(at, not, s.bytes)
	default:
		b.write(register(e.Dst), int(s.DataLen))
		b.program().Map(at, s.bytes, register(e.Dst))
	}
	if s.rated {
		b.program().Rate()
	}
}

// choose ends the rule with what a map of verdicts says.
func (b *builder) choose(at int, s *set) {
	b.done = true
	switch {
	case s.bytes.Open: // nobody knows what else it holds
		b.vague()
		b.anything = true
	case len(s.targets) == 0:
		b.never()
	default:
		b.program().Choose(at, s.bytes)
		b.r.Choose(s.targets)
	}
}

// capture makes a condition of a comparison, where there is one that says the same.
func (b *builder) capture(l *load, op uint32, value []byte) bool {
	eq := op == cmpEq
	if op > cmpNeq {
		return b.captureOrder(l, op, value)
	}
	if l.mask != nil && !slices.Contains([]verdict.FieldKind{verdict.FieldNetwork, verdict.FieldState, verdict.FieldMark, verdict.FieldConnMark, verdict.FieldTransport}, l.field.Kind) {
		return false
	}
	add := func(c verdict.Condition) bool {
		if !eq {
			c = c.Negated()
		}
		b.need(c)
		return true
	}
	switch f := &l.field; f.Kind {
	case verdict.FieldFamily, verdict.FieldEtherType:
		if bytes.Equal(value, b.constant(f.Kind)) != eq {
			b.never()
		}
		return true
	case verdict.FieldProtocol:
		return b.protocol(value[0], !eq)
	case verdict.FieldNetwork:
		if s, shift, ok := b.address(f.Offset, len(value)); ok {
			return b.captureAddress(l, s, shift, value, add)
		}
		if l.mask != nil || len(value) != 1 || f.Offset != b.protocolOffset() {
			return false
		}
		if b.l.family == host.IPv4 {
			return b.protocol(value[0], !eq)
		}
		const fragment = 44 // what parts of datagrams have first, whatever their protocol
		if !eq || value[0] == fragment || !b.protocol(value[0], false) {
			return false
		}
		b.need(verdict.Fragments(verdict.Whole))
		return true
	case verdict.FieldTransport:
		return b.captureTransport(l, value, add)
	case verdict.FieldInName, verdict.FieldOutName, verdict.FieldInIndex, verdict.FieldOutIndex:
		return b.captureInterface(f.Kind, value, !eq)
	case verdict.FieldState:
		return l.n == len(value) && b.captureState(l, eq, value)
	case verdict.FieldMark, verdict.FieldConnMark:
		if len(value) != 4 {
			return false
		}
		mask, v := ^uint32(0), number(value)
		if l.mask != nil {
			mask, v = number(l.mask), v^number(l.xor)
		}
		if f.Kind == verdict.FieldMark {
			return add(verdict.PacketMark(v, mask))
		}
		return add(verdict.ConnMark(v, mask))
	}
	return false
}

// constant is what a field is in all packets of the family.
func (b *builder) constant(k verdict.FieldKind) []byte {
	six := b.l.family == host.IPv6
	switch {
	case k == verdict.FieldFamily && six:
		return []byte{10}
	case k == verdict.FieldFamily:
		return []byte{2}
	case six:
		return []byte{0x86, 0xdd}
	}
	return []byte{0x08, 0x00}
}

func (b *builder) protocolOffset() int {
	if b.l.family == host.IPv6 {
		return 6
	}
	return 9
}

func (b *builder) protocol(number uint8, not bool) bool {
	if b.changes || !b.r.Protocol(number, not) {
		return false
	}
	if !not {
		b.proto = number
	}
	return true
}

// port makes a condition of a range of ports.
func (b *builder) ports(l *load, not bool, ranges ...host.PortRange) bool {
	f := &l.field
	if f.Kind != verdict.FieldTransport || l.n != 2 || l.mask != nil || f.Offset != 0 && f.Offset != 2 || !protocol.CarriesPorts(b.proto) {
		return false
	}
	side := verdict.SourceEnd
	if f.Offset == 2 {
		side = verdict.DestinationEnd
	}
	c := verdict.InPorts(side, ranges).ReadBlindly()
	if not {
		c = c.Negated()
	}
	b.need(c)
	return true
}
