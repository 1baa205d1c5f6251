package schema

import (
	"fmt"
	"maps"
	"math/big"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/ctplan/ctplan/planner"
)

// Facts are what host.* reads: see planner.Host and planner.Conntrack. On a
// host where nf_conntrack is not loaded, host.conntrack.* are 0.
type Facts struct {
	Host      planner.Host
	Conntrack planner.Conntrack
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

// scope is what expressions can refer to.
type scope struct {
	ctx      *hcl.EvalContext
	declared map[string][]string // the names under "var" and "local"; nil while not known
}

func newScope(facts *Facts) *scope {
	return &scope{ctx: &hcl.EvalContext{
		Variables: map[string]cty.Value{"host": hostValue(facts), "var": cty.DynamicVal, "local": cty.DynamicVal},
		Functions: functions(),
	}}
}

// opaque makes every var.* and local.* an unknown value.
func (s *scope) opaque() {
	s.declared = nil
	s.ctx.Variables["var"], s.ctx.Variables["local"] = cty.DynamicVal, cty.DynamicVal
}

// declare says which names there are under root.
func (s *scope) declare(root string, names []string) {
	if s.declared == nil {
		s.declared = map[string][]string{}
	}
	s.declared[root] = names
}

// set declares all that there is under root, with its values.
func (s *scope) set(root string, values map[string]cty.Value) {
	s.declare(root, slices.Sorted(maps.Keys(values)))
	s.ctx.Variables[root] = cty.ObjectVal(values)
}

// eval returns the expression's value; not ok after an error.
func (s *scope) eval(expr hcl.Expression) (cty.Value, hcl.Diagnostics) {
	if diags := s.checkReferences(expr); diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	val, diags := expr.Value(s.ctx)
	if diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	return val, diags
}

// checkReferences finds var.* and local.* that nothing declares: HCL itself
// would only say that an object lacks an attribute.
func (s *scope) checkReferences(expr hcl.Expression) hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, traversal := range expr.Variables() {
		root, kind := traversal.RootName(), "variable"
		if root == "local" {
			kind = "local value"
		}
		names, closed := s.declared[root]
		if !closed || len(traversal) < 2 {
			continue
		}
		attr, ok := traversal[1].(hcl.TraverseAttr)
		if !ok || slices.Contains(names, attr.Name) {
			continue
		}
		detail := fmt.Sprintf("No %s %q is declared.%s", kind, attr.Name, didYouMean(attr.Name, names))
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Reference to an undeclared " + kind,
			Detail:   detail,
			Subject:  traversal.SourceRange().Ptr(),
		})
	}
	return diags
}

// isHugeNumber reports whether val is a number of more than 4096 bits.
func isHugeNumber(val cty.Value) bool {
	if val.IsNull() || !val.IsKnown() || val.Type() != cty.Number {
		return false
	}
	exp := val.AsBigFloat().MantExp(nil)
	return exp > 4096 || exp < -4096
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
