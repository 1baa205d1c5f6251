package planner

import "slices"

// A chain longer than this gets an index; shorter ones are scanned.
const scanLimit = 12

// maxMasks is how many lengths of prefixes an index looks up on one side, and
// maxSpread in how many ports' lists one rule may stand.
const (
	maxMasks  = 6
	maxSpread = 128
)

// chainIndex finds the rules of a chain that a packet may match. A rule stands
// in the lists of the one property that narrows it most; what it leaves out
// surely does not match. Lists hold positions in rising order.
type chainIndex struct {
	rest            []int32 // rules that nothing narrows
	sources, dests  []maskLists
	dports, sports  map[portKey][]int32
	ins, outs       map[string][]int32
	allIns, allOuts []int32           // the same together, for a packet whose interface is not known
	protos          map[uint8][]int32 // by protocol alone, others than tcp and udp
}

type maskLists struct {
	mask  addr128
	lists map[addr128][]int32
}

func newIndex(rules []CompiledRule) *chainIndex {
	if len(rules) <= scanLimit {
		return nil
	}
	x := &chainIndex{dports: map[portKey][]int32{}, sports: map[portKey][]int32{}, ins: map[string][]int32{}, outs: map[string][]int32{}, protos: map[uint8][]int32{}}
	for i := range rules {
		x.add(&rules[i], int32(i))
	}
	return x
}

func (x *chainIndex) add(r *CompiledRule, at int32) {
	var dport, sport []PortRange
	var src, dst *Condition
	for i := range r.matches {
		m := &r.matches[i]
		switch {
		case m.not:
		case m.kind == matchAddr && m.dst:
			dst = m
		case m.kind == matchAddr:
			src = m
		case m.kind == matchPorts && !m.either && r.hasProto && !r.notProto && spread(m.ports) <= maxSpread:
			if m.dst {
				dport = m.ports
			} else {
				sport = m.ports
			}
		}
	}
	single := func(m *Condition) bool { return m != nil && m.mask.lo&0xff == 0xff } // a host, or nearly
	switch {
	case single(src) && addMask(&x.sources, src, at):
	case single(dst) && addMask(&x.dests, dst, at):
	case dport != nil:
		addPorts(x.dports, r.proto, dport, at)
	case sport != nil:
		addPorts(x.sports, r.proto, sport, at)
	case src != nil && addMask(&x.sources, src, at):
	case dst != nil && addMask(&x.dests, dst, at):
	case r.in.exact():
		x.ins[r.in.name], x.allIns = append(x.ins[r.in.name], at), append(x.allIns, at)
	case r.out.exact():
		x.outs[r.out.name], x.allOuts = append(x.outs[r.out.name], at), append(x.allOuts, at)
	case r.hasProto && !r.notProto:
		x.protos[r.proto] = append(x.protos[r.proto], at)
	default:
		x.rest = append(x.rest, at)
	}
}

func spread(ranges []PortRange) int {
	n := 0
	for _, r := range ranges {
		n += int(r.To-r.From) + 1
	}
	return n
}

func addPorts(m map[portKey][]int32, proto uint8, ranges []PortRange, at int32) {
	for _, r := range ranges {
		for port := uint32(r.From); port <= uint32(r.To); port++ {
			k := portKey{proto, uint16(port)}
			if list := m[k]; len(list) == 0 || list[len(list)-1] != at { // ranges may overlap
				m[k] = append(list, at)
			}
		}
	}
}

func addMask(list *[]maskLists, m *Condition, at int32) bool {
	i := slices.IndexFunc(*list, func(l maskLists) bool { return l.mask == m.mask })
	if i < 0 {
		if len(*list) == maxMasks {
			return false
		}
		i = len(*list)
		*list = append(*list, maskLists{m.mask, map[addr128][]int32{}})
	}
	l := (*list)[i].lists
	l[m.addr] = append(l[m.addr], at)
	return true
}

// candidates are the positions of the rules that may match, in order: all of
// a short chain, or a merge of the index's lists. It lives on the stack.
type candidates struct {
	at    int
	n     int
	lists [2*maxMasks + 6][]int32
}

func startAt(c *compiledChain, s *walk) candidates {
	var k candidates
	x := c.index
	if x == nil {
		return k
	}
	k.add(x.rest)
	for i := range x.sources {
		k.add(x.sources[i].lists[s.src.and(x.sources[i].mask)])
	}
	for i := range x.dests {
		k.add(x.dests[i].lists[s.dst.and(x.dests[i].mask)])
	}
	proto := s.p.Protocol
	if carriesPorts(proto) {
		if len(x.dports) > 0 {
			k.add(x.dports[portKey{proto, s.dport}])
		}
		if len(x.sports) > 0 {
			k.add(x.sports[portKey{proto, s.sport}])
		}
	}
	if len(x.protos) > 0 {
		k.add(x.protos[proto])
	}
	k.add(pick(x.ins, x.allIns, s.in))
	k.add(pick(x.outs, x.allOuts, s.out))
	return k
}

func pick(by map[string][]int32, all []int32, name string) []int32 {
	if len(all) == 0 || name == SomeInterface {
		return all
	}
	return by[name]
}

func (k *candidates) add(list []int32) {
	if len(list) > 0 {
		k.lists[k.n] = list
		k.n++
	}
}

// next is the position of the next rule to look at, -1 at the end.
func (k *candidates) next(c *compiledChain) int {
	if c.index == nil {
		if k.at == len(c.rules) {
			return -1
		}
		k.at++
		return k.at - 1
	}
	least := -1
	for i := range k.n {
		if least < 0 || k.lists[i][0] < k.lists[least][0] {
			least = i
		}
	}
	if least < 0 {
		return -1
	}
	at := k.lists[least][0]
	if k.lists[least] = k.lists[least][1:]; len(k.lists[least]) == 0 {
		k.n--
		k.lists[least] = k.lists[k.n]
	}
	return int(at)
}
