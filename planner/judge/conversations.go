package judge

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict/nft"
)

// usual are the ports of what hosts call, and are called for, most.
var usual = []protocol.Port{
	{Protocol: protocol.TCP, Port: 443}, {Protocol: protocol.TCP, Port: 22}, {Protocol: protocol.TCP, Port: 80}, {Protocol: protocol.TCP, Port: 25},
	{Protocol: protocol.TCP, Port: 53}, {Protocol: protocol.TCP, Port: 5432}, {Protocol: protocol.TCP, Port: 9},
	{Protocol: protocol.UDP, Port: 53}, {Protocol: protocol.UDP, Port: 123}, {Protocol: protocol.UDP, Port: 514}, {Protocol: protocol.UDP, Port: 443},
}

const (
	maxNamedPorts = 64 // of those that rules name, that conversations are tried with
	maxPartners   = 16 // addresses of others
)

// Conversations are made-up ones that nobody has now: with strangers, neighbours
// and networks that rules name, to this host, from it and, where it routes,
// through it; to usual ports and to those that rules of nftables name, and by
// ICMP. Each is the first packet and the answer; one is gone when the next comes.
func (j *Judge) Conversations() iter.Seq[*Connection] {
	ports := slices.Clone(usual)
	for port := range nft.Ports(j.native, j.Family) {
		for _, proto := range []uint8{protocol.TCP, protocol.UDP} {
			if p := (protocol.Port{Protocol: proto, Port: port}); !slices.Contains(ports, p) && len(ports) < len(usual)+maxNamedPorts {
				ports = append(ports, p)
			}
		}
	}
	ping := protocol.Port{Protocol: protocol.ICMP}
	if j.Family == host.IPv6 {
		ping.Protocol = protocol.ICMPv6
	}
	ports = append(ports, ping)
	return func(yield func(*Connection) bool) {
		for from, to := range j.pairs() {
			for _, p := range ports {
				t := host.Tuple{Src: from, Dst: to}
				if protocol.CarriesPorts(p.Protocol) {
					t.SrcPort, t.DstPort = 40000, p.Port
				}
				c := j.opening(p.Protocol, t)
				if c.Way == Out && p.Protocol == protocol.UDP && !slices.Contains(usual, p) {
					continue // a rule that names a port is about what listens there
				}
				if c.Way == Forward && c.Packets[0].In == c.Packets[0].Out {
					break
				}
				c.Port = ServicePort(p.Protocol, p.Port)
				if !yield(&c) {
					return
				}
			}
		}
	}
}

// pairs are who talks with whom in Conversations.
func (j *Judge) pairs() iter.Seq2[netip.Addr, netip.Addr] {
	partners, _ := j.sources()
	partners = partners[:min(len(partners), maxPartners)]
	doors := j.Doors()
	return func(yield func(from, to netip.Addr) bool) {
		for _, a := range partners {
			for _, door := range doors {
				own := door.Prefix.Addr()
				if j.Places.Local(a) {
					continue
				}
				if !yield(a, own) || !yield(own, a) {
					return
				}
			}
		}
		if !j.Routes() {
			return
		}
		ends := j.Ends()
		for _, a := range ends {
			for _, b := range ends {
				if a != b && !yield(a, b) {
					return
				}
			}
		}
	}
}
