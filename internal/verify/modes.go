package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/modules"
	"github.com/ctplan/ctplan/planner/sizes"
)

// disabled is whether there is no connection tracking, and none to come.
func (c *checker) disabled() {
	c.modules()
	c.hooks()
	c.autoload()
	c.bootUnloaded()
	c.bootRules()
}

func (c *checker) modules() {
	const name, what = "disabled.modules", "no module of connection tracking is loaded"
	ct := c.in.Live.Conntrack
	var loaded []string
	for _, m := range c.in.Live.Modules {
		if modules.IsConntrack(m.Name) {
			loaded = append(loaded, fmt.Sprintf("%s: %s%s", m.Name, plural(m.Refs, "reference", "references"), usedBy(m)))
		}
	}
	switch {
	case ct.Kind == host.ConntrackAbsent:
		c.add(name, Pass, what, "kernel "+c.in.Live.Host.Kernel+" has none")
	case ct.Kind == host.ConntrackBuiltin:
		c.add(name, Skip, what, "it is built into kernel "+c.in.Live.Host.Kernel, loaded...)
	case len(loaded) == 0 && !ct.Loaded:
		c.add(name, Pass, what, "")
	case c.in.Desired.Allows(declared.RiskModuleHeld):
		c.add(name, Skip, what, "allow_risk accepts that modules are held", loaded...)
	default:
		c.add(name, Fail, what, plural(len(loaded), "is loaded", "are loaded"), loaded...)
	}
}

func usedBy(m host.Module) string {
	if len(m.By) == 0 {
		return ""
	}
	return ", used by " + strings.Join(m.By, ", ")
}

// hooks is whether tracking is at work in this network namespace. No file says
// so, and few kernels list their hooks: since Linux 4.14 they are registered
// while a rule needs them (nf_ct_netns_get in net/netfilter/nf_conntrack_proto.c).
func (c *checker) hooks() {
	const name, what = "disabled.hooks", "connection tracking is hooked into no packet's way"
	ct := c.in.Live.Conntrack
	var rules []string
	for _, a := range c.in.Askers {
		rules = append(rules, a.Where+": "+a.Rule)
	}
	switch {
	case !ct.Loaded:
		c.add(name, Pass, what, "it is not loaded")
	case ct.Count > 0:
		c.add(name, Fail, what, plural(ct.Count, "entry is", "entries are")+" in the table", rules...)
	case len(rules) > 0:
		c.add(name, Fail, what, plural(len(rules), "rule asks", "rules ask")+" for it", rules...)
	case !since414(c.in.Live.Host.Kernel):
		c.add(name, Skip, what, "kernels before 4.14 track whatever the rules are; there is no entry in the table now")
	case len(unread(c.in.Live)) > 0:
		c.add(name, Skip, what, "no rule that was read asks for it, and the table is empty, but not all could be read", unread(c.in.Live)...)
	default:
		c.add(name, Pass, what, "no rule asks for it, and the table is empty")
	}
}

// unread is what of the host's rules may ask for tracking and was not seen.
func unread(l host.Live) []string {
	list := slices.Clone(l.Notes)
	for _, rs := range l.Rulesets {
		for _, t := range rs.Incompatible {
			list = append(list, fmt.Sprintf("%s %s: iptables-save does not show this table", rs.Family, t))
		}
	}
	return list
}

// since414 reads the release of a kernel. What it cannot read is old.
func since414(release string) bool {
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(strings.TrimRight(minor, "-+abcdefghijklmnopqrstuvwxyz"))
	return err1 == nil && err2 == nil && (a > 4 || a == 4 && b >= 14)
}

