package apply

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// manual returns the shell commands that do by hand what a rollback could not,
// for an operator to copy. What they need goes into files in dir, so that no
// text of others reaches the operator's shell or terminal.
func (h *Host) manual(ctx context.Context, u undo, dir string, index int) []string {
	name := func(what string) string {
		return filepath.Join(dir, fmt.Sprintf("%02d-%s", index, what))
	}
	s := u.Step
	switch {
	case s.Rules != nil:
		back := inverse(s.Rules, len(s.Rules.Sections))
		if live, err := h.Rules.Save(ctx, s.Rules.Family, s.Rules.Backend); err == nil {
			if came := progressOf(live, u); came >= 0 {
				back = inverse(s.Rules, came)
			} else {
				back = mend(live, back)
			}
		}
		script, flags, err := h.byHand(ctx, s.Rules, back)
		if err != nil || script == "" {
			return nil
		}
		path, err := keep(name("rules"), script)
		if err != nil {
			return []string{"# " + err.Error()}
		}
		return []string{strings.Join(slices.Concat([]string{restoreCommand(s.Rules)}, flags, []string{"<", quote(path)}), " ")}
	case s.NFT != nil:
		return manualNative(s.NFT)
	case s.File != nil && !s.File.Before.Exists:
		return []string{"rm -f -- " + quote(s.File.Before.Path)}
	case s.File != nil:
		f := s.File.Before
		path, err := keep(name("file"), f.Content)
		if err != nil {
			return []string{"# " + err.Error()}
		}
		return []string{
			fmt.Sprintf("cp -- %s %s", quote(path), quote(f.Path)),
			fmt.Sprintf("chown %d:%d -- %s && chmod %04o -- %[3]s", f.UID, f.GID, quote(f.Path), f.Mode),
		}
	case s.Sysctl != nil:
		return []string{"sysctl -w " + quote(s.Sysctl.Key+"="+s.Sysctl.Before)}
	case s.Hashsize != nil:
		return []string{fmt.Sprintf("echo %d > /sys/module/nf_conntrack/parameters/hashsize", s.Hashsize.Before)}
	case s.Module != nil && s.Module.Load:
		return []string{"rmmod " + quote(s.Module.Module)}
	case s.Module != nil:
		return append([]string{"modprobe " + quote(s.Module.Module)}, values(u.Before.Module)...)
	case s.Service != nil:
		var commands []string
		for _, words := range s.Service.Commands {
			var line []string
			for _, w := range words {
				line = append(line, quote(w))
			}
			commands = append(commands, strings.Join(line, " "))
		}
		return append(commands, values(u.Before.Module)...)
	}
	return nil
}

// byHand is what loads sections, and with which flags of this host's restore.
func (h *Host) byHand(ctx context.Context, s *change.RulesStep, back []change.Section) (script string, flags []string, err error) {
	if r, ok := h.Rules.(systemRules); ok {
		if script, flags, err = r.ByHand(ctx, s.Family, s.Backend, back); err == nil {
			return script, flags, nil
		}
	}
	script, err = iptables.Script(back)
	return script, []string{"--noflush"}, err
}

// values are the commands that set what a module had.
func values(b *journal.ModuleBefore) []string {
	if b == nil {
		return nil
	}
	var commands []string
	if b.Hashsize > 0 {
		commands = append(commands, fmt.Sprintf("echo %d > /sys/module/nf_conntrack/parameters/hashsize", b.Hashsize))
	}
	for _, key := range slices.Sorted(maps.Keys(b.Sysctls)) {
		commands = append(commands, "sysctl -e -w "+quote(key+"="+b.Sysctls[key]))
	}
	return commands
}

// keep writes what a command needs.
func keep(path, content string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("what to put back could not be written out: %w", err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return "", fmt.Errorf("what to put back could not be written out: %w", err)
	}
	return path, nil
}

// restoreCommand is the restore of a family that speaks to the backend.
func restoreCommand(s *change.RulesStep) string {
	name := "iptables"
	if s.Family == host.IPv6 {
		name = "ip6tables"
	}
	if exact := fmt.Sprintf("%s-%s-restore", name, s.Backend); exists(exact) {
		return exact
	}
	return name + "-restore"
}

// quote makes text one word of a POSIX shell, and fit for a terminal: control
// characters are written in printf's octal.
func quote(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		var b strings.Builder
		b.WriteString("\"$(printf '")
		for i := range len(s) {
			switch c := s[i]; {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("/._", c) >= 0:
				b.WriteByte(c)
			default:
				fmt.Fprintf(&b, "\\%03o", c)
			}
		}
		return b.String() + "')\""
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-=:,+@%", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
