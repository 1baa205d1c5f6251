package nftables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Origin is where the files that boot loads say what stands in a chain.
type Origin struct {
	// At is "FILE:LINE" of the rule where Exact is set, else of the chain, or of
	// the table; empty where no file says anything of them.
	At    string
	Exact bool
	// Added is whether the files have the table, and not the rule, the policy or
	// the chain: somebody has put it there besides.
	Added bool
}

// OriginOf finds the origin of a chain's rule by index; of its policy where the
// index is -1; of the table where the chain is nil. A rule is a file's where both
// read the same, or where it stands in the place of one, between such, that does
// the same and may only be spelled otherwise. Where that leaves a doubt, it is
// neither exact nor added.
func OriginOf(conf *host.NFTConf, t *host.NFTTable, c *host.NFTChain, index int) Origin {
	name := ""
	if c != nil {
		name = c.Name
	}
	table, chain := Find(conf, t.Family, t.Name, name)
	unsure := conf.Doubt != ""
	switch {
	case table == nil:
		return Origin{}
	case c == nil:
		return Origin{At: Place(table.Site)}
	case chain == nil:
		return Origin{At: Place(table.Site), Added: !unsure}
	}
	out := Origin{At: Place(chain.Site)}
	switch unsure = unsure || chain.Doubt != ""; {
	case unsure || index >= len(c.Rules):
		return out
	case index < 0:
		out.Added = Policy(chain.Policy) != Policy(c.Policy)
		return out
	}
	kernel, file, vague := spellings(chain, c)
	switch at, added := align(kernel, file, index); {
	case at >= 0:
		return Origin{At: Place(chain.Rules[at].Site), Exact: true}
	default:
		out.Added = added && !vague
		return out
	}
}

// SavedRule is the rule of a file that the kernel's by index comes from; nil where
// none is known to be. same is whether both read the same: else it stands in its
// place, between such, and may only be spelled otherwise.
func SavedRule(conf *host.NFTConf, t *host.NFTTable, c *host.NFTChain, index int) (r *host.NFTConfRule, same bool) {
	_, chain := Find(conf, t.Family, t.Name, c.Name)
	if chain == nil || chain.Doubt != "" || conf.Doubt != "" {
		return nil, false
	}
	kernel, file, _ := spellings(chain, c)
	at, _ := align(kernel, file, index)
	if at < 0 {
		return nil, false
	}
	return &chain.Rules[at], file[at] == kernel[index]
}

// spellings are the rules of the kernel and of files in one spelling; vague is
// whether one of the latter's is not known.
func spellings(chain *host.NFTConfChain, c *host.NFTChain) (kernel, file []string, vague bool) {
	for i := range chain.Rules {
		text := chain.Rules[i].Text
		if chain.Rules[i].Vague {
			text, vague = "\x00"+text, true // like no rule of the kernel's
		}
		file = append(file, text)
	}
	for i := range c.Rules {
		kernel = append(kernel, Canonical(Words(c.Rules[i].Text)))
	}
	return kernel, file, vague
}

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

// Place is "FILE:LINE".
func Place(s host.NFTSite) string { return fmt.Sprintf("%s:%d", s.File, s.Line) }

// Policy is the word for a chain's policy, which is accept where none is said.
func Policy(word string) string {
	if word == "" {
		return "accept"
	}
	return word
}

// align finds the rule of a file that the kernel's rule by index is; -1 for none,
// or where that cannot be told: added says that the file surely has none.
func align(kernel, file []string, index int) (at int, added bool) {
	stands := map[string][]int{}
	for i, text := range file {
		stands[text] = append(stands[text], i)
	}
	count, rank := map[string]int{}, make([]int, len(kernel))
	for i, text := range kernel {
		rank[i] = count[text]
		count[text]++
	}
	// Of rules that read the same, the first is the first.
	same := func(i int) (int, bool) {
		s := stands[kernel[i]]
		if len(s) == 0 || len(s) != count[kernel[i]] {
			return -1, false
		}
		return s[rank[i]], true
	}
	if at, ok := same(index); ok {
		return at, false
	}
	if len(stands[kernel[index]]) > 0 {
		return -1, false // there are more of them here, or there
	}
	from, low := index, -1 // the stretch around it that reads otherwise, here and there
	for ; from > 0; from-- {
		if at, ok := same(from - 1); ok {
			low = at
			break
		}
	}
	to, high := index+1, len(file)
	for ; to < len(kernel); to++ {
		if at, ok := same(to); ok {
			high = at
			break
		}
	}
	switch there := high - low - 1; {
	case there == 0:
		return -1, true
	case there == to-from && alike(kernel[index], file[low+1+index-from]):
		return low + 1 + index - from, false
	}
	return -1, false
}

// alike is whether two rules may be one, spelled in two ways: they begin and end
// alike.
func alike(a, b string) bool {
	first, _, _ := strings.Cut(a, " ")
	last := a[strings.LastIndexByte(a, ' ')+1:]
	return (b == first || strings.HasPrefix(b, first+" ")) && (b == last || strings.HasSuffix(b, " "+last))
}
