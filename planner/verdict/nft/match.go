package nft

import (
	"reflect"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Meets is whether packets of the family may pass the table.
func Meets(family host.Family, t *host.NFTTable) bool { return meets(family, t) }

// Match is what a rule of a table says of packets of a family.
type Match struct {
	Packets xtables.Packets // that it may match: those, or fewer
	All     bool            // it matches all of those
	None    bool            // it matches no packet of the family
}

// MatchOf reads a rule's comparisons.
func MatchOf(t *host.NFTTable, family host.Family, r *host.NFTRule) Match {
	return NewMatcher(t).Of(family, r)
}

// Matcher reads the comparisons of many rules of a table, whose sets it searches once.
type Matcher struct {
	table *host.NFTTable
	by    map[host.Family]*language
}

// NewMatcher is for rules of the table, which must not change.
func NewMatcher(t *host.NFTTable) *Matcher {
	return &Matcher{t, map[host.Family]*language{}}
}

// Of is MatchOf of a rule of the table.
func (m *Matcher) Of(family host.Family, r *host.NFTRule) Match {
	l := m.by[family]
	if l == nil {
		l = &language{family: family, table: m.table}
		m.by[family] = l
	}
	q, ok := l.packets(r.Exprs)
	return Match{Packets: q, None: !ok, All: ok && l.exact(r.Exprs)}
}

// exact is whether a rule compares nothing but what packets takes in.
func (l *language) exact(exprs []host.NFTExpr) bool {
	for i := range exprs {
		e := &exprs[i]
		switch e.Name {
		case "payload", "meta":
			if e.Sets {
				return false
			}
		case "cmp", "lookup":
			// Taking it in must leave fewer packets, or say the family.
			before, _ := l.packets(exprs[:i])
			after, _ := l.packets(exprs[:i+1])
			if reflect.DeepEqual(before, after) && !asksFamily(exprs[:i], e) {
				return false
			}
		case "immediate":
			if e.Verdict == "" {
				return false
			}
		case "counter", "log", "reject", "queue":
		default:
			return false
		}
	}
	return true
}

// asksFamily is whether what is compared is the family of a packet.
func asksFamily(before []host.NFTExpr, e *host.NFTExpr) bool {
	n := len(before) - 1
	return e.Name == "cmp" && n >= 0 && before[n].Name == "meta" && before[n].Key == metaFamily
}

// End is what becomes of all packets that a rule matches, as far as the rule alone
// tells: accept, drop, queue, return, or jump or goto with the chain. Rejecting is
// dropping. It is empty where they go on to the next rule, or each to its own.
func End(r *host.NFTRule) (verdict, chain string) {
	if len(r.Exprs) == 0 {
		return "", ""
	}
	switch e := &r.Exprs[len(r.Exprs)-1]; e.Name {
	case "immediate":
		return e.Verdict, e.Chain
	case "reject":
		return "drop", ""
	case "queue":
		return "queue", ""
	}
	return "", ""
}

// Refuses is whether something of a chain, or of one that it leads to, may refuse a
// packet: its policy, a rule, an element of a map.
func Refuses(t *host.NFTTable, chain string) bool {
	seen := map[string]bool{}
	var visit func(name string) bool
	leads := func(verdict, chain string) bool {
		return verdict == "drop" || verdict == "queue" || chain != "" && visit(chain)
	}
	visit = func(name string) bool {
		c := t.Chain(name)
		if c == nil || seen[name] {
			return false
		}
		seen[name] = true
		if c.Policy == "drop" {
			return true
		}
		for i := range c.Rules {
			for k := range c.Rules[i].Exprs {
				e := &c.Rules[i].Exprs[k]
				switch target, _ := extension(e.Object); {
				case e.Name == "reject", e.Name == "queue", e.Name == "target" && (target == "REJECT" || target == "TARPIT" || target == "NFQUEUE"):
					return true
				case e.Name == "immediate" && leads(e.Verdict, e.Chain):
					return true
				case e.Name == "lookup":
					for _, s := range t.Sets {
						if s.Name != e.Set || s.DataType != host.NFTVerdicts {
							continue
						}
						for element, err := range s.Elements.All() {
							if err != nil || leads(element.Verdict, element.Chain) {
								return true
							}
						}
					}
				}
			}
		}
		return false
	}
	return visit(chain)
}

// MatchesUntracked is whether a rule that asks for something of a connection may
// match a packet that is not tracked: that has the state untracked, and nothing
// else that could be asked for (net/netfilter/nft_ct.c, nft_ct_get_eval).
func MatchesUntracked(t *host.NFTTable, r *host.NFTRule) bool {
	l := &language{table: t}
	asked := false
	var at uint32
	mask := uint64(1<<32 - 1)
	for i := range r.Exprs {
		e := &r.Exprs[i]
		switch {
		case e.Name == "ct" && e.Sets:
		case e.Name == "ct" && e.Key != ctState:
			return false
		case e.Name == "ct":
			asked, at, mask = true, e.Dst, 1<<32-1
		case e.Name == "match" || e.Name == "target":
			return false
		case !asked:
		case e.Name == "bitwise" && e.Src == at && len(e.Mask) == 4 && number(e.Xor) == 0:
			at, mask = e.Dst, uint64(number(e.Mask))
		case e.Name == "cmp" && e.Src == at && len(e.Data) == 4:
			if is := ctUntracked&mask == uint64(number(e.Data)); is != (e.Op == cmpEq) {
				return false
			}
		case e.Name == "lookup" && e.Src == at:
			s := l.set(e.Set)
			if s == nil {
				return true
			}
			found := false
			for element, err := range s.Elements.All() {
				found = found || err != nil || element.Any || len(element.Key) == 4 && number(element.Key) == ctUntracked
			}
			const inverted = 1
			if found == (e.Flags&inverted != 0) {
				return false
			}
		}
	}
	return asked
}
