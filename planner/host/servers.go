package host

import "net/netip"

// What a host may be configured to ask by UDP.
const (
	ServiceDNS    = "dns"
	ServiceNTP    = "ntp"
	ServiceDHCP   = "dhcp"
	ServiceDHCPv6 = "dhcpv6"
)

// Server is one of UDP that the host is configured to ask, open or not.
type Server struct {
	Service   string     `json:"service"`
	Addr      netip.Addr `json:"addr,omitzero"`        // invalid: the file has a name, or whoever answers is asked
	Port      uint16     `json:"port"`                 // the server's
	LocalPort uint16     `json:"local_port,omitempty"` // the host's own, where it is always the same
	File      string     `json:"file"`                 // that says so
}
