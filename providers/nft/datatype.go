package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// datatype is what nft takes a value for, by its own number, which the kernel
// keeps with a set (nft's include/datatype.h, enum datatypes). A concatenation
// has 6 bits for each part.
type datatype uint32

const (
	typeFamily      datatype = 2
	typeInteger     datatype = 4 // big-endian
	typeAddress4    datatype = 7
	typeAddress6    datatype = 8
	typeEther       datatype = 9
	typeEtherType   datatype = 10
	typeARP         datatype = 11
	typeProtocol    datatype = 12
	typePort        datatype = 13
	typeICMP        datatype = 14
	typeTCPFlags    datatype = 15
	typeMark        datatype = 19
	typeLink        datatype = 20
	typeRealm       datatype = 22
	typeClass       datatype = 23
	typeUID         datatype = 24
	typeGID         datatype = 25
	typeCtState     datatype = 26
	typeCtDirection datatype = 27
	typeCtStatus    datatype = 28
	typeICMPv6      datatype = 29
	typePacket      datatype = 31
	typeICMPCode    datatype = 32
	typeICMPv6Code  datatype = 33
	typeDSCP        datatype = 36
	typeFibType     datatype = 38
	typeExists      datatype = 39
	typeName        datatype = 41

	typeVLAN datatype = 1 << 31 // ctplan's own: a field that begins in the middle of a byte

	typeBits          = 6
	typeMax           = 1 << typeBits
	typeNative        = typeGID // a number in the host's order, of any size
	verdictType       = 1
	partBytes         = 4 // the parts of a concatenation are whole fours
	maxParts          = 5
	maxShown          = 16 // elements of a set without a name that a text shows
	elementsSeparator = ", "
)

func (t datatype) isAddress() bool { return t == typeAddress4 || t == typeAddress6 }

// isBits is whether values are sets of flags.
func (t datatype) isBits() bool { return t == typeCtState || t == typeCtStatus || t == typeTCPFlags }

// isNative is whether numbers are in the host's order.
func (t datatype) isNative() bool {
	switch t {
	case typeMark, typeLink, typeRealm, typeClass, typeUID, typeGID, typeCtState, typeCtStatus, typeFibType:
		return true
	}
	return false
}

// bytes is how many a part of a concatenation has; 0 where that is not known.
func (t datatype) bytes() int {
	switch t {
	case typeAddress4, typeMark, typeLink, typeRealm, typeClass, typeUID, typeGID, typeCtState, typeCtStatus, typeFibType:
		return 4
	case typeAddress6, typeName:
		return 16
	case typeEther:
		return 6
	case typePort, typeEtherType, typeARP:
		return 2
	case typeProtocol, typeFamily, typeICMP, typeICMPv6, typeICMPCode, typeICMPv6Code, typeTCPFlags, typeDSCP, typePacket, typeExists:
		return 1
	}
	return 0
}

// value is data as what a register holds is written.
func (w *writer) value(v value, data []byte) string {
	if v.big && v.typ.isNative() {
		data = reversed(data)
	}
	return w.text(v.typ, data)
}

func reversed(b []byte) []byte {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return b
	}
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

// text is data as a value of a type.
func (t texts) text(typ datatype, data []byte) string {
	switch typ {
	case typeAddress4, typeAddress6:
		return addressText(typ, data)
	case typeName:
		s, _, whole := strings.Cut(string(data), "\x00")
		if !whole && len(data) < unix.IFNAMSIZ {
			s += "*"
		}
		return strconv.Quote(strings.ToValidUTF8(s, "\uFFFD"))
	case typeEther:
		if len(data) == 6 {
			return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", data[0], data[1], data[2], data[3], data[4], data[5])
		}
	case typeTCPFlags:
		return flags(uint32(bigEndian(data)), tcpFlags)
	}
	if len(data) != 1 && len(data) != 2 && len(data) != 4 && len(data) != 8 {
		return "0x" + hex.EncodeToString(data)
	}
	n := bigEndian(data)
	if typ.isNative() && len(data) > 1 {
		n = bigEndian(reversed(data))
	}
	return t.numberText(typ, data, n)
}

