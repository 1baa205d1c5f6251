package boot

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

// booted is a host with one native table of one chain, and what a file says of it.
func booted(edit func(l *host.Live, c *host.NFTFileChain)) host.Live {
	c := host.NFTFileChain{Family: "inet", Table: "fw", Name: "in", Line: 3, Rules: []int{5, 6}, Base: "filter input 0", Policy: "drop",
		Texts: []string{"iif lo accept", "tcp dport {22,80} accept"}}
	l := host.Live{
		Boot:     &host.Boot{Init: host.InitSystemd, Services: []string{"nftables"}},
		Rulesets: []host.Ruleset{{Family: host.IPv4, Backend: host.NFT, Primary: true}},
		NFT: []host.NFTTable{{Family: "inet", Name: "fw", Whole: true, Chains: []host.NFTChain{{
			Name: "in", Type: "filter", Hook: "input", Policy: "drop",
			Rules: []host.NFTRule{{Handle: 4, Text: `iif "lo" accept`}, {Handle: 5, Text: "tcp dport { 80, 22 } counter packets 1 bytes 2 accept"}},
		}}}},
	}
	edit(&l, &c)
	l.NFTFiles = append(l.NFTFiles, host.NFTFile{File: host.File{Path: "/etc/nftables.conf"}, Chains: []host.NFTFileChain{{Family: "inet", Table: "fw", Line: 2}, c}})
	return l
}

func TestNative(t *testing.T) {
	for name, tt := range map[string]struct {
		edit   func(l *host.Live, c *host.NFTFileChain)
		state  NativeState
		source string
	}{
		"the same": {func(*host.Live, *host.NFTFileChain) {}, NativeSame, "/etc/nftables.conf:2"},
		"a rule that was added by hand": {func(l *host.Live, _ *host.NFTFileChain) {
			l.NFT[0].Chains[0].Rules = append(l.NFT[0].Chains[0].Rules, host.NFTRule{Handle: 9, Text: "udp dport 53 accept"})
		}, NativeOther, "/etc/nftables.conf:3 does not have the rule with handle 9: udp dport 53 accept"},
		"another rule": {func(_ *host.Live, c *host.NFTFileChain) { c.Texts[1] = "drop" }, NativeOther, "/etc/nftables.conf:6 has another rule there: drop"},
		"a rule more in the file": {func(_ *host.Live, c *host.NFTFileChain) {
			c.Texts, c.Rules = append(c.Texts, "drop"), append(c.Rules, 8)
		}, NativeOther, "/etc/nftables.conf:8 has another rule there: drop"},
		"another policy": {func(_ *host.Live, c *host.NFTFileChain) { c.Policy = "" }, NativeOther, "policy accept"},
		"another hook":   {func(_ *host.Live, c *host.NFTFileChain) { c.Base = "filter forward 0" }, NativeOther, "calls the chain in elsewhere"},
		"another chain":  {func(_ *host.Live, c *host.NFTFileChain) { c.Name = "out" }, NativeOther, "has a chain out, which is not there now"},
		"not followed":   {func(_ *host.Live, c *host.NFTFileChain) { c.Unsure = true }, NativeUnknown, "was not followed"},
		"a set": {func(l *host.Live, c *host.NFTFileChain) {
			c.Texts[0], l.NFT[0].Chains[0].Rules[0].Text = "ip saddr @a accept", "ip saddr @a accept"
		}, NativeUnknown, "/etc/nftables.conf:5 names a set"},
		"two files": {func(l *host.Live, c *host.NFTFileChain) {
			l.NFTFiles = []host.NFTFile{{File: host.File{Path: "/etc/b"}, Chains: []host.NFTFileChain{*c}}}
		}, NativeUnknown, "both have rules of its chain in"},
		"not enabled":               {func(l *host.Live, _ *host.NFTFileChain) { l.Boot.Services = nil }, NativeIdle, "is not enabled"},
		"not read whole":            {func(l *host.Live, _ *host.NFTFileChain) { l.NFT[0].Whole = false }, NativeUnknown, "not read whole"},
		"in no file":                {func(_ *host.Live, c *host.NFTFileChain) { c.Table = "other" }, NativeOther, "no file has its chain in"},
		"made by somebody":          {func(l *host.Live, _ *host.NFTFileChain) { l.NFT[0].Name = "firewalld" }, NativeMade, "firewalld"},
		"an init that nobody knows": {func(l *host.Live, _ *host.NFTFileChain) { l.Boot.Init = "" }, NativeUnknown, "does not know how this host boots"},
	} {
		got := Foresee(booted(tt.edit)).Native
		if len(got) != 1 || got[0].State != tt.state || !strings.Contains(got[0].Source, tt.source) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFlush: a file that flushes the ruleset takes what was restored before.
func TestFlush(t *testing.T) {
	rules := func(edit func(l *host.Live)) Rules {
		l := booted(func(l *host.Live, _ *host.NFTFileChain) {
			l.Boot.Services = append(l.Boot.Services, "netfilter-persistent")
			l.SavedRules = []host.Ruleset{{Family: host.IPv4, File: &host.File{Path: "/etc/iptables/rules.v4", Exists: true}, Tables: []host.Table{{Name: "filter", Rules: []host.Rule{{Chain: "INPUT", Words: []string{"-j", "ACCEPT"}}}}}}}
			l.NFTFiles = []host.NFTFile{{File: host.File{Path: "/etc/nftables.d/a"}, Flush: 2}}
		})
		edit(&l)
		return Foresee(l).Rules[0]
	}
	if got := rules(func(*host.Live) {}); got.State != RulesUnknown || got.Rules != 0 || !strings.Contains(got.Source, "/etc/nftables.d/a:2 flushes") {
		t.Errorf("%+v", got)
	}
	for name, edit := range map[string]func(l *host.Live){
		"no flush":         func(l *host.Live) { l.NFTFiles[0].Flush = 0 },
		"not enabled":      func(l *host.Live) { l.Boot.Services = l.Boot.Services[1:] },
		"iptables-legacy":  func(l *host.Live) { l.Rulesets[0].Backend = host.Legacy },
		"no iptables here": func(l *host.Live) { l.Rulesets = nil },
	} {
		if got := rules(edit); got.State != RulesRestored || got.Rules != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
