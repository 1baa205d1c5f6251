package schema

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// locals evaluates local values on demand, each once.
type locals struct {
	attrs  map[string]*hcl.Attribute
	values map[string]cty.Value
	path   []string                  // being evaluated, outermost first
	open   map[string]*hcl.Attribute // the same
	scope  *scope
	diags  hcl.Diagnostics
}

// loadLocals evaluates the locals blocks, whatever the order of their
// attributes, and sets local.* in the scope.
func loadLocals(blocks hcl.Blocks, s *scope) hcl.Diagnostics {
	l := &locals{attrs: map[string]*hcl.Attribute{}, values: map[string]cty.Value{}, open: map[string]*hcl.Attribute{}, scope: s}
	var order []*hcl.Attribute
	for _, b := range blocks {
		attrs, diags := b.Body.JustAttributes()
		l.diags = append(l.diags, diags...)
		for _, attr := range attrs {
			order = append(order, attr)
		}
	}
	byPlace := func(a, b *hcl.Attribute) int {
		if c := strings.Compare(a.Range.Filename, b.Range.Filename); c != 0 {
			return c
		}
		return a.Range.Start.Byte - b.Range.Start.Byte
	}
	slices.SortFunc(order, byPlace)
	for _, attr := range order {
		if first := l.attrs[attr.Name]; first != nil {
			l.diags = append(l.diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Duplicate local value",
				Detail:   fmt.Sprintf("The local value %q is declared at %s already.", attr.Name, place(first.NameRange)),
				Subject:  &attr.NameRange,
			})
			continue
		}
		l.attrs[attr.Name] = attr
	}
	s.declare("local", slices.Sorted(maps.Keys(l.attrs)))
	for _, attr := range order {
		l.value(attr.Name)
	}
	s.set("local", l.values)
	return l.diags
}

// value evaluates one local value after those that it refers to.
func (l *locals) value(name string) {
	if _, done := l.values[name]; done {
		return
	}
	attr := l.attrs[name]
	if attr == l.open[name] {
		i := slices.Index(l.path, name)
		cycle := append(slices.Clone(l.path[i:]), name)
		for j, n := range cycle {
			cycle[j] = "local." + n
			l.values[n] = cty.DynamicVal
		}
		l.diags = append(l.diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Local values refer to each other in a circle",
			Detail:   strings.Join(cycle, " → ") + ": one of them needs a value of its own.",
			Subject:  &attr.NameRange,
		})
		return
	}

	l.path = append(l.path, name)
	l.open[name] = attr
	needs := map[string]cty.Value{}
	ok := true
	for _, traversal := range attr.Expr.Variables() {
		if traversal.RootName() != "local" {
			continue
		}
		dep := ""
		if len(traversal) > 1 {
			step, _ := traversal[1].(hcl.TraverseAttr)
			dep = step.Name
		}
		if dep == "" {
			ok = false
			l.diags = append(l.diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Bad reference",
				Detail:   "Among local values, name the one that is meant: local.name.",
				Subject:  traversal.SourceRange().Ptr(),
			})
			continue
		}
		if l.attrs[dep] != nil {
			l.value(dep)
			needs[dep] = l.values[dep]
		}
	}
	l.path = l.path[:len(l.path)-1]
	delete(l.open, name)

	if _, circular := l.values[name]; circular {
		return
	}
	l.values[name] = cty.DynamicVal
	if !ok {
		return
	}
	l.scope.ctx.Variables["local"] = cty.ObjectVal(needs)
	val, diags := l.scope.eval(attr.Expr)
	l.diags = append(l.diags, diags...)
	if !diags.HasErrors() {
		l.values[name] = val
	}
}
