// Package verdict says what becomes of a packet in the hooks, tables, chains and
// states of netfilter.
//
// It knows no connection, no plan, and no language of rules: those fill it in
// through Language and Base, as package xt does for iptables.
package verdict

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ctplan/ctplan/planner/host"
)

// Evaluator answers what one state of the rules of a family does with a packet.
// It knows base chains, jumps, goto, RETURN and policies as the kernel walks
// them, every table in the order of its priority, and every backend's rules
// after one another. Whatever it cannot tell from a packet alone, rates,
// quotas, time, unknown matches, it follows both ways; where they end
// differently, the verdict is Unknown and names the rule.
//
// Routing and reverse path filters are outside of it: it says with which mark a
// packet comes there.
type Evaluator struct {
	host  *hostFacts
	hooks [3][]baseChain
	loop  []baseChain // before tracking in OUTPUT, which packets over lo have passed
	// racing is whether tables before tracking of more than one backend have
	// rules about tracking, some of them with templates: their order in a hook
	// is not known.
	racing bool
	asks   question
	joins  Truth    // some rule has fragments joined: see Joins
	splits *RuleRef // a chain ahead of that keeps out of tracking, perhaps some parts of a datagram alone
}

// question is what is asked where a packet alone does not tell.
type question uint8

const (
	ofThis     question = iota // what becomes of this packet
	anyPasses                  // is any of such packets let through?
	anyRefused                 // is any of them refused?
)

// Admitting is the evaluator that asks whether any of such packets is let
// through, where it depends on how many there are, or on what cannot be known
// of one.
func (e *Evaluator) Admitting() *Evaluator { return e.asking(anyPasses) }

// Refusing is the evaluator that asks whether any of such packets is refused:
// Dropped where those are that come too often, say.
func (e *Evaluator) Refusing() *Evaluator { return e.asking(anyRefused) }

func (e Evaluator) asking(q question) *Evaluator {
	e.asks = q
	return &e
}

// MayRefuse is whether some packet that passes the hook may be dropped on its
// way. Where it is false, Verdict says Dropped of none.
func (e *Evaluator) MayRefuse(h Hook) bool {
	return slices.ContainsFunc(e.hooks[h], func(b baseChain) bool { return b.chain.drops || b.chain.policy == refuses })
}

// hostFacts is the host that rules stand on.
type hostFacts struct {
	family      host.Family
	mixed       bool // rules of two backends, whose order in a hook is not known
	noAddresses bool
	interfaces  map[string]uint32 // indices
	addresses   map[netip.Addr]struct{}
	broadcasts  map[netip.Addr]struct{}
}

// NetHook is a hook of the kernel (enum nf_inet_hooks).
type NetHook uint8

// The hooks that IP packets pass.
const (
	Prerouting NetHook = iota
	LocalIn
	Forwarding
	LocalOut
	Postrouting
)

// paths are the hooks of the kernel that a packet passes.
var paths = [3][]NetHook{
	HookInput:   {Prerouting, LocalIn},
	HookForward: {Prerouting, Forwarding, Postrouting},
	HookOutput:  {LocalOut, Postrouting},
}

// Priorities in a hook (enum nf_ip_hook_priorities).
const (
	PriorityJoin      = -400 // of fragments
	PriorityRaw       = -300
	PriorityConntrack = -200
	PriorityMangle    = -150
	PriorityNATDest   = -100
	PriorityFilter    = 0
	PriorityNATSource = 100
	PrioritySecurity  = 50
)

// Base is where a chain is called by the kernel.
type Base struct {
	Hook     NetHook
	Priority int
	NAT      bool // it translates, and sees the first packet of a connection alone
	// Reroutes is whether what the host sends takes another way behind it where
	// it has changed the mark (ipt_mangle_out; nft's chains of type route).
	Reroutes bool
}

