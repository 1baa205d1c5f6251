package judge

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/xt"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Opening is the first packet of a conversation that somebody else may begin
// with this host, or through it. Who and What are indices of Openings.
type Opening struct {
	Way       Way
	Who, What int
	In        string     // the interface that it comes in by
	To        netip.Addr // its destination
	Packet    verdict.Packet
}

// Openings are the first packets that rules tell apart: from each kind of
// addresses, by each interface, to each of this host's addresses and through
// it, of each kind of services.
type Openings struct {
	From []Somebody
	What []Service
	// All is whether every kind of address was put together with every kind of
	// service. Where it would be too many, strangers and neighbours are, the
	// others with services that no rule names and with those that stand with them
	// in a rule.
	All bool
	// Interfaces are those that packets to this host may come in by.
	Interfaces []string

	j      *Judge
	doors  []door
	beyond []Somebody // what routed packets go to
	pairs  map[[2]int]bool
	few    []bool // sources that are put together with all services
	plain  []bool // services that are put together with all sources
}

// door is an address of this host, or of a group, and an interface that leads to it.
type door struct {
	to   netip.Addr
	in   string
	cast bool
}

// What bounds openings: packets in all, sources, ports of a protocol, and how
// many of the first sources are put together with all services.
const (
	maxOpenings = 1 << 15
	maxPorts    = 512
	fewSources  = 4
)

// Openings are those of the judge's rules, today's and those to come.
func (j *Judge) Openings() *Openings {
	o := &Openings{j: j}
	var allFrom, allTo, allWhat bool
	o.From, allFrom = j.somebodies(false, MaxSources)
	o.What, allWhat = j.services(maxPorts)
	o.doors = j.openDoors()
	for _, d := range o.doors {
		if !slices.Contains(o.Interfaces, d.in) {
			o.Interfaces = append(o.Interfaces, d.in)
		}
	}
	allTo = true
	if j.filtersRouted() {
		o.beyond, allTo = j.somebodies(true, MaxSources)
	}
	ways := len(o.doors) + len(o.beyond)
	o.All = allFrom && allTo && allWhat
	if len(o.From)*len(o.What)*ways > maxOpenings {
		o.All = false
		o.thin()
	}
	return o
}

// openDoors are the host's addresses with the interfaces that packets to them
// may come in by, and groups that rules name.
func (j *Judge) openDoors() (out []door) {
	var ifaces []string
	doors := j.Doors()
	for _, d := range doors {
		if !slices.Contains(ifaces, d.Interface) {
			ifaces = append(ifaces, d.Interface)
		}
	}
	for _, d := range doors {
		out = append(out, door{d.Prefix.Addr(), d.Interface, false})
		for _, other := range ifaces {
			if other != d.Interface && len(doors)*len(ifaces) <= 9 { // the kernel answers at any
				out = append(out, door{d.Prefix.Addr(), other, false})
			}
		}
	}
	for _, p := range j.namedNetworks(true) {
		if a := p.Addr(); (a.IsMulticast() && p.Bits() > 8 || a == limitedBroadcast || j.Places.casts[a] && p.IsSingleIP()) && len(out) < 32 {
			for _, iface := range ifaces {
				out = append(out, door{a, iface, true})
			}
		}
	}
	return out
}

// filtersRouted is whether routed packets are to be judged: this host has
// interfaces to route between, and shows signs that it does, or rules about it.
func (j *Judge) filtersRouted() bool {
	if j.Routes() {
		return true
	}
	for _, r := range j.sets {
		for _, s := range r.Sections("filter") {
			if slices.ContainsFunc(s.Rules, func(r host.Rule) bool { return r.Chain == "FORWARD" && xtables.OwnTarget(r.Words) == "" }) {
				return true
			}
		}
	}
	return slices.ContainsFunc(j.Live.NFT, func(t host.NFTTable) bool {
		return slices.ContainsFunc(t.Chains, func(c host.NFTChain) bool { return c.Hook == "forward" && (len(c.Rules) > 0 || c.Policy == "drop") })
	})
}

