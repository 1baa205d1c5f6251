package flows

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/ctplan/ctplan/planner"
)

// searchable are the types of ipsets whose members tell whether a packet is in
// them. Sets of networks are not: a member may mean "not these" (nomatch),
// which a listing here does not show.
var searchable = map[string]bool{"hash:ip": true, "bitmap:ip": true, "hash:ip,port": true, "bitmap:port": true}

// readSets reads the ipsets that can be searched.
func readSets() (map[string]*planner.IPSet, error) {
	list, err := netlink.IpsetListAll()
	if err != nil {
		return nil, err
	}
	sets := map[string]*planner.IPSet{}
	for _, l := range list {
		if searchable[l.TypeName] {
			if set, ok := parseSet(l); ok {
				sets[l.SetName] = set
			}
		}
	}
	return sets, nil
}

func parseSet(l netlink.IPSetResult) (*planner.IPSet, bool) {
	set := &planner.IPSet{Type: l.TypeName}
	for _, e := range l.Entries {
		var m planner.IPSetEntry
		if l.TypeName != "bitmap:port" {
			a, ok := netip.AddrFromSlice(e.IP)
			if !ok {
				return nil, false
			}
			a = a.Unmap()
			bits := int(e.CIDR)
			if bits == 0 {
				bits = a.BitLen()
			}
			if bits != a.BitLen() {
				return nil, false // made with netmask: packets are cut down before they are looked up
			}
			m.Prefix = netip.PrefixFrom(a, bits)
		}
		if e.Port != nil {
			m.Port = *e.Port
		}
		if e.Protocol != nil {
			m.Protocol = *e.Protocol
		}
		if l.TypeName != "hash:ip" && l.TypeName != "bitmap:ip" && e.Port == nil || l.TypeName == "hash:ip,port" && e.Protocol == nil {
			return nil, false
		}
		set.Prefixes = append(set.Prefixes, m)
	}
	return set, true
}
