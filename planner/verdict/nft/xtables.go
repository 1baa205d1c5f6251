package nft

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// Of the matches and targets of xtables the kernel shows their private data
// alone: the structures of include/uapi/linux/netfilter, which differ by the
// revision. What is not read here is unknown by its name.

// info is private data, read as the kernel lays it out on a machine with
// little-endian numbers.
type info []byte

func (d info) u8(at int) uint8 {
	if at >= len(d) {
		return 0
	}
	return d[at]
}

func (d info) u16(at int) uint16 {
	if at+2 > len(d) {
		return 0
	}
	return binary.LittleEndian.Uint16(d[at:])
}

func (d info) u32(at int) uint32 {
	if at+4 > len(d) {
		return 0
	}
	return binary.LittleEndian.Uint32(d[at:])
}

// net16 is a number in the order of the network.
func (d info) net16(at int) uint16 { return d.u16(at)<<8 | d.u16(at)>>8 }

// portRange asks for two numbers of 16 bits of the host: source ports at 0,
// destination ports at 4.
func (b *builder) portRange(d info, at int, not bool) {
	r := host.PortRange{From: d.u16(at), To: d.u16(at + 2)}
	if !not && r == (host.PortRange{To: 65535}) {
		return
	}
	side := verdict.SourceEnd
	if at != 0 {
		side = verdict.DestinationEnd
	}
	c := verdict.InPorts(side, []host.PortRange{r})
	if not {
		c = c.Negated()
	}
	b.need(c)
}

// address is a union nf_inet_addr.
func (d info) address(at int, f host.Family) (a netip.Addr, ok bool) {
	n := 4
	if f == host.IPv6 {
		n = 16
	}
	if at+n > len(d) {
		return a, false
	}
	return netip.AddrFromSlice(d[at : at+n])
}

// extension takes "NAME/REVISION" apart.
func extension(object string) (name string, revision int) {
	name, rev, _ := strings.Cut(object, "/")
	for _, c := range rev {
		revision = revision*10 + int(c-'0')
	}
	return name, revision
}

// match adds a match of xtables.
func (b *builder) match(e *host.NFTExpr) {
	name, revision := extension(e.Object)
	d := info(e.Data)
	need := func(not bool, c verdict.Condition) {
		if not {
			c = c.Negated()
		}
		b.need(c)
	}
	known := true
	switch name {
	case "comment":
	case "limit", "hashlimit":
		b.program().Rate()
	case "tcp": // struct xt_tcp
		const source, destination, flags = 1, 2, 4
		known = len(d) >= 12 && d.u8(8) == 0 // no option asked for
		b.portRange(d, 0, d.u8(11)&source != 0)
		b.portRange(d, 4, d.u8(11)&destination != 0)
		need(d.u8(11)&flags != 0, verdict.Flags(uint32(d.u8(9)), uint32(d.u8(10))))
	case "udp", "udplite": // struct xt_udp
		known = len(d) >= 9
		b.portRange(d, 0, d.u8(8)&1 != 0)
		b.portRange(d, 4, d.u8(8)&2 != 0)
		b.need(verdict.Fragments(verdict.Whole, verdict.FirstFragment))
	case "icmp", "icmp6": // struct ipt_icmp, ip6t_icmp
		kind := uint16(d.u8(0))
		if kind == 255 && name == "icmp" {
			kind = verdict.AnyICMP
		}
		known = len(d) >= 4
		need(d.u8(3)&1 != 0, verdict.ICMP(kind, d.u8(1), d.u8(2)))
	case "mark": // struct xt_mark_mtinfo1
		known = revision == 1 && len(d) >= 9
		need(d.u8(8) != 0, verdict.PacketMark(d.u32(0), d.u32(4)))
	case "connmark": // struct xt_connmark_mtinfo1
		known = revision == 1 && len(d) >= 9
		need(d.u8(8) != 0, verdict.ConnMark(d.u32(0), d.u32(4)))
	case "pkttype": // struct xt_pkttype_info
		known = len(d) >= 8
		need(d.u32(4) != 0, verdict.LinkType(uint8(d.u32(0))))
	case "length": // struct xt_length_info
		known = len(d) >= 5
		need(d.u8(4) != 0, verdict.Length(uint32(d.u16(0)), uint32(d.u16(2))))
	case "mac": // struct xt_mac_info
		var address uint64
		for i := range 6 {
			address = address<<8 | uint64(d.u8(i))
		}
		known = len(d) >= 12
		need(d.u32(8) != 0, verdict.MAC(address))
	case "physdev": // struct xt_physdev_info: where no bridge is, what is negated matches
		known = len(d) >= 66
		for bit := range 5 {
			if d.u8(65)&(1<<bit) != 0 {
				b.need(verdict.BridgePort(d.u8(64)&(1<<bit) != 0))
			}
		}
	case "owner":
		known = b.owner(d)
	case "iprange":
		known = b.addressRange(d, revision)
	case "multiport":
		known = b.multiport(d, revision)
	case "addrtype":
		known = b.addressTypes(d, revision)
	case "state":
		known = b.stateMatch(d)
	case "conntrack":
		known = b.conntrack(d, revision)
	default:
		known = false
	}
	if !known {
		b.vague()
	}
}

