package boot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/words"
)

// Forecasts is what a host boots into as it is, and as the plan leaves it.
type Forecasts struct {
	Now   Forecast `json:"now"`
	After Forecast `json:"after"`
}

// Warnings are a warning for each point in which the boot of a host is not
// what is declared for it.
func Warnings(d declared.Desired, l host.Live, f Forecast) []change.Warning {
	if d.Mode == declared.Unmanaged {
		return nil
	}
	w := &bootWarner{d: d, l: l, boot: f}
	switch d.Mode {
	case declared.Tuned:
		w.sizes()
	case declared.Disabled:
		w.unloaded()
	}
	w.rules()
	w.native()
	return w.out
}

// bootWarner compares a boot with what is declared.
type bootWarner struct {
	d    declared.Desired
	l    host.Live
	boot Forecast
	out  []change.Warning
}

func (w *bootWarner) warn(address string, source declared.Pos, format string, args ...any) {
	w.out = append(w.out, change.Warning{Address: address, Text: fmt.Sprintf(format, args...), Source: source})
}

// sizes holds the boot to max, hash size and timeouts. Elsewhere than in the
// initial network namespace they are none of this host's business.
func (w *bootWarner) sizes() {
	if !w.l.Conntrack.InitialNetns {
		return
	}
	const module = "module.nf_conntrack"
	switch w.boot.Module.State {
	case ModuleUnloaded:
		w.warn(module, w.d.ModeSource, "a boot does not load nf_conntrack, and the sizes are lost: %s", w.boot.Module.Source)
		return
	case ModuleUnknown:
		w.warn(module, w.d.ModeSource, "whether a boot loads nf_conntrack is not known: %s", w.boot.Module.Source)
		return
	}
	w.value("sysctl."+etc.KeyMax, etc.KeyMax, *w.boot.Max, w.d.Max.Value, w.d.Max.Source)
	w.value("sysfs.nf_conntrack.hashsize", "a hash size", *w.boot.Hashsize, sizes.RoundBuckets(w.d.Hashsize.Value, w.l.Host.PageSize, w.l.Host.PointerSize), w.d.Hashsize.Source)
	for _, t := range w.d.Timeouts {
		key := declared.TimeoutKeys[t.Name]
		if _, known := w.l.Sysctls[key]; !known && w.l.Conntrack.Loaded {
			continue // the plan says so
		}
		v := Value{Source: "nothing that boot reads sets it"}
		if i := slices.IndexFunc(w.boot.Sysctls, func(s Value) bool { return s.Key == key }); i >= 0 {
			v = w.boot.Sysctls[i]
		}
		w.value("sysctl."+key, key, v, t.Seconds, t.Source)
	}
}

func (w *bootWarner) value(address, name string, v Value, want int64, source declared.Pos) {
	switch target := etc.SysctlTarget(w.d, w.l); {
	case v.Known && v.Value == want:
	case strings.HasPrefix(address, "sysctl.") && !w.readsSysctls(target):
		w.warn(address, source, `a boot does not set %s: it does not read %s. Declare files { sysctl = "%s" }`, name, target, etc.DropInSysctlFile)
	case !v.Known:
		w.warn(address, source, "a boot may end with another %s than %d: %s", name, want, v.Source)
	default:
		w.warn(address, source, "a boot ends with %s %d, not %d: %s%s", name, v.Value, want, v.Source, winner(v.Source))
	}
}

// readsSysctls reports whether boot reads a file of sysctls.
func (w *bootWarner) readsSysctls(name string) bool {
	for _, f := range w.l.SysctlFiles {
		if f.Path == name {
			return etc.Reads(w.l.Boot, f.File, f.As, "sysctl.d")
		}
	}
	return true
}

// winner says what to do about the line that wins.
func winner(at string) string {
	switch {
	case strings.HasPrefix(at, "/etc/"):
		return " wins: take that line away"
	case strings.HasPrefix(at, "/"):
		return " wins: a file of the same name in /etc masks it"
	}
	return ""
}

func (w *bootWarner) unloaded() {
	switch w.boot.Module.State {
	case ModuleLoaded:
		w.warn("module.nf_conntrack", w.d.ModeSource, "a boot loads nf_conntrack: %s", w.boot.Module.Source)
	case ModuleUnknown:
		w.warn("module.nf_conntrack", w.d.ModeSource, "whether a boot loads nf_conntrack is not known: %s", w.boot.Module.Source)
	}
}

// rules holds the boot to restoring what ctplan has put into saved files, and
// every mode to restoring files whole. A host of which nothing is known is
// left in peace.
func (w *bootWarner) rules() {
	for _, r := range w.boot.Rules {
		needed := w.throughXtables() && slices.ContainsFunc(w.d.Chains, func(c declared.Chain) bool { return c.Family == r.Family })
		restored := slices.ContainsFunc(w.boot.Rules, func(o Rules) bool { return o.Family == r.Family && o.State == RulesRestored })
		switch {
		case r.State == RulesFail:
			w.warn("file."+r.File, w.d.ModeSource, "a boot fails to restore this file, and %s of it: %s", stand(r.Rules), r.Source)
		case !needed || restored || w.l.Boot == nil || w.l.Boot.Init == "":
		case r.State == RulesIdle:
			w.warn("file."+r.File, w.d.ModeSource, "a boot does not restore this file: %s", r.Source)
		case r.State == RulesUnknown:
			w.warn("file."+r.File, w.d.ModeSource, "whether a boot restores this file is not known: %s", r.Source)
		}
	}
}

// throughXtables is whether iptables carries ctplan's rules.
func (w *bootWarner) throughXtables() bool {
	through, _ := carrier.Of(w.d, w.l)
	return through == declared.IPTables
}

// native warns of tables that a boot may leave otherwise than the plan was judged
// by, where it takes anything out of tracking.
func (w *bootWarner) native() {
	if len(w.d.Chains) == 0 || w.l.Boot == nil || w.l.Boot.Init == "" {
		return
	}
	for _, n := range w.boot.Native {
		address := "nftables." + strings.Replace(n.Table, " ", ".", 1)
		const judged = ", so what it then does with what is no longer tracked was not judged"
		switch n.State {
		case NativeOther:
			w.warn(address, w.d.ModeSource, "a boot does not load the table %s as it is now: %s%s", n.Table, n.Source, judged)
		case NativeIdle:
			w.warn(address, w.d.ModeSource, "a boot does not load the table %s: %s", n.Table, n.Source)
		case NativeUnknown:
			w.warn(address, w.d.ModeSource, "whether a boot loads the table %s as it is now is not known: %s%s", n.Table, n.Source, judged)
		}
	}
}

// stand says how many rules of a file a boot that fails leaves.
func stand(n int) string {
	if n == 0 {
		return "no rule stands"
	}
	return "only " + words.Plural(n, "rule stands", "rules stand")
}
