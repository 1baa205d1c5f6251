package planner

import (
	"cmp"
	"net/netip"
	"slices"
)

// Evaluator answers what one state of the rules of a family does with a packet.
// It knows base chains, jumps, goto, RETURN and policies as the kernel walks
// them, every table in the order of its priority, and every backend's rules
// after one another. Whatever it cannot tell from a packet alone, rates,
// quotas, time, unknown matches, it follows both ways; where they end
// differently, the verdict is Unknown and names the rule.
//
// Routing and reverse path filters are outside of it.
type Evaluator struct {
	host  *hostFacts
	hooks [3][]baseChain
	loop  []*compiledChain // before tracking in OUTPUT, which packets over lo have passed
	// racing is whether tables before tracking of more than one backend have
	// rules about tracking, some of them with templates: their order in a hook
	// is not known.
	racing bool
	// admits is whether the verdict is about all such packets taken together:
	// Accepted where some are let through.
	admits bool
}

// Admitting is the evaluator that asks whether any of such packets is let
// through, where it depends on how many there are, or on what cannot be known
// of one.
func (e *Evaluator) Admitting() *Evaluator {
	admitting := *e
	admitting.admits = true
	return &admitting
}

// hostFacts is the host that rules stand on.
type hostFacts struct {
	family      Family
	mixed       bool // rules of two backends, whose order in a hook is not known
	noAddresses bool
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
	PriorityRaw       = -300
	PriorityConntrack = -200
	PriorityMangle    = -150
	PriorityNATDest   = -100
	PriorityFilter    = 0
	PrioritySecurity  = 50
)

// Base is where a chain is called by the kernel.
type Base struct {
	Hook     NetHook
	Priority int
	NAT      bool // it translates destinations, and sees the first packet of a connection alone
}

// baseChain is a base chain at its place in a hook.
type baseChain struct {
	chain          *compiledChain
	view           viewKind
	untracked, nat bool // it stands before tracking; it translates
	filter         bool
}

// viewKind says which of a packet's addresses and interfaces a chain sees.
type viewKind uint8

const (
	viewWire    viewKind = iota // as it came, with the incoming interface
	viewIn                      // translated
	viewBoth                    // with both interfaces
	viewWireOut                 // as a local socket sent it
	viewOut                     // with the outgoing interface
)

func (b Base) view() viewKind {
	translated := b.Priority > PriorityNATDest
	switch {
	case b.Hook == Prerouting && !translated:
		return viewWire
	case b.Hook == LocalOut && !translated:
		return viewWireOut
	case b.Hook == Prerouting, b.Hook == LocalIn:
		return viewIn
	case b.Hook == Forwarding:
		return viewBoth
	}
	return viewOut
}

// TableID names a table among all of a family.
type TableID struct {
	Backend Backend
	Table   string
}

// CompiledTable is a table made to be walked.
type CompiledTable struct {
	id     TableID
	bases  []*compiledChain // in the order of the source
	chains map[string]*compiledChain
}

// Evaluator is that of a state of all tables. Tables of one priority come in
// the order that they are given in.
func (c *Compiler) Evaluator(tables []*CompiledTable) *Evaluator {
	e := &Evaluator{host: c.host}
	for hook, path := range paths {
		for _, at := range path {
			var found []*compiledChain
			for _, t := range tables {
				for _, b := range t.bases {
					if b.base.Hook == at && (len(b.rules) > 0 || b.policy != passes) {
						found = append(found, b)
					}
				}
			}
			slices.SortStableFunc(found, func(a, b *compiledChain) int { return cmp.Compare(a.base.Priority, b.base.Priority) })
			for _, b := range found {
				e.hooks[hook] = append(e.hooks[hook], baseChain{
					chain: b, view: b.base.view(), untracked: b.base.Priority < PriorityConntrack, nat: b.base.NAT,
					filter: b.base.Priority == PriorityFilter && !b.base.NAT,
				})
			}
		}
	}
	deciding, templates := map[Backend]bool{}, false
	for _, t := range tables {
		early := false
		for _, b := range t.bases {
			if b.base.Priority >= PriorityConntrack {
				continue
			}
			early = true
			if b.base.Hook == LocalOut && len(b.rules) > 0 {
				e.loop = append(e.loop, b)
			}
		}
		if !early {
			continue
		}
		for _, c := range t.chains {
			for i := range c.rules {
				switch c.rules[i].target.kind {
				case targetCT:
					deciding[t.id.Backend], templates = true, true
				case targetNotrack:
					deciding[t.id.Backend] = true
				}
			}
		}
	}
	e.racing = templates && len(deciding) > 1
	return e
}

// local is whether the address is one of the host's own.
func (h *hostFacts) local(a netip.Addr) truth {
	switch _, ok := h.addresses[a]; {
	case ok:
		return yes
	case a.IsLoopback():
		if a.Is4() && (a.As4()[3] == 0 || a.As4()[3] == 255) {
			return maybe // the ends of a network mean all of it
		}
		return yes
	case h.noAddresses && !a.IsMulticast():
		return maybe
	}
	return no
}

func (h *hostFacts) broadcast(a netip.Addr) bool {
	_, ok := h.broadcasts[a]
	return ok
}
