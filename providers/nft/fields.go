package nft

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// A field is a field of a header: where it begins and how long it is, in bytes.
type field struct {
	name         string
	offset, size uint32
	typ          datatype
}

var (
	etherFields = []field{{"ether daddr", 0, 6, typeEther}, {"ether saddr", 6, 6, typeEther}, {"ether type", 12, 2, typeEtherType}, {"vlan id", 14, 2, typeVLAN}, {"vlan type", 16, 2, typeEtherType}}
	ip4Fields   = []field{
		{"ip length", 2, 2, typeInteger}, {"ip id", 4, 2, typeInteger}, {"ip frag-off", 6, 2, typeInteger}, {"ip ttl", 8, 1, typeInteger},
		{"ip protocol", 9, 1, typeProtocol}, {"ip checksum", 10, 2, typeInteger}, {"ip saddr", 12, 4, typeAddress4}, {"ip daddr", 16, 4, typeAddress4},
		{"ip dscp", 1, 1, typeDSCP},
	}
	ip6Fields = []field{
		{"ip6 length", 4, 2, typeInteger}, {"ip6 nexthdr", 6, 1, typeProtocol}, {"ip6 hoplimit", 7, 1, typeInteger},
		{"ip6 saddr", 8, 16, typeAddress6}, {"ip6 daddr", 24, 16, typeAddress6},
	}
	arpFields = []field{{"arp htype", 0, 2, typeInteger}, {"arp ptype", 2, 2, typeEtherType}, {"arp operation", 6, 2, typeARP},
		{"arp saddr ether", 8, 6, typeEther}, {"arp saddr ip", 14, 4, typeAddress4}, {"arp daddr ether", 18, 6, typeEther}, {"arp daddr ip", 24, 4, typeAddress4}}
	portFields = []field{{"sport", 0, 2, typePort}, {"dport", 2, 2, typePort}}
	tcpFields  = append(portFields[:2:2], field{"sequence", 4, 4, typeInteger}, field{"ackseq", 8, 4, typeInteger}, field{"flags", 13, 1, typeTCPFlags},
		field{"window", 14, 2, typeInteger}, field{"checksum", 16, 2, typeInteger}, field{"urgptr", 18, 2, typeInteger})
	udpFields  = append(portFields[:2:2], field{"length", 4, 2, typeInteger}, field{"checksum", 6, 2, typeInteger})
	icmpFields = []field{{"type", 0, 1, typeICMP}, {"code", 1, 1, typeICMPCode}, {"checksum", 2, 2, typeInteger}, {"id", 4, 2, typeInteger}, {"sequence", 6, 2, typeInteger}, {"mtu", 6, 2, typeInteger}}
	icmp6Types = []field{{"type", 0, 1, typeICMPv6}, {"code", 1, 1, typeICMPv6Code}, {"checksum", 2, 2, typeInteger}, {"id", 4, 2, typeInteger}, {"sequence", 6, 2, typeInteger}}
)

// transport are the headers behind IP's, by protocol.
var transport = map[int]struct {
	name   string
	fields []field
}{
	unix.IPPROTO_TCP: {"tcp", tcpFields}, unix.IPPROTO_UDP: {"udp", udpFields}, unix.IPPROTO_UDPLITE: {"udplite", portFields},
	unix.IPPROTO_SCTP: {"sctp", portFields}, unix.IPPROTO_DCCP: {"dccp", portFields},
	unix.IPPROTO_ICMP: {"icmp", icmpFields}, unix.IPPROTO_ICMPV6: {"icmpv6", icmp6Types},
	unix.IPPROTO_ESP: {"esp", []field{{"spi", 0, 4, typeInteger}}}, unix.IPPROTO_AH: {"ah", []field{{"spi", 4, 4, typeInteger}}},
}

// Headers that payloads are loaded from (enum nft_payload_bases).
const (
	baseLink = iota
	baseNetwork
	baseTransport
)

