package nft

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/host"
)

// confs are the rulesets that nftables.service loads: Debian's, and the Red
// Hat family's.
var confs = []string{"/etc/nftables.conf", "/etc/sysconfig/nftables.conf"}

// maxConfs bounds how many files are followed.
const maxConfs = 64

// ConfPaths lists the rules files of nft that exist, seen from root, with
// those that they include.
func ConfPaths(root string) ([]string, error) {
	var list []string
	queue := slices.Clone(confs)
	for len(queue) > 0 && len(list) < maxConfs {
		name := queue[0]
		queue = queue[1:]
		if slices.Contains(list, name) || !hostfile.Exists(root, name) {
			continue
		}
		list = append(list, name)
		f, err := hostfile.Read(root, name)
		if err != nil {
			return list, err
		}
		for _, i := range ParseConf(f).Includes {
			queue = append(queue, matches(root, i.Path)...)
		}
	}
	return list, nil
}

// matches are the files that an include names: it may be a pattern, of the
// last element at least (nft(8)).
func matches(root, pattern string) []string {
	if !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}
	}
	found, err := filepath.Glob(root + pattern)
	if err != nil {
		return nil
	}
	for i := range found {
		found[i] = strings.TrimPrefix(found[i], root)
	}
	return found
}

// ParseConf looks through a rules file of nft for what needs connection
// tracking, for what it includes, and for where it declares what. It does not parse the language: it goes
// by words outside of comments and strings, which in nft are reserved.
func ParseConf(f host.File) host.NFTFile {
	out := host.NFTFile{File: f, Chains: outline(f.Content)}
	line := 0
	for text := range strings.Lines(f.Content) {
		line++
		words := confWords(text)
		for i, w := range words {
			at := func(n int) string {
				if i+n < 0 || i+n >= len(words) {
					return ""
				}
				return words[i+n]
			}
			if w == "include" && strings.HasPrefix(at(1), `"`) {
				p := strings.Trim(at(1), `"`)
				if !path.IsAbs(p) {
					p = path.Join("/etc", p) // where nft is built to look
				}
				out.Includes = append(out.Includes, host.NFTInclude{Path: path.Clean(p), Line: line})
			}
			if needsTracking(w, at(-1), at(1)) {
				out.Lines = append(out.Lines, host.NFTLine{Line: line, Text: strings.TrimSpace(text)})
				break
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

// confWords splits a line into words, strings with their opening quote, and
// single marks; comments are left out.
func confWords(line string) []string {
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
