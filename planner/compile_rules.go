package planner

import (
	"net/netip"
	"slices"
	"strings"
)

// Language reads the rules of one language, as those of iptables or of nft.
type Language interface {
	// Read says through r what a rule matches and what it does then. It cannot
	// fail: what it does not know becomes a condition that is unknown.
	Read(r *CompiledRule, table TableID, words []string)
}

// ChainSource is a chain before it is compiled.
type ChainSource struct {
	Name   string
	Policy string // as people write it
	Drops  bool   // the policy drops
	Base   *Base  // nil for a chain that only rules call
	Rules  []RuleSource
}

// RuleSource is a rule before it is compiled.
type RuleSource struct {
	Text  string   // tells it from all other rules of its chain
	Words []string // for the language to read
}

// compiledChain is a chain whose rules are compiled.
type compiledChain struct {
	base      *Base
	rules     []CompiledRule
	policy    outcomes
	policyRef RuleRef
	index     *chainIndex // nil: short enough to scan
}

// Compiler compiles tables of one family, each rule once however often it
// stands.
type Compiler struct {
	host     *hostFacts
	facts    Facts
	language Language
	rules    map[TableID]map[ruleKey]CompiledRule
}

// ruleKey is a rule among those of a table.
type ruleKey struct{ chain, text string }

// NewCompiler is a compiler for a host of which these facts are known. mixed is
// whether rules of two backends are on it, whose order in a hook is not known.
func NewCompiler(family Family, facts Facts, language Language, mixed bool) *Compiler {
	h := &hostFacts{family: family, mixed: mixed, noAddresses: facts.Addresses == nil}
	h.addresses, h.broadcasts = map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	for _, p := range facts.Addresses {
		a := p.Addr().Unmap()
		h.addresses[a] = struct{}{}
		if cast, ok := broadcastOf(netip.PrefixFrom(a, p.Bits())); ok {
			h.broadcasts[cast] = struct{}{}
		}
	}
	return &Compiler{host: h, facts: facts, language: language, rules: map[TableID]map[ruleKey]CompiledRule{}}
}

// Table compiles a table. Jumps in a circle, which no kernel takes, and jumps
// to chains that do not exist become rules that nobody can know.
func (c *Compiler) Table(id TableID, sources []ChainSource) *CompiledTable {
	known := c.rules[id]
	if known == nil {
		n := 0
		for _, src := range sources {
			n += len(src.Rules)
		}
		known = make(map[ruleKey]CompiledRule, n)
		c.rules[id] = known
	}
	t := &CompiledTable{id: id, chains: make(map[string]*compiledChain, len(sources))}
	for _, src := range sources {
		ch := &compiledChain{base: src.Base, policy: passes, policyRef: RuleRef{Family: c.host.family, Backend: id.Backend, Table: id.Table, Chain: src.Name, Policy: src.Policy}}
		if src.Drops {
			ch.policy = refuses
		}
		t.chains[src.Name] = ch
		if src.Base != nil {
			t.bases = append(t.bases, ch)
		}
	}
	for _, src := range sources {
		ch := t.chains[src.Name]
		ch.rules = make([]CompiledRule, len(src.Rules))
		for i, r := range src.Rules {
			rule, ok := known[ruleKey{src.Name, r.Text}]
			if !ok {
				rule = c.rule(id, r.Words)
				rule.ref = &RuleRef{Family: c.host.family, Backend: id.Backend, Table: id.Table, Chain: src.Name, Text: r.Text}
				known[ruleKey{src.Name, r.Text}] = rule
			}
			rule.call(t.chains)
			ch.rules[i] = rule
		}
	}
	breakCircles(t.chains)
	for _, ch := range t.chains {
		ch.index = newIndex(ch.rules)
	}
	return t
}

