package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
)

// lacking is a host of modules on which all that a plan may need can be had but
// the named ones.
func lacking(t *testing.T, b host.Backend, l host.Loading, without ...string) host.Live {
	t.Helper()
	live := testHost(parseLines(t, host.IPv4, statefulInput))
	live.Rulesets[0].Backend = b
	live.Conntrack = host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: 512, InitialNetns: true}
	live.Modules = []host.Module{{Name: "nf_conntrack", Refs: 1}}
	l.Usable = slices.DeleteFunc(slices.Clone(modules.Used), func(m string) bool { return slices.Contains(without, m) })
	live.Loading = &l
	return live
}

// TestOutOfReach: what a plan needs and the kernel cannot load blocks it, with the
// reason; what it does not need does not.
func TestOutOfReach(t *testing.T) {
	tree, disabled := host.Loading{Tree: true}, host.Loading{Tree: true, Disabled: true}
	untrack := untrackTCP(map[string][]string{"INPUT": {"-p tcp -m multiport --dports 22,80 -m comment --comment web -j ACCEPT"}})
	sized := declared.Desired{Mode: declared.Tuned, Families: []host.Family{host.IPv4}, Max: &declared.Setting{Value: 4096}, Hashsize: &declared.Setting{Value: 1024}}
	off := declared.Desired{Mode: declared.Disabled, Families: []host.Family{host.IPv4}, StatefulRules: declared.RemoveStateful}
	held := off
	held.AllowRisk = []declared.Risk{declared.RiskModuleHeld}
	unloaded := func(l host.Live) host.Live {
		l.Conntrack, l.Modules = host.Conntrack{Kind: host.ConntrackModule, InitialNetns: true}, []host.Module{}
		return l
	}
	for name, tt := range map[string]struct {
		d    declared.Desired
		l    host.Live
		want string // risk, address, module and a part of the reason of each block
	}{
		"nothing lacks":           {untrack, lacking(t, host.Legacy, tree), ""},
		"no xt_CT":                {untrack, lacking(t, host.Legacy, tree, "xt_CT"), "no_module iptables.ipv4.raw xt_CT: neither built in nor in"},
		"no xt_CT, nft":           {untrack, lacking(t, host.NFT, tree, "xt_CT"), "no_module iptables.ipv4.raw xt_CT: neither built in nor in"},
		"no multiport, disabled":  {untrack, lacking(t, host.Legacy, disabled, "xt_multiport"), "no_module iptables.ipv4.filter xt_multiport: kernel.modules_disabled"},
		"no tree":                 {untrack, lacking(t, host.Legacy, host.Loading{}, "xt_CT", "iptable_raw"), "no_module iptables.ipv4.raw iptable_raw, xt_CT: /lib/modules/6.1.0 is gone"},
		"no compat":               {untrack, lacking(t, host.NFT, tree, "nft_compat"), "no_module iptables.ipv4.filter nft_compat: neither\nno_module iptables.ipv4.raw nft_compat: neither"},
		"compat of no use":        {untrack, lacking(t, host.Legacy, tree, "nft_compat", "nf_tables"), ""},
		"no comments":             {untrack, lacking(t, host.Legacy, tree, "xt_comment"), ""},
		"sizes need no rules":     {sized, lacking(t, host.Legacy, disabled, "xt_CT", "ip_tables"), ""},
		"a table to load":         {sized, unloaded(lacking(t, host.Legacy, disabled, "nf_conntrack")), "no_module module.nf_conntrack nf_conntrack: kernel.modules_disabled"},
		"a table from no tree":    {sized, unloaded(lacking(t, host.Legacy, host.Loading{}, "nf_conntrack")), "no_module module.nf_conntrack nf_conntrack: is gone"},
		"unloading":               {off, lacking(t, host.Legacy, tree), ""},
		"unloading, disabled":     {off, lacking(t, host.Legacy, disabled), "module_held module.nf_conntrack kernel.modules_disabled = 1: no module can be unloaded"},
		"unloading, left":         {held, lacking(t, host.Legacy, disabled), ""},
		"unloading needs no tree": {off, lacking(t, host.Legacy, host.Loading{}, "xt_CT"), ""},
	} {
		p := Diff(tt.d, tt.l)
		want := strings.Split(tt.want, "\n")
		if tt.want == "" {
			want = nil
		}
		ok := len(p.Blocks) == len(want)
		for i := range min(len(want), len(p.Blocks)) {
			b := p.Blocks[i]
			head, part, _ := strings.Cut(want[i], ": ")
			ok = ok && head == string(b.Risk)+" "+b.Address+" "+b.Where && strings.Contains(b.Why, part)
		}
		if !ok {
			t.Errorf("%s: blocked by %+v, want %q", name, p.Blocks, tt.want)
		}
		if name == "unloading, left" && strings.Contains(brief(p), "module.") {
			t.Errorf("%s: %s", name, brief(p))
		}
	}
}

