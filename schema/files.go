package schema

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyyaml "github.com/zclconf/go-cty-yaml"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// folder is what functions read beside the configuration: files below its
// folder and nowhere else, whatever ".." or links say (os.Root). Each is read
// once, so that one evaluation sees one content.
type folder struct {
	path string
	open func() (*os.Root, error)
	seen map[string]string // what was asked and what the answer was: for the digest
}

// folderOf is the folder that the sources stand in.
func folderOf(sources []Source) *folder {
	f := &folder{path: ".", seen: map[string]string{}}
	if len(sources) > 0 {
		f.path = filepath.Dir(sources[0].Name)
	}
	f.open = sync.OnceValues(func() (*os.Root, error) { return os.OpenRoot(f.path) })
	return f
}

// close is for when everything is evaluated.
func (f *folder) close() {
	if len(f.seen) > 0 {
		if root, err := f.open(); err == nil {
			root.Close()
		}
	}
}

// functions are those that read files, and the pure ones.
func (f *folder) functions() map[string]function.Function {
	all := maps.Clone(functions())
	templates := maps.Clone(all) // a template that includes itself would never end
	for name, fn := range map[string]function.Function{
		"file":       stringFunc("path", cty.String, func(name string) (cty.Value, error) { return stringOr(f.read(name)) }),
		"fileexists": stringFunc("path", cty.Bool, func(name string) (cty.Value, error) { return f.exists(name) }),
		"fileset":    f.set(),
	} {
		all[name], templates[name] = fn, fn
	}
	all["templatefile"] = f.template(templates)
	return all
}

func stringOr(s string, err error) (cty.Value, error) {
	if err != nil {
		return cty.UnknownVal(cty.String), function.NewArgError(0, err)
	}
	return cty.StringVal(s), nil
}

// stringFunc makes a function of one string.
func stringFunc(param string, result cty.Type, do func(string) (cty.Value, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: param, Type: cty.String}},
		Type:   function.StaticReturnType(result),
		Impl:   func(args []cty.Value, _ cty.Type) (cty.Value, error) { return do(args[0].AsString()) },
	})
}

// stat is what a name below the folder leads to.
func (f *folder) stat(name string) (*os.Root, fs.FileInfo, error) {
	root, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	info, err := root.Stat(filepath.FromSlash(name))
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%q cannot be read: %w; files lie in the folder of the configuration or below it, links too", clip(name), pathErr.Err)
	}
	return root, info, err
}

// read is the text of a file.
func (f *folder) read(name string) (string, error) {
	if text, ok := f.seen["file "+name]; ok {
		return text, nil
	}
	root, info, err := f.stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no file %q in %q, the folder of the configuration", clip(name), f.path)
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%q is no regular file", clip(name))
	}
	file, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := ReadLimited(file)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q: %w", clip(name), err)
	case !utf8.Valid(content):
		return "", fmt.Errorf("%q is not text in UTF-8", clip(name))
	}
	f.seen["file "+name] = string(content)
	return string(content), nil
}

// exists reports whether there is a regular file.
func (f *folder) exists(name string) (cty.Value, error) {
	_, info, err := f.stat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cty.UnknownVal(cty.Bool), function.NewArgError(0, err)
	}
	there := err == nil && info.Mode().IsRegular()
	f.seen["fileexists "+name] = fmt.Sprint(there)
	return cty.BoolVal(there), nil
}

// maxFiles is how many files fileset may find.
const maxFiles = 10_000

