// Package importer declares a host as it is.
package importer

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/translate"
	"github.com/ctplan/ctplan/planner/words"
)

// Imported is the declaration that describes a host as it is.
type Imported struct {
	declared.Declaration
	Plan planner.Plan // for that declaration, on that host
}

// Import declares a host as it is: so that the plan for it is empty, or, where
// no declaration does that, as near as one comes; then the comments say what
// plan would change, and why. It is a pure function.
//
// Modes are recognised by what ctplan leaves behind (its chains, a block on
// loading the module, the sizes in files), and by what others do: NOTRACK rules
// of their own, a module that is not there.
func Import(l host.Live, render declared.Renderer) Imported {
	l.Connections = nil // nothing changes, so nobody is cut off
	var best *Imported
	for _, d := range guesses(l) {
		for _, got := range variants(d, l, render) {
			if got.Plan.Empty() {
				return describe(got, l)
			}
			if best == nil || best.Plan.Mode == got.Plan.Mode && weight(got.Plan) < weight(best.Plan) {
				best = &got
			}
		}
	}
	return describe(*best, l)
}

// weight orders plans by how far the host is from what is declared.
func weight(p planner.Plan) int { return 1000*len(p.Blocks) + len(p.Changes) }

// guesses are declarations of the modes that the host may be in, the likeliest
// first.
func guesses(l host.Live) []declared.Desired {
	base := declared.Desired{Block: declared.Label(l.Host.Name, "host"), StatefulRules: declared.RefuseStateful, Families: slices.Clone(host.Families)}
	accepts, notracks := ownTraffic(l)
	foreign, _ := foreignNotracks(l)

	notrack, disabled := base, base
	notrack.Mode, notrack.Accept, notrack.Notrack = declared.Notrack, accepts, notracks
	if len(notracks) == 0 {
		notrack.Notrack = foreign
	}
	disabled.Mode, disabled.Accept = declared.Disabled, accepts
	tuned := importSizes(base, l)

	blocked := slices.ContainsFunc(l.ModprobeFiles, func(f host.ModprobeFile) bool { return slices.ContainsFunc(f.Entries, etc.IsBlock) })
	var out []declared.Desired
	switch {
	case len(notracks) > 0:
		out = []declared.Desired{notrack}
	case blocked, l.Conntrack.Kind == host.ConntrackAbsent, len(accepts) > 0:
		out = []declared.Desired{disabled}
	case len(foreign) > 0:
		out = []declared.Desired{notrack}
	case !l.Conntrack.Loaded:
		out = []declared.Desired{disabled}
	}
	if l.Conntrack.Kind != host.ConntrackAbsent && len(accepts) == 0 && !blocked {
		out = append(out, tuned...)
	}
	return out
}

// variants are the ways to declare the same mode: what becomes of rules on
// state, and risks that whoever declared it accepted.
func variants(d declared.Desired, l host.Live, render declared.Renderer) []Imported {
	try := func(d declared.Desired) Imported {
		render(&d, l)
		return Imported{declared.Declaration{Host: l.Host.Name, Desired: d}, planner.Diff(d, l)}
	}
	var out []Imported
	for _, policy := range policies(d, l) {
		d.StatefulRules = policy
		got := try(d)
		out = append(out, got)
		var risks []declared.Risk
		for _, b := range got.Plan.Blocks {
			if b.Override && !slices.Contains(risks, b.Risk) {
				risks = append(risks, b.Risk)
			}
		}
		if len(risks) > 0 {
			accepted := d
			accepted.AllowRisk = inOrder(risks)
			// A risk is accepted here only where it is what stands between the
			// host and an empty plan: it is not import's to accept others.
			if got := try(accepted); got.Plan.Empty() {
				out = append(out, got)
			}
		}
	}
	return out
}