// autoload asks what would become of nf_conntrack if something asked for it: a
// line in modules-load.d does, and without systemd no blacklist counts, as
// none does when a rule asks.
func (c *checker) autoload() {
	const name, what = "disabled.autoload", "nothing that asks for nf_conntrack gets it loaded"
	switch c.in.Live.Conntrack.Kind {
	case host.ConntrackBuiltin:
		c.add(name, Skip, what, "it is built into kernel "+c.in.Live.Host.Kernel+": there is nothing to load, and nothing keeps it from tracking but that no rule asks")
		return
	case host.ConntrackAbsent:
		c.add(name, Pass, what, "kernel "+c.in.Live.Host.Kernel+" has none")
		return
	}
	const probe = "/etc/modules-load.d/ctplan-verify.conf"
	asked := c.in.Live
	asked.ModulesLoad = []host.ModulesLoadFile{{File: host.File{Path: probe, Exists: true}, Entries: []host.ModulesLoadEntry{{Module: "nf_conntrack", Line: 1}}}}
	asked.Boot, asked.SavedRules, asked.InitConfigs = &host.Boot{Init: host.InitSysv}, nil, nil
	switch m := boot.Foresee(asked).Module; m.State {
	case boot.ModuleLoaded:
		c.add(name, Fail, what, "no line in modprobe.d keeps it from loading: the next rule on connection state, or listing the nat table, brings it back")
	case boot.ModuleUnknown:
		c.add(name, Skip, what, strings.ReplaceAll(m.Source, probe+":1", "a rule"))
	default:
		c.add(name, Pass, what, strings.ReplaceAll(m.Source, probe+":1", "modprobe"))
	}
}

func (c *checker) bootUnloaded() {
	const name, what = "disabled.boot", "the next boot does not load nf_conntrack"
	switch m := boot.Foresee(c.in.Live).Module; m.State {
	case boot.ModuleLoaded:
		c.add(name, Fail, what, "it does: "+m.Source)
	case boot.ModuleUnknown:
		c.add(name, Skip, what, "whether it does is not known: "+m.Source)
	case boot.ModuleBuiltin:
		c.add(name, Skip, what, m.Source)
	default:
		c.add(name, Pass, what, m.Source)
	}
}

// bootRules is whether a boot brings ctplan's rules back, and none that fail.
func (c *checker) bootRules() {
	const name = "boot.rules"
	what := "the next boot restores the saved rules"
	if len(c.in.Desired.Chains) > 0 {
		what += " with ctplan's"
	}
	result, why := Pass, ""
	worse := func(r Result, text string) {
		if result == Pass || result == Skip && r == Fail {
			result, why = r, text
		}
	}
	var evidence []string
	if native(c.in.Desired, c.in.Live) && len(c.in.Desired.Native) > 0 {
		worse(Fail, "what ctplan has put into nftables is in the kernel alone")
	}
	next := boot.Foresee(c.in.Live)
	for _, r := range next.Rules {
		needed := !native(c.in.Desired, c.in.Live) && slices.ContainsFunc(c.in.Desired.Chains, func(ch declared.Chain) bool { return ch.Family == r.Family })
		restored := slices.ContainsFunc(next.Rules, func(o boot.Rules) bool {
			return o.Family == r.Family && o.State == boot.RulesRestored
		})
		where := cmp.Or(r.File, "no file of "+string(r.Family))
		evidence = append(evidence, fmt.Sprintf("%s: %s: %s", where, r.State, r.Source))
		switch {
		case r.State == boot.RulesFail:
			worse(Fail, "it fails to restore "+where+": "+r.Source)
		case !needed || restored:
		case c.in.Live.Boot == nil || c.in.Live.Boot.Init == "":
			worse(Skip, "what this host starts at boot is not known")
		case r.State == boot.RulesUnknown:
			worse(Skip, "whether it restores "+where+" is not known: "+r.Source)
		default:
			worse(Fail, "nothing restores "+where+": "+r.Source)
		}
	}
	c.add(name, result, what, why, evidence...)
}

