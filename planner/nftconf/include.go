package nftconf

import (
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

const (
	mostDepth  = 16        // of includes (nft's MAX_INCLUDE_DEPTH)
	mostTokens = 4_000_000 // of all files together, each as often as it is included
)

// includePath is where nft looks for a file that is included by a name alone.
const includePath = "/etc"

// resolve is the path that an include line names, which may be a pattern. One that
// begins with a dot is looked for where nft was started, by an init in the root.
func resolve(name string) string {
	switch {
	case path.IsAbs(name):
		return path.Clean(name)
	case strings.HasPrefix(name, "./"), strings.HasPrefix(name, "../"):
		return path.Join("/", name)
	}
	return path.Join(includePath, name)
}

// Matches is whether the path of an include line, which may be a pattern, is that
// of a file: as glob(3) has it, a dot in front is matched by a dot alone.
func Matches(pattern, name string) bool {
	hidden := strings.HasPrefix(path.Base(name), ".") && !strings.HasPrefix(path.Base(pattern), ".")
	return etc.Globs(pattern, name) && (!hidden || pattern == name)
}

// open puts the tokens of a file at the end of those to load, with those of what
// it includes in their places: behind the end of the line that includes them.
func (l *loader) open(name string, from host.NFTSite, depth int) {
	i := slices.IndexFunc(l.files, func(f host.NFTFile) bool { return f.Path == name })
	if i < 0 {
		if l.conf.Doubt == "" {
			l.conf.Doubt = name + " was not read"
		}
		return
	}
	l.conf.Loads = append(l.conf.Loads, host.NFTConfLoad{File: name, From: from})
	if l.lexed[i] == nil {
		tokens, closed := nftables.Tokens(l.files[i].Content)
		if !closed {
			l.doubt(&token{nftables.Token{Line: int32(1 + strings.Count(l.files[i].Content, "\n"))}, int32(i)}, "a string, or a comment, that nothing ends: nft does not load it")
		}
		l.lexed[i] = append(tokens, nftables.Token{}) // never nil
	}
	tokens := l.lexed[i][:len(l.lexed[i])-1]
	for k := 0; k < len(tokens); k++ {
		t := token{tokens[k], int32(i)}
		if t.Text != "include" || k+1 >= len(tokens) || !strings.HasPrefix(tokens[k+1].Text, `"`) {
			l.tokens = append(l.tokens, t)
			continue
		}
		if n := len(l.tokens); n > 0 && !l.tokens[n-1].ends() && l.tokens[n-1].Text != "{" {
			l.doubt(&t, "an include where none can be: what comes before it is not ended")
		}
		named := token{tokens[k+1], int32(i)}
		if k += 2; k < len(tokens) {
			l.tokens = append(l.tokens, token{tokens[k], int32(i)})
		} else if depth == 0 {
			l.doubt(&t, "an include that no newline ends: nft does not load it")
		}
		l.include(&named, l.site([]token{t, named}), depth)
	}
}

// isOpen is whether the last statement that a file loads is one of another file, and
// not ended there: what the file says next would be part of it.
func isOpen(main string, files []host.NFTFile) bool {
	l := newLoader([]string{main}, files)
	l.open(main, host.NFTSite{}, 0)
	n := len(l.tokens)
	return n > 0 && !l.tokens[n-1].ends() && files[l.tokens[n-1].file].Path != main
}

// include opens what a line names.
func (l *loader) include(name *token, site host.NFTSite, depth int) {
	pattern := resolve(name.Text[1:])
	switch {
	case depth+1 >= mostDepth:
		l.doubt(name, "includes that go too deep")
		return
	case len(l.tokens) > mostTokens:
		l.doubt(name, "more than ctplan reads")
		return
	case !etc.IsGlob(pattern) && !slices.ContainsFunc(l.files, func(f host.NFTFile) bool { return f.Path == pattern }):
		l.doubt(name, "it includes %s, which was not read", pattern)
		return
	}
	for _, f := range matching(pattern, l.files) {
		l.open(f, site, depth+1)
	}
}

// matching are the files of a pattern, in the order in which nft reads them.
func matching(pattern string, files []host.NFTFile) (found []string) {
	for i := range files {
		if Matches(pattern, files[i].Path) {
			found = append(found, files[i].Path)
		}
	}
	slices.Sort(found)
	return found
}
