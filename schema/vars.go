package schema

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// EnvPrefix begins the environment variables that set variables.
const EnvPrefix = "CTPLAN_VAR_"

// Vars is where values of variables come from, besides their defaults.
type Vars struct {
	Env   []string // "CTPLAN_VAR_name=value" among others, as os.Environ returns; names that nothing declares are left alone
	Files []string // paths of files of "name = expression" lines; later files win
	Flags []string // "name=value"; later ones win
}

// variable is a variable block.
type variable struct {
	name        string
	ty          cty.Type
	defaults    *typeexpr.Defaults
	value       cty.Value // cty.NilVal while it has none
	valueRange  hcl.Range
	validations hcl.Blocks
	rng         hcl.Range
	bad         bool // an error has been reported: its value is not known
}

// loadVariables declares the variables, gives them values and checks these.
// It sets var.* in the scope, and adds what it reads to files.
func loadVariables(blocks hcl.Blocks, vars Vars, s *scope, files map[string]*hcl.File) (map[string]cty.Value, hcl.Diagnostics) {
	var diags hcl.Diagnostics
	all := map[string]*variable{}
	var order []*variable
	for _, b := range blocks {
		v, more := declareVariable(b, s)
		diags = append(diags, more...)
		if first := all[v.name]; first != nil {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Duplicate variable",
				Detail:   fmt.Sprintf("The variable %q is declared at %s already.", v.name, place(first.rng)),
				Subject:  &b.DefRange,
			})
			continue
		}
		all[v.name] = v
		order = append(order, v)
	}

	diags = append(diags, setFromEnv(all, vars.Env, files)...)
	for _, name := range vars.Files {
		diags = append(diags, setFromFile(all, name, files)...)
	}
	for _, flag := range vars.Flags {
		diags = append(diags, setFromFlag(all, flag, files)...)
	}

	values := make(map[string]cty.Value, len(all))
	for _, v := range order {
		if v.value == cty.NilVal && !v.bad {
			v.bad = true
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Variable without a value",
				Detail:   fmt.Sprintf("The variable %q has no default: set it with --var %s=…, in a --var-file, or as %s%s.", v.name, v.name, EnvPrefix, v.name),
				Subject:  v.rng.Ptr(),
			})
		}
		values[v.name] = v.value
		if v.bad {
			values[v.name] = cty.DynamicVal
		}
	}
	s.set("var", values)
	for _, v := range order {
		for _, b := range v.validations {
			diags = append(diags, v.validate(b, s)...)
		}
	}
	return values, diags
}

// declareVariable decodes a variable block, and its default as the value.
func declareVariable(b *hcl.Block, s *scope) (*variable, hcl.Diagnostics) {
	v := &variable{name: b.Labels[0], ty: cty.DynamicPseudoType, rng: b.DefRange}
	content, diags := bodyContent(b.Body, "variable", &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "type"}, {Name: "default"}, {Name: "description"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "validation"}},
	})
	v.validations = content.Blocks
	if !hclsyntax.ValidIdentifier(v.name) {
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Bad variable name",
			Detail:   "A variable's name begins with a letter and holds letters, digits, underscores and dashes.",
			Subject:  &b.LabelRanges[0],
		})
	}
	if attr := content.Attributes["type"]; attr != nil {
		ty, defaults, more := typeexpr.TypeConstraintWithDefaults(attr.Expr)
		diags = append(diags, more...)
		if more.HasErrors() {
			v.bad = true
		} else {
			v.ty, v.defaults = ty, defaults
		}
	}
	if attr := content.Attributes["description"]; attr != nil {
		val, more := attr.Expr.Value(nil)
		diags = append(diags, more...)
		if !more.HasErrors() && !val.IsNull() && val.Type() != cty.String {
			diags = append(diags, wrongType(attr.Expr, "A description is a string", val))
		}
	}
	if attr := content.Attributes["default"]; attr != nil {
		val, more := attr.Expr.Value(&hcl.EvalContext{Functions: s.ctx.Functions})
		diags = append(diags, more...)
		if more.HasErrors() {
			v.bad = true
		} else {
			diags = append(diags, v.set(val, attr.Expr.Range())...)
		}
	}
	return v, diags
}

// set gives the variable a value that was found at rng.
func (v *variable) set(val cty.Value, rng hcl.Range) hcl.Diagnostics {
	v.valueRange = rng
	if v.bad {
		return nil
	}
	if v.defaults != nil && !val.IsNull() {
		val = v.defaults.Apply(val)
	}
	converted, err := convert.Convert(val, v.ty)
	if err != nil {
		v.bad = true
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Wrong type for a variable",
			Detail:   fmt.Sprintf("The variable %q (%s) does not take this value: %s.", v.name, place(v.rng), err),
			Subject:  rng.Ptr(),
		}}
	}
	v.value = converted
	return nil
}

