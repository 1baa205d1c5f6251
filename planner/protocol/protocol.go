// Package protocol is the numbers and names of IP's protocols.
package protocol

import (
	"fmt"
	"strconv"
	"strings"
)

// protocolNames are the names that iptables-save may print for a protocol
// number: iptables' own and those of the hosts' /etc/protocols, which differ
// between distributions (ipencap and ipv4 are both 4).
var protocolNames = map[string]int{
	"icmp": 1, "igmp": 2, "ggp": 3, "ipencap": 4, "ipv4": 4, "st": 5, "tcp": 6, "egp": 8, "igp": 9, "pup": 12, "udp": 17,
	"hmp": 20, "xns-idp": 22, "rdp": 27, "iso-tp4": 29, "dccp": 33, "xtp": 36, "ddp": 37, "idpr-cmtp": 38, "ipv6": 41,
	"ipv6-route": 43, "ipv6-frag": 44, "idrp": 45, "rsvp": 46, "gre": 47, "esp": 50, "ipv6-crypt": 50, "ah": 51, "ipv6-auth": 51,
	"skip": 57, "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "rspf": 73, "vmtp": 81, "eigrp": 88,
	"ospf": 89, "ospfigp": 89, "ax.25": 93, "ipip": 94, "etherip": 97, "encap": 98, "pim": 103, "ipcomp": 108, "vrrp": 112,
	"l2tp": 115, "isis": 124, "sctp": 132, "fc": 133, "mobility-header": 135, "ipv6-mh": 135, "mh": 135, "udplite": 136,
	"mpls-in-ip": 137, "manet": 138, "hip": 139, "shim6": 140, "wesp": 141, "rohc": 142, "ethernet": 143,
}

// Canonical is one spelling for each protocol: its number, or "all".
// A name that nobody knows is left as it is.
func Canonical(p string) string {
	p = strings.ToLower(p)
	if p == "all" || p == "0" {
		return "all"
	}
	if n, ok := protocolNames[p]; ok {
		return strconv.Itoa(n)
	}
	return p
}

// IANA protocol numbers.
const (
	ICMP    = 1
	TCP     = 6
	UDP     = 17
	GRE     = 47
	DCCP    = 33
	ICMPv6  = 58
	SCTP    = 132
	UDPLite = 136
)

// Number is the IANA number of a protocol by name or number, as
// Traffic and rules spell it.
func Number(name string) (uint8, bool) {
	n, err := strconv.ParseUint(Canonical(name), 10, 8)
	return uint8(n), err == nil
}

// CarriesPorts reports whether packets of a protocol have ports.
func CarriesPorts(proto uint8) bool {
	switch proto {
	case TCP, UDP, UDPLite, SCTP, DCCP:
		return true
	}
	return false
}

// carriers are ports of UDP by which packets travel inside others.
var carriers = map[uint16]bool{4789: true, 8472: true, 4790: true, 6081: true, 2152: true, 6635: true, 4754: true, 51820: true, 4500: true, 1194: true, 1701: true}

// Carries reports whether packets of a protocol, to or from a port where it has
// ports, have others inside: tunnels, and what is encrypted.
func Carries(proto uint8, port uint16) bool {
	switch proto {
	case 4, 41, GRE, 50, 51, 97, 115, 137: // IP in IP, ESP, AH, Ethernet in IP, L2TP, MPLS in IP
		return true
	}
	return proto == UDP && carriers[port]
}

// Name is how the language names a protocol.
func Name(n uint8) string {
	for _, name := range []string{"icmp", "igmp", "ipencap", "tcp", "udp", "dccp", "ipv6", "gre", "esp", "ah", "ipv6-icmp", "ospf", "ipip", "pim", "vrrp", "l2tp", "sctp", "udplite"} {
		if protocolNames[name] == int(n) {
			return name
		}
	}
	return fmt.Sprint(n)
}

// Port is a port of a protocol.
type Port struct {
	Protocol uint8
	Port     uint16
}
