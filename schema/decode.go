package schema

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// decoder turns the attributes of one block into checked values. A value that
// is absent, null, unknown or wrong comes back as not ok; what is wrong has
// been reported by then.
type decoder struct {
	scope   *scope
	diags   hcl.Diagnostics
	unknown *hcl.Range // the first value that depends on facts that are not there
}

func (d *decoder) errorf(rng hcl.Range, summary, format string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  summary,
		Detail:   fmt.Sprintf(format, args...),
		Subject:  rng.Ptr(),
	})
}

// badValue reports a value at its expression, with what the references in it
// stood for.
func (d *decoder) badValue(e element, summary, format string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity:    hcl.DiagError,
		Summary:     summary,
		Detail:      fmt.Sprintf(format, args...),
		Subject:     e.expr.Range().Ptr(),
		Expression:  e.expr,
		EvalContext: d.scope.ctx,
	})
}

func wrongType(expr hcl.Expression, want string, val cty.Value) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  "Wrong type",
		Detail:   fmt.Sprintf("%s, not %s.", want, valueText(val)),
		Subject:  expr.Range().Ptr(),
	}
}

// element is a value and the expression to blame for it.
type element struct {
	val  cty.Value
	expr hcl.Expression
}

// eval evaluates an expression.
func (d *decoder) eval(expr hcl.Expression) (element, bool) {
	val, diags := d.scope.eval(expr)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return element{}, false
	}
	return element{val, expr}, d.known(val, expr)
}

// known reports whether the value is there. An unknown one is remembered.
func (d *decoder) known(val cty.Value, expr hcl.Expression) bool {
	if !val.IsKnown() {
		if d.unknown == nil {
			d.unknown = expr.Range().Ptr()
		}
		return false
	}
	return true
}

// value evaluates an attribute. Null is the same as leaving it out.
func (d *decoder) value(attr *hcl.Attribute) (element, bool) {
	if attr == nil {
		return element{}, false
	}
	e, ok := d.eval(attr.Expr)
	return e, ok && !e.val.IsNull()
}

// list evaluates an attribute that takes a list, or with orOne also a single
// value. Elements of a list that is written out have their own place. Elements
// that are unknown or wrong are left out; when none remains of some, the list
// is not ok either, so that an empty list that is ok was written as one.
func (d *decoder) list(attr *hcl.Attribute, orOne bool) ([]element, bool) {
	if attr == nil {
		return nil, false
	}
	var out []element
	if exprs, diags := hcl.ExprList(attr.Expr); !diags.HasErrors() {
		for _, expr := range exprs {
			if e, ok := d.eval(expr); ok {
				out = append(out, e)
			}
		}
		out = d.notNull(out)
		return out, len(out) > 0 || len(exprs) == 0
	}
	e, ok := d.value(attr)
	if !ok {
		return nil, false
	}
	ty := e.val.Type()
	switch {
	case ty.IsListType() || ty.IsSetType() || ty.IsTupleType():
		for it := e.val.ElementIterator(); it.Next(); {
			if _, v := it.Element(); d.known(v, e.expr) {
				out = append(out, element{v, e.expr})
			}
		}
		out = d.notNull(out)
		return out, len(out) > 0 || e.val.LengthInt() == 0
	case orOne && ty.IsPrimitiveType():
		return []element{e}, true
	case orOne:
		d.diags = append(d.diags, wrongType(e.expr, fmt.Sprintf("%q takes one value or a list", attr.Name), e.val))
	default:
		d.diags = append(d.diags, wrongType(e.expr, fmt.Sprintf("%q takes a list", attr.Name), e.val))
	}
	return nil, false
}

func (d *decoder) notNull(list []element) []element {
	out := list[:0]
	for _, e := range list {
		if e.val.IsNull() {
			d.badValue(e, "Null in a list", "An element of a list cannot be null.")
			continue
		}
		out = append(out, e)
	}
	return out
}

// text returns a string. Numbers are not taken for strings.
func (d *decoder) text(e element, what string) (string, bool) {
	if e.val.Type() != cty.String {
		d.diags = append(d.diags, wrongType(e.expr, what+" is a string", e.val))
		return "", false
	}
	return e.val.AsString(), true
}

// integer returns a whole number within the bounds.
func (d *decoder) integer(e element, what string, low, high int64) (int64, bool) {
	val, err := convert.Convert(e.val, cty.Number)
	if err != nil || val.IsNull() || !val.IsKnown() {
		d.diags = append(d.diags, wrongType(e.expr, what+" is a whole number", e.val))
		return 0, false
	}
	n, whole, inRange := wholeNumber(val.AsBigFloat(), low, high)
	switch {
	case !whole:
		d.badValue(e, "Not a whole number", "%s is a whole number from %d to %d, not %s.", what, low, high, valueText(val))
	case !inRange:
		d.badValue(e, "Number out of range", "%s is from %d to %d, not %s.", what, low, high, valueText(val))
	default:
		return n, true
	}
	return 0, false
}

