// Package sizes plans how large the table is and how long it remembers, now and
// at every boot, and knows what kernels of each era make of the numbers that they
// are given.
package sizes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
	"github.com/ctplan/ctplan/planner/words"
)

// stage is one planning of sizes and timeouts.
type stage struct {
	change.Report
	d     declared.Desired
	l     host.Live
	files change.Edits
	first change.Edits // that must come before the module is loaded
}

func newStage(d declared.Desired, l host.Live) *stage {
	return &stage{Report: change.NewReport(d), d: d, l: l}
}

// Set plans the live sizes and timeouts. loading is whether the module is
// only about to be loaded, with the options that Persist writes: then the
// hash size is right from the start and the keys do not exist yet.
func Set(d declared.Desired, l host.Live, loading bool) ([]change.Change, change.Findings) {
	p := newStage(d, l)
	return p.sizeTable(loading), p.Findings
}

// SetAgain sets the declared values that are right now, since a restart of the
// packet filter's service may bring others. size are the changes to those that
// are not.
func SetAgain(d declared.Desired, l host.Live, size []change.Change) []change.Change {
	return newStage(d, l).setAgain(size)
}

// Persist plans the files from which boot sets the sizes. Those of first
// must be there before the module is loaded.
func Persist(d declared.Desired, l host.Live) (first, files change.Edits, found change.Findings) {
	p := newStage(d, l)
	p.persistSizes()
	return p.first, p.files, p.Findings
}

// Forget takes the keys of connection tracking out of the files that boot
// reads.
func Forget(d declared.Desired, l host.Live) (change.Edits, change.Findings) {
	p := newStage(d, l)
	p.forgetSizes()
	return p.files, p.Findings
}

// sizeTable plans the live sizes and timeouts. loading is whether the module
// is only about to be loaded, with the options that the plan writes: then the
// hash size is right from the start and the keys do not exist yet.
func (p *stage) sizeTable(loading bool) []change.Change {
	p.checkMemory()
	hash := p.hashsizeChange(loading)
	limit := p.maxChange(loading)
	var out []change.Change
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
		key := declared.TimeoutKeys[t.Name]
		live, ok := p.l.Sysctls[key]
		want := strconv.FormatInt(t.Seconds, 10)
		switch {
		case !ok && !loading:
			p.Warn("sysctl."+key, "this kernel has no such timeout; it is left out", t.Source)
		case loading || live.Value != want:
			if c := p.sysctlChange(key, live, want, t.Source, fmt.Sprintf("timeouts.%s is declared as %s seconds", t.Name, want), loading); c != nil {
				out = append(out, c)
			}
		}
	}
	return out
}

func (p *stage) maxChange(loading bool) change.Change {
	live := p.l.Sysctls[etc.KeyMax]
	want := strconv.FormatInt(p.d.Max.Value, 10)
	if !loading && live.Value == want {
		return nil
	}
	if n, err := strconv.ParseInt(live.Value, 10, 64); err == nil && p.l.Conntrack.Count > p.d.Max.Value && n > p.d.Max.Value {
		p.Warn("sysctl."+etc.KeyMax, fmt.Sprintf("%d connections are tracked now, more than the declared max of %s: new ones will be dropped until enough have ended", p.l.Conntrack.Count, want), p.d.Max.Source)
	}
	return p.sysctlChange(etc.KeyMax, live, want, p.d.Max.Source, "max is declared as "+want+" entries", loading)
}

// sysctlChange plans one key, or blocks where it is read-only. It returns an
// untyped nil when there is no change.
func (p *stage) sysctlChange(key string, live host.Sysctl, want string, source declared.Pos, reason string, loading bool) change.Change {
	if !loading && !live.Writable {
		why := "this key is read-only here: nf_conntrack's sizes are one value for the whole machine, set in its initial network namespace"
		if p.l.Conntrack.InitialNetns {
			why = "this key cannot be written: /proc/sys is read-only here, as in a container"
		}
		p.Block(change.Block{
			Risk:     declared.RiskReadOnlySysctl,
			Address:  "sysctl." + key,
			Where:    fmt.Sprintf("%s = %s", key, live.Value),
			Why:      why,
			Remedy:   `run ctplan on the host itself, or allow_risk = ["read_only_sysctl"] to leave the live value as it is`,
			Override: true,
			Source:   source,
		})
		return nil
	}
	return &change.SysctlChange{
		M:   change.Meta{Address: "sysctl." + key, Action: change.Update, Reasons: []string{reason}, Sources: []declared.Pos{source}},
		Key: key, Before: live.Value, After: want,
	}
}

