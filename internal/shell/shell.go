// Package shell writes a plan as a shell script, for hosts and change boards that
// want no new program: with its checks, its order, and the way back.
//
// It owns the script. What is changed, in which order, is the planner's, and the
// rules' text is that of providers/iptables, as apply loads it. It decides
// nothing, and refuses what a script cannot do as safely.
//
// It promises that no value of a host or configuration is read by the shell as
// anything but itself, that the script needs no more than a POSIX shell and the
// host's own tools, and that it writes down that a step begins before it begins:
// from wherever it was cut off, its undo brings back what stood.
package shell

import (
	"crypto/sha256"
	_ "embed" // what every script ends with
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
	"github.com/ctplan/ctplan/providers/iptables"
)

//go:embed plan.sh
var runtime string

// Refusal is why a plan cannot be a script.
type Refusal struct{ Why string }

func (r *Refusal) Error() string { return "this plan cannot be a shell script: " + r.Why }

// Write writes the plan as a script. An error of type *Refusal says why that
// would not be safe. summary is one line for people.
func Write(w io.Writer, p planner.Plan, l host.Live, version, summary string) error {
	switch {
	case p.Blocked():
		return &Refusal{"it is blocked"}
	case p.Empty():
		return &Refusal{"there is nothing to change"}
	}
	s := script{live: l}
	for i, step := range planner.Steps(p) {
		if err := s.step(i+1, step); err != nil {
			return err
		}
	}
	sum := sha256.Sum256([]byte(s.b.String()))
	var head strings.Builder
	head.WriteString("#!/bin/sh\n# shellcheck disable=SC1003,SC2016,SC2034,SC2317,SC2329 # texts are themselves, and what follows is used by name\n")
	for _, line := range []string{
		"The plan of ctplan " + version + " for host " + p.Host.Name + ": " + summary,
		"",
		"  sh FILE check      is the host what the plan was made for? changes nothing",
		"  sh FILE apply      carry it out; what fails is taken back",
		"  sh FILE apply --confirm-within 60, sh FILE confirm",
		"                     carry it out; take it back unless confirm comes in time",
		"  sh FILE undo       the way back, from wherever apply has come to",
		"",
		"It holds rules and files of the host: keep it as you keep those. It does not",
		"judge the connections that are open when it runs; ctplan show does for those",
		"that were open when the plan was made.",
	} {
		head.WriteString(strings.TrimRight("# "+clean(line), " ") + "\n")
	}
	if p.Impact != nil && len(p.Impact.Leaving) > 0 {
		head.WriteString("# Connections that leave tracking are not made to find back into it, as ctplan\n# apply does: the way back may break those that are as old as the change.\n")
	}
	fmt.Fprintf(&head, "set -u\nhost=%s\nplan=%s\nsteps=%d\nfiles=%s\nrules=%s\n", Quote(p.Host.Name), hex.EncodeToString(sum[:8]), s.steps, Quote(strings.Join(s.files, " ")), Quote(strings.Join(s.rules, " ")))
	_, err := io.WriteString(w, head.String()+s.b.String()+runtime)
	return err
}

// clean is text for a comment: no line break, nothing that a terminal obeys.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// Quote writes a text as one word of a shell, whatever it holds but zero bytes.
func Quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// script collects the steps' functions.
type script struct {
	b            strings.Builder
	live         host.Live
	steps        int
	files, rules []string // numbers of steps
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.b, format, args...) }

// prints writes a function that prints a text.
func (s *script) prints(name, text string) error {
	if strings.Contains(text, "\x00") {
		return &Refusal{"a file in it has a zero byte, which no shell can hold"}
	}
	s.printf("%s() { printf %%s %s; }\n", name, Quote(text))
	return nil
}

func (s *script) step(n int, step change.Step) error {
	s.steps = n
	s.printf("\n")
	if err := s.prints(fmt.Sprintf("name_%d", n), clean(strings.Join(step.Addresses, ", "))); err != nil {
		return err
	}
	three := func(check, do, undo string) {
		s.printf("check_%d() { %s; }\ndo_%d() { %s; }\nundo_%d() { %s; }\n", n, check, n, do, n, undo)
	}
	switch {
	case step.Rules != nil:
		return s.rulesStep(n, step.Rules)
	case step.File != nil:
		return s.fileStep(n, step.File)
	case step.Sysctl != nil:
		path := Quote("/proc/sys/" + strings.ReplaceAll(step.Sysctl.Key, ".", "/"))
		before, after := Quote(step.Sysctl.Before), Quote(step.Sysctl.After)
		three("value_is "+path+" "+before, "put_value "+path+" "+after, "back_value "+path+" "+before)
	case step.Hashsize != nil:
		const path = "/sys/module/nf_conntrack/parameters/hashsize"
		three(fmt.Sprintf("value_is %s %d", path, step.Hashsize.Before), fmt.Sprintf("put_value %s %d", path, step.Hashsize.After), fmt.Sprintf("back_value %s %d", path, step.Hashsize.Before))
	case step.Module != nil:
		m := Quote(step.Module.Module)
		if step.Module.Load {
			three("! loaded "+m, "load "+m, "unload "+m)
		} else {
			three("loaded "+m, "unload "+m, "load "+m)
		}
	case step.NFT != nil:
		return &Refusal{"it changes nftables, by a transaction that nft has no words for: use ctplan apply"}
	default:
		return &Refusal{"it restarts a service, whose rules a script cannot watch: use ctplan apply, or leave out reload"}
	}
	return nil
}

