package nftables

import "strings"

// Token is a word of nft's language with its place. The end of a line is one
// too, "\n"; a string keeps its opening quote alone, which no word begins with.
type Token struct {
	Text       string
	Line       int32 // from 1
	Start, End int32 // bytes of the text
	// Odd is of the end of a line that is a comment, behind a line that goes on:
	// newer releases of nft read over it, older ones end the statement there.
	Odd bool
}

// Tokens takes a text apart as nft's src/scanner.l does, as far as statements,
// names and strings go: numbers, addresses and operators are words and marks.
// closed is false where a string, or a comment, has no end.
func Tokens(content string) (tokens []Token, closed bool) {
	line, goesOn, closed := int32(1), false, true
	fresh := true // nothing but blanks on this line yet
	add := func(text string, start, end int) {
		tokens = append(tokens, Token{Text: text, Line: line, Start: int32(start), End: int32(end)})
		fresh = false
	}
	for i := 0; i < len(content); {
		switch c := content[i]; {
		case c == '\n':
			add("\n", i, i+1)
			line, fresh, goesOn = line+1, true, false
			i++
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '#':
			end := strings.IndexByte(content[i:], '\n')
			if end < 0 { // nft knows no comment that no newline ends
				return tokens, false
			}
			i += end
			if fresh && goesOn {
				add("\n", i, i+1)
				tokens[len(tokens)-1].Odd = true
				line, fresh, goesOn = line+1, true, false
				i++
			}
		case c == '\\' && continues(content[i+1:]) > 0:
			i += 1 + continues(content[i+1:])
			line, fresh, goesOn = line+1, true, true
		case c == '"':
			end := strings.IndexByte(content[i+1:], '"')
			if end < 0 {
				end, closed = len(content)-i-1, false
			}
			text := content[i : i+1+end]
			add(text, i, min(i+2+end, len(content)))
			line += int32(strings.Count(text, "\n"))
			i += end + 2
		case isWord(c):
			start := i
			for i < len(content) && isWord(content[i]) {
				i++
			}
			add(content[start:i], start, i)
		default:
			add(content[i:i+1], i, i+1)
			i++
		}
	}
	return tokens, closed
}

// continues is how many bytes end the line behind a backslash; 0: none do.
func continues(rest string) int {
	switch {
	case strings.HasPrefix(rest, "\n"):
		return 1
	case strings.HasPrefix(rest, "\r\n"):
		return 2
	}
	return 0
}

func isWord(c byte) bool {
	return c == '_' || c == '-' || c == '.' || c == '/' || c == '@' || c == '$' || c == '*' || c-'0' < 10 || c|0x20-'a' < 26 || c >= 0x80
}

// Words splits nft's language into words, strings with their opening quote, and
// single marks; comments and ends of lines are left out.
func Words(text string) []string {
	tokens, _ := Tokens(text)
	words := make([]string, 0, len(tokens))
	for i := range tokens {
		if tokens[i].Text != "\n" {
			words = append(words, tokens[i].Text)
		}
	}
	return words
}
