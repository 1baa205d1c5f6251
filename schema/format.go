package schema

import (
	"bytes"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Format returns the source in canonical layout. Only white space changes. It
// refuses what does not parse, and needs neither variables nor a host.
func Format(src Source) ([]byte, Diagnostics) {
	file, diags, ok := parse(src)
	result := newDiagnostics(diags, map[string]*hcl.File{src.Name: file}, nil)
	if !ok {
		return nil, result
	}
	// One pass can leave white space that the next one moves, so go on until
	// nothing changes.
	out := src.Content
	for range 4 {
		next := hclwrite.Format(out)
		if bytes.Equal(next, out) {
			break
		}
		out = next
	}
	return out, result
}
