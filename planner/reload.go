package planner

import (
	"fmt"
	"slices"
	"strings"
)

// checkReload says where a restart of a service would not bring what a sysctl
// file sets: an init script that unloads the module sets again only what it
// finds itself, in an order of its own.
func (p *stageSizes) checkReload(target *SysctlFile, keys []string, want string, source Pos) {
	for i := range p.l.InitScripts {
		s := &p.l.InitScripts[i]
		switch {
		case resetsForGood(s):
			p.Warn("file."+target.Path, fmt.Sprintf("a restart by %s that unloads nf_conntrack resets it: the script has no IPTABLES_SYSCTL_LOAD_LIST, so nothing sets %s again; run sysctl -p %s after it", s.Path, keys[0], target.Path), source)
			continue
		case s.SysctlFrom == nil:
			continue
		case !slices.ContainsFunc(s.SysctlFrom, func(place string) bool { return standsIn(target, place) }):
			p.Warn("file."+target.Path, fmt.Sprintf("a restart by %s sets %s again from %s alone, and not from this file: name a file there in files.sysctl", s.Path, keys[0], strings.Join(s.SysctlFrom, " and ")), source)
			continue
		}
		var after []SysctlFile // what it reads behind the last mention of the target
		for _, place := range s.SysctlFrom {
			for _, f := range p.l.SysctlFiles {
				if f.Path == target.Path && standsIn(&f, place) {
					after = nil
				} else if standsIn(&f, place) {
					after = append(after, f)
				}
			}
		}
		for _, f := range after {
			for _, e := range f.Entries {
				if e.Value != want && slices.Contains(keys, e.Key) {
					p.Warn("file."+target.Path, fmt.Sprintf("%s:%d sets %s = %s, which %s reads after %s, and wins at a restart: take that line away", f.Path, e.Line, e.Key, e.Value, s.Path, target.Path), source)
				}
			}
		}
	}
}
