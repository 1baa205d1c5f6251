package schema

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

var conntrackSchema = &hcl.BodySchema{
	Attributes: []hcl.AttributeSchema{
		{Name: "hosts"}, {Name: "mode", Required: true}, {Name: "max"}, {Name: "hashsize"}, {Name: "timeouts"}, {Name: "reload"},
		{Name: "stateful_rules"}, {Name: "init_scripts"}, {Name: "allow_risk"}, {Name: "families"}, {Name: "firewall"},
	},
	Blocks: []hcl.BlockHeaderSchema{
		{Type: "notrack", LabelNames: []string{"name"}},
		{Type: "accept", LabelNames: []string{"name"}},
		{Type: "files"},
	},
}

// decodeConntrack decodes and checks a conntrack block. It always returns a
// block; with errors that is not to be used.
func decodeConntrack(hb *hcl.Block, s *scope) (*block, hcl.Diagnostics) {
	d := &decoder{scope: s}
	content, diags := bodyContent(hb.Body, "conntrack", conntrackSchema)
	d.diags = append(d.diags, diags...)
	b := &block{rng: hb.DefRange}
	want := &b.desired
	want.Block = hb.Labels[0]
	want.Source = position(hb.DefRange)

	attrs := content.Attributes
	if e, ok := d.value(attrs["mode"]); ok {
		want.Mode, _ = choice(d, e, "mode", []declared.Mode{declared.Disabled, declared.Notrack, declared.Tuned})
		want.ModeSource = position(attrs["mode"].NameRange)
	} else if attr := attrs["mode"]; attr != nil && e.expr != nil && e.val.IsNull() {
		d.errorf(attr.Range, "Missing mode", "mode is %q, %q or %q; null says nothing.", declared.Disabled, declared.Notrack, declared.Tuned)
	}
	modeUnknown := d.unknown
	d.unknown = nil
	b.hosts, b.all = d.hosts(attrs["hosts"])
	b.hostsUnknown = d.unknown
	if modeUnknown != nil {
		d.unknown = modeUnknown
	}
	want.StatefulRules = declared.RefuseStateful
	if e, ok := d.value(attrs["stateful_rules"]); ok {
		want.StatefulRules, _ = choice(d, e, "stateful_rules", declared.StatefulPolicies)
	}
	want.AllowRisk = choices(d, attrs["allow_risk"], "risk", declared.Risks)
	want.Families = d.families(attrs["families"])
	if e, ok := d.value(attrs["firewall"]); ok {
		want.Firewall, _ = choice(d, e, "firewall", []declared.Firewall{declared.IPTables, declared.NFTables})
		want.FirewallSource = position(attrs["firewall"].NameRange)
	}
	want.InitScripts = d.initScripts(attrs["init_scripts"])
	d.tuning(want, content, hb.DefRange)
	d.traffic(want, content)
	d.files(want, content)
	d.checkMode(want, content, hb.DefRange)
	b.unknown = d.unknown
	return b, d.diags
}

// checkMode holds every attribute and block to the modes it means something in.
func (d *decoder) checkMode(want *declared.Desired, content *hcl.BodyContent, header hcl.Range) {
	if want.Mode == declared.Unmanaged {
		return
	}
	count := map[string]int{}
	for _, b := range content.Blocks {
		count[b.Type]++
		switch {
		case b.Type == "notrack" && want.Mode != declared.Notrack:
			d.errorf(b.DefRange, "Block in the wrong mode", "A notrack block belongs to mode %q; this block is in mode %q.", declared.Notrack, want.Mode)
		case b.Type == "accept" && want.Mode == declared.Tuned:
			d.errorf(b.DefRange, "Block in the wrong mode", "An accept block belongs to the modes %q and %q; this block is in mode %q, where rules stay as they are.", declared.Notrack, declared.Disabled, want.Mode)
		}
	}
	if want.Mode == declared.Notrack && count["notrack"] == 0 {
		d.errorf(header, "Missing notrack block", "Mode %q needs at least one notrack block that says which traffic is not tracked.", want.Mode)
	}
	for _, name := range []string{"max", "hashsize", "timeouts", "reload"} {
		if attr := content.Attributes[name]; attr != nil && want.Mode != declared.Tuned {
			d.errorf(attr.NameRange, "Attribute in the wrong mode", "%s belongs to mode %q; this block is in mode %q.", name, declared.Tuned, want.Mode)
		}
	}
}

