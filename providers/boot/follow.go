package boot

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/pattern"
	"mvdan.cc/sh/v3/syntax"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/host"
)

const (
	maxScript    = 256 << 10 // bytes; no script that makes rules is larger, what generators make is not read
	maxRestorers = 200       // of one host
	maxSteps     = 10_000    // of one starter: functions and loops can multiply them
	maxWord      = 4 << 10   // bytes of a word, which loops can multiply as well
	maxDepth     = 2         // the script that is started, and what that calls or sources
)

// follower goes through what one starter runs, as far as the text tells it.
type follower struct {
	root, by string
	out      *[]host.Restorer
	depth    int
	steps    int
	// What the script that is being read has come to: whether a command about
	// rules was understood, its variables, functions and arguments.
	understood bool
	at         string // its path
	shift      int    // of its lines in that file
	vars       map[string]word
	functions  map[string]*syntax.FuncDecl
	active     []string // functions that are being walked
	args       []word   // $0, $1, …
}

// add notes what is done at a place. What only repeats the entry before it says
// nothing more.
func (f *follower) add(does host.RestorerDo, family host.Family, file, at string) {
	at = strings.ToValidUTF8(at, "\uFFFD")
	file = strings.ToValidUTF8(file, "\uFFFD")
	r := host.Restorer{By: strings.ToValidUTF8(f.by, "\uFFFD"), At: at, Does: does, Family: family, File: file}
	for i := len(*f.out) - 1; i >= 0; i-- {
		last := (*f.out)[i]
		if last.By != r.By {
			break
		}
		if last.Does == r.Does && last.Family == r.Family && last.File == r.File {
			return
		}
		if last.Does == host.DoRestore || last.Does == host.DoFlush { // what comes after undoes what is done again
			break
		}
	}
	if len(*f.out) < maxRestorers {
		*f.out = append(*f.out, r)
	}
}

// mentions is a program that changes rules, named anywhere.
var mentions = regexp.MustCompile(`(?:^|[^\w-])(?:ip6?tables(?:-legacy|-nft)?(?:-restore)?|nft)(?:[^\w.-]|$)`)

// mention is the line that names such a program first, comments apart; 0: none.
func mention(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		n++
		if t := strings.TrimSpace(line); !strings.HasPrefix(t, "#") && mentions.MatchString(t) {
			return n
		}
	}
	return 0
}

// program follows a program by its path: a script of a shell. Of another language
// all that is known is that it names a program that changes rules.
func (f *follower) program(name string, args []word) {
	file, err := hostfile.Read(f.root, name)
	if err != nil || !file.Exists || strings.HasPrefix(file.Content, "\x7fELF") {
		return
	}
	entry := []string(nil)
	first, _, _ := strings.Cut(file.Content, "\n")
	switch {
	case len(file.Content) > maxScript || strings.ContainsRune(file.Content, 0):
		f.unknown(file.Content, name, 0)
		return
	case !strings.HasPrefix(first, "#!"), shebang.MatchString(first):
	case strings.Contains(first, "openrc-run") || strings.Contains(first, "runscript"):
		entry = []string{"start_pre", "start", "start_post"}
	default:
		f.unknown(file.Content, name, 0)
		return
	}
	f.shell(file.Content, name, 0, append([]word{{text: name, known: true}}, args...), entry)
}

var shebang = regexp.MustCompile(`^#!\s*\S*?(?:env\s+)?(?:ba|da|a|k|z|busybox )?sh\b`)

// parse reads a text as a script; nil: it is none, or too much has been read.
func (f *follower) parse(text string) *syntax.File {
	if f.steps += len(text) / 256; f.steps > maxSteps {
		return nil
	}
	script, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), "")
	if err != nil {
		return nil
	}
	return script
}

// unknown notes a text that cannot be followed, where it names a program that
// changes rules.
func (f *follower) unknown(text, at string, shift int) {
	if n := mention(text); n > 0 {
		f.add(host.DoUnknown, "", "", place(at, n+shift))
	}
}

