package boot

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

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
			out := Rules{Family: family, State: RulesNone, Source: "no saved rules file"}
			for _, r := range f.boot.Restorers {
				if r.Does != host.DoNative && (r.Family == "" || r.Family == family) {
					out.Source += "; " + r.At + " " + does[r.Does]
					break
				}
			}
			f.out.Rules = append(f.out.Rules, out)
		}
	}
}

// does is what a restorer does, told of a place.
var does = map[host.RestorerDo]string{
	host.DoRestore: "restores a file that is not known or not there", host.DoAdd: "adds rules from a file",
	host.DoMake: "makes rules", host.DoFlush: "flushes rules", host.DoUnknown: "may make rules",
}

// holds is whether a restorer's file is one of the saved rules files.
func (f *foresight) holds(r host.Restorer) bool {
	return slices.ContainsFunc(f.l.SavedRules, func(s host.Ruleset) bool {
		return s.File != nil && s.File.Exists && s.Family == r.Family && s.File.Path == r.File
	})
}

// evidence is the command that leaves a file's rules in place: the last to restore
// it; and what comes to undo that, or may.
func (f *foresight) evidence(r *host.Ruleset) (by *host.Restorer, undoes, may *host.Restorer) {
	list := f.boot.Restorers
	for i := range list {
		o := &list[i]
		switch {
		case o.Family != "" && o.Family != r.Family || o.Does == host.DoNative || o.Does == host.DoAdd || o.Does == host.DoMake:
		case o.Does == host.DoRestore && o.File == r.File.Path:
			by, undoes = o, nil
		case by != nil && by.By == o.By && o.Does != host.DoUnknown:
			undoes = o
		}
	}
	for i := range list {
		o := &list[i]
		if (o.Family == "" || o.Family == r.Family) && (by == nil || o.By != by.By) &&
			(o.Does == host.DoUnknown || o.Does == host.DoFlush || o.Does == host.DoRestore && o.File != r.File.Path) {
			may = o
			break
		}
	}
	return by, undoes, may
}

func (f *foresight) restoreFile(r *host.Ruleset) Rules {
	out := Rules{Family: r.Family, File: r.File.Path, State: RulesUnknown}
	services, known := etc.RestorersOf(r.File.Path)
	at := slices.IndexFunc(services, f.enabled)
	by, undoes, may := f.evidence(r)
	switch {
	case f.boot.Init == "":
		out.Source = "ctplan does not know how this host boots"
		return out
	case at < 0 && by == nil && may != nil:
		out.Source = fmt.Sprintf("nothing was found that restores it, and %s %s", may.At, does[may.Does])
		return out
	case at < 0 && by == nil && !known:
		out.Source = "nothing was found that restores it"
		return out
	case at < 0 && by == nil:
		out.State, out.Source = RulesIdle, services[0]+" is not enabled, and ctplan knows of nothing else that restores this file"
		return out
	case r.Refusal != "":
		out.Source = etc.Place(r.File.Path, r.RefusalLine) + ": " + r.Refusal
		return out
	}
	out.State = RulesRestored
	restorer := ""
	if at >= 0 {
		restorer = services[at]
	} else {
		restorer = by.At
	}
	out.Source = restorer
	if undoes != nil && at < 0 {
		out.State, out.Source = RulesIdle, fmt.Sprintf("%s restores it, and %s %s after that", by.At, undoes.At, does[undoes.Does])
		return out
	}
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
			f.racing = f.boot.Init == host.InitSystemd && restorer == "netfilter-persistent"
		}
		// A table that comes again is flushed.
		out.Rules += len(t.Rules) - stand[t.Name]
		stand[t.Name] = len(t.Rules)
	}
	if flush := f.flushes(r.Family); flush != "" {
		out.State, out.Rules = RulesUnknown, 0
		out.Source = fmt.Sprintf("%s flushes the rules of all, and nothing orders nftables.service and %s", flush, restorer)
	}
	if may != nil && out.State == RulesRestored {
		out.State, out.Rules = RulesUnknown, 0
		out.Source = fmt.Sprintf("%s restores it, %s %s, and ctplan does not know which comes last", restorer, may.At, does[may.Does])
	}
	return out
}

// failed reports whether a service gave up on its rules file; then it loads no
// further modules and sets no sysctls.
func (f *foresight) failed(service string) bool {
	return slices.ContainsFunc(f.out.Rules, func(r Rules) bool {
		services, _ := etc.RestorersOf(r.File)
		return r.State == RulesFail && slices.Contains(services, service)
	})
}