// call finds the chain that a rule calls.
func (r *CompiledRule) call(chains map[string]*compiledChain) {
	switch r.chain = chains[r.target.to]; {
	case r.chain == nil && (r.target.kind == targetJump || r.target.kind == targetGoto):
		r.target.kind = targetUnknown
	case r.chain != nil && r.target.kind != targetGoto:
		r.target.kind = targetJump // also where a target elsewhere has this name
	}
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
				r.target.kind, r.chain = targetUnknown, nil
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

// CompiledRule is a rule made to be compared with many packets. A Language
// fills it in.
type CompiledRule struct {
	proto              uint8
	hasProto, notProto bool
	in, out            ifaceMatch
	matches            []Condition // the certain ones first
	rated, vague       bool        // what cannot be known of it: a rate, something else
	target             Target
	chain              *compiledChain
	ref                *RuleRef
	facts              *Facts
}

// rule compiles a rule of a table.
func (c *Compiler) rule(id TableID, words []string) CompiledRule {
	r := CompiledRule{in: ifaceMatch{any: true}, out: ifaceMatch{any: true}, facts: &c.facts}
	c.language.Read(&r, id, words)
	if r.rated || r.vague {
		r.matches = append(r.matches, Condition{kind: matchUnknown})
	}
	r.rated = r.rated && !r.vague
	return r
}

// Protocol asks for packets of a protocol, or of others. It reports whether
// that can be held beside what was asked for already.
func (r *CompiledRule) Protocol(number uint8, not bool) bool {
	if r.hasProto {
		return false
	}
	r.proto, r.hasProto, r.notProto = number, true, not
	return true
}

// In asks for the interface that a packet comes in by. A name that ends in "+"
// stands for all that begin so.
func (r *CompiledRule) In(name string, not bool) { r.in = iface(not, name) }

// Out asks for the interface that a packet leaves by.
func (r *CompiledRule) Out(name string, not bool) { r.out = iface(not, name) }

// Match adds a condition.
func (r *CompiledRule) Match(c Condition) { r.matches = append(r.matches, c) }

// Rate says that the rule matches so many packets in a time, and no more.
func (r *CompiledRule) Rate() { r.rated = true }

// Vague says that the rule matches by something that cannot be known.
func (r *CompiledRule) Vague() { r.vague = true }

// Do sets what the rule does.
func (r *CompiledRule) Do(t Target) { r.target = t }

// Set is a set that rules can search, nil where its content is not known.
func (r *CompiledRule) Set(name string) *IPSet { return r.facts.Sets[name] }

// ifaceMatch is -i or -o.
type ifaceMatch struct {
	name   string
	prefix bool // of any name that begins so
	not    bool
	any    bool
}

func iface(not bool, arg string) ifaceMatch {
	stem, prefix := strings.CutSuffix(arg, "+")
	return ifaceMatch{name: stem, prefix: prefix, not: not, any: prefix && stem == "" && !not}
}

func (m ifaceMatch) exact() bool { return !m.any && !m.prefix && !m.not }

func (m *ifaceMatch) hit(name string) truth {
	if m.any {
		return yes
	}
	if name == SomeInterface {
		if m.name == "lo" && !m.prefix {
			return truthOf(m.not)
		}
		if m.prefix && m.name == "" {
			return truthOf(!m.not)
		}
		return maybe
	}
	hit := name == m.name
	if m.prefix {
		hit = strings.HasPrefix(name, m.name)
	}
	return truthOf(hit != m.not)
}

func (r *CompiledRule) match(s *walk) truth {
	if r.hasProto && (s.p.Protocol == r.proto) == r.notProto {
		return no
	}
	t := yes
	if !r.in.any {
		t = min(t, r.in.hit(s.in))
	}
	if !r.out.any {
		t = min(t, r.out.hit(s.out))
	}
	for i := range r.matches {
		if t == no {
			return no
		}
		t = min(t, r.matches[i].eval(s))
	}
	return t
}

// rateAlone reports whether a rule that may match is unsure of a rate alone.
func (r *CompiledRule) rateAlone(s *walk) bool {
	if !r.rated || r.in.hit(s.in) != yes || r.out.hit(s.out) != yes {
		return false
	}
	for i := range r.matches {
		if m := &r.matches[i]; m.kind != matchUnknown && m.eval(s) != yes {
			return false
		}
	}
	return true
}