func place(name string, line int) string { return fmt.Sprintf("%s:%d", name, line) }

// shell follows a text of a shell that stands in a file from a line on; entry are
// functions that whoever reads the script calls.
func (f *follower) shell(text, at string, shift int, args []word, entry []string) {
	script := f.parse(text)
	if script == nil || f.depth >= maxDepth {
		f.unknown(text, at, shift)
		return
	}
	inner := *f
	inner.depth++
	inner.at, inner.shift, inner.args = at, shift, args
	inner.understood = false
	inner.vars, inner.functions, inner.active = map[string]word{}, map[string]*syntax.FuncDecl{}, nil
	inner.functionsOf(script)
	inner.stmts(script.Stmts)
	for _, name := range entry {
		inner.call(name, nil)
	}
	if !inner.understood {
		inner.unknown(text, at, shift)
	}
	f.steps = inner.steps
	f.understood = f.understood || inner.understood
}

// source goes through a file as a part of the script that reads it.
func (f *follower) source(name string) {
	file, err := hostfile.Read(f.root, name)
	if err != nil || !file.Exists {
		return
	}
	if len(file.Content) > maxScript {
		f.unknown(file.Content, name, 0)
		return
	}
	f.inline(file.Content, name, 0)
}

// inline goes through a text as a part of the script that has it run.
func (f *follower) inline(text, from string, lines int) {
	script := f.parse(text)
	if script == nil || f.depth > maxDepth {
		f.unknown(text, from, lines)
		return
	}
	at, shift := f.at, f.shift
	f.at, f.shift = from, lines
	f.depth++
	f.functionsOf(script)
	f.stmts(script.Stmts)
	f.depth--
	f.at, f.shift = at, shift
}

func (f *follower) functionsOf(script *syntax.File) {
	syntax.Walk(script, func(n syntax.Node) bool {
		if d, ok := n.(*syntax.FuncDecl); ok && d.Name != nil {
			f.functions[d.Name.Value] = d
		}
		return true
	})
}

// stmts goes through statements in order; it reports that the script ends there.
func (f *follower) stmts(list []*syntax.Stmt) (ends bool) {
	for _, s := range list {
		if f.stmt(s) {
			return true
		}
	}
	return false
}

// stmt goes through one statement. Whatever depends on a condition is taken to
// happen, but that a script ends.
func (f *follower) stmt(s *syntax.Stmt) (ends bool) {
	if f.steps++; f.steps > maxSteps {
		f.add(host.DoUnknown, "", "", place(f.at, int(s.Pos().Line())+f.shift))
		return true
	}
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		return f.simple(c, s.Redirs, nil)
	case *syntax.BinaryCmd:
		f.binary(c)
	case *syntax.Block:
		return f.stmts(c.Stmts)
	case *syntax.Subshell:
		f.stmts(c.Stmts)
	case *syntax.IfClause:
		for ; c != nil; c = c.Else {
			f.stmts(c.Cond)
			f.stmts(c.Then)
		}
	case *syntax.WhileClause:
		f.stmts(c.Cond)
		f.stmts(c.Do)
	case *syntax.ForClause:
		f.loop(c)
	case *syntax.CaseClause:
		f.cases(c)
	case *syntax.TimeClause:
		return f.stmt(c.Stmt)
	case *syntax.DeclClause:
		f.assign(c.Args)
	}
	return false
}

func (f *follower) binary(c *syntax.BinaryCmd) {
	// "cat FILE | iptables-restore": the file is what the right side reads.
	if x, ok := c.X.Cmd.(*syntax.CallExpr); ok && c.Op == syntax.Pipe && len(x.Args) == 2 && path.Base(x.Args[0].Lit()) == "cat" {
		if y, ok := c.Y.Cmd.(*syntax.CallExpr); ok {
			from := f.value(x.Args[1])
			f.simple(y, c.Y.Redirs, &from)
			return
		}
	}
	f.stmt(c.X)
	f.stmt(c.Y)
}

