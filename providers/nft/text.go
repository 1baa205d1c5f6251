package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// writer makes the text of a rule. It follows what each register holds, as
// the kernel does: a part loads something, a later one compares it.
type writer struct {
	family byte
	out    []string
	holds  map[uint32]value
}

// value is what a register holds: something of the packet, by name, or data.
type value struct {
	name string
	kind valueKind
	data []byte
	mask []byte
}

type valueKind int

const (
	bytesKind valueKind = iota
	addressKind
	portKind
	nameKind
	protocolKind
	familyKind
	stateKind
	markKind
)

// ruleText says what a rule does, about as nft prints it: good enough to find
// the rule, not to make it again. What it does not know it shows by its name.
func ruleText(family byte, parts []expression, comment string) string {
	w := &writer{family: family, holds: map[uint32]value{}}
	for _, p := range parts {
		w.part(p)
	}
	if comment != "" {
		w.say("comment " + strconv.Quote(comment))
	}
	return strings.Join(w.out, " ")
}

// say adds to the text. What nft leaves unsaid goes: that the protocol is TCP
// before a port of TCP, or IPv4 before an address of IPv4.
func (w *writer) say(s string) {
	if n := len(w.out) - 1; n >= 0 {
		before := w.out[n]
		proto, isProto := strings.CutPrefix(before, "meta l4proto ")
		port, isPort := strings.CutPrefix(s, "th ")
		switch {
		case isProto && isPort && !strings.Contains(proto, " "):
			w.out[n] = proto + " " + port
			return
		case before == "meta nfproto ipv4" && strings.HasPrefix(s, "ip "), before == "meta nfproto ipv6" && strings.HasPrefix(s, "ip6 "):
			w.out[n] = s
			return
		}
	}
	w.out = append(w.out, s)
}

// decode reads a part as the library knows it. What it cannot read leaves the
// zero value, and the text says less.
func decode[T any, P interface {
	*T
	expr.Any
}](w *writer, p expression) T {
	var e T
	if expr.Unmarshal(w.family, p.data, P(&e)) != nil {
		var zero T
		return zero
	}
	return e
}

func (w *writer) part(p expression) {
	switch p.name {
	case "counter", "last":
	case "meta":
		e := decode[expr.Meta](w, p)
		w.loadOrSet(e.Register, e.SourceRegister, metaValue(e.Key))
	case "ct":
		from := p.attribute(unix.NFTA_CT_SREG)
		w.loadOrSet(uint32(bigEndian(from)|bigEndian(p.attribute(unix.NFTA_CT_DREG))), from != nil, ctValue(p))
	case "payload":
		e := decode[expr.Payload](w, p)
		if e.OperationType != expr.PayloadWrite {
			w.holds[e.DestRegister] = w.payloadValue(e)
		} else {
			w.say("set " + w.payloadValue(e).name)
		}
	case "bitwise":
		e := decode[expr.Bitwise](w, p)
		v := w.holds[e.SourceRegister]
		v.mask = e.Mask
		w.holds[e.DestRegister] = v
	case "cmp":
		e := decode[expr.Cmp](w, p)
		w.compare(w.holds[e.Register], e.Op, e.Data)
	case "range":
		e := decode[expr.Range](w, p)
		v := w.holds[e.Register]
		w.say(v.name + not(e.Op == expr.CmpOpNeq) + " " + v.text(e.FromData) + "-" + v.text(e.ToData))
	case "lookup":
		w.lookup(decode[expr.Lookup](w, p))
	case "immediate":
		if bigEndian(p.attribute(unix.NFTA_IMMEDIATE_DREG)) == unix.NFT_REG_VERDICT {
			w.say(verdict(decode[expr.Verdict](w, p)))
			return
		}
		e := decode[expr.Immediate](w, p)
		w.holds[e.Register] = value{data: e.Data}
	case "nat":
		e := decode[expr.NAT](w, p)
		to := "snat"
		if e.Type == expr.NATTypeDestNAT {
			to = "dnat"
		}
		w.say(to + w.target(e.RegAddrMin, e.RegProtoMin))
	case "masq":
		w.say("masquerade")
	case "redir":
		w.say("redirect" + w.target(0, decode[expr.Redir](w, p).RegisterProtoMin))
	case "notrack", "synproxy", "reject", "limit", "queue":
		w.say(p.name)
	case "flow_offload":
		w.say("flow add @" + cstring(p.attribute(1)))
	case "connlimit":
		e := decode[expr.Connlimit](w, p)
		over := ""
		if e.Flags&expr.NFT_CONNLIMIT_F_INV != 0 {
			over = "over "
		}
		w.say(fmt.Sprintf("ct count %s%d", over, e.Count))
	case "log":
		w.say("log")
		if prefix := cstring(p.attribute(unix.NFTA_LOG_PREFIX)); prefix != "" {
			w.say("prefix " + strconv.Quote(prefix))
		}
	case "objref":
		w.say(p.uses()[0] + " " + strconv.Quote(cstring(p.attribute(unix.NFTA_OBJREF_IMM_NAME))))
	case "match", "target":
		w.say("xt " + p.name + " " + strconv.Quote(cstring(p.attribute(unix.NFTA_MATCH_NAME))))
	case "dynset":
		w.say("update @" + cstring(p.attribute(unix.NFTA_DYNSET_SET_NAME)))
		for _, u := range p.uses()[1:] {
			w.say("{" + u + "}")
		}
	default:
		w.say(p.name)
	}
}

