package boot

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// restorers are the services that restore saved rules files that nobody named
// otherwise.
var restorers = map[string][]string{
	"/etc/iptables/rules.v4":   {"netfilter-persistent", "iptables-persistent"},
	"/etc/iptables/rules.v6":   {"netfilter-persistent", "iptables-persistent"},
	"/etc/sysconfig/iptables":  {"iptables"},
	"/etc/sysconfig/ip6tables": {"ip6tables"},
}

// restore is the services that restore saved rules.
func (f *foresight) restore() {
	for _, family := range host.Families {
		none := true
		for i := range f.l.SavedRules {
			r := &f.l.SavedRules[i]
			if r.Family == family && r.File.Exists {
				none = false
				f.out.Rules = append(f.out.Rules, f.restoreFile(r))
			}
		}
		if none {
			f.out.Rules = append(f.out.Rules, Rules{Family: family, State: RulesNone, Source: "no saved rules file"})
		}
	}
}

func (f *foresight) restoreFile(r *host.Ruleset) Rules {
	out := Rules{Family: r.Family, File: r.File.Path, State: RulesUnknown}
	services, known := restorers[r.File.Path]
	at := slices.IndexFunc(services, f.enabled)
	switch {
	case f.boot.Init == "":
		out.Source = "ctplan does not know how this host boots"
		return out
	case !known:
		out.Source = "ctplan does not know what restores this file"
		return out
	case at < 0:
		out.State, out.Source = RulesIdle, services[0]+" is not enabled, and ctplan knows of nothing else that restores this file"
		return out
	case r.Refusal != "":
		out.Source = etc.Place(r.File.Path, r.RefusalLine) + ": " + r.Refusal
		return out
	}
	out.State, out.Source = RulesRestored, services[at]
	stand := map[string]int{}
	for i := range r.Tables {
		t := &r.Tables[i]
		if needy := xtables.FirstNeedy(t); needy != nil && !f.tracks() {
			switch state, why := f.loads("nf_conntrack"); state {
			case ModuleUnloaded:
				// What comes before in the file stands by then: each table is
				// committed by itself.
				out.State, out.Source = RulesFail, fmt.Sprintf("%s needs nf_conntrack: %s", etc.Place(r.File.Path, needy.Line), why)
				return out
			case ModuleUnknown:
				out.State, out.Source = RulesUnknown, fmt.Sprintf("%s needs nf_conntrack: %s", etc.Place(r.File.Path, needy.Line), why)
				f.out.Module = Module{state, why}
				return out
			}
			f.out.Module = Module{ModuleLoaded, etc.Place(r.File.Path, needy.Line) + " needs it"}
			// netfilter-persistent.service and systemd-sysctl.service both come
			// after systemd-modules-load.service, and in no order of their own.
			f.racing = f.boot.Init == host.InitSystemd && at == 0 && services[at] == "netfilter-persistent"
		}
		// A table that comes again is flushed.
		out.Rules += len(t.Rules) - stand[t.Name]
		stand[t.Name] = len(t.Rules)
	}
	if flush := f.flushes(r.Family); flush != "" {
		out.State, out.Rules = RulesUnknown, 0
		out.Source = fmt.Sprintf("%s flushes the rules of all, and nothing orders nftables.service and %s", flush, services[at])
	}
	return out
}

// failed reports whether a service gave up on its rules file; then it loads no
// further modules and sets no sysctls.
func (f *foresight) failed(service string) bool {
	return slices.ContainsFunc(f.out.Rules, func(r Rules) bool {
		return r.State == RulesFail && slices.Contains(restorers[r.File], service)
	})
}