// choice returns one of the options.
func choice[T ~string](d *decoder, e element, what string, options []T) (T, bool) {
	s, ok := d.text(e, what)
	if !ok {
		return "", false
	}
	names := make([]string, len(options))
	for i, option := range options {
		if names[i] = string(option); names[i] == s {
			return option, true
		}
	}
	d.badValue(e, "Unknown "+what, "%q is none of them: %s.%s", clip(s), strings.Join(names, ", "), didYouMean(s, names))
	return "", false
}

// bodyContent decodes a block's body by its schema; within names the kind of
// block, "" at the top. Unlike Body.Content it reports what is not in the
// schema in a fixed order, and also suggests names that are there already.
func bodyContent(body hcl.Body, within string, schema *hcl.BodySchema) (*hcl.BodyContent, hcl.Diagnostics) {
	content, rest, diags := body.PartialContent(schema)
	where := "in a " + within + " block"
	switch within {
	case "":
		where = "at the top level"
	case "accept":
		where = "in an accept block"
	}
	native, ok := body.(*hclsyntax.Body)
	if !ok {
		return content, append(diags, unknownInJSON(rest, where, schema)...)
	}
	known := func(name string) bool {
		return slices.ContainsFunc(schema.Attributes, func(a hcl.AttributeSchema) bool { return a.Name == name })
	}
	unknown := slices.DeleteFunc(slices.Collect(maps.Keys(native.Attributes)), known)
	slices.Sort(unknown)
	if len(unknown) == 0 && len(native.Blocks) == 0 {
		return content, diags // as thousands of accept blocks do
	}
	var attrs, blocks []string
	for _, a := range schema.Attributes {
		attrs = append(attrs, a.Name)
	}
	for _, b := range schema.Blocks {
		blocks = append(blocks, b.Type)
	}
	for _, name := range unknown {
		hint := didYouMean(name, attrs)
		if slices.Contains(blocks, name) {
			hint = fmt.Sprintf(" %s is a block: write it without the equals sign.", name)
		}
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Unknown attribute",
			Detail:   fmt.Sprintf("There is no attribute %q %s.%s", name, where, hint),
			Subject:  native.Attributes[name].NameRange.Ptr(),
		})
	}
	for _, b := range native.Blocks {
		if slices.Contains(blocks, b.Type) {
			continue
		}
		hint := didYouMean(b.Type, blocks)
		if slices.Contains(attrs, b.Type) {
			hint = fmt.Sprintf(" %s is an attribute: write %s = …", b.Type, b.Type)
		}
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Unknown block",
			Detail:   fmt.Sprintf("There is no block %q %s.%s", b.Type, where, hint),
			Subject:  b.TypeRange.Ptr(),
		})
	}
	return content, diags
}

// isLabel reports whether s can name a block. Labels end up in the comments of
// rules and in addresses.
func isLabel(s string) bool {
	if s == "" || len(s) > 64 || strings.IndexByte("._-", s[0]) >= 0 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}

// checkLabel checks a block's label, and that seen does not hold it already.
func checkLabel(b *hcl.Block, seen map[string]hcl.Range) hcl.Diagnostics {
	name := b.Labels[0]
	if !isLabel(name) {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Bad name",
			Detail: fmt.Sprintf("Names of %s blocks are up to 64 letters, digits, dots, dashes and underscores, and begin with a letter or a digit: %q does not fit.",
				b.Type, clip(name)),
			Subject: &b.LabelRanges[0],
		}}
	}
	if first, ok := seen[name]; ok {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  fmt.Sprintf("Duplicate %s block", b.Type),
			Detail:   fmt.Sprintf("The %s block %q stands at %s already.", b.Type, name, place(first)),
			Subject:  b.DefRange.Ptr(),
		}}
	}
	seen[name] = b.DefRange
	return nil
}

// filePath returns an absolute, clean path that is safe to print anywhere.
func (d *decoder) filePath(e element, what string) (string, bool) {
	s, ok := d.text(e, what)
	if !ok {
		return "", false
	}
	bad := strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || strings.ContainsRune("\"'`\\", r)
	})
	switch {
	case bad >= 0:
		d.badValue(e, "Bad path", "A path holds no quotes, backslashes, line breaks or control characters: %q does.", clip(s))
	case !path.IsAbs(s):
		d.badValue(e, "Bad path", "A path begins with /: %q does not.", clip(s))
	case path.Clean(s) != s || s == "/":
		d.badValue(e, "Bad path", "%q is not a plain path to a file: it should read %q.", clip(s), clip(path.Clean(s)))
	case len(s) > 4095:
		d.badValue(e, "Bad path", "A path has at most 4095 bytes.")
	default:
		return s, true
	}
	return "", false
}

// clip keeps messages readable.
func clip(s string) string { return clipTo(s, 100) }

// clipTo cuts s behind at most n bytes.
func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
