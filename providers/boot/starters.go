package boot

import (
	"iter"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// restorers finds who loads, makes or flushes rules, by the text of what is started.
func restorers(root, init string) []host.Restorer {
	var out []host.Restorer
	s := starters{root: root, out: &out}
	switch init {
	case host.InitSystemd:
		s.systemd()
	case host.InitSysv:
		s.runlevels()
	case host.InitOpenRC:
		s.openrc()
	default:
		return nil
	}
	s.upstart()
	s.rcLocal()
	s.ifupdown()
	s.cron()
	s.dispatchers()
	s.udev()
	return out
}

// starters are all that runs programs by itself.
type starters struct {
	root    string
	out     *[]host.Restorer
	enabled map[string]bool // units, with their suffixes
}

func (s *starters) by(name string) *follower { return &follower{root: s.root, by: name, out: s.out} }

func (f *follower) parts(folder string) []string {
	return (&starters{root: f.root}).parts(folder, partsName)
}

// partsName is what run-parts(8) runs.
var partsName = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// parts are the executable files of a folder, sorted.
func (s *starters) parts(folder string, name *regexp.Regexp) (paths []string) {
	for _, e := range s.list(folder) {
		at := path.Join(folder, e)
		info, err := os.Stat(filepath.Join(s.root, at))
		if name.MatchString(e) && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			paths = append(paths, at)
		}
	}
	return paths
}

func (s *starters) list(folder string) []string {
	names := list(s.root, folder)
	slices.Sort(names)
	return names
}

func (s *starters) read(name string) string {
	f, err := hostfile.Read(s.root, name)
	if err != nil {
		return ""
	}
	return f.Content
}

func (s *starters) exists(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return exists(s.root, n) })
}

// systemd goes through the enabled units, in the order of their names: their own
// order is not followed.
func (s *starters) systemd() {
	s.enabled = map[string]bool{}
	for _, folder := range unitFolders {
		for _, e := range list(s.root, folder) {
			if strings.HasSuffix(e, ".wants") || strings.HasSuffix(e, ".requires") {
				for _, unit := range list(s.root, path.Join(folder, e)) {
					s.enabled[unit] = true
				}
			}
		}
	}
	names := map[string]bool{}
	for u := range s.enabled {
		switch name, suffix := strings.TrimSuffix(u, path.Ext(u)), path.Ext(u); suffix {
		case ".service":
			names[name] = true
		case ".timer", ".socket", ".path":
			names[name] = true
		}
	}
	scripts := map[string]bool{}
	links(s.root, scripts)
	for name := range scripts { // systemd-sysv-generator(8)
		names[name] = true
	}
	for _, name := range sorted(names) {
		if !strings.HasPrefix(name, "systemd-") && !masked(s.root, name) && name != "rc-local" && name != "networking" {
			s.service(name)
		}
	}
}

