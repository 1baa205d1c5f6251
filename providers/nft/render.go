package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Render turns the notrack and accept blocks into rules for tables of each
// family, as they should stand. Chains without rules are left out. The order is
// that of the families, inet, ip and ip6; within each the hooks input, output and
// forward of accepts, then prerouting and output of what is not tracked. A block's
// rules stand together, in order of the HCL.
//
// Rules are written from the host's point of view, as those of iptables are. One
// of a table of both families is for both where the block's traffic allows it;
// several ports or addresses are a set.
func Render(d declared.Desired) []declared.NFTChain {
	var chains []declared.NFTChain
	for _, f := range []string{"inet", "ip", "ip6"} {
		for _, h := range []string{"input", "output", "forward"} {
			chains = appendChain(chains, declared.NFTChain{Family: f, Hook: h}, d.Accept)
		}
		for _, h := range []string{"prerouting", "output"} {
			chains = appendChain(chains, declared.NFTChain{Family: f, Hook: h, Notrack: true}, d.Notrack)
		}
	}
	return chains
}

func appendChain(chains []declared.NFTChain, c declared.NFTChain, blocks []declared.Traffic) []declared.NFTChain {
	for i := range blocks {
		seen := map[string]bool{}
		for _, r := range ruleFamilies(&blocks[i], c.Family) {
			for _, w := range ways(blocks[i].Direction, c.Hook) {
				b := ruleMaker{chain: &c, block: &blocks[i], family: r, sets: map[string]*host.NFTSet{}}
				rule, ok := b.rule(w)
				if key := b.key(); ok && !seen[key] {
					seen[key] = true
					c.Rules = append(c.Rules, declared.NFTTargetRule{NFTRule: rule, Source: blocks[i].Source})
					c.Sets = append(c.Sets, b.made...)
				}
			}
		}
	}
	if len(c.Rules) == 0 {
		return chains
	}
	return append(chains, c)
}

// ruleFamilies are the families that a block's rules are for in a table: an
// empty one stands for both.
func ruleFamilies(t *declared.Traffic, table string) (out []host.Family) {
	switch table {
	case "ip":
		out = []host.Family{host.IPv4}
	case "ip6":
		out = []host.Family{host.IPv6}
	default:
		if len(t.Families) == len(host.Families) && len(t.Local) == 0 && len(t.Remote) == 0 && t.Protocol != "icmp" {
			return []host.Family{""}
		}
		out = host.Families
	}
	return slices.DeleteFunc(slices.Clone(out), func(f host.Family) bool { return !slices.Contains(t.Families, f) })
}

// way is one way of a block's traffic past a hook.
type way struct {
	inbound bool   // from the remote side
	iface   uint32 // the key of meta that the block's interface is compared with
}

// ways says which of a block's traffic passes a hook.
func ways(d declared.Direction, hook string) []way {
	in, out := d == declared.Both || d == declared.In, d == declared.Both || d == declared.Out
	switch {
	case hook == "input" && in, hook == "prerouting" && in:
		return []way{{inbound: true, iface: unix.NFT_META_IIFNAME}}
	case hook == "output" && out:
		return []way{{iface: unix.NFT_META_OIFNAME}}
	case hook == "prerouting" && d == declared.Forward:
		// Where local traffic will leave is not known before routing.
		return []way{{}, {inbound: true, iface: unix.NFT_META_IIFNAME}}
	case hook == "forward" && d == declared.Forward:
		return []way{{iface: unix.NFT_META_OIFNAME}, {inbound: true, iface: unix.NFT_META_IIFNAME}}
	}
	return nil
}

// ruleMaker makes one rule.
type ruleMaker struct {
	chain  *declared.NFTChain
	block  *declared.Traffic
	family host.Family // empty: both
	parts  host.NFTProgram
	made   []host.NFTSet
	sets   map[string]*host.NFTSet
}

// anonymousSet begins the name of a set that has none: the kernel numbers them.
const anonymousSet = "__set"

func (b *ruleMaker) add(e host.NFTExpr) { b.parts = append(b.parts, e) }

// is compares what was loaded with a value.
func (b *ruleMaker) is(value ...byte) { b.add(host.NFTExpr{Name: "cmp", Src: 1, Data: value}) }

func (b *ruleMaker) meta(key uint32) { b.add(host.NFTExpr{Name: "meta", Key: key, Dst: 1}) }

