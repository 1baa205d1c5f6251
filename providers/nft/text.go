package nft

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// writer makes the text of a rule. It follows what each register holds, as
// the kernel does: a part loads something, a later one compares it.
type writer struct {
	texts
	out  []string
	regs [registers]value

	// What the rule has found out of the packet so far, and where the text says
	// so: nft leaves that unsaid where a later part implies it.
	l3, l4             int // 0: not known; NFPROTO_IPV4 or NFPROTO_IPV6; a protocol
	linkAt, l3At, l4At int // in out; -1: nowhere

	from int // in out: a comparison that begins a range; -1: none
}

// texts is what texts of rules are made with.
type texts struct {
	family string
	sets   map[string]*host.NFTSet // of the table
	links  *linkNames
	whole  bool // all elements of a set without a name are shown: the text is loaded, as that of ctplan's own rules
}

// registers is how many parts of 4 bytes the kernel's registers have.
const registers = 16

// slot is where a register begins among them; false for no such register.
func slot(register uint32) (int, bool) {
	switch {
	case register >= 1 && register <= 4:
		return int(register-1) * 4, true
	case register >= 8 && register < 8+registers:
		return int(register) - 8, true
	}
	return 0, false
}

// value is what a register holds: something of the packet, by name, or data.
type value struct {
	name string
	typ  datatype
	size int    // bytes
	data []byte // of a value that is no name
	mask []byte
	xor  []byte
	big  bool // big-endian, where numbers of its type are not
	// fields are what it is made of, where nft has joined comparisons of
	// neighbours.
	fields []field
}

// ruleText says what a rule does, about as nft prints it: good enough to find
// the rule, not to make it again. What it does not know it shows by its name.
func (t texts) ruleText(parts []expression, comment string) string {
	w := t.writer()
	for i := range parts {
		w.part(&parts[i])
	}
	if comment != "" {
		w.say("comment " + strconv.Quote(comment))
	}
	return strings.Join(slices.DeleteFunc(w.out, func(s string) bool { return s == "" }), " ")
}

func (t texts) writer() *writer {
	w := &writer{texts: t, linkAt: -1, l3At: -1, l4At: -1, from: -1}
	switch t.family {
	case "ip":
		w.l3 = unix.NFPROTO_IPV4
	case "ip6":
		w.l3 = unix.NFPROTO_IPV6
	}
	return w
}

func (w *writer) say(s string) { w.out = append(w.out, s) }

func (w *writer) load(register uint32, v value) {
	if at, ok := slot(register); ok {
		w.regs[at] = v
	}
}

func (w *writer) held(register uint32) value {
	if at, ok := slot(register); ok {
		return w.regs[at]
	}
	return value{}
}

func (w *writer) part(p *expression) {
	e := &p.NFTExpr
	switch e.Name {
	case "counter", "last":
	case "meta":
		w.loadOrSet(e, metaValue(e.Key))
	case "ct":
		w.loadOrSet(e, ctValue(e))
	case "payload":
		w.loadOrSet(e, w.payloadValue(e))
	case "exthdr":
		w.loadOrSet(e, w.extensionValue(e))
	case "rt", "socket", "fib", "hash", "numgen":
		w.load(e.Dst, w.lookedUp(p))
	case "bitwise":
		w.bitwise(e)
	case "byteorder":
		v := w.held(e.Src)
		v.big = e.Op == unix.NFT_BYTEORDER_HTON
		w.load(e.Dst, v)
	case "cmp":
		w.compare(w.held(e.Src), e.Op, e.Data)
	case "range":
		v := w.held(e.Src)
		w.say(v.name + not(e.Op == unix.NFT_RANGE_NEQ) + " " + w.value(v, e.Data) + "-" + w.value(v, e.To))
	case "lookup":
		w.lookup(p)
	case "immediate":
		if e.Verdict == "" {
			w.load(e.Dst, value{data: e.Data, size: len(e.Data)})
			return
		}
		w.say(verdictText(e.Verdict, e.Chain))
	default:
		w.statement(p)
	}
}

// loadOrSet remembers what was loaded into a register, or says what is set
// from it.
func (w *writer) loadOrSet(e *host.NFTExpr, v value) {
	if !e.Sets {
		w.load(e.Dst, v)
		return
	}
	w.say(v.name + " set " + w.whole(w.held(e.Src), v.typ))
}