// place is where in the hook it stands: what translates is called by one
// function (nf_nat_inet_fn), in the order of priorities among itself.
func (b *Base) place() int {
	switch {
	case !b.NAT:
		return b.Priority
	case b.Hook == Prerouting || b.Hook == LocalOut:
		return PriorityNATDest
	}
	return PriorityNATSource
}

// baseChain is a base chain at its place in a hook.
type baseChain struct {
	chain          *compiledChain
	view           viewKind
	untracked, nat bool // it stands before tracking; it translates
	filter         bool
	shared         bool // others of its priority set marks that it reads, or read those that it sets
	opens          bool // it is the first of its priority
	rival          bool // it, or another of its priority, answers SYNs, and the other may refuse them
	perhaps        bool // others of its priority decide on tracking, and it asks for that
	blurred        bool // it stands where sources, or destinations, are translated: before or behind that
}

// viewKind says which of a packet's addresses and interfaces a chain sees.
type viewKind uint8

const (
	viewWire    viewKind = iota // as it came, with the incoming interface
	viewIn                      // translated
	viewBoth                    // with both interfaces
	viewWireOut                 // as a local socket sent it
	viewOut                     // with the outgoing interface
	viewLeaves                  // the same, with an incoming one that depends on the kernel
)

func (b *Base) view() viewKind {
	translated := b.place() > PriorityNATDest
	switch {
	case b.Hook == Prerouting && !translated:
		return viewWire
	case b.Hook == LocalOut && !translated:
		return viewWireOut
	case b.Hook == Prerouting, b.Hook == LocalIn:
		return viewIn
	case b.Hook == Forwarding:
		return viewBoth
	case b.Hook == Postrouting:
		return viewLeaves
	}
	return viewOut
}

// filters is whether the chain is where people look for what lets a packet
// through. iptables has one such table; nft's chains may stand anywhere.
func (b *Base) filters(native bool) bool {
	if b.NAT || b.Hook == Prerouting || b.Hook == Postrouting {
		return false
	}
	return b.Priority == PriorityFilter || native && b.Priority > PriorityNATDest
}

// blurred is whether the chain may see what translation makes of the packet at
// this very place, or made of it before.
func (b *Base) blurred() bool {
	if b.NAT {
		return false
	}
	if b.Hook == Prerouting || b.Hook == LocalOut {
		return b.Priority == PriorityNATDest
	}
	return b.Hook != Forwarding && b.Priority >= PriorityNATSource
}

// TableID names a table among all of a family.
type TableID struct {
	Backend host.Backend
	Table   string
	Native  string // as RuleRef's
}

func (id TableID) ref(f host.Family, chain string) RuleRef {
	return RuleRef{Family: f, Backend: id.Backend, Table: id.Table, Chain: chain, Native: id.Native}
}

// Table is a table made to be walked.
type Table struct {
	id     TableID
	bases  []*compiledChain // in the order of the source
	chains map[string]*compiledChain

	sets, reads        bool // some rule sets marks, or reads them
	states             bool // some rule asks for the state
	untracks, template bool // some rule keeps out of tracking, or says how it is tracked
	refuses            bool // some rule may refuse
	proxies            bool // some rule answers SYNs in the place of a server
	joins              Truth
}

// note takes in what a rule of the table does.
func (t *Table) note(r *Rule) {
	if r.joins {
		t.joins = Yes
	}
	target := func(k targetKind) {
		switch k {
		case targetCT:
			t.template = true
		case targetNotrack:
			t.untracks = true
		case targetMark, targetConnMark, targetUnknownMark, targetUnknownCMark, targetSave, targetRestore:
			t.sets = true
			t.reads = t.reads || k == targetSave || k == targetRestore
		case targetUnknown, targetQueue:
			t.sets = true
		case targetProxy:
			t.proxies = true
		}
		t.refuses = t.refuses || k.refuses()
	}
	target(r.target.kind)
	for i := range r.choices {
		target(r.choices[i].target.kind)
	}
	for i := range r.matches {
		k := r.matches[i].kind
		t.reads = t.reads || k == matchMark || k == matchCMark
		t.states = t.states || k == matchCT || k == matchTrackedOnly
	}
	if p := r.program; p != nil {
		t.sets, t.reads, t.states = t.sets || p.sets, t.reads || p.reads, t.states || p.states
		t.untracks, t.template = t.untracks || p.early, t.template || p.zones
	}
}

