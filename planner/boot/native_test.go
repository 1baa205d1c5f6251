package boot

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// conf is a file as booted has it.
const conf = `#!/usr/sbin/nft -f
table inet fw {
	chain in {
		type filter hook input priority filter; policy drop;
		iif lo accept
		tcp dport { 22, 80 } accept
	}
}
`

// booted is a host with one native table of one chain, and the file that has it,
// or what edit makes of that.
func booted(edit func(l *host.Live) string) host.Live {
	l := host.Live{
		Boot:     &host.Boot{Init: host.InitSystemd, Services: []string{"nftables"}},
		Rulesets: []host.Ruleset{{Family: host.IPv4, Backend: host.NFT, Primary: true}},
		NFT: []host.NFTTable{{Family: "inet", Name: "fw", Whole: true, Chains: []host.NFTChain{{
			Name: "in", Type: "filter", Hook: "input", Policy: "drop",
			Rules: []host.NFTRule{{Handle: 4, Text: `iif "lo" accept`}, {Handle: 5, Text: "tcp dport { 80, 22 } counter packets 1 bytes 2 accept"}},
		}}}},
	}
	l.NFTFiles = append(l.NFTFiles, nftconf.Parse(host.File{Path: "/etc/nftables.conf", Content: edit(&l)}))
	l.NFTConf = nftconf.Of(l.Boot, l.NFTFiles)
	return l
}

// replaced is conf with something in the place of something.
func replaced(old, with string) func(*host.Live) string {
	return func(*host.Live) string { return strings.Replace(conf, old, with, 1) }
}

func TestNative(t *testing.T) {
	for name, tt := range map[string]struct {
		edit   func(l *host.Live) string
		state  NativeState
		source string
	}{
		"the same": {replaced("", ""), NativeSame, "/etc/nftables.conf:2"},
		"a rule that was added by hand": {func(l *host.Live) string {
			l.NFT[0].Chains[0].Rules = append(l.NFT[0].Chains[0].Rules, host.NFTRule{Handle: 9, Text: "udp dport 53 accept"})
			return conf
		}, NativeOther, "/etc/nftables.conf:3 does not have the rule with handle 9: udp dport 53 accept"},
		"another rule":             {replaced("tcp dport { 22, 80 } accept", "drop"), NativeOther, "/etc/nftables.conf:6 has another rule there: drop"},
		"a rule more in the file":  {replaced("80 } accept", "80 } accept\n\n\t\tdrop"), NativeOther, "/etc/nftables.conf:8 has another rule there: drop"},
		"another policy":           {replaced("policy drop;", ""), NativeOther, "policy accept"},
		"another hook":             {replaced("hook input", "hook forward"), NativeOther, "calls the chain in elsewhere"},
		"another chain":            {replaced("chain in", "chain out"), NativeOther, "has a chain out, which is not there now"},
		"not followed":             {replaced("priority filter", "priority nowhere"), NativeUnknown, "/etc/nftables.conf:4: where the kernel calls the chain is not known"},
		"a place not known":        {func(*host.Live) string { return conf + "insert rule inet fw in handle 4 drop\n" }, NativeUnknown, "/etc/nftables.conf:9: a rule whose place is not known"},
		"a file that is not there": {func(*host.Live) string { return "include \"/etc/fw\"\n" + conf }, NativeUnknown, "/etc/nftables.conf:1: it includes /etc/fw, which was not read"},
		"a set": {func(l *host.Live) string {
			l.NFT[0].Chains[0].Rules[0].Text = "ip saddr @a accept"
			return strings.Replace(conf, "iif lo", "ip saddr @a", 1)
		}, NativeUnknown, "/etc/nftables.conf:5 names a set"},
		"rules of its own": {func(l *host.Live) string {
			return strings.Replace(conf, "iif lo accept", "iif lo jump { accept; }", 1)
		}, NativeUnknown, "/etc/nftables.conf:5: what this rule says was not followed"},
		"by definitions": {func(*host.Live) string {
			return "define ports = { 22, 80 }\n" + strings.Replace(conf, "{ 22, 80 }", "$ports", 1)
		}, NativeSame, "/etc/nftables.conf:3"},
		"not enabled":    {func(l *host.Live) string { l.Boot.Services = nil; return conf }, NativeIdle, "is not enabled"},
		"not read whole": {func(l *host.Live) string { l.NFT[0].Whole = false; return conf }, NativeUnknown, "not read whole"},
		"in no file":     {replaced("inet fw", "inet other"), NativeIdle, "no file that nftables.service loads has it"},
		"a script loads another": {func(l *host.Live) string {
			l.Boot.Services, l.Boot.Restorers = nil, []host.Restorer{{By: "/etc/rc.local", At: "/etc/rc.local:2", Does: host.DoNative, File: "/etc/my.nft"}}
			return conf
		}, NativeUnknown, "/etc/rc.local:2 runs nft"},
		"a script adds to it": {func(l *host.Live) string {
			l.Boot.Restorers = []host.Restorer{{By: "/etc/rc.local", At: "/etc/rc.local:2", Does: host.DoNative}}
			return conf
		}, NativeUnknown, "/etc/rc.local:2 runs nft too"},
		"another file is loaded":    {func(l *host.Live) string { l.Boot.NFTables = []string{"/etc/fw.nft"}; return conf }, NativeIdle, "no file"},
		"made by somebody":          {func(l *host.Live) string { l.NFT[0].Name = "firewalld"; return conf }, NativeMade, "firewalld"},
		"an init that nobody knows": {func(l *host.Live) string { l.Boot.Init = ""; return conf }, NativeUnknown, "does not know how this host boots"},
	} {
		got := Foresee(booted(tt.edit)).Native
		if len(got) != 1 || got[0].State != tt.state || !strings.Contains(got[0].Source, tt.source) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFlush: a file that flushes the ruleset takes what was restored before.
func TestFlush(t *testing.T) {
	rules := func(edit func(l *host.Live) string) Rules {
		return Foresee(booted(func(l *host.Live) string {
			l.Boot.Services = append(l.Boot.Services, "netfilter-persistent")
			l.SavedRules = []host.Ruleset{{Family: host.IPv4, File: &host.File{Path: "/etc/iptables/rules.v4", Exists: true}, Tables: []host.Table{{Name: "filter", Rules: []host.Rule{{Chain: "INPUT", Words: []string{"-j", "ACCEPT"}}}}}}}
			return edit(l)
		})).Rules[0]
	}
	const flush = "flush ruleset\n" + conf
	if got := rules(func(*host.Live) string { return flush }); got.State != RulesUnknown || got.Rules != 0 || !strings.Contains(got.Source, "/etc/nftables.conf:1 flushes") {
		t.Errorf("%+v", got)
	}
	for name, edit := range map[string]func(l *host.Live) string{
		"no flush":         func(*host.Live) string { return conf },
		"not enabled":      func(l *host.Live) string { l.Boot.Services = l.Boot.Services[1:]; return flush },
		"iptables-legacy":  func(l *host.Live) string { l.Rulesets[0].Backend = host.Legacy; return flush },
		"no iptables here": func(l *host.Live) string { l.Rulesets = nil; return flush },
	} {
		if got := rules(edit); got.State != RulesRestored || got.Rules != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