// set finds files by a pattern in a folder below, "." for the folder itself; "**"
// stands for folders of any depth.
func (f *folder) set() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}, {Name: "pattern", Type: cty.String}},
		Type:   function.StaticReturnType(cty.Set(cty.String)),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			unknown := cty.UnknownVal(cty.Set(cty.String))
			dir, pattern := args[0].AsString(), args[1].AsString()
			if !doublestar.ValidatePattern(pattern) {
				return unknown, function.NewArgErrorf(1, "%q is no pattern", clip(pattern))
			}
			root, _, err := f.stat(dir)
			if err != nil {
				return unknown, function.NewArgErrorf(0, "there is no folder %q in %q, the folder of the configuration", clip(dir), f.path)
			}
			below, err := fs.Sub(root.FS(), filepath.ToSlash(filepath.Clean(dir)))
			if err != nil {
				return unknown, function.NewArgError(0, err)
			}
			var found []cty.Value
			err = doublestar.GlobWalk(below, pattern, func(name string, d fs.DirEntry) error {
				if !d.Type().IsRegular() {
					return nil
				}
				if len(found) == maxFiles {
					return fmt.Errorf("more than %d files", maxFiles)
				}
				found = append(found, cty.StringVal(name))
				return nil
			}, doublestar.WithNoFollow())
			if err != nil {
				return unknown, function.NewArgError(1, err)
			}
			f.seen["fileset "+dir+" "+pattern] = fmt.Sprint(found)
			if len(found) == 0 {
				return cty.SetValEmpty(cty.String), nil
			}
			return cty.SetVal(found), nil
		},
	})
}

// template renders a file as a template of its variables.
func (f *folder) template(funcs map[string]function.Function) function.Function {
	render := func(args []cty.Value) (cty.Value, error) {
		name, vars := args[0].AsString(), args[1]
		if ty := vars.Type(); !ty.IsObjectType() && !ty.IsMapType() || vars.IsNull() {
			return cty.DynamicVal, function.NewArgErrorf(1, "the variables of a template are a map or an object")
		}
		text, err := f.read(name)
		if err != nil {
			return cty.DynamicVal, function.NewArgError(0, err)
		}
		fail := func(d *hcl.Diagnostic) (cty.Value, error) {
			at := ""
			if d.Subject != nil {
				at = fmt.Sprintf(":%d", d.Subject.Start.Line)
			}
			return cty.DynamicVal, function.NewArgErrorf(0, "%s%s: %s: %s", clip(name), at, d.Summary, d.Detail)
		}
		if diag := checkTemplate(text); diag != nil {
			return fail(diag)
		}
		expr, diags := hclsyntax.ParseTemplate([]byte(text), name, hcl.InitialPos)
		if diags.HasErrors() {
			return fail(diags[0])
		}
		ctx := &hcl.EvalContext{Variables: vars.AsValueMap(), Functions: funcs}
		for _, t := range expr.Variables() {
			if _, ok := ctx.Variables[t.RootName()]; !ok {
				return cty.DynamicVal, function.NewArgErrorf(1, "%s:%d uses %q, which is not among the variables: %v", clip(name), t.SourceRange().Start.Line, t.RootName(), slices.Sorted(maps.Keys(ctx.Variables)))
			}
		}
		val, diags := expr.Value(ctx)
		if diags.HasErrors() {
			return fail(diags[0])
		}
		return val, nil
	}
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}, {Name: "vars", Type: cty.DynamicPseudoType}},
		Type: func(args []cty.Value) (cty.Type, error) {
			if !args[0].IsKnown() || !args[1].IsWhollyKnown() {
				return cty.DynamicPseudoType, nil
			}
			v, err := render(args)
			return v.Type(), err
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return render(args) },
	})
}

// yamlFunc decodes YAML.
var yamlFunc = guard(ctyyaml.YAMLDecodeFunc, modestYAML)

var (
	// alias is where one may stand in YAML: a plain value cannot begin like that.
	alias = regexp.MustCompile(`(?m)(?:^|[\s,\[{:-])\*[\pL\pN_-]`)
	// stairs are lists of lists, or keys of keys, on one line.
	stairs = regexp.MustCompile(`(?:[-?:][ \t]+){100}`)
)

// modestYAML refuses what takes more time or memory than a host has: aliases
// that stand for one another, and deep nesting.
func modestYAML(args []cty.Value) error {
	const aliases, most = 8, 100
	if !args[0].IsKnown() || args[0].IsNull() {
		return nil
	}
	text := args[0].AsString()
	if len(alias.FindAllStringIndex(text, aliases+1)) > aliases {
		return function.NewArgErrorf(0, "more than %d aliases", aliases)
	}
	deep, depth := stairs.MatchString(text), 0
	for _, c := range []byte(text) {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		deep = deep || depth > most
	}
	if deep {
		return function.NewArgErrorf(0, "more than %d levels", most)
	}
	return nil
}
