package nft

import (
	"bytes"
	"iter"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
)

// Networks are those that rules compare the source of a packet with, or its
// destination, in their order: alone, in ranges, or in sets. One may come several
// times.
func Networks(tables []host.NFTTable, family host.Family, dst bool) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for i := range tables {
			t := &tables[i]
			if t.Dormant || !meets(family, t) {
				continue
			}
			n := namer{l: &language{family: family, table: t}, dst: dst, yield: yield}
			if !n.tableRules() {
				return
			}
		}
	}
}

// Ports are those that rules compare the destination port of a packet with, and
// the ends of ranges of them, as Networks are of addresses.
func Ports(tables []host.NFTTable, family host.Family) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i := range tables {
			t := &tables[i]
			if t.Dormant || !meets(family, t) {
				continue
			}
			n := namer{l: &language{family: family, table: t}, port: yield}
			if !n.tableRules() {
				return
			}
		}
	}
}

func (n *namer) tableRules() bool {
	for i := range n.l.table.Chains {
		c := &n.l.table.Chains[i]
		for k := range c.Rules {
			if !n.rule(c.Rules[k].Exprs) {
				return false
			}
		}
	}
	return true
}

// namer looks for networks in rules, or for ports.
type namer struct {
	l     *language
	dst   bool
	yield func(netip.Prefix) bool
	port  func(uint16) bool // nil: for networks
	loads []addressLoad
}

// addressLoad is where an address, or its beginning, stands, or a port.
type addressLoad struct {
	at, n, size int
	mask        []byte
}

func (n *namer) rule(exprs []host.NFTExpr) bool {
	n.loads = n.loads[:0]
	b := builder{l: n.l}
	for i := range exprs {
		e := &exprs[i]
		switch at := register(e.Src); e.Name {
		case "payload":
			const network, transport = 1, 2
			if at := register(e.Dst); n.port != nil {
				if at >= 0 && !e.Sets && e.Base == transport && e.Offset == 2 && e.Len == 2 {
					n.loads = append(n.loads, addressLoad{at: at, n: 2})
				}
				continue
			}
			side, size, ok := b.address(int(e.Offset), int(min(e.Len, 64)))
			if at := register(e.Dst); ok && at >= 0 && !e.Sets && e.Base == network && (side != 0) == n.dst {
				n.loads = append(n.loads, addressLoad{at: at, n: int(e.Len), size: size})
			}
		case "bitwise":
			for k := range n.loads {
				if l := &n.loads[k]; l.at == at && len(e.Mask) == l.n {
					l.mask = e.Mask
				}
			}
		case "cmp":
			for _, l := range n.loads {
				if l.at == at && l.n == len(e.Data) && !n.give(l, e.Data, nil) {
					return false
				}
			}
		case "range":
			for _, l := range n.loads {
				if l.at == at && l.n == len(e.Data) && l.n == len(e.To) && !n.give(l, e.Data, e.To) {
					return false
				}
			}
		case "lookup":
			if !n.set(e, at) {
				return false
			}
		}
	}
	return true
}

// set gives the addresses in a set, which may be parts of its members.
func (n *namer) set(e *host.NFTExpr, at int) bool {
	i := slices.IndexFunc(n.l.table.Sets, func(s host.NFTSet) bool { return s.Name == e.Set })
	if i < 0 || at < 0 {
		return true
	}
	s := &n.l.table.Sets[i]
	for _, l := range n.loads {
		from := l.at - at
		if from < 0 || from+l.n > int(s.KeyLen) {
			continue
		}
		for e := range s.Elements.All() {
			if len(e.Key) != int(s.KeyLen) {
				continue
			}
			var last []byte
			if len(e.Last) == len(e.Key) {
				last = e.Last[from : from+l.n]
			}
			if !n.give(l, e.Key[from:from+l.n], last) {
				return false
			}
		}
	}
	return true
}

// give gives the network of a value, or those of a range.
func (n *namer) give(l addressLoad, first, last []byte) bool {
	if n.port != nil {
		return n.port(port(first)) && (last == nil || n.port(port(last)))
	}
	whole := func(b []byte, fill byte) netip.Addr {
		a, _ := netip.AddrFromSlice(append(bytes.Clone(b), bytes.Repeat([]byte{fill}, l.size-len(b))...))
		return a
	}
	if last == nil {
		width := len(first) * 8
		if l.mask != nil {
			width = 0
			for width < len(l.mask)*8 && l.mask[width/8]&(0x80>>(width%8)) != 0 {
				width++
			}
		}
		return n.yield(netip.PrefixFrom(whole(first, 0), width).Masked())
	}
	for _, p := range nets.Cover(whole(first, 0), whole(last, 0xff)) {
		if !n.yield(p) {
			return false
		}
	}
	return true
}
