package declared

// What only connection tracking can do, beside telling states: a rule that asks
// for it goes with its traffic's tracking only where allow_risk has the word.
// Helpers have RiskRelated: what they let in is judged.
const (
	RiskSYNProxy         Risk = "syn_proxy"         // SYNPROXY, synproxy
	RiskConnectionLimits Risk = "connection_limits" // connlimit, ct count
	RiskConnectionBytes  Risk = "connection_bytes"  // connbytes, ct bytes, packets and avgpkt
	RiskConnectionMarks  Risk = "connection_marks"  // CONNMARK, CONNSECMARK, connmark, connlabel, ct mark, label and secmark
	RiskZones            Risk = "zones"             // CT --zone, ct zone
	RiskRuleTimeouts     Risk = "rule_timeouts"     // CT --timeout, ct timeout
	RiskClusters         Risk = "clusters"          // cluster, CLUSTERIP
	RiskIPVS             Risk = "ipvs"              // ipvs; virtual services with net.ipv4.vs.conntrack
	RiskFlowtables       Risk = "flowtables"        // flow add, flow offload
	RiskConntrackd       Risk = "conntrackd"        // conntrackd, which copies the table to another machine
)

// Losses says of each of these risks what is lost: a sentence without a full stop.
var Losses = map[Risk]string{
	RiskSYNProxy:         "it answers SYNs in the place of the server until a client has shown that it is there, and without it a flood of them reaches the server",
	RiskConnectionLimits: "it counts the connections that are open, and what is not tracked is not counted: nobody is held to the limit",
	RiskConnectionBytes:  "it goes by how much a connection has carried, which nobody counts of what is not tracked",
	RiskConnectionMarks:  "what a connection carries with it to all its packets is lost, and with it what goes by that: ip rule, tc, IPsec, other rules",
	RiskRelated:          "a helper that ctplan does not know reads these connections and lets in others that are agreed on there, which it no longer does of what is not tracked",
	RiskZones:            "it keeps connections of networks with the same addresses apart, which what is not tracked has no part in",
	RiskRuleTimeouts:     "it gives these connections a timeout of their own, which what is not tracked does not have",
	RiskClusters:         "it shares connections out among the machines of a cluster, and each of them or none would take what is not tracked",
	RiskIPVS:             "what IPVS sends on is in the table of connections, and rules go by that: without it they see addresses as IPVS has made them, and no state",
	RiskFlowtables:       "open connections take a shortcut past routing and rules, or through the network card, and without tracking each packet takes the long way",
	RiskConntrackd:       "conntrackd copies the table to another machine, and of what is not tracked that one knows nothing when it takes over",
}
