package boot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
)

// loads tells what comes of loading a module that needs nf_conntrack, or is it:
// ModuleLoaded, ModuleUnloaded or ModuleUnknown. The source is what decides it,
// "" where nothing is in the way.
func (f *foresight) loads(module string) (ModuleState, string) {
	if f.l.Conntrack.Kind == host.ConntrackAbsent {
		return ModuleUnloaded, "kernel " + f.l.Host.Kernel + " has no connection tracking"
	}
	for _, p := range f.params() {
		if p.why != "" {
			return ModuleUnloaded, fmt.Sprintf("the kernel refuses to load nf_conntrack by %s: %s", p.at, p.why)
		}
	}
	if n, at, ok := f.hashsize(); at != "" && !ok {
		return ModuleUnknown, fmt.Sprintf("%s sets a hashsize of %d, for which there may be too little memory", at, n)
	}
	// The modules that nf_conntrack is loaded after count as itself.
	for _, name := range []string{module, "nf_conntrack", "nf_defrag_ipv4", "nf_defrag_ipv6"} {
		for _, list := range f.cmdline("module_blacklist=") {
			if slices.Contains(strings.Split(list, ","), name) {
				return ModuleUnloaded, "the kernel's command line keeps " + name + " from loading"
			}
		}
		if e, at := f.install(name); e != nil {
			switch {
			case etc.IsNoop(*e):
				return ModuleUnloaded, at + " keeps " + name + " from loading"
			case !isPlainLoad(*e):
				return ModuleUnknown, at + " loads " + name + " by a command of its own"
			}
		}
	}
	return ModuleLoaded, ""
}

// install is the command that modprobe runs in place of loading: the first
// that names the module (kmod_module_get_install_commands of libkmod).
func (f *foresight) install(module string) (*host.ModprobeEntry, string) {
	for i := range f.l.ModprobeFiles {
		file := &f.l.ModprobeFiles[i]
		for j := range file.Entries {
			e := &file.Entries[j]
			if e.Command == "install" && len(e.Args) > 0 && etc.Globs(e.Module, module) && f.reads(file.File, file.As, "modprobe.d") {
				return e, etc.Place(file.Path, e.Line)
			}
		}
	}
	return nil, ""
}

// isPlainLoad holds for a command that only loads the module it stands for.
func isPlainLoad(e host.ModprobeEntry) bool {
	rest := ""
	for _, a := range e.Args {
		rest += " " + strings.ReplaceAll(a.Text, "-", "_")
	}
	rest = strings.TrimSuffix(rest, " $CMDLINE_OPTS")
	for _, tool := range []string{" modprobe", " /sbin/modprobe", " /usr/sbin/modprobe"} {
		for _, flag := range []string{" __ignore_install ", " _i ", " __ignore_install __ ", " __ignore_install _q "} {
			if rest == tool+flag+e.Module {
				return true
			}
		}
	}
	return false
}

// blacklisted returns the line by which modules-load.d leaves the module out.
// A load that a rule asks for heeds no such line.
func (f *foresight) blacklisted(module string) string {
	for _, list := range f.cmdline("modprobe.blacklist=") {
		if slices.Contains(strings.Split(strings.ReplaceAll(list, "-", "_"), ","), module) {
			return "the kernel's command line"
		}
	}
	for _, file := range f.l.ModprobeFiles {
		for _, e := range file.Entries {
			if e.Command == "blacklist" && e.Module == module && f.reads(file.File, file.As, "modprobe.d") {
				return etc.Place(file.Path, e.Line)
			}
		}
	}
	return ""
}

// cmdline are the values of a parameter on the kernel's command line.
func (f *foresight) cmdline(param string) []string {
	var out []string
	for _, w := range f.boot.Cmdline {
		if v, ok := strings.CutPrefix(w, param); ok {
			out = append(out, v)
		}
	}
	return out
}

// named is what a name loads: by a line of modprobe.d, which comes first and
// leads to a module itself, or as the kernel has it. aliased is the name of what is
// looked for then.
func (f *foresight) named(name string) (n modules.Naming, aliased string) {
	for i := range f.l.ModprobeFiles {
		file := &f.l.ModprobeFiles[i]
		for _, e := range file.Entries {
			if e.Command == "alias" && len(e.Args) > 0 && etc.Globs(e.Module, name) && f.reads(file.File, file.As, "modprobe.d") {
				to := strings.ReplaceAll(e.Args[0].Text, "-", "_")
				if n := modules.Named(f.l, to); n.Module == to {
					return n, to
				}
				return modules.Naming{}, to // names of names are not looked up
			}
		}
	}
	return modules.Named(f.l, name), name
}

// pullsIn tells by what a load of a name loads nf_conntrack: by a module, because
// it uses it, or by a line of modprobe.d that asks for it, which may be a command
// of its own and is not sure then; "" where it does not.
func (f *foresight) pullsIn(name string) (module, how, unsure string) {
	n, name := f.named(name)
	if n.Module != "" {
		return n.Module, n.Module, n.Unsure
	}
	for i := range f.l.ModprobeFiles {
		file := &f.l.ModprobeFiles[i]
		if !f.reads(file.File, file.As, "modprobe.d") {
			continue
		}
		for _, e := range file.Entries {
			if (e.Command == "softdep" || e.Command == "install") && etc.Globs(e.Module, name) &&
				slices.ContainsFunc(e.Args, func(a host.ModprobeArg) bool { return f.asksFor(a.Text) }) {
				at := etc.Place(file.Path, e.Line)
				if e.Command == "install" {
					unsure = at + " may load it"
				}
				return name, at, unsure
			}
		}
	}
	return name, "", ""
}

// asksFor is whether a word of a line of modprobe.d names what loads nf_conntrack.
func (f *foresight) asksFor(word string) bool {
	n, _ := f.named(strings.ReplaceAll(word, "-", "_"))
	return n.Module != ""
}
