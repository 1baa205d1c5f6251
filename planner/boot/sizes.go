package boot

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/words"
)

// values are the numbers of connection tracking as far as the boot has come, by
// their sysctls' names.
type values map[string]Value

// sizes is what the kernel chooses when the module is loaded, and then what
// boot sets.
func (f *foresight) sizes() {
	if !f.tracks() {
		return
	}
	v := values{}
	v[etc.KeyMax], v[etc.KeyBuckets] = f.loadSizes()
	switch {
	case f.early:
		f.assign(v, f.applied())
	case f.racing:
		set := values{}
		f.assign(set, f.applied())
		for key, s := range set {
			v[key] = Value{Source: s.Source + " is lost if systemd-sysctl comes before netfilter-persistent, which loads the module: nothing orders them"}
		}
	}
	f.reload(v)
	max, hash := v[etc.KeyMax], v[etc.KeyBuckets]
	f.out.Max, f.out.Hashsize = &max, &hash
	delete(v, etc.KeyMax)
	delete(v, etc.KeyBuckets)
	for _, key := range slices.Sorted(maps.Keys(v)) {
		other := v[key]
		other.Key = key
		f.out.Sysctls = append(f.out.Sysctls, other)
	}
}

// loadSizes are the sizes that a load of the module leads to.
func (f *foresight) loadSizes() (max, hash Value) {
	if n, at, ok := f.hashsize(); at != "" {
		switch {
		case !ok: // as a parameter of what is built in
			v := Value{Source: fmt.Sprintf("%s sets a hashsize of %d, for which there may be too little memory", at, n)}
			return v, v
		case n > 0:
			buckets, most := sizes.OptionSizes(n, f.l.Host.PageSize, f.l.Host.PointerSize)
			return Value{Known: true, Value: most, Source: fmt.Sprintf("the kernel: %d for each of the buckets of %s", sizes.OptionFactor, at)},
				Value{Known: true, Value: buckets, Source: at}
		}
	}
	h := f.l.Host
	buckets, most, ok := sizes.DefaultSizes(h.Kernel, h.Memory, h.PageSize, h.PointerSize)
	if !ok {
		v := Value{Source: fmt.Sprintf("the sizes that kernel %s chooses by itself are not known", h.Kernel)}
		return v, v
	}
	source := fmt.Sprintf("kernel %s chooses it for %s of memory", h.Kernel, words.MiB(h.Memory))
	if b, m, ok := f.proven(); ok && (b != buckets || m != most) {
		// Distributions carry newer defaults back to older kernels.
		buckets, most, source = b, m, fmt.Sprintf("kernel %s has chosen it for %s of memory", h.Kernel, words.MiB(h.Memory))
	}
	return Value{Known: true, Value: most, Source: source}, Value{Known: true, Value: buckets, Source: source}
}

// proven are the sizes that the running kernel has, if they are what another
// era of kernels chooses by itself, and nothing on this host sets them.
func (f *foresight) proven() (buckets, max int64, ok bool) {
	c, h := f.l.Conntrack, f.l.Host
	if !c.Loaded || len(f.applied()) > 0 {
		return 0, 0, false
	}
	return c.Hashsize, c.Max, sizes.SomeDefault(c.Hashsize, c.Max, h.Memory, h.PageSize, h.PointerSize)
}

// hashsize is the option that the module is loaded with, and where it stands,
// "" where there is none: the last one counts. Not ok is a table that may not
// fit in memory.
func (f *foresight) hashsize() (n int64, at string, ok bool) {
	for _, p := range f.params() {
		if p.Name == "hashsize" && p.why == "" {
			size, _ := p.Uint()
			n, at = int64(size), p.at
		}
	}
	h := f.l.Host
	return n, at, h.Memory == 0 || n*h.PointerSize <= h.Memory/2
}

// param is a parameter that nf_conntrack is loaded with.
type param struct {
	etc.Param
	at  string // the place that gives it
	why string // the kernel refuses it; "" where it does not
}

