package nft

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Rule is one of a table, for packets of a family.
type Rule struct {
	Ref     verdict.RuleRef
	Packets xtables.Packets // that it may match: those, or fewer
	Chain   *host.NFTChain
	Source  *host.NFTRule
}

// Rules are those of the tables that packets of a family meet, as far as they
// were read, for which pick holds.
func Rules(tables []host.NFTTable, family host.Family, pick func(*host.NFTRule) bool) []Rule {
	var out []Rule
	for i := range tables {
		t := &tables[i]
		if t.Dormant || !t.Whole || !meets(family, t) {
			continue
		}
		l := &language{family: family, table: t}
		for k := range t.Chains {
			c := &t.Chains[k]
			for n := range c.Rules {
				r := &c.Rules[n]
				if !pick(r) {
					continue
				}
				q, ok := l.packets(r.Exprs)
				if !ok {
					continue
				}
				ref := verdict.RuleRef{Family: family, Native: t.Family, Table: t.Name, Chain: c.Name, Text: r.Text, Handle: r.Handle}
				out = append(out, Rule{ref, q, c, r})
			}
		}
	}
	return out
}

// DecidesTracking is whether a rule takes packets out of tracking, or says in
// which zone they are tracked.
func DecidesTracking(r *host.NFTRule) bool {
	for i := range r.Exprs {
		e := &r.Exprs[i]
		name, _ := extension(e.Object)
		if e.Name == "notrack" || e.Name == "ct" && e.Sets && e.Key == ctZone || e.Name == "target" && (name == "CT" || name == "NOTRACK") {
			return true
		}
	}
	return false
}

// AsksForTracking is whether a rule needs connections to be tracked.
func AsksForTracking(r *host.NFTRule) bool {
	for i := range r.Exprs {
		e := &r.Exprs[i]
		switch name, _ := extension(e.Object); e.Name {
		case "ct", "nat", "masq", "redir", "connlimit", "flow_offload", "synproxy":
			return true
		case "match", "target":
			switch name {
			case "conntrack", "state", "connmark", "connbytes", "connlimit", "connlabel", "helper", "CONNMARK", "SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP":
				return true
			}
		}
	}
	return false
}

// Translates is whether a rule translates addresses.
func Translates(r *host.NFTRule) bool {
	for i := range r.Exprs {
		e := &r.Exprs[i]
		switch name, _ := extension(e.Object); {
		case e.Name == "nat", e.Name == "masq", e.Name == "redir", e.Name == "target" && xtables.IsNATTarget(name):
			return true
		}
	}
	return false
}

// packets are those that a rule's comparisons with one value leave; what else it
// asks for is not looked at. ok is false where no packet of the family is left.
func (l *language) packets(exprs []host.NFTExpr) (q xtables.Packets, ok bool) {
	b := builder{l: l}
	loads := map[uint32]*host.NFTExpr{}
	for i := range exprs {
		e := &exprs[i]
		switch e.Name {
		case "payload", "meta":
			loads[e.Dst] = e
		case "cmp":
			if from := loads[e.Src]; from != nil && e.Op == cmpEq && !b.narrow(&q, from, e.Data) {
				return q, false
			}
		case "lookup":
			const inverted = 1
			from := loads[e.Src]
			if from == nil || !isPort(from) || e.Flags&inverted != 0 {
				continue
			}
			if s := l.set(e.Set); s != nil {
				if ranges, ok := s.ports(); ok {
					b.narrowPorts(&q, from, ranges)
				}
			}
		default:
			if e.Dst != 0 { // what is there now is not what was loaded
				delete(loads, e.Dst)
			}
		}
	}
	return q, true
}

// narrow takes in that what was loaded is a value.
func (b *builder) narrow(q *xtables.Packets, from *host.NFTExpr, value []byte) (ok bool) {
	const network = 1
	switch {
	case from.Name == "meta" && from.Key == metaFamily:
		return len(value) == 1 && value[0] == b.constant(verdict.FieldFamily)[0]
	case from.Name == "meta" && from.Key == metaProtocol && len(value) == 1:
		q.Proto = strconv.Itoa(int(value[0]))
	case from.Name == "meta" && (from.Key == metaInName || from.Key == metaOutName):
		name, rest, whole := strings.Cut(string(value), "\x00")
		if !whole || strings.Trim(rest, "\x00") != "" {
			return true
		}
		b.narrowInterface(q, from.Key == metaInName, name)
	case from.Name == "meta" && (from.Key == metaIn || from.Key == metaOut):
		if number(value) == 1 {
			b.narrowInterface(q, from.Key == metaIn, "lo")
		}
	case from.Name == "payload" && from.Base == network:
		if int(from.Offset) == b.protocolOffset() && len(value) == 1 {
			q.Proto = strconv.Itoa(int(value[0]))
			return true
		}
		side, size, ok := b.address(int(from.Offset), len(value))
		if !ok || int(from.Len) != len(value) {
			return true
		}
		a, _ := netip.AddrFromSlice(append(append([]byte(nil), value...), make([]byte, size-len(value))...))
		p := xtables.PrefixSet{Prefix: netip.PrefixFrom(a, 8*len(value))}
		if side == verdict.DestinationEnd {
			q.Dst = p
		} else {
			q.Src = p
		}
	case from.Name == "payload" && len(value) == 2:
		b.narrowPorts(q, from, []host.PortRange{{From: port(value), To: port(value)}})
	}
	return true
}

func (b *builder) narrowInterface(q *xtables.Packets, in bool, name string) {
	if in {
		q.In = xtables.InterfaceSet{Name: name}
	} else {
		q.Out = xtables.InterfaceSet{Name: name}
	}
}

// isPort is whether a load is of one of the ports, or of what may be one.
func isPort(e *host.NFTExpr) bool {
	const transport = 2
	return e.Name == "payload" && e.Base == transport && e.Len == 2
}

func (b *builder) narrowPorts(q *xtables.Packets, from *host.NFTExpr, ranges []host.PortRange) {
	if !isPort(from) || len(ranges) == 0 {
		return
	}
	switch from.Offset {
	case 0:
		q.SrcPorts.Ranges = ranges
	case 2:
		q.DstPorts.Ranges = ranges
	}
}
