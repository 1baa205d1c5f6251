package nft

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// statement says what a part does.
func (w *writer) statement(p *expression) {
	var attrs [exprAttributes][]byte
	netlink.ByType(p.raw, attrs[:])
	n := func(i int) uint64 { return bigEndian(attrs[i]) }
	switch p.Name {
	case "nat":
		to := "snat"
		if p.Key == unix.NFT_NAT_DNAT {
			to = "dnat"
		}
		w.say(to + w.target(p, w.ofFamily(p.Code)) + natFlags(p.Flags))
	case "masq":
		w.say("masquerade" + w.target(p, "") + natFlags(p.Flags))
	case "redir":
		w.say("redirect" + w.target(p, "") + natFlags(p.Flags))
	case "tproxy":
		w.say("tproxy" + w.target(p, w.ofFamily(p.Code)))
	case "reject":
		w.say("reject" + rejectText(w.l3, p.Key, p.Code))
	case "queue":
		w.say("queue" + queueText(attrs[:]))
	case "flow_offload":
		w.say("flow add @" + p.Object)
	case "dup", "fwd":
		w.say(p.Name + " to " + w.whole(w.held(p.Src), typeAddress4))
	case "connlimit":
		w.say("ct count " + over(p.Flags) + strconv.FormatUint(n(1), 10))
	case "limit":
		w.say(limitText(attrs[:]))
	case "quota":
		w.say("quota " + over(p.Flags) + amount(n(1)))
	case "log":
		w.say(logText(attrs[:]))
	case "synproxy":
		w.say(synproxyText(attrs[:]))
	case "objref":
		w.object(p)
	case "match", "target":
		w.say("xt " + p.Name + " " + strconv.Quote(extension(&p.NFTExpr)))
	case "dynset":
		w.dynset(p, n(6))
	default:
		w.say(p.Name)
	}
}

// extension is the name of one of xtables', without its revision.
func extension(e *host.NFTExpr) string {
	name, _, _ := strings.Cut(e.Object, "/")
	return name
}

func over(flags uint32) string {
	if flags&1 != 0 { // NFT_LIMIT_F_INV, NFT_QUOTA_F_INV, NFT_CONNLIMIT_F_INV
		return "over "
	}
	return ""
}

// ofFamily is how nft says for which family an address is, where a table has
// several.
func (w *writer) ofFamily(family uint32) string {
	if w.family != "inet" {
		return ""
	}
	switch family {
	case unix.NFPROTO_IPV4:
		return " ip"
	case unix.NFPROTO_IPV6:
		return " ip6"
	}
	return ""
}

// target is " to ADDRESS:PORT" of what registers hold.
func (w *writer) target(p *expression, family string) string {
	address := typeAddress4
	if p.Code == unix.NFPROTO_IPV6 || p.Code == 0 && w.l3 == unix.NFPROTO_IPV6 {
		address = typeAddress6
	}
	to, ports := "", ""
	if p.Src != 0 {
		to = w.whole(w.held(p.Src), address)
		if p.Src3 != 0 && p.Src3 != p.Src {
			to += "-" + w.whole(w.held(p.Src3), address)
		}
	}
	if p.Src2 != 0 {
		ports = ":" + w.whole(w.held(p.Src2), typePort)
		if p.Src4 != 0 && p.Src4 != p.Src2 {
			ports += "-" + w.whole(w.held(p.Src4), typePort)
		}
		if strings.Contains(to, ":") {
			to = "[" + to + "]"
		}
	}
	if to+ports == "" {
		return ""
	}
	return family + " to " + to + ports
}

func natFlags(flags uint32) string {
	var names []string
	for _, f := range []struct {
		bit  uint32
		name string
	}{{unix.NF_NAT_RANGE_PROTO_RANDOM, "random"}, {unix.NF_NAT_RANGE_PROTO_RANDOM_FULLY, "fully-random"}, {unix.NF_NAT_RANGE_PERSISTENT, "persistent"}} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return ""
	}
	return " " + strings.Join(names, ",")
}

