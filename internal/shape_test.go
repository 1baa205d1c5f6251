package internal_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What a room of the planner may be, so that it is read in one sitting.
const (
	roomLines     = 4000 // of a package without its tests
	rootLines     = 2500 // of the planner's root
	functionLines = 80
	docLines      = 100 // of go doc: two screens
)

// TestShape holds the rooms of the planner, and every function of the product,
// to a size that a reader can take in.
func TestShape(t *testing.T) {
	var seen []string
	for _, names := range ranks {
		for _, room := range names {
			seen = append(seen, room)
			lines := 0
			for _, file := range goFiles(t, filepath.Join("..", "planner", room)) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				lines += bytes.Count(text, []byte("\n"))
				for name, n := range longFunctions(t, file, text) {
					t.Errorf("%s: %s has %d lines, more than %d", file, name, n, functionLines)
				}
			}
			limit := roomLines
			if room == "." {
				limit = rootLines
			}
			if lines == 0 || lines > limit {
				t.Errorf("planner/%s has %d lines: 1 to %d", room, lines, limit)
			}
			doc, err := exec.Command("go", "doc", module+"planner/"+room).Output()
			if n := bytes.Count(doc, []byte("\n")); err != nil || n > docLines {
				t.Errorf("go doc planner/%s has %d lines, more than %d (%v)", room, n, docLines, err)
			}
		}
	}
	for _, p := range list(t) {
		name, ok := strings.CutPrefix(p.ImportPath, module)
		if !ok || strings.HasPrefix(name, "planner") || strings.HasPrefix(name, "internal/test/") {
			continue
		}
		for _, file := range goFiles(t, filepath.Join("..", name)) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for fn, n := range longFunctions(t, file, text) {
				t.Errorf("%s: %s has %d lines, more than %d", file, fn, n, functionLines)
			}
		}
	}
	if len(seen) < 15 {
		t.Fatalf("only %d rooms: the test looks in the wrong place", len(seen))
	}
}

// TestShapeFinds shows that a function that is too long is found.
func TestShapeFinds(t *testing.T) {
	text := "package x\n\nfunc f() {\n" + strings.Repeat("\tf()\n", functionLines-1) + "}\n"
	if got := longFunctions(t, "x.go", []byte(text)); got["f"] != functionLines+1 {
		t.Errorf("found %v", got)
	}
	if got := longFunctions(t, "x.go", []byte(strings.Replace(text, "\tf()\n", "", 1))); len(got) > 0 {
		t.Errorf("found %v in a function that is as long as it may be", got)
	}
}

// goFiles are those of a folder, without tests.
func goFiles(t *testing.T, dir string) []string {
	all, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range all {
		if !strings.HasSuffix(f, "_test.go") {
			out = append(out, f)
		}
	}
	return out
}

// longFunctions are those of more than functionLines, from their first line to
// their last.
func longFunctions(t *testing.T, name string, text []byte) map[string]int {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok {
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > functionLines {
				out[fn.Name.Name] = n
			}
		}
	}
	return out
}
