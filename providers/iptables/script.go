package iptables

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Script renders sections as the input of iptables-restore --noflush: the one
// text that a plan shows, --test checks and a commit loads. Rules are deleted
// by what they say, not by number, so that a writer who comes in between can
// make the commit fail but never make it delete another rule; rules that
// iptables does not know again by what it prints of them are the exception.
// Text that would end a line, or make one too long to read, is an error.
func Script(sections []change.Section) (string, error) {
	var s script
	for _, sec := range sections {
		s.line("*", sec.Table, "")
		for _, op := range sec.Ops {
			s.op(op)
		}
		s.b.WriteString("COMMIT\n")
	}
	if s.err != nil {
		return "", s.err
	}
	return s.b.String(), nil
}

// WholeTables renders tables as the input of iptables-restore that makes them
// what they were when iptables-save printed them. Counters start anew.
func WholeTables(tables []xtables.TableLines) (string, error) {
	var s script
	for _, t := range tables {
		s.line("*", t.Name, "")
		for _, l := range t.Lines {
			switch verb, rest, _ := strings.Cut(l, " "); {
			case strings.HasPrefix(l, ":"):
				s.line(":", verb[1:], " "+rest+" [0:0]")
			case verb == "-A":
				chain, rule, _ := strings.Cut(rest, " ")
				s.line("-A ", chain, " "+rule)
			default:
				s.fail("%q of table %q is neither a chain nor a rule", l, t.Name)
			}
		}
		s.b.WriteString("COMMIT\n")
	}
	if s.err != nil {
		return "", s.err
	}
	return s.b.String(), nil
}

// TestSections regroups sections so that iptables-restore --test can check
// them: one section a table. The legacy backend tests each section against the
// kernel as it is, without the sections before it, so that a jump to a chain
// of an earlier section of the same table would be refused. Operations on
// different tables do not depend on each other.
func TestSections(sections []change.Section) []change.Section {
	var merged []change.Section
	at := map[string]int{}
	for _, sec := range sections {
		i, ok := at[sec.Table]
		if !ok {
			i = len(merged)
			at[sec.Table] = i
			merged = append(merged, change.Section{Table: sec.Table})
		}
		merged[i].Ops = append(merged[i].Ops, sec.Ops...)
	}
	return merged
}

// script collects lines and the first error.
type script struct {
	b   strings.Builder
	err error
}

func (s *script) op(op change.RuleOp) {
	switch op.Kind {
	case change.SetChain:
		// Not ":CHAIN - [0:0]", which iptables-nft 1.8.4 does not understand here.
		if op.Existed {
			s.line("-F ", op.Chain, "")
		} else {
			s.line("-N ", op.Chain, "")
		}
		for _, r := range op.Rules {
			s.line("-A ", op.Chain, " "+r)
		}
	case change.DropChain:
		s.line("-F ", op.Chain, "")
		s.line("-X ", op.Chain, "")
	case change.InsertRule:
		s.line("-I ", op.Chain, " "+strconv.Itoa(op.Pos)+" "+op.Rule)
	case change.DeleteRule:
		what := op.Rule
		if op.Pos > 0 && isAmbiguous(op.Rule) {
			what = strconv.Itoa(op.Pos)
		}
		s.line("-D ", op.Chain, " "+what)
	default:
		s.fail("unknown operation %q", op.Kind)
	}
}

// isAmbiguous reports whether two different rules print as this one. Without
// an option, recent and connlimit of IPv4 have a mask of 128 bits in the kernel,
// which prints as the one of 32 bits does (measured: 1.8.9, both backends); -D
// finds the latter alone.
func isAmbiguous(rule string) bool {
	return strings.Contains(rule, "-m recent ") && strings.Contains(rule, "--mask 255.255.255.255 ") ||
		strings.Contains(rule, "-m connlimit ") && strings.Contains(rule, "--connlimit-mask 32 ")
}

// line writes one line: what it does, the table or chain, and the rest.
func (s *script) line(verb, name, rest string) {
	switch {
	case name == "" || strings.ContainsAny(name, " \t\"\n\r\x00"):
		s.fail("%q cannot name a table or chain", name)
	case strings.ContainsAny(rest, "\n\r\x00"):
		s.fail("a line break or zero byte in %q", rest)
	case len(verb)+len(name)+len(rest)+1 > maxLine:
		s.fail("a rule of %s is longer than the %d bytes that it reads", name, maxLine)
	}
	s.b.WriteString(verb)
	s.b.WriteString(name)
	s.b.WriteString(rest)
	s.b.WriteByte('\n')
}

func (s *script) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("rendering the input of iptables-restore: "+format, args...)
	}
}
