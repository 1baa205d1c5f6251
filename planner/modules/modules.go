// Package modules plans what is loaded: nf_conntrack and what stands on it, who
// holds them, and what would load them again.
package modules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/words"
)

// IsConntrack reports whether a module is part of connection tracking
// or of no use without it: what ctplan may unload, and keeps from loading.
func IsConntrack(name string) bool {
	for _, prefix := range []string{"nf_conntrack", "nf_nat", "ip_conntrack", "ip_nat", "nf_flow_table", "nft_flow", "nf_synproxy"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return conntrackModules[name]
}

var conntrackModules = words.Set(
	"nf_conncount", "nfnetlink_cttimeout", "nfnetlink_cthelper", "nft_ct", "nft_nat", "nft_chain_nat", "nft_masq", "nft_redir", "nft_connlimit", "nft_synproxy",
	"xt_conntrack", "xt_state", "xt_CT", "xt_connmark", "xt_connlimit", "xt_connbytes", "xt_connlabel", "xt_helper", "xt_cluster",
	"xt_CONNSECMARK", "xt_nat", "xt_MASQUERADE", "xt_REDIRECT", "xt_NETMAP", "iptable_nat", "ip6table_nat",
	"ipt_MASQUERADE", "ip6t_MASQUERADE", "ipt_SYNPROXY", "ip6t_SYNPROXY",
)

const blockReason = "keeps rules and tools from loading nf_conntrack again, which a blacklist line would not"

// stage is one planning of what is loaded.
type stage struct {
	change.Report
	d    declared.Desired
	l    host.Live
	edit change.Edits
}

func newStage(d declared.Desired, l host.Live) *stage {
	return &stage{Report: change.NewReport(d), d: d, l: l}
}

// LiftBlock takes away what keeps nf_conntrack from loading, which must happen
// before anything needs it.
func LiftBlock(d declared.Desired, l host.Live) (change.Edits, change.Findings) {
	p := newStage(d, l)
	p.liftBlock()
	return p.edit, p.Findings
}

// BlockLoad keeps anything from loading nf_conntrack again, and names what
// would all the same, or would fail at boot because it cannot. Its edits come
// when nothing needs the module any longer.
func BlockLoad(d declared.Desired, l host.Live) (change.Edits, change.Findings) {
	p := newStage(d, l)
	p.loaders()
	p.blockLoad()
	return p.edit, p.Findings
}

// Unload unloads nf_conntrack and everything above it, users first.
func Unload(d declared.Desired, l host.Live) ([]change.Change, change.Findings) {
	p := newStage(d, l)
	changes := p.unloadModules()
	if len(changes) > 0 && l.Loading != nil && l.Loading.Disabled {
		p.Block(change.Block{
			Risk: declared.RiskModuleHeld, Address: "module.nf_conntrack", Where: disabledKey + " = 1",
			Why:      "no module can be unloaded until the next boot, so connection tracking stays loaded",
			Remedy:   `allow_risk = ["module_held"] to leave the modules as they are until the next boot, which loads none of them`,
			Override: true, Source: d.ModeSource,
		})
		changes = nil
	}
	return changes, p.Findings
}

// blockLoad keeps anything from loading the module again. A kernel that has
// none needs nothing.
func (p *stage) blockLoad() {
	if p.l.Conntrack.Kind == host.ConntrackAbsent {
		return
	}
	for _, f := range p.l.ModprobeFiles {
		if slices.ContainsFunc(f.Entries, etc.IsBlock) {
			return
		}
	}
	w := p.edit.File(etc.ModprobeFile(p.l, words.Or(p.d.Files.Modprobe, etc.DefaultModprobeFile)).File, "file.")
	w.AppendLine("install nf_conntrack /bin/false")
	w.Because(blockReason, p.d.ModeSource)
}

// liftBlock takes such lines away, before anything needs the module.
func (p *stage) liftBlock() {
	target := words.Or(p.d.Files.Modprobe, etc.DefaultModprobeFile)
	for _, f := range p.l.ModprobeFiles {
		p.mendOptions(f, target)
		for _, e := range f.Entries {
			if p.d.Mode == declared.Tuned && p.heedsBlacklist() && e.Command == "blacklist" && e.Module == "nf_conntrack" && etc.Editable(f.File, target) {
				w := p.edit.File(f.File, "file.")
				w.Replace(e.Span, "")
				w.Because("this line keeps modules-load.d from loading nf_conntrack at boot", p.d.ModeSource)
				continue
			}
			if !etc.IsBlock(e) {
				continue
			}
			if !etc.Editable(f.File, target) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d keeps nf_conntrack from loading; a file of the same name in /etc/modprobe.d masks it", f.Path, e.Line), p.d.ModeSource)
				continue
			}
			w := p.edit.File(f.File, "file.")
			w.Replace(e.Span, "")
			w.Because(fmt.Sprintf("mode %q needs nf_conntrack, which this line keeps from loading", p.d.Mode), p.d.ModeSource)
		}
	}
}

