package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// modeOf tells the mode of a host without its configuration, from what ctplan
// has left there, and what it tells it from. The mode is empty where that is not
// enough; then source says why.
func modeOf(live host.Live, history func() ([]journal.Transaction, error)) (mode, source string) {
	accepts, stray := "", ""
	for _, rs := range live.Rulesets {
		for _, t := range rs.Tables {
			if i := slices.IndexFunc(t.Chains, func(c host.ChainDecl) bool { return strings.HasPrefix(c.Name, declared.OwnPrefix) }); i >= 0 && t.Name == "raw" {
				stray = cmp.Or(stray, fmt.Sprintf("%s raw %s", rs.Family, t.Chains[i].Name))
			}
			for i := range t.Rules {
				r := &t.Rules[i]
				if !strings.HasPrefix(r.Chain, declared.OwnPrefix) {
					continue
				}
				at := fmt.Sprintf("%s %s %s", rs.Family, t.Name, r.Chain)
				if t.Name == "raw" && (slices.Contains(r.Words, "--notrack") || slices.Contains(r.Words, "NOTRACK")) {
					if !reached(t, r.Chain) {
						continue
					}
					return string(declared.Notrack), at + " takes packets out of tracking"
				}
				accepts = at
			}
		}
	}
	for _, t := range live.NFT {
		if t.Family != "inet" || t.Name != declared.OwnTable || t.Dormant {
			continue
		}
		for _, c := range t.Chains {
			if c.Base() && slices.ContainsFunc(c.Rules, func(r host.NFTRule) bool {
				return strings.HasPrefix(r.Text, "notrack") || strings.Contains(r.Text, " notrack")
			}) {
				return string(declared.Notrack), fmt.Sprintf("%s %s %s takes packets out of tracking", t.Family, t.Name, c.Name)
			}
		}
	}
	if stray != "" {
		return string(declared.Notrack), stray + " is there, but no NOTRACK rule that a packet comes to: nothing is taken out of tracking"
	}
	for _, f := range live.ModprobeFiles {
		for _, e := range f.Entries {
			if e.Command == "install" && e.Module == "nf_conntrack" && len(e.Args) == 1 && loadsNothing(e.Args[0].Text) {
				return string(declared.Disabled), fmt.Sprintf("%s:%d keeps nf_conntrack from loading", f.Path, e.Line)
			}
		}
	}
	if accepts != "" && live.Conntrack.Kind != host.ConntrackAbsent {
		return "", accepts + " accepts packets, but neither NOTRACK rules nor a line in modprobe.d are there to tell"
	}
	if accepts != "" {
		return string(declared.Disabled), accepts + " accepts packets, and no rule of ctplan's takes any out of tracking"
	}
	all, err := history()
	if err != nil {
		return "", err.Error()
	}
	for _, t := range slices.Backward(all) {
		switch {
		case t.Err != nil:
			return "", t.Err.Error()
		case t.Outcome == journal.WasUndone:
			continue
		case t.Back:
			return "", fmt.Sprintf("transaction %d has taken back what ctplan had changed", t.ID)
		case setsSizes(t):
			return string(declared.Tuned), fmt.Sprintf("transaction %d of %s set the sizes", t.ID, t.Time.Local().Format("2006-01-02"))
		}
	}
	return "", "ctplan has no rules here, and no transaction that set sizes"
}

// reached reports whether a rule of another chain of the table names a chain.
func reached(t host.Table, chain string) bool {
	return slices.ContainsFunc(t.Rules, func(r host.Rule) bool {
		return r.Chain != chain && slices.Contains(r.Words, chain)
	})
}

// loadsNothing holds for the commands that ctplan writes in place of a load,
// and those that others write.
func loadsNothing(command string) bool {
	return slices.Contains([]string{"/bin/false", "/bin/true", "/usr/bin/false", "/usr/bin/true"}, command)
}

func setsSizes(t journal.Transaction) bool {
	return slices.ContainsFunc(t.Steps, func(s journal.Step) bool {
		return s.Hashsize != nil || s.Sysctl != nil && strings.HasSuffix(s.Sysctl.Key, "nf_conntrack_max")
	})
}