// tuned is whether the sizes are in force, now and at the next boot.
func (c *checker) tuned() {
	d, live := c.in.Desired, c.in.Live
	next := boot.Foresee(live)
	c.size("max", d.Max.Value, live.Conntrack.Max, "entries", next.Max)
	c.size("buckets", sizes.RoundBuckets(d.Hashsize.Value, live.Host.PageSize, live.Host.PointerSize), live.Conntrack.Hashsize, "buckets", next.Hashsize)
	for _, t := range d.Timeouts {
		c.timeout(t, next)
	}
	c.bootRules()
	c.room()
}

func (c *checker) size(name string, want, have int64, unit string, next *boot.Value) {
	what := fmt.Sprintf("the table has %s %s", number(want), unit)
	if name == "max" {
		what = fmt.Sprintf("the table takes %s %s", number(want), unit)
	}
	switch {
	case !c.in.Live.Conntrack.Loaded:
		c.add("tuned."+name, Fail, what, "nf_conntrack is not loaded")
	case have != want:
		c.add("tuned."+name, Fail, what, fmt.Sprintf("it is %s now", number(have)))
	default:
		c.add("tuned."+name, Pass, what, "")
	}
	c.bootValue("tuned.boot."+name, fmt.Sprintf("the next boot ends with %s %s", number(want), unit), want, next)
}

func (c *checker) bootValue(name, what string, want int64, v *boot.Value) {
	switch {
	case !c.in.Live.Conntrack.InitialNetns:
		c.add(name, Skip, what, "a boot sizes the table of the initial network namespace, and this is another")
	case v == nil:
		c.add(name, Fail, what, "it does not load nf_conntrack, or nothing that it reads says so")
	case !v.Known:
		c.add(name, Skip, what, "what it ends with is not known: "+v.Source)
	case v.Value != want:
		c.add(name, Fail, what, fmt.Sprintf("it ends with %s: %s", number(v.Value), v.Source))
	default:
		c.add(name, Pass, what, v.Source)
	}
}

func (c *checker) timeout(t declared.Timeout, next boot.Forecast) {
	key := declared.TimeoutKeys[t.Name]
	name, what := "tuned."+t.Name, fmt.Sprintf("%s is %s s", t.Name, number(t.Seconds))
	v, ok := c.in.Live.Sysctls[key]
	if !ok {
		c.add(name, Skip, what, "this kernel has no "+key)
		return
	}
	c.passes(v.Value == strconv.FormatInt(t.Seconds, 10), name, what, fmt.Sprintf("%s = %s", key, v.Value))
	var at *boot.Value
	if i := slices.IndexFunc(next.Sysctls, func(s boot.Value) bool { return s.Key == key }); i >= 0 {
		at = &next.Sysctls[i]
	}
	c.bootValue("tuned.boot."+t.Name, "the next boot sets "+key+" to "+number(t.Seconds), t.Seconds, at)
}

// room is whether the table takes more than it could before.
func (c *checker) room() {
	const name, what = "tuned.room", "the table takes more entries than before the change"
	old, err := strconv.ParseInt(strings.TrimSpace(c.in.Change.OldMax), 10, 64)
	now := c.in.Live.Conntrack
	peak := max(c.in.Peak, now.Count)
	switch {
	case c.in.Change.OldMax == "" || err != nil:
		c.add(name, Skip, what, fmt.Sprintf("the maximum before is not known; %s now", plural(peak, "entry", "entries")))
	case old == 0:
		c.add(name, Skip, what, "it had no maximum before")
	case peak > old:
		c.add(name, Pass, what, fmt.Sprintf("%s, past the old maximum of %s", plural(peak, "entry", "entries"), number(old)))
	case now.Max != 0 && now.Max <= old:
		c.add(name, Skip, what, fmt.Sprintf("the maximum was not raised: it was %s", number(old)))
	default:
		c.add(name, Skip, what, fmt.Sprintf("%s so far, and the old maximum was %s: it was not needed yet", plural(peak, "entry", "entries"), number(old)))
	}
}