// Codes of ICMP and ICMPv6 for what cannot be reached, and nft's own for both.
var (
	icmpCodes   = map[uint32]string{0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable", 9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited"}
	icmpv6Codes = map[uint32]string{0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable", 5: "policy-fail", 6: "reject-route"}
	icmpxCodes  = map[uint32]string{0: "no-route", 1: "port-unreachable", 2: "host-unreachable", 3: "admin-prohibited"}
)

func rejectText(l3 int, kind, code uint32) string {
	protocol, names, usual := "icmpx", icmpxCodes, uint32(1)
	switch kind {
	case unix.NFT_REJECT_TCP_RST:
		return " with tcp reset"
	case unix.NFT_REJECT_ICMP_UNREACH:
		protocol, names, usual = "icmp", icmpCodes, 3
		if l3 == unix.NFPROTO_IPV6 {
			protocol, names, usual = "icmpv6", icmpv6Codes, 4
		}
	}
	if code == usual {
		return ""
	}
	name := names[code]
	if name == "" {
		name = strconv.Itoa(int(code))
	}
	return " with " + protocol + " " + name
}

func queueText(attrs [][]byte) string {
	from, total := bigEndian(attrs[1]), bigEndian(attrs[2])
	var flags []string
	if bigEndian(attrs[3])&unix.NFT_QUEUE_FLAG_BYPASS != 0 {
		flags = append(flags, "bypass")
	}
	if bigEndian(attrs[3])&unix.NFT_QUEUE_FLAG_CPU_FANOUT != 0 {
		flags = append(flags, "fanout")
	}
	text := ""
	if flags != nil {
		text = " flags " + strings.Join(flags, ",")
	}
	if total > 1 {
		return fmt.Sprintf("%s to %d-%d", text, from, from+total-1)
	}
	return fmt.Sprintf("%s to %d", text, from)
}

var units = map[uint64]string{1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week"}

func limitText(attrs [][]byte) string {
	rate, per, burst := bigEndian(attrs[1]), units[bigEndian(attrs[2])], bigEndian(attrs[3])
	if per == "" {
		per = fmt.Sprintf("%d seconds", bigEndian(attrs[2]))
	}
	text := "limit rate " + over(uint32(bigEndian(attrs[5])))
	if bigEndian(attrs[4]) == unix.NFT_LIMIT_PKT_BYTES {
		text += amount(rate) + "/" + per
		if burst != 0 {
			text += " burst " + amount(burst)
		}
		return text
	}
	text += fmt.Sprintf("%d/%s", rate, per)
	if burst != 0 && burst != 5 {
		text += fmt.Sprintf(" burst %d packets", burst)
	}
	return text
}

// amount is a number of bytes in the largest unit that it is whole in.
func amount(n uint64) string {
	unit := "bytes"
	for _, larger := range []string{"kbytes", "mbytes"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, larger
	}
	return fmt.Sprintf("%d %s", n, unit)
}

var logLevels = []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit"}

func logText(attrs [][]byte) string {
	text := "log"
	if prefix := cstring(attrs[2]); prefix != "" {
		text += " prefix " + strconv.Quote(prefix)
	}
	if attrs[1] != nil {
		text += fmt.Sprintf(" group %d", bigEndian(attrs[1]))
	}
	if level := bigEndian(attrs[5]); attrs[5] != nil && level != 4 && level < uint64(len(logLevels)) {
		text += " level " + logLevels[level]
	}
	return text
}

// Options of synproxy (include/uapi/linux/netfilter/nf_synproxy.h).
const (
	synproxyMSS       = 1
	synproxyScale     = 2
	synproxySackPerm  = 4
	synproxyTimestamp = 8
)

func synproxyText(attrs [][]byte) string {
	text := "synproxy"
	flags := bigEndian(attrs[3])
	if flags&synproxyMSS != 0 {
		text += fmt.Sprintf(" mss %d", bigEndian(attrs[1]))
	}
	if flags&synproxyScale != 0 {
		text += fmt.Sprintf(" wscale %d", bigEndian(attrs[2]))
	}
	if flags&synproxyTimestamp != 0 {
		text += " timestamp"
	}
	if flags&synproxySackPerm != 0 {
		text += " sack-perm"
	}
	return text
}

// objectStatements are the words that nft has for objects of a type.
var objectStatements = map[uint32]string{
	unix.NFT_OBJECT_COUNTER: "counter name", unix.NFT_OBJECT_QUOTA: "quota name", unix.NFT_OBJECT_CT_HELPER: "ct helper set",
	unix.NFT_OBJECT_LIMIT: "limit name", unix.NFT_OBJECT_CT_TIMEOUT: "ct timeout set", unix.NFT_OBJECT_SECMARK: "meta secmark set",
	unix.NFT_OBJECT_CT_EXPECT: "ct expectation set", unix.NFT_OBJECT_SYNPROXY: "synproxy name",
}

// object says which stateful object a part has to do with.
func (w *writer) object(p *expression) {
	typ, what := p.Key, strconv.Quote(p.Object)
	if p.Set != "" {
		set, size := w.sets[p.Set], uint32(1)
		if set != nil {
			typ, size = set.ObjectType, set.KeyLen
		}
		what = w.keyName(p.Src, size) + " map " + w.setText(p.Set, set)
	}
	how := objectStatements[typ]
	if how == "" {
		how = p.Name
	}
	w.say(how + " " + what)
}

func (w *writer) dynset(p *expression, timeout uint64) {
	verb := map[uint32]string{unix.NFT_DYNSET_OP_ADD: "add", unix.NFT_DYNSET_OP_UPDATE: "update", 2: "delete"}[p.Op]
	set, size := w.sets[p.Set], uint32(1)
	if set != nil {
		size = set.KeyLen
	}
	text := verb + " @" + p.Set + " { " + w.keyName(p.Src, size)
	if timeout != 0 {
		text += " timeout " + duration(timeout)
	}
	inner := func(elem []byte) {
		if e := oneExpression(elem, 0); e.Name != "" && e.Name != "counter" {
			part := w.texts.writer()
			part.part(&e)
			text += " " + strings.Join(part.out, " ")
		}
	}
	each(attribute(p.raw, 10), inner)
	if one := attribute(p.raw, unix.NFTA_DYNSET_EXPR); one != nil {
		inner(one)
	}
	if p.Src2 != 0 {
		text += " : " + w.whole(w.held(p.Src2), 0)
	}
	w.say(text + " }")
}

// duration is milliseconds as nft writes them.
func duration(ms uint64) string {
	d := time.Duration(min(ms, 1<<40)) * time.Millisecond
	text := ""
	for _, u := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / u.size; n > 0 {
			text += fmt.Sprintf("%d%s", n, u.name)
			d %= u.size
		}
	}
	return text
}

func native(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
