package boot

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// word is a word of a command; what is not known before it runs has no text.
type word struct {
	text  string
	known bool
	name  string // of the variable that it is, where it is one
}

// command is a simple command with what it reads from a file.
type command struct {
	args  []word
	stdin *word // "< FILE"; nil without
	here  bool  // it reads text that stands in the script
}

// The programs that change rules of iptables, by all their names.
var tool = regexp.MustCompile(`^(ip6?tables)(?:-legacy|-nft)?(-restore(?:-translate)?)?$`)

// carriers run the command that their arguments name.
var carriers = []string{"sudo", "nohup", "nice", "ionice", "chrt", "env", "exec", "command", "builtin", "timeout", "time", "setsid", "flock", "stdbuf", "xargs", "doas"}

// bare is the command without those that only carry it. One that runs in another
// network namespace has nothing to do with this one: ok is false.
func (c command) bare() (out command, ok bool) {
	for len(c.args) > 0 {
		base := path.Base(c.args[0].text)
		switch {
		case base == "ip" && len(c.args) > 1 && (c.args[1].text == "netns" || c.args[1].text == "-n"):
			return c, false
		case base == "nsenter":
			return c, false
		case base == "busybox" && len(c.args) > 1:
			c.args = c.args[1:]
		case slices.Contains(carriers, base):
			c.args = c.args[1:]
			// Their own options and operands: up to what is a program or a path.
			for len(c.args) > 1 && (strings.HasPrefix(c.args[0].text, "-") || strings.Contains(c.args[0].text, "=") || digits(c.args[0].text)) {
				c.args = c.args[1:]
			}
			if base == "flock" && len(c.args) > 1 { // flock [OPTION]... FILE COMMAND
				c.args = c.args[1:]
				if c.args[0].text == "-c" {
					return c, false // one word for a shell: rare enough to be left unknown
				}
			}
		default:
			return c, true
		}
	}
	return c, true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789.smhd") == "" }

// generators make rules from files of their own, by the words that have them do so.
var generators = map[string][]string{
	"shorewall": {"start", "restart", "reload", "restore", "safe-start"}, "shorewall6": {"start", "restart", "reload", "restore", "safe-start"},
	"firehol": {"start", "restart", "try", "condrestart"}, "ferm": nil, "ufw": {"enable", "reload", "allow", "deny"},
	"firewall-cmd": {"--reload", "--complete-reload"}, "csf": {"-s", "-r", "-sf", "-q"}, "apf": {"-s", "-r", "--start", "--restart"},
	"arno-iptables-firewall": {"start", "restart", "force-reload"}, "fwbuilder": nil, "iptables-apply": nil, "ip6tables-apply": nil,
}

// changes is what a command does to rules; nothing where it only reads them or is
// about something else. mentioned is whether it is about them at all.
func (c command) changes() (does host.RestorerDo, family host.Family, file string, mentioned bool) {
	c, ok := c.bare()
	if !ok || len(c.args) == 0 {
		return "", "", "", ok
	}
	first := c.args[0]
	base := path.Base(first.text)
	if m := tool.FindStringSubmatch(base); first.known && m != nil {
		family = host.IPv4
		if m[1] == "ip6tables" {
			family = host.IPv6
		}
		if m[2] != "" {
			does, file = c.restores()
		} else {
			does = c.edits()
		}
		return does, family, file, true
	}
	if !first.known {
		// "$IPT -A INPUT": where the script has the name from cannot be followed,
		// what it does can.
		name := strings.ToLower(first.name)
		if does = c.edits(); does != "" && (strings.Contains(name, "ipt") || strings.Contains(name, "ip6t") || strings.Contains(name, "tables") || strings.Contains(name, "fw") || c.names("INPUT", "OUTPUT", "FORWARD", "PREROUTING")) {
			return does, "", "", true
		}
		if strings.Contains(name, "restore") {
			does, file = c.restores()
			return does, "", file, true
		}
		return "", "", "", false
	}
	switch base {
	case "nft":
		return c.native()
	case "netfilter-persistent", "iptables-persistent":
		return "", "", "", true // known by its files
	}
	if verbs, ok := generators[base]; ok && (verbs == nil || c.names(verbs...)) {
		return host.DoMake, "", "", true
	}
	return "", "", "", false
}

func (c command) names(words ...string) bool {
	return slices.ContainsFunc(c.args[1:], func(w word) bool { return slices.Contains(words, w.text) })
}

// restores is what iptables-restore does (iptables-restore(8)).
func (c command) restores() (does host.RestorerDo, file string) {
	does = host.DoRestore
	from := c.stdin
	for i := 1; i < len(c.args); i++ {
		w := c.args[i]
		switch a := w.text; {
		case a == "-t" || a == "--test" || a == "-h" || a == "--help" || a == "-V" || a == "--version":
			return "", ""
		case a == "-n" || a == "--noflush":
			does = host.DoAdd
		case a == "-T" || a == "--table" || a == "-M" || a == "--modprobe":
			i++
		case a == "-w" || a == "-W" || a == "--wait" || a == "--wait-interval":
			if i+1 < len(c.args) && digits(c.args[i+1].text) {
				i++
			}
		case len(a) > 2 && a[0] == '-' && a[1] != '-' && strings.Trim(a[1:], "cntvwh0123456789") == "":
			if strings.ContainsAny(a, "t") {
				return "", ""
			}
			if strings.Contains(a, "n") {
				does = host.DoAdd
			}
		case strings.HasPrefix(a, "-"):
		default:
			from = &c.args[i]
		}
	}
	switch {
	case c.here:
		return host.DoMake, ""
	case from == nil || !from.known || !path.IsAbs(from.text):
		return does, ""
	case from.text == "/dev/stdin" || strings.HasPrefix(from.text, "/dev/fd/"):
		return does, ""
	}
	return does, path.Clean(from.text)
}

// edits is what a command of iptables does to rules (iptables(8)).
func (c command) edits() host.RestorerDo {
	for _, w := range c.args[1:] {
		a := w.text
		switch a {
		case "--flush":
			return host.DoFlush
		case "--append", "--insert", "--new-chain", "--policy", "--delete", "--replace", "--delete-chain", "--rename-chain":
			return host.DoMake
		case "--list", "--list-rules", "--check", "--help", "--version", "--zero":
			return ""
		}
		// Short options may stand together: -vF; a chain may follow at once.
		if len(a) < 2 || a[0] != '-' || a[1] == '-' {
			continue
		}
		for _, o := range a[1:] {
			switch o {
			case 'F':
				return host.DoFlush
			case 'A', 'I', 'N', 'P', 'D', 'R', 'E', 'X':
				return host.DoMake
			case 'L', 'S', 'C', 'V', 'Z', 'h':
				return ""
			case 't', 'w', 'W', 'M':
				// the rest is a value
			default:
				continue
			}
			break
		}
	}
	return ""
}

// native is what a command of nft does (nft(8)).
func (c command) native() (does host.RestorerDo, family host.Family, file string, mentioned bool) {
	for i := 1; i < len(c.args); i++ {
		switch a := c.args[i].text; {
		case a == "-c" || a == "--check":
			return "", "", "", true
		case a == "-f" || a == "--file":
			if i+1 < len(c.args) {
				if w := c.args[i+1]; w.known && path.IsAbs(w.text) {
					file = path.Clean(w.text)
				}
			}
			return host.DoNative, "", file, true
		case a == "-I" || a == "--includepath" || a == "-D" || a == "--define":
			i++
		case a == "list" || a == "monitor" || a == "describe" || a == "get" || a == "help":
			return "", "", "", true
		case strings.HasPrefix(a, "-") && strings.HasSuffix(a, "f") && a[1] != '-' && i+1 < len(c.args):
			c.args[i].text = "-f"
			i--
		case slices.Contains([]string{"add", "insert", "create", "delete", "destroy", "flush", "replace", "rename", "reset"}, a):
			return host.DoNative, "", "", true
		case strings.ContainsAny(a, " ;{"): // a whole command in one word
			if f := strings.Fields(a); len(f) > 0 && f[0] != "list" {
				return host.DoNative, "", "", true
			}
		}
	}
	return "", "", "", true
}
