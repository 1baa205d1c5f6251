package planner

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const keyMax = "net.netfilter.nf_conntrack_max"

// maxKeys are the names by which nf_conntrack_max can be set; the first is
// the one that ctplan adds, the others are kept in step where they stand.
var maxKeys = []string{keyMax, "net.nf_conntrack_max", "net.ipv4.netfilter.ip_conntrack_max", "net.ipv4.ip_conntrack_max"}

// sizeTable plans the live sizes and timeouts. loading is whether the module
// is only about to be loaded, with the options that the plan writes: then the
// hash size is right from the start and the keys do not exist yet.
func (p *planning) sizeTable(loading bool) []Change {
	p.checkMemory()
	hash := p.hashsizeChange(loading)
	limit := p.maxChange(loading)
	var out []Change
	// A growing table gets its buckets before its entries, a shrinking one loses
	// its entries first, so that chains never grow longer than either state has.
	growing := p.l.Conntrack.Hashsize < p.d.Hashsize.Value
	if growing && hash != nil {
		out = append(out, hash)
	}
	if limit != nil {
		out = append(out, limit)
	}
	if !growing && hash != nil {
		out = append(out, hash)
	}
	for _, t := range p.d.Timeouts {
		key := TimeoutKeys[t.Name]
		live, ok := p.l.Sysctls[key]
		want := strconv.FormatInt(t.Seconds, 10)
		switch {
		case !ok && !loading:
			p.warn("sysctl."+key, "this kernel has no such timeout; it is left out", t.Source)
		case loading || live.Value != want:
			if c := p.sysctlChange(key, live, want, t.Source, fmt.Sprintf("timeouts.%s is declared as %s seconds", t.Name, want), loading); c != nil {
				out = append(out, c)
			}
		}
	}
	return out
}

func (p *planning) maxChange(loading bool) Change {
	live := p.l.Sysctls[keyMax]
	want := strconv.FormatInt(p.d.Max.Value, 10)
	if !loading && live.Value == want {
		return nil
	}
	if n, err := strconv.ParseInt(live.Value, 10, 64); err == nil && p.l.Conntrack.Count > p.d.Max.Value && n > p.d.Max.Value {
		p.warn("sysctl."+keyMax, fmt.Sprintf("%d connections are tracked now, more than the declared max of %s: new ones will be dropped until enough have ended", p.l.Conntrack.Count, want), p.d.Max.Source)
	}
	return p.sysctlChange(keyMax, live, want, p.d.Max.Source, "max is declared as "+want+" entries", loading)
}

// sysctlChange plans one key, or blocks where it is read-only. It returns an
// untyped nil when there is no change.
func (p *planning) sysctlChange(key string, live Sysctl, want string, source Pos, reason string, loading bool) Change {
	if !loading && !live.Writable {
		why := "this key is read-only here: nf_conntrack's sizes are one value for the whole machine, set in its initial network namespace"
		if p.l.Conntrack.InitialNetns {
			why = "this key cannot be written: /proc/sys is read-only here, as in a container"
		}
		p.block(Block{
			Risk:     RiskReadOnlySysctl,
			Address:  "sysctl." + key,
			Where:    fmt.Sprintf("%s = %s", key, live.Value),
			Why:      why,
			Remedy:   `run ctplan on the host itself, or allow_risk = ["read_only_sysctl"] to leave the live value as it is`,
			Override: true,
			Source:   source,
		})
		return nil
	}
	return &SysctlChange{
		M:   Meta{Address: "sysctl." + key, Action: Update, Reasons: []string{reason}, Sources: []Pos{source}},
		Key: key, Before: live.Value, After: want,
	}
}

func (p *planning) hashsizeChange(loading bool) Change {
	want := RoundBuckets(p.d.Hashsize.Value, p.l.Host.PageSize, p.l.Host.PointerSize)
	have := p.l.Conntrack.Hashsize
	if loading || want == have {
		return nil
	}
	const address = "sysfs.nf_conntrack.hashsize"
	if !p.l.Conntrack.InitialNetns {
		p.block(Block{
			Risk:     RiskReadOnlySysctl,
			Address:  address,
			Where:    fmt.Sprintf("/sys/module/nf_conntrack/parameters/hashsize = %d", have),
			Why:      "the kernel resizes the hash table in its initial network namespace only",
			Remedy:   `run ctplan on the host itself, or allow_risk = ["read_only_sysctl"] to leave the live size as it is`,
			Override: true,
			Source:   p.d.Hashsize.Source,
		})
		return nil
	}
	if p.l.Conntrack.HashsizeFixed && p.d.Reload != ReloadRestart {
		p.block(Block{
			Risk:     RiskReadOnlySysctl,
			Address:  address,
			Where:    fmt.Sprintf("/sys/module/nf_conntrack/parameters/hashsize = %d", have),
			Why:      "this kernel sizes the hash table when the module is loaded, and cannot resize it afterwards",
			Remedy:   fmt.Sprintf(`declare reload = %q to have the service reload the module, or allow_risk = ["read_only_sysctl"] to set the files now and have the size at the next boot`, ReloadRestart),
			Override: true,
			Source:   p.d.Hashsize.Source,
		})
		return nil
	}
	reason := fmt.Sprintf("hashsize is declared as %d buckets", p.d.Hashsize.Value)
	if want != p.d.Hashsize.Value {
		reason += fmt.Sprintf(", which the kernel rounds up to %d", want)
	}
	return &HashsizeChange{
		M: Meta{
			Address: address, Action: Update, Reasons: []string{reason}, Sources: []Pos{p.d.Hashsize.Source},
			Disrupts: "the kernel rehashes every entry with all conntrack locks held and bottom halves off: packets wait for that moment",
		},
		Before: have, After: want,
	}
}