// params are all of them, in the order in which the kernel reads them: modprobe
// adds the kernel's command line behind the files, and what it is called with
// behind that.
func (f *foresight) params() []param {
	var out []param
	add := func(at string, words []host.ModprobeArg) {
		for _, w := range words {
			p := param{Param: etc.ParamOf(w.Text), at: at}
			if r := etc.RefusedParams(f.l.Host.Kernel, []host.ModprobeArg{w}); len(r) > 0 {
				p.why = r[0].Why
			}
			out = append(out, p)
		}
	}
	if f.l.Conntrack.Kind == host.ConntrackModule {
		for _, file := range f.l.ModprobeFiles {
			if !f.reads(file.File, file.As, "modprobe.d") {
				continue
			}
			for _, e := range file.Entries {
				if e.Command == "options" && e.Module == "nf_conntrack" {
					add(etc.Place(file.Path, e.Line), e.Args)
				}
			}
		}
	}
	for _, w := range f.boot.Cmdline {
		if name, ok := strings.CutPrefix(strings.ReplaceAll(w, "nf-conntrack.", "nf_conntrack."), "nf_conntrack."); ok {
			add("the kernel's command line", []host.ModprobeArg{{Text: name}})
		}
	}
	for _, w := range strings.Fields(f.extra) {
		add(f.extraAt, []host.ModprobeArg{{Text: w}})
	}
	return out
}

// assignment is one line that sets a key, or excludes it.
type assignment struct {
	key, value, at string
	text           string // the whole line
	excludes       bool
}

// assignments are the lines of some of the files, in their order.
func (f *foresight) assignments(of func(*host.SysctlFile) bool) []assignment {
	var out []assignment
	for i := range f.l.SysctlFiles {
		file := &f.l.SysctlFiles[i]
		if !of(file) {
			continue
		}
		excluded := file.Excluded
		for _, e := range file.Entries {
			for len(excluded) > 0 && excluded[0].Line < e.Line {
				out = append(out, assignment{key: excluded[0].Key, excludes: true})
				excluded = excluded[1:]
			}
			out = append(out, assignment{key: e.Key, value: e.Value, at: etc.Place(file.Path, e.Line), text: file.Content[e.Span.Start:e.Span.End]})
		}
		for _, x := range excluded {
			out = append(out, assignment{key: x.Key, excludes: true})
		}
	}
	return out
}

// applied are the assignments that count, in the order in which they are
// made, with globs resolved to the keys of connection tracking. A key that is
// written out is not set by a glob, wherever that stands (sysctl.d(5)).
func (f *foresight) applied() []assignment {
	lines := f.assignments(func(s *host.SysctlFile) bool { return f.reads(s.File, s.As, "sysctl.d") })
	if f.boot.Init != host.InitSystemd {
		// sysctl --system reads /etc/sysctl.conf once more behind all others.
		lines = append(lines, f.assignments(func(s *host.SysctlFile) bool { return s.Path == etc.DefaultSysctlFile && s.As != "" })...)
	}
	explicit := map[string]bool{}
	for _, a := range lines {
		explicit[a.key] = true
	}
	keys := append(slices.Sorted(maps.Values(declared.TimeoutKeys)), etc.KeyMax, "net.nf_conntrack_max", etc.KeyBuckets)
	var out []assignment
	for _, a := range lines {
		switch {
		case etc.IsGlob(a.key) && !a.excludes:
			for _, k := range keys {
				if !explicit[k] && f.exists(k) && f.globMatches(a.key, k) {
					g := a
					g.key = k
					out = append(out, g)
				}
			}
			continue
		case !etc.IsConntrackKey(a.key) || !f.exists(a.key):
			continue
		case a.excludes && f.boot.Init != host.InitSystemd:
			continue
		}
		if f.boot.Init == host.InitSystemd {
			// systemd-sysctl keeps one assignment of each key, at the place of the
			// first with the value that lasts.
			if i := slices.IndexFunc(out, func(o assignment) bool { return o.key == a.key }); i >= 0 {
				if out[i].value == a.value {
					continue
				}
				out = slices.Delete(out, i, i+1)
			}
		}
		if !a.excludes {
			out = append(out, a)
		}
	}
	return out
}

