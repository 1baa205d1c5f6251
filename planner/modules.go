package planner

import (
	"fmt"
	"slices"
	"strings"
)

// IsConntrackModule reports whether a module is part of connection tracking
// or of no use without it: what ctplan may unload, and keeps from loading.
func IsConntrackModule(name string) bool {
	for _, prefix := range []string{"nf_conntrack", "nf_nat", "ip_conntrack", "ip_nat", "nf_flow_table", "nft_flow", "nf_synproxy"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return conntrackModules[name]
}

var conntrackModules = wordSet(
	"nf_conncount", "nfnetlink_cttimeout", "nfnetlink_cthelper", "nft_ct", "nft_nat", "nft_chain_nat", "nft_masq", "nft_redir", "nft_connlimit", "nft_synproxy",
	"xt_conntrack", "xt_state", "xt_CT", "xt_connmark", "xt_connlimit", "xt_connbytes", "xt_connlabel", "xt_helper", "xt_cluster",
	"xt_CONNSECMARK", "xt_nat", "xt_MASQUERADE", "xt_REDIRECT", "xt_NETMAP", "iptable_nat", "ip6table_nat",
	"ipt_MASQUERADE", "ip6t_MASQUERADE", "ipt_SYNPROXY", "ip6t_SYNPROXY",
)

const blockReason = "keeps rules and tools from loading nf_conntrack again, which a blacklist line would not"

// stageModules is one planning of what is loaded.
type stageModules struct {
	Report
	d    Desired
	l    Live
	edit Edits
}

func newStageModules(d Desired, l Live) *stageModules {
	return &stageModules{Report: NewReport(d), d: d, l: l}
}

// LiftBlock takes away what keeps nf_conntrack from loading, which must happen
// before anything needs it.
func LiftBlock(d Desired, l Live) (Edits, Findings) {
	p := newStageModules(d, l)
	p.liftBlock()
	return p.edit, p.Findings
}

// BlockLoad keeps anything from loading nf_conntrack again, and names what
// would all the same, or would fail at boot because it cannot. Its edits come
// when nothing needs the module any longer.
func BlockLoad(d Desired, l Live) (Edits, Findings) {
	p := newStageModules(d, l)
	p.loaders()
	p.blockLoad()
	return p.edit, p.Findings
}

// UnloadModules unloads nf_conntrack and everything above it, users first.
func UnloadModules(d Desired, l Live) ([]Change, Findings) {
	p := newStageModules(d, l)
	changes := p.unloadModules()
	return changes, p.Findings
}

// blockLoad keeps anything from loading the module again. A kernel that has
// none needs nothing.
func (p *stageModules) blockLoad() {
	if p.l.Conntrack.Kind == ConntrackAbsent {
		return
	}
	for _, f := range p.l.ModprobeFiles {
		if slices.ContainsFunc(f.Entries, isBlock) {
			return
		}
	}
	w := p.edit.File(ModprobeFileAt(p.l, orDefault(p.d.Files.Modprobe, DefaultModprobeFile)).File, "file.")
	w.AppendLine("install nf_conntrack /bin/false")
	w.Because(blockReason, p.d.ModeSource)
}

// liftBlock takes such lines away, before anything needs the module.
func (p *stageModules) liftBlock() {
	target := orDefault(p.d.Files.Modprobe, DefaultModprobeFile)
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			if p.d.Mode == Tuned && p.heedsBlacklist() && e.Command == "blacklist" && e.Module == "nf_conntrack" && editable(f.File, target) {
				w := p.edit.File(f.File, "file.")
				w.Replace(e.Span, "")
				w.Because("this line keeps modules-load.d from loading nf_conntrack at boot", p.d.ModeSource)
				continue
			}
			if !isBlock(e) {
				continue
			}
			if !editable(f.File, target) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d keeps nf_conntrack from loading; a file of the same name in /etc/modprobe.d masks it", f.Path, e.Line), p.d.ModeSource)
				continue
			}
			w := p.edit.File(f.File, "file.")
			w.Replace(e.Span, "")
			w.Because(fmt.Sprintf("mode %q needs nf_conntrack, which this line keeps from loading", p.d.Mode), p.d.ModeSource)
		}
	}
}

// heedsBlacklist reports whether what loads modules at boot may leave out those
// that a blacklist line names: systemd does.
func (p *stageModules) heedsBlacklist() bool { return p.l.Boot == nil || p.l.Boot.Init != InitSysv }

// LoadModule loads nf_conntrack for a table to exist that can be sized.
func LoadModule(d Desired, l Live) []Change {
	if l.Conntrack.Loaded {
		return nil
	}
	return []Change{&ModuleChange{
		M:      Meta{Address: "module.nf_conntrack", Action: Create, Reasons: []string{"the module must be loaded for its table to be sized"}, Sources: []Pos{d.ModeSource}},
		Module: "nf_conntrack", Load: true,
	}}
}

// unloadModules unloads nf_conntrack and everything above it, users first.
func (p *stageModules) unloadModules() []Change {
	if p.l.Conntrack.Kind == ConntrackBuiltin {
		p.holders()
		p.Warn("module.nf_conntrack", "nf_conntrack is built into this kernel and cannot be unloaded: disabled means that no rule asks for tracking, so nothing is tracked", p.d.ModeSource)
		return nil
	}
	byName := map[string]Module{}
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
		if !IsConntrackModule(name) {
			p.Block(Block{
				Risk:     RiskModuleHeld,
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
		if IsConntrackModule(m.Name) {
			visit(m.Name, "")
		}
	}
	held := p.heldModules(byName, p.holders())
	var out []Change
	for _, name := range order {
		if held[name] {
			continue
		}
		out = append(out, &ModuleChange{
			M:      Meta{Address: "module." + name, Action: Delete, Reasons: []string{"connection tracking is declared disabled"}, Sources: []Pos{p.d.ModeSource}},
			Module: name,
		})
	}
	return out
}

// heldModules are those that rules hold, and the modules below one that stays
// loaded.
func (p *stageModules) heldModules(byName map[string]Module, byRules map[string]bool) map[string]bool {
	held := map[string]bool{}
	for name := range byName {
		held[name] = byRules[anyBackend(name)]
	}
	for changed := true; changed; {
		changed = false
		for name, m := range byName {
			if !held[name] && slices.ContainsFunc(m.By, func(u string) bool {
				_, loaded := byName[u]
				return loaded && (held[u] || !IsConntrackModule(u))
			}) {
				held[name], changed = true, true
			}
		}
	}
	return held
}
