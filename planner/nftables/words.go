package nftables

import (
	"slices"
	"strconv"
	"strings"
)

// Words splits a line of nft's language into words, strings with their opening
// quote, and single marks; comments are left out.
func Words(line string) []string {
	var words []string
	for i := 0; i < len(line); {
		c := line[i]
		switch {
		case c == '#':
			return words
		case c == '"':
			end := strings.IndexByte(line[i+1:], '"')
			if end < 0 {
				end = len(line) - i - 1
			}
			words = append(words, line[i:i+1+end])
			i += end + 2
		case isWord(c):
			start := i
			for i < len(line) && isWord(line[i]) {
				i++
			}
			words = append(words, line[start:i])
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		default:
			words = append(words, line[i:i+1])
			i++
		}
	}
	return words
}

func isWord(c byte) bool {
	return c == '_' || c == '-' || c == '.' || c == '/' || c == '@' || c == '$' || c-'0' < 10 || c|0x20-'a' < 26 || c >= 0x80
}

// Canonical is one spelling for rules that differ in their counters and comments,
// in quotes, and in the order of what stands in braces. It knows no other
// differences: rules of two spellings may still mean the same.
func Canonical(words []string) string {
	var out []string
	for i := 0; i < len(words); i++ {
		switch w := words[i]; {
		case w == "counter":
			for i+2 < len(words) && (words[i+1] == "packets" || words[i+1] == "bytes") {
				i += 2
			}
		case w == "comment" && i+1 < len(words) && strings.HasPrefix(words[i+1], `"`):
			i++
		case w == "{":
			end := i + 1
			for end < len(words) && words[end] != "}" && words[end] != "{" {
				end++
			}
			if end < len(words) && words[end] == "}" {
				out = append(out, "{"+elements(words[i+1:end])+"}")
				i = end
			} else {
				out = append(out, w)
			}
		default:
			out = append(out, strings.TrimPrefix(w, `"`))
		}
	}
	return strings.Join(out, " ")
}

// elements are those of a set, in order.
func elements(words []string) string {
	var list []string
	for element := range strings.SplitSeq(strings.Join(words, " "), ",") {
		if element = strings.TrimSpace(strings.ReplaceAll(element, `"`, "")); element != "" {
			list = append(list, element)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// priorities by nft's names (nft(8)); those of bridges differ.
var priorities = map[string]int{"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}

// Base is where a chain is called, as "TYPE HOOK PRIORITY", by the words that
// declare it. ok is false where that is not clear.
func Base(words []string) (base string, ok bool) {
	if len(words) < 6 || words[0] != "type" || words[2] != "hook" || words[4] != "priority" {
		return "", false
	}
	n, err := strconv.Atoi(words[5])
	if err != nil {
		if n, ok = priorities[words[5]]; !ok {
			return "", false
		}
	}
	if rest := words[6:]; len(rest) == 2 && (rest[0] == "+" || rest[0] == "-") {
		by, err := strconv.Atoi(rest[1])
		if err != nil {
			return "", false
		}
		if rest[0] == "-" {
			by = -by
		}
		n += by
	} else if len(rest) > 0 {
		return "", false
	}
	return BaseOf(words[1], words[3], n), true
}

// BaseOf is the same by its parts.
func BaseOf(kind, hook string, priority int) string {
	return kind + " " + hook + " " + strconv.Itoa(priority)
}
