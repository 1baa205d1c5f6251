package census

import (
	"slices"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Asker is something that makes the kernel track connections in this network
// namespace.
type Asker struct {
	Where string `json:"where"` // "ipv4 filter INPUT", "inet firewall input": family, table and chain
	Rule  string `json:"rule"`  // as iptables-save or nft prints it, without the chain
}

// Askers lists what asks for tracking: since Linux 4.14 the kernel tracks in a
// namespace only while a rule there needs it. NOTRACK, and tables of nat without
// a rule that translates, load the module and ask for nothing.
func Askers(l host.Live) []Asker {
	list := []Asker{}
	for _, rs := range l.Rulesets {
		for _, t := range rs.Tables {
			for i := range t.Rules {
				if r := &t.Rules[i]; asks(r.Words) {
					list = append(list, Asker{string(rs.Family) + " " + t.Name + " " + r.Chain, r.Text})
				}
			}
		}
	}
	for _, t := range l.NFT {
		for _, i := range t.Items {
			if slices.ContainsFunc(i.Uses, asksNative) {
				where, rule := t.Family+" "+t.Name, i.Text
				if i.Kind == "rule" {
					where += " " + i.Chain
				} else {
					rule = i.Kind + " " + i.Name
				}
				list = append(list, Asker{where, rule})
			}
		}
	}
	return list
}

// asks reports whether a rule of iptables asks for tracking. The words of a
// comment cannot make it say so: they are one word.
func asks(words []string) bool {
	for i := range len(words) - 1 {
		switch next := words[i+1]; words[i] {
		case "-m", "--match":
			if nftables.Module("match "+next) != "" {
				return true
			}
		case "-j", "--jump", "-g", "--goto":
			switch next {
			case "NOTRACK":
			case "CT":
				return !slices.Contains(words, "--notrack")
			default:
				if nftables.Module("target "+next) != "" {
					return true
				}
			}
		}
	}
	return false
}

// asksNative is the same for a part of native nftables.
func asksNative(use string) bool {
	switch use {
	case "notrack", "target NOTRACK", "chain nat", "flowtable":
		return false
	}
	return nftables.Module(use) != ""
}