// TestWithoutComments: where the kernel has no comments, the rules come without,
// and are as declared then; somebody else's comment is a difference.
func TestWithoutComments(t *testing.T) {
	d := untrackTCP(map[string][]string{"INPUT": {"-p tcp -m tcp --dport 22 -m comment --comment ssh -j ACCEPT"}})
	l := lacking(t, host.Legacy, host.Loading{Tree: true}, "xt_comment")
	for _, s := range rulesSections(Diff(d, l)) {
		for _, op := range s.Ops {
			if strings.Contains(strings.Join(op.Rules, "\n"), "comment") {
				t.Errorf("%+v", op)
			}
		}
	}
	const standing = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:CTPLAN-PREROUTING -\n:CTPLAN-OUTPUT -\n-A PREROUTING -j CTPLAN-PREROUTING\n-A OUTPUT -j CTPLAN-OUTPUT\n" +
		"-A CTPLAN-PREROUTING -p tcp -j CT --notrack\n-A CTPLAN-OUTPUT -p tcp -j CT --notrack\nCOMMIT\n*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:CTPLAN-INPUT -\n-A INPUT -j CTPLAN-INPUT\n" +
		"-A CTPLAN-INPUT -p tcp -m tcp --dport 22 COMMENT-j ACCEPT\nCOMMIT\n"
	for comment, same := range map[string]bool{"": true, "-m comment --comment ssh ": true, "-m comment --comment web ": false} {
		for _, without := range []string{"xt_comment", "none"} {
			if without == "xt_comment" && comment != "" {
				continue
			}
			l := lacking(t, host.Legacy, host.Loading{Tree: true}, without)
			l.Rulesets = []host.Ruleset{parseLines(t, host.IPv4, strings.ReplaceAll(standing, "COMMENT", comment))}
			l.Rulesets[0].Backend = host.Legacy
			if p := Diff(d, l); p.Empty() != same {
				t.Errorf("with %q on a kernel without %s: %s", comment, without, brief(p))
			}
		}
	}
}

// TestUnseen: what could not be read makes the impact not known, and blocks until
// the HCL accepts it; where no rule changes it is of no account.
func TestUnseen(t *testing.T) {
	d := untrackTCP(map[string][]string{"INPUT": {"-p tcp -m tcp --dport 22 -j ACCEPT"}, "OUTPUT": {"-p tcp -j ACCEPT"}})
	unread := host.Connections{Unread: []host.Unread{{What: "the sockets", Why: "no such file"}}}
	p := impactPlan(t, d, statefulInput, unread)
	i := slices.IndexFunc(p.Blocks, func(b change.Block) bool { return b.Risk == declared.RiskUnseen })
	if i < 0 || !p.Blocks[i].Override || p.Blocks[i].Where != "the sockets" || len(p.Impact.NotKnown) != 1 {
		t.Errorf("%+v\n%+v", p.Blocks, p.Impact)
	}
	d.AllowRisk = []declared.Risk{declared.RiskUnseen}
	if p := impactPlan(t, d, statefulInput, unread); slices.ContainsFunc(p.Blocks, func(b change.Block) bool { return b.Risk == declared.RiskUnseen }) || len(p.Impact.NotKnown) != 1 {
		t.Errorf("accepted: %+v\n%+v", p.Blocks, p.Impact)
	}
	tuned := declared.Desired{Mode: declared.Tuned, Families: []host.Family{host.IPv4}, Max: &declared.Setting{Value: 4096}, Hashsize: &declared.Setting{Value: 1024}}
	if p := impactPlan(t, tuned, statefulInput, unread); p.Blocked() || p.Impact != nil {
		t.Errorf("%+v", p)
	}
}