func (f *follower) loop(c *syntax.ForClause) {
	words, ok := c.Loop.(*syntax.WordIter)
	if !ok || len(words.Items) == 0 || len(words.Items) > 16 {
		if ok {
			f.vars[words.Name.Value] = word{name: words.Name.Value}
		}
		f.stmts(c.Do)
		return
	}
	for _, item := range words.Items {
		f.vars[words.Name.Value] = f.value(item)
		f.stmts(c.Do)
	}
}

// cases takes the branch that the arguments choose, where they do; else all but
// those for what a boot does not ask for.
func (f *follower) cases(c *syntax.CaseClause) {
	on := f.value(c.Word)
	never := []string{"stop", "restart", "reload", "force-reload", "status", "save", "panic", "down", "post-down", "pre-down", "help", "list", "show", "test", "check", "condrestart", "try-restart"}
	for _, item := range c.Items {
		taken, idle := false, len(item.Patterns) > 0
		for _, p := range item.Patterns {
			v := f.value(p)
			idle = idle && v.known && slices.Contains(never, v.text)
			taken = taken || v.known && matches(v.text, on.text)
		}
		switch {
		case on.known && taken:
			f.stmts(item.Stmts)
			return
		case !on.known && !idle:
			f.stmts(item.Stmts)
		}
	}
}

func matches(glob, text string) bool {
	re, err := pattern.Regexp(glob, pattern.EntireString)
	if err != nil {
		return false
	}
	ok, err := regexp.MatchString(re, text)
	return ok && err == nil
}

func (f *follower) assign(list []*syntax.Assign) {
	for _, a := range list {
		if a.Name == nil || a.Naked {
			continue
		}
		v := word{name: a.Name.Value}
		if a.Value != nil && !a.Append && a.Index == nil {
			v = f.value(a.Value)
			v.name = cmp.Or(v.name, a.Name.Value)
		}
		f.vars[a.Name.Value] = v
	}
}

// simple is a simple command; stdin is what a pipe gives it.
func (f *follower) simple(c *syntax.CallExpr, redirs []*syntax.Redirect, stdin *word) (ends bool) {
	for _, w := range c.Args {
		f.substituted(w)
	}
	for _, a := range c.Assigns {
		if a.Value != nil {
			f.substituted(a.Value)
		}
	}
	if len(c.Args) == 0 {
		f.assign(c.Assigns)
		return false
	}
	cmd := command{stdin: stdin}
	for _, w := range c.Args {
		cmd.args = append(cmd.args, f.value(w))
	}
	for _, r := range redirs {
		switch r.Op {
		case syntax.RdrIn, syntax.RdrInOut:
			v := f.value(r.Word)
			cmd.stdin = &v
		case syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
			cmd.here = true
		}
	}
	return f.run(cmd, place(f.at, int(c.Pos().Line())+f.shift))
}

// substituted goes through the commands whose output a word takes.
func (f *follower) substituted(w *syntax.Word) {
	syntax.Walk(w, func(n syntax.Node) bool {
		if s, ok := n.(*syntax.CmdSubst); ok {
			f.stmts(s.Stmts)
			return false
		}
		return true
	})
}

// run classifies a command or follows what it calls.
func (f *follower) run(c command, at string) (ends bool) {
	does, family, file, about := c.changes()
	if about {
		f.understood = true
		if does != "" {
			f.add(does, family, file, at)
		}
		return false
	}
	c, ok := c.bare()
	if !ok || len(c.args) == 0 || !c.args[0].known {
		return false
	}
	name := c.args[0].text
	if f.functions[name] != nil {
		f.call(name, c.args[1:])
		return false
	}
	switch base := path.Base(name); base {
	case "exit":
		return true
	case ".", "source":
		if len(c.args) > 1 && c.args[1].known && path.IsAbs(c.args[1].text) {
			f.source(c.args[1].text)
		}
	case "sh", "bash", "dash", "ash", "ksh":
		f.subshell(c, at)
	case "eval":
		if len(c.args) == 2 && c.args[1].known {
			f.inline(c.args[1].text, f.at, line(at)-1)
		}
	case "run-parts":
		if folder := c.args[len(c.args)-1]; len(c.args) > 1 && folder.known {
			for _, e := range f.parts(folder.text) {
				f.program(e, nil)
			}
		}
	default:
		if path.IsAbs(name) {
			f.program(name, c.args[1:])
		}
	}
	return false
}