// Evaluator is that of a state of all tables. Tables of one priority come in
// the order that they are given in.
func (c *Compiler) Evaluator(tables []*Table) *Evaluator {
	e := &Evaluator{host: c.host}
	for hook, path := range paths {
		for _, at := range path {
			e.hooks[hook] = append(e.hooks[hook], standing(at, tables)...)
		}
	}
	type place struct {
		hook     NetHook
		priority int
	}
	for _, t := range tables {
		e.joins = max(e.joins, t.joins)
	}
	templates := false
	deciding := map[place][]*Table{}
	for _, t := range tables {
		for _, b := range t.bases {
			if b.base.Priority >= PriorityConntrack {
				continue
			}
			if b.base.Hook == Prerouting && b.base.Priority < PriorityJoin && t.untracks {
				e.splits = &b.policyRef
			}
			at := place{b.base.Hook, b.base.Priority}
			if list := deciding[at]; (t.untracks || t.template) && !slices.Contains(list, t) {
				deciding[at] = append(list, t)
				templates = templates || t.template
			}
		}
	}
	for _, list := range deciding {
		e.racing = e.racing || templates && len(list) > 1
	}
	e.loop = slices.DeleteFunc(standing(LocalOut, tables), func(b baseChain) bool { return !b.untracked })
	return e
}

// standing are the base chains at a hook of the kernel, in order.
func standing(at NetHook, tables []*Table) []baseChain {
	var found []baseChain
	owner := map[*compiledChain]*Table{}
	for _, t := range tables {
		for _, b := range t.bases {
			if b.base.Hook != at || len(b.rules) == 0 && b.policy == passes {
				continue
			}
			owner[b] = t
			found = append(found, baseChain{
				chain: b, view: b.base.view(), untracked: b.base.Priority < PriorityConntrack, nat: b.base.NAT,
				filter:  b.base.filters(t.id.Native != ""),
				blurred: b.base.blurred() && (t.refuses || b.policy == refuses),
			})
		}
	}
	slices.SortStableFunc(found, func(a, b baseChain) int {
		return cmp.Or(cmp.Compare(a.chain.base.place(), b.chain.base.place()), cmp.Compare(a.chain.base.Priority, b.chain.base.Priority))
	})
	for i := range found {
		found[i].opens = i == 0 || found[i].chain.base.Priority != found[i-1].chain.base.Priority
		for k := range found {
			a, b := owner[found[i].chain], owner[found[k].chain]
			if a == b || a.id.Native == "" && b.id.Native == "" || found[i].chain.base.Priority != found[k].chain.base.Priority {
				continue
			}
			f := &found[i]
			f.shared = f.shared || a.sets && (b.reads || b.sets) || b.sets && a.reads
			f.rival = f.rival || a.proxies && b.refuses || b.proxies && a.refuses
			f.perhaps = f.perhaps || a.states && (b.untracks || b.template)
		}
	}
	return found
}

// local is whether the address is one of the host's own.
func (h *hostFacts) local(a netip.Addr) Truth {
	switch _, ok := h.addresses[a]; {
	case ok:
		return Yes
	case a.IsLoopback():
		if a.Is4() && (a.As4()[3] == 0 || a.As4()[3] == 255) {
			return Maybe // the ends of a network mean all of it
		}
		return Yes
	case h.noAddresses && !a.IsMulticast():
		return Maybe
	}
	return No
}

func (h *hostFacts) broadcast(a netip.Addr) bool {
	_, ok := h.broadcasts[a]
	return ok
}
