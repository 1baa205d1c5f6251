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

var conntrackModules = set(
	"nf_conncount", "nfnetlink_cttimeout", "nfnetlink_cthelper", "nft_ct", "nft_nat", "nft_chain_nat", "nft_masq", "nft_redir", "nft_connlimit", "nft_synproxy",
	"xt_conntrack", "xt_state", "xt_CT", "xt_connmark", "xt_connlimit", "xt_connbytes", "xt_connlabel", "xt_helper", "xt_cluster",
	"xt_CONNSECMARK", "xt_nat", "xt_MASQUERADE", "xt_REDIRECT", "xt_NETMAP", "iptable_nat", "ip6table_nat",
	"ipt_MASQUERADE", "ip6t_MASQUERADE", "ipt_SYNPROXY", "ip6t_SYNPROXY",
)

const blockReason = "keeps rules and tools from loading nf_conntrack again, which a blacklist line would not"

// isBlock reports whether a modprobe.d entry keeps nf_conntrack from loading.
func isBlock(e ModprobeEntry) bool {
	return e.Command == "install" && e.Module == "nf_conntrack" && isNoop(e)
}

// isNoop reports whether an install command does nothing, and so does not
// load. The shell runs it, so more than one command may stand there.
func isNoop(e ModprobeEntry) bool {
	if len(e.Args) == 0 || slices.ContainsFunc(e.Args, func(a ModprobeArg) bool { return strings.ContainsAny(a.Text, ";|&<>()$`\n") }) {
		return false
	}
	switch e.Args[0].Text {
	case "/bin/false", "/bin/true", "/usr/bin/false", "/usr/bin/true", "false", "true", ":":
		return true
	}
	return false
}

// blockLoad keeps anything from loading the module again. A kernel that has
// none needs nothing.
func (p *planning) blockLoad() {
	if p.l.Conntrack.Kind == ConntrackAbsent {
		return
	}
	for _, f := range p.l.ModprobeFiles {
		if slices.ContainsFunc(f.Entries, isBlock) {
			return
		}
	}
	w := p.last.edit(p.modprobeFile(orDefault(p.d.Files.Modprobe, DefaultModprobeFile)).File, "file.")
	w.appendLine("install nf_conntrack /bin/false")
	w.because(blockReason, p.d.ModeSource)
}

// liftBlock takes such lines away, before anything needs the module.
func (p *planning) liftBlock() {
	target := orDefault(p.d.Files.Modprobe, DefaultModprobeFile)
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			if p.d.Mode == Tuned && p.heedsBlacklist() && e.Command == "blacklist" && e.Module == "nf_conntrack" && editable(f.File, target) {
				w := p.first.edit(f.File, "file.")
				w.replace(e.Span, "")
				w.because("this line keeps modules-load.d from loading nf_conntrack at boot", p.d.ModeSource)
				continue
			}
			if !isBlock(e) {
				continue
			}
			if !editable(f.File, target) {
				p.warn("file."+f.Path, fmt.Sprintf("%s:%d keeps nf_conntrack from loading; a file of the same name in /etc/modprobe.d masks it", f.Path, e.Line), p.d.ModeSource)
				continue
			}
			w := p.first.edit(f.File, "file.")
			w.replace(e.Span, "")
			w.because(fmt.Sprintf("mode %q needs nf_conntrack, which this line keeps from loading", p.d.Mode), p.d.ModeSource)
		}
	}
}

// heedsBlacklist reports whether what loads modules at boot may leave out those
// that a blacklist line names: systemd does.
func (p *planning) heedsBlacklist() bool { return p.l.Boot == nil || p.l.Boot.Init != InitSysv }

// loadModule loads nf_conntrack for a table to exist that can be sized.
func (p *planning) loadModule() []Change {
	if p.l.Conntrack.Loaded {
		return nil
	}
	return []Change{&ModuleChange{
		M:      Meta{Address: "module.nf_conntrack", Action: Create, Reasons: []string{"the module must be loaded for its table to be sized"}, Sources: []Pos{p.d.ModeSource}},
		Module: "nf_conntrack", Load: true,
	}}
}

// unloadModules unloads nf_conntrack and everything above it, users first.
func (p *planning) unloadModules() []Change {
	if p.l.Conntrack.Kind == ConntrackBuiltin {
		p.holders()
		p.warn("module.nf_conntrack", "nf_conntrack is built into this kernel and cannot be unloaded: disabled means that no rule asks for tracking, so nothing is tracked", p.d.ModeSource)
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
			p.block(Block{
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
func (p *planning) heldModules(byName map[string]Module, byRules map[string]bool) map[string]bool {
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
