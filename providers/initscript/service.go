package initscript

import (
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// behaviour reads what else matters of a script: whether it unloads modules,
// whether stop flushes before it sets policies, and where start looks for
// sysctls. Of a script that does not parse nothing is known.
func behaviour(s *host.InitScript) {
	if strings.ContainsAny(s.Content, "\x00\r") {
		return
	}
	script, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(s.Content), "")
	if err != nil {
		return
	}
	w := walker{functions: map[string]*syntax.FuncDecl{}, entered: map[string]bool{}}
	var from []string
	syntax.Walk(script, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.FuncDecl:
			if n.Name != nil { // the parser takes functions without
				w.functions[n.Name.Value] = n
			}
		case *syntax.CallExpr:
			s.Unloads = s.Unloads || unloads(n)
		case *syntax.Lit:
			for _, place := range []string{etc.DefaultSysctlFile, etc.SysctlFolder} {
				rest, ok := strings.CutPrefix(n.Value, place)
				if ok && (rest == "" || rest[0] == '/') && !slices.Contains(from, place) {
					from = append(from, place)
				}
			}
		}
		return true
	})
	if strings.Contains(s.Content, "TABLES_SYSCTL_LOAD_LIST") {
		s.SysctlFrom = from
	}
	w.enter("stop")
	s.FlushesFirst = w.first == "-F"
}

func unloads(c *syntax.CallExpr) bool {
	if len(c.Args) == 0 {
		return false
	}
	switch name := c.Args[0].Lit(); name[strings.LastIndexByte(name, '/')+1:] {
	case "rmmod":
		return true
	case "modprobe":
		return slices.ContainsFunc(c.Args[1:], func(w *syntax.Word) bool {
			return w.Lit() == "-r" || w.Lit() == "--remove"
		})
	}
	return false
}

// walker follows a script's functions to the first command that flushes rules
// or sets a policy.
type walker struct {
	functions map[string]*syntax.FuncDecl
	entered   map[string]bool // what a function does first, it does at its first call
	first     string          // -F or -P
}

func (w *walker) enter(name string) {
	f := w.functions[name]
	if f == nil || w.entered[name] {
		return
	}
	w.entered[name] = true
	syntax.Walk(f.Body, func(n syntax.Node) bool {
		if w.first != "" {
			return false
		}
		switch n := n.(type) {
		case *syntax.FuncDecl:
			return false
		case *syntax.CallExpr:
			w.call(n)
		}
		return true
	})
}

func (w *walker) call(c *syntax.CallExpr) {
	if len(c.Args) == 0 {
		return
	}
	name := c.Args[0].Lit()
	if w.functions[name] != nil {
		w.enter(name)
		return
	}
	// iptables goes by its name, or by a variable that holds it.
	if name != "" && !strings.Contains(name, "tables") {
		return
	}
	for _, a := range c.Args[1:] {
		switch a.Lit() {
		case "-F", "--flush":
			w.first = "-F"
			return
		case "-P", "--policy":
			w.first = "-P"
			return
		}
	}
}
