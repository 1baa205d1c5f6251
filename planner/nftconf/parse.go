package nftconf

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Parse looks through a rules file of nft by itself: for what needs connection
// tracking, and for what it includes. It goes by words outside of comments and
// strings, which in nft are reserved.
func Parse(f host.File) host.NFTFile {
	out := host.NFTFile{File: f}
	tokens, _ := nftables.Tokens(f.Content)
	lines := strings.SplitAfter(f.Content, "\n")
	for len(tokens) > 0 {
		n := 0
		for n < len(tokens) && tokens[n].Line == tokens[0].Line {
			n++
		}
		line := int(tokens[0].Line)
		var words []string
		for _, t := range tokens[:n] {
			if t.Text != "\n" {
				words = append(words, t.Text)
			}
		}
		tokens = tokens[n:]
		found := false
		for i, w := range words {
			before, after := "", ""
			if i > 0 {
				before = words[i-1]
			}
			if i+1 < len(words) {
				after = words[i+1]
			}
			if w == "include" && len(after) > 1 && after[0] == '"' {
				out.Includes = append(out.Includes, host.NFTInclude{Path: resolve(after[1:]), Line: line})
			}
			if !found && needsTracking(w, before, after) {
				found = true
				out.Lines = append(out.Lines, host.NFTLine{Line: line, Text: strings.TrimSpace(lines[line-1])})
			}
		}
	}
	return out
}

func needsTracking(word, before, after string) bool {
	switch word {
	case "ct":
		return after != "" && after != "=" && after != ";"
	case "notrack", "masquerade", "snat", "dnat", "synproxy", "flowtable":
		return true
	case "nat":
		return before == "type"
	case "flow":
		return after == "add" || after == "offload"
	case "redirect": // also a type of ICMP
		return before != "type" && before != "{" && before != "," && slices.Contains([]string{"", ";", "}", "to", ":", "random", "fully-random", "persistent", "comment"}, after)
	}
	return false
}