// policies are what may have become of rules on state. Stateless twins tell.
func policies(d declared.Desired, l host.Live) []declared.StatefulPolicy {
	if d.Mode == declared.Tuned {
		return []declared.StatefulPolicy{declared.RefuseStateful}
	}
	for _, sets := range [][]host.Ruleset{l.Rulesets, l.SavedRules} {
		for i := range sets {
			for k := range sets[i].Tables {
				if slices.ContainsFunc(sets[i].Tables[k].Rules, func(r host.Rule) bool { return translate.IsTwin(&r) }) {
					return []declared.StatefulPolicy{declared.TranslateStateful, declared.RefuseStateful, declared.RemoveStateful}
				}
			}
		}
	}
	return []declared.StatefulPolicy{declared.RefuseStateful, declared.RemoveStateful}
}

func inOrder(risks []declared.Risk) []declared.Risk {
	var out []declared.Risk
	for _, r := range declared.Risks {
		if slices.Contains(risks, r) {
			out = append(out, r)
		}
	}
	return out
}

// describe adds the comments.
func describe(got Imported, l host.Live) Imported {
	sayPlan(&got, l)
	if _, left := foreignNotracks(l); len(left) > 0 {
		got.Note(declared.NoteHead, "Not declared, and left alone, because no block says it: "+words.Examples(left)+".")
	}
	return got
}

func sayPlan(got *Imported, l host.Live) {
	d := &got.Declaration
	if got.Plan.Empty() {
		d.Note(declared.NoteHead, fmt.Sprintf("Imported by ctplan from %s as it is: its plan is empty.", l.Host.Name))
		return
	}
	d.Note(declared.NoteHead, fmt.Sprintf("Imported by ctplan from %s, as near as mode %s comes to it: its plan is not empty.", l.Host.Name, d.Desired.Mode))
	for _, b := range got.Plan.Blocks {
		d.Note(declared.NoteHead, fmt.Sprintf("Blocked by %s: %s (%s); %s.", b.Risk, b.Why, b.Where, b.Remedy))
	}
	for _, c := range got.Plan.Changes {
		m := c.Meta()
		d.Note(declared.NoteHead, fmt.Sprintf("Would %s %s: %s.", m.Action, m.Address, strings.Join(append(m.Reasons, changed(c)...), "; ")))
	}
}

// changed says in words what a change does, where its address does not.
func changed(c change.Change) []string {
	switch c := c.(type) {
	case *change.SysctlChange:
		return []string{c.Before + " becomes " + c.After}
	case *change.HashsizeChange:
		return []string{fmt.Sprintf("%d becomes %d", c.Before, c.After)}
	case *change.FileChange:
		var out []string
		for _, l := range firstLines(c.After.Content, c.Before.Content) {
			out = append(out, "adds "+strconv.Quote(l))
		}
		for _, l := range firstLines(c.Before.Content, c.After.Content) {
			out = append(out, "drops "+strconv.Quote(l))
		}
		return out
	case *change.RulesChange:
		var out []string
		for _, l := range firstLines(strings.Join(c.After, "\n"), strings.Join(c.Before, "\n")) {
			out = append(out, "adds "+l)
		}
		for _, l := range firstLines(strings.Join(c.Before, "\n"), strings.Join(c.After, "\n")) {
			out = append(out, "drops "+l)
		}
		return out
	}
	return nil
}

// firstLines are lines of a that b does not have, as many as blocks name rules.
func firstLines(a, b string) []string {
	has := map[string]bool{}
	for l := range strings.SplitSeq(b, "\n") {
		has[strings.TrimSpace(l)] = true
	}
	var out []string
	for l := range strings.SplitSeq(a, "\n") {
		if l = strings.TrimSpace(l); l == "" || has[l] {
			continue
		}
		if len(out) == change.MaxNamed {
			return append(out, "…")
		}
		out = append(out, l)
	}
	return out
}

