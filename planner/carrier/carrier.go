// Package carrier is which firewall carries ctplan's rules on a host: iptables or
// nftables, and where in nftables there is a place for them.
package carrier

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Of is what carries ctplan's rules on a host, and why: what holds the
// host's policy. Where both have rules, what boot restores decides, and iptables
// where that does not tell. Tables that a program makes and makes again, such as
// firewalld's, are no place for rules of others, and do not count.
func Of(d declared.Desired, l host.Live) (firewall declared.Firewall, why string) {
	native := nativePolicy(&l)
	xt := xtablesPolicy(&l)
	switch {
	case d.Firewall != "":
		return d.Firewall, fmt.Sprintf("firewall = %q says so", d.Firewall)
	case l.NFTUnread != "":
		return declared.IPTables, ""
	case !slices.ContainsFunc(l.Rulesets, func(r host.Ruleset) bool { return r.File == nil }):
		return declared.NFTables, "iptables is not installed"
	case native == "":
		return declared.IPTables, ""
	case xt == "":
		return declared.NFTables, "nftables holds this host's policy: " + native + restored(&l)
	case l.Boot != nil && slices.Contains(l.Boot.Services, etc.NFTablesService) && !slices.ContainsFunc(l.Boot.Services, etc.RestoresXtables):
		return declared.NFTables, fmt.Sprintf("nftables holds what boot restores of this host's policy: %s%s; of iptables, which has %s, boot restores nothing", native, restored(&l), xt)
	}
	return declared.IPTables, ""
}

func restored(l *host.Live) string {
	if l.Boot != nil && slices.Contains(l.Boot.Services, etc.NFTablesService) {
		return ", and nftables.service is enabled"
	}
	return ""
}

// TakesRules is whether rules can be put into a table of nftables: it is one for
// IP, was read whole, is called, and no program makes it again.
func TakesRules(t *host.NFTTable) bool {
	return t.Whole && !t.Dormant && slices.Contains([]string{"inet", "ip", "ip6"}, t.Family) && nftables.Keeper(t, "") == "" &&
		!nftables.IsOwnTable(t)
}

// nativePolicy is the first chain of nftables' own that filters packets of IP;
// empty: there is none.
func nativePolicy(l *host.Live) string {
	for i := range l.NFT {
		t := &l.NFT[i]
		if !TakesRules(t) {
			continue
		}
		for k := range t.Chains {
			c := &t.Chains[k]
			if filters(c) && nftables.Keeper(t, c.Name) == "" && (c.Policy == "drop" || len(c.Rules) > 0) {
				return fmt.Sprintf("chain %s of table %s %s has policy %s", c.Name, t.Family, t.Name, c.Policy)
			}
		}
	}
	return ""
}

// filters is whether a chain sees what comes to the host, leaves it or is routed.
func filters(c *host.NFTChain) bool {
	return c.Type == "filter" && (c.Hook == "input" || c.Hook == "forward" || c.Hook == "output")
}

// xtablesPolicy is what the tables filter of iptables have of others; empty:
// nothing.
func xtablesPolicy(l *host.Live) string {
	for i := range l.Rulesets {
		r := &l.Rulesets[i]
		if r.File != nil {
			continue
		}
		for _, s := range r.Sections("filter") {
			for _, c := range s.Chains {
				if c.Policy == "DROP" {
					return "policy DROP in " + c.Name
				}
			}
			for k := range s.Rules {
				if rule := &s.Rules[k]; !xtables.IsOwn(rule.Chain) && xtables.OwnTarget(rule.Words) == "" {
					return "rules in " + rule.Chain
				}
			}
		}
	}
	return ""
}
