package owners

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
)

// routedPolicy is the policy of firewalld that carries what is routed.
const routedPolicy = "ctplan"

// firewalld has zones and policies say it. It runs the command twice rather than
// reload: a reload takes away all rules of iptables, ctplan's among them
// (measured with 1.3 and its nftables backend).
func (p *place) firewalld(cuts []Cut) (text string, commands []string) {
	scope, kind := p.scope()
	switch kind {
	case "deny", "pre", "log":
		return fmt.Sprintf("change the rule of firewalld that refuses it on purpose, in %s", scope), nil
	case "":
		return "leave it tracked: firewalld has no words for what comes before its zones, in " + p.ref.NativeChain(), nil
	}
	option := words.ShellWords("--" + strings.Replace(scope, " ", "=", 1))
	routed := kind == "forward"
	if routed {
		option = "--policy=" + routedPolicy
		commands = []string{
			"firewall-cmd --permanent --new-policy=" + routedPolicy,
			"firewall-cmd --permanent " + option + " --add-ingress-zone=ANY",
			"firewall-cmd --permanent " + option + " --add-egress-zone=ANY",
		}
	}
	opens := false
	for _, c := range cuts {
		rule := "--add-rich-rule=" + words.ShellWords(c.Packets.rich())
		if !routed {
			commands = append(commands, "firewall-cmd "+option+" "+rule)
		}
		commands = append(commands, "firewall-cmd --permanent "+option+" "+rule)
		opens = opens || !c.Packets.ToPort && protocol.CarriesPorts(c.Packets.Proto)
	}
	text = fmt.Sprintf("have firewalld, which makes this table, let it through, at once and for good, by the commands below, in its %s", scope)
	if routed {
		text = "have firewalld, which makes this table, let it through by a policy, as the commands below do; its reload takes away all rules of iptables, so apply after it"
		commands = append(commands, "firewall-cmd --reload")
	}
	if opens {
		text += " (firewalld has no words for answers alone: whoever opens a connection from that port is let in too. To keep them out, leave this traffic tracked)"
	}
	return text, commands
}

// scope is the zone or policy that a chain of firewalld's belongs to, "zone
// public", and what of it the chain is: "zone" or "policy" itself, "forward" of a
// zone, what comes first in either ("pre", "log", "deny"), or "" for neither
// (firewalld's core/nftables.py names them).
func (p *place) scope() (scope, kind string) {
	name, way := "", ""
	for _, prefix := range []string{"filter_IN_", "filter_FWD_", "filter_OUT_"} {
		if rest, ok := strings.CutPrefix(p.ref.Chain, prefix); ok {
			name, way = rest, prefix
		}
	}
	if name == "" || p.table == nil {
		return "", ""
	}
	for _, part := range []string{"pre", "log", "deny", "allow", "post"} {
		base, ok := strings.CutSuffix(name, "_"+part)
		if ok && slices.ContainsFunc(p.table.Chains, func(c host.NFTChain) bool { return c.Name == way+base }) {
			if name = base; part != "post" {
				kind = part
			}
			break
		}
	}
	if policy, ok := strings.CutPrefix(name, "policy_"); ok {
		return "policy " + policy, words.Or(kind, "policy")
	}
	switch {
	case kind != "":
	case way == "filter_IN_":
		kind = "zone"
	case way == "filter_FWD_":
		kind = "forward"
	}
	return "zone " + name, kind
}
