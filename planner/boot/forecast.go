// Package boot foretells what a host boots into, from the files that boot reads,
// in the order of a boot.
package boot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// ModuleState is what becomes of nf_conntrack at boot.
type ModuleState string

// The states.
const (
	ModuleLoaded   ModuleState = "loaded"
	ModuleUnloaded ModuleState = "unloaded"
	ModuleBuiltin  ModuleState = "builtin"
	ModuleAbsent   ModuleState = "absent"
	ModuleUnknown  ModuleState = "unknown"
)

// RulesState is what becomes of a saved rules file at boot.
type RulesState string

// The states.
const (
	RulesRestored RulesState = "restored"
	RulesFail     RulesState = "fail"    // restoring stops at the first rule that cannot be loaded
	RulesIdle     RulesState = "idle"    // nothing that ctplan knows of restores the file
	RulesNone     RulesState = "none"    // the family has no saved file
	RulesUnknown  RulesState = "unknown" // Source says why
)

// Forecast is what a host boots into, computed from the files that boot reads.
// It says nothing of what happens later, and takes for granted that services
// do what they do where nobody changed them.
type Forecast struct {
	Module   Module   `json:"module"`
	Max      *Value   `json:"max,omitempty"`      // entries; nil where the module is not loaded
	Hashsize *Value   `json:"hashsize,omitempty"` // buckets; nil where the module is not loaded
	Sysctls  []Value  `json:"sysctls"`            // other keys of connection tracking that boot sets, by name
	Rules    []Rules  `json:"rules"`              // at least one of each family
	Native   []Native `json:"native"`             // tables of native nftables that the kernel calls now
}

// Module is whether boot loads nf_conntrack.
type Module struct {
	State  ModuleState `json:"state"`
	Source string      `json:"source"` // what decides it: "/etc/modules-load.d/netfilter.conf:1", or a sentence
}

// Value is a number as it is after a boot.
type Value struct {
	Key    string `json:"key,omitempty"` // of a sysctl
	Known  bool   `json:"known"`
	Value  int64  `json:"value"`  // 0 where it is not known
	Source string `json:"source"` // file:line, or how the kernel chooses it; of a value that is not known, why
}

// Rules is what becomes of a saved rules file.
type Rules struct {
	Family host.Family `json:"family"`
	File   string      `json:"file,omitempty"`
	State  RulesState  `json:"state"`
	Rules  int         `json:"rules"`  // that stand after the boot, of this file
	Source string      `json:"source"` // the service that restores it, or why it is not restored
}

// foresight is one run of Foresee.
type foresight struct {
	l     host.Live
	boot  host.Boot
	out   Forecast
	early bool // nf_conntrack is loaded before sysctls are set
	// extra are the parameters that modules-load.d or /etc/modules loads nf_conntrack
	// with, and where they stand.
	extra, extraAt string
	racing         bool // it is loaded by a service that starts at the same time
}

// Foresee says what the host boots into, in the order of a boot: modules-load.d
// (systemd-modules-load(8)), sysctl.d (systemd-sysctl(8), or sysctl(8)
// --system), then the services that restore rules, which load the modules that
// their rules need. Sizes are those of the initial network namespace.
func Foresee(l host.Live) Forecast {
	f := &foresight{l: l}
	if l.Boot != nil {
		f.boot = *l.Boot
	}
	f.out.Sysctls = []Value{}
	switch l.Conntrack.Kind {
	case host.ConntrackAbsent:
		f.out.Module = Module{ModuleAbsent, "kernel " + l.Host.Kernel + " has no connection tracking"}
	case host.ConntrackBuiltin:
		f.out.Module, f.early = Module{ModuleBuiltin, "kernel " + l.Host.Kernel + " has it built in"}, true
	default:
		f.loadEarly()
	}
	f.restore()
	f.native()
	f.loadLate()
	f.sizes()
	return f.out
}

// tracks reports whether the module is there, as far as the boot has come.
func (f *foresight) tracks() bool {
	return f.out.Module.State == ModuleLoaded || f.out.Module.State == ModuleBuiltin
}

