package rules

import (
	"fmt"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// keepsWork blocks the plan for a rule that has tracking do what nothing else
// can. It reports whether the HCL lets that go.
func (p *stage) keepsWork(r *host.Ruleset, table string, rule *host.Rule, named map[declared.Risk]int) bool {
	risk := xtables.WorkOf(xtables.Parse(rule.Words))
	if risk == "" || p.d.Allows(risk) {
		return risk == "" || p.Block(p.work(risk, xtables.Address(r, table), xtables.Where(r, rule), xtables.MadeBy(rule)))
	}
	if named[risk]++; named[risk] <= change.MaxNamed {
		p.Block(p.work(risk, xtables.Address(r, table), xtables.Where(r, rule), xtables.MadeBy(rule)))
	}
	return false
}

// work is the block for what only tracking can do.
func (p *stage) work(risk declared.Risk, address, where, by string) change.Block {
	remedy := `leave what it is about tracked: narrow the notrack blocks until they leave that alone, or use mode = "tuned"`
	if p.d.Mode == declared.Disabled {
		remedy = `use mode = "notrack" for other traffic, or mode = "tuned"`
	}
	if risk == declared.RiskConnectionMarks {
		remedy += ". Where a packet shows by itself which mark it needs, by an interface or its addresses, MARK sets it without tracking"
	}
	return change.Block{
		Risk: risk, Address: address, Where: where, Why: "this rule" + by + " has tracking do more than tell states: " + declared.Losses[risk],
		Remedy: remedy + fmt.Sprintf(`; or allow_risk = [%q] to go without`, risk), Override: true, Source: p.d.Source,
	}
}

// nativeWork is the same for the rules of nftables' own, which stay, and find
// nothing in what is no longer tracked; and for what works with the table beside
// rules. In disabled the former hold the module, which blocks by itself.
func (p *stage) nativeWork() {
	if p.d.Mode == declared.Tuned {
		return
	}
	p.otherWork()
	if p.d.Mode == declared.Disabled {
		return
	}
	named := map[declared.Risk]int{}
	for i := range p.l.NFT {
		t := &p.l.NFT[i]
		for k := range t.Items {
			item := &t.Items[k]
			if item.Kind != "rule" {
				continue
			}
			risk := nftables.WorkOf(t, item)
			if risk == "" || !p.untracksNative(t, item) {
				continue
			}
			by := nftables.MadeBy(*t, *item)
			if by != "" {
				by = " (made by " + by + ")"
			}
			if named[risk]++; named[risk] <= change.MaxNamed {
				p.Block(p.work(risk, "nftables."+t.Family+"."+t.Name, nftables.Describe(*t, *item), by))
			}
		}
	}
	for _, risk := range declared.Risks {
		if n := named[risk]; n > change.MaxNamed {
			p.Block(p.work(risk, "nftables", fmt.Sprintf("and %s like these", words.Plural(n-change.MaxNamed, "more rule", "more rules")), ""))
		}
	}
}

// untracksNative is whether the declared notrack traffic touches what a rule of
// nftables' own matches.
func (p *stage) untracksNative(t *host.NFTTable, i *host.NFTItem) bool {
	q, hook := nftables.PacketsOf(t, i)
	chain := map[string]string{"prerouting": "PREROUTING", "input": "INPUT", "forward": "FORWARD", "output": "OUTPUT", "ingress": "PREROUTING", "egress": "OUTPUT"}[hook]
	for _, f := range host.Families {
		if t.Family == "ip" && f == host.IPv6 || t.Family == "ip6" && f == host.IPv4 || t.Family == "arp" {
			continue
		}
		if touched, _ := p.untracks(f, chain, q); touched {
			return true
		}
	}
	return false
}

// otherWork is for programs and parts of the kernel that work with the table.
func (p *stage) otherWork() {
	if p.d.Mode == declared.Notrack && len(p.untrack) == 0 {
		return
	}
	if p.l.Sysctls[host.SysctlIPVSConntrack].Value == "1" {
		b := p.work(declared.RiskIPVS, "sysctl."+host.SysctlIPVSConntrack, "sysctl "+host.SysctlIPVSConntrack+" = 1", "")
		b.Why = "IPVS works with the table of connections here: " + declared.Losses[declared.RiskIPVS]
		p.Block(b)
	}
	if p.l.Boot == nil {
		return
	}
	for _, list := range [][]string{p.l.Boot.Running, p.l.Boot.Services} {
		for _, s := range list {
			if s == "conntrackd" {
				b := p.work(declared.RiskConntrackd, "service.conntrackd", "service conntrackd", "")
				b.Why = "it works with the table of connections: " + declared.Losses[declared.RiskConntrackd]
				p.Block(b)
				return
			}
		}
	}
}