// rule is the rule for one way; ok is false where no packet can match it.
func (b *ruleMaker) rule(w way) (host.NFTRule, bool) {
	t := b.block
	src, dst, sports, dports := t.Local, t.Remote, t.LocalPorts, t.RemotePorts
	if w.inbound {
		src, dst, sports, dports = dst, src, dports, sports
	}
	if b.chain.Family == "inet" && b.family != "" && !(b.icmp() && len(src) == 0 && len(dst) == 0) { // nft leaves that to the protocol
		b.meta(unix.NFT_META_NFPROTO)
		if b.family == host.IPv4 {
			b.is(unix.NFPROTO_IPV4)
		} else {
			b.is(unix.NFPROTO_IPV6)
		}
	}
	if !b.addresses(src, false) || !b.addresses(dst, true) {
		return host.NFTRule{}, false
	}
	b.iface(w.iface)
	proto, ok := b.protocol()
	if !ok {
		return host.NFTRule{}, false
	}
	b.ports(sports, 0)
	b.ports(dports, 2)
	// The side that does not open connections sends no SYN.
	if !b.chain.Notrack && proto == protocol.TCP && (t.Initiator == declared.LocalSide && w.inbound || t.Initiator == declared.RemoteSide && !w.inbound) {
		const fin, syn, rst, ack = 1, 2, 4, 16
		b.add(host.NFTExpr{Name: "payload", Base: baseTransport, Offset: 13, Len: 1, Dst: 1})
		b.add(host.NFTExpr{Name: "bitwise", Src: 1, Dst: 1, Len: 1, Mask: host.Hex{fin | syn | rst | ack}, Xor: host.Hex{0}})
		b.add(host.NFTExpr{Name: "cmp", Src: 1, Op: cmpNeq, Data: host.Hex{syn}})
	}
	if b.chain.Notrack {
		b.add(host.NFTExpr{Name: "notrack"})
	} else {
		b.add(host.NFTExpr{Name: "immediate", Verdict: "accept"})
	}
	r := host.NFTRule{Exprs: b.parts, Comment: t.Name}
	parts := make([]expression, len(r.Exprs))
	for i := range r.Exprs {
		parts[i].NFTExpr = r.Exprs[i]
	}
	r.Text = texts{family: b.chain.Family, sets: b.sets, links: &linkNames{}, whole: true}.ruleText(parts, t.Name)
	return r, true
}

// key tells rules of a block apart.
func (b *ruleMaker) key() string {
	var key []byte
	for i := range b.parts {
		e := b.parts[i]
		if s := b.sets[e.Set]; s != nil {
			e.Set = string(s.Elements)
		}
		text, _ := host.NFTProgram{e}.MarshalText()
		key = append(append(key, text...), '\n')
	}
	return string(key)
}

// protocol compares the protocol; 0 is any. ok is false where the family has none
// such.
func (b *ruleMaker) protocol() (n uint8, ok bool) {
	name := b.block.Protocol
	if name == "" || protocol.Canonical(name) == "all" {
		return 0, true
	}
	if n, ok = protocol.Number(name); !ok {
		return 0, false
	}
	switch {
	case name == "icmp" && b.family == host.IPv6:
		n = protocol.ICMPv6
	case n == protocol.ICMPv6 && b.family == host.IPv4:
		return 0, false
	}
	b.meta(unix.NFT_META_L4PROTO)
	b.is(n)
	return n, true
}

// icmp is whether the block's protocol is a family's own.
func (b *ruleMaker) icmp() bool {
	n, _ := protocol.Number(b.block.Protocol)
	return n == protocol.ICMP && b.family != host.IPv6 || n == protocol.ICMPv6 || b.block.Protocol == "icmp"
}

// iface compares the block's interface.
func (b *ruleMaker) iface(key uint32) {
	name := b.block.Interface
	if key == 0 || name == "" || name == "+" {
		return
	}
	b.meta(key)
	if n := len(name) - 1; name[n] == '+' {
		b.is([]byte(name[:n])...)
		return
	}
	value := make([]byte, unix.IFNAMSIZ)
	copy(value, name)
	b.is(value...)
}

