// Package routing says by which way a packet leaves a host, where that depends
// on more than its destination: by the rules of ip rule, above all by the mark
// that the packet has.
//
// It knows no rule of a packet filter, and no connection.
package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Map is the ways of one family.
type Map struct {
	r      *host.Routing
	family host.Family
	rules  []host.RoutingRule
	tables map[uint32][]host.RoutingRoute // the longest prefixes first, of those the lowest metric
	marks  uint32                         // bits that some rule goes by
}

// New is the map of a family. r may be nil: then nothing is known.
func New(r *host.Routing, family host.Family) *Map {
	m := &Map{r: r, family: family, tables: map[uint32][]host.RoutingRoute{}}
	if r == nil {
		m.marks = ^uint32(0)
		return m
	}
	for _, rule := range r.Rules {
		if rule.Family == family {
			m.rules = append(m.rules, rule)
			m.marks |= rule.Mask
		}
	}
	slices.SortStableFunc(m.rules, func(a, b host.RoutingRule) int { return cmp.Compare(a.Priority, b.Priority) })
	for _, route := range r.Routes {
		if route.Prefix.Addr().Is4() == (family == host.IPv4) {
			m.tables[route.Table] = append(m.tables[route.Table], route)
		}
	}
	for _, list := range m.tables {
		slices.SortStableFunc(list, func(a, b host.RoutingRoute) int {
			return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), cmp.Compare(a.Metric, b.Metric))
		})
	}
	return m
}

// Marks are the bits of marks that some rule goes by; all where that is not known.
func (m *Map) Marks() uint32 { return m.marks }

// Matters is whether anything beside rules goes by marks, or it is not known.
func (m *Map) Matters() bool {
	return m.marks != 0 || m.r == nil || len(m.r.Filters) > 0 || len(m.r.IPsec) > 0 || m.r.Partial != ""
}

// Link is what rp_filter does with packets that come in by an interface by their
// mark: 0 nothing, 1 strict, 2 loose.
func (m *Map) Link(name string) uint8 {
	if m.r != nil && m.family == host.IPv4 {
		for _, l := range m.r.Links {
			if l.Name == name && l.Mark {
				return l.Filter
			}
		}
	}
	return 0
}

// Filter is whether an interface has filters of tc that may go by marks; name
// may be empty, for any.
func (m *Map) Filter(name string) (string, bool) {
	if m.r == nil || len(m.r.Filters) == 0 {
		return "", false
	}
	if name == "" {
		return m.r.Filters[0], true
	}
	return name, slices.Contains(m.r.Filters, name)
}

// IPsec is a policy or a state of IPsec to which the two marks are not alike, of
// which bits are not known.
func (m *Map) IPsec(a, b, unknown uint32) (host.RoutingIPsec, bool) {
	if m.r != nil {
		for _, p := range m.r.IPsec {
			if p.Mask&(a^b|unknown) != 0 && (p.Mask&unknown != 0 || (a&p.Mask == p.Mark) != (b&p.Mask == p.Mark)) {
				return p, true
			}
		}
	}
	return host.RoutingIPsec{}, false
}

// Packet is one whose way is asked for.
type Packet struct {
	Src, Dst     netip.Addr
	SPort, DPort uint16
	Protocol     uint8
	In           string // lo: this host sends it, or looks back; "": it is not known
	Mark         uint32
	Unknown      uint32 // bits of Mark that are not known
}

// Way is where a packet goes.
type Way struct {
	Type      string // "unicast", "local", "blackhole", "unreachable", "prohibit"; "none" where no rule leads anywhere
	Interface string
	Gateway   netip.Addr
	Rule      *host.RoutingRule // that decided; nil for none
	Unsure    bool              // it may be another
}

// Dead is whether it leads nowhere.
func (w Way) Dead() bool { return w.Type != "unicast" && w.Type != "local" }

// String is the way in words that follow "it goes".
func (w Way) String() string {
	switch w.Type {
	case "unicast":
		if w.Gateway.IsValid() {
			return fmt.Sprintf("by %s over %s", w.Interface, w.Gateway)
		}
		return "by " + w.Interface
	case "local":
		return "to this host itself"
	case "none":
		return "nowhere: no route is left"
	}
	return "nowhere: " + w.Type
}

// truth is what is known of a statement.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