// globMatches is keyMatches with the braces that systemd expands in globs
// (GLOB_BRACE, glob(3)).
func (f *foresight) globMatches(pattern, key string) bool {
	if f.boot.Init != host.InitSystemd {
		return etc.KeyMatches(pattern, key)
	}
	patterns := []string{pattern}
	for i := 0; i < len(patterns) && len(patterns) < 1000; i++ {
		at := braces.FindStringIndex(patterns[i])
		if at == nil {
			if etc.KeyMatches(patterns[i], key) {
				return true
			}
			continue
		}
		p := patterns[i]
		for choice := range strings.SplitSeq(p[at[0]+1:at[1]-1], ",") {
			patterns = append(patterns, p[:at[0]]+choice+p[at[1]:])
		}
	}
	return false
}

// braces are a list in braces without another one inside.
var braces = regexp.MustCompile(`\{[^{}]*\}`)

// exists reports whether the kernel has a key, as far as that can be told: the
// keys that depend on how it was built are there while the module is loaded.
func (f *foresight) exists(key string) bool {
	_, there := f.l.Sysctls[key]
	return there || !f.l.Conntrack.Loaded || !strings.Contains(key, "_timeout")
}

// assign makes assignments.
func (f *foresight) assign(v values, list []assignment) {
	for _, a := range list {
		key := a.key
		if i := slices.Index(etc.MaxKeys, key); i >= 0 {
			if i >= 2 && !hasOldKeys(f.l.Host.Kernel) {
				continue
			}
			key = etc.KeyMax // one value by several names
		}
		n, err := strconv.ParseInt(a.value, 10, 64)
		switch {
		case err != nil || n < 0 || n > 1<<31-1 || a.value != strconv.FormatInt(n, 10):
			v[key] = Value{Source: fmt.Sprintf("%s sets %s, which the kernel may refuse", a.at, a.key)}
			continue
		case key == etc.KeyBuckets:
			n = sizes.RoundBuckets(n, f.l.Host.PageSize, f.l.Host.PointerSize)
		}
		v[key] = Value{Known: true, Value: n, Source: a.at}
	}
}

// hasOldKeys holds for kernels that still know net.ipv4.ip_conntrack_max; they
// may be built without.
func hasOldKeys(release string) bool {
	return host.KernelBefore(release, 4, 9)
}

// reload is IPTABLES_SYSCTL_LOAD_LIST: after the rules, the init script sets
// again what it finds, by a part of the line, in the files that it reads.
func (f *foresight) reload(v values) {
	for _, c := range f.l.InitConfigs {
		service := etc.ServiceOf(c.Path)
		if !f.enabled(service) || f.failed(service) {
			continue
		}
		if c.Refusal != "" && !f.early {
			v[etc.KeyMax] = Value{Source: etc.Place(c.Path, c.RefusalLine) + ": " + c.Refusal}
		}
		if c.SysctlLoad == nil {
			continue
		}
		lines := f.scriptLines(service)
		for _, w := range c.SysctlLoad.Words {
			for _, a := range lines {
				if !a.excludes && strings.Contains(a.text, w.Text) && etc.IsConntrackKey(a.key) {
					f.assign(v, []assignment{a})
				}
			}
		}
	}
}

// scriptLines are the lines of sysctl files that a service's init script looks
// through, in its order.
func (f *foresight) scriptLines(service string) []assignment {
	var out []assignment
	for _, s := range f.l.InitScripts {
		if strings.TrimSuffix(path.Base(s.Path), ".init") != service {
			continue
		}
		for _, from := range s.SysctlFrom {
			out = append(out, f.assignments(func(file *host.SysctlFile) bool { return etc.StandsIn(file, from) })...)
		}
		break
	}
	return out
}
