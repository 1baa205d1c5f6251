package initscript

import (
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// use is a place in a script that assigns a variable, or might. why says
// what makes the list impossible to edit there; where it is empty, node is a
// plain *syntax.Assign that always runs.
type use struct {
	node syntax.Node
	why  string
}

// in returns where text names the variable, as a whole identifier, or -1.
func (v variable) in(text string) int {
	for from := 0; ; {
		i := strings.Index(text[from:], v.name)
		if i < 0 {
			return -1
		}
		i += from
		end := i + len(v.name)
		if (i == 0 || !identifier(text[i-1])) && (end == len(text) || !identifier(text[end])) {
			return i
		}
		from = end
	}
}

func identifier(c byte) bool {
	return c == '_' || c-'0' < 10 || c|0x20-'a' < 26
}

// uses lists, in order, every place that assigns the variable or might. Plain
// reads are no uses. What is neither surely a read nor surely text to print
// counts as a possible assignment: unset, read, mapfile, printf -v, eval,
// namerefs and arithmetic all name the variable in an ordinary word.
func (v variable) uses(script *syntax.File) []use {
	always := map[*syntax.Assign]bool{}
	for _, stmt := range script.Stmts {
		plain(stmt, always)
	}
	var uses []use
	add := func(n syntax.Node, why string) { uses = append(uses, use{n, why}) }
	var visit func(syntax.Node) bool
	visit = func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Comment:
			return false
		case *syntax.CallExpr:
			if prints(n) {
				for _, a := range n.Args[1:] { // still, $(...) or ${x:=...} may stand in there
					for _, part := range a.Parts {
						walkPrinted(part, visit)
					}
				}
				return false
			}
		case *syntax.ParamExp:
			if n.Param == nil || n.Param.Value != v.name {
				return true
			}
			if n.Exp != nil && (n.Exp.Op == syntax.AssignUnset || n.Exp.Op == syntax.AssignUnsetOrNull) {
				add(n, "is assigned by an expansion")
			}
			if !n.Dollar.IsValid() { // NAME[0] in arithmetic, which can assign
				add(n, "is named where it may be changed")
			}
			for _, inner := range inside(n) {
				syntax.Walk(inner, visit)
			}
			return false
		case *syntax.Assign:
			if n.Name == nil || n.Name.Value != v.name {
				return true
			}
			switch {
			case n.Append:
				add(n, "is appended to")
			case n.Index != nil:
				add(n, "has an element assigned by index")
			case n.Naked:
				add(n, "is declared without a value")
			case !always[n]:
				add(n, "is assigned inside a function, a condition or another command")
			default:
				add(n, "")
			}
			if n.Value != nil {
				syntax.Walk(n.Value, visit)
			}
			if n.Array != nil {
				syntax.Walk(n.Array, visit)
			}
			return false
		case *syntax.Lit:
			if v.in(n.Value) >= 0 {
				add(n, "is named where it may be changed")
			}
		case *syntax.SglQuoted:
			if v.in(n.Value) >= 0 {
				add(n, "is named where it may be changed")
			}
		}
		return true
	}
	syntax.Walk(script, visit)
	return uses
}

// walkPrinted walks a part of a word that is printed: its literal text can
// name the variable without harm.
func walkPrinted(part syntax.WordPart, visit func(syntax.Node) bool) {
	switch p := part.(type) {
	case *syntax.Lit, *syntax.SglQuoted:
	case *syntax.DblQuoted:
		for _, inner := range p.Parts {
			walkPrinted(inner, visit)
		}
	default:
		syntax.Walk(p, visit)
	}
}

// inside lists what stands in an expansion besides the variable's name.
func inside(p *syntax.ParamExp) []syntax.Node {
	var nodes []syntax.Node
	if p.Index != nil {
		nodes = append(nodes, p.Index)
	}
	if p.Slice != nil {
		if p.Slice.Offset != nil {
			nodes = append(nodes, p.Slice.Offset)
		}
		if p.Slice.Length != nil {
			nodes = append(nodes, p.Slice.Length)
		}
	}
	if p.Repl != nil {
		if p.Repl.Orig != nil {
			nodes = append(nodes, p.Repl.Orig)
		}
		if p.Repl.With != nil {
			nodes = append(nodes, p.Repl.With)
		}
	}
	if p.Exp != nil && p.Exp.Word != nil {
		nodes = append(nodes, p.Exp.Word)
	}
	return nodes
}

// prints reports whether a command does nothing with its words but print
// them. It takes no redirection to be harmless: those are not words.
func prints(c *syntax.CallExpr) bool {
	return len(c.Args) > 0 && len(c.Assigns) == 0 && c.Args[0].Lit() == "echo"
}

// plain collects the assignments of a statement of the script's top level
// that run whenever the script does: NAME=value alone, or with declare -a.
func plain(s *syntax.Stmt, into map[*syntax.Assign]bool) {
	if s.Negated || s.Background || s.Coprocess || s.Disown || len(s.Redirs) > 0 {
		return
	}
	switch c := s.Cmd.(type) {
	case *syntax.CallExpr:
		if len(c.Args) == 0 {
			for _, a := range c.Assigns {
				into[a] = true
			}
		}
	case *syntax.DeclClause:
		if c.Variant.Value != "declare" && c.Variant.Value != "typeset" {
			return
		}
		for _, a := range c.Args {
			if a.Naked && (a.Name != nil || a.Value == nil || a.Value.Lit() != "-a") {
				return
			}
		}
		for _, a := range c.Args {
			if !a.Naked {
				into[a] = true
			}
		}
	}
}
