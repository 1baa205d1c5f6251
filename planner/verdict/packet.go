package verdict

import (
	"fmt"
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
)

// Hook is where in a host a packet's fate is decided.
type Hook uint8

// The hooks: to the host itself, through it, from it.
const (
	HookInput Hook = iota
	HookForward
	HookOutput
)

// String is the name of the hook's built-in chain in the filter table.
func (h Hook) String() string { return [...]string{"INPUT", "FORWARD", "OUTPUT"}[h] }

// State is a set of connection states that a packet may be in. A packet whose
// state is known has exactly one bit (include/linux/netfilter/nf_conntrack_common.h).
type State uint8

// The states.
const (
	StateNew State = 1 << iota
	StateEstablished
	StateRelated
	StateInvalid
	StateUntracked

	// StateAny is a packet of which nothing is known.
	StateAny = StateNew | StateEstablished | StateRelated | StateInvalid | StateUntracked
)

// Known says which of a packet's optional fields hold something. What reads a
// host knows none of marks, users, lengths and hardware addresses of the packets
// to come.
type Known uint16

// The optional fields.
const (
	KnownMark Known = 1 << iota
	KnownConnMark
	KnownStatus
	KnownTuples // Orig and Reply
	KnownUID    // of the socket that sends it
	KnownGID
	KnownLength
	KnownMAC
	KnownPktType
	KnownUnbridged // it passes no port of a bridge
	KnownReply     // Reply says which way of the connection it goes
	KnownWayBack   // its source is reached through the interface that it comes in by
)

// Bits of a TCP header's flags (RFC 9293, section 3.1).
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
)

// Link-layer destinations of a packet (linux/if_packet.h).
const (
	PktHost uint8 = iota
	PktBroadcast
	PktMulticast
)

// SomeInterface stands for an interface whose name is not known, and which is
// not lo. No interface can have this name.
const SomeInterface = "/"

// Packet is one packet as the filter table sees it. Fields that Known does
// not name are ignored, except those that every packet has.
type Packet struct {
	Hook     Hook
	Protocol uint8 // IANA number
	State    State // what connection tracking makes of it, unless a rule takes it out
	TCPFlags uint8
	ICMPType uint8 // of ICMP and ICMPv6
	ICMPCode uint8
	Known    Known
	PktType  uint8
	Fragment Fragment // which part of a datagram it is, as it comes

	host.Tuple
	In, Out string // interfaces; "" for the one that the hook does not have, or SomeInterface

	Wire        host.Tuple // as the raw table sees it; the zero Tuple: the same, nothing is translated
	Orig, Reply host.Tuple // of its connection
	IsReply     bool       // it goes the way of Reply
	Status      uint32
	Mark        uint32 // when it enters
	ConnMark    uint32
	UID, GID    uint32
	Length      uint32 // bytes of the IP packet
	Datagram    uint32 // the same of what a Fragment is part of; 0: not known
	MAC         [6]byte
}

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts. Dropped includes rejected. Unknown means that it depends on
// something that the evaluator cannot know.
const (
	Unknown Verdict = iota
	Accepted
	Dropped
)

// String is the verdict in a word.
func (v Verdict) String() string { return [...]string{"unknown", "accepted", "dropped"}[v] }

// Decision is a verdict with the rule that gave it; where it is Unknown, with
// the rule that made it so. Rule is nil when no table has anything to say.
type Decision struct {
	Verdict   Verdict
	Untracked bool // a rule of the raw table surely takes it out of connection tracking
	Rule      *RuleRef

	Tracked bool     // no rule may take it out
	By      *RuleRef // what takes it out
	Zone    Zone     // of tracking, where it is tracked
	Proxied *RuleRef // what surely answers a SYN in the place of who it is sent to

	Route, Leaves Mark   // the packet's mark where its way is chosen, and at the end
	ConnMark      uint32 // of its connection, at the end
	ConnMarkBits  uint32 // the bits of it that are known
}

// RuleRef names a rule, or a chain's policy, of a compiled ruleset.
type RuleRef struct {
	Family  host.Family
	Backend host.Backend
	Table   string
	Chain   string
	Text    string // behind "-A CHAIN ", or as nft prints it; empty for the policy
	Policy  string // of the chain, where it decided; without a chain, what decides in words
	Routes  bool   // it is no rule of a packet filter: the mark is lost by which the way is chosen

	// Native is the family of a table of nftables' own: ip, ip6 or inet. Handle is
	// then that of the rule.
	Native string
	Handle uint64
}

// Unread is the Native of rules that could not be read.
const Unread = "unread"

// String is the rule as iptables-save or nft prints it, or the policy in words.
func (r *RuleRef) String() string {
	switch {
	case r == nil:
		return "no rule"
	case r.Chain == "":
		return r.Policy
	case r.Native == Unread:
		return "nftables, which could not be read: " + r.Text
	case r.Native != "":
		chain := r.NativeChain()
		switch {
		case r.Text == "" && r.Handle == 0:
			return "policy " + r.Policy + " of " + chain
		case r.Handle == 0:
			return chain + ": " + r.Text
		}
		return fmt.Sprintf("%s handle %d: %s", chain, r.Handle, r.Text)
	case r.Text == "" && r.Policy != "":
		return "policy " + r.Policy + " of " + r.Chain
	}
	return "-A " + r.Chain + " " + r.Text
}

// NativeChain is the chain of nftables' own that it stands in, as nft names it;
// empty for one of iptables.
func (r *RuleRef) NativeChain() string {
	if r == nil || r.Native == "" || r.Native == Unread {
		return ""
	}
	return r.Native + " " + r.Table + " " + r.Chain
}

// Facts is what rules ask of a host beside the packet.
type Facts struct {
	// Addresses are the host's own, with the length of their networks; nil
	// where they are not known.
	Addresses []netip.Prefix
	// Sets are the ipsets whose content is known, by name.
	Sets map[string]*host.IPSet
	// Interfaces are the indices of those that are known, by name.
	Interfaces map[string]uint32
}
