package schema

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// Config is what the sources say, validated.
type Config struct {
	sources []Source
	files   map[string]*hcl.File
	order   []string
	values  map[string]cty.Value // of the variables
	read    map[string]string    // what functions asked the folder, and what they got
	blocks  []*block
}

// block is one conntrack block.
type block struct {
	desired declared.Desired
	hosts   []string // lower-case globs
	all     bool     // no hosts attribute
	rng     hcl.Range

	// What depends on facts that Load was not given: something, and whether
	// the block is for a host at all.
	unknown, hostsUnknown *hcl.Range
}

// Load parses and validates the sources. The values of variables come, later
// ones winning, from their defaults, vars.Env, vars.Files and vars.Flags.
//
// Facts are what host.* reads. Without them everything is checked as far as
// it can be, and whatever depends on a host is taken to be right.
//
// Diagnostics can hold warnings without an error. With an error the Config is
// nil.
func Load(sources []Source, vars Vars, facts *Facts) (*Config, Diagnostics) {
	c := &Config{sources: sources, files: map[string]*hcl.File{}}
	var diags hcl.Diagnostics
	var root rootBlocks
	broken := false
	for _, src := range sources {
		file, more, ok := parse(src)
		c.files[src.Name] = file
		c.order = append(c.order, src.Name)
		diags = append(diags, more...)
		if !ok {
			broken = true
			continue
		}
		diags = append(diags, root.add(file.Body)...)
	}

	dir := folderOf(sources)
	defer dir.close()
	c.read = dir.seen
	s := newScope(facts, dir)
	if !broken {
		// What a broken file declares is not known, so that references to it
		// must not be reported.
		values, more := loadVariables(root.variables, vars, s, c.files)
		c.values = values
		diags = append(diags, more...)
		diags = append(diags, loadLocals(root.locals, s)...)
	}
	labels := map[string]hcl.Range{}
	for _, hb := range root.conntracks {
		b, more := decodeConntrack(hb, s)
		diags = append(diags, more...)
		diags = append(diags, checkLabel(hb, labels)...)
		c.blocks = append(c.blocks, b)
	}
	if facts == nil && !diags.HasErrors() {
		diags = append(diags, c.checkOverlap()...)
	}
	result := newDiagnostics(diags, c.files, c.order)
	if result.HasErrors() {
		return nil, result
	}
	return c, result
}

// rootBlocks are the top-level blocks of all files.
type rootBlocks struct {
	variables, locals, conntracks hcl.Blocks
}

func (root *rootBlocks) add(body hcl.Body) hcl.Diagnostics {
	content, diags := bodyContent(body, "", &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
		{Type: "variable", LabelNames: []string{"name"}},
		{Type: "locals"},
		{Type: "conntrack", LabelNames: []string{"name"}},
	}})
	for _, b := range content.Blocks {
		switch b.Type {
		case "variable":
			root.variables = append(root.variables, b)
		case "locals":
			root.locals = append(root.locals, b)
		case "conntrack":
			root.conntracks = append(root.conntracks, b)
		}
	}
	return diags
}

// checkOverlap finds blocks that are bound to meet on some host. Only loading
// for a host tells for certain, so this serves loading without one.
func (c *Config) checkOverlap() hcl.Diagnostics {
	var diags hcl.Diagnostics
	for i, a := range c.blocks {
		for _, b := range c.blocks[:i] {
			shared := slices.ContainsFunc(a.hosts, func(p string) bool { return slices.Contains(b.hosts, p) })
			if a.hostsUnknown != nil || b.hostsUnknown != nil {
				continue
			}
			if a.all && b.all || shared {
				diags = append(diags, overlap(a, b, "the same hosts"))
				break
			}
		}
	}
	return diags
}

func overlap(a, b *block, hosts string) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  "Two conntrack blocks for one host",
		Detail: fmt.Sprintf("The blocks %q (%s) and %q (%s) both match %s. A host is in one mode: narrow the hosts of one of them.",
			b.desired.Block, place(b.rng), a.desired.Block, place(a.rng), hosts),
		Subject: a.rng.Ptr(),
	}
}

// For returns what the sources declare for a host. A host that no block
// matches is Unmanaged; two blocks that match one host are an error.
func (c *Config) For(name string) (declared.Desired, Diagnostics) {
	var found *block
	var needed *hcl.Range
	var diags hcl.Diagnostics
	for _, b := range c.blocks {
		switch {
		case b.hostsUnknown != nil:
			needed = b.hostsUnknown
		case !b.matches(name):
		case found != nil:
			diags = append(diags, overlap(b, found, fmt.Sprintf("the host %q", name)))
		default:
			found = b
		}
	}
	if found != nil && found.unknown != nil {
		needed = found.unknown
	}
	if needed != nil && len(diags) == 0 {
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Host facts needed",
			Detail:   fmt.Sprintf("What this says for %q depends on facts of the host: plan on the host, or from its snapshot.", name),
			Subject:  needed,
		})
	}
	result := newDiagnostics(diags, c.files, c.order)
	if found == nil || result.HasErrors() {
		return declared.Desired{Mode: declared.Unmanaged, StatefulRules: declared.RefuseStateful, Families: slices.Clone(host.Families)}, result
	}
	return found.desired, result
}

// matches reports whether the block is for the host: by its full name or by
// what stands before the first dot, without regard to case.
func (b *block) matches(host string) bool {
	if b.all {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	short, _, _ := strings.Cut(host, ".")
	return slices.ContainsFunc(b.hosts, func(pattern string) bool {
		full, _ := path.Match(pattern, host)
		if full {
			return true
		}
		part, _ := path.Match(pattern, short)
		return part
	})
}

// Digest identifies the sources, the files that their functions read, and the values of their variables: "sha256:"
// and 64 hexadecimal digits. It does not depend on the folder or on the host.
func (c *Config) Digest() string {
	h := sha256.New()
	for _, src := range c.sources {
		hashPart(h, []byte(filepath.Base(src.Name)))
		hashPart(h, src.Content)
	}
	for _, asked := range slices.Sorted(maps.Keys(c.read)) {
		hashPart(h, []byte(asked))
		hashPart(h, []byte(c.read[asked]))
	}
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		hashPart(h, []byte(name))
		value, err := ctyjson.Marshal(c.values[name], cty.DynamicPseudoType)
		if err != nil {
			// Variables are constants, and every constant has a JSON form.
			value = []byte(err.Error())
		}
		hashPart(h, value)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// hashPart adds bytes with their length, so that parts cannot run together.
func hashPart(h hash.Hash, b []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	h.Write(n[:])
	h.Write(b)
}

func position(r hcl.Range) declared.Pos {
	return declared.Pos{File: visible(r.Filename), Line: r.Start.Line}
}

func place(r hcl.Range) string { return position(r).String() }
