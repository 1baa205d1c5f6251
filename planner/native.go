package planner

import (
	"slices"
	"strings"
)

// NFTTable is a table of nftables that iptables-save does not show, or not
// whole. Names and texts come from whoever wrote the rules.
type NFTTable struct {
	Family string     `json:"family"` // ip, ip6, inet, arp, bridge or netdev
	Name   string     `json:"name"`
	Chains []NFTChain `json:"chains,omitempty"` // base chains: those that the kernel calls
	Items  []NFTItem  `json:"items,omitempty"`  // what of it needs connection tracking (NFTModule)
	Drops  bool       `json:"drops,omitempty"`  // some rule drops, rejects or queues
}

// NFTChain is a base chain.
type NFTChain struct {
	Name   string `json:"name"`
	Type   string `json:"type"` // filter, nat or route
	Hook   string `json:"hook"` // prerouting, input, forward, output, postrouting, ingress or egress
	Policy string `json:"policy,omitempty"`
}

// NFTItem is a rule, a chain, an object or a flowtable of a table.
type NFTItem struct {
	Kind   string `json:"kind"`             // as nft(8) calls it: rule, chain, flowtable, ct helper, …
	Chain  string `json:"chain,omitempty"`  // rule: where it stands
	Handle uint64 `json:"handle,omitempty"` // rule: by which it is deleted
	Name   string `json:"name,omitempty"`   // of everything but a rule
	Text   string `json:"text,omitempty"`   // rule: what it says, about as nft prints it; ct helper: of which protocol
	// Uses are its parts: expressions by the names that the kernel has for
	// them, "match NAME" and "target NAME" for those of xtables.
	Uses []string `json:"uses"`
}

// Namespace is another network namespace of the machine, in which something
// may need connection tracking.
type Namespace struct {
	Inode    uint64     // of the namespace: its identity until it goes
	Path     string     // where it is mounted; empty where it is not
	PID      int        // of a process in it; 0 where it has none
	Command  string     // that process's name
	NFT      []NFTTable // what iptables-nft has made is among them
	Rulesets []Ruleset  // of iptables-legacy
}

// nftModules says which module stands behind a part of nftables that needs
// connection tracking (MODULE_ALIAS_NFT_EXPR and the like in net/netfilter).
var nftModules = map[string]string{
	"ct": "nft_ct", "notrack": "nft_ct", "ct helper": "nft_ct", "ct timeout": "nft_ct", "ct expectation": "nft_ct",
	"nat": "nft_nat", "masq": "nft_masq", "redir": "nft_redir", "chain nat": "nft_chain_nat",
	"connlimit": "nft_connlimit", "flow_offload": "nft_flow_offload", "flowtable": "nf_flow_table", "synproxy": "nft_synproxy",

	"match conntrack": "xt_conntrack", "match state": "xt_conntrack", "match connbytes": "xt_connbytes",
	"match connlimit": "xt_connlimit", "match connmark": "xt_connmark", "match connlabel": "xt_connlabel",
	"match helper": "xt_helper", "match cluster": "xt_cluster",
	"target CT": "xt_CT", "target NOTRACK": "xt_CT", "target CONNMARK": "xt_connmark", "target CONNSECMARK": "xt_CONNSECMARK",
	"target SYNPROXY": "xt_SYNPROXY", "target SNAT": "xt_nat", "target DNAT": "xt_nat", "target MASQUERADE": "xt_MASQUERADE",
	"target REDIRECT": "xt_REDIRECT", "target NETMAP": "xt_NETMAP",
}

// NFTModule is the module that a part of nftables (see NFTItem.Uses) keeps
// loaded, and connection tracking with it; "" when it needs none.
func NFTModule(use string) string { return nftModules[use] }

// modules are those that the thing keeps loaded, and connection tracking with
// them.
func itemModules(i NFTItem) []string {
	var out []string
	for _, u := range i.Uses {
		if m := NFTModule(u); m != "" && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	if i.Kind == "ct helper" {
		switch i.Text {
		case "":
		case "RAS", "Q.931":
			out = append(out, "nf_conntrack_h323")
		default:
			out = append(out, "nf_conntrack_"+strings.ReplaceAll(i.Text, "-", "_"))
		}
	}
	return out
}
