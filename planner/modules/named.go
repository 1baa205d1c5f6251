package modules

import (
	"fmt"
	"slices"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// Naming is what comes of a name that some file gives to modprobe, or to what
// does as that does.
type Naming struct {
	// Module is the module of connection tracking, or the one loaded after it,
	// that the name loads; empty where it loads none.
	Module string
	// Unsure says why that is not sure: a kernel that may be booted next has the
	// name, and another has not.
	Unsure string
	// Gone is the release of a kernel that has no such name, where that speaks of
	// connection tracking.
	Gone string
}

// Named looks a name up, with "_" for "-", as the kernels of the host have it:
// first the names of modules, then their aliases (kmod_module_new_from_lookup in
// libkmod). Where no tree of modules was read, names tell, and what is loaded now.
func Named(l host.Live, name string) Naming {
	if len(l.Trees) == 0 {
		return untold(l, name)
	}
	var n Naming
	var has, lacks string
	for i := range l.Trees {
		t := &l.Trees[i]
		if m := lookedUp(t, name); m != "" {
			n.Module, has = m, t.Release
		} else {
			lacks = t.Release
		}
	}
	switch {
	case has != "" && lacks != "":
		n.Unsure = fmt.Sprintf("kernel %s loads it by %s, and kernel %s, which is installed too, does not", has, name, lacks)
	case has == "" && IsConntrack(name) && !slices.ContainsFunc(l.Trees, func(t host.ModuleTree) bool { return t.Builtin }):
		n.Gone = lacks
	}
	return n
}

// lookedUp is the module of connection tracking that a name loads on a kernel.
func lookedUp(t *host.ModuleTree, name string) string {
	if slices.Contains(t.Tracks, name) {
		return name
	}
	for _, a := range t.Aliases {
		if etc.Globs(a.Name, name) {
			return a.Module
		}
	}
	return ""
}

// untold is Named by names alone.
func untold(l host.Live, name string) Naming {
	if name == "ip_conntrack" {
		name = "nf_conntrack"
	}
	if IsConntrack(name) {
		return Naming{Module: name}
	}
	below := map[string]bool{"nf_conntrack": true}
	for before := 0; before < len(below); {
		before = len(below)
		for _, m := range l.Modules {
			if below[m.Name] {
				for _, user := range m.By {
					below[user] = true
				}
			}
		}
	}
	if below[name] {
		return Naming{Module: name}
	}
	return Naming{}
}
