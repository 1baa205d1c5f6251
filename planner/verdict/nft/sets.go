package nft

import (
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// set is a set or map of a table, made to be searched.
type set struct {
	*host.NFTSet
	bytes   *verdict.ByteSet
	targets []verdict.Target // of a map of verdicts
	rated   bool             // its members have a rate
}

// set is that of a name; nil: there is none that can be searched.
func (l *language) set(name string) *set {
	if s, ok := l.sets[name]; ok {
		return s
	}
	if l.sets == nil {
		l.sets = map[string]*set{}
		l.findFilled()
	}
	l.sets[name] = nil
	i := slices.IndexFunc(l.table.Sets, func(s host.NFTSet) bool { return s.Name == name })
	if i >= 0 {
		l.sets[name] = l.compile(&l.table.Sets[i])
	}
	return l.sets[name]
}

// findFilled notes the sets that rules add to, or take from.
func (l *language) findFilled() {
	l.filled = map[string]bool{}
	for i := range l.table.Chains {
		for k := range l.table.Chains[i].Rules {
			for _, e := range l.table.Chains[i].Rules[k].Exprs {
				if e.Name == "dynset" {
					l.filled[e.Set] = true
				}
			}
		}
	}
}

func (l *language) compile(s *host.NFTSet) *set {
	const most = 64 // bytes of registers
	if s.KeyLen < 1 || s.KeyLen > most {
		return nil
	}
	out := &set{NFTSet: s}
	verdicts := s.Flags&host.NFTSetMap != 0 && s.DataType == host.NFTVerdicts
	dataLen := 0
	if s.Flags&host.NFTSetMap != 0 && !verdicts {
		if dataLen = int(s.DataLen); dataLen < 1 || dataLen > most {
			return nil
		}
	}
	parts := make([]int, len(s.Fields))
	for i, n := range s.Fields {
		parts[i] = int(min(n, most))
	}
	if len(parts) == 0 {
		parts = nil
	}
	b := verdict.NewByteSet(int(s.KeyLen), dataLen, parts)
	b.Open = s.Unread || l.filled[s.Name]
	for _, e := range s.Exprs {
		switch e {
		case "limit":
			b.Doubtful, out.rated = true, true
		case "counter", "last":
		default:
			b.Doubtful = true
		}
	}
	index := map[verdict.Target]int{}
	for e, err := range s.Elements.All() {
		m := verdict.Member{First: e.Key, Last: e.Last, Data: e.Data}
		if e.Any {
			m.First, m.Last = nil, nil
		}
		if verdicts {
			t := target(e.Verdict, e.Chain)
			at, ok := index[t]
			if !ok {
				at = len(out.targets)
				index[t] = at
				out.targets = append(out.targets, t)
			}
			m.Target = at
		}
		if err != nil || !e.Any && len(e.Key) == 0 || !b.Add(m) {
			b.Open = true
		}
	}
	b.Seal()
	out.bytes = b
	return out
}

// target is a verdict as the kernel has it.
func target(name, chain string) verdict.Target {
	switch name {
	case "accept":
		return verdict.Accept
	case "drop":
		return verdict.Drop
	case "continue":
		return verdict.Target{}
	case "return":
		return verdict.Return
	case "jump":
		return verdict.Jump(chain)
	case "goto":
		return verdict.Goto(chain)
	case "queue":
		return verdict.Queue
	}
	return verdict.Anything
}

// closed is whether the set holds what it holds, and no more.
func (s *set) closed() bool {
	return s != nil && !s.bytes.Open && !s.bytes.Doubtful && s.Flags&host.NFTSetMap == 0
}

// ports are the set as ranges of ports; ok is false where it is none of a few.
func (s *set) ports() (ranges []host.PortRange, ok bool) {
	const few = 64
	if !s.closed() || s.KeyLen != 2 || s.bytes.Len() > few {
		return nil, false
	}
	for e := range s.Elements.All() {
		if e.Any {
			return nil, false
		}
		r := host.PortRange{From: port(e.Key), To: port(e.Key)}
		if e.Last != nil {
			r.To = port(e.Last)
		}
		ranges = append(ranges, r)
	}
	return ranges, true
}

func port(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

// states are the set as states of connections.
func (s *set) states() (states verdict.State, ok bool) {
	if !s.closed() || s.KeyLen != 4 || s.Flags&host.NFTSetInterval != 0 {
		return 0, false
	}
	for e := range s.Elements.All() {
		one, known := stateOf(number(e.Key))
		if e.Any || !known {
			return 0, false
		}
		states |= one
	}
	return states, true
}
