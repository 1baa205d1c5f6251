package host

import "net/netip"

// Routing is how a host chooses the way of a packet by more than where it goes:
// ip rule, the tables that its rules lead to, and what else goes by the mark that
// a packet has. It is kept small: routes are there only where some rule is not
// one of the kernel's own three.
type Routing struct {
	Rules   []RoutingRule  `json:"rules"`             // of each family in the order in which they are asked
	Routes  []RoutingRoute `json:"routes,omitempty"`  // of the tables of these rules, without the table local
	Links   []RoutingLink  `json:"links,omitempty"`   // interfaces on which rp_filter is at work
	Filters []string       `json:"filters,omitempty"` // interfaces with filters of tc that may go by marks
	IPsec   []RoutingIPsec `json:"ipsec,omitempty"`   // policies and states of IPsec that have a mark
	// Partial says why not all of it was read; empty where it was.
	Partial string `json:"partial,omitempty"`
}

// RoutingRule is a rule of ip rule (net/core/fib_rules.c, fib_rule_match).
type RoutingRule struct {
	Family   Family       `json:"family"`
	Priority uint32       `json:"priority"`
	Not      bool         `json:"not,omitempty"`
	From     netip.Prefix `json:"from,omitzero"`
	To       netip.Prefix `json:"to,omitzero"`
	In       string       `json:"iif,omitempty"` // lo: what this host sends
	Out      string       `json:"oif,omitempty"`
	Mark     uint32       `json:"mark,omitempty"`
	Mask     uint32       `json:"mask,omitempty"` // 0: it goes by no mark
	Protocol uint8        `json:"protocol,omitempty"`
	SPorts   PortRange    `json:"sports,omitzero"`
	DPorts   PortRange    `json:"dports,omitzero"`
	// Vague is whether it asks for something else as well: a user, a DSCP, a tunnel.
	Vague bool `json:"vague,omitempty"`
	// Action is what it does: "lookup" in Table, "goto" the rule of priority
	// Table, "nop", "blackhole", "unreachable" or "prohibit"; "unknown" for others.
	Action string `json:"action"`
	Table  uint32 `json:"table,omitempty"`
	// Suppress is one more than the length of prefixes that are no answer where
	// they are as short as that, or shorter; 0: all are.
	Suppress uint32 `json:"suppress,omitempty"`
}

// RoutingRoute is an entry of a table.
type RoutingRoute struct {
	Table  uint32       `json:"table"`
	Prefix netip.Prefix `json:"prefix"`
	// Type is "unicast", "local", "blackhole", "unreachable", "prohibit" or "throw".
	Type      string     `json:"type"`
	Interface string     `json:"interface,omitempty"` // "" where there are several
	Gateway   netip.Addr `json:"gateway,omitzero"`
	Metric    uint32     `json:"metric,omitempty"`
	Vague     bool       `json:"vague,omitempty"` // it is for some packets only: of a DSCP, from some source
}

// RoutingLink is an interface on which rp_filter is at work.
type RoutingLink struct {
	Name   string `json:"name"`
	Filter uint8  `json:"filter"`         // 1 strict, 2 loose
	Mark   bool   `json:"mark,omitempty"` // src_valid_mark: it goes by the packet's mark
}

// RoutingIPsec is a policy or a state of IPsec that has a mark.
type RoutingIPsec struct {
	What string `json:"what"` // "policy", "state"
	Mark uint32 `json:"mark"`
	Mask uint32 `json:"mask"`
}

// The tables of the kernel's own (include/uapi/linux/rtnetlink.h).
const (
	TableDefault = 253
	TableMain    = 254
	TableLocal   = 255
)

// Custom is whether the rule is none of the kernel's own three.
func (r *RoutingRule) Custom() bool {
	plain := RoutingRule{Family: r.Family, Priority: r.Priority, Action: "lookup", Table: r.Table}
	return *r != plain || r.Table != TableLocal && r.Table != TableMain && r.Table != TableDefault
}
