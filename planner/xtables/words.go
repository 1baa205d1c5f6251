package xtables

import "strings"

// Words are those of a rule as iptables-save prints it behind "-A CHAIN ".
func Words(rule string) []string {
	words, _, _ := SplitWords(nil, rule, nil)
	return words
}

// RawWords are the same as they are written, quotes kept.
func RawWords(rule string) []string {
	var out []string
	for i := 0; i < len(rule); {
		if rule[i] == ' ' || rule[i] == '\t' {
			i++
			continue
		}
		end := i + rawWord(rule[i:])
		out = append(out, rule[i:end])
		i = end
	}
	return out
}

// rawWord is the length of the word that s begins with.
func rawWord(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case quoted && c == '"':
			return i + 1
		case c == '"':
			quoted = true
		case !quoted && (c == ' ' || c == '\t'):
			return i
		}
	}
	return len(s)
}

// SplitWords appends the words of a line to dst, as iptables-restore reads
// them (add_param_to_argv in xshared.c): a quote may open within a word, the
// closing quote always ends the word, and a backslash escapes only within
// quotes. buf is scratch space. It reports false when a quote stays open.
func SplitWords(dst []string, s string, buf []byte) ([]string, []byte, bool) {
	for i := 0; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' {
			i++
			continue
		}
		// Nearly every word is bare, or quoted as a whole and without escapes.
		start := i
		for i < len(s) && s[i] != ' ' && s[i] != '\t' && s[i] != '"' {
			i++
		}
		if i == len(s) || s[i] != '"' {
			dst = append(dst, s[start:i])
			continue
		}
		quoted := s[i+1:]
		end := strings.IndexByte(quoted, '"')
		if end < 0 {
			return dst, buf, false
		}
		if start == i && strings.IndexByte(quoted[:end], '\\') < 0 {
			dst = append(dst, quoted[:end])
			i += end + 2
			continue
		}
		buf = append(buf[:0], s[start:i]...)
		for i++; ; i++ {
			if i == len(s) {
				return dst, buf, false
			}
			if s[i] == '"' {
				i++
				break
			}
			if s[i] == '\\' {
				if i++; i == len(s) {
					return dst, buf, false
				}
			}
			buf = append(buf, s[i])
		}
		dst = append(dst, string(buf))
	}
	return dst, buf, true
}