// hosts returns the globs in lower case. No attribute matches every host.
func (d *decoder) hosts(attr *hcl.Attribute) (globs []string, all bool) {
	elements, ok := d.list(attr, false)
	if !ok {
		return nil, true
	}
	for _, e := range elements {
		s, ok := d.text(e, "A host")
		if !ok {
			continue
		}
		if _, err := path.Match(s, "host"); err != nil || s == "" {
			d.badValue(e, "Bad host pattern", "%q is not a pattern: * stands for any characters, ? for one, [a-z] for one of them.", clip(s))
			continue
		}
		globs = append(globs, strings.ToLower(s))
	}
	if len(elements) == 0 {
		d.diags = append(d.diags, &hcl.Diagnostic{
			Severity: hcl.DiagWarning,
			Summary:  "No hosts",
			Detail:   "This list is empty, so the block is for no host. Leave hosts out to match every host.",
			Subject:  attr.Expr.Range().Ptr(),
		})
	}
	return globs, false
}

// choices decodes a list of words, in the order of the options, each once.
func choices[T ~string](d *decoder, attr *hcl.Attribute, what string, options []T) []T {
	elements, _ := d.list(attr, false)
	var given []T
	for _, e := range elements {
		if v, ok := choice(d, e, what, options); ok {
			given = append(given, v)
		}
	}
	var out []T
	for _, option := range options {
		if slices.Contains(given, option) {
			out = append(out, option)
		}
	}
	return out
}

// families decodes a list of address families; without one, both.
func (d *decoder) families(attr *hcl.Attribute) []host.Family {
	elements, ok := d.list(attr, false)
	if ok && len(elements) == 0 {
		d.errorf(attr.Expr.Range(), "No families", "This list is empty. Leave families out for both.")
	}
	if !ok || len(elements) == 0 {
		return slices.Clone(host.Families)
	}
	if out := choices(d, attr, "family", host.Families); len(out) > 0 {
		return out
	}
	return slices.Clone(host.Families)
}

// tuning decodes max, hashsize and timeouts. The bounds are what the kernel
// takes: it keeps both numbers in 32 bits, and reads max 0 as no limit.
func (d *decoder) tuning(want *declared.Desired, content *hcl.BodyContent, header hcl.Range) {
	attrs := content.Attributes
	if e, ok := d.value(attrs["max"]); ok {
		if isZero(e.val) {
			d.badValue(e, "Number out of range", "max is from 1 to %d. The kernel reads 0 as no limit at all, and a table without a limit takes all memory under load.", math.MaxInt32)
		} else if n, ok := d.integer(e, "max", 1, math.MaxInt32); ok {
			want.Max = &declared.Setting{Value: n, Source: position(attrs["max"].NameRange)}
		}
	} else if want.Mode == declared.Tuned && (attrs["max"] == nil || e.expr != nil && e.val.IsNull()) {
		d.errorf(header, "Missing max", "Mode %q needs max, the number of connections that the table may hold.", want.Mode)
	}
	if e, ok := d.value(attrs["hashsize"]); ok {
		if isZero(e.val) {
			d.badValue(e, "Number out of range", "hashsize is from 1 to %d. The kernel refuses 0; leave hashsize out for max / 4.", math.MaxInt32)
		} else if n, ok := d.integer(e, "hashsize", 1, math.MaxInt32); ok {
			want.Hashsize = &declared.Setting{Value: n, Source: position(attrs["hashsize"].NameRange)}
		}
	} else if want.Mode == declared.Tuned && want.Max != nil {
		want.Hashsize = &declared.Setting{Value: max(1, want.Max.Value/4), Source: want.Max.Source}
	}
	want.Timeouts = d.timeouts(attrs["timeouts"])
	if e, ok := d.value(attrs["reload"]); ok {
		want.Reload, _ = choice(d, e, "reload", []declared.Reload{declared.ReloadLive, declared.ReloadRestart})
		want.ReloadSource = position(attrs["reload"].NameRange)
	}
}

func isZero(val cty.Value) bool {
	return val.Type() == cty.Number && val.AsBigFloat().Sign() == 0
}

