// Package internal_test holds the rules that no single package can.
package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ctplan/ctplan/"

// ranks are the rooms of the planner, from the bottom up. A room imports those
// of lower ranks alone: none upward, none beside it.
var ranks = [][]string{
	{"host", "protocol"},
	{"declared", "nets", "words"},
	{"change", "etc", "routing", "verdict"},
	{"xtables"},
	{"nftables", "verdict/nft", "verdict/xt"},
	{"nftconf"},
	{"carrier", "translate"},
	{"owners"},
	{"judge", "modules", "rules"},
	{"carry", "impact", "sizes", "service"},
	{"sides", "boot"},
	{"."},
	{"importer", "suggest"},
}

// languages is the highest rank that providers may know: values, and the words
// of rules and files. What decides stands above it.
const languages = 5

// rank is a room's, by its import path; -1 for what is no room.
func rank(path string) int {
	room, ok := strings.CutPrefix(path+"/", module+"planner/")
	if !ok {
		return -1
	}
	if room = strings.TrimSuffix(room, "/"); room == "" {
		room = "."
	}
	return slices.IndexFunc(ranks, func(names []string) bool { return slices.Contains(names, room) })
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string // without those of its tests
	TestImports  []string
	XTestImports []string
	Deps         []string
	Doc          string
}

// TestImports holds the shape of the design: commands stand on schema,
// providers and internal packages, all of them stand on planner, and planner
// stands on nothing. Within planner, rooms stand on those of lower ranks.
func TestImports(t *testing.T) {
	var pkgs []pkg
	standard := map[string]bool{}
	for _, p := range list(t) {
		if p.Standard {
			standard[p.ImportPath] = true
		} else if strings.HasPrefix(p.ImportPath+"/", module) {
			pkgs = append(pkgs, p)
		}
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list names %d packages of the module; the test looks in the wrong place", len(pkgs))
	}
	for _, p := range pkgs {
		for _, fault := range faults(p, standard) {
			t.Error(fault)
		}
	}
}

// TestImportsFinds shows that each rule catches what breaks it.
func TestImportsFinds(t *testing.T) {
	standard := map[string]bool{"fmt": true}
	for _, p := range []pkg{
		{ImportPath: module + "planner", Deps: []string{"fmt", "golang.org/x/sys/unix"}},
		{ImportPath: module + "planner", Deps: []string{module + "internal/run"}},
		{ImportPath: module + "planner/verdict", Imports: []string{module + "planner/judge"}}, // upward
		{ImportPath: module + "planner/impact", Imports: []string{module + "planner"}},        // upward, to the root
		{ImportPath: module + "planner/sizes", Imports: []string{module + "planner/service"}}, // sideways
		{ImportPath: module + "planner/attic"},                                                // a room without a rank
		{ImportPath: module + "providers/kmod", Imports: []string{module + "planner/modules"}},
		{ImportPath: module + "providers/kmod", Deps: []string{module + "providers/sysctl"}},
		{ImportPath: module + "providers/kmod", Deps: []string{module + "schema"}},
		{ImportPath: module + "providers/kmod", TestImports: []string{module + "internal/apply"}},
		{ImportPath: module + "schema", Deps: []string{module + "internal/run"}},
		{ImportPath: module + "internal/view", Deps: []string{module + "schema"}},
		{ImportPath: module + "internal/view", Imports: []string{"github.com/zclconf/go-cty/cty"}},
		{ImportPath: module + "cmd/ctplan", Imports: []string{"github.com/hashicorp/hcl/v2"}},
		{ImportPath: module + "cmd/ctplan", Deps: []string{"testing"}},
		{ImportPath: module + "internal/apply", Imports: []string{module + "internal/test/testhost"}},
		{ImportPath: module + "internal/apply", Imports: []string{module + "cmd/ctplan"}},
		{ImportPath: module + "internal/undocumented"},
	} {
		if p.ImportPath != module+"internal/undocumented" {
			p.Doc = "Package x is documented."
		}
		if len(faults(p, standard)) == 0 {
			t.Errorf("no fault found in %+v", p)
		}
	}
}

// faults returns what p breaks of the rules, a sentence each.
func faults(p pkg, standard map[string]bool) []string {
	var found []string
	name := strings.TrimPrefix(p.ImportPath, module)
	fault := func(format string, args ...any) {
		found = append(found, name+": "+fmt.Sprintf(format, args...))
	}
	own := func(path string) string { // the module's package, or ""
		if rest, ok := strings.CutPrefix(path, module); ok {
			return rest
		}
		return ""
	}
	within := func(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

	if p.Doc == "" && name != "internal" {
		fault("has no doc comment that says what it owns")
	}
	for _, path := range p.Deps {
		dep, isOwn := own(path), own(path) != ""
		switch {
		case within(name, "planner"):
			if isOwn && !within(dep, "planner") || !isOwn && !standard[path] {
				fault("must stand on the standard library and on planner, but depends on %s", path)
			}
		case within(name, "schema"):
			if isOwn && !within(dep, "planner") && !within(dep, "schema") {
				fault("must depend on planner only, but depends on %s", dep)
			}
		case within(name, "providers"):
			if isOwn && !within(dep, "planner") && dep != "internal/run" && dep != "internal/hostfile" && dep != "internal/netlink" && !within(dep, provider(name)) {
				fault("a provider must depend on planner, internal/run, internal/hostfile and internal/netlink only, but depends on %s", dep)
			}
		case within(name, "internal"):
			if within(dep, "schema") || within(dep, "cmd") {
				fault("must not depend on %s, which stands above it", dep)
			}
		}
	}
	if within(name, "planner") && rank(p.ImportPath) < 0 {
		fault("is a room without a rank")
	}
	if within(name, "cmd") && slices.Contains(p.Deps, "testing") {
		fault("depends on testing, which is for tests alone")
	}
	for _, imp := range p.Imports {
		language := within(imp, "github.com/hashicorp/hcl/v2") || within(imp, "github.com/zclconf/go-cty")
		if language && !within(name, "schema") {
			fault("imports %s, which is for schema alone", imp)
		}
		if within(own(imp), "cmd") && !within(name, "cmd") {
			fault("must not import the command %s", own(imp))
		}
		switch there := rank(imp); {
		case there < 0:
		case within(name, "planner") && there >= rank(p.ImportPath):
			fault("imports %s, which does not stand below it", own(imp))
		case within(name, "providers") && there > languages:
			fault("imports %s, which decides: a provider knows values and words alone", own(imp))
		}
		if within(own(imp), "internal/test") && !within(name, "internal/test") {
			fault("imports %s, which is for tests alone", own(imp))
		}
	}
	for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
		imp := own(imp)
		if within(name, "providers") && (within(imp, "schema") || within(imp, "internal/apply") || within(imp, "providers") && !within(imp, provider(name))) {
			fault("its tests import %s; providers never know each other, schema or apply", imp)
		}
	}
	return found
}

// provider returns the "providers/NAME" that a package belongs to.
func provider(name string) string {
	return strings.Join(strings.SplitN(name, "/", 3)[:2], "/")
}

// list returns all packages of the module and all that they depend on.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Deps,Doc", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}