// payloadValue names the field that is loaded, or written.
func (w *writer) payloadValue(e *host.NFTExpr) value {
	raw := value{name: fmt.Sprintf("@%s,%d,%d", [4]string{"ll", "nh", "th", "ih"}[e.Base&3], uint64(e.Offset)*8, uint64(e.Len)*8), typ: typeInteger, size: int(e.Len)}
	prefix, fields := "", []field(nil)
	switch e.Base {
	case baseLink:
		fields = etherFields
	case baseNetwork:
		fields = w.network(e)
	case baseTransport:
		fields, prefix = portFields, "th "
		if t, ok := transport[w.l4]; ok {
			fields, prefix = t.fields, t.name+" "
		}
	}
	for _, f := range fields {
		whole := f.offset == e.Offset && f.size == e.Len
		if !whole && (f.offset != e.Offset || e.Len > f.size || !f.typ.isAddress()) {
			continue
		}
		w.implied(e.Base, prefix)
		return value{name: prefix + f.name, typ: f.typ, size: int(e.Len)}
	}
	if joined := neighbours(fields, prefix, e.Offset, e.Len); len(joined) > 1 {
		w.implied(e.Base, prefix)
		raw.fields = joined
	}
	return raw
}

// neighbours are the fields that make up some bytes of a header; nil where they
// do not.
func neighbours(fields []field, prefix string, offset, size uint32) (joined []field) {
	for size > 0 {
		i := slices.IndexFunc(fields, func(f field) bool { return f.offset == offset && f.size <= size })
		if i < 0 {
			return nil
		}
		f := fields[i]
		offset, size = offset+f.size, size-f.size
		f.name = prefix + f.name
		joined = append(joined, f)
	}
	return joined
}

// network are the fields of the network header. Without a word of the rule
// about the family, the place says which it is.
func (w *writer) network(e *host.NFTExpr) []field {
	switch {
	case w.family == "arp":
		return arpFields
	case w.l3 == unix.NFPROTO_IPV6:
		return ip6Fields
	case w.l3 == unix.NFPROTO_IPV4:
		return ip4Fields
	case e.Len == 16 || e.Offset == 24:
		return ip6Fields
	}
	return ip4Fields
}

// implied takes out of the text what a field of a header says by itself.
func (w *writer) implied(base uint32, prefix string) {
	drop := func(at *int) {
		if *at >= 0 {
			w.out[*at], *at = "", -1
		}
	}
	switch base {
	case baseLink:
		drop(&w.linkAt)
	case baseNetwork:
		drop(&w.l3At)
	case baseTransport:
		if prefix != "th " {
			drop(&w.l4At)
		}
		if prefix == "icmp " || prefix == "icmpv6 " {
			drop(&w.l3At)
		}
	}
}

// A key is what meta, ct and the like load or set by number.
type key struct {
	name string
	typ  datatype
	size int
}

// metaKeys are by number (enum nft_meta_keys).
var metaKeys = []key{
	{"meta length", typeNative, 4}, {"meta protocol", typeEtherType, 2}, {"meta priority", typeClass, 4}, {"meta mark", typeMark, 4},
	{"iif", typeLink, 4}, {"oif", typeLink, 4}, {"iifname", typeName, 16}, {"oifname", typeName, 16}, {"iiftype", typeNative, 2}, {"oiftype", typeNative, 2},
	{"meta skuid", typeNative, 4}, {"meta skgid", typeNative, 4}, {"meta nftrace", typeInteger, 1}, {"rtclassid", typeNative, 4}, {"meta secmark", typeNative, 4},
	{"meta nfproto", typeFamily, 1}, {"meta l4proto", typeProtocol, 1}, {"meta ibrname", typeName, 16}, {"meta obrname", typeName, 16}, {"meta pkttype", typePacket, 1},
	{"meta cpu", typeNative, 4}, {"meta iifgroup", typeNative, 4}, {"meta oifgroup", typeNative, 4}, {"meta cgroup", typeNative, 4}, {"meta random", typeNative, 4},
	{"meta ipsec", typeExists, 1}, {"meta iifkind", typeName, 16}, {"meta oifkind", typeName, 16}, {"meta ibrpvid", typeNative, 2}, {"meta ibrvproto", typeEtherType, 2},
	{"meta time", typeNative, 8}, {"meta day", typeInteger, 1}, {"meta hour", typeNative, 4}, {"meta sdif", typeLink, 4}, {"meta sdifname", typeName, 16},
}

func metaValue(n uint32) value { return keyValue("meta", metaKeys, n) }

func keyValue(of string, keys []key, n uint32) value {
	if n >= uint32(len(keys)) {
		return value{name: fmt.Sprintf("%s %d", of, n), size: 4}
	}
	return value{name: keys[n].name, typ: keys[n].typ, size: keys[n].size}
}

