package xtables

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// ServicesOf are the ports, types of ICMP and protocols that a rule names,
// whether to match them or all others; those of sets as far as sets are known.
func ServicesOf(words []string, sets map[string]*host.IPSet) iter.Seq[protocol.Named] {
	return func(yield func(protocol.Named) bool) {
		proto := uint8(0)
		for i := 0; i+1 < len(words); i++ {
			arg := words[i+1]
			fields := []protocol.Field{protocol.DestinationPort}
			switch words[i] {
			case "-p":
				n, ok := protocol.Number(protocol.Canonical(arg))
				if !ok || n == 0 {
					continue
				}
				if i == 0 || words[i-1] != "!" {
					proto = n
				}
				if !yield(protocol.Named{Protocol: n, Field: protocol.Itself}) {
					return
				}
				continue
			case "--dport", "--dports", "--destination-port", "--destination-ports":
			case "--sport", "--sports", "--source-port", "--source-ports":
				fields[0] = protocol.SourcePort
			case "--ports":
				fields = append(fields, protocol.SourcePort)
			case "--icmp-type", "--icmpv6-type":
				typ, _, _ := strings.Cut(arg, "/")
				if n, err := strconv.ParseUint(typ, 10, 8); err == nil && !yield(protocol.Named{Protocol: proto, Field: protocol.ICMPType, From: uint16(n), To: uint16(n)}) {
					return
				}
				continue
			case "--match-set":
				if !portsOfSet(sets[arg], words[i+2:], yield) {
					return
				}
				continue
			default:
				continue
			}
			var ports PortSet
			if !ports.Take(false, arg) {
				continue
			}
			for _, r := range ports.Ranges {
				for _, f := range fields {
					if !yield(protocol.Named{Protocol: proto, Field: f, From: r.From, To: r.To}) {
						return
					}
				}
			}
		}
	}
}

// portsOfSet are those that a set holds; rest is what follows its name.
func portsOfSet(set *host.IPSet, rest []string, yield func(protocol.Named) bool) bool {
	if set == nil || len(rest) == 0 {
		return true
	}
	sides := strings.Split(rest[0], ",")
	field := protocol.DestinationPort
	if sides[len(sides)-1] == "src" {
		field = protocol.SourcePort
	}
	var seen []protocol.Named
	for _, e := range set.Prefixes {
		v := protocol.Named{Protocol: e.Protocol, Field: field, From: e.Port, To: e.Port}
		if e.Port == 0 || slices.Contains(seen, v) {
			continue
		}
		if seen = append(seen, v); len(seen) > maxSetPorts || !yield(v) {
			return len(seen) > maxSetPorts
		}
	}
	return true
}

// maxSetPorts bounds the ports of one set.
const maxSetPorts = 1024
