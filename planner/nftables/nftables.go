// Package nftables is the language of nft's rules, as far as plans speak it: the
// names of things, the commands that delete them, and the modules that they hold.
package nftables

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// moduleOf says which module stands behind a part of nftables that needs
// connection tracking (MODULE_ALIAS_NFT_EXPR and the like in net/netfilter).
var moduleOf = map[string]string{
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

// Module is the module that a part of nftables (see NFTItem.Uses) keeps
// loaded, and connection tracking with it; "" when it needs none.
func Module(use string) string { return moduleOf[use] }

// Translates is whether a part of a rule translates addresses.
func Translates(use string) bool {
	switch use {
	case "nat", "masq", "redir":
		return true
	}
	target, ok := strings.CutPrefix(use, "target ")
	return ok && xtables.IsNATTarget(target)
}

// Modules are those that the thing keeps loaded, and connection tracking with
// them.
func Modules(i host.NFTItem) []string {
	var out []string
	for _, u := range i.Uses {
		if m := Module(u); m != "" && !slices.Contains(out, m) {
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

// Describe names the thing as nft does, and what it says.
func Describe(t host.NFTTable, i host.NFTItem) string {
	switch i.Kind {
	case "rule":
		return fmt.Sprintf("rule %s %s %s handle %d: %s", t.Family, nftName(t.Name), nftName(i.Chain), i.Handle, i.Text)
	case "chain":
		return fmt.Sprintf("chain %s %s %s, of type nat", t.Family, nftName(t.Name), nftName(i.Name))
	}
	return fmt.Sprintf("%s %s %s %s", i.Kind, t.Family, nftName(t.Name), nftName(i.Name))
}

// Deletion are the commands that take the thing away. Names that nft's language
// has no way to write give none, so that nothing of a name is ever more than a
// name. enter is what the commands begin with.
func Deletion(t host.NFTTable, i host.NFTItem, enter string) []string {
	for _, name := range []string{t.Name, i.Chain + i.Name} {
		if !isNFTName(name) {
			return nil
		}
	}
	switch i.Kind {
	case "rule":
		return []string{fmt.Sprintf("%snft delete rule %s %s %s handle %d", enter, t.Family, t.Name, i.Chain, i.Handle)}
	case "chain":
		return []string{
			fmt.Sprintf("%snft flush chain %s %s %s", enter, t.Family, t.Name, i.Name),
			fmt.Sprintf("%snft delete chain %s %s %s", enter, t.Family, t.Name, i.Name),
		}
	}
	return []string{fmt.Sprintf("%snft delete %s %s %s %s", enter, i.Kind, t.Family, t.Name, i.Name)}
}

// IsXtables reports whether the table is the nat table of iptables-nft.
func IsXtables(t host.NFTTable) bool {
	return t.Name == "nat" && (t.Family == "ip" || t.Family == "ip6")
}

// ChainName is how nft's commands name a chain; empty where its language has no
// way to write the names.
func ChainName(t *host.NFTTable, chain string) string {
	if !isNFTName(t.Name) || !isNFTName(chain) {
		return ""
	}
	return t.Family + " " + t.Name + " " + chain
}

// nftName sets a name that nft's language cannot write apart from the words
// around it.
func nftName(s string) string {
	if isNFTName(s) {
		return s
	}
	return strconv.Quote(s)
}

// isNFTName holds for what nft(8) reads as an identifier, which is also what
// no shell reads as anything else.
func isNFTName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	return s != "" && strings.IndexByte(letters, s[0]) >= 0 && strings.Trim(s, letters+"0123456789-./") == ""
}

// MadeBy names who makes such a table or rule.
func MadeBy(t host.NFTTable, i host.NFTItem) string {
	if who := xtables.MakerOf(i.Chain, i.Name); who != "" {
		return who
	}
	return tableMaker(t.Name)
}

// Keeper names who makes a table, or the chain of it; "" where none is known by
// its names.
func Keeper(t *host.NFTTable, chain string) string {
	if who := tableMaker(t.Name); who != "" {
		return who
	}
	return xtables.MakerOf(t.Name, chain)
}

func tableMaker(name string) string {
	switch name {
	case "firewalld", "kube-proxy", "incus", "lxd", "lxc", "fail2ban", "crowdsec", "calico":
		return name
	case "docker-bridges":
		return "docker"
	case "netavark":
		return "podman"
	case "libvirt_network":
		return "libvirt"
	}
	return ""
}

// NamespaceLabel names a namespace in addresses.
func NamespaceLabel(n host.Namespace) string {
	if name, ok := strings.CutPrefix(n.Path, "/run/netns/"); ok {
		return name
	}
	return fmt.Sprint(n.Inode)
}

// DescribeNamespace names a namespace, and gives the beginning of the commands
// that run in it.
func DescribeNamespace(n host.Namespace) (name, enter string) {
	name = fmt.Sprintf("network namespace %s", NamespaceLabel(n))
	if n.PID != 0 {
		name += fmt.Sprintf(" (process %d, %s)", n.PID, n.Command)
	}
	if short, ok := strings.CutPrefix(n.Path, "/run/netns/"); ok {
		return name, "ip netns exec " + words.ShellWords(short) + " "
	}
	if n.Path != "" {
		return name, "nsenter --net=" + words.ShellWords(n.Path) + " "
	}
	return name, fmt.Sprintf("nsenter --net=/proc/%d/ns/net ", n.PID)
}

// RuleModules are those whose only users besides modules are rules.
var RuleModules = func() map[string]bool {
	list := map[string]bool{}
	for _, m := range moduleOf {
		list[m] = m != "nft_chain_nat" && m != "nf_flow_table"
	}
	return list
}()
