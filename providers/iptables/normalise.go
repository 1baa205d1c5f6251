package iptables

import (
	"bytes"
	"strings"
)

// normalise takes out of iptables-save's output what changes by itself:
// comments (they carry the date), counters, and tables that hold nothing. It
// returns the names of the tables that iptables-nft-save says it cannot show,
// or not whole.
// It works within out, which nothing else may use afterwards: every line stays
// as long as it was or gets shorter.
func normalise(out []byte) (text string, incompatible []string) {
	kept := out[:0]
	table := -1 // where the open table begins in kept
	pristine := true
	copied := 0 // out[:copied] is dealt with; rules are copied in long runs
	for pos := 0; pos < len(out); {
		end := len(out)
		if i := bytes.IndexByte(out[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		line := out[pos:end]
		start := pos
		pos = end
		switch line[0] {
		case '-':
			pristine = false
			continue
		case '#':
			kept = append(kept, out[copied:start]...)
			if rest, ok := bytes.CutPrefix(line, []byte("# Table `")); ok {
				if name, what, ok := bytes.Cut(rest, []byte("' ")); ok && bytes.Contains(what, []byte("incompatible")) {
					incompatible = append(incompatible, string(name))
				}
			}
		case '*':
			kept = append(kept, out[copied:start]...)
			table, pristine = len(kept), true
			kept = append(kept, line...)
		case ':':
			kept = append(kept, out[copied:start]...)
			if i := bytes.IndexByte(line, '['); i >= 0 {
				pristine = pristine && bytes.HasSuffix(line[:i], []byte(" ACCEPT "))
				kept = append(kept, line[:i]...)
				if len(line)-i >= len("[0:0]\n") {
					line = []byte("[0:0]\n")
				} else {
					line = line[i:]
				}
			} else {
				pristine = false
			}
			kept = append(kept, line...)
		case '[':
			kept = append(kept, out[copied:start]...)
			if i := bytes.Index(line, []byte("] ")); i >= 0 {
				line = line[i+2:]
			}
			pristine = false
			kept = append(kept, line...)
		case 'C':
			if table < 0 || strings.TrimSpace(string(line)) != "COMMIT" {
				continue
			}
			kept = append(kept, out[copied:end]...)
			if pristine {
				kept = kept[:table]
			}
			table = -1
		default:
			continue
		}
		copied = end
	}
	kept = append(kept, out[copied:]...)
	return string(kept), incompatible
}
