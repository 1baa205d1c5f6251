package translate

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/xtables"
)

// part is an option of a rule, with its text as it is written.
type part struct {
	xtables.Option
	text string
}

// group is a match of a rule: its module and the options that belong to it.
type group struct {
	module string
	parts  []part
}

// layout is a rule in the order in which iptables-save prints it: addresses,
// interfaces and protocol, then the matches, then the target.
type layout struct {
	head   []part
	groups []group
	target string // of -j or -g
	tail   string // the target and its options, as written
}

// headOrder is that of save_rule4 and save_rule6 in iptables' xshared.c.
var headOrder = []string{"-4", "-6", "--ipv4", "--ipv6", "-s", "-d", "-i", "-o", "-p", "-f"}

// layoutOf reads a rule. It reports false for one that is not written as its
// words say.
func layoutOf(rule *host.Rule) (l layout, ok bool) {
	raw := xtables.RawWords(rule.Text)
	if len(raw) != len(rule.Words) {
		return l, false
	}
	pieces := xtables.Pieces(rule.Words)
	modules := []int{-1} // where the group of the nth module is
	proto := ""
	for _, p := range pieces {
		if p.Name == "-p" && len(p.Args) == 1 {
			proto = protocolName(p.Args[0])
		}
	}
	var tail []string
	for _, p := range pieces {
		text := strings.Join(raw[p.From:p.To], " ")
		switch {
		case p.IsModule:
			modules = append(modules, l.module(p.Name, true))
		case p.OfTarget:
			if p.IsTarget {
				l.target = p.Name
			}
			tail = append(tail, text)
		case slices.Contains(headOrder, p.Name):
			l.head = append(l.head, part{p.Option, text})
		default:
			at := modules[min(p.Module, len(modules)-1)]
			if m := moduleOf(p.Name, proto); m != "" {
				at = l.module(m, false)
			}
			if at < 0 {
				return l, false
			}
			l.groups[at].parts = append(l.groups[at].parts, part{p.Option, text})
		}
	}
	l.tail = strings.Join(tail, " ")
	return l, true
}

// protocolName is how iptables-save prints a protocol, or "all".
func protocolName(arg string) string {
	if n, ok := protocol.Number(arg); ok && n > 0 {
		return protocol.Name(n)
	}
	return protocol.Canonical(arg)
}

// module is where the group of a module is. A match that is named again begins
// anew, but for those of protocols, which iptables-save prints once.
func (l *layout) module(name string, again bool) int {
	if i := slices.IndexFunc(l.groups, func(g group) bool { return g.module == name }); i >= 0 && (!again || ofProtocol(name)) {
		return i
	}
	l.groups = append(l.groups, group{module: name})
	return len(l.groups) - 1
}

func ofProtocol(module string) bool {
	switch module {
	case "tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6":
		return true
	}
	return false
}

// moduleOf is the match that an option belongs to wherever it stands: those of
// the protocol need not be named.
func moduleOf(option, proto string) string {
	switch option {
	case "--sport", "--dport":
		if ofProtocol(proto) {
			return proto
		}
	case "--tcp-flags", "--syn", "--tcp-option":
		return "tcp"
	case "--icmp-type":
		return "icmp"
	case "--icmpv6-type":
		return "icmp6"
	}
	return ""
}

// isState holds for the matches that are translated.
func (g *group) isState() bool { return g.module == "state" || g.module == "conntrack" }

// text is the rule as iptables-save prints it behind "-A CHAIN ".
func (l *layout) text() string {
	head := slices.Clone(l.head)
	slices.SortStableFunc(head, func(a, b part) int { return slices.Index(headOrder, a.Name) - slices.Index(headOrder, b.Name) })
	var w []string
	for _, p := range head {
		w = append(w, p.text)
	}
	for _, g := range l.groups {
		w = append(w, g.text())
	}
	if l.tail != "" {
		w = append(w, l.tail)
	}
	return strings.Join(w, " ")
}

func (g *group) text() string {
	w := []string{"-m " + g.module}
	for _, p := range g.parts {
		w = append(w, p.text)
	}
	return strings.Join(w, " ")
}

// clone is a copy whose parts may be changed.
func (l *layout) clone() layout {
	c := *l
	c.head = slices.Clone(l.head)
	c.groups = slices.Clone(l.groups)
	for i := range c.groups {
		c.groups[i].parts = slices.Clone(c.groups[i].parts)
	}
	return c
}

// option is the only part of the rule by this name. more is whether there are
// several.
func (l *layout) option(name string) (found *part, more bool) {
	look := func(parts []part) {
		for i := range parts {
			if parts[i].Name == name {
				more = found != nil
				found = &parts[i]
			}
		}
	}
	look(l.head)
	for i := range l.groups {
		look(l.groups[i].parts)
	}
	return found, more
}

// has reports whether a module is named.
func (l *layout) has(modules ...string) bool {
	return slices.ContainsFunc(l.groups, func(g group) bool { return slices.Contains(modules, g.module) })
}

// rule is the layout as a rule of the chain.
func (l *layout) rule(chain string) host.Rule {
	text := l.text()
	return host.Rule{Chain: chain, Text: text, Words: xtables.Words(text)}
}

// add gives the rule one more condition, at its place.
func (l *layout) add(name, text string) {
	p := part{xtables.Option{Name: name}, text}
	switch {
	case slices.Contains(headOrder, name):
		l.head = append(l.head, p)
		return
	}
	proto := ""
	if o, _ := l.option("-p"); o != nil && len(o.Args) == 1 {
		proto = protocolName(o.Args[0])
	}
	at := slices.IndexFunc(l.groups, func(g group) bool { return g.module == moduleOf(name, proto) })
	if at < 0 {
		return
	}
	g := &l.groups[at]
	g.parts = append(g.parts, p)
	slices.SortStableFunc(g.parts, func(a, b part) int { return slices.Index(protoOrder, a.Name) - slices.Index(protoOrder, b.Name) })
}

// protoOrder is that of the options of tcp (tcp_save in libxt_tcp.c) and others.
var protoOrder = []string{"--sport", "--dport", "--tcp-option", "--tcp-flags", "--syn"}
