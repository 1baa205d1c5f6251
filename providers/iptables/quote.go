package iptables

import "strings"

// Quote writes a string as iptables-save does (xtables_save_string in
// libxtables): bare if it is made of letters, digits, "_" and "-" alone, else
// in double quotes with a backslash before ", \ and '.
func Quote(word string) string {
	if plain(word) {
		return word
	}
	var b strings.Builder
	b.Grow(len(word) + 2)
	b.WriteByte('"')
	for i := 0; i < len(word); i++ {
		if c := word[i]; c == '"' || c == '\\' || c == '\'' {
			b.WriteByte('\\')
		}
		b.WriteByte(word[i])
	}
	b.WriteByte('"')
	return b.String()
}

func plain(word string) bool {
	for i := 0; i < len(word); i++ {
		switch c := word[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return word != ""
}

// Words are those of a rule as iptables-save prints it behind "-A CHAIN ".
func Words(rule string) []string {
	words, _, _ := splitWords(nil, rule, nil)
	return words
}

// splitWords appends the words of a line to dst, as iptables-restore reads
// them (add_param_to_argv in xshared.c): a quote may open within a word, the
// closing quote always ends the word, and a backslash escapes only within
// quotes. buf is scratch space. It reports false when a quote stays open.
func splitWords(dst []string, s string, buf []byte) ([]string, []byte, bool) {
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
