package nft

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
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
	out := host.NFTFile{File: f}
	out.Chains, out.Flush = outline(f.Content)
	line := 0
	for text := range strings.Lines(f.Content) {
		line++
		words := nftables.Words(text)
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