// checkMemory weighs a full table against the host's memory.
func (p *planning) checkMemory() {
	if p.l.Host.Memory <= 0 {
		return
	}
	need := TableBytes(p.d.Max.Value, RoundBuckets(p.d.Hashsize.Value, p.l.Host.PageSize, p.l.Host.PointerSize), p.l.Host.PointerSize)
	share := float64(need) / float64(p.l.Host.Memory)
	size := fmt.Sprintf("a full table of %d entries and %d buckets takes %s, %.0f %% of this host's %s", p.d.Max.Value, p.d.Hashsize.Value, mib(need), share*100, mib(p.l.Host.Memory))
	switch {
	case share > 0.5:
		p.block(Block{
			Risk: RiskMemory, Address: "sysctl." + keyMax, Where: fmt.Sprintf("max = %d", p.d.Max.Value),
			Why:    size + ": the kernel would run out of memory under the load that fills it",
			Remedy: `declare a smaller max, or allow_risk = ["memory"]`, Override: true, Source: p.d.Max.Source,
		})
	case share > 0.25:
		p.warn("sysctl."+keyMax, size, p.d.Max.Source)
	}
}

func mib(b int64) string {
	if b < 10<<20 {
		return fmt.Sprintf("%d KiB", b>>10)
	}
	return fmt.Sprintf("%d MiB", b>>20)
}

// persistSizes plans the files from which boot sets the sizes.
func (p *planning) persistSizes() {
	p.persistSysctl(maxKeys, p.d.Max.Value, p.d.Max.Source)
	for _, t := range p.d.Timeouts {
		if _, known := p.l.Sysctls[TimeoutKeys[t.Name]]; !known && p.l.Conntrack.Loaded {
			continue // sizeTable says so
		}
		p.persistSysctl([]string{TimeoutKeys[t.Name]}, t.Seconds, t.Source)
	}
	p.persistHashsize()
	p.persistModule()
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// SysctlTarget is the file that sysctls are written to: what the HCL names, or
// /etc/sysctl.conf. systemd reads that by a link alone (systemd-sysctl(8)),
// which newer distributions no longer have: there it is a file of sysctl.d.
func SysctlTarget(d Desired, l Live) string {
	if d.Files.Sysctl != "" || l.Boot == nil || l.Boot.Init != InitSystemd {
		return orDefault(d.Files.Sysctl, DefaultSysctlFile)
	}
	for _, f := range l.SysctlFiles {
		if f.Path == DefaultSysctlFile && f.As != "" {
			return DefaultSysctlFile
		}
	}
	return DropInSysctlFile
}

// persistSysctl sets a key in the sysctl file: in place wherever it stands
// there, under any of its names, or on a new line.
func (p *planning) persistSysctl(keys []string, value int64, source Pos) {
	target := SysctlTarget(p.d, p.l)
	at := slices.IndexFunc(p.l.SysctlFiles, func(f SysctlFile) bool { return f.Path == target })
	file := SysctlFile{File: File{Path: target}}
	if at >= 0 {
		file = p.l.SysctlFiles[at]
	}
	want := strconv.FormatInt(value, 10)
	w := p.files.edit(file.File, "file.")
	found := false
	for _, e := range file.Entries {
		if !slices.Contains(keys, e.Key) {
			continue
		}
		found = found || e.Key == keys[0]
		if e.Value != want {
			w.replace(e.ValueSpan, want)
			w.because("boot sets "+e.Key+" from this file", source)
		}
	}
	if !found {
		w.appendLine(keys[0] + " = " + want)
		w.because("boot sets "+keys[0]+" from this file", source)
	}
	p.checkReload(&file, keys, want, source)
}

// keyMatches reports whether a key of sysctl.d, which may be a glob, names k.
func keyMatches(pattern, k string) bool {
	return globs(strings.ReplaceAll(pattern, ".", "/"), strings.ReplaceAll(k, ".", "/"))
}

// persistHashsize sets the module option: in place where some file of /etc
// sets it already, beside the other options of the module, or on a new line.
func (p *planning) persistHashsize() {
	want := "hashsize=" + strconv.FormatInt(p.d.Hashsize.Value, 10)
	target := orDefault(p.d.Files.Modprobe, DefaultModprobeFile)
	const reason = "a load of nf_conntrack sets its hash size from this file"
	found := false
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			if e.Command != "options" || e.Module != "nf_conntrack" {
				continue
			}
			for _, a := range e.Args {
				value, ok := a.option("hashsize")
				if !ok || !editable(f.File, target) {
					continue
				}
				found = true
				if "hashsize="+value != want {
					w := p.first.edit(f.File, "file.")
					w.replace(a.Span, want)
					w.because(reason, p.d.Hashsize.Source)
				}
			}
		}
	}
	if found {
		return
	}
	file := p.modprobeFile(target)
	w := p.first.edit(file.File, "file.")
	w.because(reason, p.d.Hashsize.Source)
	for _, e := range file.Entries {
		// Behind a quote that never closes the option would be part of another.
		open := strings.Count(file.Content[e.Span.Start:e.End], `"`)%2 == 1
		if e.Command == "options" && e.Module == "nf_conntrack" && !open {
			w.insert(e.End, " "+want)
			return
		}
	}
	w.appendLine("options nf_conntrack " + want)
}

