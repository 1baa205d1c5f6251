package sides

import (
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
)

// oneWay are ports of UDP from which no answers come: tunnels whose both ends
// send to that port, from ports of their own choosing, and what is told and not
// asked.
var oneWay = map[uint16]string{
	4789: "VXLAN (RFC 7348)", 8472: "VXLAN, as Linux has it by default", 4790: "VXLAN-GPE",
	6081: "Geneve (RFC 8926)", 2152: "GTP-U (3GPP TS 29.281)", 6635: "MPLS in UDP (RFC 7510)", 4754: "GRE in UDP (RFC 8086)", 7471: "STT",
	3784: "BFD (RFC 5881)", 4784: "BFD over several hops (RFC 5883)", 6784: "BFD on links of a bundle (RFC 7130)",
	162: "SNMP traps", 514: "syslog (RFC 5426)", 2055: "NetFlow", 4739: "IPFIX (RFC 7011)", 6343: "sFlow", 8125: "statsd", 25826: "collectd",
}

// hasAnswers reports whether anybody answers packets like these, so that both ways
// of what they open matter: not what goes to everybody, comes from nobody yet,
// or goes to a port that both sides send to, unless an answer is there.
func hasAnswers(j *judge.Judge, x *judge.Example) bool {
	to, from := x.Orig.Dst, x.Orig.Src
	switch {
	case to.IsMulticast(), from.IsMulticast(), to.IsUnspecified(), from.IsUnspecified(), j.Places.Broadcast(to), j.Places.Broadcast(from):
		return false
	case x.Proto != protocol.UDP || oneWay[x.Orig.DstPort] == "":
		return true
	}
	for _, f := range j.Connections.All() {
		if f.Protocol == x.Proto && f.Orig.DstPort == x.Orig.DstPort && f.Status&host.StatusSeenReply != 0 && f.Orig.Src.Is4() == (j.Family == host.IPv4) {
			return true
		}
	}
	return false
}
