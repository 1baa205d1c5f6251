package planner

import (
	"fmt"
	"slices"
	"strings"
)

// The words of NF_MODULES_COMMON that stand for connection tracking, in the
// order in which the vendor writes them.
var arrayWords = []string{"nf_nat", "nf_conntrack"}

// sysctlLoadWord has the init script set our keys again after a restart,
// which resets them when it reloads the module.
const sysctlLoadWord = ".nf_conntrack"

func (p *stageService) initScripts(whole bool) {
	for _, s := range p.l.InitScripts {
		switch {
		case s.Refusal != "":
			p.Block(Block{
				Risk:     RiskInitScript,
				Address:  "initscript." + s.Path,
				Where:    fmt.Sprintf("%s:%d", s.Path, s.RefusalLine),
				Why:      "NF_MODULES_COMMON cannot be edited safely: " + s.Refusal,
				Remedy:   `write it as one static array, NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack), or allow_risk = ["init_script"] to leave the script as it is`,
				Override: true,
				Source:   p.d.ModeSource,
			})
		case s.Array == nil:
		case whole:
			w := p.files.File(s.File, "initscript.")
			addWords(w, s.Array, arrayWords)
			w.Because("a restart must unload nf_conntrack, or it keeps its old hash size", p.d.ModeSource)
		default:
			w := p.files.File(s.File, "initscript.")
			dropWords(w, s.Array, IsConntrackModule)
			w.Because("the script shall not deal with connection tracking", p.d.ModeSource)
		}
	}
	for _, c := range p.l.InitConfigs {
		if c.Refusal != "" {
			p.Block(Block{
				Risk:     RiskInitScript,
				Address:  "file." + c.Path,
				Where:    fmt.Sprintf("%s:%d", c.Path, c.RefusalLine),
				Why:      "the list of modules cannot be edited safely: " + c.Refusal,
				Remedy:   `write it as one plain string, or allow_risk = ["init_script"] to leave the file as it is`,
				Override: true,
				Source:   p.d.ModeSource,
			})
			continue
		}
		if !c.Exists {
			continue
		}
		w := p.files.File(c.File, "file.")
		p.keepLoaded(w, &c, whole)
		switch {
		case !whole && c.Modules != nil:
			dropWords(w, c.Modules, IsConntrackModule)
			w.Because("a start of the firewall would load these helpers", p.d.ModeSource)
		case whole && p.resetsForGood():
			// No script reads the list: checkReload warns.
		case whole && c.SysctlLoad == nil:
			w.AppendLine(c.SysctlLoadName + `="` + sysctlLoadWord + `"`)
			w.Because("a restart resets nf_conntrack_max unless the script sets it again", p.d.ModeSource)
		case whole && !slices.ContainsFunc(c.SysctlLoad.Words, func(w Word) bool { return strings.Contains(w.Text, "nf_conntrack") }):
			addWords(w, c.SysctlLoad, []string{sysctlLoadWord})
			w.Because("a restart resets nf_conntrack_max unless the script sets it again", p.d.ModeSource)
		}
	}
}

// resetsForGood reports whether every init script does.
func (p *stageService) resetsForGood() bool {
	return len(p.l.InitScripts) > 0 && !slices.ContainsFunc(p.l.InitScripts, func(s InitScript) bool { return !resetsForGood(&s) })
}

// keepLoaded has the service load nf_conntrack behind rules none of which
// does: its stop unloads the module, and without it the table is gone and
// every sysctl of it fails.
func (p *stageService) keepLoaded(w *FileEdit, c *InitConfig, whole bool) {
	tracking := func(w Word) bool { return IsConntrackModule(w.Text) }
	if !whole || p.rulesTrack() || c.Modules != nil && slices.ContainsFunc(c.Modules.Words, tracking) {
		return
	}
	if c.Modules == nil {
		w.AppendLine(c.ModulesName + `="nf_conntrack"`)
	} else {
		addWords(w, c.Modules, []string{"nf_conntrack"})
	}
	w.Because("a stop of the service unloads nf_conntrack, and no rule loads it again", p.d.ModeSource)
}

// rulesTrack reports whether a saved rule, or a live one, needs connection
// tracking, and so loads it.
func (p *stageService) rulesTrack() bool {
	for _, rulesets := range [][]Ruleset{p.l.SavedRules, p.l.Rulesets} {
		for i := range rulesets {
			for j := range rulesets[i].Tables {
				if firstNeedy(&rulesets[i].Tables[j]) != nil {
					return true
				}
			}
		}
	}
	return false
}

// dropWords takes words out of a list with the blanks that set them off.
func dropWords(w *FileEdit, list *WordList, drop func(string) bool) {
	text := w.Content()
	kept := false
	for _, word := range list.Words {
		if !drop(word.Text) {
			kept = true
			continue
		}
		s := word.Span
		if kept {
			for s.Start > list.Inner.Start && isBlank(text[s.Start-1]) {
				s.Start--
			}
		} else {
			for s.End < list.Inner.End && isBlank(text[s.End]) {
				s.End++
			}
		}
		w.Replace(s, "")
	}
}

func isBlank(b byte) bool { return b == ' ' || b == '\t' }

// addWords puts missing words into a list: before the first of those that
// follow it in the vendor's order, or last.
func addWords(w *FileEdit, list *WordList, words []string) {
	has := func(name string) int {
		return slices.IndexFunc(list.Words, func(w Word) bool { return w.Text == name })
	}
	var tail []string
	for i, name := range words {
		if has(name) >= 0 {
			continue
		}
		next := -1
		for _, follower := range words[i+1:] {
			if next = has(follower); next >= 0 {
				break
			}
		}
		if next >= 0 {
			w.Insert(list.Words[next].Span.Start, name+" ")
			continue
		}
		tail = append(tail, name)
	}
	if len(tail) == 0 {
		return
	}
	add := strings.Join(tail, " ")
	quote := ""
	if !isEnclosed(list, w.Content()) {
		quote = `"` // a bare word cannot be followed by another
	}
	w.Insert(list.Inner.Start, quote)
	if n := len(list.Words); n > 0 {
		w.Insert(list.Words[n-1].Span.End, " "+add+quote)
		return
	}
	w.Insert(list.Inner.Start, add+quote)
}

// isEnclosed reports whether the list stands between parentheses or quotes.
func isEnclosed(l *WordList, content string) bool {
	return l.Inner.Start > 0 && strings.IndexByte(`("'`, content[l.Inner.Start-1]) >= 0
}
