package modules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// disabledKey is the sysctl that keeps modules where they are.
const disabledKey = "kernel.modules_disabled"

// Used are the modules that what ctplan writes may need: what host.Loading is
// to be read of.
var Used = slices.Concat(
	[]string{"ip_tables", "ip6_tables", "nf_tables", "nft_compat", "nf_conntrack"},
	legacyTables("ip"), legacyTables("ip6"), matchModules(), []string{"xt_CT"},
)

func legacyTables(family string) []string {
	return []string{family + "table_filter", family + "table_raw", family + "table_mangle", family + "table_nat"}
}

// byMatch are the modules of the matches that ctplan writes, by their names.
// Those of icmp are part of the tables.
var byMatch = map[string]string{
	"comment": "xt_comment", "tcp": "xt_tcpudp", "udp": "xt_tcpudp", "multiport": "xt_multiport", "sctp": "xt_sctp", "dccp": "xt_dccp",
	"addrtype": "xt_addrtype", "mark": "xt_mark", "socket": "xt_socket", "frag": "ip6t_frag", "ipv6header": "ip6t_ipv6header",
}

func matchModules() []string {
	var out []string
	for _, m := range byMatch {
		out = append(out, m)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Loadable are chains as the kernel can have them: without comments, which only
// say who asked for a rule, where it has no xt_comment. The chains' names say
// whose they are.
func Loadable(chains []declared.Chain, l *host.Loading) []declared.Chain {
	if !l.Lacks(byMatch["comment"]) {
		return chains
	}
	out := slices.Clone(chains)
	for i := range out {
		out[i].Rules = slices.Clone(out[i].Rules)
		for j := range out[i].Rules {
			r := &out[i].Rules[j]
			r.Words, r.Text = xtables.Uncommented(r.Words), xtables.UncommentedText(r.Words, r.Text)
		}
	}
	return out
}

// Reach blocks changes that need a module which the running kernel has not, and
// cannot load: they would fail at the first step, or at the next boot.
func Reach(d declared.Desired, l host.Live, changes []change.Change) change.Findings {
	p := newStage(d, l)
	if l.Loading == nil {
		return p.Findings
	}
	for _, c := range changes {
		var needs []string
		switch c := c.(type) {
		case *change.RulesChange:
			needs = rulesNeed(c)
		case *change.NFTChange:
			needs = nativeNeeds(c)
		case *change.ModuleChange:
			if c.Load {
				needs = []string{c.Module}
			}
		case *change.ServiceChange:
			if l.Loading.Disabled {
				p.unreachable(c.M.Address, disabledKey+" = 1", "the restart is to load the module anew, and no module comes or goes until the next boot", `leave out reload = "restart-service": sizes are set while the table is in use`)
			}
		}
		needs = slices.DeleteFunc(needs, func(m string) bool { return !l.Loading.Lacks(m) })
		if len(needs) > 0 {
			slices.Sort(needs)
			list := strings.Join(slices.Compact(needs), ", ")
			why, remedy := p.outOfReach(list)
			p.unreachable(c.Meta().Address, list, why, remedy)
		}
	}
	return p.Findings
}

func (p *stage) unreachable(address, where, why, remedy string) {
	p.Block(change.Block{Risk: declared.RiskNoModule, Address: address, Where: where, Why: why, Remedy: remedy, Source: p.d.ModeSource})
}

// outOfReach says why modules cannot be had, and what to do about it.
func (p *stage) outOfReach(list string) (why, remedy string) {
	kernel := p.l.Host.Kernel
	switch {
	case p.l.Loading.Disabled:
		return "this change needs what is not loaded, and " + disabledKey + " = 1 keeps every module from loading until the next boot",
			fmt.Sprintf("name %s in a file of /etc/modules-load.d, reboot, and plan again", list)
	case !p.l.Loading.Tree:
		return fmt.Sprintf("this change needs what is not loaded, and /lib/modules/%s is gone, as after an upgrade: nothing can be loaded until the next boot", kernel),
			"reboot into the kernel that is installed, and plan again"
	}
	return fmt.Sprintf("this change needs what kernel %s has neither built in nor in /lib/modules", kernel),
		"install what the distribution has of the kernel's further modules (kernel-modules-extra, linux-modules-extra), or boot a kernel that has it"
}

// rulesNeed are the modules without which the new rules of a table cannot be.
func rulesNeed(c *change.RulesChange) []string {
	family := "ip"
	if c.Family == host.IPv6 {
		family = "ip6"
	}
	var out []string
	for _, op := range slices.Concat(c.Open, c.Close) {
		var rules []string
		switch op.Kind {
		case change.SetChain:
			rules = op.Rules
		case change.InsertRule:
			rules = []string{op.Rule}
		default:
			continue
		}
		if c.Backend == host.Legacy {
			out = append(out, family+"_tables", family+"table_"+c.Table)
		} else {
			out = append(out, "nf_tables")
		}
		for _, r := range rules {
			out = append(out, ruleNeeds(strings.Fields(r), c.Backend)...)
		}
	}
	return out
}

// nativeNeeds are the modules without which the new rules of a table of nftables
// cannot be.
func nativeNeeds(c *change.NFTChange) []string {
	out := []string{"nf_tables"}
	for _, op := range c.Ops {
		if op.Want != nil && op.Want.Chain.Base() {
			out = append(out, "nf_conntrack") // notrack stands there
		}
	}
	return out
}

// ruleNeeds are the modules of a rule's matches and target. iptables-nft has the
// kernel's own words for ports.
func ruleNeeds(words []string, b host.Backend) []string {
	var out []string
	s := xtables.Parse(words)
	for _, m := range s.Modules {
		if module := byMatch[m]; module != "" && !(b == host.NFT && module == "xt_tcpudp") {
			out = append(out, module)
		}
	}
	if s.Untracks() {
		out = append(out, "xt_CT", "nf_conntrack")
	}
	if len(out) > 0 && b == host.NFT {
		out = append(out, "nft_compat")
	}
	return out
}
