package nftconf

import (
	"slices"
	"strconv"

	"github.com/ctplan/ctplan/planner/host"
)

var (
	verbs    = []string{"add", "create", "insert", "replace", "delete", "flush", "destroy", "rename", "reset"}
	families = []string{"ip", "ip6", "inet", "arp", "bridge", "netdev"}
	// twoWords begin the kinds of objects that have two.
	twoWords = []string{"ct"}
	// idle are commands that change nothing.
	idle = []string{"list", "describe", "get", "monitor", "export", "reset"}
)

// command is one at the top of a file, taken apart.
type command struct {
	verb   string // empty: add, without the word
	kind   string // table, chain, rule, element, set, …
	family string
	names  []string // of the table and what stands in it, as far as there are words
	said   int      // words before names
	head   []token  // up to a brace
}

func parseCommand(head []token) command {
	c := command{family: "ip", head: head}
	words := texts(head)
	next := func() (w string) {
		if c.said < len(words) {
			w = words[c.said]
		}
		c.said++
		return w
	}
	peek := func() string {
		if c.said < len(words) {
			return words[c.said]
		}
		return ""
	}
	if slices.Contains(verbs, peek()) {
		c.verb = next()
	}
	switch {
	case slices.Contains(families, peek()):
		c.kind = "rule" // "inet fw in accept": the word is left out
	case len(words) > c.said+1 && slices.Contains(twoWords, peek()):
		c.kind = next() + " " + next()
	case slices.Contains([]string{"table", "chain", "rule", "set", "map", "element", "flowtable", "ruleset", "counter", "quota", "limit", "secmark", "synproxy"}, peek()),
		c.verb == "flush", c.verb == "delete", c.verb == "destroy", slices.Contains(idle, peek()):
		c.kind = next()
	default:
		c.kind = "rule"
	}
	if slices.Contains(families, peek()) {
		c.family = next()
	}
	if c.said < len(words) {
		c.names = words[c.said:]
	}
	return c
}

// statement takes one at the top of a file: a table, or a command.
func (l *loader) statement() {
	l.separators()
	if l.at >= len(l.tokens) || l.define() {
		return
	}
	start := l.at
	head := l.header()
	if len(head) == 0 {
		l.doubt(&l.tokens[l.at], "a brace where none can be")
		if l.peek() == "}" {
			l.at++
			return
		}
		l.take()
		return
	}
	c := parseCommand(head)
	if opens := l.peek() == "{"; opens && len(c.names) > 0 && (c.verb == "" || c.verb == "add" || c.verb == "create") {
		switch {
		case c.kind == "table" && len(c.names) == 1:
			t := l.table(c.family, c.names[0], head)
			l.body(func() { l.inTable(t) })
			return
		case c.kind == "chain" && len(c.names) == 2:
			chain := l.chain(l.table(c.family, c.names[0], head), c.names[1], head)
			l.body(func() { l.inChain(c.family, chain) })
			return
		}
	}
	l.at = start
	all, inner := l.take()
	if len(all) == 0 {
		return
	}
	l.command(c, all, inner)
}

// command carries out one that has no body.
func (l *loader) command(c command, all []token, inner bool) {
	names := len(c.names)
	takes := c.verb == "delete" || c.verb == "flush" || c.verb == "destroy"
	switch {
	case slices.Contains(idle, c.kind), c.verb == "reset":
	case c.kind == "ruleset" && c.verb == "flush":
		l.flush(c, all)
	case names == 0, c.names[0] == "handle":
		l.doubt(&all[0], "ctplan cannot follow this")
	case c.kind == "table" && takes:
		l.forget(c, "")
	case c.kind == "table":
		l.table(c.family, c.names[0], c.head)
	case names < 2, c.names[1] == "handle":
		l.doubt(&all[0], "ctplan cannot follow this")
	case c.kind == "chain" && takes:
		l.forget(c, c.names[1])
	case c.kind == "chain" && c.verb == "rename":
		t := l.table(c.family, c.names[0], c.head)
		if chain := chainOf(t, c.names[1]); chain != nil && names == 3 {
			chain.Name = c.names[2]
		}
	case c.kind == "chain":
		l.chain(l.table(c.family, c.names[0], c.head), c.names[1], c.head)
	case c.kind == "rule":
		l.addRule(c, all, inner)
	case c.kind == "element" || c.verb == "flush": // what is in a set is not kept
	case takes:
		t := l.table(c.family, c.names[0], c.head)
		t.Items = slices.DeleteFunc(t.Items, func(i host.NFTConfItem) bool { return i.Kind == c.kind && i.Name == c.names[1] })
	default:
		l.item(l.table(c.family, c.names[0], c.head), append([]string{c.kind}, c.names[1:2]...), all)
	}
}

func (l *loader) flush(c command, all []token) {
	whole := len(all) == 2
	l.conf.Flush = l.site(all)
	l.conf.Tables = slices.DeleteFunc(l.conf.Tables, func(t host.NFTConfTable) bool { return whole || t.Family == c.family })
}

// forget is for what takes away what was declared so far: the rules of chains, or
// the chains with them.
func (l *loader) forget(c command, chain string) {
	i := slices.IndexFunc(l.conf.Tables, func(t host.NFTConfTable) bool { return t.Family == c.family && t.Name == c.names[0] })
	if i < 0 {
		return
	}
	t := &l.conf.Tables[i]
	switch {
	case c.verb != "flush" && chain == "":
		l.conf.Tables = slices.Delete(l.conf.Tables, i, i+1)
	case c.verb != "flush":
		t.Chains = slices.DeleteFunc(t.Chains, func(c host.NFTConfChain) bool { return c.Name == chain })
	default:
		for k := range t.Chains {
			if chain == "" || t.Chains[k].Name == chain {
				t.Chains[k].Rules = nil
			}
		}
	}
}

// addRule puts a rule where a command says: last, first, or by an index, which
// counts from 0.
func (l *loader) addRule(c command, all []token, inner bool) {
	chain := l.chain(l.table(c.family, c.names[0], c.head), c.names[1], c.head)
	said, at := c.said+2, len(chain.Rules)
	if c.verb == "insert" {
		at = 0
	}
	if len(all) > said+1 && slices.Contains([]string{"index", "handle", "position"}, all[said].Text) {
		n, err := strconv.Atoi(all[said+1].Text)
		if all[said].Text != "index" || err != nil || n < 0 || n >= len(chain.Rules) {
			chain.Doubt = l.place(&all[0]) + ": a rule whose place is not known"
			return
		}
		if at = n; c.verb != "insert" {
			at++
		}
		said += 2
	}
	switch {
	case c.verb == "delete" || c.verb == "destroy" || c.verb == "replace" || c.verb == "flush":
		chain.Doubt = l.place(&all[0]) + ": it is not known which rule this is"
	case len(all) > said:
		if r, ok := l.rule(all, all[said:], inner); ok {
			chain.Rules = slices.Insert(chain.Rules, at, r)
		}
	default:
		l.doubt(&all[0], "ctplan cannot follow this")
	}
}
