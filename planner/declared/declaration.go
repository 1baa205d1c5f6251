package declared

import (
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Declaration is a configuration to be written for one host, with comments.
type Declaration struct {
	Host    string // the name of the only host that it is for; "" for any
	Desired Desired
	// Notes are comments, a paragraph each, by what they stand above: NoteHead,
	// an attribute ("max"), or a block ("accept web", "notrack all"). One that begins
	// with two spaces is a line to copy, and stays one.
	Notes map[string][]string
}

// NoteHead is the key of the comments that begin the file.
const NoteHead = ""

// Renderer turns the notrack and accept blocks into Chains and Native for a host,
// as providers/iptables and providers/nft do.
type Renderer func(*Desired, host.Live)

// Note adds a paragraph of comment above what stands at a key of Notes.
func (d *Declaration) Note(at string, text string) {
	if d.Notes == nil {
		d.Notes = map[string][]string{}
	}
	d.Notes[at] = append(d.Notes[at], text)
}

// Label makes a label of any text: what the language takes as a block's
// name. Nothing of the text that is not a plain letter or digit survives.
func Label(text, otherwise string) string {
	out := make([]byte, 0, 64)
	for i := 0; i < len(text) && len(out) < 64; i++ {
		c := text[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			out = append(out, c)
		case len(out) > 0 && (c == '.' || c == '-' || c == '_'):
			out = append(out, c)
		case len(out) > 0 && out[len(out)-1] != '-':
			out = append(out, '-')
		}
	}
	for len(out) > 0 && out[len(out)-1] == '-' {
		out = out[:len(out)-1]
	}
	if len(out) == 0 {
		return otherwise
	}
	return string(out)
}

// PlainInterface reports whether the language can name the interface, and
// means that one alone.
func PlainInterface(name string) bool {
	return name != "" && len(name) <= 15 && name[0] != '-' && name != "." && name != ".." &&
		strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:\"'`\\!+", r) }) < 0
}
