package judge

import (
	"iter"
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
// it, of each kind of services. Where nothing refuses any today, to this host or
// through it, none of those is among them.
type Openings struct {
	From []Somebody
	What []Service
	// All is whether every kind of address is put together with every kind of
	// service. Where it would be too many, strangers and neighbours are, the
	// others with services that no rule names and with those that stand with them
	// in a rule. It is known when Start's finish has returned.
	All bool
	// Interfaces are those that packets to this host may come in by.
	Interfaces []string

	j       *Judge
	doors   []door
	beyond  []Somebody  // what routed packets go to, if any are
	some    bool        // of what is beyond
	routed  func() bool // whether packets are routed; it may wait for the connections
	decided bool        // rules decide that, and it does not wait
	pairs   map[[2]int]bool
	few     []bool // sources that are put together with all services
	plain   []bool // services that are put together with all sources
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
	today := j.Stages[0]
	if today.MayRefuse(verdict.HookInput) {
		o.doors = j.openDoors()
	}
	for _, d := range o.doors {
		if !slices.Contains(o.Interfaces, d.in) {
			o.Interfaces = append(o.Interfaces, d.in)
		}
	}
	allTo = true
	if today.MayRefuse(verdict.HookForward) {
		o.beyond, allTo = j.somebodies(true, MaxSources)
	}
	o.some = !allTo
	o.decided = len(o.beyond) == 0 || j.rulesRoute() || j.rulesForward()
	o.routed = sync.OnceValue(func() bool { return len(o.beyond) > 0 && (o.decided || j.Seen().Forward) })
	o.All = allFrom && allWhat || len(o.doors)+len(o.beyond) == 0
	few := func(ways int) bool { return len(o.From)*len(o.What)*ways <= maxOpenings }
	if here := len(o.doors); !few(here) || !few(here+len(o.beyond)) && o.routed() {
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

// rulesForward is whether rules are about what is routed.
func (j *Judge) rulesForward() bool {
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

// Start calls visit with each of them, from several goroutines at once and with
// their numbers, of which there are at most Workers. An opening is gone when visit
// returns. finish waits for the last: of what is routed too, where only the
// tracked connections tell that something is.
func (o *Openings) Start(visit func(worker int, p *Opening)) (finish func()) {
	var wg sync.WaitGroup
	begin := func(of func(who int, one *Opening, visit func(*Opening))) {
		workers := max(1, min(o.Workers(), len(o.From)*len(o.What)/256))
		for w := range workers {
			wg.Go(func() {
				var one Opening // for all, since there are many
				for who := w; who < len(o.From); who += workers {
					of(who, &one, func(p *Opening) { visit(w, p) })
				}
			})
		}
	}
	begin(func(who int, one *Opening, visit func(*Opening)) {
		o.here(who, one, visit)
		if o.decided {
			o.through(who, one, visit)
		}
	})
	return func() {
		wg.Wait()
		if !o.routed() {
			return
		}
		o.All = o.All && !o.some
		if !o.decided {
			begin(o.through)
			wg.Wait()
		}
	}
}

// Workers is the most goroutines that visit at once.
func (o *Openings) Workers() int { return runtime.GOMAXPROCS(0) }

// services are the services that a source is put together with, as first packets
// to nobody yet.
func (o *Openings) services(who int) iter.Seq2[int, host.Tuple] {
	return func(yield func(int, host.Tuple) bool) {
		for what := range o.What {
			if o.few != nil && !o.few[who] && !o.plain[what] && !o.pairs[[2]int{who, what}] {
				continue
			}
			s := &o.What[what]
			t := host.Tuple{Src: o.From[who].Addr, SrcPort: s.From, DstPort: s.Port}
			if s.Ports == nil {
				t.SrcPort, t.DstPort = 0, 0
			}
			if !yield(what, t) {
				return
			}
		}
	}
}

// here are those from one source to this host.
func (o *Openings) here(who int, one *Opening, visit func(*Opening)) {
	toward := o.j.Places.Toward(o.From[who].Addr)
	for what, t := range o.services(who) {
		for _, d := range o.doors {
			if t.Dst = d.to; d.cast && o.What[what].Proto == protocol.TCP {
				continue
			}
			o.make(one, In, who, what, t, d.in, "")
			if toward != d.in {
				one.Packet.Known &^= verdict.KnownWayBack
			}
			visit(one)
		}
	}
}

// through are those from one source to somebody beyond.
func (o *Openings) through(who int, one *Opening, visit func(*Opening)) {
	j, from := o.j, o.From[who].Addr
	type exit struct {
		to  netip.Addr
		out string
	}
	var exits []exit
	in := j.Places.Toward(from)
	for _, to := range o.beyond {
		out := j.Places.Toward(to.Addr)
		if from == to.Addr || j.Places.Way(from, to.Addr) != Forward || in == out && in != verdict.SomeInterface {
			continue
		}
		exits = append(exits, exit{to.Addr, out})
	}
	for what, t := range o.services(who) {
		for _, e := range exits {
			t.Dst = e.to
			o.make(one, Forward, who, what, t, in, e.out)
			visit(one)
		}
	}
}

// make makes an opening.
func (o *Openings) make(one *Opening, w Way, who, what int, t host.Tuple, in, out string) {
	s := &o.What[what]
	one.Way, one.Who, one.What, one.In, one.To = w, who, what, in, t.Dst
	one.Packet = o.j.First(w, s.Proto, t, in, out)
	if s.Proto == protocol.ICMP || s.Proto == protocol.ICMPv6 {
		one.Packet.ICMPType = s.Type
	}
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
