package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"
)

// jsonSuffix ends the names of files in HCL's JSON syntax
// (https://github.com/hashicorp/hcl/blob/main/json/spec.md), which programs
// write. ".hcl" alone is the native one.
const jsonSuffix = ".hcl.json"

// IsJSON reports whether a file of that name is in HCL's JSON syntax.
func IsJSON(name string) bool { return strings.HasSuffix(name, jsonSuffix) }

// isSource reports whether a file of that name is one of a configuration.
func isSource(name string) bool {
	return (strings.HasSuffix(name, ".hcl") || IsJSON(name)) && !strings.HasPrefix(name, ".")
}

// parseJSON is parse for the JSON syntax.
func parseJSON(src Source) (file *hcl.File, diags hcl.Diagnostics, ok bool) {
	if diag := checkJSON(src); diag != nil {
		return &hcl.File{Bytes: src.Content}, hcl.Diagnostics{diag}, false
	}
	file, diags = hcljson.Parse(src.Content, src.Name)
	if file == nil || file.Body == nil {
		file = &hcl.File{Bytes: src.Content}
	}
	if len(diags) > 1 {
		// What follows from bad syntax is not said beside it.
		diags = slices.DeleteFunc(diags, func(d *hcl.Diagnostic) bool { return d.Summary == "Root value must be object" })
	}
	return file, diags, !diags.HasErrors()
}

// checkJSON is checkDepth and checkNumbers for the JSON syntax, whose strings
// are templates of the native one. Bad syntax is left for the parser to report.
func checkJSON(src Source) *hcl.Diagnostic {
	dec := json.NewDecoder(bytes.NewReader(src.Content))
	dec.UseNumber()
	depth := 0
	for {
		tok, err := dec.Token()
		if err != nil {
			return nil // the end, or bad syntax
		}
		var diag *hcl.Diagnostic
		switch tok := tok.(type) {
		case json.Delim:
			if depth++; tok == '}' || tok == ']' {
				depth -= 2
			}
			if depth > maxDepth {
				diag = tooDeep(hcl.Range{})
			}
		case json.Number:
			if val, err := cty.ParseNumberVal(tok.String()); err == nil && isHugeNumber(val) {
				diag = tooLarge(hcl.Range{})
			}
		case string:
			diag = checkTemplate(tok)
		}
		if diag != nil {
			diag.Subject = lineOf(src, int(dec.InputOffset()))
			return diag
		}
	}
}

// checkTemplate is checkDepth and checkNumbers for one string.
func checkTemplate(text string) *hcl.Diagnostic {
	if !strings.Contains(text, "${") && !strings.Contains(text, "%{") {
		return nil
	}
	tokens, _ := hclsyntax.LexTemplate([]byte(text), "", hcl.InitialPos)
	if diag := depthOf(tokens); diag != nil {
		return diag
	}
	expr, diags := hclsyntax.ParseTemplate([]byte(text), "", hcl.InitialPos)
	if diags.HasErrors() {
		return nil
	}
	if diags := checkNumbers(expr); diags.HasErrors() {
		return diags[0]
	}
	return nil
}

// lineOf is the place of a byte.
func lineOf(src Source, at int) *hcl.Range {
	at = min(at, len(src.Content))
	start := bytes.LastIndexByte(src.Content[:at], '\n') + 1
	pos := hcl.Pos{Line: 1 + bytes.Count(src.Content[:at], []byte{'\n'}), Column: 1 + at - start, Byte: at}
	return &hcl.Range{Filename: src.Name, Start: pos, End: pos}
}

// unknownInJSON reports what a body in the JSON syntax holds beside its schema,
// comments apart. Attributes and blocks look the same there.
func unknownInJSON(rest hcl.Body, where string, schema *hcl.BodySchema) hcl.Diagnostics {
	left, diags := rest.JustAttributes()
	if diags.HasErrors() {
		return nil // no object: the content has been reported
	}
	var names []string
	for _, a := range schema.Attributes {
		names = append(names, a.Name)
	}
	for _, b := range schema.Blocks {
		names = append(names, b.Type)
	}
	unknown := make([]*hcl.Attribute, 0, len(left))
	for _, a := range left {
		unknown = append(unknown, a)
	}
	slices.SortFunc(unknown, func(a, b *hcl.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
	var out hcl.Diagnostics
	for _, a := range unknown {
		out = append(out, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Unknown property",
			Detail:   fmt.Sprintf("There is no attribute and no block %q %s.%s", clip(a.Name), where, didYouMean(a.Name, names)),
			Subject:  a.NameRange.Ptr(),
		})
	}
	return out
}
