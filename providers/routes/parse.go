package routes

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// Attributes and actions of rules (include/uapi/linux/fib_rules.h).
const (
	attrTo, attrFrom, attrIn, attrGoto, attrPriority = 1, 2, 3, 4, 6
	attrFwmark, attrTunnel, attrSuppressGroup        = 10, 12, 13
	attrSuppress, attrTable, attrFwmask, attrOut     = 14, 15, 16, 17
	attrL3MDev, attrUsers, attrProto                 = 19, 20, 22
	attrSPorts, attrDPorts, attrLater                = 23, 24, 25 // from there on, what newer kernels ask for: a DSCP, a flow label, masks

	flagNot = 2
)

var ruleActions = map[byte]string{1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

// parseRule reads a message about a rule of IPv4 or IPv6.
func parseRule(msg []byte) (r host.RoutingRule, ok bool) {
	r.Family, ok = familyOf(msg[0])
	if !ok {
		return r, false
	}
	if r.Action = ruleActions[msg[7]]; r.Action == "" {
		r.Action = "unknown"
	}
	r.Table = uint32(msg[4])
	r.Not = binary.NativeEndian.Uint32(msg[8:])&flagNot != 0
	r.Vague = msg[3] != 0 // a TOS
	mark, masked, to := uint32(0), false, uint32(0)
	netlink.Attributes(msg[headRule:], func(typ uint16, value []byte) {
		switch typ {
		case attrTo:
			r.To = prefix(value, msg[1])
		case attrFrom:
			r.From = prefix(value, msg[2])
		case attrIn:
			r.In = text(value)
		case attrOut:
			r.Out = text(value)
		case attrL3MDev:
			r.Vague = r.Vague || len(value) > 0 && value[0] != 0
		case attrProto:
			if len(value) > 0 {
				r.Protocol = value[0]
			}
		case attrSPorts:
			r.SPorts = ports(value)
		case attrDPorts:
			r.DPorts = ports(value)
		case attrUsers:
			r.Vague = true
		}
		r.Vague = r.Vague || typ >= attrLater
		if len(value) < 4 {
			return
		}
		n := binary.NativeEndian.Uint32(value)
		switch typ {
		case attrGoto:
			to = n
		case attrTable:
			r.Table = n
		case attrPriority:
			r.Priority = n
		case attrFwmark:
			mark = n
		case attrFwmask:
			r.Mask, masked = n, true
		case attrTunnel:
			r.Vague = true
		case attrSuppressGroup:
			r.Vague = r.Vague || n != ^uint32(0)
		case attrSuppress:
			if n != ^uint32(0) {
				r.Suppress = n + 1
			}
		}
	})
	if r.Mark = mark; !masked && mark != 0 {
		r.Mask = ^uint32(0)
	}
	if r.Action == "goto" {
		r.Table = to
	}
	return r, true
}

var routeTypes = map[byte]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
}

// attrSource is that of a route which is for some source alone (RTA_SRC).
const attrSource = unix.RTA_SRC

// parseRoute reads a message about a route; ok is false for what no packet that
// is sent on goes by, and for those of the table local.
func parseRoute(msg []byte, names map[uint32]string) (r host.RoutingRoute, ok bool) {
	family, ok := familyOf(msg[0])
	r.Type = routeTypes[msg[7]]
	r.Table = uint32(msg[4])
	if !ok || r.Type == "" || binary.NativeEndian.Uint32(msg[8:])&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) != 0 {
		return r, false
	}
	r.Vague = msg[3] != 0
	any := netip.IPv4Unspecified()
	if family == host.IPv6 {
		any = netip.IPv6Unspecified()
	}
	r.Prefix = netip.PrefixFrom(any, 0)
	netlink.Attributes(msg[headRoute:], func(typ uint16, value []byte) {
		switch typ {
		case unix.RTA_DST:
			r.Prefix = prefix(value, msg[1])
		case attrSource:
			r.Vague = true
		case unix.RTA_GATEWAY:
			if a, ok := netip.AddrFromSlice(value); ok {
				r.Gateway = a
			}
		case unix.RTA_MULTIPATH:
			r.Interface = sameLink(value, names)
		}
		if len(value) != 4 {
			return
		}
		switch n := binary.NativeEndian.Uint32(value); typ {
		case unix.RTA_TABLE:
			r.Table = n
		case unix.RTA_OIF:
			r.Interface = names[n]
		case unix.RTA_PRIORITY:
			r.Metric = n
		}
	})
	return r, r.Table != host.TableLocal && r.Prefix.IsValid()
}

// sameLink is the interface of all next hops; "" where they have several.
func sameLink(b []byte, names map[uint32]string) string {
	name := ""
	for first := true; len(b) >= 8; first = false {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 8 || size > len(b) {
			return ""
		}
		this := names[binary.NativeEndian.Uint32(b[4:])]
		if !first && this != name {
			return ""
		}
		name = this
		b = b[min(netlink.Align(size), len(b)):]
	}
	return name
}

func familyOf(b byte) (host.Family, bool) {
	switch b {
	case unix.AF_INET:
		return host.IPv4, true
	case unix.AF_INET6:
		return host.IPv6, true
	}
	return "", false
}

// prefix is a network, or the zero one.
func prefix(value []byte, bits byte) netip.Prefix {
	a, ok := netip.AddrFromSlice(value)
	if !ok || int(bits) > a.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, int(bits)).Masked()
}

func ports(value []byte) host.PortRange {
	if len(value) < 4 {
		return host.PortRange{}
	}
	return host.PortRange{From: binary.NativeEndian.Uint16(value), To: binary.NativeEndian.Uint16(value[2:])}
}

// attribute is one attribute that is a text.
func attribute(b []byte, typ uint16) (s string) {
	netlink.Attributes(b, func(t uint16, value []byte) {
		if t == typ {
			s = text(value)
		}
	})
	return s
}

// text is a string of the kernel's, which ends in a zero.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}
