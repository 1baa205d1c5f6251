package host

import "net/netip"

// Connections is what is connected to and through a host at one moment.
type Connections struct {
	Flows    []Flow    `json:"flows"`    // tracked, in the order of the table; see All
	Total    int64     `json:"total"`    // how many are tracked; more than Flows where a limit held
	Sockets  []Socket  `json:"sockets"`  // by protocol and address
	Operator []Session `json:"operator"` // what ctplan itself was started through

	Addresses     []Address         `json:"addresses"`
	Routes        []Route           `json:"routes"`
	PolicyRouting bool              `json:"policy_routing"`    // there are rules beside the main table: a route does not tell the interface
	Routing       *Routing          `json:"routing,omitempty"` // how ways are chosen by more than destinations; nil where it was not read
	Sets          map[string]*IPSet `json:"sets,omitempty"`    // the ipsets that can be searched

	Servers []Server `json:"servers,omitempty"` // of UDP, that the host is configured to ask

	Ephemeral  PortRange `json:"ephemeral,omitzero"`   // from which the host's own connections take their ports; zero: not known
	Anonymised bool      `json:"anonymised,omitempty"` // addresses that nothing names are stand-ins

	Bridged bool `json:"bridged"` // there is a bridge: packets may pass its ports

	// Unread is what of these could not be read: what a plan does to it is not known.
	Unread []Unread `json:"unread,omitempty"`

	// Coming gives the tracked connections while they are being read, in place of
	// Flows and Total: it waits until there are more than n, or all, and returns
	// those that there are. The first are the same whenever it is asked. Nil: Flows
	// are all.
	Coming func(n int) (flows []Flow, all bool) `json:"-"`
}

// Beyond are the tracked connections that are there: more than n, or all.
func (c *Connections) Beyond(n int) (flows []Flow, all bool) {
	if c.Coming == nil {
		return c.Flows, true
	}
	return c.Coming(n)
}

// All are the tracked connections. It waits for those that are being read.
func (c *Connections) All() []Flow {
	for n := 0; ; {
		flows, all := c.Beyond(n)
		if all {
			return flows
		}
		n = len(flows)
	}
}

// Unread is something that could not be read.
type Unread struct {
	What string `json:"what"` // "the sockets"
	Why  string `json:"why"`
}

// Flow is a tracked connection.
type Flow struct {
	Protocol uint8  `json:"protocol"` // IANA number
	Orig     Tuple  `json:"orig"`     // as on the wire, from who opened it
	Reply    Tuple  `json:"reply"`    // as on the wire: where it differs from Orig turned around, it is translated
	Status   uint32 `json:"status"`   // enum ip_conntrack_status
	TCPState uint8  `json:"tcp_state,omitempty"`
	Mark     uint32 `json:"mark,omitempty"`
	// Liberal is whether tracking takes packets of TCP that are out of its
	// window, both ways (IP_CT_TCP_FLAG_BE_LIBERAL).
	Liberal bool `json:"liberal,omitempty"`
}

// Socket is a local end of TCP or UDP.
type Socket struct {
	Protocol  uint8          `json:"protocol"`
	Local     netip.AddrPort `json:"local"`
	Remote    netip.AddrPort `json:"remote"` // zero where Listening
	Listening bool           `json:"listening,omitempty"`
	Dual      bool           `json:"dual,omitempty"` // listens on all addresses of IPv6, and may take IPv4 too
	UID       uint32         `json:"uid"`
}

// Session is a TCP connection to this host.
type Session struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
}

// Address is one of the host's own, with the length of its network.
type Address struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix"`
}

// Route is an entry of the main routing table.
type Route struct {
	Prefix    netip.Prefix `json:"prefix"`
	Interface string       `json:"interface"` // "" where there are several
}

// Tuple is one direction of a connection. ICMP has its type and code, or its
// id, in no field here.
type Tuple struct {
	Src     netip.Addr `json:"src"`
	Dst     netip.Addr `json:"dst"`
	SrcPort uint16     `json:"sport,omitempty"`
	DstPort uint16     `json:"dport,omitempty"`
}

// Bits of a connection's status (enum ip_conntrack_status).
const (
	StatusExpected  = 1 << 0
	StatusSeenReply = 1 << 1
	StatusAssured   = 1 << 2
	StatusConfirmed = 1 << 3
	StatusSNAT      = 1 << 4
	StatusDNAT      = 1 << 5
)

// IPSet is the content of a set that ctplan can search: entries that surely
// are in it. Types of sets it cannot search are left out of Facts.
type IPSet struct {
	Type     string       `json:"type"` // "hash:ip", "hash:net", "hash:ip,port", "hash:net,port", "bitmap:ip", "bitmap:port"
	Prefixes []IPSetEntry `json:"entries"`
}

// IPSetEntry is one member of a set.
type IPSetEntry struct {
	Prefix   netip.Prefix `json:"prefix"`
	Protocol uint8        `json:"protocol,omitempty"`
	Port     uint16       `json:"port,omitempty"`
	Nomatch  bool         `json:"nomatch,omitempty"` // its addresses are not in the set, though a wider member holds them
}
