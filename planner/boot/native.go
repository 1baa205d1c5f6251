package boot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/words"
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
	at := nftables.OriginOf(&f.l.NFTConf, t, nil, -1).At
	switch {
	case f.boot.Init == "":
		return NativeUnknown, "ctplan does not know how this host boots"
	case (at == "" || !f.enabled(etc.NFTablesService)) && f.runsNFT() != "":
		return NativeUnknown, f.runsNFT() + " runs nft, and nftables.service does not load it"
	case at == "":
		return NativeIdle, "no file that nftables.service loads has it"
	case !f.enabled(etc.NFTablesService):
		return NativeIdle, "nftables.service, which would load it, is not enabled: " + at
	case !t.Whole:
		return NativeUnknown, "its rules were not read whole"
	case f.l.NFTConf.Doubt != "":
		return NativeUnknown, f.l.NFTConf.Doubt
	}
	state, source := f.compare(t, at)
	if by := f.runsNFT(); state == NativeSame && by != "" {
		return NativeUnknown, fmt.Sprintf("%s has it, and %s runs nft too", at, by)
	}
	return state, source
}

// runsNFT is a command of boot beside nftables.service that runs nft, or may.
func (f *foresight) runsNFT() string {
	for _, r := range f.boot.Restorers {
		if r.Does == host.DoNative || r.Does == host.DoUnknown {
			return r.At
		}
	}
	return ""
}

// compare holds a table against the files.
func (f *foresight) compare(t *host.NFTTable, at string) (NativeState, string) {
	said, _ := nftables.Find(&f.l.NFTConf, t.Family, t.Name, "")
	for i := range said.Chains {
		s := &said.Chains[i]
		switch {
		case s.Doubt != "":
			return NativeUnknown, s.Doubt
		case !slices.ContainsFunc(t.Chains, func(live host.NFTChain) bool { return live.Name == s.Name }):
			return NativeOther, fmt.Sprintf("%s has a chain %s, which is not there now", nftables.Place(s.Site), s.Name)
		}
	}
	doubt := ""
	for i := range t.Chains {
		_, s := nftables.Find(&f.l.NFTConf, t.Family, t.Name, t.Chains[i].Name)
		state, why := compareChain(s, &t.Chains[i])
		switch {
		case state == NativeOther:
			return state, why
		case state == NativeUnknown && doubt == "":
			doubt = why
		}
	}
	if doubt != "" {
		return NativeUnknown, doubt
	}
	return NativeSame, at
}

// compareChain holds a chain against what the files say of it, if they do.
func compareChain(s *host.NFTConfChain, c *host.NFTChain) (NativeState, string) {
	if s == nil {
		return NativeOther, fmt.Sprintf("no file has its chain %s", c.Name)
	}
	base := ""
	if c.Base() {
		base = nftables.BaseOf(c.Type, c.Hook, c.Priority)
	}
	place := nftables.Place(s.Site)
	switch {
	case s.Base != base || !slices.Equal(s.Devices, slices.Sorted(slices.Values(c.Devices))):
		return NativeOther, fmt.Sprintf("%s calls the chain %s elsewhere", place, c.Name)
	case c.Base() && nftables.Policy(s.Policy) != nftables.Policy(c.Policy):
		return NativeOther, fmt.Sprintf("%s gives the chain %s policy %s", place, c.Name, nftables.Policy(s.Policy))
	}
	doubt := ""
	for k := range max(len(c.Rules), len(s.Rules)) {
		switch {
		case k >= len(s.Rules):
			return NativeOther, fmt.Sprintf("%s does not have the rule with handle %d: %s", place, c.Rules[k].Handle, c.Rules[k].Text)
		case s.Rules[k].Vague:
			doubt = words.Or(doubt, nftables.Place(s.Rules[k].Site)+": what this rule says was not followed")
		case k >= len(c.Rules) || s.Rules[k].Text != nftables.Canonical(nftables.Words(c.Rules[k].Text)):
			return NativeOther, fmt.Sprintf("%s has another rule there: %s", nftables.Place(s.Rules[k].Site), s.Rules[k].Text)
		case strings.Contains(s.Rules[k].Text, "@"):
			doubt = words.Or(doubt, nftables.Place(s.Rules[k].Site)+" names a set, whose elements were not compared")
		}
	}
	if doubt != "" {
		return NativeUnknown, doubt
	}
	return NativeSame, ""
}

// flushes is where nftables.service takes away what iptables-nft has loaded, and
// in what order it comes nobody knows; "" where it does not.
func (f *foresight) flushes(family host.Family) string {
	if !f.enabled(etc.NFTablesService) || !slices.ContainsFunc(f.l.Rulesets, func(r host.Ruleset) bool {
		return r.Family == family && r.Primary && r.Backend == host.NFT
	}) {
		return ""
	}
	if f.l.NFTConf.Flush.Line == 0 {
		return ""
	}
	return nftables.Place(f.l.NFTConf.Flush)
}
