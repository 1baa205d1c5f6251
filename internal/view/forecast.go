package view

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
)

// bootRow is one fact of a boot that the plan changes. It is clean.
type bootRow struct{ name, now, after string }

// outcome is a fact of a boot and where it comes from.
type outcome struct{ name, value, source string }

func (o outcome) String() string {
	if o.source == "" {
		return Clean(o.value)
	}
	return Clean(o.value + " (" + o.source + ")")
}

// outcomes lists what a boot comes to.
func outcomes(f boot.Forecast) []outcome {
	module := map[boot.ModuleState]string{
		boot.ModuleLoaded: "loaded", boot.ModuleUnloaded: "not loaded", boot.ModuleBuiltin: "built in", boot.ModuleAbsent: "absent",
	}[f.Module.State]
	if module == "" {
		module = "not known"
	}
	out := []outcome{{"nf_conntrack", module, f.Module.Source}}
	value := func(name string, v *boot.Value) {
		switch {
		case v == nil:
		case v.Known:
			out = append(out, outcome{name, fmt.Sprint(v.Value), v.Source})
		default:
			out = append(out, outcome{name, "not known", v.Source})
		}
	}
	value("max", f.Max)
	value("hash size", f.Hashsize)
	for i := range f.Sysctls {
		value(f.Sysctls[i].Key, &f.Sysctls[i])
	}
	for _, r := range f.Rules {
		name, value := r.File, ""
		switch r.State {
		case boot.RulesRestored:
			value = count(r.Rules, "rule")
		case boot.RulesFail:
			value = "fails with " + count(r.Rules, "rule")
		case boot.RulesIdle:
			value = "not restored"
		case boot.RulesNone:
			continue
		default:
			value = "not known"
		}
		out = append(out, outcome{name, value, r.Source})
	}
	return out
}

// Boot is what a boot comes to, in one line without what it comes from. It is
// safe to print on a terminal.
func Boot(f boot.Forecast) string {
	var parts []string
	for i, o := range outcomes(f) {
		switch {
		case i == 0:
			parts = append(parts, "nf_conntrack "+o.value)
		case o.name == "max" || o.name == "hash size":
			parts = append(parts, o.name+" "+o.value)
		case strings.HasPrefix(o.name, "/"):
			parts = append(parts, o.value+" of "+o.name)
		}
	}
	return Clean(strings.Join(parts, ", "))
}

// bootRows are the facts of a boot that the plan changes, in the order of
// outcomes. A fact that is not there on one side is "none" there.
func bootRows(p planner.Plan) []bootRow {
	if p.Forecast == nil || p.Blocked() {
		return nil
	}
	now, after := outcomes(p.Forecast.Now), outcomes(p.Forecast.After)
	find := func(list []outcome, name string) outcome {
		for _, o := range list {
			if o.name == name {
				return o
			}
		}
		return outcome{name, "none", ""}
	}
	var rows []bootRow
	for _, a := range after {
		if n := find(now, a.name); n.value != a.value {
			rows = append(rows, bootRow{Clean(a.name), n.String(), a.String()})
		}
	}
	for _, n := range now {
		if find(after, n.name).value == "none" {
			rows = append(rows, bootRow{Clean(n.name), n.String(), "none"})
		}
	}
	return rows
}

func (t *textWriter) forecast(p planner.Plan) {
	rows := bootRows(p)
	if len(rows) == 0 {
		return
	}
	t.line(t.paint(bold, "the next boot, today -> after this plan"))
	for _, r := range rows {
		name := fmt.Sprintf("  %-14s", r.name)
		if utf8.RuneCountInString(r.name) > 12 {
			t.line("  " + r.name)
			name = fmt.Sprintf("  %-14s", "")
		}
		if one := r.now + " -> " + r.after; utf8.RuneCountInString(name)+utf8.RuneCountInString(one) <= t.o.Width {
			t.line(name + one)
			continue
		}
		t.prose(name, r.now)
		t.prose(fmt.Sprintf("%16s-> ", ""), r.after)
	}
	t.line("")
}

func (m *markdownWriter) forecast(p planner.Plan) {
	rows := bootRows(p)
	if len(rows) == 0 {
		return
	}
	m.para("**the next boot, today → after this plan**")
	for _, r := range rows {
		m.item(code(r.name) + ": " + prose(r.now) + " → " + prose(r.after))
	}
	m.para("")
}