// ctKeys are by number (enum nft_ct_keys).
var ctKeys = []key{
	{"state", typeCtState, 4}, {"direction", typeCtDirection, 1}, {"status", typeCtStatus, 4}, {"mark", typeMark, 4}, {"secmark", typeNative, 4},
	{"expiration", typeNative, 4}, {"helper", typeName, 16}, {"l3proto", typeFamily, 1}, {"saddr", typeAddress4, 4}, {"daddr", typeAddress4, 4},
	{"protocol", typeProtocol, 1}, {"proto-src", typePort, 2}, {"proto-dst", typePort, 2}, {"label", typeNative, 16}, {"packets", typeNative, 8},
	{"bytes", typeNative, 8}, {"avgpkt", typeNative, 8}, {"zone", typeNative, 2}, {"event", typeNative, 4},
	{"ip saddr", typeAddress4, 4}, {"ip daddr", typeAddress4, 4}, {"ip6 saddr", typeAddress6, 16}, {"ip6 daddr", typeAddress6, 16}, {"id", typeNative, 4},
}

func ctValue(e *host.NFTExpr) value {
	v := keyValue("", ctKeys, e.Key)
	if e.Dir != "" {
		v.name = e.Dir + " " + v.name
	}
	v.name = "ct " + strings.TrimSpace(v.name)
	return v
}

var rtKeys = []key{{"rt classid", typeNative, 4}, {"rt ip nexthop", typeAddress4, 4}, {"rt ip6 nexthop", typeAddress6, 16}, {"rt mtu", typeNative, 2}, {"rt ipsec", typeExists, 1}}

func rtValue(n uint32) value { return keyValue("rt", rtKeys, n) }

var socketKeys = []key{{"socket transparent", typeInteger, 1}, {"socket mark", typeMark, 4}, {"socket wildcard", typeInteger, 1}, {"socket cgroupv2", typeNative, 8}}

func socketValue(n uint32) value { return keyValue("socket", socketKeys, n) }

// fibValue names a question to the routing tables: about what, and for what.
func fibValue(flags, result uint32) value {
	var of []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{{unix.NFTA_FIB_F_SADDR, "saddr"}, {unix.NFTA_FIB_F_DADDR, "daddr"}, {unix.NFTA_FIB_F_MARK, "mark"}, {unix.NFTA_FIB_F_IIF, "iif"}, {unix.NFTA_FIB_F_OIF, "oif"}} {
		if flags&f.bit != 0 {
			of = append(of, f.name)
		}
	}
	v := value{name: "fib " + strings.Join(of, " . "), size: 4}
	switch result {
	case unix.NFT_FIB_RESULT_OIF:
		v.name, v.typ = v.name+" oif", typeLink
	case unix.NFT_FIB_RESULT_OIFNAME:
		v.name, v.typ, v.size = v.name+" oifname", typeName, 16
	case unix.NFT_FIB_RESULT_ADDRTYPE:
		v.name, v.typ = v.name+" type", typeFibType
	}
	if flags&unix.NFTA_FIB_F_PRESENT != 0 {
		v.typ, v.size = typeExists, 1
	}
	return v
}

// Where exthdr looks (enum nft_exthdr_op), and the headers and options that are
// named most.
var (
	extensionHeaders = map[uint32]string{0: "hbh", 43: "rt", 44: "frag", 60: "dst", 135: "mh"}
	tcpOptions       = map[uint32]string{0: "eol", 1: "nop", 2: "maxseg", 3: "window", 4: "sack-perm", 5: "sack", 8: "timestamp", 30: "mptcp"}
	ipOptions        = map[uint32]string{7: "rr", 68: "..", 131: "lsrr", 137: "ssrr", 148: "ra"}
)

func (w *writer) extensionValue(e *host.NFTExpr) value {
	prefix, names := "exthdr", extensionHeaders
	switch e.Op {
	case 0:
		w.implied(baseNetwork, "")
	case 1:
		prefix, names = "tcp option", tcpOptions
	case 2:
		prefix, names = "ip option", ipOptions
	}
	name := names[e.Key]
	if name == "" {
		name = fmt.Sprint(e.Key)
	}
	v := value{typ: typeInteger, size: int(e.Len)}
	switch {
	case e.Flags&1 != 0: // NFT_EXTHDR_F_PRESENT
		v.name, v.typ = prefix+" "+name, typeExists
	case e.Op == 1 && e.Key == 2 && e.Offset == 2:
		v.name = "tcp option maxseg size"
	case e.Op == 0 && e.Offset == 0 && e.Len == 1:
		v.name, v.typ = name+" nexthdr", typeProtocol
	default:
		v.name = fmt.Sprintf("%s %s @%d,%d", prefix, name, uint64(e.Offset)*8, uint64(e.Len)*8)
	}
	return v
}
