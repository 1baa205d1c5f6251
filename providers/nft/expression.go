package nft

import (
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// expression is one part of a rule: the kernel's name for it, and its
// attributes.
type expression struct {
	name string
	data []byte
}

// maxNested is how deep expressions hold others: dynset holds statements.
const maxNested = 4

// expressions reads a list of expressions (NFTA_LIST_ELEM).
func expressions(list []byte) []expression {
	var out []expression
	attributes(list, func(_ uint16, elem []byte) {
		if e := oneExpression(elem); e.name != "" {
			out = append(out, e)
		}
	})
	return out
}

func oneExpression(elem []byte) expression {
	var e expression
	attributes(elem, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			e.name = cstring(value)
		case unix.NFTA_EXPR_DATA:
			e.data = value
		}
	})
	return e
}

// cstring is text up to its NUL, as valid UTF-8.
func cstring(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// attribute is the value of the last attribute of a type; nil without one.
func (e expression) attribute(typ uint16) []byte {
	var found []byte
	attributes(e.data, func(t uint16, value []byte) {
		if t == typ {
			found = value
		}
	})
	return found
}

// uses names the part, and the parts inside it, as planner.NFTItem does.
func (e expression) uses() []string { return e.usesTo(maxNested) }

func (e expression) usesTo(depth int) []string {
	switch e.name {
	case "match", "target":
		return []string{e.name + " " + cstring(e.attribute(unix.NFTA_MATCH_NAME))} // the same number for both
	case "objref":
		if kind := objectKinds[bigEndian(e.attribute(unix.NFTA_OBJREF_IMM_TYPE))]; kind != "" {
			return []string{kind}
		}
	case "dynset":
		uses := []string{e.name}
		nested := expressions(e.attribute(expr.NFTA_DYNSET_EXPRESSIONS))
		if one := oneExpression(e.attribute(unix.NFTA_DYNSET_EXPR)); one.name != "" {
			nested = append(nested, one)
		}
		for _, n := range nested {
			if depth > 0 {
				uses = append(uses, n.usesTo(depth-1)...)
			}
		}
		return uses
	}
	return []string{e.name}
}

// drops reports whether the part is a verdict that lets a packet go no
// further: drop, or queue. A map of verdicts may hold some.
func (e expression) drops() bool {
	if e.name == "lookup" {
		register := e.attribute(unix.NFTA_LOOKUP_DREG)
		return len(register) == 4 && bigEndian(register) == unix.NFT_REG_VERDICT
	}
	if e.name != "immediate" {
		return false
	}
	var v expr.Verdict
	if bigEndian(e.attribute(unix.NFTA_IMMEDIATE_DREG)) != unix.NFT_REG_VERDICT || expr.Unmarshal(0, e.data, &v) != nil {
		return false
	}
	return v.Kind == expr.VerdictDrop || v.Kind == expr.VerdictQueue
}

// comment is what nft and iptables-nft keep with a rule: a list of type,
// length, value, where type 0 is the comment.
func comment(userdata []byte) string {
	for len(userdata) >= 2 {
		size := 2 + int(userdata[1])
		if size > len(userdata) {
			break
		}
		if userdata[0] == 0 {
			return cstring(userdata[2:size])
		}
		userdata = userdata[size:]
	}
	return ""
}
