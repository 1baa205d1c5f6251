package nft

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes that package unix does not have
// (include/uapi/linux/netfilter/nf_tables.h).
const (
	attrFlowtableTable, attrFlowtableName  = 1, 2
	attrSetExpr, attrSetExpressions        = 17, 18
	attrObjTable, attrObjName, attrObjType = 1, 2, 3
	attrObjData, attrHelperName            = 4, 1

	msgGetObj, msgGetFlowtable = 19, 23

	dumpInterrupted = 0x10 // NLM_F_DUMP_INTR: the ruleset changed meanwhile
)

// families are the names that nft(8) has for the families.
var families = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// message is what the kernel says about one table, chain, rule or object: its
// family, and its attributes by type.
type message struct {
	family byte
	attrs  map[uint16][]byte
}

func (m message) text(attr uint16) string {
	s, _, _ := strings.Cut(string(m.attrs[attr]), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// number is a big-endian integer of 4 or 8 bytes; 0 where there is none.
func (m message) number(attr uint16) uint64 { return bigEndian(m.attrs[attr]) }

func bigEndian(b []byte) uint64 {
	switch len(b) {
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// parseMessage reads a message behind its netlink header: a struct nfgenmsg
// and attributes.
func parseMessage(b []byte) (message, bool) {
	if len(b) < 4 {
		return message{}, false
	}
	m := message{family: b[0], attrs: map[uint16][]byte{}}
	attributes(b[4:], func(typ uint16, value []byte) { m.attrs[typ] = value })
	return m, true
}

// attributes walks netlink attributes. It stops at the first that is not whole.
func attributes(b []byte, each func(typ uint16, value []byte)) {
	for len(b) >= unix.NLA_HDRLEN {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.NLA_HDRLEN || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.NLA_HDRLEN:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}

// errUnsettled is when a ruleset changes faster than it can be read.
var errUnsettled = errors.New("it keeps changing while it is being read")

// dump lists everything of a kind, of all families and tables or of one table.
func dump(conn *netlink.Conn, kind uint16, family byte, attrs ...netlink.Attribute) ([]message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	request := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	}
	for range 5 {
		answer, err := conn.Execute(request)
		if err != nil {
			return nil, err
		}
		var list []message
		whole := true
		for _, a := range answer {
			whole = whole && a.Header.Flags&dumpInterrupted == 0
			if m, ok := parseMessage(a.Data); ok {
				list = append(list, m)
			}
		}
		if whole {
			return list, nil
		}
	}
	return nil, errUnsettled
}
