// Package declared is what the HCL declares for one host, as values: the mode,
// the traffic, the sizes, the risks that are accepted.
package declared

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
)

// Mode is what a host does with connection tracking.
type Mode string

// The modes. Unmanaged is a host that no conntrack block matches.
const (
	Unmanaged Mode = ""
	Disabled  Mode = "disabled"
	Notrack   Mode = "notrack"
	Tuned     Mode = "tuned"

	// GoingBack is no mode of the HCL: it marks a plan that rolls back.
	GoingBack Mode = "rollback"
)

// Reload is how new sizes get into the running kernel.
type Reload string

// The ways. Empty means ReloadLive.
const (
	ReloadLive    Reload = "live"            // set while it runs; nothing is interrupted
	ReloadRestart Reload = "restart-service" // by a restart of the packet filter's service, which reloads the module
)

// Pos is the place in the HCL that asked for something. The zero Pos means
// that nothing in the HCL did.
type Pos struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // from 1
}

// String is "file:line", or empty for the zero Pos.
func (p Pos) String() string {
	if p.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Setting is a number declared in the HCL.
type Setting struct {
	Value  int64 `json:"value"`
	Source Pos   `json:"source"`
}

// Timeout is one entry of timeouts: a name as in the HCL ("tcp_established",
// see TimeoutKeys) and its value in seconds.
type Timeout struct {
	Name    string `json:"name"`
	Seconds int64  `json:"seconds"`
	Source  Pos    `json:"source"`
}

// StatefulPolicy says what to do with rules that match on connection state
// and would stop matching.
type StatefulPolicy string

// The policies: refuse to plan (the default), remove the rules, or give them
// stateless twins.
const (
	RefuseStateful    StatefulPolicy = "refuse"
	RemoveStateful    StatefulPolicy = "remove"
	TranslateStateful StatefulPolicy = "translate"
)

// StatefulPolicies are all of them.
var StatefulPolicies = []StatefulPolicy{RefuseStateful, RemoveStateful, TranslateStateful}

// Direction is which way declared traffic flows, seen from the host.
type Direction string

// The directions. Both covers In and Out; Forward is routed traffic.
const (
	Both    Direction = "both"
	In      Direction = "in"
	Out     Direction = "out"
	Forward Direction = "forward"
)

// Initiator is who opens the connection; empty means either side.
type Initiator string

// The initiators.
const (
	EitherSide Initiator = ""
	LocalSide  Initiator = "local"
	RemoteSide Initiator = "remote"
)

// Traffic is one notrack or accept block, written from the host's point of
// view. Empty lists mean any. Ports are declared only with a protocol that
// has them (tcp, udp, udplite, sctp, dccp).
type Traffic struct {
	Name        string           `json:"name"`               // the block's label: [A-Za-z0-9._-], at most 64 bytes
	Protocol    string           `json:"protocol,omitempty"` // "" any, a lower-case name as in /etc/protocols, or a number
	Local       []netip.Prefix   `json:"local,omitempty"`
	Remote      []netip.Prefix   `json:"remote,omitempty"`
	LocalPorts  []host.PortRange `json:"local_ports,omitempty"`
	RemotePorts []host.PortRange `json:"remote_ports,omitempty"`
	Interface   string           `json:"interface,omitempty"` // the one that faces the remote side; a trailing + matches a prefix
	Direction   Direction        `json:"direction"`
	Initiator   Initiator        `json:"initiator,omitempty"` // accept only, and only for tcp
	Families    []host.Family    `json:"families"`            // never empty
	Source      Pos              `json:"source"`
}

// Files are paths that the HCL sets instead of the detected ones; empty means
// detected.
type Files struct {
	Sysctl      string `json:"sysctl,omitempty"`
	Modprobe    string `json:"modprobe,omitempty"`
	ModulesLoad string `json:"modules_load,omitempty"`
	RulesV4     string `json:"rules_v4,omitempty"`
	RulesV6     string `json:"rules_v6,omitempty"`
}

// Risk names one reason to block a plan, as allow_risk spells it.
type Risk string

// The risks.
const (
	RiskNAT            Risk = "nat"              // nat rules need connection tracking
	RiskStatefulRules  Risk = "stateful_rules"   // rules on connection state would stop matching
	RiskReadOnlySysctl Risk = "read_only_sysctl" // the value cannot be set from this network namespace
	RiskInitScript     Risk = "init_script"      // an array that cannot be edited safely
	RiskModuleHeld     Risk = "module_held"      // a module that something outside netfilter holds
	RiskMemory         Risk = "memory"           // a full table would not fit in memory
	RiskSavedRules     Risk = "saved_rules"      // a saved rules file that cannot be read
	RiskNoConntrack    Risk = "no_conntrack"     // the kernel has no connection tracking to tune
	RiskUnshownRules   Risk = "unshown_rules"    // a table to change that iptables cannot show
	RiskNoService      Risk = "no_service"       // there is no service to restart
	RiskLostFlows      Risk = "lost_flows"       // connections that are open now would be cut off
	RiskLostServices   Risk = "lost_services"    // a listening service could no longer be reached
	RiskExposed        Risk = "exposed"          // what is refused today would get in
	RiskOneSided       Risk = "one_sided"        // connections of which one way is tracked and the other is not would break
	RiskRelated        Risk = "related"          // what tracking lets in with other connections would be kept out
	RiskOldIptables    Risk = "old_iptables"     // a release of iptables through which rules cannot safely be written
	RiskWiderRules     Risk = "wider_rules"      // the stateless twin of a rule matches more than it did
	RiskNarrowerRules  Risk = "narrower_rules"   // it matches less
	RiskUnsavedRules   Risk = "unsaved_rules"    // rules that a restart of the service would lose, or bring in
	RiskUnseen         Risk = "unseen"           // what is connected could not be read, so whom a plan cuts off is not known
	RiskNoModule       Risk = "no_module"        // the running kernel cannot load a module that the plan needs
)

// Risks lists every risk that allow_risk accepts.
var Risks = []Risk{RiskNAT, RiskStatefulRules, RiskReadOnlySysctl, RiskInitScript, RiskModuleHeld, RiskMemory, RiskSavedRules, RiskLostFlows, RiskLostServices, RiskExposed, RiskOneSided, RiskRelated, RiskWiderRules, RiskNarrowerRules, RiskUnsavedRules, RiskUnseen,
	RiskSYNProxy, RiskConnectionLimits, RiskConnectionBytes, RiskConnectionMarks, RiskZones, RiskRuleTimeouts, RiskClusters, RiskIPVS, RiskFlowtables, RiskConntrackd}

// Desired is what the HCL declares for one host.
type Desired struct {
	Block         string         `json:"block,omitempty"` // label of the conntrack block; empty when no block matches
	Source        Pos            `json:"source"`
	Mode          Mode           `json:"mode"`
	ModeSource    Pos            `json:"mode_source"`
	Max           *Setting       `json:"max,omitempty"`      // tuned: entries, 1 to 2147483647; always set
	Hashsize      *Setting       `json:"hashsize,omitempty"` // tuned: buckets; schema fills in Max / 4 where absent
	Timeouts      []Timeout      `json:"timeouts,omitempty"` // tuned: sorted by name
	Reload        Reload         `json:"reload,omitempty"`   // tuned
	ReloadSource  Pos            `json:"reload_source,omitzero"`
	Notrack       []Traffic      `json:"notrack,omitempty"` // notrack: in order of the HCL
	Accept        []Traffic      `json:"accept,omitempty"`  // notrack and disabled: in order of the HCL
	StatefulRules StatefulPolicy `json:"stateful_rules"`
	AllowRisk     []Risk         `json:"allow_risk,omitempty"`
	Families      []host.Family  `json:"families"`
	Files         Files          `json:"files"`
	InitScripts   []string       `json:"init_scripts,omitzero"` // nil: detected; empty: none

	// NoCarry has the kernel's table left as it is: no connection is carried over,
	// no entry taken out. It is how apply is run, and in no HCL.
	NoCarry bool `json:"-"`

	// Firewall is what shall carry the rules; empty: what holds the host's policy.
	Firewall       Firewall `json:"firewall,omitempty"`
	FirewallSource Pos      `json:"firewall_source,omitzero"`

	// Chains are Notrack and Accept as rules, rendered by providers/iptables, and
	// Native the same rendered by providers/nft. They follow from the rest, so no
	// file stores them.
	Chains []Chain    `json:"-"`
	Native []NFTChain `json:"-"`
}

// Firewall is what carries rules.
type Firewall string

// The firewalls.
const (
	IPTables Firewall = "iptables" // of either backend
	NFTables Firewall = "nftables"
)

// Allows reports whether the HCL accepts the risk.
func (d Desired) Allows(r Risk) bool { return slices.Contains(d.AllowRisk, r) }

// OwnPrefix begins the name of every chain that ctplan owns.
const OwnPrefix = "CTPLAN-"

// JoinChain is the one of them that no rule jumps to.
const JoinChain = OwnPrefix + "DEFRAG"

// Chain is one of ctplan's own chains as it should stand.
type Chain struct {
	Family host.Family
	Table  string // "filter" or "raw"
	Hook   string // the built-in chain that jumps to it: INPUT, OUTPUT, FORWARD, PREROUTING; empty for JoinChain
	Name   string // OwnPrefix + Hook
	Rules  []TargetRule
}

// OwnTable is the table of nftables that is ctplan's own, of the family inet.
const OwnTable = "ctplan"

// NFTChain is what is declared as rules of nftables, for tables of one family
// and one hook.
type NFTChain struct {
	Family  string // of the table: ip, ip6 or inet
	Hook    string // prerouting, input, forward or output
	Notrack bool   // it takes out of tracking; else it accepts
	Rules   []NFTTargetRule
	Sets    []host.NFTSet // without a name of their own, that rules look up
}

// NFTTargetRule is one of them with the place that asked for it.
type NFTTargetRule struct {
	host.NFTRule
	Source Pos
}

// TargetRule is one rendered rule with the place that asked for it.
type TargetRule struct {
	host.Rule
	Source Pos
	// Own is whether, in raw PREROUTING of a host that routes, the rule matches
	// what is for this host alone.
	Own bool
}

// TimeoutKeys maps the names that timeouts accepts to the sysctl that holds
// each (Documentation/networking/nf_conntrack-sysctl.rst).
var TimeoutKeys = map[string]string{
	"dccp_closereq":      "net.netfilter.nf_conntrack_dccp_timeout_closereq",
	"dccp_closing":       "net.netfilter.nf_conntrack_dccp_timeout_closing",
	"dccp_open":          "net.netfilter.nf_conntrack_dccp_timeout_open",
	"dccp_partopen":      "net.netfilter.nf_conntrack_dccp_timeout_partopen",
	"dccp_request":       "net.netfilter.nf_conntrack_dccp_timeout_request",
	"dccp_respond":       "net.netfilter.nf_conntrack_dccp_timeout_respond",
	"dccp_timewait":      "net.netfilter.nf_conntrack_dccp_timeout_timewait",
	"generic":            "net.netfilter.nf_conntrack_generic_timeout",
	"gre":                "net.netfilter.nf_conntrack_gre_timeout",
	"gre_stream":         "net.netfilter.nf_conntrack_gre_timeout_stream",
	"icmp":               "net.netfilter.nf_conntrack_icmp_timeout",
	"icmpv6":             "net.netfilter.nf_conntrack_icmpv6_timeout",
	"sctp_closed":        "net.netfilter.nf_conntrack_sctp_timeout_closed",
	"sctp_cookie_echoed": "net.netfilter.nf_conntrack_sctp_timeout_cookie_echoed",
	"sctp_cookie_wait":   "net.netfilter.nf_conntrack_sctp_timeout_cookie_wait",
	"sctp_established":   "net.netfilter.nf_conntrack_sctp_timeout_established",
	"sctp_shutdown_ack":  "net.netfilter.nf_conntrack_sctp_timeout_shutdown_ack_sent",
	"sctp_shutdown_recv": "net.netfilter.nf_conntrack_sctp_timeout_shutdown_recd",
	"sctp_shutdown_sent": "net.netfilter.nf_conntrack_sctp_timeout_shutdown_sent",
	"tcp_close":          "net.netfilter.nf_conntrack_tcp_timeout_close",
	"tcp_close_wait":     "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
	"tcp_established":    "net.netfilter.nf_conntrack_tcp_timeout_established",
	"tcp_fin_wait":       "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
	"tcp_last_ack":       "net.netfilter.nf_conntrack_tcp_timeout_last_ack",
	"tcp_max_retrans":    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans",
	"tcp_syn_recv":       "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
	"tcp_syn_sent":       "net.netfilter.nf_conntrack_tcp_timeout_syn_sent",
	"tcp_time_wait":      "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
	"tcp_unacknowledged": "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged",
	"udp":                "net.netfilter.nf_conntrack_udp_timeout",
	"udp_stream":         "net.netfilter.nf_conntrack_udp_timeout_stream",
}

// ChainsOf are the chains declared for a family.
func (d Desired) ChainsOf(f host.Family) []Chain {
	var out []Chain
	for _, c := range d.Chains {
		if c.Family == f {
			out = append(out, c)
		}
	}
	return out
}
