package cause

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/providers/trace"
)

// slack is how long after it is unpacked a package's scripts may still write
// its files.
const slack = 10 * time.Minute

// file are the causes of a file that differs.
func (m *matcher) file(c *change.FileChange) (found []Cause) {
	paths := []string{pathOf(c)}
	if c.Before.Target != "" {
		paths = append(paths, c.Before.Target)
	}
	stamp := m.Trace.Files[paths[0]]
	found = append(found, m.packages(paths, stamp)...)
	for _, cmd := range m.Trace.Commands {
		if !namesFile(cmd, paths) {
			continue
		}
		// An editor is started before it writes. A file that is gone has no time.
		if stamp.Changed.IsZero() || !cmd.Time.After(stamp.Changed.Add(time.Second)) {
			found = append(found, hand(cmd, Likely))
		}
	}
	found = append(found, m.saves(paths, stamp)...)
	if stamp.Changed.After(m.since) {
		found = append(found, managed(paths[0], c.Before.Content, stamp)...)
	}
	return found
}

func (m *matcher) packages(paths []string, stamp trace.Stamp) (found []Cause) {
	for _, p := range m.Trace.Packages {
		if !slices.Contains(paths, p.Path) {
			continue
		}
		name := strings.TrimSpace(p.Name + " " + p.Version)
		evidence := []trace.Record{p.Record}
		switch {
		case p.Delivered:
			evidence = append(evidence, trace.Record{Where: p.Path, Text: "is what the package brought, byte for byte", Time: stamp.Changed})
			found = append(found, Cause{Kind: Package, Sure: Likely, Text: fmt.Sprintf("%s wrote it anew with the package %s", p.Manager, name), Evidence: evidence})
		case !stamp.Changed.Before(p.Time.Add(-time.Minute)) && stamp.Changed.Before(p.Time.Add(slack)):
			evidence = append(evidence, trace.Record{Where: p.Path, Text: "was last changed then", Time: stamp.Changed})
			found = append(found, Cause{Kind: Package, Sure: Likely, Text: fmt.Sprintf("it changed while %s put the package %s on the host, whose file it is", p.Manager, name), Evidence: evidence})
		case stamp.Changed.IsZero():
			found = append(found, Cause{Kind: Package, Sure: Possible, Text: fmt.Sprintf("%s put the package %s on the host, whose file it is", p.Manager, name), Evidence: evidence})
		}
	}
	return found
}

// namesFile reports whether a command that can write was given the file.
func namesFile(c trace.Command, paths []string) bool {
	if c.Via == "ansible" {
		return slices.ContainsFunc(paths, func(p string) bool {
			return slices.ContainsFunc(strings.FieldsFunc(c.Line, func(r rune) bool { return r == ' ' || r == '=' || r == '\'' }), func(w string) bool { return w == p })
		})
	}
	for _, p := range programs(strings.ReplaceAll(c.Line, ">", " ")) {
		switch p[0] {
		case "cat", "less", "more", "grep", "head", "tail", "stat", "ls", "diff", "view", "md5sum", "sha256sum", "wc", "file":
			if !strings.Contains(c.Line, ">") {
				continue
			}
		case "sysctl", "modprobe":
			continue // reads it
		case "netfilter-persistent":
			if slices.Contains(p, "save") && slices.ContainsFunc(paths, func(f string) bool { return strings.HasPrefix(f, "/etc/iptables/rules.v") }) {
				return true
			}
		}
		for _, a := range p[1:] {
			if !path.IsAbs(a) {
				a = path.Join(c.Dir, a)
			}
			if slices.Contains(paths, path.Clean(a)) {
				return true
			}
		}
	}
	return false
}

// saveOn is a line of iptables-config(8) that has the service save what is live.
// It is compiled where it is needed: most runs find nothing to explain.
const saveOn = `^\s*IP6?TABLES_SAVE_ON_(STOP|RESTART)="?yes"?\s*$`

// saves is the packet filter's service where it is told to save the rules when
// it stops: then the file holds what was live.
func (m *matcher) saves(paths []string, stamp trace.Stamp) []Cause {
	name, ok := strings.CutPrefix(paths[0], "/etc/sysconfig/")
	if !ok || name != "iptables" && name != "ip6tables" || !stamp.Changed.After(m.since) {
		return nil
	}
	for _, f := range m.Live.InitConfigs {
		if f.Path != paths[0]+"-config" {
			continue
		}
		n, on := 0, regexp.MustCompile(saveOn)
		for line := range strings.Lines(f.Content) {
			n++
			if !on.MatchString(line) {
				continue
			}
			where := fmt.Sprintf("%s:%d", f.Path, n)
			sure := Possible
			happened := m.happened(name)
			if len(happened) > 0 {
				sure = Likely
			}
			return []Cause{{
				Kind: Service, Sure: sure, Text: fmt.Sprintf("the service %s saves the live rules when it stops", name),
				Evidence: append([]trace.Record{{Where: where, Text: strings.TrimSpace(line), Time: stamp.Changed}}, records(happened)...),
			}}
		}
	}
	return nil
}

const manager = `(?i)\b(ansible|puppet|chef|salt|cfengine)\b.{0,20}\bmanaged\b|\bmanaged (?:by|with) (ansible|puppet|chef|salt|saltstack|cfengine|cloud-init)\b|\bmanaged by \S*(terraform)\b`

// managed is a program that says in the file that it writes it.
func managed(file, content string, stamp trace.Stamp) []Cause {
	n, says := 0, regexp.MustCompile(manager)
	for line := range strings.Lines(content) {
		n++
		if n > 50 || !strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		groups := says.FindStringSubmatch(line)
		if groups == nil {
			continue
		}
		name := groups[1] + groups[2] + groups[3]
		return []Cause{{
			Kind: Writer, Sure: Likely, Text: fmt.Sprintf("%s manages the file, as it says itself, and it changed since the last apply", name),
			Evidence: []trace.Record{{Where: fmt.Sprintf("%s:%d", file, n), Text: strings.TrimSpace(line), Time: stamp.Changed}},
		}}
	}
	return nil
}
