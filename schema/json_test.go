package schema_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/ctplan/ctplan/internal/test/golden"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/schema"
)

// inJSON writes native HCL in the JSON syntax, expressions as templates.
func inJSON(t testing.TB, content []byte) []byte {
	t.Helper()
	file, diags := hclsyntax.ParseConfig(content, "", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var body func(b *hclsyntax.Body) map[string]any
	body = func(b *hclsyntax.Body) map[string]any {
		out := map[string]any{"//": "written by a program"}
		for name, a := range b.Attributes {
			text := string(a.Expr.Range().SliceBytes(content))
			if v, diags := a.Expr.Value(nil); name == "type" {
				out[name] = text
			} else if !diags.HasErrors() {
				raw, err := ctyjson.Marshal(v, v.Type())
				if err != nil {
					t.Fatal(err)
				}
				// A "${" of a string that is none stands for itself.
				out[name] = json.RawMessage(raw)
			} else if list, ok := a.Expr.(*hclsyntax.TupleConsExpr); ok {
				var elements []string
				for _, e := range list.Exprs {
					elements = append(elements, "${"+string(e.Range().SliceBytes(content))+"}")
				}
				out[name] = elements
			} else {
				out[name] = "${" + text + "}"
			}
		}
		for _, b := range b.Blocks {
			var inner any = body(b.Body)
			for _, label := range slices.Backward(b.Labels) {
				inner = map[string]any{label: inner}
			}
			list, _ := out[b.Type].([]any)
			out[b.Type] = append(list, inner)
		}
		return out
	}
	out, err := json.MarshalIndent(body(file.Body.(*hclsyntax.Body)), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestExamplesInJSON: each example means the same in both syntaxes, but for the
// places that it names.
func TestExamplesInJSON(t *testing.T) {
	paths, err := filepath.Glob("../examples/*.hcl")
	if err != nil || len(paths) == 0 {
		t.Fatalf("examples: %v %v", paths, err)
	}
	noPlaces := cmpopts.IgnoreTypes(declared.Pos{})
	prefixes := cmp.Comparer(func(a, b fmt.Stringer) bool { return a.String() == b.String() })
	for _, path := range paths {
		sources, err := schema.ReadSources(path)
		if err != nil {
			t.Fatal(err)
		}
		written := []schema.Source{{Name: path + ".json", Content: inJSON(t, sources[0].Content)}}
		for _, name := range []string{"web-1", "files", "anything", "gw", "api-1.example.net", "worker-7", "cdn-3", "NAT-1", "db-1"} {
			var got []declared.Desired
			for _, s := range [][]schema.Source{sources, written} {
				config, diags := schema.Load(s, schema.Vars{}, facts(name))
				if len(diags.List()) > 0 {
					t.Fatalf("%s:\n%s", s[0].Name, text(t, diags))
				}
				desired, diags := config.For(name)
				if len(diags.List()) > 0 {
					t.Fatalf("%s for %s:\n%s", s[0].Name, name, text(t, diags))
				}
				got = append(got, desired)
			}
			if diff := cmp.Diff(got[0], got[1], noPlaces, prefixes); diff != "" {
				t.Errorf("%s for %s:\n%s", path, name, diff)
			}
		}
	}
}

// TestBadJSON has mistakes in the JSON syntax, each with its diagnostic at its
// place: testdata/bad_json.txt.
func TestBadJSON(t *testing.T) {
	block := func(inner string) string {
		return "{\n  \"conntrack\": {\n    \"gw\": {\n" + inner + "\n    }\n  }\n}\n"
	}
	var out strings.Builder
	for _, c := range []struct{ name, text string }{
		{"no JSON", "{ conntrack: 1 }\n"},
		{"cut off", `{ "conntrack": { "gw": {`},
		{"a number", "1\n"},
		{"unknown at the top", "{\n  \"//\": \"a comment\",\n  \"contrack\": {}\n}\n"},
		{"unknown in a block", block("      \"mode\": \"tuned\",\n      \"maxx\": 5,\n      \"max\": 5")},
		{"wrong type", block("      \"mode\": \"tuned\",\n      \"max\": \"many\"")},
		{"out of range", block("      \"mode\": \"tuned\",\n      \"max\": 1.5")},
		{"huge number", block("      \"mode\": \"tuned\",\n      \"max\": 1e999999999")},
		{"huge number in a template", block("      \"mode\": \"tuned\",\n      \"max\": \"${1e999999999}\"")},
		{"bad template", block("      \"mode\": \"${\",\n      \"max\": 5")},
		{"unknown variable", block("      \"mode\": \"tuned\",\n      \"max\": \"${var.max}\"")},
		{"unknown function", block("      \"mode\": \"tuned\",\n      \"max\": \"${mox(1, 2)}\"")},
		{"bad address", block("      \"mode\": \"notrack\",\n      \"notrack\": {\n        \"a\": {\"local\": [\"10.0.0.1\", \"10.0.0\"]}\n      }")},
		{"a word of iptables", block("      \"mode\": \"notrack\",\n      \"notrack\": {\n        \"a\": {\"protocol\": \"udp\", \"port\": 53}\n      }")},
	} {
		_, diags := schema.Load([]schema.Source{{Name: "main.hcl.json", Content: []byte(c.text)}}, schema.Vars{}, facts("gw"))
		if !diags.HasErrors() {
			t.Errorf("%s is no error", c.name)
		}
		fmt.Fprintf(&out, "==== %s\n%s\n", c.name, text(t, diags))
	}
	golden.Check(t, "bad_json.txt", []byte(out.String()))
}

// TestDeepJSON: nesting that would outgrow the stack is an error.
func TestDeepJSON(t *testing.T) {
	for name, content := range map[string]string{
		"brackets":  `{"locals": {"a": ` + strings.Repeat("[", 1<<17) + strings.Repeat("]", 1<<17) + "}}",
		"a string":  `{"locals": {"a": "${` + strings.Repeat("(", 1<<17) + strings.Repeat(")", 1<<17) + `}"}}`,
		"operators": `{"locals": {"a": "${` + strings.Repeat("-", 1<<17) + `1}"}}`,
	} {
		_, diags := schema.Load([]schema.Source{{Name: "a.hcl.json", Content: []byte(content)}}, schema.Vars{}, nil)
		if !strings.Contains(text(t, diags), "nest more than 1000 deep") {
			t.Errorf("%s: %.300s", name, text(t, diags))
		}
	}
}

// TestPageInJSON loads what docs/language.md shows.
func TestPageInJSON(t *testing.T) {
	page, err := os.ReadFile("../docs/language.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```json\n")
	block, _, _ = strings.Cut(block, "```")
	if _, diags := schema.Load([]schema.Source{{Name: "a.hcl.json", Content: []byte(block)}}, schema.Vars{}, nil); len(diags.List()) > 0 {
		t.Error(text(t, diags))
	}
}

// TestMixedSyntaxes has a folder of both: what one file declares, the other
// reads.
func TestMixedSyntaxes(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"main.hcl":       "conntrack \"gw\" {\n  mode = \"tuned\"\n  max  = local.max\n}\n",
		"sizes.hcl.json": `{"locals": {"max": "${var.base * 2}"}, "variable": {"base": {"type": "number", "default": 1000}}}`,
		"other.json":     "{", ".hidden.hcl.json": "{",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := schema.ReadSources(dir)
	if err != nil || len(sources) != 2 {
		t.Fatalf("%d sources: %v", len(sources), err)
	}
	config, diags := schema.Load(sources, schema.Vars{}, facts("gw"))
	if len(diags.List()) > 0 {
		t.Fatal(text(t, diags))
	}
	if d, _ := config.For("gw"); d.Max == nil || d.Max.Value != 2000 {
		t.Errorf("max is %v", d.Max)
	}
}

// FuzzLoadJSON: nothing panics, and what is accepted can be rendered.
func FuzzLoadJSON(f *testing.F) {
	paths, _ := filepath.Glob("../examples/*.hcl")
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(inJSON(f, content))
	}
	f.Add([]byte(`{"locals": {"a": "${1e9}"}, "conntrack": [{"x": [{"mode": "tuned", "max": "${local.a}"}]}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, known := range []*schema.Facts{nil, facts("h")} {
			config, diags := schema.Load([]schema.Source{{Name: "main.hcl.json", Content: content}}, schema.Vars{}, known)
			if out := text(t, diags); strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }) {
				t.Fatalf("control characters in %q", out)
			}
			if (config == nil) != diags.HasErrors() {
				t.Fatal("a configuration with errors, or none without")
			}
			if config == nil {
				continue
			}
			config.Digest()
			if d, diags := config.For("h"); !diags.HasErrors() {
				checkClean(t, d)
			}
		}
	})
}
