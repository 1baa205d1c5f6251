package nft

import (
	"encoding/binary"
	"iter"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Services are the ports, types of ICMP and protocols that rules compare
// packets with: alone, in ranges, or in sets. One may come several times.
func Services(tables []host.NFTTable, family host.Family) iter.Seq[protocol.Named] {
	return func(yield func(protocol.Named) bool) {
		for i := range tables {
			t := &tables[i]
			if t.Dormant || !meets(family, t) {
				continue
			}
			n := serviceNamer{table: t, yield: yield}
			for k := range t.Chains {
				for r := range t.Chains[k].Rules {
					if !n.rule(t.Chains[k].Rules[r].Exprs) {
						return
					}
				}
			}
		}
	}
}

// serviceNamer looks for services in rules.
type serviceNamer struct {
	table *host.NFTTable
	yield func(protocol.Named) bool
	loads []serviceLoad
	proto uint8 // that the rule has asked for
}

// serviceLoad is where a field stands.
type serviceLoad struct {
	field protocol.Field
	at, n int
}

func (s *serviceNamer) rule(exprs []host.NFTExpr) bool {
	s.loads, s.proto = s.loads[:0], 0
	for i := range exprs {
		e := &exprs[i]
		switch e.Name {
		case "payload", "meta":
			if !e.Sets {
				s.load(e)
			}
		case "cmp", "range":
			to := e.To
			if e.Name == "cmp" {
				to = e.Data
			}
			for _, l := range s.loads {
				if l.at == register(e.Src) && len(e.Data) >= l.n && len(to) >= l.n && !s.give(l, e.Data, to) {
					return false
				}
			}
		case "lookup":
			if !s.set(e) {
				return false
			}
		}
	}
	return true
}

// load notes which field a register holds from here on.
func (s *serviceNamer) load(e *host.NFTExpr) {
	const transport = 2
	at := register(e.Dst)
	if at < 0 {
		return
	}
	s.loads = slices.DeleteFunc(s.loads, func(l serviceLoad) bool { return l.at == at })
	add := func(f protocol.Field, at, n int) { s.loads = append(s.loads, serviceLoad{f, at, n}) }
	switch {
	case e.Name == "meta" && e.Key == metaProtocol:
		add(protocol.Itself, at, 1)
	case e.Name == "meta" || e.Base != transport:
	case e.Offset == 0 && e.Len == 1:
		add(protocol.ICMPType, at, 1)
	case e.Offset == 0 && e.Len == 2:
		add(protocol.SourcePort, at, 2)
	case e.Offset == 2 && e.Len == 2:
		add(protocol.DestinationPort, at, 2)
	case e.Offset == 0 && e.Len == 4:
		add(protocol.SourcePort, at, 2)
		add(protocol.DestinationPort, at+2, 2)
	}
}

// set gives the values in a set, which may be parts of its members.
func (s *serviceNamer) set(e *host.NFTExpr) bool {
	i := slices.IndexFunc(s.table.Sets, func(set host.NFTSet) bool { return set.Name == e.Set })
	at := register(e.Src)
	if i < 0 || at < 0 {
		return true
	}
	set := &s.table.Sets[i]
	for _, l := range s.loads {
		from := l.at - at
		if from < 0 || from+l.n > int(set.KeyLen) {
			continue
		}
		given := map[[2]uint16]bool{}
		for e := range set.Elements.All() {
			if len(e.Key) != int(set.KeyLen) {
				continue
			}
			last := e.Key
			if len(e.Last) == len(e.Key) {
				last = e.Last
			}
			first, last := e.Key[from:from+l.n], last[from:from+l.n]
			key := [2]uint16{value(first), value(last)}
			if given[key] {
				continue
			}
			if given[key] = true; len(given) > maxSetServices {
				break
			}
			if !s.give(l, first, last) {
				return false
			}
		}
		if l.field == protocol.Itself && len(given) > 1 {
			s.proto = 0
		}
	}
	return true
}

// maxSetServices bounds the ports of one set.
const maxSetServices = 1024

func value(b []byte) uint16 {
	if len(b) == 1 {
		return uint16(b[0])
	}
	return binary.BigEndian.Uint16(b)
}

func (s *serviceNamer) give(l serviceLoad, first, last []byte) bool {
	v := protocol.Named{Field: l.field, Protocol: s.proto, From: value(first[:l.n]), To: value(last[:l.n])}
	if l.field == protocol.Itself {
		if v.From == v.To {
			s.proto = uint8(v.From)
		}
		v.Protocol, v.From, v.To = uint8(v.From), 0, 0
	}
	return v.To < v.From || s.yield(v)
}