// owner is struct xt_owner_match_info.
func (b *builder) owner(d info) (known bool) {
	const user, group, socket = 1, 2, 4
	for i, flag := range []uint8{user, group} {
		if d.u8(16)&flag == 0 {
			continue
		}
		c := verdict.User(d.u32(0), d.u32(4))
		if i == 1 {
			c = verdict.Group(d.u32(8), d.u32(12))
		}
		if d.u8(17)&flag != 0 {
			c = c.Negated()
		}
		b.need(c)
	}
	return len(d) >= 18 && d.u8(16)&socket == 0
}

// multiport is struct xt_multiport_v1.
func (b *builder) multiport(d info, revision int) (known bool) {
	const most = 15
	n := int(d.u8(1))
	if revision != 1 || len(d) < 48 || n > most || d.u8(0) > 2 {
		return false
	}
	var ranges []host.PortRange
	for i := 0; i < n; i++ {
		r := host.PortRange{From: d.u16(2 + 2*i), To: d.u16(2 + 2*i)}
		if d.u8(32+i) != 0 && i+1 < n { // a range, which ends with the next
			i++
			r.To = d.u16(2 + 2*i)
		}
		ranges = append(ranges, r)
	}
	c := verdict.InPorts([]verdict.Side{verdict.SourceEnd, verdict.DestinationEnd, verdict.EitherEnd}[d.u8(0)], ranges)
	if d.u8(47) != 0 {
		c = c.Negated()
	}
	b.need(c)
	return true
}

// addressRange is struct xt_iprange_mtinfo.
func (b *builder) addressRange(d info, revision int) (known bool) {
	if revision != 1 || len(d) < 65 {
		return false
	}
	for i, side := range []verdict.Side{verdict.SourceEnd, verdict.DestinationEnd} {
		from, ok1 := d.address(32*i, b.l.family)
		to, ok2 := d.address(32*i+16, b.l.family)
		switch c := verdict.Between(side, from, to); {
		case d.u8(64)&(1<<i) == 0:
		case !ok1 || !ok2:
			return false
		case d.u8(64)&(16<<i) != 0:
			b.need(c.Negated())
		default:
			b.need(c)
		}
	}
	return true
}

// addressTypes is struct xt_addrtype_info_v1, or of the revision before.
func (b *builder) addressTypes(d info, revision int) (known bool) {
	notSource, notDestination, limited := d.u32(4)&1 != 0, d.u32(4)&2 != 0, d.u32(4)&12 != 0
	switch {
	case revision == 0 && len(d) >= 12:
		notSource, notDestination, limited = d.u32(4) != 0, d.u32(8) != 0, false
	case revision != 1 || len(d) < 8:
		return false
	}
	add := func(s verdict.Side, types uint16, not bool) {
		if types == 0 {
			return
		}
		const told = verdict.TypeUnspec | verdict.TypeUnicast | verdict.TypeLocal | verdict.TypeBroadcast | verdict.TypeMulticast
		mask := uint32(types) & told
		if uint32(types)&^told != 0 {
			mask |= verdict.TypeOther
			limited = limited || b.l.family == host.IPv4
		}
		c := verdict.AddressType(s, mask)
		if not {
			c = c.Negated()
		}
		b.need(c)
	}
	add(verdict.SourceEnd, d.u16(0), notSource)
	add(verdict.DestinationEnd, d.u16(2), notDestination)
	return !limited
}

// maskedStates are those of a mask; untracked is the bit that stands for UNTRACKED.
func maskedStates(mask, untracked uint16) (states verdict.State) {
	for _, s := range []struct {
		bit   uint16
		state verdict.State
	}{{1, verdict.StateInvalid}, {2, verdict.StateEstablished}, {4, verdict.StateRelated}, {8, verdict.StateNew}, {untracked, verdict.StateUntracked}} {
		if mask&s.bit != 0 {
			states |= s.state
		}
	}
	return states
}

// stateMatch is struct xt_state_info.
func (b *builder) stateMatch(d info) (known bool) {
	states := maskedStates(d.u16(0), ctUntracked)
	if len(d) < 4 || states == 0 {
		return false
	}
	b.need(verdict.Connection(&verdict.CT{States: states}))
	return true
}