// subshell is "sh SCRIPT" and "sh -c TEXT".
func (f *follower) subshell(c command, at string) {
	for i := 1; i < len(c.args); i++ {
		w := c.args[i]
		switch {
		case strings.HasPrefix(w.text, "-") && strings.Contains(w.text, "c") && !strings.HasPrefix(w.text, "--"):
			if i+1 < len(c.args) && c.args[i+1].known {
				f.shell(c.args[i+1].text, file(at), line(at)-1, c.args[i+1:], nil)
			}
			return
		case strings.HasPrefix(w.text, "-"):
		case w.known && path.IsAbs(w.text):
			f.program(w.text, c.args[i+1:])
			return
		default:
			return
		}
	}
}

// call walks a function, with the arguments that it gets.
func (f *follower) call(name string, args []word) {
	d := f.functions[name]
	if d == nil || slices.Contains(f.active, name) || len(f.active) > 20 {
		return
	}
	before := f.args
	f.args = append([]word{{}}, args...)
	f.active = append(f.active, name)
	f.stmt(d.Body)
	f.active = f.active[:len(f.active)-1]
	f.args = before
}

// value is what a word comes to, as far as it is known.
func (f *follower) value(w *syntax.Word) word {
	if w == nil {
		return word{known: true}
	}
	out := word{known: true}
	for _, p := range w.Parts {
		v := f.part(p)
		out.text += v.text
		out.known = out.known && v.known
		if out.name == "" {
			out.name = v.name
		}
	}
	if !out.known || len(out.text) > maxWord {
		out.known, out.text = false, ""
	}
	return out
}

func (f *follower) part(p syntax.WordPart) word {
	switch p := p.(type) {
	case *syntax.Lit:
		return word{text: unescaped(p.Value), known: true}
	case *syntax.SglQuoted:
		return word{text: p.Value, known: !p.Dollar}
	case *syntax.DblQuoted:
		return f.value(&syntax.Word{Parts: p.Parts})
	case *syntax.ParamExp:
		return f.parameter(p)
	case *syntax.CmdSubst: // IPT=$(which iptables)
		if len(p.Stmts) == 1 {
			if c, ok := p.Stmts[0].Cmd.(*syntax.CallExpr); ok && len(c.Args) > 1 && slices.Contains([]string{"which", "command", "type"}, path.Base(c.Args[0].Lit())) {
				return f.value(c.Args[len(c.Args)-1])
			}
		}
	}
	return word{}
}

func (f *follower) parameter(p *syntax.ParamExp) word {
	if p.Param == nil {
		return word{}
	}
	name := p.Param.Value
	v, ok := f.vars[name]
	if digits(name) {
		if i := int(name[0] - '0'); len(name) == 1 && i < len(f.args) {
			v, ok = f.args[i], true
		}
	}
	v.name = name
	if p.Index != nil || p.Slice != nil || p.Repl != nil || p.Length || p.Excl || p.Width {
		return word{name: name}
	}
	if p.Exp != nil {
		switch p.Exp.Op {
		case syntax.DefaultUnset, syntax.DefaultUnsetOrNull, syntax.AssignUnset, syntax.AssignUnsetOrNull:
			if !ok {
				v = f.value(p.Exp.Word)
				v.name = name
			}
		default:
			return word{name: name}
		}
	}
	return v
}

func unescaped(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			if i++; s[i] == '\n' {
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// file and line take a place apart.
func file(at string) string { return at[:strings.LastIndexByte(at, ':')] }

func line(at string) (n int) {
	fmt.Sscan(at[strings.LastIndexByte(at, ':')+1:], &n)
	return n
}
