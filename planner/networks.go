package planner

import (
	"iter"
	"net/netip"
	"strings"
)

// networksOf are the networks that a rule names as its source, or as its
// destination, whether to match them or all others: by address, as a range
// (xt_iprange), or as members of a set (xt_set), as far as sets are known.
func networksOf(words []string, dst bool, sets map[string]*IPSet) iter.Seq[netip.Prefix] {
	address, ranged, way := "-s", "--src-range", "src"
	if dst {
		address, ranged, way = "-d", "--dst-range", "dst"
	}
	return func(yield func(netip.Prefix) bool) {
		for i := 0; i+1 < len(words); i++ {
			switch words[i] {
			case address:
				var set prefixSet
				if set.set(false, words[i+1]) && !yield(set.prefix) {
					return
				}
			case ranged:
				if from, to, ok := addressRange(words[i+1]); ok {
					for _, p := range rangePrefixes(from, to) {
						if !yield(p) {
							return
						}
					}
				}
			case "--match-set":
				set := sets[words[i+1]]
				if set == nil || i+2 >= len(words) || set.Type == "bitmap:port" {
					continue
				}
				if first, _, _ := strings.Cut(words[i+2], ","); first != way {
					continue
				}
				for _, e := range set.Prefixes {
					if !yield(e.Prefix) {
						return
					}
				}
			}
		}
	}
}
