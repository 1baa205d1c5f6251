package nft

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Joins is whether the kernel joins fragments of a family as long as the table
// stands, dormant or not: its expressions ask for tracking as they are made
// (nf_ct_netns_get), or for whole packets (net/netfilter/nft_tproxy.c). Notrack
// and socket do not.
func Joins(t *host.NFTTable, family host.Family) verdict.Truth {
	if !meets(family, t) || t.Family == "netdev" {
		return verdict.No
	}
	for i := range t.Chains {
		for k := range t.Chains[i].Rules {
			if slices.ContainsFunc(t.Chains[i].Rules[k].Exprs, joins) {
				return verdict.Yes
			}
		}
	}
	perhaps := !t.Whole
	for _, i := range t.Items {
		if object := strings.HasPrefix(i.Kind, "ct "); object {
			perhaps = true // not on every kernel
		} else if !t.Whole && slices.ContainsFunc(i.Uses, asks) {
			return verdict.Yes
		}
	}
	if perhaps {
		return verdict.Maybe
	}
	return verdict.No
}

// asks is whether a part of a rule asks for tracking, by its name in an
// NFTItem.
func asks(name string) bool {
	switch kind, what, _ := strings.Cut(name, " "); kind {
	case "ct", "nat", "masq", "redir", "flow_offload", "connlimit", "synproxy", "tproxy":
		return true
	case "match":
		return xtables.JoinsFragments([]string{"-m", what})
	case "target":
		return what != "CT" && xtables.JoinsFragments([]string{"-j", what})
	}
	return false
}

func joins(e host.NFTExpr) bool {
	name := e.Name
	if e.Object != "" && (name == "match" || name == "target") {
		what, _, _ := strings.Cut(e.Object, "/")
		name += " " + what
	}
	return asks(name) || slices.ContainsFunc(e.Inner, joins)
}

// TellsParts is whether the table may treat the parts of a datagram that came
// here, or is routed, in different ways: it refuses, and looks at what only the
// first has. input is whether those that came here are parts still.
func TellsParts(t *host.NFTTable, family host.Family, input bool) bool {
	if !meets(family, t) || t.Dormant {
		return false
	}
	met, refuses, looks := false, t.Drops, !t.Whole
	for i := range t.Chains {
		c := &t.Chains[i]
		met = met || c.Hook == "prerouting" || c.Hook == "forward" || c.Hook == "input" && input
		refuses = refuses || c.Policy == "drop"
		for k := range c.Rules {
			looks = looks || slices.ContainsFunc(c.Rules[k].Exprs, func(e host.NFTExpr) bool {
				const transport = 2
				return e.Name == "payload" && e.Base == transport
			})
		}
	}
	return met && refuses && looks
}