func (p *stage) hashsizeChange(loading bool) change.Change {
	want := RoundBuckets(p.d.Hashsize.Value, p.l.Host.PageSize, p.l.Host.PointerSize)
	have := p.l.Conntrack.Hashsize
	if loading || want == have {
		return nil
	}
	const address = "sysfs.nf_conntrack.hashsize"
	if !p.l.Conntrack.InitialNetns {
		p.Block(change.Block{
			Risk:     declared.RiskReadOnlySysctl,
			Address:  address,
			Where:    fmt.Sprintf("/sys/module/nf_conntrack/parameters/hashsize = %d", have),
			Why:      "the kernel resizes the hash table in its initial network namespace only",
			Remedy:   `run ctplan on the host itself, or allow_risk = ["read_only_sysctl"] to leave the live size as it is`,
			Override: true,
			Source:   p.d.Hashsize.Source,
		})
		return nil
	}
	if p.l.Conntrack.HashsizeFixed && p.d.Reload != declared.ReloadRestart {
		p.Block(change.Block{
			Risk:     declared.RiskReadOnlySysctl,
			Address:  address,
			Where:    fmt.Sprintf("/sys/module/nf_conntrack/parameters/hashsize = %d", have),
			Why:      "this kernel sizes the hash table when the module is loaded, and cannot resize it afterwards",
			Remedy:   fmt.Sprintf(`declare reload = %q to have the service reload the module, or allow_risk = ["read_only_sysctl"] to set the files now and have the size at the next boot`, declared.ReloadRestart),
			Override: true,
			Source:   p.d.Hashsize.Source,
		})
		return nil
	}
	reason := fmt.Sprintf("hashsize is declared as %d buckets", p.d.Hashsize.Value)
	if want != p.d.Hashsize.Value {
		reason += fmt.Sprintf(", which the kernel rounds up to %d", want)
	}
	return &change.HashsizeChange{
		M: change.Meta{
			Address: address, Action: change.Update, Reasons: []string{reason}, Sources: []declared.Pos{p.d.Hashsize.Source},
			Disrupts: "the kernel rehashes every entry with all conntrack locks held and bottom halves off: packets wait for that moment",
		},
		Before: have, After: want,
	}
}

// checkMemory weighs a full table against the host's memory.
func (p *stage) checkMemory() {
	if p.l.Host.Memory <= 0 {
		return
	}
	need := TableBytes(p.d.Max.Value, RoundBuckets(p.d.Hashsize.Value, p.l.Host.PageSize, p.l.Host.PointerSize), p.l.Host.PointerSize)
	share := float64(need) / float64(p.l.Host.Memory)
	size := fmt.Sprintf("a full table of %d entries and %d buckets takes %s, %.0f %% of this host's %s", p.d.Max.Value, p.d.Hashsize.Value, words.MiB(need), share*100, words.MiB(p.l.Host.Memory))
	switch {
	case share > 0.5:
		p.Block(change.Block{
			Risk: declared.RiskMemory, Address: "sysctl." + etc.KeyMax, Where: fmt.Sprintf("max = %d", p.d.Max.Value),
			Why:    size + ": the kernel would run out of memory under the load that fills it",
			Remedy: `declare a smaller max, or allow_risk = ["memory"]`, Override: true, Source: p.d.Max.Source,
		})
	case share > 0.25:
		p.Warn("sysctl."+etc.KeyMax, size, p.d.Max.Source)
	}
}

// persistSizes plans the files from which boot sets the sizes.
func (p *stage) persistSizes() {
	p.persistSysctl(etc.MaxKeys, p.d.Max.Value, p.d.Max.Source)
	for _, t := range p.d.Timeouts {
		if _, known := p.l.Sysctls[declared.TimeoutKeys[t.Name]]; !known && p.l.Conntrack.Loaded {
			continue // sizeTable says so
		}
		p.persistSysctl([]string{declared.TimeoutKeys[t.Name]}, t.Seconds, t.Source)
	}
	p.persistHashsize()
	p.persistModule()
}

// persistSysctl sets a key in the sysctl file: in place wherever it stands
// there, under any of its names, or on a new line.
func (p *stage) persistSysctl(keys []string, value int64, source declared.Pos) {
	target := etc.SysctlTarget(p.d, p.l)
	at := slices.IndexFunc(p.l.SysctlFiles, func(f host.SysctlFile) bool { return f.Path == target })
	file := host.SysctlFile{File: host.File{Path: target}}
	if at >= 0 {
		file = p.l.SysctlFiles[at]
	}
	want := strconv.FormatInt(value, 10)
	w := p.files.File(file.File, "file.")
	found := false
	for _, e := range file.Entries {
		if !slices.Contains(keys, e.Key) {
			continue
		}
		found = found || e.Key == keys[0]
		if e.Value != want {
			w.Replace(e.ValueSpan, want)
			w.Because("boot sets "+e.Key+" from this file", source)
		}
	}
	if !found {
		w.AppendLine(keys[0] + " = " + want)
		w.Because("boot sets "+keys[0]+" from this file", source)
	}
	p.checkReload(&file, keys, want, source)
}