func (p *planning) modprobeFile(target string) ModprobeFile {
	for _, f := range p.l.ModprobeFiles {
		if f.Path == target {
			return f
		}
	}
	return ModprobeFile{File: File{Path: target}}
}

// editable reports whether a configuration file is the administrator's:
// what packages and the run-time put elsewhere is not ctplan's to change.
func editable(f File, target string) bool {
	return f.Path == target || strings.HasPrefix(f.Path, "/etc/")
}

// persistModule has boot load the module before it sets sysctls; without
// that, systemd-sysctl finds no key to set.
func (p *planning) persistModule() {
	for _, f := range p.l.ModulesLoad {
		if !bootReads(p.l.Boot, f.File, f.As, "modules-load.d") {
			continue
		}
		for _, e := range f.Entries {
			if e.Module == "nf_conntrack" && e.names(p.l.Boot) {
				return
			}
		}
	}
	target := orDefault(p.d.Files.ModulesLoad, DefaultModulesLoadFile)
	file := File{Path: target}
	for _, f := range p.l.ModulesLoad {
		if f.Path == target {
			file = f.File
		}
	}
	w := p.files.edit(file, "file.")
	w.appendLine("nf_conntrack")
	w.because("boot must load nf_conntrack before it sets sysctls, or net.netfilter.nf_conntrack_max is lost", p.d.Max.Source)
}

// forgetSizes takes the keys out of the sysctl files: without the module they
// fail at boot.
func (p *planning) forgetSizes() {
	target := SysctlTarget(p.d, p.l)
	for _, f := range p.l.SysctlFiles {
		for _, e := range f.Entries {
			if !isConntrackKey(e.Key) {
				continue
			}
			if !editable(f.File, target) {
				p.warn("file."+f.Path, fmt.Sprintf("%s:%d sets %s, which fails at boot without the module; a file of the same name in /etc/sysctl.d masks it", f.Path, e.Line, e.Key), p.d.ModeSource)
				continue
			}
			w := p.files.edit(f.File, "file.")
			w.replace(e.Span, "")
			w.because("without the module its keys do not exist, and setting them fails at boot", p.d.ModeSource)
		}
	}
	for _, f := range p.l.ModulesLoad {
		for _, e := range f.Entries {
			if !IsConntrackModule(e.Module) {
				continue
			}
			if !editable(f.File, p.d.Files.ModulesLoad) {
				p.warn("file."+f.Path, fmt.Sprintf("%s:%d loads %s at boot; a file of the same name in /etc/modules-load.d masks it", f.Path, e.Line, e.Module), p.d.ModeSource)
				continue
			}
			w := p.files.edit(f.File, "file.")
			w.replace(e.Span, "")
			w.because("boot loads "+e.Module+" from this file", p.d.ModeSource)
		}
	}
}

func isConntrackKey(k string) bool {
	return strings.HasPrefix(k, "net.netfilter.nf_conntrack_") || strings.HasPrefix(k, "net.ipv4.netfilter.ip_conntrack_") ||
		k == "net.nf_conntrack_max" || k == "net.ipv4.ip_conntrack_max"
}