func (s *script) fileStep(n int, f *change.FileStep) error {
	s.files = append(s.files, fmt.Sprint(n))
	at := f.Before.Path
	if f.Before.Target != "" {
		at = f.Before.Target
	}
	contents := [2]string{"none", "none"}
	for i, c := range []host.File{f.Before, f.After} {
		if !c.Exists {
			continue
		}
		contents[i] = fmt.Sprintf("%s_%d", []string{"before", "after"}[i], n)
		if err := s.prints(contents[i], c.Content); err != nil {
			return err
		}
	}
	about := f.Before
	if !about.Exists {
		about = f.After
	}
	meta := fmt.Sprintf("%s %04o %d:%d", Quote(at), about.Mode, about.UID, about.GID)
	s.printf("check_%d() { file_is %s %s; }\ndo_%d() { put_file %s %s; }\nundo_%d() { back_file %s %s %s; }\n", n, contents[0], Quote(at), n, contents[1], meta, n, contents[0], contents[1], meta)
	return nil
}

func (s *script) rulesStep(n int, r *change.RulesStep) error {
	s.rules = append(s.rules, fmt.Sprint(n))
	i := slices.IndexFunc(s.live.Rulesets, func(l host.Ruleset) bool { return l.Family == r.Family && l.Backend == r.Backend && l.File == nil })
	if i < 0 {
		return errors.New("writing the plan as a script: the snapshot has not the rules that it changes")
	}
	var tables []string
	models := map[string]*xtables.TableModel{}
	var before strings.Builder
	var loads, tests []string // what restore is given, in turn
	for _, sec := range r.Sections {
		m := models[sec.Table]
		if m == nil {
			m = xtables.Model(s.live.Rulesets[i], sec.Table)
			tables, models[sec.Table] = append(tables, sec.Table), m
			before.WriteString(restored(sec.Table, m.Lines()))
		}
		m.Apply(sec.Ops...)
		loads = append(loads, restored(sec.Table, m.Lines()))
	}
	lines := 0
	for _, m := range models {
		lines += 1 + len(standing(m.Lines()))
	}
	// As Commit loads them through this release: whole tables, each by itself, or
	// all sections.
	flags := ""
	if tests = loads; !iptables.WritesWhole(r.Backend, s.live.Rulesets[i].Version, r.Sections) {
		load, err := iptables.Script(r.Sections)
		if err != nil {
			return err
		}
		test, err := iptables.Script(iptables.TestSections(r.Sections))
		if err != nil {
			return err
		}
		loads, tests, flags = []string{load}, []string{test}, " --noflush"
	}
	if err := s.prints(fmt.Sprintf("before_%d", n), before.String()); err != nil {
		return err
	}
	family := "iptables"
	if r.Family == host.IPv6 {
		family = "ip6tables"
	}
	where := fmt.Sprintf("%s %s", r.Backend, family)
	all := where
	for _, t := range tables {
		all += " " + Quote(t)
	}
	err := errors.Join(s.restores(fmt.Sprintf("test_%d", n), where+flags+" --test", tests), s.restores(fmt.Sprintf("load_%d", n), where+flags, loads))
	if err != nil {
		return err
	}
	s.printf("check_%d() { rules_are before_%d %s; }\ndo_%d() { change_rules %d %d %s; }\nundo_%d() { back_rules %d %s; }\n", n, n, all, n, n, lines, all, n, n, all)
	return nil
}

// restores writes a function that gives texts to iptables-restore in turn, until
// one is refused.
func (s *script) restores(name, arguments string, texts []string) error {
	var calls []string
	for i, text := range texts {
		part := fmt.Sprintf("%s_%d", name, i+1)
		if err := s.prints(part, text); err != nil {
			return err
		}
		calls = append(calls, part+" | restore "+arguments)
	}
	s.printf("%s() { %s; }\n", name, strings.Join(calls, " && "))
	return nil
}

// builtin are the chains of the tables that may not be there yet.
var builtin = map[string][]string{
	"filter": {"INPUT", "FORWARD", "OUTPUT"}, "raw": {"PREROUTING", "OUTPUT"}, "nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, "security": {"INPUT", "FORWARD", "OUTPUT"},
}

// restored is a table as iptables-restore takes it, whole.
func restored(name string, lines []string) string {
	if len(lines) == 0 {
		for _, c := range builtin[name] {
			lines = append(lines, ":"+c+" ACCEPT")
		}
	}
	var b strings.Builder
	b.WriteString("*" + name + "\n")
	for _, l := range lines {
		if strings.HasPrefix(l, ":") {
			l += " [0:0]"
		}
		b.WriteString(l + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// standing are a table's lines; none of one that holds nothing and lets
// everything pass.
func standing(lines []string) []string {
	if !slices.ContainsFunc(lines, func(l string) bool { return !strings.HasPrefix(l, ":") || !strings.HasSuffix(l, " ACCEPT") }) {
		return nil
	}
	return lines
}