// mendOptions mends what the kernel refuses to load nf_conntrack by: to what was
// meant where that is clear, or is declared; else the word goes.
func (p *stage) mendOptions(f host.ModprobeFile, target string) {
	for _, e := range f.Entries {
		if e.Command != "options" || e.Module != "nf_conntrack" {
			continue
		}
		kept := e.Args
		for _, r := range etc.RefusedParams(p.l.Host.Kernel, e.Args) {
			kept = slices.DeleteFunc(slices.Clone(kept), func(a host.ModprobeArg) bool { return a.Span.Start >= r.Span.Start && a.Span.End <= r.Span.End })
			at := etc.Place(f.Path, e.Line)
			if !etc.Editable(f.File, target) {
				p.Warn("file."+f.Path, fmt.Sprintf("the kernel refuses to load nf_conntrack by %s: %s; a file of the same name in /etc/modprobe.d masks it", at, r.Why), p.d.ModeSource)
				continue
			}
			mended := ""
			switch {
			case r.Name == "hashsize" && p.d.Mode == declared.Tuned && p.d.Hashsize != nil:
				mended = fmt.Sprintf("hashsize=%d", p.d.Hashsize.Value)
			case r.Meant > 0:
				mended = fmt.Sprintf("%s=%d", r.Name, r.Meant)
			}
			w, span := p.edit.File(f.File, "file."), r.Span
			if mended == "" && len(kept) == 0 {
				span = e.Span // nothing is left of the line
			}
			w.Replace(span, mended)
			w.Because("the kernel refuses to load nf_conntrack by line "+fmt.Sprint(e.Line)+": "+r.Why, p.d.ModeSource)
		}
	}
}

// heedsBlacklist reports whether what loads modules at boot may leave out those
// that a blacklist line names: systemd does.
func (p *stage) heedsBlacklist() bool { return p.l.Boot == nil || p.l.Boot.Init != host.InitSysv }

// Load loads nf_conntrack for a table to exist that can be sized.
func Load(d declared.Desired, l host.Live) []change.Change {
	if l.Conntrack.Loaded {
		return nil
	}
	return []change.Change{&change.ModuleChange{
		M:      change.Meta{Address: "module.nf_conntrack", Action: change.Create, Reasons: []string{"the module must be loaded for its table to be sized"}, Sources: []declared.Pos{d.ModeSource}},
		Module: "nf_conntrack", Load: true,
	}}
}

// unloadModules unloads nf_conntrack and everything above it, users first.
func (p *stage) unloadModules() []change.Change {
	if p.l.Conntrack.Kind == host.ConntrackBuiltin {
		p.holders()
		p.Warn("module.nf_conntrack", "nf_conntrack is built into this kernel and cannot be unloaded: disabled means that no rule asks for tracking, so nothing is tracked", p.d.ModeSource)
		return nil
	}
	byName := map[string]host.Module{}
	for _, m := range p.l.Modules {
		byName[m.Name] = m
	}
	var order []string
	seen := map[string]bool{}
	var visit func(name, above string)
	visit = func(name, above string) {
		m, loaded := byName[name]
		if seen[name] || !loaded {
			return
		}
		seen[name] = true
		if !IsConntrack(name) {
			p.Block(change.Block{
				Risk:     declared.RiskModuleHeld,
				Address:  "module." + name,
				Where:    name + " uses " + above,
				Why:      "this module needs connection tracking and is not part of netfilter's rules: unloading it would take away what it does",
				Remedy:   fmt.Sprintf(`stop what uses %s and unload it, or allow_risk = ["module_held"] to leave it and everything below it loaded`, name),
				Override: true,
				Source:   p.d.ModeSource,
			})
			return
		}
		users := slices.Clone(m.By)
		slices.Sort(users)
		for _, u := range users {
			visit(u, name)
		}
		order = append(order, name)
	}
	for _, m := range p.l.Modules {
		if IsConntrack(m.Name) {
			visit(m.Name, "")
		}
	}
	held := p.heldModules(byName, p.holders())
	var out []change.Change
	for _, name := range order {
		if held[name] {
			continue
		}
		out = append(out, &change.ModuleChange{
			M:      change.Meta{Address: "module." + name, Action: change.Delete, Reasons: []string{"connection tracking is declared disabled"}, Sources: []declared.Pos{p.d.ModeSource}},
			Module: name,
		})
	}
	return out
}

// heldModules are those that rules hold, and the modules below one that stays
// loaded.
func (p *stage) heldModules(byName map[string]host.Module, byRules map[string]bool) map[string]bool {
	held := map[string]bool{}
	for name := range byName {
		held[name] = byRules[anyBackend(name)]
	}
	for changed := true; changed; {
		changed = false
		for name, m := range byName {
			if !held[name] && slices.ContainsFunc(m.By, func(u string) bool {
				_, loaded := byName[u]
				return loaded && (held[u] || !IsConntrack(u))
			}) {
				held[name], changed = true, true
			}
		}
	}
	return held
}