// numberText is a value that is a number.
func (t texts) numberText(typ datatype, data []byte, n uint64) string {
	switch typ {
	case typeMark:
		return fmt.Sprintf("0x%08x", n)
	case typeClass:
		return fmt.Sprintf("%x:%x", n>>16, n&0xffff)
	case typeLink:
		if name := t.links.name(uint32(n)); name != "" {
			return strconv.Quote(name)
		}
	case typeCtState:
		return flags(uint32(n), ctStates)
	case typeCtStatus:
		return flags(uint32(n), ctStatuses)
	case typeExists:
		return [2]string{"missing", "exists"}[min(n, 1)]
	case typeDSCP:
		return dscp(data[0])
	}
	if name := valueNames[typ][n]; name != "" {
		return name
	}
	switch typ {
	case typeInteger, typeVLAN, typeARP, typePort, typeProtocol, typeICMP, typeICMPCode, typeICMPv6, typeICMPv6Code, typeLink, typeUID, typeGID, typeRealm:
		return strconv.FormatUint(n, 10)
	}
	return "0x" + hex.EncodeToString(data)
}

func addressText(typ datatype, data []byte) string {
	size := 4
	if typ == typeAddress6 || len(data) > 4 {
		size = 16
	}
	a, ok := netip.AddrFromSlice(append(append([]byte(nil), data...), make([]byte, max(0, size-len(data)))...))
	switch {
	case !ok:
		return "0x" + hex.EncodeToString(data)
	case len(data) < size:
		return fmt.Sprintf("%s/%d", a, len(data)*8)
	}
	return a.String()
}