// addresses compares an address with prefixes of the rule's family; it reports
// false where they are all of the other.
func (b *ruleMaker) addresses(list []netip.Prefix, destination bool) bool {
	if len(list) == 0 {
		return true
	}
	var of []netip.Prefix
	for _, p := range list {
		if p.Addr().Is4() == (b.family == host.IPv4) {
			if p.Bits() == 0 {
				return true
			}
			of = append(of, p.Masked())
		}
	}
	offset, size, typ := uint32(12), uint32(4), typeAddress4
	if b.family == host.IPv6 {
		offset, size, typ = 8, 16, typeAddress6
	}
	if destination {
		offset += size
	}
	load := host.NFTExpr{Name: "payload", Base: baseNetwork, Offset: offset, Len: size, Dst: 1}
	switch {
	case len(of) == 0:
		return false
	case len(of) > 1:
		b.add(load)
		b.lookUp(typ, size, prefixElements(of))
		return true
	}
	p := of[0]
	value := p.Addr().AsSlice()
	if bits := p.Bits(); bits%8 == 0 { // as nft writes it: so many bytes of the address
		load.Len = uint32(bits / 8)
		b.add(load)
		b.is(value[:bits/8]...)
		return true
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	b.add(load)
	b.add(host.NFTExpr{Name: "bitwise", Src: 1, Dst: 1, Len: size, Mask: mask, Xor: make(host.Hex, size)})
	b.is(value...)
	return true
}

// ports compares a port.
func (b *ruleMaker) ports(list []host.PortRange, offset uint32) {
	if len(list) == 0 || host.InRanges(list, 0) && len(list) == 1 && list[0].To == 65535 {
		return
	}
	b.add(host.NFTExpr{Name: "payload", Base: baseTransport, Offset: offset, Len: 2, Dst: 1})
	port := func(n uint16) host.Hex { return binary.BigEndian.AppendUint16(nil, n) }
	switch {
	case len(list) > 1:
		b.lookUp(typePort, 2, portElements(list))
	case list[0].From == list[0].To:
		b.is(port(list[0].From)...)
	default:
		b.add(host.NFTExpr{Name: "cmp", Src: 1, Op: cmpGte, Data: port(list[0].From)})
		b.add(host.NFTExpr{Name: "cmp", Src: 1, Op: cmpLte, Data: port(list[0].To)})
	}
}

// lookUp compares what was loaded with the elements of a set without a name.
func (b *ruleMaker) lookUp(typ datatype, size uint32, elements []host.NFTElement) {
	s := host.NFTSet{Name: fmt.Sprintf("%s%d", anonymousSet, len(b.chain.Sets)+len(b.made)), Flags: host.NFTSetAnonymous | host.NFTSetConstant, KeyType: uint32(typ), KeyLen: size}
	if slices.ContainsFunc(elements, func(e host.NFTElement) bool { return e.Last != nil }) {
		s.Flags |= host.NFTSetInterval
	}
	s.Elements = host.MakeElements(slices.Values(elements))
	b.made = append(b.made, s)
	b.sets[s.Name] = &s
	b.add(host.NFTExpr{Name: "lookup", Set: s.Name, Src: 1})
}

// prefixElements are prefixes as elements of a set, in order, none within
// another.
func prefixElements(list []netip.Prefix) (out []host.NFTElement) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	for _, p := range list {
		key, last := p.Addr().AsSlice(), p.Addr().AsSlice()
		for i := p.Bits(); i < p.Addr().BitLen(); i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		if n := len(out); n > 0 {
			before := out[n-1].Last
			if bytes.Compare(key, before) <= 0 {
				continue // within that one
			}
			if bytes.Equal(following(before), key) { // neighbours are one interval, as nft makes of them
				out[n-1].Last = last
				continue
			}
		}
		out = append(out, host.NFTElement{Key: key, Last: last})
	}
	for i := range out {
		if bytes.Equal(out[i].Last, out[i].Key) {
			out[i].Last = nil
		}
	}
	return out
}

// portElements are ports as elements of a set, in order, none within another.
func portElements(list []host.PortRange) (out []host.NFTElement) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b host.PortRange) int { return int(a.From) - int(b.From) })
	var merged []host.PortRange
	for _, p := range list {
		if n := len(merged); n > 0 && int(p.From) <= int(merged[n-1].To)+1 { // neighbours too, as nft does
			merged[n-1].To = max(merged[n-1].To, p.To)
			continue
		}
		merged = append(merged, p)
	}
	for _, p := range merged {
		e := host.NFTElement{Key: binary.BigEndian.AppendUint16(nil, p.From)}
		if p.To > p.From {
			e.Last = binary.BigEndian.AppendUint16(nil, p.To)
		}
		out = append(out, e)
	}
	return out
}
