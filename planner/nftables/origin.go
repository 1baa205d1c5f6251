package nftables

import (
	"slices"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// Find is what the files say of a table, and of a chain of it; nil where they do
// not have it.
func Find(conf *host.NFTConf, family, table, chain string) (*host.NFTConfTable, *host.NFTConfChain) {
	i := slices.IndexFunc(conf.Tables, func(t host.NFTConfTable) bool { return t.Family == family && t.Name == table })
	if i < 0 {
		return nil, nil
	}
	t := &conf.Tables[i]
	if k := slices.IndexFunc(t.Chains, func(c host.NFTConfChain) bool { return c.Name == chain }); k >= 0 {
		return t, &t.Chains[k]
	}
	return t, nil
}

// Origin is where the files that boot loads say what stands in a chain: "FILE:LINE"
// of its rule by index, where they have a rule that says the same; else of the
// chain, or of the table. Without an index that is a rule's (-1, for a policy) it
// is the chain's. It is empty where no file says so. exact is whether it is the
// rule's.
func Origin(conf *host.NFTConf, t *host.NFTTable, c *host.NFTChain, index int) (at string, exact bool) {
	name := ""
	if c != nil {
		name = c.Name
	}
	table, chain := Find(conf, t.Family, t.Name, name)
	switch {
	case table == nil:
		return "", false
	case chain == nil:
		return Place(table.Site), false
	case index >= 0:
		if r := same(chain, c, index); r != nil {
			return Place(r.Site), true
		}
	}
	return Place(chain.Site), false
}

// Place is "FILE:LINE".
func Place(s host.NFTSite) string { return etc.Place(s.File, s.Line) }

// same is the rule of a file that says what the kernel's rule by index does; of
// several it is the one that has as many like it before it.
func same(chain *host.NFTConfChain, c *host.NFTChain, index int) *host.NFTConfRule {
	text := c.Rules[index].Text
	before := 0
	for i := range index {
		if c.Rules[i].Text == text {
			before++
		}
	}
	text = Canonical(Words(text))
	for i := range chain.Rules {
		if r := &chain.Rules[i]; !r.Vague && r.Text == text {
			if before == 0 {
				return r
			}
			before--
		}
	}
	return nil
}

// Align holds the kernel's rules of a chain against those of its files: for each,
// the index of the file's rule that says the same, in order; -1 where there is
// none. What stands at both ends is matched first, and the rest one after the
// other.
func Align(chain *host.NFTConfChain, c *host.NFTChain) []int {
	out := make([]int, len(c.Rules))
	text := make([]string, len(c.Rules))
	for i := range c.Rules {
		out[i], text[i] = -1, Canonical(Words(c.Rules[i].Text))
	}
	is := func(live, file int) bool { return !chain.Rules[file].Vague && chain.Rules[file].Text == text[live] }
	first, lastLive, lastFile := 0, len(c.Rules), len(chain.Rules)
	for first < min(lastLive, lastFile) && is(first, first) {
		out[first] = first
		first++
	}
	for lastLive > first && lastFile > first && is(lastLive-1, lastFile-1) {
		lastLive, lastFile = lastLive-1, lastFile-1
		out[lastLive] = lastFile
	}
	places := map[string][]int{}
	for i := first; i < lastFile; i++ {
		if r := &chain.Rules[i]; !r.Vague {
			places[r.Text] = append(places[r.Text], i)
		}
	}
	next := first
	for i := first; i < lastLive; i++ {
		list := places[text[i]]
		for len(list) > 0 && list[0] < next {
			list = list[1:]
		}
		if places[text[i]] = list; len(list) > 0 {
			out[i], next = list[0], list[0]+1
		}
	}
	return out
}