// persistHashsize sets the module option: in place where some file of /etc
// sets it already, beside the other options of the module, or on a new line.
func (p *stage) persistHashsize() {
	want := "hashsize=" + strconv.FormatInt(p.d.Hashsize.Value, 10)
	target := words.Or(p.d.Files.Modprobe, etc.DefaultModprobeFile)
	const reason = "a load of nf_conntrack sets its hash size from this file"
	found := false
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			if e.Command != "options" || e.Module != "nf_conntrack" {
				continue
			}
			refused := etc.RefusedParams(p.l.Host.Kernel, e.Args) // mended by modules.LiftBlock
			if etc.Editable(f.File, target) && slices.ContainsFunc(refused, func(r etc.RefusedParam) bool { return r.Name == "hashsize" }) {
				found = true
				continue
			}
			for _, a := range e.Args {
				option := etc.ParamOf(a.Text)
				if option.Name != "hashsize" || option.Bare || !etc.Editable(f.File, target) {
					continue
				}
				found = true
				if "hashsize="+option.Value != want {
					w := p.first.File(f.File, "file.")
					w.Replace(a.Span, want)
					w.Because(reason, p.d.Hashsize.Source)
				}
			}
		}
	}
	if found {
		return
	}
	file := etc.ModprobeFile(p.l, target)
	w := p.first.File(file.File, "file.")
	w.Because(reason, p.d.Hashsize.Source)
	for _, e := range file.Entries {
		// Behind a quote that never closes the option would be part of another.
		open := strings.Count(file.Content[e.Span.Start:e.End], `"`)%2 == 1
		if e.Command == "options" && e.Module == "nf_conntrack" && !open {
			w.Insert(e.End, " "+want)
			return
		}
	}
	w.AppendLine("options nf_conntrack " + want)
}

// persistModule has boot load the module before it sets sysctls; without
// that, systemd-sysctl finds no key to set.
func (p *stage) persistModule() {
	for _, f := range p.l.ModulesLoad {
		if !etc.Reads(p.l.Boot, f.File, f.As, "modules-load.d") {
			continue
		}
		for _, e := range f.Entries {
			if e.Module == "nf_conntrack" && etc.Names(e, p.l.Boot) {
				return
			}
		}
	}
	target := words.Or(p.d.Files.ModulesLoad, etc.DefaultModulesLoadFile)
	file := host.File{Path: target}
	for _, f := range p.l.ModulesLoad {
		if f.Path == target {
			file = f.File
		}
	}
	w := p.files.File(file, "file.")
	w.AppendLine("nf_conntrack")
	w.Because("boot must load nf_conntrack before it sets sysctls, or net.netfilter.nf_conntrack_max is lost", p.d.Max.Source)
}

// forgetSizes takes the keys out of the sysctl files: without the module they
// fail at boot.
func (p *stage) forgetSizes() {
	target := etc.SysctlTarget(p.d, p.l)
	for _, f := range p.l.SysctlFiles {
		for _, e := range f.Entries {
			if !etc.IsConntrackKey(e.Key) {
				continue
			}
			if !etc.Editable(f.File, target) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d sets %s, which fails at boot without the module; a file of the same name in /etc/sysctl.d masks it", f.Path, e.Line, e.Key), p.d.ModeSource)
				continue
			}
			w := p.files.File(f.File, "file.")
			w.Replace(e.Span, "")
			w.Because("without the module its keys do not exist, and setting them fails at boot", p.d.ModeSource)
		}
	}
	for _, f := range p.l.ModulesLoad {
		for _, e := range f.Entries {
			if !modules.IsConntrack(e.Module) {
				if n := modules.Named(p.l, e.Module); n.Module != "" {
					p.Warn("file."+f.Path, fmt.Sprintf("%s:%d loads %s at boot, which needs nf_conntrack: that fails while loading is blocked", f.Path, e.Line, e.Module), p.d.ModeSource)
				}
				continue
			}
			if !etc.Editable(f.File, p.d.Files.ModulesLoad) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d loads %s at boot; a file of the same name in /etc/modules-load.d masks it", f.Path, e.Line, e.Module), p.d.ModeSource)
				continue
			}
			w := p.files.File(f.File, "file.")
			w.Replace(e.Span, "")
			w.Because("boot loads "+e.Module+" from this file", p.d.ModeSource)
		}
	}
}

func (p *stage) setAgain(size []change.Change) []change.Change {
	var out []change.Change
	again := func(key string, value int64, source declared.Pos) {
		live, ok := p.l.Sysctls[key]
		if !ok || !live.Writable || slices.ContainsFunc(size, func(c change.Change) bool { return c.Meta().Address == "sysctl."+key }) {
			return
		}
		want := strconv.FormatInt(value, 10)
		out = append(out, &change.SysctlChange{
			M:   change.Meta{Address: "sysctl." + key, Action: change.Update, Reasons: []string{"a reload of nf_conntrack resets it"}, Sources: []declared.Pos{source}},
			Key: key, Before: live.Value, After: want,
		})
	}
	again(etc.KeyMax, p.d.Max.Value, p.d.Max.Source)
	for _, t := range p.d.Timeouts {
		again(declared.TimeoutKeys[t.Name], t.Seconds, t.Source)
	}
	return out
}