// loadEarly is systemd-modules-load(8), or what Debian has without systemd:
// /etc/init.d/kmod, which heeds no blacklist and takes parameters.
func (f *foresight) loadEarly() {
	f.out.Module = Module{ModuleUnloaded, "nothing that boot reads loads it"}
	systemd := f.boot.Init == host.InitSystemd
	try := func(module, params, at string) {
		if f.tracks() {
			return
		}
		name := module
		module, how, unsure := f.pullsIn(name)
		n, _ := f.named(name)
		switch gone := n.Gone; {
		case how == "" && gone != "" && f.out.Module.State == ModuleUnloaded:
			f.out.Module.Source = fmt.Sprintf("%s names %s, which kernel %s does not have", at, name, gone)
			return
		case how == "":
			return
		case unsure != "":
			f.out.Module = Module{ModuleUnknown, fmt.Sprintf("%s names %s, and %s", at, name, unsure)}
			return
		}
		if by := f.blacklisted(module); by != "" && systemd {
			f.out.Module.Source = fmt.Sprintf("%s names %s, and %s blacklists it", at, module, by)
			return
		}
		if module == "nf_conntrack" {
			f.extra, f.extraAt = params, at
		}
		state, why := f.loads(module)
		switch {
		case state == ModuleLoaded:
			f.out.Module, f.early = Module{state, at}, true
		case f.out.Module.State != ModuleUnknown:
			f.out.Module = Module{state, why}
		}
	}
	if systemd {
		for _, list := range slices.Concat(f.cmdline("modules_load="), f.cmdline("rd.modules_load=")) {
			for m := range strings.SplitSeq(list, ",") {
				try(strings.ReplaceAll(m, "-", "_"), "", "the kernel's command line")
			}
		}
	}
	for _, file := range f.l.ModulesLoad {
		if !f.reads(file.File, file.As, "modules-load.d") {
			continue
		}
		for _, e := range file.Entries {
			if etc.Names(e, f.l.Boot) {
				try(e.Module, e.Params, etc.Place(file.Path, e.Line))
			}
		}
	}
}

// makesRules are services that load nf_conntrack for rules that ctplan does
// not read.
func makesRules(service string) bool { return !etc.RestoresFiles(service) }

// loadLate is what services load that come after the saved rules.
func (f *foresight) loadLate() {
	if f.tracks() || f.l.Conntrack.Kind == host.ConntrackAbsent {
		return
	}
	if f.out.Module.State != ModuleUnknown {
		for _, c := range f.l.InitConfigs {
			service := etc.ServiceOf(c.Path)
			if !f.enabled(service) || f.failed(service) {
				continue
			}
			if c.Refusal != "" {
				f.out.Module = Module{ModuleUnknown, etc.Place(c.Path, c.RefusalLine) + ": " + c.Refusal}
				break
			}
			if c.Modules == nil {
				continue
			}
			for _, w := range c.Modules.Words {
				module, how, unsure := f.pullsIn(strings.ReplaceAll(w.Text, "-", "_"))
				if how == "" {
					continue
				}
				state, why := f.loads(module)
				if unsure != "" && state == ModuleLoaded {
					state, why = ModuleUnknown, unsure
				}
				if why == "" {
					why = etc.Place(c.Path, c.Modules.Line)
				}
				f.out.Module = Module{state, why}
				if f.tracks() {
					return
				}
			}
		}
	}
	state, why := f.loads("nf_conntrack")
	if state == ModuleUnloaded {
		if f.out.Module.State != ModuleUnknown {
			f.out.Module = Module{state, why}
		}
		return
	}
	for _, s := range f.boot.Services {
		if makesRules(s) {
			f.out.Module = Module{ModuleUnknown, s + " is enabled and may load it"}
			return
		}
	}
	for _, r := range f.boot.Restorers {
		if r.Does != host.DoFlush && !(r.Does == host.DoRestore && f.holds(r)) {
			f.out.Module = Module{ModuleUnknown, "what " + r.At + " does to rules may load it"}
			return
		}
	}
}

func (f *foresight) enabled(service string) bool { return slices.Contains(f.boot.Services, service) }

// reads reports whether boot reads a file as one of a drop-in folder: by its
// path, or as the link in such a folder that leads to it.
func (f *foresight) reads(file host.File, as, folder string) bool {
	return etc.Reads(f.l.Boot, file, as, folder)
}
