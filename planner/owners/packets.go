package owners

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
)

// Packets are some of one family and protocol.
type Packets struct {
	Family  host.Family // empty: both, in a table of both
	Forward bool        // they are routed
	Proto   uint8
	Ports   host.PortRange // of the service; zero where the protocol has none
	ToPort  bool           // they go to that port; else they come from it
	Answers bool           // of TCP: none of them opens a connection
	// Types are of ICMP, by nft's names; none: all.
	Types []string
	// Untracked is whether they are surely in state UNTRACKED. Without it a rule
	// that asks for states may need what the plan takes away.
	Untracked bool
}

// Equal is whether they are the same packets.
func (q *Packets) Equal(p *Packets) bool {
	return q.Family == p.Family && q.Forward == p.Forward && q.Proto == p.Proto && q.Ports == p.Ports && q.ToPort == p.ToPort && q.Answers == p.Answers && q.Untracked == p.Untracked && slices.Equal(q.Types, p.Types)
}

// nft is the rule that accepts them, in a table of the family.
func (q *Packets) nft(family string) string {
	var out []string
	if family == "inet" && q.Family != "" && len(q.Types) == 0 {
		out = append(out, "meta nfproto "+string(q.Family))
	}
	if q.Untracked {
		out = append(out, "ct state untracked")
	}
	name := protocolName(q.Proto)
	switch {
	case len(q.Types) == 1:
		out = append(out, nftICMP(q.Proto), "type", q.Types[0])
	case len(q.Types) > 1:
		out = append(out, nftICMP(q.Proto), "type {", strings.Join(q.Types, ", "), "}")
	case !protocol.CarriesPorts(q.Proto):
		out = append(out, "meta l4proto "+name)
	case q.ToPort:
		out = append(out, name+" dport "+words.Ports(q.Ports))
	default:
		out = append(out, name+" sport "+words.Ports(q.Ports))
	}
	if q.Answers && q.Proto == protocol.TCP {
		out = append(out, "tcp flags & (fin | syn | rst | ack) != syn")
	}
	return strings.Join(append(out, "accept"), " ")
}

// protocolName is a name that every /etc/protocols has, or the number.
func protocolName(proto uint8) string {
	switch proto {
	case protocol.ICMP, protocol.ICMPv6, protocol.TCP, protocol.UDP, protocol.UDPLite, protocol.SCTP, protocol.DCCP, protocol.GRE:
		return protocol.Name(proto)
	}
	return fmt.Sprint(proto)
}

func nftICMP(proto uint8) string {
	if proto == protocol.ICMPv6 {
		return "icmpv6"
	}
	return "icmp"
}

// rich is the rich rule of firewalld (firewalld.richlanguage(5)) that accepts
// them.
func (q *Packets) rich() string {
	name := protocolName(q.Proto)
	what := fmt.Sprintf(`protocol value="%s"`, name)
	switch q.Proto {
	case protocol.TCP, protocol.UDP, protocol.SCTP, protocol.DCCP:
		kind := "source-port"
		if q.ToPort {
			kind = "port"
		}
		what = fmt.Sprintf(`%s port="%s" protocol="%s"`, kind, words.Ports(q.Ports), name)
	}
	return fmt.Sprintf(`rule family="%s" %s accept`, q.Family, what)
}