// thin puts fewer together.
func (o *Openings) thin() {
	o.pairs = map[[2]int]bool{}
	o.few, o.plain = make([]bool, len(o.From)), make([]bool, len(o.What))
	for i := range o.From {
		o.few[i] = i < fewSources
	}
	at := map[netip.Prefix]int{}
	for i, s := range o.From {
		at[s.Name] = i
	}
	first := map[uint8]bool{}
	for i, s := range o.What {
		o.plain[i] = !first[s.Proto]
		first[s.Proto] = true
	}
	for words := range o.j.rules(true) {
		var who []int
		for p := range xtables.NetworksOf(words, false, nil) {
			if i, ok := at[p.Masked()]; ok {
				who = append(who, i)
			}
		}
		if len(who) == 0 {
			continue
		}
		for v := range xtables.ServicesOf(words, nil) {
			if v.Field != protocol.DestinationPort {
				continue
			}
			for k, s := range o.What {
				if s.Proto == v.Protocol && s.Port >= v.From && s.Port <= v.To {
					for _, i := range who {
						o.pairs[[2]int{i, k}] = true
					}
					break
				}
			}
		}
	}
}

// Each calls visit with each of them, from several goroutines at once and with
// their numbers, of which there are as many as it returns. An opening is gone
// when visit returns.
func (o *Openings) Each(visit func(worker int, p *Opening)) int {
	workers := max(1, min(runtime.GOMAXPROCS(0), len(o.From)*len(o.What)/256))
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			var one Opening // for all, since there are many
			for who := w; who < len(o.From); who += workers {
				o.of(who, func(p Opening) {
					one = p
					visit(w, &one)
				})
			}
		})
	}
	wg.Wait()
	return workers
}

// Workers is the most that Each begins.
func (o *Openings) Workers() int { return runtime.GOMAXPROCS(0) }

// of are those from one source.
func (o *Openings) of(who int, visit func(p Opening)) {
	j, from := o.j, o.From[who].Addr
	for what := range o.What {
		if o.few != nil && !o.few[who] && !o.plain[what] && !o.pairs[[2]int{who, what}] {
			continue
		}
		s := &o.What[what]
		t := host.Tuple{Src: from, SrcPort: s.From, DstPort: s.Port}
		if s.Ports == nil {
			t.SrcPort, t.DstPort = 0, 0
		}
		for _, d := range o.doors {
			if t.Dst = d.to; d.cast && s.Proto == protocol.TCP {
				continue
			}
			p := j.First(In, s.Proto, t, d.in, "")
			if j.Places.Toward(from) != d.in {
				p.Known &^= verdict.KnownWayBack
			}
			o.visit(In, who, what, p, visit)
		}
		for _, to := range o.beyond {
			t.Dst = to.Addr
			in, out := j.Places.Toward(from), j.Places.Toward(to.Addr)
			if from == to.Addr || j.Places.Way(from, to.Addr) != Forward || in == out && in != verdict.SomeInterface {
				continue
			}
			o.visit(Forward, who, what, j.First(Forward, s.Proto, t, in, out), visit)
		}
	}
}

func (o *Openings) visit(w Way, who, what int, p verdict.Packet, visit func(p Opening)) {
	if p.Protocol == protocol.ICMP || p.Protocol == protocol.ICMPv6 {
		p.ICMPType = o.What[what].Type
	}
	visit(Opening{Way: w, Who: who, What: what, In: p.In, To: p.Dst, Packet: p})
}

// Asked are the accepts that are declared, alone: a packet that they accept is
// one that a block asks to let in.
func (j *Judge) Asked() *verdict.Evaluator {
	c := verdict.NewCompiler(j.Family, j.facts, false)
	var tables []*verdict.Table
	for _, ch := range j.Desired.ChainsOf(j.Family) {
		if ch.Table == "filter" {
			tables = append(tables, c.Table(verdict.TableID{Table: "filter " + ch.Hook}, xt.XTables(j.Family), []verdict.ChainSource{xt.Alone(ch)}))
		}
	}
	if len(tables) == 0 {
		return nil
	}
	return c.Evaluator(tables)
}

// Block is the accept block that a rule of ours was rendered from, by its
// chain and text; nil for another rule. ok is whether it is one of ours.
func (j *Judge) Block(r *verdict.RuleRef) (t *declared.Traffic, at declared.Pos, ok bool) {
	for _, ch := range j.Desired.ChainsOf(j.Family) {
		if r == nil || ch.Table != "filter" || ch.Name != r.Chain {
			continue
		}
		for _, rule := range ch.Rules {
			if rule.Text != r.Text {
				continue
			}
			for i := range j.Desired.Accept {
				if a := &j.Desired.Accept[i]; a.Source == rule.Source && slices.Contains(rule.Words, a.Name) {
					return a, rule.Source, true
				}
			}
			return nil, rule.Source, true
		}
	}
	return nil, declared.Pos{}, false
}