// conntrack is struct xt_conntrack_mtinfo2 or 3.
func (b *builder) conntrack(d info, revision int) (known bool) {
	const (
		state = 1 << iota
		proto
		originalSource
		originalDestination
		replySource
		replyDestination
		status
		expires
		originalSourcePort
		originalDestinationPort
		replySourcePort
		replyDestinationPort
		direction

		snat, dnat, untracked = 1 << 6, 1 << 7, 1 << 8 // in the mask of states
	)
	if revision != 2 && revision != 3 || len(d) < 154 || revision == 3 && len(d) < 162 {
		return false
	}
	flags, inverted := d.u16(146), d.u16(148)
	asks := func(flag uint16) bool { return flags&flag != 0 }
	not := func(flag uint16) bool { return inverted&flag != 0 }
	ct := &verdict.CT{Vague: asks(expires)}
	if asks(state) {
		mask := d.u16(150)
		ct.States, ct.NotStates, ct.SNAT, ct.DNAT = maskedStates(mask, untracked), not(state), mask&snat != 0, mask&dnat != 0
		ct.Vague = ct.Vague || ct.States == 0 && !ct.SNAT && !ct.DNAT
	}
	if asks(direction) {
		ct.ByDirection, ct.Reply = true, not(direction)
	}
	if asks(status) {
		const told = host.StatusExpected | host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed
		ct.ByStatus, ct.NotStatus, ct.Status = true, not(status), uint32(d.u16(152))&told
		ct.Vague = ct.Vague || uint32(d.u16(152))&^told != 0
	}
	if asks(proto) {
		ct.ByProtocol, ct.NotProtocol, ct.Protocol = true, not(proto), uint8(d.u16(136))
	}
	for i, flag := range []uint16{originalSource, originalDestination, replySource, replyDestination} {
		if !asks(flag) {
			continue
		}
		a, ok1 := d.address(32*i, b.l.family)
		mask, ok2 := d.address(32*i+16, b.l.family)
		bits := leadingOnes(mask.AsSlice())
		p, err := a.Prefix(max(bits, 0))
		ct.Vague = ct.Vague || !ok1 || !ok2 || bits < 0 || err != nil
		ct.Tuples = append(ct.Tuples, verdict.TupleMatch{Reply: i > 1, Destination: i%2 == 1, Not: not(flag), Network: p})
	}
	for i, flag := range []uint16{originalSourcePort, originalDestinationPort, replySourcePort, replyDestinationPort} {
		if !asks(flag) {
			continue
		}
		r := host.PortRange{From: d.u16(138 + 2*i), To: d.u16(154 + 2*i)}
		if revision == 2 {
			r = host.PortRange{From: d.net16(138 + 2*i), To: d.net16(138 + 2*i)}
		}
		ct.Tuples = append(ct.Tuples, verdict.TupleMatch{Reply: i > 1, Destination: i%2 == 1, Not: not(flag), Ports: r})
	}
	b.need(verdict.Connection(ct))
	return true
}

// leadingOnes is the length of the network that a mask is of; -1: it has holes.
func leadingOnes(mask []byte) int {
	n := 0
	for n < 8*len(mask) && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	for i := n; i < 8*len(mask); i++ {
		if mask[i/8]&(0x80>>(i%8)) != 0 {
			return -1
		}
	}
	return n
}

// target adds a target of xtables. One that goes on is the rule's last, as
// iptables makes them.
func (b *builder) target(e *host.NFTExpr) {
	name, revision := extension(e.Object)
	d := info(e.Data)
	switch name {
	case "LOG", "NFLOG", "TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "TTL", "HL", "ECN", "CLASSIFY", "CHECKSUM", "TRACE", "AUDIT", "SECMARK", "CONNSECMARK", "LED", "IDLETIMER", "RATEEST", "TEE":
	case "REJECT", "DROP", "TARPIT":
		b.do(verdict.Drop)
	case "ACCEPT", "MASQUERADE", "SNAT":
		b.do(verdict.Accept)
	case "DNAT", "REDIRECT", "NETMAP":
		b.do(verdict.Translate)
	case "NFQUEUE":
		b.do(verdict.Queue)
	case "SYNPROXY":
		b.do(verdict.Proxy)
	case "NOTRACK":
		b.do(verdict.Untrack)
	case "CT": // struct xt_ct_target_info
		const notrack, zoneDirections, zoneMark = 1, 4 | 8, 16
		switch flags, zone := d.u16(0), d.u16(2); {
		case flags&notrack != 0:
			b.do(verdict.Untrack)
		case len(d) < 4 || flags&(zoneDirections|zoneMark) != 0:
			b.do(verdict.TemplateZone(0, false))
		case zone != 0:
			b.do(verdict.TemplateZone(zone, true))
		default:
			b.do(verdict.Template())
		}
	case "MARK": // struct xt_mark_tginfo2
		if revision != 2 || len(d) < 8 {
			b.do(verdict.SomeMark)
			return
		}
		b.do(verdict.SetMark(d.u32(0), d.u32(4)))
	case "CONNMARK": // struct xt_connmark_tginfo1 or 2
		const set, save, restore = 0, 1, 2
		ctmark, ctmask, nfmask, mode := d.u32(0), d.u32(4), d.u32(8), d.u8(12)
		switch plain := len(d) >= 13 && (revision == 1 || revision == 2 && d.u8(14) == 0); {
		case plain && mode == set:
			b.do(verdict.SetConnMark(ctmark, ctmask))
		case plain && mode == save:
			b.do(verdict.SaveMark(nfmask, ctmask))
		case plain && mode == restore:
			b.do(verdict.RestoreMark(nfmask, ctmask))
		case mode == restore:
			b.do(verdict.SomeMark)
		default:
			b.do(verdict.SomeConnMark)
		}
	default:
		b.anything, b.done = true, true
	}
}
