package rules

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// meeting is how what the declared rules take out of tracking comes to a rule
// of others.
type meeting uint8

const (
	apart meeting = iota // never
	// rarely: a rule that translates is come to by no answer of a service, but by
	// what begins at the service's port: where this host opens a connection from
	// there, or where a translated one is given that port.
	rarely
	meets
)

// untracked is a set of packets that a rule in a raw table takes out of tracking.
type untracked struct {
	family host.Family
	hook   string
	xtables.Packets
	own   bool            // what is for this host alone
	ofOwn xtables.Packets // where own: what the rule says besides
}

// service is whether the packets are told by ports at this host's end.
func (u *untracked) service() bool {
	ports := u.DstPorts
	if u.hook == "OUTPUT" {
		ports = u.SrcPorts
	}
	return ports.Ranges != nil && !ports.Not
}

// elsewhere is whether packets are surely for others than this host.
func (p *stage) elsewhere(q xtables.PrefixSet) bool {
	own := p.l.Addresses
	if own == nil || q.Not || !q.Prefix.IsValid() || q.Prefix.Addr().IsMulticast() || q.Prefix.Overlaps(loopback) || q.Prefix == broadcast {
		return false
	}
	return !slices.ContainsFunc(own, func(a netip.Prefix) bool {
		return q.Prefix.Contains(a.Addr()) || a.Addr().Is4() && q.Prefix.Contains(lastOf(a))
	})
}

var (
	loopback  = netip.MustParsePrefix("127.0.0.0/8")
	broadcast = netip.MustParsePrefix("255.255.255.255/32")
)

// lastOf is the last address of a network of IPv4, to which broadcasts go.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// disjoint is whether surely none of u's packets is one of q.
func (p *stage) disjoint(u *untracked, q xtables.Packets) bool {
	return u.Disjoint(q) || u.own && p.elsewhere(q.Dst)
}

// gate is a chain that the kernel calls for packets that left tracking.
type gate struct {
	chain string
	u     untracked
	kind  meeting
}

// gates are the chains of a table that the kernel calls for u. What is for this
// host alone is not routed on. Yet the answers to what was routed, and translated
// to an address of this host, come to that address.
func (u *untracked) gates(table string) []gate {
	begins := meets
	if table == "nat" && u.service() {
		begins = rarely
	}
	if u.hook == "OUTPUT" {
		return []gate{{"OUTPUT", *u, begins}, {"POSTROUTING", *u, begins}}
	}
	out := []gate{{"PREROUTING", *u, meets}, {"INPUT", *u, meets}}
	switch {
	case !u.own:
		out = append(out, gate{"FORWARD", *u, meets}, gate{"POSTROUTING", *u, meets})
	case table == "nat":
		out = append(out, gate{"POSTROUTING", untracked{family: u.family, hook: u.hook, Packets: u.answered()}, begins})
	}
	return out
}

// answered are the packets that those of u answer, as far as it can be told
// ahead of a translation of who sent them.
func (u *untracked) answered() xtables.Packets {
	return xtables.Packets{Proto: u.Proto, NotProto: u.NotProto, Dst: u.Src, Out: u.In, DstPorts: u.SrcPorts}
}

// meetings are how the rules of a table that pick holds for are come to, by
// calls from one chain to the next. A call of a chain that does nothing with them
// is none. A rule in a chain that nothing calls is not in it.
func (p *stage) meetings(f host.Family, table string, sections []*host.Table, picked map[*host.Rule]bool) map[*host.Rule]meeting {
	rules, callers, calls, chains := map[string][]*host.Rule{}, map[string][]string{}, map[string][]string{}, map[string]bool{}
	for _, s := range sections {
		for _, c := range s.Chains {
			chains[c.Name] = true
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			rules[r.Chain] = append(rules[r.Chain], r)
			if to := calledBy(r.Words); to != "" {
				callers[to], calls[r.Chain] = append(callers[to], r.Chain), append(calls[r.Chain], to)
			}
		}
	}
	var wanted []string
	for r := range picked {
		wanted = append(wanted, r.Chain)
	}
	leads, called := closure(callers, wanted), closure(calls, xtables.Builtins[table])
	out := map[*host.Rule]meeting{}
	for r := range picked {
		if called[r.Chain] {
			out[r] = apart
		}
	}
	packets := map[*host.Rule]xtables.Packets{}
	of := func(r *host.Rule) xtables.Packets {
		q, ok := packets[r]
		if !ok {
			q = xtables.PacketsOf(xtables.Parse(r.Words))
			packets[r] = q
		}
		return q
	}
	for i := range p.untrack {
		if p.untrack[i].family != f {
			continue
		}
		for _, g := range p.untrack[i].gates(table) {
			// does is whether some rule of a chain does something with them.
			var does func(chain string, seen map[string]bool) bool
			does = func(chain string, seen map[string]bool) bool {
				if seen[chain] {
					return false
				}
				seen[chain] = true
				return slices.ContainsFunc(rules[chain], func(r *host.Rule) bool {
					to := calledBy(r.Words)
					return to != "RETURN" && !p.disjoint(&g.u, of(r)) && (!chains[to] || does(to, seen))
				})
			}
			seen := map[string]bool{}
			var visit func(chain string)
			visit = func(chain string) {
				if seen[chain] || !leads[chain] {
					return
				}
				seen[chain] = true
				for _, r := range rules[chain] {
					to := calledBy(r.Words)
					if !picked[r] && !leads[to] || p.disjoint(&g.u, of(r)) {
						continue
					}
					if picked[r] && (!chains[to] || does(to, map[string]bool{})) {
						out[r] = max(out[r], g.kind)
					}
					visit(to)
				}
			}
			visit(g.chain)
		}
	}
	return out
}

// closure is what can be reached from some.
func closure(next map[string][]string, from []string) map[string]bool {
	out := map[string]bool{}
	from = slices.Clone(from)
	for len(from) > 0 {
		name := from[len(from)-1]
		from = from[:len(from)-1]
		if !out[name] {
			out[name] = true
			from = append(from, next[name]...)
		}
	}
	return out
}

// meetsNative is how packets come to a rule of nftables' own that translates, at
// a hook, or wherever its chain is called from.
func (p *stage) meetsNative(f host.Family, hook string, q xtables.Packets) meeting {
	out := apart
	for i := range p.untrack {
		if p.untrack[i].family != f {
			continue
		}
		for _, g := range p.untrack[i].gates("nat") {
			if (hook == "" || builtIn[hook] == g.chain) && !p.disjoint(&g.u, q) {
				out = max(out, g.kind)
			}
		}
	}
	return out
}

// calledBy is the chain or target that a rule goes to; empty without one.
func calledBy(words []string) string {
	for i := len(words) - 2; i >= 0; i-- {
		switch words[i] {
		case "-j", "-g", "--jump", "--goto":
			return words[i+1]
		}
	}
	return ""
}

// untrackedBy are the packets that a rule of ctplan's takes out of tracking.
func untrackedBy(f host.Family, hook string, words []string, own bool) untracked {
	s := xtables.Parse(words)
	u := untracked{family: f, hook: hook, Packets: xtables.PacketsOf(s), own: own}
	if own {
		s.Matches = slices.DeleteFunc(slices.Clone(s.Matches), func(o xtables.Option) bool { return strings.HasPrefix(o.Name, "--dst-type") })
		s.Modules = slices.DeleteFunc(slices.Clone(s.Modules), func(m string) bool { return m == "addrtype" })
		u.ofOwn = xtables.PacketsOf(s)
	}
	return u
}
