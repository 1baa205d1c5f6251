package nftconf

import "strings"

// mostWords bounds what a definition, or a rule, may grow to: definitions name
// each other.
const mostWords = 20_000

// define takes a statement that defines a name, if that comes next. A name is
// looked up where it is used, at that point of the file.
func (l *loader) define() bool {
	switch l.peek() {
	case "define", "redefine":
		all, _ := l.take()
		if len(all) < 4 || all[2].Text != "=" {
			l.doubt(&all[0], "ctplan cannot follow this")
			return true
		}
		name := all[1].Text
		scope := l.defined[len(l.defined)-1]
		if all[0].Text == "redefine" {
			if s := l.scopeOf(name); s != nil {
				scope = s
			}
		}
		words, known := l.expand(all[3:])
		if !known {
			words = []string{"$" + name} // what uses it is not known either
		}
		value := make([]token, len(words))
		for i, w := range words {
			value[i].Text = w
		}
		scope[name] = value
		return true
	case "undefine":
		all, _ := l.take()
		if len(all) == 2 {
			delete(l.scopeOf(all[1].Text), all[1].Text)
		}
		return true
	}
	return false
}

// scopeOf is the innermost scope that defines a name; nil where none does.
func (l *loader) scopeOf(name string) map[string][]token {
	for i := len(l.defined) - 1; i >= 0; i-- {
		if _, ok := l.defined[i][name]; ok {
			return l.defined[i]
		}
	}
	return nil
}

// expand are the words of tokens, with what is defined in the place of its name,
// and sets in sets as one, as nft has them. known is false where a name is not
// defined, or all of it is too long.
func (l *loader) expand(tokens []token) (words []string, known bool) {
	known = true
	words = make([]string, 0, len(tokens))
	depth := 0
	add := func(w string, nested bool) {
		switch {
		case w == "{" && nested && depth > 0, w == "}" && nested && depth > 1:
			if w == "{" {
				depth++
			} else {
				depth--
			}
			return
		case w == "{":
			depth++
		case w == "}":
			depth--
		}
		words = append(words, w)
	}
	for i := range tokens {
		w := tokens[i].Text
		if w == "\n" {
			continue
		}
		before, name, isName := strings.Cut(w, "$")
		if !isName || strings.HasPrefix(w, `"`) {
			add(w, false)
			continue
		}
		scope := l.scopeOf(name)
		switch value := scope[name]; {
		case scope == nil, len(words)+len(value) > mostWords, before != "" && len(value) != 1:
			add(w, false)
			known = false
		case before != "": // "10.0.0.1-$last", "@$set"
			add(before+strings.TrimPrefix(value[0].Text, `"`), false)
			known = known && !strings.Contains(value[0].Text, "$")
		default:
			inSet := depth > 0
			for k := range value {
				add(value[k].Text, inSet)
				known = known && (value[k].Text[0] == '"' || !strings.Contains(value[k].Text, "$"))
			}
		}
	}
	return words, known
}
