package schema

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/ctplan/ctplan/planner/host"
)

// Facts are what host.* reads: see planner.Host and planner.Conntrack. On a
// host where nf_conntrack is not loaded, host.conntrack.* are 0.
type Facts struct {
	Host      host.Host
	Conntrack host.Conntrack
}

// hostValue is the object behind host.*; unknown without facts.
func hostValue(f *Facts) cty.Value {
	str := func(get func() string) cty.Value {
		if f == nil {
			return cty.UnknownVal(cty.String)
		}
		return cty.StringVal(get())
	}
	num := func(get func() int64) cty.Value {
		if f == nil {
			return cty.UnknownVal(cty.Number)
		}
		return cty.NumberIntVal(get())
	}
	return cty.ObjectVal(map[string]cty.Value{
		"name":       str(func() string { return f.Host.Name }),
		"machine_id": str(func() string { return f.Host.MachineID }),
		"kernel":     str(func() string { return f.Host.Kernel }),
		"cpus":       num(func() int64 { return f.Host.CPUs }),
		"memory":     num(func() int64 { return f.Host.Memory }),
		"conntrack": cty.ObjectVal(map[string]cty.Value{
			"count":    num(func() int64 { return f.Conntrack.Count }),
			"max":      num(func() int64 { return f.Conntrack.Max }),
			"hashsize": num(func() int64 { return f.Conntrack.Hashsize }),
		}),
	})
}

// scope is what expressions can refer to. Until they are set, var.* and
// local.* are values that are not known.
type scope struct {
	ctx      *hcl.EvalContext
	declared map[string][]string // the names under "var", "local", "host" and "host.conntrack"; none under a root that is not known
}

func newScope(facts *Facts, dir *folder) *scope {
	return &scope{
		ctx: &hcl.EvalContext{
			Variables: map[string]cty.Value{"host": hostValue(facts), "var": cty.DynamicVal, "local": cty.DynamicVal},
			Functions: dir.functions(),
		},
		declared: map[string][]string{
			"host":           {"conntrack", "cpus", "kernel", "machine_id", "memory", "name"},
			"host.conntrack": {"count", "hashsize", "max"},
		},
	}
}

// declare says which names there are under root.
func (s *scope) declare(root string, names []string) {
	s.declared[root] = names
}

// set declares all that there is under root, with its values.
func (s *scope) set(root string, values map[string]cty.Value) {
	s.declare(root, slices.Sorted(maps.Keys(values)))
	s.ctx.Variables[root] = cty.ObjectVal(values)
}

// eval returns the expression's value; not ok after an error.
func (s *scope) eval(expr hcl.Expression) (cty.Value, hcl.Diagnostics) {
	if isLiteral(expr) {
		return expr.Value(nil)
	}
	if diags := s.checkReferences(expr); diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	val, diags := expr.Value(s.ctx)
	if diags.HasErrors() {
		for _, diag := range diags {
			// A function that cannot cope with its arguments says so with a stack trace.
			diag.Detail, _, _ = strings.Cut(diag.Detail, "\ngoroutine ")
		}
		return cty.DynamicVal, s.nameFunctions(diags)
	}
	return val, diags
}

// isLiteral reports whether the expression is a number, a word such as true,
// or a string without templates: nearly all are, and refer to nothing.
func isLiteral(expr hcl.Expression) bool {
	switch e := expr.(type) {
	case *hclsyntax.LiteralValueExpr:
		return true
	case *hclsyntax.TemplateExpr:
		return e.IsStringLiteral()
	}
	return false
}

// nameFunctions gives errors about unknown functions a suggestion that is
// always the same: HCL takes the first that is near enough, in no order.
func (s *scope) nameFunctions(diags hcl.Diagnostics) hcl.Diagnostics {
	names := slices.Sorted(maps.Keys(s.ctx.Functions))
	for _, diag := range diags {
		if extra, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](diag); ok {
			name := extra.CalledFunctionName()
			diag.Detail = fmt.Sprintf("There is no function named %q.%s", name, didYouMean(name, names))
		}
	}
	return diags
}

// checkReferences finds var.*, local.* and host.* that do not exist: HCL
// itself would only say that an object lacks an attribute.
func (s *scope) checkReferences(expr hcl.Expression) hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, traversal := range expr.Variables() {
		path := []string{traversal.RootName()}
		for _, step := range traversal[1:] {
			attr, ok := step.(hcl.TraverseAttr)
			names, closed := s.declared[strings.Join(path, ".")]
			if !ok || !closed {
				break
			}
			if !slices.Contains(names, attr.Name) {
				diags = append(diags, missing(path, attr, names, traversal.SourceRange()))
				break
			}
			path = append(path, attr.Name)
		}
	}
	return diags
}

func missing(path []string, attr hcl.TraverseAttr, names []string, rng hcl.Range) *hcl.Diagnostic {
	kind := "host fact"
	switch path[0] {
	case "var":
		kind = "variable"
	case "local":
		kind = "local value"
	}
	detail := fmt.Sprintf("There is no %s %q.%s", kind, attr.Name, didYouMean(attr.Name, names))
	if kind == "host fact" {
		detail += fmt.Sprintf(" %s has: %s.", strings.Join(path, "."), strings.Join(names, ", "))
	}
	return &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Reference to an undeclared " + kind, Detail: detail, Subject: rng.Ptr()}
}

// isHugeNumber reports whether val is a number of more than 4096 bits.
func isHugeNumber(val cty.Value) bool {
	if val.IsNull() || !val.IsKnown() || val.Type() != cty.Number {
		return false
	}
	f := val.AsBigFloat()
	exp := f.MantExp(nil)
	return f.IsInf() || exp > 4096 || exp < -4096
}

// wholeNumber returns the value of f where it is whole and within the bounds.
func wholeNumber(f *big.Float, low, high int64) (n int64, whole, inRange bool) {
	if !f.IsInt() {
		return 0, f.IsInf(), false
	}
	if f.Cmp(new(big.Float).SetInt64(low)) < 0 || f.Cmp(new(big.Float).SetInt64(high)) > 0 {
		return 0, true, false
	}
	n, _ = f.Int64()
	return n, true, true
}