func sorted(set map[string]bool) (names []string) {
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// exec is a command that a unit starts with.
type exec struct{ text, at string }

// service goes through what a unit starts with, or the init script of its name.
func (s *starters) service(name string) {
	unit := name + ".service"
	file := unit
	if i := strings.IndexByte(name, '@'); i >= 0 && !s.unitExists(unit) {
		file = name[:i+1] + ".service"
	}
	var list []exec
	found := false
	for _, folder := range unitFolders {
		if at := path.Join(folder, file); s.exists(at) {
			list, found = execs(list, s.read(at), at), true
			break
		}
	}
	if !found {
		if script := "/etc/init.d/" + name; s.exists(script) && !known(name) {
			s.by(script).program(script, []word{{text: "start", known: true}})
		}
		return
	}
	drops := map[string]string{} // by name: those of /etc come first
	for _, folder := range unitFolders {
		for _, e := range s.list(path.Join(folder, file+".d")) {
			if strings.HasSuffix(e, ".conf") && drops[e] == "" {
				drops[e] = path.Join(folder, file+".d", e)
			}
		}
	}
	var order []string
	for e := range drops {
		order = append(order, e)
	}
	slices.Sort(order)
	for _, e := range order {
		list = execs(list, s.read(drops[e]), drops[e])
	}
	f := s.by(unit)
	for _, e := range list {
		s.exec(f, e, known(name))
	}
}

func (s *starters) unitExists(unit string) bool {
	return slices.ContainsFunc(unitFolders, func(folder string) bool { return exists(s.root, path.Join(folder, unit)) })
}

// known is whether the planner knows what a service is about by its name: what its
// scripts do is not read, only which file it restores by itself.
func known(name string) bool { return slices.Contains(etc.ServiceNames(), name) }

// joined are the lines of a text without blanks around them, by the number of the
// first where a backslash at the end joins several.
func joined(text string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n, start, before := 0, 0, ""
		for l := range strings.Lines(text) {
			n++
			l = strings.TrimRight(l, "\r\n")
			if before == "" {
				start = n
			}
			if cut, more := strings.CutSuffix(l, `\`); more {
				before += cut + " "
				continue
			}
			if !yield(start, strings.TrimSpace(before+l)) {
				return
			}
			before = ""
		}
	}
}

// execs adds the commands of a unit's text; an empty line of a kind takes those
// before it away (systemd.service(5)).
func execs(list []exec, text, at string) []exec {
	for start, whole := range joined(text) {
		key, value, ok := strings.Cut(whole, "=")
		key = strings.TrimSpace(key)
		if !ok || !slices.Contains([]string{"ExecStart", "ExecStartPre", "ExecStartPost"}, key) {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			list = nil
			continue
		}
		list = append(list, exec{value, place(at, start)})
	}
	return list
}

// exec goes through one command of a unit.
func (s *starters) exec(f *follower, e exec, known bool) {
	c := command{args: unitWords(strings.TrimLeft(e.text, "-@+!:"))}
	if len(c.args) == 0 {
		return
	}
	if does, family, file, about := c.changes(); about {
		if does != "" && (!known || does == host.DoRestore && file != "") {
			f.add(does, family, file, e.at)
		}
		return
	}
	if !known {
		f.at = ""
		f.run(c, e.at)
	}
}

// unitWords splits a command as systemd does (systemd.syntax(7)): quotes and
// backslashes, and nothing that a shell would do.
func unitWords(text string) (words []word) {
	var b strings.Builder
	quote, open := byte(0), false
	flush := func() {
		if open {
			t := b.String()
			// Variables and specifiers are not known here; a text for a shell keeps its own.
			words = append(words, word{text: t, known: !strings.ContainsAny(t, "$%") || strings.ContainsAny(t, " \t")})
		}
		b.Reset()
		open = false
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text) && quote != '\'':
			i++
			b.WriteByte(text[i])
			open = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, open = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			flush()
		default:
			b.WriteByte(c)
			open = true
		}
	}
	flush()
	return words
}

// runlevels are the scripts that init starts.
func (s *starters) runlevels() {
	names := map[string]bool{}
	links(s.root, names)
	for _, name := range sorted(names) {
		for _, folder := range []string{"/etc/init.d/", "/etc/rc.d/init.d/"} {
			if s.exists(folder + name) {
				if !known(name) && name != "networking" && name != "rc.local" && name != "local" {
					s.by(folder+name).program(folder+name, []word{{text: "start", known: true}})
				}
				break
			}
		}
	}
}

// openrc are the services of OpenRC's runlevels (openrc(8)).
func (s *starters) openrc() {
	for _, level := range s.list("/etc/runlevels") {
		for _, name := range s.list("/etc/runlevels/" + level) {
			switch {
			case name == "local":
				for _, p := range s.parts("/etc/local.d", regexp.MustCompile(`\.start$`)) {
					s.by(p).program(p, nil)
				}
			case !known(name):
				s.by("/etc/init.d/"+name).program("/etc/init.d/"+name, []word{{text: "start", known: true}})
			}
		}
	}
}

// upstart's jobs are not followed, only seen (init(5) of Ubuntu 14.04 and EL6).
func (s *starters) upstart() {
	if !s.exists("/sbin/initctl") {
		return
	}
	for _, e := range s.list("/etc/init") {
		if at := path.Join("/etc/init", e); strings.HasSuffix(e, ".conf") {
			if n := mention(s.read(at)); n > 0 {
				s.by(at).add(host.DoUnknown, "", "", place(at, n))
			}
		}
	}
}

func (s *starters) rcLocal() {
	seen := map[string]bool{}
	for _, name := range []string{"/etc/rc.local", "/etc/rc.d/rc.local"} {
		real, err := hostfile.Real(s.root, name)
		info, statErr := os.Stat(filepath.Join(s.root, name))
		if err != nil || statErr != nil || seen[real] || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		seen[real] = true
		s.by(name).program(name, []word{{text: "start", known: true}})
	}
}

// ifupdown runs what stands with an interface, and folders of scripts
// (interfaces(5)).
func (s *starters) ifupdown() {
	if !s.exists("/sbin/ifup", "/usr/sbin/ifup", "/bin/ifup") {
		return
	}
	for _, p := range s.parts("/etc/network/if-pre-up.d", partsName) {
		s.by(p).program(p, nil)
	}
	seen := map[string]bool{}
	s.interfaces("/etc/network/interfaces", seen, 0)
	for _, p := range s.parts("/etc/network/if-up.d", partsName) {
		s.by(p).program(p, nil)
	}
}

func (s *starters) interfaces(name string, seen map[string]bool, depth int) {
	if seen[name] || depth > 5 {
		return
	}
	seen[name] = true
	for start, whole := range joined(s.read(name)) {
		word0, rest, _ := strings.Cut(whole, " ")
		rest = strings.TrimSpace(rest)
		if i := strings.IndexByte(word0, '\t'); i >= 0 {
			word0, rest = word0[:i], strings.TrimSpace(word0[i+1:]+" "+rest)
		}
		switch word0 {
		case "pre-up", "up", "post-up":
			s.by(name).shell(rest, name, start-1, nil, nil)
		case "source", "source-directory":
			s.sourced(name, word0, rest, seen, depth)
		}
	}
}

func (s *starters) sourced(from, how, what string, seen map[string]bool, depth int) {
	if !path.IsAbs(what) {
		what = path.Join(path.Dir(from), what)
	}
	if how == "source-directory" {
		for _, e := range s.list(what) {
			if partsName.MatchString(e) {
				s.interfaces(path.Join(what, e), seen, depth+1)
			}
		}
		return
	}
	for _, e := range s.list(path.Dir(what)) {
		if ok, err := path.Match(path.Base(what), e); ok && err == nil {
			s.interfaces(path.Join(path.Dir(what), e), seen, depth+1)
		}
	}
}

var assignment = regexp.MustCompile(`^[A-Za-z_]\w*\s*=`)

// cron is what crontabs run, at boot and later (crontab(5)).
func (s *starters) cron() {
	table := func(name string, user bool) {
		n := 0
		for l := range strings.Lines(s.read(name)) {
			n++
			l = strings.TrimSpace(l)
			if l == "" || l[0] == '#' || assignment.MatchString(l) || mention(l) == 0 && !strings.Contains(l, "/") {
				continue
			}
			skip := 5
			if l[0] == '@' {
				skip = 1
			}
			if user {
				skip++
			}
			for range skip {
				if i := strings.IndexAny(l, " \t"); i >= 0 {
					l = strings.TrimLeft(l[i:], " \t")
				} else {
					l = ""
				}
			}
			s.by(name).shell(l, name, n-1, nil, nil)
		}
	}
	table("/etc/crontab", true)
	for _, e := range s.list("/etc/cron.d") {
		table("/etc/cron.d/"+e, true)
	}
	for _, folder := range []string{"/var/spool/cron/crontabs", "/var/spool/cron", "/etc/crontabs"} {
		if s.exists(folder + "/root") {
			table(folder+"/root", false)
		}
	}
}

// dispatchers run scripts as the network changes.
func (s *starters) dispatchers() {
	anything := regexp.MustCompile(`^[^.].*[^~]$`)
	if s.enabled == nil || s.enabled["NetworkManager.service"] {
		for _, folder := range []string{"/etc/NetworkManager/dispatcher.d", "/etc/NetworkManager/dispatcher.d/pre-up.d", "/usr/lib/NetworkManager/dispatcher.d"} {
			for _, p := range s.parts(folder, anything) {
				s.by(p).program(p, []word{{}, {text: "up", known: true}})
			}
		}
	}
	if s.enabled["networkd-dispatcher.service"] {
		for _, state := range []string{"routable", "configured", "configuring", "carrier", "degraded"} {
			for _, p := range s.parts("/etc/networkd-dispatcher/"+state+".d", anything) {
				s.by(p).program(p, nil)
			}
		}
	}
}

var udevRun = regexp.MustCompile(`\b(?:RUN(?:\{program\})?\s*\+?=|PROGRAM\s*=?=|IMPORT\{program\}\s*=?=)\s*"((?:[^"\\]|\\.)*)"`)

// udev runs programs for devices (udev(7)).
func (s *starters) udev() {
	for _, folder := range []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d"} {
		for _, e := range s.list(folder) {
			if !strings.HasSuffix(e, ".rules") {
				continue
			}
			at, n := path.Join(folder, e), 0
			for l := range strings.Lines(s.read(at)) {
				n++
				if strings.HasPrefix(strings.TrimSpace(l), "#") {
					continue
				}
				for _, m := range udevRun.FindAllStringSubmatch(l, -1) {
					s.exec(s.by(at), exec{m[1], place(at, n)}, false)
				}
			}
		}
	}
}
