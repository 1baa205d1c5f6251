package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestArchitecture holds docs/architecture.md to names that exist: files and
// folders, "package.Name", Test functions, and names of fields and functions.
func TestArchitecture(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := declaredNames(t)
	checked := 0
	for _, span := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(string(page), -1) {
		name := strings.TrimSuffix(span[1], "/")
		if why := unknownName(name, names); why != "" {
			t.Errorf("docs/architecture.md names %s: %s", name, why)
		}
		checked++
	}
	if checked < 80 {
		t.Errorf("only %d names on the page", checked)
	}
	for _, rooms := range ranks {
		for _, room := range rooms {
			if room != "." && !regexp.MustCompile("(?m)^ .*\\b"+room+"\\b").Match(page) {
				t.Errorf("the picture has no room %s", room)
			}
		}
	}
	for _, bad := range []string{"planner/attic", "planner.Differ", "TestNothing", "sizes.Persistent"} {
		if unknownName(bad, names) == "" {
			t.Errorf("%s passes", bad)
		}
	}
}

var (
	pathLike   = regexp.MustCompile(`^[a-z0-9_]+(/[a-zA-Z0-9_.]+)+$`)
	qualified  = regexp.MustCompile(`^([a-z]+)\.([A-Za-z]\w*)s?$`)
	identifier = regexp.MustCompile(`^[A-Za-z]\w*$`)
)

// unknownName says what is wrong with a name on the page; "" if it exists, or is
// no name of the project.
func unknownName(name string, names map[string]bool) string {
	switch {
	case pathLike.MatchString(name):
		for _, at := range []string{name, "planner/" + name} {
			if _, err := os.Stat(filepath.Join("..", at)); err == nil {
				return ""
			}
		}
		return "there is no such path"
	case qualified.MatchString(name):
		if m := qualified.FindStringSubmatch(name); !names[m[1]+"."+m[2]] && !names[m[1]+"."+strings.TrimSuffix(m[2], "s")] {
			return "the package has no such name"
		}
	case strings.HasPrefix(name, "Test"):
		if !names[name] {
			return "there is no such test"
		}
	case identifier.MatchString(name) && strings.ToLower(name[:1]) != name[:1]:
		if !names[name] && !names[strings.TrimSuffix(name, "s")] {
			return "nothing has that name"
		}
	}
	return ""
}

// declaredNames are all names of the module: alone, and behind their package
// (draft.changes for a method of a type).
func declaredNames(t *testing.T) map[string]bool {
	names := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		add := func(id *ast.Ident) {
			names[id.Name], names[f.Name.Name+"."+id.Name] = true, true
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				add(n.Name)
				if n.Recv != nil {
					if typ, ok := unstar(n.Recv.List[0].Type).(*ast.Ident); ok {
						names[typ.Name+"."+n.Name.Name] = true
					}
				}
				return false
			case *ast.TypeSpec:
				add(n.Name)
			case *ast.ValueSpec:
				for _, id := range n.Names {
					add(id)
				}
			case *ast.Field:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func unstar(e ast.Expr) ast.Expr {
	if s, ok := e.(*ast.StarExpr); ok {
		return s.X
	}
	return e
}
