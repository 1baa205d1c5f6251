package planner

// Family is an address family, as iptables has one tool for each.
type Family string

// The two families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Families lists both, in the order in which ctplan works through them.
var Families = []Family{IPv4, IPv6}

// PortRange is an inclusive range of ports; a single port has From == To.
type PortRange struct {
	From uint16 `json:"from"`
	To   uint16 `json:"to"`
}

func inPorts(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.From <= port && port <= r.To {
			return true
		}
	}
	return false
}
