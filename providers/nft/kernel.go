package nft

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
)

// Attributes that package unix does not have, or not by a name
// (include/uapi/linux/netfilter/nf_tables.h).
const (
	attrHookDevs = 4 // of a hook: its devices, a list
	attrDevice   = 1

	attrFlowtableTable, attrFlowtableName = 1, 2

	attrSetObjType                  = 15
	attrSetExpr, attrSetExpressions = 17, 18
	attrDescConcat, attrFieldLen    = 2, 1

	attrElemKey, attrElemData, attrElemFlags      = 1, 2, 3
	attrElemTimeout, attrElemExpires, attrElemRef = 4, 5, 9
	attrElemKeyEnd                                = 10
	elemIntervalEnd, elemCatchAll                 = 1, 2
	attrListTable, attrListSet, attrListElements  = 1, 2, 3

	attrObjTable, attrObjName, attrObjType = 1, 2, 3
	attrObjData, attrHelperName            = 4, 1

	msgGetGen, msgGetObj, msgGetFlowtable = 16, 19, 23

	tableDormant = 1
)

// maxAttributes is how many types of attributes tables, chains, rules, sets,
// their elements and objects have at most.
const maxAttributes = 20

// families are the names that nft(8) has for the families.
var families = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// message is what the kernel says about one table, chain, rule, set or object:
// its family, and its attributes by type. It lives until the next is parsed.
type message struct {
	family byte
	attrs  [maxAttributes][]byte
}

// parse reads a message behind its netlink header: a struct nfgenmsg and
// attributes.
func (m *message) parse(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	m.family = b[0]
	netlink.ByType(b[4:], m.attrs[:])
	return true
}

func (m *message) text(attr int) string { return cstring(m.attrs[attr]) }

// number is a big-endian integer; 0 where there is none.
func (m *message) number(attr int) uint64 { return bigEndian(m.attrs[attr]) }

func bigEndian(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// cstring is text up to its NUL, as valid UTF-8.
func cstring(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// each hands on the elements of a list (NFTA_LIST_ELEM).
func each(list []byte, do func(elem []byte)) {
	netlink.Attributes(list, func(_ uint16, elem []byte) { do(elem) })
}

// attribute is the value of the last attribute of a type; nil without one.
func attribute(b []byte, typ uint16) []byte {
	var found []byte
	netlink.Attributes(b, func(t uint16, value []byte) {
		if t == typ {
			found = value
		}
	})
	return found
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
