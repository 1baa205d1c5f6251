package iptables

import (
	"strconv"

	"github.com/ctplan/ctplan/planner/host"
)

// protocols names the protocols that iptables-save prints by the same name
// everywhere: those that iptables knows itself, and those on which the
// distributions' /etc/protocols agree. All others are written as numbers,
// because a name that /etc/protocols lacks makes iptables-restore fail.
var protocols = map[string]int{
	"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51,
	"ipv6-icmp": 58, "eigrp": 88, "ospf": 89, "pim": 103, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132,
	"mobility-header": 135, "udplite": 136,
}

// aliases are other names of the same protocols.
var aliases = map[string]string{
	"icmpv6": "ipv6-icmp", "mh": "mobility-header", "ipv6-mh": "mobility-header", "ipencap": "4", "ipv4": "4", "ipip": "94",
	"all": "", "ip": "", "0": "",
}

var protocolNames = func() map[string]string {
	m := make(map[string]string, len(protocols))
	for name, n := range protocols {
		m[strconv.Itoa(n)] = name
	}
	return m
}()

// protocol returns how iptables-save prints a declared protocol, "" for any.
// It reports false for a protocol that the family does not have.
func protocol(declared string, f host.Family) (string, bool) {
	name := declared
	if alias, ok := aliases[name]; ok {
		name = alias
	}
	if canonical, ok := protocolNames[name]; ok {
		name = canonical
	}
	switch {
	case declared == "icmp" && f == host.IPv6:
		return "ipv6-icmp", true
	case name == "ipv6-icmp" && f == host.IPv4:
		return "", false
	}
	return name, true
}