// loadOrSet remembers what was loaded into a register, or says what is set
// from it.
func (w *writer) loadOrSet(register uint32, set bool, v value) {
	if !set {
		w.holds[register] = v
		return
	}
	from := w.holds[register]
	if from.name != "" {
		w.say(v.name + " set " + from.name)
		return
	}
	w.say(v.name + " set " + v.text(from.data))
}

func (w *writer) compare(v value, op expr.CmpOp, data []byte) {
	sign := map[expr.CmpOp]string{expr.CmpOpNeq: " !=", expr.CmpOpLt: " <", expr.CmpOpLte: " <=", expr.CmpOpGt: " >", expr.CmpOpGte: " >="}[op]
	if v.kind == stateKind && len(v.mask) > 0 {
		// "state & mask != 0" is how nft writes a list of states.
		w.say(v.name + not(op == expr.CmpOpEq) + " " + v.text(v.mask))
		return
	}
	text := v.text(data)
	if v.kind == addressKind && len(v.mask) > 0 {
		text += "/" + strconv.Itoa(ones(v.mask))
	} else if len(v.mask) > 0 {
		text = "& 0x" + hex.EncodeToString(v.mask) + " " + text
	}
	w.say(v.name + sign + " " + text)
}

func (w *writer) lookup(e expr.Lookup) {
	set := "@" + cstring([]byte(e.SetName))
	if strings.HasPrefix(set, "@__") {
		set = "{…}" // a set without a name
	}
	v := w.holds[e.SourceRegister]
	switch {
	case e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT:
		w.say(v.name + " vmap " + set)
	case e.IsDestRegSet:
		w.holds[e.DestRegister] = value{name: v.name + " map " + set}
	default:
		w.say(v.name + not(e.Invert) + " " + set)
	}
}

// target is " to ADDRESS:PORT" of what registers hold.
func (w *writer) target(address, port uint32) string {
	to := ""
	if v, ok := w.holds[address]; ok && address != 0 {
		v.kind = addressKind
		to = v.whole()
	}
	if v, ok := w.holds[port]; ok && port != 0 {
		v.kind = portKind
		to += ":" + v.whole()
	}
	if to == "" {
		return ""
	}
	return " to " + to
}

func (v value) whole() string {
	if v.name != "" {
		return v.name
	}
	return v.text(v.data)
}

func not(is bool) string {
	if is {
		return " !="
	}
	return ""
}

func ones(mask []byte) int {
	n := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			n++
		}
	}
	return n
}

// text is data as a value of this kind.
func (v value) text(data []byte) string {
	switch v.kind {
	case addressKind:
		size := 4
		if len(data) > 4 || strings.HasPrefix(v.name, "ip6 ") {
			size = 16
		}
		if a, ok := netip.AddrFromSlice(append(append([]byte(nil), data...), make([]byte, max(0, size-len(data)))...)); ok {
			if len(data) < size {
				return fmt.Sprintf("%s/%d", a, len(data)*8)
			}
			return a.String()
		}
	case portKind:
		if len(data) == 2 {
			return strconv.Itoa(int(bigEndian(data)))
		}
	case nameKind:
		return strconv.Quote(cstring(data))
	case protocolKind:
		if len(data) == 1 {
			return protocolName(data[0])
		}
	case familyKind:
		if len(data) == 1 {
			return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[data[0]]
		}
	case stateKind:
		if len(data) == 4 {
			return states(binary.NativeEndian.Uint32(data))
		}
	case markKind:
		switch len(data) {
		case 2:
			return strconv.Itoa(int(binary.NativeEndian.Uint16(data)))
		case 4:
			return fmt.Sprintf("0x%x", binary.NativeEndian.Uint32(data))
		}
	}
	return "0x" + hex.EncodeToString(data)
}