// match is whether a rule applies to a packet (fib_rule_match in
// net/core/fib_rules.c, fib4_rule_match and fib6_rule_match).
func match(r *host.RoutingRule, p *Packet) truth {
	t := yes
	need := func(s truth) { t = min(t, s) }
	is := func(b bool) truth {
		if b {
			return yes
		}
		return no
	}
	if r.From.IsValid() {
		need(is(r.From.Contains(p.Src)))
	}
	if r.To.IsValid() {
		need(is(r.To.Contains(p.Dst)))
	}
	switch {
	case r.In == "":
	case p.In == "":
		need(maybe)
	default:
		need(is(r.In == p.In))
	}
	if r.Out != "" {
		need(maybe) // a socket may be bound to it
	}
	switch {
	case (p.Mark^r.Mark)&r.Mask&^p.Unknown != 0:
		need(no)
	case r.Mask&p.Unknown != 0:
		need(maybe)
	}
	if r.Protocol != 0 {
		need(is(r.Protocol == p.Protocol))
	}
	for _, x := range []struct {
		ports host.PortRange
		port  uint16
	}{{r.SPorts, p.SPort}, {r.DPorts, p.DPort}} {
		if x.ports != (host.PortRange{}) {
			need(is(x.port >= x.ports.From && x.port <= x.ports.To))
		}
	}
	if r.Vague {
		need(maybe)
	}
	if r.Not {
		return yes - t
	}
	return t
}

// Of is the way of a packet.
func (m *Map) Of(p Packet) Way {
	if m.r == nil || m.r.Partial != "" {
		return Way{Type: "none", Unsure: true}
	}
	var first *Way
	skip := uint32(0)
	for i := range m.rules {
		r := &m.rules[i]
		if r.Priority < skip {
			continue
		}
		t := match(r, &p)
		if t == no {
			continue
		}
		w, ends := m.act(r, &p)
		if r.Action == "goto" {
			if t == yes {
				skip = r.Table
			} else {
				w, ends = Way{Type: "none", Rule: r, Unsure: true}, true
			}
		}
		switch {
		case !ends:
		case first != nil && !first.same(w):
			first.Unsure = true
			return *first
		case t == maybe || w.Unsure:
			if w.Unsure {
				return w
			}
			if first == nil {
				first = &w
			}
		default:
			return w
		}
	}
	if first != nil {
		first.Unsure = true
		return *first
	}
	return Way{Type: "none"}
}

// act is what a rule does with a packet that it applies to; ends is false where
// the next rule is asked.
func (m *Map) act(r *host.RoutingRule, p *Packet) (w Way, ends bool) {
	switch r.Action {
	case "nop", "goto":
		return w, false
	case "blackhole", "unreachable", "prohibit":
		return Way{Type: r.Action, Rule: r}, true
	case "lookup":
		if r.Table == 0 { // that of a VRF
			return Way{Type: "none", Rule: r, Unsure: true}, true
		}
	default:
		return Way{Type: "none", Rule: r, Unsure: true}, true
	}
	list := m.tables[r.Table]
	for i := range list {
		x := &list[i]
		if !x.Prefix.Contains(p.Dst) {
			continue
		}
		alive := x.Type == "unicast" || x.Type == "local"
		if x.Type == "throw" || alive && uint32(x.Prefix.Bits()) < r.Suppress { // what refuses is never suppressed
			return w, false
		}
		w = Way{Type: x.Type, Interface: x.Interface, Gateway: x.Gateway, Rule: r, Unsure: x.Vague || x.Type == "unicast" && x.Interface == ""}
		// Of several that are alike the kernel takes by turns.
		if i+1 < len(list) && list[i+1].Prefix == x.Prefix && list[i+1].Metric == x.Metric && list[i+1].Interface != x.Interface {
			w.Unsure = true
		}
		return w, true
	}
	return w, false
}

func (w Way) same(o Way) bool {
	return w.Type == o.Type && w.Interface == o.Interface && w.Gateway == o.Gateway
}

// Same is whether two ways are surely one.
func Same(a, b Way) bool { return !a.Unsure && !b.Unsure && a.same(b) }

// RuleString is a rule as ip rule prints it.
func RuleString(r *host.RoutingRule) string {
	var b strings.Builder
	tool := "ip rule"
	if r.Family == host.IPv6 {
		tool = "ip -6 rule"
	}
	fmt.Fprintf(&b, "%s %d: ", tool, r.Priority)
	if r.Not {
		b.WriteString("not ")
	}
	b.WriteString("from ")
	if r.From.IsValid() {
		b.WriteString(r.From.String())
	} else {
		b.WriteString("all")
	}
	if r.To.IsValid() {
		b.WriteString(" to " + r.To.String())
	}
	switch {
	case r.Mask == ^uint32(0):
		fmt.Fprintf(&b, " fwmark %#x", r.Mark)
	case r.Mask != 0:
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.In != "" {
		b.WriteString(" iif " + r.In)
	}
	if r.Out != "" {
		b.WriteString(" oif " + r.Out)
	}
	if r.Action != "lookup" {
		b.WriteString(" " + r.Action)
		return b.String()
	}
	name, ok := map[uint32]string{host.TableMain: "main", host.TableDefault: "default", host.TableLocal: "local"}[r.Table]
	if !ok {
		name = fmt.Sprint(r.Table)
	}
	b.WriteString(" lookup " + name)
	if r.Suppress > 0 {
		fmt.Fprintf(&b, " suppress_prefixlength %d", r.Suppress-1)
	}
	return b.String()
}
