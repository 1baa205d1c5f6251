// Package words is how sentences of plans write numbers, lists and commands.
package words

import (
	"fmt"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Plural is a number with the noun that fits it.
func Plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Joined is a list of names with the verb that fits it.
func Joined(names []string, one, many string) string {
	if len(names) == 1 {
		return names[0] + " " + one
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1] + " " + many
}

// MiB is a number of bytes as people read memory.
func MiB(b int64) string {
	if b < 10<<20 {
		return fmt.Sprintf("%d KiB", b>>10)
	}
	return fmt.Sprintf("%d MiB", b>>20)
}

// Or is s, or def where s is empty.
func Or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Ports is a range as people write it: "22", "8000-8010".
func Ports(r host.PortRange) string {
	if r.From == r.To {
		return fmt.Sprint(r.From)
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// ShellWords writes words so that a POSIX shell reads them back.
func ShellWords(words ...string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,:=+@%") != "" {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// Examples lists examples, at most three.
func Examples(list []string) string {
	if len(list) > 3 {
		return strings.Join(list[:3], ", ") + ", …"
	}
	return strings.Join(list, ", ")
}

// Set is a set of words.
func Set(words ...string) map[string]bool {
	m := make(map[string]bool, len(words))
	for _, w := range words {
		m[w] = true
	}
	return m
}
