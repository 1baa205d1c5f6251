package initscript

import (
	"fmt"
	"path"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/ctplan/ctplan/planner/host"
)

const arrayName = "NF_MODULES_COMMON"

// Parse finds the array of an init script, and what its stop and start do. A script that never names it has
// none, which is no refusal: the scripts of EL5 and of late EL7 and EL8 are so.
func Parse(f host.File) host.InitScript {
	s := host.InitScript{File: f}
	v := variable{name: arrayName, array: true}
	list, r := v.find(f.Content)
	s.Array, s.Refusal, s.RefusalLine = list, r.why, r.line
	behaviour(&s)
	return s
}

// ParseConfig finds the two lists of iptables-config, or of ip6tables-config,
// which the file's name tells apart.
func ParseConfig(f host.File) host.InitConfig {
	prefix := "IPTABLES_"
	if strings.HasPrefix(path.Base(f.Path), "ip6") {
		prefix = "IP6TABLES_"
	}
	c := host.InitConfig{File: f, ModulesName: prefix + "MODULES", SysctlLoadName: prefix + "SYSCTL_LOAD_LIST"}

	var mods, load refusal
	c.Modules, mods = variable{name: c.ModulesName}.find(f.Content)
	c.SysctlLoad, load = variable{name: c.SysctlLoadName}.find(f.Content)
	if mods.why == "" {
		mods = load
	}
	c.Refusal, c.RefusalLine = mods.why, mods.line
	return c
}

// refusal is why a list cannot be edited; the zero value is no refusal.
type refusal struct {
	why  string
	line int
}

// variable is the list to look for: an array, or a string of words.
type variable struct {
	name  string
	array bool
}

// find returns the list, or nil where the text never names it, or a refusal.
func (v variable) find(text string) (*host.WordList, refusal) {
	first := v.in(text)
	if first < 0 { // most scripts: no need to parse
		return nil, refusal{}
	}
	if at := strings.IndexAny(text, "\x00\r"); at >= 0 {
		return nil, refusal{"the script has bytes that shells read differently (a NUL or a carriage return)", lineAt(text, at)}
	}
	script, err := syntax.NewParser(syntax.Variant(syntax.LangBash), syntax.KeepComments(true)).Parse(strings.NewReader(text), "")
	if err != nil {
		line := lineAt(text, first)
		if e, ok := err.(syntax.ParseError); ok && e.Pos.IsValid() {
			line = lineAt(text, min(int(e.Pos.Offset()), len(text)))
		}
		return nil, refusal{"the script is not valid bash", line}
	}

	uses := v.uses(script)
	var def *syntax.Assign
	for _, u := range uses {
		line := lineAt(text, int(u.node.Pos().Offset()))
		switch {
		case u.why != "":
			return nil, refusal{v.name + " " + u.why, line}
		case def != nil:
			return nil, refusal{fmt.Sprintf("%s is assigned twice, on line %d and here", v.name, lineAt(text, int(def.Pos().Offset()))), line}
		default:
			def = u.node.(*syntax.Assign)
		}
	}
	if def == nil {
		return nil, refusal{}
	}
	list := &host.WordList{Line: lineAt(text, int(def.Pos().Offset()))}
	var r refusal
	if v.array {
		r = readArray(text, def, list)
	} else {
		r = readString(text, def, list)
	}
	if r.why != "" {
		return nil, refusal{v.name + " " + r.why, r.line}
	}
	return list, refusal{}
}

// readArray reads NAME=(words).
func readArray(text string, def *syntax.Assign, list *host.WordList) refusal {
	a := def.Array
	if a == nil {
		return refusal{"is not assigned as an array", list.Line}
	}
	open, end := int(a.Lparen.Offset()), int(a.Rparen.Offset())
	if end >= len(text) || text[open] != '(' || text[end] != ')' {
		return refusal{"is an array whose place is not certain", list.Line}
	}
	list.Inner = host.Span{Start: open + 1, End: end}
	for _, e := range a.Elems {
		line := lineAt(text, int(e.Pos().Offset()))
		if e.Index != nil {
			return refusal{"has an element with an index", line}
		}
		s := host.Span{Start: int(e.Value.Pos().Offset()), End: int(e.Value.End().Offset())}
		w, ok := static(text[s.Start:s.End])
		// Bash reads ''# as one word, the parser as a word and a comment: what
		// does not stand apart is not certain.
		if !ok || strings.IndexByte(" \t\n)", text[s.End]) < 0 {
			return refusal{"has an element that is not a plain word", line}
		}
		list.Words = append(list.Words, host.Word{Text: w, Span: s})
	}
	return refusal{}
}

// readString reads NAME="words", NAME='words', NAME=word or NAME=.
func readString(text string, def *syntax.Assign, list *host.WordList) refusal {
	if def.Array != nil {
		return refusal{"is assigned as an array", list.Line}
	}
	var s host.Span
	if def.Value == nil {
		s.Start = int(def.End().Offset())
		s.End = s.Start
		if text[s.Start-1] != '=' {
			return refusal{"is a string whose place is not certain", list.Line}
		}
	} else {
		s = host.Span{Start: int(def.Value.Pos().Offset()), End: int(def.Value.End().Offset())}
		raw := text[s.Start:s.End]
		if _, ok := static(raw); !ok || s.End < len(text) && strings.IndexByte(" \t\n;", text[s.End]) < 0 {
			return refusal{"is not a plain string", list.Line}
		}
		if raw[0] == '"' || raw[0] == '\'' {
			s.Start++
			s.End--
		}
	}
	list.Inner = s
	at := s.Start
	for at < s.End {
		n := strings.IndexAny(text[at:s.End], " \t\n")
		if n < 0 {
			n = s.End - at
		}
		if n > 0 {
			list.Words = append(list.Words, host.Word{Text: text[at : at+n], Span: host.Span{Start: at, End: at + n}})
		}
		at += n + 1
	}
	return refusal{}
}

// bareBytes are those that mean only themselves, wherever they stand in an
// unquoted word.
const bareBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:,+@%"

// static unquotes a word that no shell would expand: all of it bare, or all
// of it in one pair of quotes.
func static(raw string) (string, bool) {
	if len(raw) >= 2 && (raw[0] == '"' || raw[0] == '\'') && raw[len(raw)-1] == raw[0] {
		inner := raw[1 : len(raw)-1]
		special := raw[:1]
		if raw[0] == '"' {
			special = "\"$`\\!"
		}
		for i := 0; i < len(inner); i++ {
			c := inner[i]
			if strings.IndexByte(special, c) >= 0 || c < ' ' && c != '\t' && c != '\n' || c > '~' {
				return "", false
			}
		}
		return inner, true
	}
	return raw, raw != "" && strings.Trim(raw, bareBytes) == ""
}

func lineAt(text string, offset int) int { return 1 + strings.Count(text[:offset], "\n") }