// importSizes declares the sizes of today: once for each sysctl file that sets
// them, the one that boot reads last first.
func importSizes(base declared.Desired, l host.Live) []declared.Desired {
	d := base
	d.Mode = declared.Tuned
	size := l.Conntrack.Max
	if n, err := strconv.ParseInt(l.Sysctls[etc.KeyMax].Value, 10, 64); err == nil {
		size = n
	}
	var files []string
	for _, f := range l.SysctlFiles {
		for _, e := range f.Entries {
			if !slices.Contains(etc.MaxKeys, e.Key) {
				continue
			}
			if n, err := strconv.ParseInt(e.Value, 10, 64); err == nil && !l.Conntrack.Loaded {
				size = n
			}
			if plainPath(f.Path) && etc.Editable(f.File, "") && !slices.Contains(files, f.Path) {
				files = append(files, f.Path)
			}
		}
	}
	buckets := l.Conntrack.Hashsize
	for _, f := range l.ModprobeFiles {
		for _, e := range f.Entries {
			if e.Command != "options" || e.Module != "nf_conntrack" {
				continue
			}
			for _, a := range e.Args {
				p := etc.ParamOf(a.Text)
				if n, err := strconv.ParseInt(p.Value, 10, 64); p.Name == "hashsize" && err == nil && (buckets == 0 || sizes.RoundBuckets(n, l.Host.PageSize, l.Host.PointerSize) == l.Conntrack.Hashsize) {
					buckets = n
				}
			}
		}
	}
	if defaultBuckets, defaultMax, ok := sizes.DefaultSizes(l.Host.Kernel, l.Host.Memory, l.Host.PageSize, l.Host.PointerSize); ok {
		if size <= 0 {
			size = defaultMax
		}
		if buckets <= 0 {
			buckets = defaultBuckets
		}
	}
	const most = 1<<31 - 1
	d.Max = &declared.Setting{Value: min(max(size, 1), most)}
	d.Hashsize = &declared.Setting{Value: min(max(buckets, 1), most)}

	slices.Reverse(files)
	var out []declared.Desired
	for _, f := range append(files, etc.DefaultSysctlFile) {
		one := d
		if one.Files.Sysctl = f; f == etc.DefaultSysctlFile {
			one.Files.Sysctl = ""
		}
		one.Timeouts = importTimeouts(l, f)
		out = append(out, one)
	}
	return out
}

// plainPath reports whether the language can name the file.
func plainPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && len(p) < 4096 &&
		strings.IndexFunc(p, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune("\"'`\\", r) }) < 0
}

// importTimeouts are the timeouts that the file sets, and those that no
// kernel has by itself.
func importTimeouts(l host.Live, file string) []declared.Timeout {
	set := map[string]bool{}
	for _, f := range l.SysctlFiles {
		if f.Path == file {
			for _, e := range f.Entries {
				set[e.Key] = true
			}
		}
	}
	var out []declared.Timeout
	for name, key := range declared.TimeoutKeys {
		live, ok := l.Sysctls[key]
		seconds, err := strconv.ParseInt(live.Value, 10, 64)
		if !ok || err != nil || seconds < 0 || seconds > 1<<31-1 || !set[key] && slices.Contains(defaultTimeouts[name], seconds) {
			continue
		}
		out = append(out, declared.Timeout{Name: name, Seconds: seconds})
	}
	slices.SortFunc(out, func(a, b declared.Timeout) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// defaultTimeouts are the seconds that kernels since 3.10 start with
// (net/netfilter/nf_conntrack_proto_*.c).
var defaultTimeouts = map[string][]int64{
	"dccp_closereq": {64}, "dccp_closing": {64}, "dccp_open": {43200}, "dccp_partopen": {480}, "dccp_request": {240}, "dccp_respond": {480}, "dccp_timewait": {240},
	"generic": {600}, "gre": {30}, "gre_stream": {180}, "icmp": {30}, "icmpv6": {30},
	"sctp_closed": {10}, "sctp_cookie_echoed": {3}, "sctp_cookie_wait": {3}, "sctp_established": {432000, 210},
	"sctp_shutdown_ack": {3}, "sctp_shutdown_recv": {0, 3}, "sctp_shutdown_sent": {0, 3},
	"tcp_close": {10}, "tcp_close_wait": {60}, "tcp_established": {432000}, "tcp_fin_wait": {120}, "tcp_last_ack": {30}, "tcp_max_retrans": {300},
	"tcp_syn_recv": {60}, "tcp_syn_sent": {120}, "tcp_time_wait": {120}, "tcp_unacknowledged": {300},
	"udp": {30}, "udp_stream": {180, 120},
}
