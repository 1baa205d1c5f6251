package planner

import (
	"net/netip"
	"slices"
)

// Evaluator answers what the rules of one family do with a packet. It knows
// the built-in chains, jumps, goto, RETURN and policies as the kernel walks
// them, every table in the order of its hook priority, and every backend's
// rules after one another. Whatever it cannot tell from a packet alone, rates,
// quotas, time, unknown matches, it follows both ways; where they end
// differently, the verdict is Unknown and names the rule.
//
// Routing, reverse path filters and rules of native nftables are outside of it.
type Evaluator struct {
	family      Family
	twoBackends bool
	noAddresses bool
	addresses   map[netip.Addr]struct{}
	broadcasts  map[netip.Addr]struct{}
	v           *version
}

// version is one state of all tables.
type version struct {
	hooks [3][]baseChain
	loop  []*compiledChain // raw OUTPUT, which packets over lo have passed
	// racing is whether raw tables of more than one backend have rules about
	// tracking, some of them with templates: their order in a hook is not known.
	racing bool
	// admits is whether the verdict is about all such packets taken together:
	// Accepted where some are let through.
	admits bool
}

// baseChain is a built-in chain at its place in a hook.
type baseChain struct {
	chain            *compiledChain
	view             viewKind
	raw, nat, filter bool
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

// places are the built-in chains that a packet passes at each hook, in order
// (enum nf_ip_hook_priorities). Chains that only translate sources are left out.
var places = [3][]struct {
	table, chain string
	view         viewKind
}{
	HookInput: {{"raw", "PREROUTING", viewWire}, {"mangle", "PREROUTING", viewWire}, {"nat", "PREROUTING", viewWire},
		{"mangle", "INPUT", viewIn}, {"filter", "INPUT", viewIn}, {"security", "INPUT", viewIn}},
	HookForward: {{"raw", "PREROUTING", viewWire}, {"mangle", "PREROUTING", viewWire}, {"nat", "PREROUTING", viewWire},
		{"mangle", "FORWARD", viewBoth}, {"filter", "FORWARD", viewBoth}, {"security", "FORWARD", viewBoth}, {"mangle", "POSTROUTING", viewOut}},
	HookOutput: {{"raw", "OUTPUT", viewWireOut}, {"mangle", "OUTPUT", viewWireOut}, {"nat", "OUTPUT", viewWireOut},
		{"filter", "OUTPUT", viewOut}, {"security", "OUTPUT", viewOut}, {"mangle", "POSTROUTING", viewOut}},
}

// tableKey names a table among all rulesets of a family.
type tableKey struct {
	backend Backend
	table   string
}

// tables is one state of the tables, compiled: chains by their names.
type tables map[tableKey]map[string]*compiledChain

// assemble hangs the built-in chains into their hooks.
func assemble(backends []Backend, t tables) *version {
	v := &version{}
	for hook, list := range places {
		for _, place := range list {
			for _, b := range backends {
				c := t[tableKey{b, place.table}][place.chain]
				if c == nil || len(c.rules) == 0 && c.policy == passes {
					continue
				}
				v.hooks[hook] = append(v.hooks[hook], baseChain{c, place.view, place.table == "raw", place.table == "nat", place.table == "filter"})
			}
		}
	}
	deciding, templates := 0, false
	for _, b := range backends {
		raw := t[tableKey{b, "raw"}]
		if c := raw["OUTPUT"]; c != nil && len(c.rules) > 0 {
			v.loop = append(v.loop, c)
		}
		decides := false
		for _, c := range raw {
			for i := range c.rules {
				target := c.rules[i].target
				decides = decides || target == targetCT || target == targetNotrack
				templates = templates || target == targetCT
			}
		}
		if decides {
			deciding++
		}
	}
	v.racing = templates && deciding > 1
	return v
}

// NewEvaluator compiles the rules of a family that stand in the kernel.
// Rulesets of the other family and saved files are passed over.
func NewEvaluator(family Family, rulesets []Ruleset, facts Facts) *Evaluator {
	c := newCompiler(family, facts)
	t := tables{}
	var backends []Backend
	for i := range rulesets {
		r := &rulesets[i]
		if r.Family != family || r.File != nil {
			continue
		}
		backends = append(backends, r.Backend)
		for _, name := range r.TableNames() {
			if sections := r.Sections(name); len(sections) > 0 {
				t[tableKey{r.Backend, name}] = c.table(r.Backend, name, sourcesOf(sections))
			}
		}
	}
	c.e.twoBackends = len(backends) > 1
	c.e.v = assemble(backends, t)
	return c.e
}

func newCompiler(family Family, facts Facts) *compiler {
	e := &Evaluator{family: family, noAddresses: facts.Addresses == nil}
	e.addresses, e.broadcasts = map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	for _, p := range facts.Addresses {
		a := p.Addr().Unmap()
		e.addresses[a] = struct{}{}
		if cast, ok := broadcastOf(netip.PrefixFrom(a, p.Bits())); ok {
			e.broadcasts[cast] = struct{}{}
		}
	}
	return &compiler{e: e, facts: facts, rules: map[tableKey]map[ruleKey]compiledRule{}}
}

// local is whether the address is one of the host's own.
func (e *Evaluator) local(a netip.Addr) truth {
	switch _, ok := e.addresses[a]; {
	case ok:
		return yes
	case a.IsLoopback():
		if a.Is4() && (a.As4()[3] == 0 || a.As4()[3] == 255) {
			return maybe // the ends of a network mean all of it
		}
		return yes
	case e.noAddresses && !a.IsMulticast():
		return maybe
	}
	return no
}

func (e *Evaluator) broadcast(a netip.Addr) bool {
	_, ok := e.broadcasts[a]
	return ok
}

// chainSource is a chain before it is compiled.
type chainSource struct {
	name, policy string
	rules        []ruleSource
}

type ruleSource struct {
	text  string
	words []string
}

func sourcesOf(sections []*Table) []chainSource {
	var out []chainSource
	at := map[string]int{}
	for _, s := range sections {
		for _, d := range s.Chains {
			if _, ok := at[d.Name]; !ok {
				at[d.Name] = len(out)
				out = append(out, chainSource{name: d.Name, policy: d.Policy})
			}
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			n, ok := at[r.Chain]
			if !ok { // a file may leave the line out for a built-in chain
				n = len(out)
				at[r.Chain] = n
				out = append(out, chainSource{name: r.Chain, policy: "ACCEPT"})
			}
			out[n].rules = append(out[n].rules, ruleSource{r.Text, r.Words})
		}
	}
	return out
}

// compiledChain is a chain whose rules are compiled.
type compiledChain struct {
	rules     []compiledRule
	policy    outcomes
	policyRef RuleRef
	index     *chainIndex // nil: short enough to scan
}

// compiler compiles tables, each rule once however often it stands.
type compiler struct {
	e     *Evaluator
	facts Facts
	rules map[tableKey]map[ruleKey]compiledRule
}

// ruleKey is a rule among those of a table.
type ruleKey struct{ chain, text string }

// table compiles a table. Jumps in a circle, which no kernel takes, and jumps
// to chains that do not exist become rules that nobody can know.
func (c *compiler) table(backend Backend, name string, sources []chainSource) map[string]*compiledChain {
	key := tableKey{backend, name}
	known := c.rules[key]
	if known == nil {
		n := 0
		for _, src := range sources {
			n += len(src.rules)
		}
		known = make(map[ruleKey]compiledRule, n)
		c.rules[key] = known
	}
	chains := make(map[string]*compiledChain, len(sources))
	for _, src := range sources {
		ch := &compiledChain{policy: passes, policyRef: RuleRef{Family: c.e.family, Backend: backend, Table: name, Chain: src.name, Policy: src.policy}}
		if src.policy == "DROP" {
			ch.policy = refuses
		}
		chains[src.name] = ch
	}
	for _, src := range sources {
		ch := chains[src.name]
		ch.rules = make([]compiledRule, len(src.rules))
		for i, r := range src.rules {
			rule, ok := known[ruleKey{src.name, r.text}]
			if !ok {
				rule = c.rule(backend, name, parseSpec(r.words))
				rule.ref = &RuleRef{Family: c.e.family, Backend: backend, Table: name, Chain: src.name, Text: r.text}
				known[ruleKey{src.name, r.text}] = rule
			}
			switch rule.chain = chains[rule.to]; {
			case rule.chain == nil && (rule.target == targetJump || rule.target == targetGoto):
				rule.target = targetUnknown
			case rule.chain != nil && rule.target != targetGoto:
				rule.target = targetJump // also where a target elsewhere has this name
			}
			ch.rules[i] = rule
		}
	}
	breakCircles(chains)
	for _, ch := range chains {
		ch.index = newIndex(ch.rules)
	}
	return chains
}

// breakCircles makes every jump that leads back to a chain on the way to it
// unknown.
func breakCircles(chains map[string]*compiledChain) {
	const open, done = 1, 2
	mark := map[*compiledChain]int{}
	var visit func(c *compiledChain)
	visit = func(c *compiledChain) {
		mark[c] = open
		for i := range c.rules {
			r := &c.rules[i]
			if r.chain == nil {
				continue
			}
			switch mark[r.chain] {
			case open:
				r.target, r.chain = targetUnknown, nil
			case 0:
				visit(r.chain)
			}
		}
		mark[c] = done
	}
	names := make([]string, 0, len(chains))
	for name := range chains {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if mark[chains[name]] == 0 {
			visit(chains[name])
		}
	}
}
