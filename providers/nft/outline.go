package nft

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// maxOutline bounds how many rules of a file are placed.
const maxOutline = 100_000

// outline finds where a rules file of nft declares tables, chains and rules. It
// does not parse what the rules say; it goes by words, braces and the ends of
// statements. Names that are made of variables are left out.
func outline(content string) (chains []host.NFTFileChain, flush int) {
	o := outliner{words: wordsOf(content), byName: map[[3]string]int{}}
	for o.at < len(o.words) {
		o.statement()
	}
	return o.chains, o.flush
}

// placed is a word with its line. The end of a line is a word too: "\n".
type placed struct {
	text string
	line int
}

func wordsOf(content string) []placed {
	var out []placed
	line := 0
	for text := range strings.Lines(content) {
		line++
		goesOn := strings.HasSuffix(strings.TrimRight(text, "\r\n"), `\`)
		for _, w := range nftables.Words(text) {
			if w != `\` {
				out = append(out, placed{w, line})
			}
		}
		if !goesOn {
			out = append(out, placed{"\n", line})
		}
	}
	return out
}

type outliner struct {
	words  []placed
	at     int
	rules  int
	chains []host.NFTFileChain
	flush  int
	byName map[[3]string]int // in chains: family, table, chain
}

func (o *outliner) peek() string {
	if o.at < len(o.words) {
		return o.words[o.at].text
	}
	return ""
}

func ends(word string) bool { return word == "" || word == "\n" || word == ";" }

// header takes the words up to a brace or the end of the statement, and the
// brace.
func (o *outliner) header() (words []string, line int, opens bool) {
	for ; o.at < len(o.words) && o.peek() != "}"; o.at++ {
		w := o.words[o.at]
		if ends(w.text) {
			if len(words) > 0 {
				break
			}
			continue
		}
		if w.text == "{" {
			o.at++
			return words, line, true
		}
		if len(words) == 0 {
			line = w.line
		}
		words = append(words, w.text)
	}
	return words, line, false
}

// skip goes to behind the brace that closes what is open.
func (o *outliner) skip() {
	for depth := 1; o.at < len(o.words) && depth > 0; o.at++ {
		switch o.peek() {
		case "{":
			depth++
		case "}":
			depth--
		}
	}
}

// statement takes one at the top of a file: a table, or a command.
func (o *outliner) statement() {
	start := o.at
	words, line, opens := o.header()
	header := len(words)
	if o.peek() == "}" && !opens {
		o.at++ // closes nothing
	}
	if len(words) == 0 {
		if opens {
			o.skip()
		}
		return
	}
	verb := ""
	if slices.Contains([]string{"add", "create", "insert", "replace", "delete", "flush", "destroy"}, words[0]) {
		verb, words = words[0], words[1:]
	}
	kind := ""
	if len(words) > 0 {
		kind, words = words[0], words[1:]
	}
	family := "ip"
	if len(words) > 0 && slices.Contains([]string{"ip", "ip6", "inet", "arp", "bridge", "netdev"}, words[0]) {
		family, words = words[0], words[1:]
	}
	switch {
	case kind == "table" && opens && len(words) == 1:
		o.table(family, words[0], line)
		return
	case kind == "ruleset" && verb == "flush" && len(words) == 0 && !opens:
		o.flush = line
		o.forget(func(*host.NFTFileChain) bool { return true }, true)
	case kind == "table" && len(words) == 1 && (verb == "delete" || verb == "flush" || verb == "destroy"):
		o.forget(func(c *host.NFTFileChain) bool { return c.Family == family && c.Table == words[0] }, verb != "flush")
	case kind == "chain" && len(words) == 2 && (verb == "delete" || verb == "flush" || verb == "destroy"):
		o.forget(func(c *host.NFTFileChain) bool {
			return c.Family == family && c.Table == words[0] && c.Name == words[1]
		}, verb != "flush")
	case kind == "chain" && len(words) > 1 && (verb == "add" || verb == "create"):
		c := o.chain(family, words[0], words[1], line)
		if opens {
			o.body(c)
			o.rest()
			return
		}
	case kind == "rule" && len(words) > 1:
		said := header - len(words) + 2 // words before those of the rule
		if opens {
			o.skip()
			o.rest()
			opens = false
		}
		o.command(verb, o.chain(family, words[0], words[1], line), o.between(start, o.at)[said:], line)
	}
	if opens {
		o.skip()
	}
}

// forget is for what takes away what a file has declared so far: the rules of
// chains, or the chains with them.
func (o *outliner) forget(of func(*host.NFTFileChain) bool, whole bool) {
	kept := o.chains[:0]
	clear(o.byName)
	for _, c := range o.chains {
		if of(&c) {
			if whole {
				continue
			}
			c.Rules, c.Texts = nil, nil
		}
		o.byName[[3]string{c.Family, c.Table, c.Name}] = len(kept)
		kept = append(kept, c)
	}
	o.chains = kept
}

// rest goes to the end of a statement that has braces in it.
func (o *outliner) rest() {
	for o.at < len(o.words) && !ends(o.peek()) && o.peek() != "}" {
		o.at++
		if o.words[o.at-1].text == "{" {
			o.skip()
		}
	}
}

// command is a rule by itself: one that is added comes last. After any other
// the order of the rules is not known from the file.
func (o *outliner) command(verb string, c *host.NFTFileChain, words []string, line int) {
	if c == nil {
		return
	}
	byPlace := len(words) > 0 && slices.Contains([]string{"position", "handle", "index"}, words[0])
	if verb == "add" && !byPlace {
		o.rule(c, line, words)
		return
	}
	c.Unsure = true
}

func (o *outliner) rule(c *host.NFTFileChain, line int, words []string) {
	if o.rules++; o.rules > maxOutline {
		c.Unsure = true
		return
	}
	c.Rules = append(c.Rules, line)
	c.Texts = append(c.Texts, nftables.Canonical(words))
}

// chain is the chain of that name, declared at line if it is new.
func (o *outliner) chain(family, table, name string, line int) *host.NFTFileChain {
	if strings.ContainsAny(table+name, `$"`) {
		return nil
	}
	id := [3]string{family, table, name}
	if i, ok := o.byName[id]; ok {
		return &o.chains[i]
	}
	if len(o.chains) >= maxOutline {
		return nil
	}
	o.byName[id] = len(o.chains)
	o.chains = append(o.chains, host.NFTFileChain{Family: family, Table: table, Name: name, Line: line})
	return &o.chains[len(o.chains)-1]
}

// table takes what stands in a table's braces.
func (o *outliner) table(family, name string, line int) {
	o.chain(family, name, "", line)
	for o.at < len(o.words) {
		words, line, opens := o.header()
		switch {
		case opens && len(words) == 2 && words[0] == "chain":
			o.body(o.chain(family, name, words[1], line))
		case opens:
			o.skip()
		case o.peek() == "}":
			o.at++
			return
		}
	}
}

// body takes what stands in a chain's braces.
func (o *outliner) body(c *host.NFTFileChain) {
	for o.at < len(o.words) {
		w := o.words[o.at]
		switch {
		case w.text == "}":
			o.at++
			return
		case ends(w.text):
			o.at++
			continue
		}
		start := o.at
		o.rest()
		if c != nil {
			o.part(c, w, o.between(start, o.at))
		}
	}
}

// between are the words from one place to another, of whatever lines, without
// the ends of statements before them.
func (o *outliner) between(start, end int) (words []string) {
	for _, w := range o.words[start:end] {
		if w.text != "\n" && (w.text != ";" || len(words) > 0) {
			words = append(words, w.text)
		}
	}
	return words
}

// part takes one statement of a chain's body.
func (o *outliner) part(c *host.NFTFileChain, first placed, words []string) {
	switch first.text {
	case "type":
		base, ok := nftables.Base(words)
		c.Unsure = c.Unsure || !ok || c.Base != "" && c.Base != base
		c.Base = base
	case "policy":
		c.Policy = words[len(words)-1]
	case "comment":
	case "include", "define", "flags", "device", "devices", "redefine", "undefine":
		c.Unsure = true
	default:
		o.rule(c, first.line, words)
	}
}
