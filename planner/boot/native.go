package boot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// NativeState is what a boot makes of a table of native nftables.
type NativeState string

// The states.
const (
	NativeSame    NativeState = "same"    // what is loaded reads as what is there now
	NativeOther   NativeState = "other"   // it reads otherwise: Source says where first
	NativeMade    NativeState = "made"    // Source, a program, makes it
	NativeIdle    NativeState = "idle"    // nothing that ctplan knows of loads it
	NativeUnknown NativeState = "unknown" // Source says why
)

// Native is what a boot makes of a table of native nftables that is there now.
type Native struct {
	Table  string      `json:"table"` // "inet filter"
	State  NativeState `json:"state"`
	Source string      `json:"source"`
}

// native compares the tables with what nftables.service loads. It is a comparison
// of texts, rule by rule: what nft's language has two spellings for counts as
// other.
func (f *foresight) native() {
	f.out.Native = []Native{}
	for i := range f.l.NFT {
		t := &f.l.NFT[i]
		if !slices.ContainsFunc(t.Chains, func(c host.NFTChain) bool { return c.Base() }) {
			continue
		}
		n := Native{Table: t.Family + " " + t.Name}
		n.State, n.Source = f.nativeTable(t)
		f.out.Native = append(f.out.Native, n)
	}
}

func (f *foresight) nativeTable(t *host.NFTTable) (NativeState, string) {
	for i := range t.Chains {
		if who := nftables.Keeper(t, t.Chains[i].Name); who != "" {
			return NativeMade, who
		}
	}
	at := nftables.OriginOf(f.l.NFTFiles, t, nil, -1).At
	switch {
	case f.boot.Init == "":
		return NativeUnknown, "ctplan does not know how this host boots"
	case at == "":
		return NativeIdle, "no file that nftables.service loads has it"
	case !f.enabled(etc.NFTablesService):
		return NativeIdle, "nftables.service, which would load it, is not enabled: " + at
	case !t.Whole:
		return NativeUnknown, "its rules were not read whole"
	}
	return f.compare(t, at)
}

// compare holds a table against the files.
func (f *foresight) compare(t *host.NFTTable, at string) (NativeState, string) {
	said := map[string]*host.NFTFileChain{}
	where := map[string]string{}
	for i := range f.l.NFTFiles {
		file := &f.l.NFTFiles[i]
		for k := range file.Chains {
			c := &file.Chains[k]
			if c.Family != t.Family || c.Table != t.Name || c.Name == "" {
				continue
			}
			place := etc.Place(file.Path, c.Line)
			switch {
			case said[c.Name] != nil:
				return NativeUnknown, fmt.Sprintf("%s and %s both have rules of its chain %s", where[c.Name], place, c.Name)
			case c.Unsure || len(c.Texts) != len(c.Rules):
				return NativeUnknown, fmt.Sprintf("%s: what comes to stand in its chain %s was not followed", place, c.Name)
			case !slices.ContainsFunc(t.Chains, func(live host.NFTChain) bool { return live.Name == c.Name }):
				return NativeOther, fmt.Sprintf("%s has a chain %s, which is not there now", place, c.Name)
			}
			said[c.Name], where[c.Name] = c, file.Path
		}
	}
	doubt := ""
	for i := range t.Chains {
		c := &t.Chains[i]
		s := said[c.Name]
		if s == nil {
			return NativeOther, fmt.Sprintf("no file has its chain %s", c.Name)
		}
		base := ""
		if c.Base() {
			base = nftables.BaseOf(c.Type, c.Hook, c.Priority)
		}
		place := etc.Place(where[c.Name], s.Line)
		switch {
		case s.Base != base:
			return NativeOther, fmt.Sprintf("%s calls the chain %s elsewhere", place, c.Name)
		case c.Base() && nftables.Policy(s.Policy) != nftables.Policy(c.Policy):
			return NativeOther, fmt.Sprintf("%s gives the chain %s policy %s", place, c.Name, nftables.Policy(s.Policy))
		}
		for k := range max(len(c.Rules), len(s.Texts)) {
			switch {
			case k >= len(s.Texts):
				return NativeOther, fmt.Sprintf("%s does not have the rule with handle %d: %s", place, c.Rules[k].Handle, c.Rules[k].Text)
			case k >= len(c.Rules) || s.Texts[k] != nftables.Canonical(nftables.Words(c.Rules[k].Text)):
				return NativeOther, fmt.Sprintf("%s has another rule there: %s", etc.Place(where[c.Name], s.Rules[k]), s.Texts[k])
			case strings.Contains(s.Texts[k], "@") && doubt == "":
				doubt = etc.Place(where[c.Name], s.Rules[k]) + " names a set, whose elements were not compared"
			}
		}
	}
	if doubt != "" {
		return NativeUnknown, doubt
	}
	return NativeSame, at
}

// flushes is where nftables.service takes away what iptables-nft has loaded, and
// in what order it comes nobody knows; "" where it does not.
func (f *foresight) flushes(family host.Family) string {
	if !f.enabled(etc.NFTablesService) || !slices.ContainsFunc(f.l.Rulesets, func(r host.Ruleset) bool {
		return r.Family == family && r.Primary && r.Backend == host.NFT
	}) {
		return ""
	}
	for _, file := range f.l.NFTFiles {
		if file.Flush > 0 {
			return etc.Place(file.Path, file.Flush)
		}
	}
	return ""
}
