package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// attrs are netlink attributes being written. Numbers are big-endian, as all of
// nf_tables' are.
type attrs []byte

func (a *attrs) bytes(typ uint16, value []byte) {
	*a = netlink.AppendAttribute(*a, typ, value)
}

func (a *attrs) text(typ uint16, s string) { a.bytes(typ, append([]byte(s), 0)) }

func (a *attrs) u32(typ uint16, n uint32) { a.bytes(typ, binary.BigEndian.AppendUint32(nil, n)) }

func (a *attrs) u64(typ uint16, n uint64) { a.bytes(typ, binary.BigEndian.AppendUint64(nil, n)) }

func (a *attrs) nest(typ uint16, inner attrs) { a.bytes(typ|unix.NLA_F_NESTED, inner) }

// data is a value where expressions have one (NFTA_DATA_VALUE).
func data(value []byte) (a attrs) {
	a.bytes(unix.NFTA_DATA_VALUE, value)
	return a
}

// program writes expressions as a list. ids are the sets that have no name, by the
// one that they have in the program.
func program(p host.NFTProgram, ids map[string]uint32) (list attrs, err error) {
	for i := range p {
		inner, err := encode(&p[i], ids)
		if err != nil {
			return nil, err
		}
		var e attrs
		e.text(unix.NFTA_EXPR_NAME, p[i].Name)
		e.nest(unix.NFTA_EXPR_DATA, inner)
		list.nest(unix.NFTA_LIST_ELEM, e)
	}
	return list, nil
}

// encode writes one of the expressions that Render makes of rules, and jumps. It
// is the reverse of decode, for as much.
func encode(e *host.NFTExpr, ids map[string]uint32) (a attrs, err error) {
	switch {
	case e.Name == "meta" && !e.Sets:
		a.u32(1, e.Dst)
		a.u32(2, e.Key)
	case e.Name == "payload" && !e.Sets:
		for i, n := range []uint32{e.Dst, e.Base, e.Offset, e.Len} {
			a.u32(uint16(i+1), n)
		}
	case e.Name == "cmp":
		a.u32(1, e.Src)
		a.u32(2, e.Op)
		a.nest(3, data(e.Data))
	case e.Name == "bitwise" && e.Op == bitwiseBool && e.Src2 == 0:
		a.u32(1, e.Src)
		a.u32(2, e.Dst)
		a.u32(3, e.Len)
		a.nest(4, data(e.Mask))
		a.nest(5, data(e.Xor))
	case e.Name == "lookup" && e.Dst == 0:
		if id, anonymous := ids[e.Set]; anonymous {
			a.text(1, pattern(e.Set)) // its name is one of another set, or of none
			a.u32(4, id)
		} else {
			a.text(1, e.Set)
		}
		a.u32(2, e.Src)
		if e.Flags != 0 {
			a.u32(5, e.Flags)
		}
	case e.Name == "immediate" && e.Verdict != "":
		code, known := verdictCode(e.Verdict)
		if !known {
			return nil, fmt.Errorf("a verdict %q cannot be written", e.Verdict)
		}
		var v, d attrs
		v.u32(unix.NFTA_VERDICT_CODE, uint32(code))
		if e.Chain != "" {
			v.text(unix.NFTA_VERDICT_CHAIN, e.Chain)
		}
		d.nest(unix.NFTA_DATA_VERDICT, v)
		a.u32(1, unix.NFT_REG_VERDICT)
		a.nest(2, d)
	case e.Name == "notrack":
	default:
		return nil, fmt.Errorf("an expression %q cannot be written", e.Name)
	}
	return a, nil
}

func verdictCode(name string) (int32, bool) {
	for code, n := range verdicts {
		if n == name {
			return code, true
		}
	}
	return 0, false
}

// setElements are the elements of a set as messages carry them: so many lists as it
// takes, since an attribute has less than 64 KiB.
func setElements(s *host.NFTSet) (lists []attrs, err error) {
	const most = 48 << 10
	var list attrs
	add := func(key []byte, flags uint32) {
		if len(list) > most {
			lists, list = append(lists, list), nil
		}
		var e attrs
		e.nest(attrElemKey, data(key))
		if flags != 0 {
			e.u32(attrElemFlags, flags)
		}
		list.nest(unix.NFTA_LIST_ELEM, e)
	}
	end := []byte(nil) // of the interval before, where it is not the highest
	for e, err := range s.Elements.All() {
		if err != nil {
			return nil, err
		}
		if end != nil && string(end) != string(e.Key) {
			add(end, elemIntervalEnd)
		}
		add(e.Key, 0)
		if end = nil; s.Flags&host.NFTSetInterval != 0 {
			last := e.Last
			if last == nil {
				last = e.Key
			}
			end = following(last)
		}
	}
	if end != nil {
		add(end, elemIntervalEnd)
	}
	return append(lists, list), nil
}

// following is the number behind one, both big-endian; nil behind the highest.
func following(key []byte) []byte {
	b := append([]byte(nil), key...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b
		}
	}
	return nil
}

// pattern is how the kernel is asked to number a set that has no name: it begins as
// the one that it had.
func pattern(name string) string { return strings.TrimRight(name, "0123456789") + "%d" }

// userdata is a comment as nft keeps it with a rule: see comment.
func userdata(comment string) []byte {
	if comment == "" {
		return nil
	}
	return append(append([]byte{0, byte(len(comment) + 1)}, comment...), 0)
}
