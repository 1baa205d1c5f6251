package schema

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// MaxSourceSize is the size in bytes above which a file is refused.
const MaxSourceSize = 4 << 20

// ErrNoSources is returned by ReadSources for a folder without *.hcl and
// *.hcl.json files.
var ErrNoSources = errors.New("no *.hcl files")

// Source is one HCL file, in the native syntax or in JSON by its name (IsJSON):
// its name as diagnostics show it, and its bytes.
type Source struct {
	Name    string
	Content []byte
}

// ReadSources reads one file, or the *.hcl and *.hcl.json files of a folder in
// the order of their names. It does not look into subfolders, and leaves out hidden files.
func ReadSources(path string) ([]Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.IsDir() {
		src, err := readSource(path)
		if err != nil {
			return nil, err
		}
		return []Source{src}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var names []string
	for _, e := range entries {
		if isSource(e.Name()) && !e.IsDir() {
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("read configuration: %w in %q: name a file or another folder", ErrNoSources, path)
	}
	sort.Strings(names)
	sources := make([]Source, 0, len(names))
	for _, name := range names {
		src, err := readSource(name)
		if err != nil {
			return nil, err
		}
		sources = append(sources, src)
	}
	return sources, nil
}

// readSource reads at most one byte more than MaxSourceSize, whatever the
// file claims to be.
func readSource(name string) (Source, error) {
	f, err := os.Open(name)
	if err != nil {
		return Source{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	content, err := ReadLimited(f)
	if err != nil {
		return Source{}, fmt.Errorf("read configuration %q: %w", name, err)
	}
	return Source{Name: name, Content: content}, nil
}

// ReadLimited reads all of r, or returns an error as soon as it holds more
// than MaxSourceSize.
func ReadLimited(r io.Reader) ([]byte, error) {
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > MaxSourceSize {
			return nil, fmt.Errorf("%d bytes are more than the %d MiB that ctplan reads", info.Size(), MaxSourceSize>>20)
		}
	}
	content, err := io.ReadAll(io.LimitReader(r, MaxSourceSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > MaxSourceSize {
		return nil, fmt.Errorf("more than the %d MiB that ctplan reads", MaxSourceSize>>20)
	}
	return content, nil
}

// parse returns the file as the HCL parser sees it. The file is never nil, so
// that diagnostics can show it; ok is false when its body must not be used.
func parse(src Source) (file *hcl.File, diags hcl.Diagnostics, ok bool) {
	if diag := checkText(src); diag != nil {
		return &hcl.File{}, hcl.Diagnostics{diag}, false
	}
	if IsJSON(src.Name) {
		return parseJSON(src)
	}
	if diag := checkDepth(src); diag != nil {
		return &hcl.File{Bytes: src.Content}, hcl.Diagnostics{diag}, false
	}
	file, diags = hclsyntax.ParseConfig(src.Content, src.Name, hcl.InitialPos)
	if file == nil {
		file = &hcl.File{Bytes: src.Content}
	}
	if body, isBody := file.Body.(*hclsyntax.Body); isBody && !diags.HasErrors() {
		diags = append(diags, checkNumbers(body)...)
	}
	return file, diags, !diags.HasErrors()
}

// checkText refuses what is not a text file, with the line of the first byte
// that shows it. The parser would report such files byte by byte.
func checkText(src Source) *hcl.Diagnostic {
	refuse := func(at int, detail string) *hcl.Diagnostic {
		pos := hcl.Pos{Line: 1 + bytes.Count(src.Content[:at], []byte{'\n'}), Column: 1, Byte: at}
		pos.Column += at - (bytes.LastIndexByte(src.Content[:at], '\n') + 1)
		return &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Not a text file",
			Detail:   detail,
			Subject:  &hcl.Range{Filename: src.Name, Start: pos, End: pos},
		}
	}
	if len(src.Content) > MaxSourceSize {
		return refuse(0, fmt.Sprintf("The file is larger than the %d MiB that ctplan reads.", MaxSourceSize>>20))
	}
	if at := bytes.IndexByte(src.Content, 0); at >= 0 {
		return refuse(at, "The file has a NUL byte here: it is binary, or not in UTF-8.")
	}
	if !utf8.Valid(src.Content) {
		at := 0
		for at < len(src.Content) {
			r, n := utf8.DecodeRune(src.Content[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return refuse(at, "The bytes here are not UTF-8: the file is binary, or in another encoding.")
	}
	return nil
}

// maxDepth bounds how deeply expressions nest. The parser and the evaluator
// recurse, and Go cannot recover from a stack that has grown too far.
const maxDepth = 1000

// checkDepth refuses files that nest more deeply than maxDepth.
func checkDepth(src Source) *hcl.Diagnostic {
	if nestsLittle(src.Content) {
		return nil
	}
	tokens, _ := hclsyntax.LexConfig(src.Content, src.Name, hcl.InitialPos)
	return depthOf(tokens)
}

// depthOf reports the token at which brackets and operators nest too deeply.
func depthOf(tokens hclsyntax.Tokens) *hcl.Diagnostic {
	type frame struct {
		braces bool // a newline ends an expression
		ops    int  // operators since the expression began
	}
	stack := []frame{{braces: true}}
	ops := 0
	for _, tok := range tokens {
		top := &stack[len(stack)-1]
		switch tok.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc, hclsyntax.TokenOParen, hclsyntax.TokenTemplateInterp:
			stack = append(stack, frame{braces: tok.Type == hclsyntax.TokenOBrace})
		case hclsyntax.TokenOBrack, hclsyntax.TokenTemplateControl:
			// Indexes and template directives also nest what follows them.
			top.ops++
			ops++
			stack = append(stack, frame{})
		case hclsyntax.TokenCBrace, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc, hclsyntax.TokenCParen, hclsyntax.TokenCBrack, hclsyntax.TokenTemplateSeqEnd:
			if len(stack) > 1 {
				ops -= top.ops
				stack = stack[:len(stack)-1]
			}
		case hclsyntax.TokenNewline:
			if top.braces {
				ops -= top.ops
				top.ops = 0
			}
		case hclsyntax.TokenComma:
			ops -= top.ops
			top.ops = 0
		case hclsyntax.TokenPlus, hclsyntax.TokenMinus, hclsyntax.TokenStar, hclsyntax.TokenSlash, hclsyntax.TokenPercent,
			hclsyntax.TokenBang, hclsyntax.TokenQuestion, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenEqualOp,
			hclsyntax.TokenNotEqual, hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq:
			top.ops++
			ops++
		}
		if len(stack)+ops > maxDepth {
			return tooDeep(tok.Range)
		}
	}
	return nil
}

func tooDeep(rng hcl.Range) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  "Expression too complex",
		Detail:   fmt.Sprintf("Brackets and operators nest more than %d deep here.", maxDepth),
		Subject:  rng.Ptr(),
	}
}

func tooLarge(rng hcl.Range) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  "Number out of range",
		Detail:   "No value in this language is this large.",
		Subject:  rng.Ptr(),
	}
}

// nestsLittle reports whether a file surely nests far less deeply than maxDepth,
// and saves most files from being lexed once more than the parser does. It
// knows comments of one line and strings without templates; with anything
// else in a file it says no.
func nestsLittle(text []byte) bool {
	braces, others, ops := 0, 0, 0 // what is open, and operators since the line began
	for i := 0; i < len(text); i++ {
		next := byte('\n')
		if i+1 < len(text) {
			next = text[i+1]
		}
		switch c := text[i]; c {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
				if i+1 >= len(text) || text[i] == '\n' || text[i+1] == '{' {
					return false
				}
			}
		case '{':
			braces++
		case '}':
			braces--
		case '(', '[':
			others++
			ops++ // an index nests what follows it
		case ')', ']':
			others--
		case '#', '/':
			if c == '/' && next == '*' {
				return false
			}
			if c == '#' || next == '/' {
				i += max(0, bytes.IndexByte(text[i:], '\n')-1)
			}
			ops++
		case '!', '-', '?', '+', '*', '%', '<', '>', '=', '&', '|':
			if c == '<' && next == '<' {
				return false
			}
			ops++
		case '\n':
			if others == 0 {
				ops = 0
			}
		}
		// Each open brace may hide as many operators again, of the line that it stands on.
		if braces < 0 || others < 0 || braces > 8 || others+ops > maxDepth/16 {
			return false
		}
	}
	return true
}

// checkNumbers refuses literals so large that writing them out would need
// more memory than a host has: 1e999999999 in a template is a gigabyte.
func checkNumbers(in hclsyntax.Node) hcl.Diagnostics {
	return hclsyntax.VisitAll(in, func(node hclsyntax.Node) hcl.Diagnostics {
		lit, ok := node.(*hclsyntax.LiteralValueExpr)
		if !ok || !isHugeNumber(lit.Val) {
			return nil
		}
		return hcl.Diagnostics{tooLarge(lit.SrcRange)}
	})
}