// timeouts decodes an object of seconds by name. Keys of an object that is
// written out have their own place.
func (d *decoder) timeouts(attr *hcl.Attribute) []declared.Timeout {
	if attr == nil {
		return nil
	}
	type entry struct{ key, val element }
	var entries []entry
	if pairs, diags := hcl.ExprMap(attr.Expr); !diags.HasErrors() {
		for _, pair := range pairs {
			key, ok1 := d.eval(pair.Key)
			val, ok2 := d.eval(pair.Value)
			if ok1 && ok2 {
				entries = append(entries, entry{key, val})
			}
		}
	} else if e, ok := d.value(attr); ok {
		if ty := e.val.Type(); !ty.IsObjectType() && !ty.IsMapType() {
			d.diags = append(d.diags, wrongType(e.expr, "timeouts is an object of seconds by name", e.val))
			return nil
		}
		for it := e.val.ElementIterator(); it.Next(); {
			if k, v := it.Element(); d.known(v, e.expr) {
				entries = append(entries, entry{element{k, e.expr}, element{v, e.expr}})
			}
		}
	}

	keys := slices.Sorted(maps.Keys(declared.TimeoutKeys))
	var out []declared.Timeout
	for _, entry := range entries {
		if entry.key.val.IsNull() {
			d.badValue(entry.key, "Unknown timeout", "The name of a timeout cannot be null.")
			continue
		}
		name, ok := d.text(entry.key, "The name of a timeout")
		if !ok {
			continue
		}
		if _, known := declared.TimeoutKeys[name]; !known {
			d.badValue(entry.key, "Unknown timeout", "%q is not a timeout.%s Known: %s.", clip(name), didYouMean(name, keys), strings.Join(keys, ", "))
			continue
		}
		if slices.ContainsFunc(out, func(t declared.Timeout) bool { return t.Name == name }) {
			d.badValue(entry.key, "Duplicate timeout", "%q stands in this object already.", name)
			continue
		}
		if entry.val.val.IsNull() {
			continue
		}
		if n, ok := d.integer(entry.val, fmt.Sprintf("The timeout %s, in seconds,", name), 0, math.MaxInt32); ok {
			out = append(out, declared.Timeout{Name: name, Seconds: n, Source: position(entry.key.expr.Range())})
		}
	}
	slices.SortFunc(out, func(a, b declared.Timeout) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// initScripts decodes init_scripts; nil means detected.
func (d *decoder) initScripts(attr *hcl.Attribute) []string {
	elements, ok := d.list(attr, false)
	if ok && len(elements) == 0 {
		d.errorf(attr.Expr.Range(), "No init scripts", "This list is empty. Leave init_scripts out to have them detected.")
	}
	var out []string
	for _, e := range elements {
		p, ok := d.filePath(e, "An init script")
		switch {
		case !ok:
		case slices.Contains(out, p):
			d.badValue(e, "Duplicate path", "%q stands in this list already.", p)
		default:
			out = append(out, p)
		}
	}
	return out
}

// files decodes the files block.
func (d *decoder) files(want *declared.Desired, content *hcl.BodyContent) {
	var first *hcl.Block
	for _, b := range content.Blocks {
		if b.Type != "files" {
			continue
		}
		if first != nil {
			d.errorf(b.DefRange, "Duplicate files block", "A files block stands at %s already.", place(first.DefRange))
			continue
		}
		first = b
		fields := []struct {
			name string
			path *string
		}{
			{"sysctl", &want.Files.Sysctl},
			{"modprobe", &want.Files.Modprobe},
			{"modules_load", &want.Files.ModulesLoad},
			{"rules_v4", &want.Files.RulesV4},
			{"rules_v6", &want.Files.RulesV6},
		}
		fileSchema := &hcl.BodySchema{}
		for _, f := range fields {
			fileSchema.Attributes = append(fileSchema.Attributes, hcl.AttributeSchema{Name: f.name})
		}
		body, diags := bodyContent(b.Body, "files", fileSchema)
		d.diags = append(d.diags, diags...)
		used := map[string]string{}
		for _, f := range fields {
			e, ok := d.value(body.Attributes[f.name])
			if !ok {
				continue
			}
			if *f.path, ok = d.filePath(e, f.name); !ok {
				continue
			}
			if other := used[*f.path]; other != "" {
				d.badValue(e, "Duplicate path", "%s is %q already: each has a file of its own.", other, *f.path)
			}
			used[*f.path] = f.name
		}
	}
}
