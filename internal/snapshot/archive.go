package snapshot

import (
	"bytes"
	_ "embed" // the script
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Script is a POSIX shell script that prints what a host is, for Decode to read,
// and does nothing else. It takes files to add as arguments.
//
//go:embed snapshot.sh
var Script string

// archiveHead is the first line that Script prints. Something may stand before
// it: shells greet.
const archiveHead = "ctplan snapshot by script, version "

// archiveVersion is what stands behind it.
const archiveVersion = "1"

// byScript returns what the script has printed.
func byScript(data []byte) ([]byte, bool) {
	if bytes.HasPrefix(data, []byte(archiveHead)) {
		return data, true
	}
	head := data[:min(len(data), 64<<10)]
	if i := bytes.Index(head, []byte("\n"+archiveHead)); i >= 0 {
		return data[i+1:], true
	}
	return nil, false
}

// Archive is what the script prints: files, links and the output of commands.
type Archive struct {
	files  map[string]archived // by path; content of files, targets of links
	links  map[string]string
	there  []string            // paths of which nothing more is known
	absent map[string]bool     // paths that were looked for
	attrs  map[string][]byte   // of files: what getfattr prints
	runs   map[string]archived // by command
}

// archived is a file with its mode and owner, or a command's output with its
// status.
type archived struct {
	body     []byte
	mode     uint32
	uid, gid int
	status   int
}

// errArchive is when the output is not whole.
var errArchive = errors.New("it does not end as the script ends: it was cut off, take it again")

// parseArchive reads the parts: a line "KIND NAME ARGUMENT…" whose name is in
// hexadecimal digits behind a colon, lines of such digits, a dot. Lines that begin with "#" are
// for people.
func parseArchive(data []byte) (*Archive, error) {
	a := &Archive{files: map[string]archived{}, links: map[string]string{}, absent: map[string]bool{}, attrs: map[string][]byte{}, runs: map[string]archived{}}
	line := 0
	next := func() (string, bool) {
		for len(data) > 0 {
			var text []byte
			text, data, _ = bytes.Cut(data, []byte("\n"))
			line++
			text = bytes.TrimSuffix(text, []byte("\r"))
			if !bytes.HasPrefix(text, []byte("#")) {
				return string(text), true
			}
		}
		return "", false
	}
	head, _ := next()
	if version := strings.TrimPrefix(head, archiveHead); version != archiveVersion {
		return nil, fmt.Errorf("version %.20q of the script: this ctplan reads version %s alone; take it by the script that this ctplan prints", version, archiveVersion)
	}
	for {
		text, ok := next()
		if !ok {
			return nil, errArchive
		}
		if text == "end" {
			return a, nil
		}
		words := strings.Fields(text)
		if len(words) < 2 {
			return nil, fmt.Errorf("line %d is no part's beginning: %.40q", line, text)
		}
		name, err := []byte(words[1]), error(nil)
		if digits, ok := strings.CutPrefix(words[1], ":"); ok {
			if name, err = hex.DecodeString(digits); err != nil {
				return nil, fmt.Errorf("line %d: a name: %w", line, err)
			}
		}
		p := archived{status: -1}
		for {
			text, ok := next()
			if !ok {
				return nil, errArchive
			}
			if text == "." {
				break
			}
			if status, ok := strings.CutPrefix(text, "= "); ok {
				if p.status, err = strconv.Atoi(status); err != nil {
					return nil, fmt.Errorf("line %d: a status: %w", line, err)
				}
				continue
			}
			digits := []byte(strings.Join(strings.Fields(text), ""))
			n, err := hex.Decode(digits, digits)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", line, err)
			}
			p.body = append(p.body, digits[:n]...)
		}
		if err := a.add(words[0], string(name), words[2:], p); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
	}
}

// add takes a part. What stands twice is what it was first.
func (a *Archive) add(kind, name string, args []string, p archived) error {
	if kind == "run" || kind == "program" {
		if _, twice := a.runs[kind+" "+name]; !twice {
			a.runs[kind+" "+name] = p
		}
		return nil
	}
	if !strings.HasPrefix(name, "/") || strings.Contains(name, "\x00") || slices.Contains(strings.Split(name, "/"), "..") || len(name) > 4096 {
		return fmt.Errorf("%.40q is no path", name)
	}
	switch kind {
	case "file":
		if len(args) != 3 {
			return fmt.Errorf("%.40q has no mode and owner", name)
		}
		var err1, err2, err3 error
		p.mode, err1 = lsMode(args[0])
		p.uid, err2 = strconv.Atoi(args[1])
		p.gid, err3 = strconv.Atoi(args[2])
		if err := errors.Join(err1, err2, err3); err != nil {
			return fmt.Errorf("%.40q: %w", name, err)
		}
		if _, twice := a.files[name]; !twice {
			a.files[name] = p
		}
	case "link":
		if _, twice := a.links[name]; !twice {
			a.links[name] = strings.TrimSuffix(string(p.body), "\n")
		}
	case "attributes":
		a.attrs[name] = p.body
	case "name":
		a.there = append(a.there, name)
	case "absent":
		a.absent[name] = true
	default:
		return fmt.Errorf("a part of kind %.20q", kind)
	}
	return nil
}

// lsMode reads "-rwxr-sr-t", as ls -l has it.
func lsMode(text string) (mode uint32, err error) {
	if len(text) < 10 {
		return 0, fmt.Errorf("%q is no mode", text)
	}
	for i, c := range text[1:10] {
		bit := uint32(1) << (8 - i)
		switch c {
		case '-':
		case 'r', 'w', 'x':
			mode |= bit
		case 's', 't':
			mode |= bit | 1<<(11-i/3)
		case 'S', 'T':
			mode |= 1 << (11 - i/3)
		default:
			return 0, fmt.Errorf("%q is no mode", text)
		}
	}
	return mode, nil
}

// output is what a command printed; nil where it was not run, or failed.
func (a *Archive) output(command string) []byte {
	r, ok := a.runs["run "+command]
	if !ok || r.status > 0 {
		return nil
	}
	return append([]byte{}, r.body...)
}

// holds reports whether the script has looked for a path.
func (a *Archive) holds(path string) bool {
	_, file := a.files[path]
	_, link := a.links[path]
	return file || link || a.absent[path]
}
