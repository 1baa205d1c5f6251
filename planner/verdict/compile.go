package verdict

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
)

// Language reads the rules of one language, as those of iptables or of nft.
type Language interface {
	// Read says through r what a rule matches and what it does then. It cannot
	// fail: what it does not know becomes a condition that is unknown.
	Read(r *Rule, table TableID, source *RuleSource)
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
	Text   string         // with Handle, tells it from all other rules of its chain
	Handle uint64         // 0: it has none
	Words  []string       // for the language to read,
	Exprs  []host.NFTExpr // or these
}

// compiledChain is a chain whose rules are compiled.
type compiledChain struct {
	base      *Base
	rules     []Rule
	policy    outcomes
	policyRef RuleRef
	index     *chainIndex // nil: short enough to scan
	drops     bool        // some rule may refuse, here or in a chain that one calls
}

// Compiler compiles tables of one family, each rule once however often it
// stands.
type Compiler struct {
	host  *hostFacts
	facts Facts
	rules map[TableID]map[ruleKey]Rule
	ports PortClasses
}

// ruleKey is a rule among those of a table.
type ruleKey struct {
	chain, text string
	handle      uint64
}

// NewCompiler is a compiler for a host of which these facts are known. mixed is
// whether rules of two backends are on it, whose order in a hook is not known.
func NewCompiler(family host.Family, facts Facts, mixed bool) *Compiler {
	h := &hostFacts{family: family, mixed: mixed, noAddresses: facts.Addresses == nil, interfaces: facts.Interfaces}
	h.addresses, h.broadcasts = map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	for _, p := range facts.Addresses {
		a := p.Addr().Unmap()
		h.addresses[a] = struct{}{}
		if cast, ok := nets.Broadcast(netip.PrefixFrom(a, p.Bits())); ok {
			h.broadcasts[cast] = struct{}{}
		}
	}
	return &Compiler{host: h, facts: facts, rules: map[TableID]map[ruleKey]Rule{}}
}

// Table compiles a table of a language. Jumps in a circle, which no kernel takes, and jumps
// to chains that do not exist become rules that nobody can know.
func (c *Compiler) Table(id TableID, language Language, sources []ChainSource) *Table {
	known := c.rules[id]
	if known == nil {
		n := 0
		for _, src := range sources {
			n += len(src.Rules)
		}
		known = make(map[ruleKey]Rule, n)
		c.rules[id] = known
	}
	t := &Table{id: id, chains: make(map[string]*compiledChain, len(sources))}
	for _, src := range sources {
		ch := &compiledChain{base: src.Base, policy: passes, policyRef: id.ref(c.host.family, src.Name)}
		ch.policyRef.Policy = src.Policy
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
		ch.rules = make([]Rule, len(src.Rules))
		for i := range src.Rules {
			r := &src.Rules[i]
			key := ruleKey{src.Name, r.Text, r.Handle}
			rule, ok := known[key]
			if !ok {
				rule = c.rule(id, language, r)
				ref := id.ref(c.host.family, src.Name)
				ref.Text, ref.Handle = r.Text, r.Handle
				rule.ref = &ref
				known[key] = rule
			}
			rule.call(t.chains)
			ch.rules[i] = rule
			t.note(&ch.rules[i])
		}
	}
	breakCircles(t.chains)
	for _, ch := range t.chains {
		ch.index = newIndex(ch.rules)
	}
	return t
}

// call finds the chains that a rule calls.
func (r *Rule) call(chains map[string]*compiledChain) {
	r.chain = r.target.call(chains)
	if len(r.choices) > 0 {
		r.choices = slices.Clone(r.choices)
		for i := range r.choices {
			r.choices[i].chain = r.choices[i].target.call(chains)
		}
	}
}

func (t *Target) call(chains map[string]*compiledChain) *compiledChain {
	chain := chains[t.to]
	switch {
	case chain == nil && (t.kind == targetJump || t.kind == targetGoto):
		t.kind = targetUnknown
	case chain != nil && t.kind != targetGoto:
		t.kind = targetJump // also where a target elsewhere has this name
	}
	return chain
}