// whole is what a register holds, as a value of a type where it is data.
func (w *writer) whole(v value, typ datatype) string {
	if v.name == "" {
		v.typ = typ
		return w.value(v, v.data)
	}
	s := v.name
	if !zero(v.mask, 0) || !zero(v.xor, 0) {
		if !inverse(v.mask, v.xor) { // of the bits that are set, nothing is kept
			s += " & " + w.value(v, v.mask)
		}
		switch {
		case zero(v.xor, 0):
		case disjoint(v.mask, v.xor):
			s += " | " + w.value(v, v.xor)
		default:
			s += " ^ " + w.value(v, v.xor)
		}
	}
	return s
}

func (w *writer) bitwise(e *host.NFTExpr) {
	v := w.held(e.Src)
	switch e.Op {
	case bitwiseBool:
		v.mask, v.xor = e.Mask, e.Xor
		if v.name == "" && len(v.data) == len(e.Mask) && len(e.Xor) == len(e.Mask) {
			v.data = bytes.Clone(v.data)
			for i := range v.data {
				v.data[i] = v.data[i]&e.Mask[i] ^ e.Xor[i]
			}
		}
	case bitwiseLeft:
		v.name += " << " + number(e.Data)
	case bitwiseRight:
		v.name += " >> " + number(e.Data)
	default:
		v.name += " bitwise"
	}
	w.load(e.Dst, v)
}

// Operations of bitwise (enum nft_bitwise_ops).
const (
	bitwiseBool = iota
	bitwiseLeft
	bitwiseRight
)

// Operators of cmp (enum nft_cmp_ops).
const (
	cmpEq = iota
	cmpNeq
	cmpLt
	cmpLte
	cmpGt
	cmpGte
)

func (w *writer) compare(v value, op uint32, data []byte) {
	sign := map[uint32]string{cmpNeq: " !=", cmpLt: " <", cmpLte: " <=", cmpGt: " >", cmpGte: " >="}[op]
	if from := w.from; op == cmpLte && from >= 0 && from == len(w.out)-1 {
		if first, ok := strings.CutPrefix(w.out[from], v.name+" >= "); ok { // two comparisons, which nft writes as one range
			w.out[from] = v.name + " " + first + "-" + w.value(v, data)
			w.from = -1
			return
		}
	}
	if len(v.fields) > 0 && op == cmpEq && len(v.mask) == 0 {
		for _, f := range v.fields {
			if int(f.size) <= len(data) {
				w.say(f.name + " " + w.text(f.typ, data[:f.size]))
				data = data[f.size:]
			}
		}
		return
	}
	var text string
	switch bits := prefixLen(v.mask); {
	case len(v.mask) == 0:
		text = v.name + sign + " " + w.value(v, data)
	case v.typ.isBits() && zero(data, 0):
		// "state & mask != 0" is how nft writes a list of states.
		text = v.name + not(op == cmpEq) + " " + w.value(v, v.mask)
	case v.typ.isAddress() && bits >= 0:
		text = v.name + sign + " " + w.value(v, data) + "/" + strconv.Itoa(bits)
	case v.typ.isBits():
		text = v.name + sign + " " + w.value(v, data) + " / " + w.value(v, v.mask)
	case v.typ == typeDSCP && len(data) == 1:
		text = v.name + sign + " " + dscp(data[0]>>2)
	case v.typ == typeVLAN:
		text = v.name + sign + " " + w.value(v, data)
	default:
		text = v.name + " & " + w.value(v, v.mask) + orEquals(sign) + " " + w.value(v, data)
	}
	w.from = -1
	if op == cmpGte && len(v.mask) == 0 {
		w.from = len(w.out)
	}
	w.say(text)
	if op == cmpEq && len(v.mask) == 0 {
		w.learn(v.name, data)
	}
}

// learn keeps what a comparison has found out.
func (w *writer) learn(name string, data []byte) {
	at := len(w.out) - 1
	switch name {
	case "meta nfproto":
		if len(data) == 1 {
			w.l3, w.l3At = int(data[0]), at
		}
	case "iiftype":
		w.linkAt = at
	case "meta protocol", "ether type":
		switch bigEndian(data) {
		case unix.ETH_P_8021Q:
			w.linkAt = at
		case unix.ETH_P_IP:
			w.l3, w.l3At = unix.NFPROTO_IPV4, at
		case unix.ETH_P_IPV6:
			w.l3, w.l3At = unix.NFPROTO_IPV6, at
		}
	case "meta l4proto", "ip protocol", "ip6 nexthdr":
		if len(data) == 1 && data[0] != 0 {
			w.l4, w.l4At = int(data[0]), at
		}
	}
}