// setText sets the variable from text outside HCL: as it stands for a
// primitive type or none, as an HCL expression otherwise.
func (v *variable) setText(text, origin string, files map[string]*hcl.File) hcl.Diagnostics {
	src := Source{Name: origin, Content: []byte(text)}
	files[origin] = &hcl.File{Bytes: src.Content}
	if diag := checkText(src); diag != nil {
		v.bad = true
		return hcl.Diagnostics{diag}
	}
	if v.ty.IsPrimitiveType() || v.ty == cty.DynamicPseudoType {
		end := hcl.Pos{Line: 1, Column: len(text) + 1, Byte: len(text)}
		return v.set(cty.StringVal(text), hcl.Range{Filename: origin, Start: hcl.InitialPos, End: end})
	}
	if diag := checkDepth(src); diag != nil {
		v.bad = true
		return hcl.Diagnostics{diag}
	}
	expr, diags := hclsyntax.ParseExpression(src.Content, origin, hcl.InitialPos)
	if !diags.HasErrors() {
		var val cty.Value
		var more hcl.Diagnostics
		val, more = expr.Value(nil)
		diags = append(diags, more...)
		if !more.HasErrors() {
			return append(diags, v.set(val, expr.Range())...)
		}
	}
	v.bad = true
	return diags
}

func setFromEnv(all map[string]*variable, env []string, files map[string]*hcl.File) hcl.Diagnostics {
	var diags hcl.Diagnostics
	for _, entry := range env {
		key, text, _ := strings.Cut(entry, "=")
		name, ours := strings.CutPrefix(key, EnvPrefix)
		if v := all[name]; ours && v != nil {
			diags = append(diags, v.setText(text, key, files)...)
		}
	}
	return diags
}

func setFromFile(all map[string]*variable, name string, files map[string]*hcl.File) hcl.Diagnostics {
	src, err := readSource(name)
	if err != nil {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Variable file cannot be read", Detail: err.Error()}}
	}
	file, diags, ok := parse(src)
	files[name] = file
	if !ok {
		markBad(all)
		return diags
	}
	attrs, more := file.Body.JustAttributes()
	diags = append(diags, more...)
	for _, attr := range attrs {
		v := all[attr.Name]
		if v == nil {
			diags = append(diags, undeclared(all, attr.Name, attr.NameRange.Ptr()))
			continue
		}
		val, more := attr.Expr.Value(nil)
		diags = append(diags, more...)
		if more.HasErrors() {
			v.bad = true
			continue
		}
		diags = append(diags, v.set(val, attr.Expr.Range())...)
	}
	return diags
}

func setFromFlag(all map[string]*variable, flag string, files map[string]*hcl.File) hcl.Diagnostics {
	name, text, ok := strings.Cut(flag, "=")
	name = strings.TrimSpace(name)
	if !ok || name == "" {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Bad --var",
			Detail:   fmt.Sprintf("--var takes name=value, not %q.", flag),
		}}
	}
	v := all[name]
	if v == nil {
		return hcl.Diagnostics{undeclared(all, name, nil)}
	}
	return v.setText(text, "--var "+name, files)
}

// markBad keeps variables whose values could not be read from being reported
// as having none.
func markBad(all map[string]*variable) {
	for _, v := range all {
		if v.value == cty.NilVal {
			v.bad = true
		}
	}
}

func undeclared(all map[string]*variable, name string, subject *hcl.Range) *hcl.Diagnostic {
	names := slices.Sorted(maps.Keys(all))
	detail := fmt.Sprintf("No variable %q is declared.%s", name, didYouMean(name, names))
	if len(names) == 0 {
		detail += " The configuration declares no variables."
	} else {
		detail += " Declared: " + strings.Join(names, ", ") + "."
	}
	return &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Value for an undeclared variable", Detail: detail, Subject: subject}
}

// validate checks the variable's value against one validation block.
func (v *variable) validate(b *hcl.Block, s *scope) hcl.Diagnostics {
	content, diags := bodyContent(b.Body, "validation", &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
		{Name: "condition", Required: true}, {Name: "error_message", Required: true},
	}})
	condition, message := content.Attributes["condition"], content.Attributes["error_message"]
	if condition == nil || message == nil {
		return diags
	}
	val, more := s.eval(condition.Expr)
	diags = append(diags, more...)
	text, more := s.eval(message.Expr)
	diags = append(diags, more...)
	if diags.HasErrors() || v.bad || !val.IsKnown() {
		return diags
	}
	if val.IsNull() || val.Type() != cty.Bool {
		return append(diags, wrongType(condition.Expr, "A condition is true or false", val))
	}
	if val.True() {
		return diags
	}
	detail := "The value is not valid."
	if text.IsKnown() && !text.IsNull() {
		if text.Type() != cty.String {
			return append(diags, wrongType(message.Expr, "An error message is a string", text))
		}
		detail = text.AsString()
	}
	return append(diags, &hcl.Diagnostic{
		Severity:    hcl.DiagError,
		Summary:     "Invalid value for a variable",
		Detail:      fmt.Sprintf("%s\n\nThe variable %q is checked at %s.", detail, v.name, place(condition.Range)),
		Subject:     v.valueRange.Ptr(),
		Expression:  condition.Expr,
		EvalContext: s.ctx,
	})
}