func protocolName(n byte) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	return strconv.Itoa(int(n))
}

// states lists connection states as nft does.
func states(bits uint32) string {
	var names []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{expr.CtStateBitINVALID, "invalid"}, {expr.CtStateBitESTABLISHED, "established"}, {expr.CtStateBitRELATED, "related"},
		{expr.CtStateBitNEW, "new"}, {expr.CtStateBitUNTRACKED, "untracked"},
	} {
		if bits&s.bit != 0 {
			names = append(names, s.name)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("0x%x", bits)
	}
	return strings.Join(names, ",")
}

func verdict(v expr.Verdict) string {
	chain := cstring([]byte(v.Chain))
	switch v.Kind {
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictQueue:
		return "queue"
	case expr.VerdictJump:
		return "jump " + chain
	case expr.VerdictGoto:
		return "goto " + chain
	case expr.VerdictContinue:
		return "continue"
	}
	return "verdict"
}

func metaValue(k expr.MetaKey) value {
	switch k {
	case expr.MetaKeyIIFNAME:
		return value{name: "iifname", kind: nameKind}
	case expr.MetaKeyOIFNAME:
		return value{name: "oifname", kind: nameKind}
	case expr.MetaKeyL4PROTO:
		return value{name: "meta l4proto", kind: protocolKind}
	case expr.MetaKeyMARK:
		return value{name: "meta mark", kind: markKind}
	case expr.MetaKeyNFPROTO:
		return value{name: "meta nfproto", kind: familyKind}
	case expr.MetaKeyIIF:
		return value{name: "iif"}
	case expr.MetaKeyOIF:
		return value{name: "oif"}
	}
	return value{name: fmt.Sprintf("meta %d", k)}
}

// ctKeys are what a ct expression loads or sets, by number
// (enum nft_ct_keys).
var ctKeys = []string{"state", "direction", "status", "mark", "secmark", "expiration", "helper", "l3proto", "saddr", "daddr", "protocol",
	"proto-src", "proto-dst", "label", "packets", "bytes", "avgpkt", "zone", "event", "saddr", "daddr", "saddr", "daddr", "id"}

// ctValue is what a ct expression loads or sets. The library refuses one with
// a direction, which is a single byte.
func ctValue(p expression) value {
	key := bigEndian(p.attribute(unix.NFTA_CT_KEY))
	v := value{name: fmt.Sprintf("ct %d", key)}
	direction := ""
	if d := p.attribute(unix.NFTA_CT_DIRECTION); len(d) == 1 {
		direction = []string{"original ", "reply "}[d[0]&1]
	}
	if key < uint64(len(ctKeys)) {
		v.name = "ct " + direction + ctKeys[key]
	}
	switch key {
	case unix.NFT_CT_STATE:
		v.kind = stateKind
	case unix.NFT_CT_MARK, unix.NFT_CT_ZONE:
		v.kind = markKind
	case unix.NFT_CT_HELPER:
		v.kind = nameKind
	case unix.NFT_CT_SRC, unix.NFT_CT_DST, 19, 20, 21, 22:
		v.kind = addressKind
	case unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST:
		v.kind = portKind
	}
	return v
}

// payloadValue names the fields that rules mostly look at.
func (w *writer) payloadValue(e expr.Payload) value {
	at := func(base expr.PayloadBase, offset uint32) bool { return e.Base == base && e.Offset == offset }
	switch {
	case at(expr.PayloadBaseNetworkHeader, 12) && e.Len <= 4:
		return value{name: "ip saddr", kind: addressKind}
	case at(expr.PayloadBaseNetworkHeader, 16) && e.Len <= 4:
		return value{name: "ip daddr", kind: addressKind}
	case at(expr.PayloadBaseNetworkHeader, 8) && (e.Len > 4 || w.family == unix.NFPROTO_IPV6):
		return value{name: "ip6 saddr", kind: addressKind}
	case at(expr.PayloadBaseNetworkHeader, 24):
		return value{name: "ip6 daddr", kind: addressKind}
	case at(expr.PayloadBaseNetworkHeader, 9) && e.Len == 1:
		return value{name: "ip protocol", kind: protocolKind}
	case at(expr.PayloadBaseTransportHeader, 0) && e.Len == 2:
		return value{name: "th sport", kind: portKind}
	case at(expr.PayloadBaseTransportHeader, 2) && e.Len == 2:
		return value{name: "th dport", kind: portKind}
	}
	return value{name: fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset*8, e.Len*8)}
}