// breakCircles makes every jump that leads back to a chain on the way to it
// unknown, and finds the chains that may refuse.
func breakCircles(chains map[string]*compiledChain) {
	const open, done = 1, 2
	mark := map[*compiledChain]int{}
	var visit func(c *compiledChain)
	follow := func(c *compiledChain, t *Target, chain **compiledChain) {
		switch {
		case *chain == nil:
		case mark[*chain] == open:
			t.kind, *chain = targetUnknown, nil
		case mark[*chain] == 0:
			visit(*chain)
		}
		c.drops = c.drops || t.kind.refuses() || *chain != nil && (*chain).drops
	}
	visit = func(c *compiledChain) {
		mark[c] = open
		for i := range c.rules {
			r := &c.rules[i]
			follow(c, &r.target, &r.chain)
			for k := range r.choices {
				follow(c, &r.choices[k].target, &r.choices[k].chain)
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

// Rule is a rule made to be compared with many packets. A Language
// fills it in.
type Rule struct {
	proto              uint8
	hasProto, notProto bool
	in, out            ifaceMatch
	matches            []Condition // the certain ones first
	rated, vague       bool        // what cannot be known of it: a rate, something else
	program            *Program    // nil: there is nothing beyond them
	target             Target
	chain              *compiledChain
	choices            []choice // that the program chooses from, in the place of target
	joins              bool
	ref                *RuleRef
	facts              *Facts
}

// choice is one of the targets that a rule has.
type choice struct {
	target Target
	chain  *compiledChain
}

// rule compiles a rule of a table.
func (c *Compiler) rule(id TableID, language Language, source *RuleSource) Rule {
	r := Rule{in: ifaceMatch{any: true}, out: ifaceMatch{any: true}, facts: &c.facts}
	language.Read(&r, id, source)
	if r.rated || r.vague {
		r.matches = append(r.matches, Condition{kind: matchUnknown})
	}
	r.rated = r.rated && !r.vague
	c.ports.note(&r)
	return r
}

// Protocol asks for packets of a protocol, or of others. It reports whether
// that can be held beside what was asked for already.
func (r *Rule) Protocol(number uint8, not bool) bool {
	if r.hasProto {
		return false
	}
	r.proto, r.hasProto, r.notProto = number, true, not
	return true
}

// In asks for the interface that a packet comes in by. A name that ends in "+"
// stands for all that begin so.
func (r *Rule) In(name string, not bool) { r.in = iface(not, name) }

// Out asks for the interface that a packet leaves by.
func (r *Rule) Out(name string, not bool) { r.out = iface(not, name) }

// Match adds a condition.
func (r *Rule) Match(c Condition) { r.matches = append(r.matches, c) }

// Rate says that the rule matches so many packets in a time, and no more.
func (r *Rule) Rate() { r.rated = true }

// Vague says that the rule matches by something that cannot be known.
func (r *Rule) Vague() { r.vague = true }

// Do sets what the rule does.
func (r *Rule) Do(t Target) { r.target = t }

// Choose sets what the rule does, of which the program's Choose says which.
func (r *Rule) Choose(list []Target) {
	for _, t := range list {
		r.choices = append(r.choices, choice{target: t})
	}
}

// Join says that fragments are joined as long as the rule stands, reached or not.
func (r *Rule) Join() { r.joins = true }

// Run adds what the rule does beyond its conditions, and after them.
func (r *Rule) Run(p *Program) { r.program = p }

// Set is a set that rules can search, nil where its content is not known.
func (r *Rule) Set(name string) *host.IPSet { return r.facts.Sets[name] }

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

func (m *ifaceMatch) hit(name string) Truth {
	if m.any {
		return Yes
	}
	if name == SomeInterface {
		if m.name == "lo" && !m.prefix {
			return TruthOf(m.not)
		}
		if m.prefix && m.name == "" {
			return TruthOf(!m.not)
		}
		return Maybe
	}
	hit := name == m.name
	if m.prefix {
		hit = strings.HasPrefix(name, m.name)
	}
	return TruthOf(hit != m.not)
}

func (r *Rule) match(s *walk) Truth {
	if r.hasProto && (s.p.Protocol == r.proto) == r.notProto {
		return No
	}
	t := Yes
	if !r.in.any {
		t = min(t, r.in.hit(s.in))
	}
	if !r.out.any {
		t = min(t, r.out.hit(s.out))
	}
	for i := range r.matches {
		if t == No {
			return No
		}
		t = min(t, r.matches[i].eval(s))
	}
	if r.program != nil && t != No {
		t = min(t, s.run(r.program, r, t, false, false))
	}
	return t
}

// rateAlone reports whether a rule that may match is unsure of a rate alone.
func (r *Rule) rateAlone(s *walk) bool {
	if !r.rated && (r.program == nil || !r.program.rated) || r.in.hit(s.in) != Yes || r.out.hit(s.out) != Yes {
		return false
	}
	for i := range r.matches {
		if m := &r.matches[i]; m.kind != matchUnknown && m.eval(s) != Yes {
			return false
		}
	}
	return r.program == nil || s.run(r.program, r, Yes, true, true) == Yes
}
