package xtables

import "strings"

// Commented reports whether a rule has a comment.
func Commented(words []string) bool {
	at, _ := commentOf(words)
	return at >= 0
}

// Uncommented are a rule's words without the comment that they have.
func Uncommented(words []string) []string {
	at, end := commentOf(words)
	if at < 0 {
		return words
	}
	out := append([]string(nil), words[:at]...)
	return append(out, words[end:]...)
}

// UncommentedText is a rule as it is written, without the comment that its words
// have, quoted or not.
func UncommentedText(words []string, text string) string {
	at, end := commentOf(words)
	if at < 0 {
		return text
	}
	for _, comment := range []string{words[end-1], `"` + words[end-1] + `"`} {
		before, after, ok := strings.Cut(" "+text+" ", " -m comment --comment "+comment+" ")
		if ok {
			return strings.TrimSpace(before + " " + after)
		}
	}
	return text
}

// commentOf is where a rule's first comment stands: "-m comment --comment TEXT".
func commentOf(words []string) (at, end int) {
	for i := 0; i+3 < len(words); i++ {
		if words[i] == "-m" && words[i+1] == "comment" && words[i+2] == "--comment" {
			return i, i + 4
		}
	}
	return -1, -1
}
