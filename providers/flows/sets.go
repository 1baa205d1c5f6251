package flows

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// Attributes of ipset (linux/netfilter/ipset/ip_set.h).
const (
	msgListSets = unix.NFNL_SUBSYS_IPSET<<8 | 7

	setProtocol, setName, setType, setData, setEntries = 1, 2, 3, 7, 8

	setIP, setCIDR, setPort, setProto, setFlags = 1, 3, 4, 7, 8

	// Of a set as a whole: how many bits of an address count, and the last of
	// those that change nothing.
	setNetmask, setLastPlain = 20, 26

	setFlagNomatch = 1 << 2
)

// searchable are the types of ipsets whose members tell whether a packet is in
// them.
var searchable = map[string]bool{"hash:ip": true, "hash:net": true, "bitmap:ip": true, "hash:ip,port": true, "hash:net,port": true, "bitmap:port": true}

// readSets reads the ipsets that can be searched.
func readSets() (map[string]*host.IPSet, error) {
	sets := listing{}
	request := []byte{unix.AF_UNSPEC, 0, 0, 0, 5, 0, setProtocol, 0, 6, 0, 0, 0} // struct nfgenmsg; version 6 of the protocol
	if err := netlink.Dump(unix.NETLINK_NETFILTER, msgListSets, request, func(msg []byte) bool { sets.parse(msg); return true }); err != nil {
		return nil, err
	}
	return sets.known(), nil
}

// listing collects sets, whose members may come in several messages.
type listing map[string]*listedSet

type listedSet struct {
	host.IPSet
	netmask uint8
	unclear bool // something about it is not known here
}

func (l listing) known() map[string]*host.IPSet {
	out := map[string]*host.IPSet{}
	for name, s := range l {
		if searchable[s.Type] && !s.unclear {
			out[name] = &s.IPSet
		}
	}
	return out
}

// parse reads one message behind its netlink header: a struct nfgenmsg and
// attributes.
func (l listing) parse(msg []byte) {
	if len(msg) < 4 {
		return
	}
	var s *listedSet
	netlink.Attributes(msg[4:], func(typ uint16, v []byte) {
		switch {
		case typ == setName:
			name := strings.TrimRight(string(v), "\x00")
			if s = l[name]; s == nil {
				s = &listedSet{}
				l[name] = s
			}
		case s == nil:
		case typ == setType:
			s.Type = strings.TrimRight(string(v), "\x00")
		case typ == setData:
			netlink.Attributes(v, func(typ uint16, v []byte) {
				if typ == setNetmask && len(v) == 1 {
					s.netmask = v[0]
				}
				s.unclear = s.unclear || typ > setLastPlain
			})
		case typ == setEntries:
			netlink.Attributes(v, func(_ uint16, v []byte) { s.entry(v) })
		}
	})
}

// entry reads one member. Where the set has a netmask, packets are cut down to
// it before they are looked up: a member is all that is cut down to it.
func (s *listedSet) entry(b []byte) {
	var e host.IPSetEntry
	var a netip.Addr
	bits, port, proto := -1, false, false
	netlink.Attributes(b, func(typ uint16, v []byte) {
		switch {
		case typ == setIP:
			netlink.Attributes(v, func(_ uint16, v []byte) { a, _ = netip.AddrFromSlice(v) })
		case typ == setCIDR && len(v) == 1:
			bits = int(v[0])
		case typ == setPort && len(v) == 2:
			e.Port, port = binary.BigEndian.Uint16(v), true
		case typ == setProto && len(v) == 1:
			e.Protocol, proto = v[0], true
		case typ == setFlags && len(v) == 4:
			e.Nomatch = binary.BigEndian.Uint32(v)&setFlagNomatch != 0
		}
	})
	if s.Type != "bitmap:port" {
		if bits < 0 {
			bits = a.BitLen()
		}
		if s.netmask != 0 {
			bits = min(bits, int(s.netmask))
		}
		e.Prefix = netip.PrefixFrom(a, bits)
	}
	switch s.Type {
	case "hash:ip", "hash:net", "bitmap:ip":
		s.unclear = s.unclear || !e.Prefix.IsValid()
	case "hash:ip,port", "hash:net,port":
		s.unclear = s.unclear || !e.Prefix.IsValid() || !port || !proto
	case "bitmap:port":
		s.unclear = s.unclear || !port
	}
	s.Prefixes = append(s.Prefixes, e)
}
