package iptables

import (
	"strings"

	"github.com/ctplan/ctplan/planner/xtables"
)

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
	return xtables.Words(rule)
}
