package nftables

import (
	"fmt"

	"github.com/ctplan/ctplan/planner/host"
)

// Origin is where the files that boot loads say what stands in a chain: "FILE:LINE"
// of its rule by index, where the file's rules are as many as the kernel has;
// else of the chain, or of the table. Without an index that is a rule's (-1, for
// a policy) it is the chain's. It is empty where no file says so. exact is whether
// it is the rule's.
func Origin(files []host.NFTFile, t *host.NFTTable, c *host.NFTChain, index int) (at string, exact bool) {
	var table, chain string
	var rules []string
	unsure := false
	for i := range files {
		f := &files[i]
		for _, d := range f.Chains {
			if d.Family != t.Family || d.Table != t.Name {
				continue
			}
			at := fmt.Sprintf("%s:%d", f.Path, d.Line)
			if table == "" {
				table = at
			}
			if c == nil || d.Name != c.Name {
				continue
			}
			if chain == "" {
				chain = at
			} else {
				unsure = true // two files, in an order that is not known here
			}
			unsure = unsure || d.Unsure
			for _, line := range d.Rules {
				rules = append(rules, fmt.Sprintf("%s:%d", f.Path, line))
			}
		}
	}
	switch {
	case chain == "":
		return table, false
	case index >= 0 && !unsure && index < len(rules) && len(rules) == len(c.Rules):
		return rules[index], true
	}
	return chain, false
}
