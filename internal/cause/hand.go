package cause

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/trace"
)

// longest is how much of a command line a cause quotes, in bytes.
const longest = 300

// hand is somebody who ran a command.
func hand(c trace.Command, sure Certainty) Cause {
	var text string
	line := c.Line
	if len(line) > longest {
		line = line[:longest] + "…"
	}
	switch c.Via {
	case "cron":
		text = "a cron job of root ran " + line
	case "ansible":
		text = "Ansible ran " + line
	case "ssh":
		text = "somebody logged in as root from " + c.User
	case "su":
		text = c.User + " became root with su"
	default:
		text = fmt.Sprintf("%s ran %s with %s", c.User, line, c.Via)
	}
	return Cause{Kind: Hand, Sure: sure, Text: text, Evidence: []trace.Record{c.Record}}
}

// shells are people who had a shell as root, whose commands no log holds.
func (m *matcher) shells(c change.Change) (found []Cause) {
	f, isFile := c.(*change.FileChange)
	for _, cmd := range slices.Backward(m.Trace.Commands) {
		if !isShell(cmd) {
			continue
		}
		if isFile && cmd.Time.After(m.Trace.Files[pathOf(f)].Changed) {
			continue
		}
		return []Cause{hand(cmd, Possible)}
	}
	return nil
}

func isShell(c trace.Command) bool {
	if c.Via == "su" || c.Via == "ssh" {
		return true
	}
	words := strings.Fields(c.Line)
	if c.Via == "cron" || c.Via == "ansible" || len(words) == 0 {
		return false
	}
	switch path.Base(words[0]) {
	case "bash", "sh", "dash", "zsh", "fish", "ksh", "su", "tmux", "screen":
		return !slices.Contains(words, "-c")
	}
	return false
}

// programs are the programs that a line of shell runs, as their base names
// with their arguments: what stands first, and behind ";", "|", "&&", "sh -c".
func programs(line string) (all [][]string) {
	line = strings.NewReplacer("'", " ", `"`, " ", ";", " ; ", "|", " | ", "&&", " ; ", "(", " ", ")", " ").Replace(line)
	var words []string
	flush := func() {
		// A wrapper's own words are not the program's.
		for len(words) > 0 {
			w := path.Base(words[0])
			wraps := w == "env" || w == "nohup" || w == "nice" || w == "time" || w == "exec" || w == "sudo" || (w == "sh" || w == "bash" || w == "dash")
			if !wraps && !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") {
				break
			}
			words = words[1:]
		}
		if len(words) > 0 {
			words[0] = path.Base(words[0])
			all = append(all, words)
		}
		words = nil
	}
	for _, w := range strings.Fields(line) {
		if w == ";" || w == "|" {
			flush()
			continue
		}
		words = append(words, w)
	}
	flush()
	return all
}

// writesRules reports whether a command line can have changed these chains of a
// table.
func writesRules(line string, family host.Family, table string, chains map[string]bool) bool {
	for _, p := range programs(line) {
		name := strings.NewReplacer("-legacy", "", "-nft", "", "xtables-multi", "iptables").Replace(p[0])
		args := p[1:]
		switch name {
		case "iptables", "ip6tables":
			if (name == "ip6tables") == (family == host.IPv6) && tableOf(args) == table && changesChain(args, chains) {
				return true
			}
		case "iptables-restore", "ip6tables-restore":
			if (name == "ip6tables-restore") == (family == host.IPv6) && !slices.Contains(args, "--test") && !slices.Contains(args, "-t") {
				return true
			}
		case "iptables-apply", "ip6tables-apply", "netfilter-persistent", "shorewall", "ferm":
			if !slices.Contains(args, "save") {
				return true
			}
		case "nft":
			if slices.ContainsFunc(args, func(a string) bool {
				return slices.Contains([]string{"-f", "--file", "flush", "add", "insert", "delete", "destroy", "replace", "create"}, a)
			}) {
				return true
			}
		case "ufw":
			if len(args) > 0 && args[0] != "status" && args[0] != "show" {
				return true
			}
		case "firewall-cmd":
			if slices.ContainsFunc(args, func(a string) bool {
				return strings.Contains(a, "reload") || strings.HasPrefix(a, "--add-") || strings.HasPrefix(a, "--remove-") || strings.HasPrefix(a, "--direct")
			}) {
				return true
			}
		case "systemctl", "service", "rc-service", "invoke-rc.d":
			if restartsFilter(args) {
				return true
			}
		}
	}
	return false
}

// restartsFilter reports whether the words, in any order, restart a service
// that makes rules.
func restartsFilter(args []string) bool {
	acts := slices.ContainsFunc(args, func(a string) bool {
		return slices.Contains([]string{"start", "stop", "restart", "reload", "try-restart", "reload-or-restart", "force-reload"}, a)
	})
	return acts && slices.ContainsFunc(args, func(a string) bool {
		_, ok := replaces[strings.TrimSuffix(a, ".service")]
		return ok
	})
}

// tableOf is the table that arguments of iptables(8) name.
func tableOf(args []string) string {
	for i, a := range args {
		if (a == "-t" || a == "--table") && i+1 < len(args) {
			return args[i+1]
		}
		if t, ok := strings.CutPrefix(a, "--table="); ok {
			return t
		}
	}
	return "filter"
}

// changesChain reports whether arguments of iptables(8) change one of the chains.
func changesChain(args []string, chains map[string]bool) bool {
	for i, a := range args {
		switch a {
		case "-A", "-I", "-D", "-R", "-F", "-N", "-X", "-P", "-E",
			"--append", "--insert", "--delete", "--replace", "--flush", "--new-chain", "--delete-chain", "--policy", "--rename-chain":
			// Without a chain it is all of them.
			return i+1 >= len(args) || strings.HasPrefix(args[i+1], "-") || chains[args[i+1]]
		}
	}
	return false
}
