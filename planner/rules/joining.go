package rules

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// joining is the chain of ctplan's that no rule jumps to: the kernel joins
// fragments as long as it stands (net/netfilter/xt_socket.c,
// socket_mt_enable_defrag). It stands in a table that is called anyhow, where no
// packet meets it.
func joining(f host.Family) declared.Chain {
	text := "-m socket -j RETURN"
	return declared.Chain{Family: f, Table: "filter", Name: declared.JoinChain, Rules: []declared.TargetRule{{Rule: host.Rule{Text: text, Words: strings.Fields(text)}}}}
}

// joinedBy are the families of which ctplan has to ask for fragments to be
// joined: those in which nothing else will ask, and some rule on their way looks
// at what only the first part of a datagram has. A file that boot restores may
// ask for less than the kernel's rules do.
func (p *stage) joinedBy() []host.Family {
	if p.d.Mode == declared.Tuned || p.carrier != declared.IPTables || p.l.Loading.Lacks("xt_socket") {
		return nil
	}
	var out []host.Family
	for _, f := range host.Families {
		if !slices.ContainsFunc(p.l.Rulesets, func(r host.Ruleset) bool { return r.Family == f && r.Primary }) {
			continue
		}
		native := slices.ContainsFunc(p.l.NFT, func(t host.NFTTable) bool { return nft.Joins(&t, f) == verdict.Yes })
		tells := slices.ContainsFunc(p.l.NFT, func(t host.NFTTable) bool { return nft.TellsParts(&t, f, f == host.IPv6) })
		if asks, looks := p.remaining(p.l.Rulesets, f); !native && !asks && (tells || looks) {
			out = append(out, f)
			continue
		}
		for i := range p.l.SavedRules {
			r := &p.l.SavedRules[i]
			if r.Family != f || r.File == nil || !r.File.Exists || r.Refusal != "" {
				continue
			}
			if asks, looks := p.remaining(p.l.SavedRules[i:i+1], f); !native && !asks && (tells || looks) {
				out = append(out, f)
				break
			}
		}
	}
	return out
}

// remaining says of the rules that will stand whether they have fragments
// joined, and whether they may treat the parts of a datagram in different ways.
func (p *stage) remaining(sets []host.Ruleset, f host.Family) (asks, looks bool) {
	for i := range sets {
		r := &sets[i]
		if r.Family != f {
			continue
		}
		for _, table := range r.TableNames() {
			t := parts{chains: map[string]*partsChain{}}
			for _, s := range r.Sections(table) {
				for _, c := range s.Chains {
					t.chain(c.Name).drops = c.Policy == "DROP"
				}
				for k := range s.Rules {
					rule := &s.Rules[k]
					if xtables.IsOwn(rule.Chain) || p.goes[rule] {
						continue
					}
					asks = asks || xtables.JoinsFragments(rule.Words)
					t.add(rule.Chain, rule.Words)
				}
			}
			for _, w := range p.foreign[r][table].twins {
				for _, rule := range w.comes() {
					asks = asks || xtables.JoinsFragments(rule.Words)
					t.add(rule.Chain, rule.Words)
				}
			}
			for _, c := range p.d.ChainsOf(f) {
				if c.Table == table && (r.Primary || r.File != nil) {
					t.add(c.Hook, []string{"-j", c.Name})
					for _, rule := range c.Rules {
						t.add(c.Name, rule.Words)
					}
				}
			}
			looks = looks || t.looks("PREROUTING") || t.looks("FORWARD") || f == host.IPv6 && t.looks("INPUT")
		}
	}
	return asks, looks
}

// parts are the chains of a table, as far as parts of datagrams tell.
type parts struct{ chains map[string]*partsChain }

type partsChain struct {
	drops  bool // some rule refuses, or the policy
	header bool // some rule looks at the protocol's own header
	calls  []string
	seen   bool
}

func (t *parts) chain(name string) *partsChain {
	c := t.chains[name]
	if c == nil {
		c = &partsChain{}
		t.chains[name] = c
	}
	return c
}

// readsHeader are the options that ask for something of the protocol's header.
var readsHeader = words.Set("--sport", "--dport", "--source-port", "--destination-port", "--sports", "--dports", "--source-ports", "--destination-ports", "--ports",
	"--syn", "--tcp-flags", "--tcp-option", "--icmp-type", "--icmpv6-type", "--chunk-types", "--dccp-types", "--match-set", "--u32", "--bytecode")

func (t *parts) add(chain string, rule []string) {
	c := t.chain(chain)
	for i, w := range rule {
		if len(w) < 2 || w[0] != '-' {
			continue
		}
		if readsHeader[w] {
			c.header = true
		}
		if (w == "-j" || w == "-g" || w == "--jump" || w == "--goto") && i+1 < len(rule) {
			switch to := rule[i+1]; to {
			case "DROP", "REJECT", "TARPIT", "STEAL", "QUEUE", "NFQUEUE":
				c.drops = true
			case "ACCEPT", "RETURN", "LOG", "MARK", "NOTRACK", "CT":
			default:
				c.calls = append(c.calls, to)
			}
		}
	}
}

// looks is whether what passes the chain may be refused, and something on its
// way looks at the protocol's header.
func (t *parts) looks(hook string) bool {
	for _, c := range t.chains {
		c.seen = false
	}
	var drops, header bool
	var visit func(name string)
	visit = func(name string) {
		c := t.chains[name]
		if c == nil || c.seen {
			return
		}
		c.seen = true
		drops, header = drops || c.drops, header || c.header
		for _, to := range c.calls {
			visit(to)
		}
	}
	visit(hook)
	return drops && header
}