// valueNames are the names of values, by type.
var valueNames = map[datatype]map[uint64]string{
	typeFamily:      {unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"},
	typeEtherType:   {unix.ETH_P_IP: "ip", unix.ETH_P_IPV6: "ip6", unix.ETH_P_ARP: "arp", unix.ETH_P_8021Q: "8021q", unix.ETH_P_8021AD: "8021ad"},
	typeARP:         {1: "request", 2: "reply"},
	typeCtDirection: {0: "original", 1: "reply"},
	typePacket:      {0: "host", 1: "broadcast", 2: "multicast", 3: "other"},
	typeFibType:     {0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"},
	typeProtocol: {
		unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "ipv6-icmp", unix.IPPROTO_IGMP: "igmp",
		unix.IPPROTO_ESP: "esp", unix.IPPROTO_AH: "ah", unix.IPPROTO_GRE: "gre", unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_UDPLITE: "udplite",
		unix.IPPROTO_DCCP: "dccp", unix.IPPROTO_COMP: "comp", 112: "vrrp", 89: "ospf", unix.IPPROTO_IPV6: "ipv6",
	},
	typeICMP: {
		0: "echo-reply", 3: "destination-unreachable", 4: "source-quench", 5: "redirect", 8: "echo-request", 9: "router-advertisement",
		10: "router-solicitation", 11: "time-exceeded", 12: "parameter-problem", 13: "timestamp-request", 14: "timestamp-reply",
		15: "info-request", 16: "info-reply", 17: "address-mask-request", 18: "address-mask-reply",
	},
	typeICMPv6: {
		1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem", 128: "echo-request", 129: "echo-reply",
		130: "mld-listener-query", 131: "mld-listener-report", 132: "mld-listener-done", 133: "nd-router-solicit", 134: "nd-router-advert",
		135: "nd-neighbor-solicit", 136: "nd-neighbor-advert", 137: "nd-redirect", 138: "router-renumbering", 141: "ind-neighbor-solicit",
		142: "ind-neighbor-advert", 143: "mld2-listener-report",
	},
	typeICMPCode:   {0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable", 4: "frag-needed", 9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited"},
	typeICMPv6Code: {0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable", 5: "policy-fail", 6: "reject-route"},
}

type flag struct {
	bit  uint32
	name string
}

var (
	ctStates   = []flag{{1, "invalid"}, {2, "established"}, {4, "related"}, {8, "new"}, {64, "untracked"}}
	ctStatuses = []flag{{1, "expected"}, {2, "seen-reply"}, {4, "assured"}, {8, "confirmed"}, {16, "snat"}, {32, "dnat"}, {512, "dying"}}
	tcpFlags   = []flag{{1, "fin"}, {2, "syn"}, {4, "rst"}, {8, "psh"}, {16, "ack"}, {32, "urg"}, {64, "ecn"}, {128, "cwr"}}
)

// flags lists flags as nft does.
func flags(bits uint32, known []flag) string {
	var names []string
	rest := bits
	for _, f := range known {
		if bits&f.bit != 0 {
			names = append(names, f.name)
			rest &^= f.bit
		}
	}
	if len(names) == 0 || rest != 0 {
		return fmt.Sprintf("0x%x", bits)
	}
	return strings.Join(names, ",")
}

// dscp is a code point as nft names it.
func dscp(n byte) string {
	switch {
	case n&7 == 0 && n < 64:
		return fmt.Sprintf("cs%d", n>>3)
	case n >= 10 && n <= 38 && n&1 == 0 && n>>3 <= 4:
		return fmt.Sprintf("af%d%d", n>>3, n>>1&3)
	case n == 46:
		return "ef"
	}
	return fmt.Sprintf("0x%02x", n)
}

// setText is a set as a rule names it: by its name, or by its elements.
func (t texts) setText(name string, set *host.NFTSet) string {
	if !strings.HasPrefix(name, "__") {
		return "@" + name
	}
	if set == nil || set.Unread {
		return "{…}"
	}
	var b strings.Builder
	b.WriteString("{ ")
	shown := 0
	for e, err := range set.Elements.All() {
		if err != nil || shown == maxShown && !t.whole {
			b.WriteString(elementsSeparator + "…")
			break
		}
		if shown > 0 {
			b.WriteString(elementsSeparator)
		}
		b.WriteString(t.elementText(set, &e))
		shown++
	}
	return b.String() + " }"
}

func (t texts) elementText(set *host.NFTSet, e *host.NFTElement) string {
	typ := datatype(set.KeyType)
	text := "*"
	if !e.Any {
		text = t.keyText(set, typ, e.Key, e.Last)
	}
	switch {
	case e.Verdict != "":
		return text + " : " + verdictText(e.Verdict, e.Chain)
	case e.Object != "":
		return text + " : " + strconv.Quote(e.Object)
	case e.Data != nil:
		return text + " : " + t.keyText(nil, datatype(set.DataType), e.Data, nil)
	}
	return text
}

// keyText is a key, part by part; last: the end of its interval.
func (t texts) keyText(set *host.NFTSet, typ datatype, key, last []byte) string {
	big := set != nil && set.Flags&host.NFTSetInterval != 0
	var types []datatype
	for rest := typ; rest > 0 && len(types) < maxParts; rest >>= typeBits {
		types = append([]datatype{rest % typeMax}, types...)
	}
	var parts []string
	at := 0
	for i, typ := range types {
		size := typ.bytes()
		if len(types) == 1 {
			size = len(key)
		}
		if set != nil && i < len(set.Fields) {
			size = int(set.Fields[i])
		}
		if size == 0 || at+size > len(key) {
			return "0x" + hex.EncodeToString(key)
		}
		from, to := key[at:at+size], []byte(nil)
		if at+size <= len(last) {
			to = last[at : at+size]
		}
		parts = append(parts, t.interval(typ, big, from, to))
		at += (size + partBytes - 1) / partBytes * partBytes
	}
	if parts == nil {
		return "0x" + hex.EncodeToString(key)
	}
	return strings.Join(parts, " . ")
}

func (t texts) interval(typ datatype, big bool, from, to []byte) string {
	if to == nil || string(from) == string(to) {
		if big && typ.isNative() {
			from = reversed(from)
		}
		return t.text(typ, from)
	}
	if typ.isAddress() {
		if bits := commonPrefix(from, to); bits >= 0 {
			return fmt.Sprintf("%s/%d", t.text(typ, from), bits)
		}
	}
	if typ == typeName {
		return strconv.Quote(strings.TrimRight(strings.ToValidUTF8(string(from), "\uFFFD"), "\x00") + "*")
	}
	if big && typ.isNative() {
		from, to = reversed(from), reversed(to)
	}
	return t.text(typ, from) + "-" + t.text(typ, to)
}

// commonPrefix is the length of the prefix that an interval is; -1 where it is
// none.
func commonPrefix(from, to []byte) int {
	bits := 0
	for i := range from {
		diff := from[i] ^ to[i]
		if diff == 0 {
			bits += 8
			continue
		}
		for m := byte(0x80); m&diff == 0; m >>= 1 {
			bits++
		}
		if diff&(diff+1) != 0 || from[i]&diff != 0 || to[i]&diff != diff || !zero(from[i+1:], 0) || !zero(to[i+1:], 0xff) {
			return -1
		}
		return bits
	}
	return bits
}
