package nft

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// maxNested is how deep expressions hold others: dynset holds statements.
const maxNested = 4

// expression is one part of a rule as the kernel says it: with the attributes
// that host.NFTExpr has no place for, and that only the text of a rule shows.
type expression struct {
	host.NFTExpr
	raw []byte
}

// expressions reads a list of expressions (NFTA_LIST_ELEM), adding to out.
func expressions(list []byte, out []expression) []expression {
	each(list, func(elem []byte) {
		if e := oneExpression(elem, maxNested); e.Name != "" {
			out = append(out, e)
		}
	})
	return out
}

func oneExpression(elem []byte, depth int) expression {
	var e expression
	var name []byte
	netlink.Attributes(elem, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			name = value
		case unix.NFTA_EXPR_DATA:
			e.raw = value
		}
	})
	if name != nil {
		e.Name = nameOf(name)
		e.decode(depth)
	}
	return e
}

// names of expressions, so that each rule does not hold its own copies.
var names = func() map[string]string {
	list := map[string]string{}
	for _, n := range []string{"payload", "cmp", "bitwise", "byteorder", "lookup", "immediate", "meta", "ct", "range", "counter",
		"log", "limit", "quota", "reject", "nat", "masq", "redir", "notrack", "fib", "rt", "socket", "tproxy", "exthdr", "numgen",
		"hash", "objref", "dynset", "connlimit", "match", "target", "queue", "last", "synproxy", "flow_offload", "dup", "fwd"} {
		list[n] = n
	}
	return list
}()

func nameOf(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	if n, ok := names[string(b)]; ok {
		return n
	}
	return cstring(b)
}

// exprAttributes is how many types of attributes an expression has at most.
const exprAttributes = 12

// decode fills in what the attributes say. Their numbers are those of the
// expression's own enum in nf_tables.h.
func (e *expression) decode(depth int) {
	var attrs [exprAttributes][]byte
	netlink.ByType(e.raw, attrs[:])
	n := func(i int) uint32 { return uint32(bigEndian(attrs[i])) }
	value := func(i int) host.Hex { return bytes.Clone(attribute(attrs[i], unix.NFTA_DATA_VALUE)) }
	loads := func(dst, key, src int) {
		e.Dst, e.Key, e.Src, e.Sets = n(dst), n(key), n(src), attrs[src] != nil
	}
	switch e.Name {
	case "immediate":
		e.Dst, e.Data = n(1), value(2)
		if v := attribute(attrs[2], unix.NFTA_DATA_VERDICT); v != nil {
			e.Verdict, e.Chain = verdictOf(v)
		}
	case "bitwise":
		e.Src, e.Dst, e.Len, e.Mask, e.Xor, e.Op, e.Data, e.Src2 = n(1), n(2), n(3), value(4), value(5), n(6), value(7), n(8)
	case "byteorder":
		e.Src, e.Dst, e.Op, e.Len, e.Size = n(1), n(2), n(3), n(4), n(5)
	case "cmp":
		e.Src, e.Op, e.Data = n(1), n(2), value(3)
	case "range":
		e.Src, e.Op, e.Data, e.To = n(1), n(2), value(3), value(4)
	case "lookup":
		e.Set, e.Src, e.Dst, e.Flags = cstring(attrs[1]), n(2), n(3), n(5)
	case "dynset":
		e.Set, e.Op, e.Src, e.Src2, e.Flags = cstring(attrs[1]), n(3), n(4), n(5), n(9)
		e.inner(attrs[7], attrs[10], depth)
	case "payload":
		e.Dst, e.Base, e.Offset, e.Len, e.Src, e.Sets = n(1), n(2), n(3), n(4), n(5), attrs[5] != nil
	case "exthdr":
		loads(1, 2, 7)
		e.Offset, e.Len, e.Flags, e.Op = n(3), n(4), n(5), n(6)
	case "meta":
		loads(1, 2, 3)
	case "ct":
		loads(1, 2, 4)
		if d := attrs[3]; len(d) == 1 {
			e.Dir = [2]string{"original", "reply"}[d[0]&1]
		}
	case "rt":
		e.Dst, e.Key = n(1), n(2)
	case "socket":
		e.Key, e.Dst, e.Code = n(1), n(2), n(3)
	case "fib":
		e.Dst, e.Key, e.Flags = n(1), n(2), n(3)
	case "hash":
		e.Src, e.Dst, e.Len, e.Size, e.Offset, e.Key = n(1), n(2), n(3), n(4), n(6), n(7)
	case "numgen":
		e.Dst, e.Size, e.Key, e.Offset = n(1), n(2), n(3), n(4)
	default:
		e.decodeStatement(attrs[:])
	}
}

// decodeStatement is decode for what does something, rather than look at the
// packet.
func (e *expression) decodeStatement(attrs [][]byte) {
	n := func(i int) uint32 { return uint32(bigEndian(attrs[i])) }
	switch e.Name {
	case "limit":
		e.Flags = n(5)
	case "quota":
		e.Flags = n(2)
	case "connlimit":
		e.Flags = n(2)
	case "reject":
		e.Key, e.Code = n(1), n(2)
	case "nat":
		e.Key, e.Code, e.Src, e.Src3, e.Src2, e.Src4, e.Flags = n(1), n(2), n(3), n(4), n(5), n(6), n(7)
	case "masq":
		e.Flags, e.Src2, e.Src4 = n(1), n(2), n(3)
	case "redir":
		e.Src2, e.Src4, e.Flags = n(1), n(2), n(3)
	case "tproxy":
		e.Code, e.Src, e.Src2 = n(1), n(2), n(3)
	case "queue":
		e.Flags, e.Src = n(3), n(4)
	case "objref":
		e.Key, e.Object, e.Src, e.Set = n(1), cstring(attrs[2]), n(3), cstring(attrs[4])
	case "dup":
		e.Src, e.Src2 = n(1), n(2)
	case "fwd":
		e.Src, e.Src2 = n(1), n(2)
	case "flow_offload":
		e.Object = cstring(attrs[1])
	case "match", "target":
		e.Object, e.Data = cstring(attrs[1]), bytes.Clone(attrs[3])
		if revision := n(2); revision != 0 {
			e.Object = fmt.Sprintf("%s/%d", e.Object, revision)
		}
	}
}

// inner adds what a dynset adds to its elements: one expression, or a list.
func (e *expression) inner(one, list []byte, depth int) {
	if depth == 0 {
		return
	}
	add := func(elem []byte) {
		if i := oneExpression(elem, depth-1); i.Name != "" {
			e.Inner = append(e.Inner, i.NFTExpr)
		}
	}
	each(list, add)
	if one != nil {
		add(one)
	}
}

// Codes of verdicts (enum nft_verdicts, and include/uapi/linux/netfilter.h).
var verdicts = map[int32]string{
	0: "drop", 1: "accept", 3: "queue",
	unix.NFT_CONTINUE: "continue", unix.NFT_BREAK: "break", unix.NFT_JUMP: "jump", unix.NFT_GOTO: "goto", unix.NFT_RETURN: "return",
}

// verdictOf reads a verdict: what it is, and the chain that it leads to.
func verdictOf(b []byte) (verdict, chain string) {
	code := int32(bigEndian(attribute(b, unix.NFTA_VERDICT_CODE)))
	if c := attribute(b, unix.NFTA_VERDICT_CHAIN); c != nil {
		chain = cstring(c)
	}
	if code >= 0 {
		code &= 0xff // NF_VERDICT_MASK: what is above belongs to it
	}
	if name := verdicts[code]; name != "" {
		return name, chain
	}
	return fmt.Sprintf("verdict %d", code), chain
}
