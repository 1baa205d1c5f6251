package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Leftovers says what is left of ctplan's rules on a host that no block
// matches, and how to take it away.
func Leftovers(l host.Live) change.Findings {
	var p change.Report
	for i := range l.Rulesets {
		r := &l.Rulesets[i]
		if commands := removalCommands(r); commands != nil {
			p.Warn("iptables."+string(r.Family), "ctplan's chains still stand here; to take them away:", declared.Pos{}, commands...)
		}
	}
	for i := range l.NFT {
		if commands := nativeRemoval(&l.NFT[i]); commands != nil {
			p.Warn("nftables."+l.NFT[i].Family+"."+l.NFT[i].Name, "ctplan's chains still stand here; to take them away:", declared.Pos{}, commands...)
		}
	}
	for i := range l.SavedRules {
		r := &l.SavedRules[i]
		if removalCommands(r) != nil {
			p.Warn("file."+r.File.Path, "ctplan's chains stand in this file too; to take them away:", declared.Pos{}, "sed -i '/"+declared.OwnPrefix+"/d' '"+strings.ReplaceAll(r.File.Path, "'", `'\''`)+"'")
		}
	}
	return p.Findings
}

// nativeRemoval is the same for a table of nftables.
func nativeRemoval(t *host.NFTTable) []string {
	if nftables.IsOwnTable(t) {
		return []string{"nft delete table inet " + declared.OwnTable}
	}
	var jumps, chains []string
	for i := range t.Chains {
		c := &t.Chains[i]
		name := nftables.ChainName(t, c.Name)
		if name == "" {
			continue
		}
		if nftables.IsOwn(c.Name) {
			chains = append(chains, "nft flush chain "+name, "nft delete chain "+name)
			continue
		}
		for k := range c.Rules {
			if to, _ := nftables.OwnTarget(&c.Rules[k]); to != "" {
				jumps = append(jumps, fmt.Sprintf("nft delete rule %s handle %d", name, c.Rules[k].Handle))
			}
		}
	}
	return append(jumps, chains...)
}

// removalCommands are the shell commands that take our chains out of a
// ruleset, jumps first; nil when it has none. Chain names are checked to be ours, so that
// no live string becomes part of a command.
func removalCommands(r *host.Ruleset) []string {
	var jumps, chains []string
	for i := range r.Tables {
		t := &r.Tables[i]
		run := xtables.ToolName(r.Family, r.Backend, r.Primary) + " -t " + t.Name
		for _, d := range t.Chains {
			hook, ok := strings.CutPrefix(d.Name, declared.OwnPrefix)
			if !ok || d.Name != declared.JoinChain && !slices.Contains(xtables.Builtins[t.Name], hook) {
				continue
			}
			for j := range t.Rules {
				if t.Rules[j].Chain == hook && xtables.OwnTarget(t.Rules[j].Words) == d.Name {
					jumps = append(jumps, fmt.Sprintf("%s -D %s -j %s", run, hook, d.Name))
				}
			}
			chains = append(chains, run+" -F "+d.Name, run+" -X "+d.Name)
		}
	}
	return append(jumps, chains...)
}