func orEquals(sign string) string {
	if sign == "" {
		return " =="
	}
	return sign
}

// keyName is what is looked up in a set: what the registers of its key hold.
func (w *writer) keyName(register, size uint32) string {
	at, ok := slot(register)
	if !ok {
		return ""
	}
	var parts []string
	for end := at + int(size+3)/4; at < min(end, registers); {
		v := w.regs[at]
		if v.name == "" && v.data == nil {
			break
		}
		parts = append(parts, w.whole(v, v.typ))
		at += max(1, (v.size+3)/4)
	}
	return strings.Join(parts, " . ")
}

func (w *writer) lookup(p *expression) {
	set := w.sets[p.Set]
	size := uint32(1)
	if set != nil {
		size = set.KeyLen
	}
	name, is := w.keyName(p.Src, size), ""
	if p.Flags&unix.NFT_LOOKUP_F_INV != 0 {
		is = " !="
	}
	content := w.setText(p.Set, set)
	isMap := attribute(p.raw, unix.NFTA_LOOKUP_DREG) != nil
	switch {
	case isMap && p.Dst == unix.NFT_REG_VERDICT:
		w.say(name + " vmap " + content)
	case isMap:
		v := value{name: name + " map " + content}
		if set != nil {
			v.typ, v.size = datatype(set.DataType), int(set.DataLen)
		}
		w.load(p.Dst, v)
	default:
		w.say(name + is + " " + content)
	}
}

func not(is bool) string {
	if is {
		return " !="
	}
	return ""
}

// prefixLen is how many bits a mask has from its beginning; -1 where it has
// others too.
func prefixLen(mask []byte) int {
	n := 0
	for i, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			n++
		}
		if b != 0 || n < (i+1)*8 && !zero(mask[i+1:], 0) {
			return -1
		}
	}
	return n
}

// zero is whether all bytes are the same as one.
func zero(b []byte, as byte) bool {
	for _, c := range b {
		if c != as {
			return false
		}
	}
	return true
}

// disjoint is whether no bit that a mask keeps is turned over: then that sets it.
func disjoint(mask, xor []byte) bool {
	for i := range xor {
		if i < len(mask) && mask[i]&xor[i] != 0 {
			return false
		}
	}
	return true
}

// inverse is whether a mask keeps all bits but those.
func inverse(mask, xor []byte) bool {
	for i := range mask {
		if i >= len(xor) || mask[i] != ^xor[i] {
			return false
		}
	}
	return true
}

// number is a number in the host's order.
func number(b []byte) string {
	if len(b) == 4 {
		return strconv.FormatUint(uint64(native(b)), 10)
	}
	return "0x" + hex.EncodeToString(b)
}

func verdictText(verdict, chain string) string {
	if strings.HasPrefix(chain, "__chain") {
		chain = "{…}" // a chain without a name
	}
	if chain != "" {
		return verdict + " " + chain
	}
	return verdict
}

// lookedUp names what an expression asks of something else than the packet.
func (w *writer) lookedUp(p *expression) value {
	var attrs [exprAttributes][]byte
	netlink.ByType(p.raw, attrs[:])
	switch p.Name {
	case "rt":
		return rtValue(p.Key)
	case "socket":
		return socketValue(p.Key)
	case "fib":
		return fibValue(p.Flags, p.Key)
	case "numgen":
		kind := "inc"
		if p.Key == 1 {
			kind = "random"
		}
		return value{name: fmt.Sprintf("numgen %s mod %d%s", kind, p.Size, offset(p.Offset)), typ: typeNative, size: 4}
	}
	if p.Key == 1 {
		return value{name: fmt.Sprintf("symhash mod %d%s", p.Size, offset(p.Offset)), typ: typeNative, size: 4}
	}
	name := fmt.Sprintf("jhash %s mod %d", w.keyName(p.Src, p.Len), p.Size)
	if seed := attrs[5]; seed != nil {
		name += fmt.Sprintf(" seed 0x%x", bigEndian(seed))
	}
	return value{name: name + offset(p.Offset), typ: typeNative, size: 4}
}

func offset(n uint32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" offset %d", n)
}
