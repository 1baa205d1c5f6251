// Package etc is what configuration files mean to who reads them at boot: which
// of them are read, what their patterns match, and which are the administrator's.
package etc

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/words"
)

// Place is "path:line".
func Place(path string, line int) string { return fmt.Sprintf("%s:%d", path, line) }

// isDropIn reports whether a file is one of a drop-in folder, such as
// "sysctl.d".
func isDropIn(name, folder string) bool {
	if !strings.HasSuffix(name, ".conf") && !(folder == "modprobe.d" && strings.HasSuffix(name, ".alias")) {
		return false
	}
	return slices.ContainsFunc(dropInFolders, func(above string) bool {
		base, ok := strings.CutPrefix(name, above+folder+"/")
		return ok && !strings.Contains(base, "/")
	})
}

// dropInFolders are those of sysctl.d(5), modprobe.d(5) and modules-load.d(5),
// without the last part of their names.
var dropInFolders = []string{"/etc/", "/run/", "/usr/local/lib/", "/usr/lib/", "/lib/"}

// Reads is also asked by what makes the plan: a line in a file that boot
// does not read is worth nothing.
func Reads(b *host.Boot, file host.File, as, folder string) bool {
	switch {
	case isDropIn(file.Path, folder), as != "":
		return true
	case file.Path == DefaultSysctlFile, file.Path == etcModules:
		// systemd reads the folders alone; what Debian and Red Hat do without it
		// reads these two as well.
		return b == nil || b.Init != host.InitSystemd
	}
	return false
}

const etcModules = "/etc/modules"

// IsGlob reports whether a string has the special characters of a pattern of
// fnmatch(3).
func IsGlob(s string) bool { return strings.ContainsAny(s, "*?[") }

// Globs reports whether a name matches a pattern of fnmatch(3). Its "[!" is
// "[^" to package path.
func Globs(pattern, name string) bool {
	if pattern == name {
		return true
	}
	ok, err := path.Match(strings.ReplaceAll(pattern, "[!", "[^"), name)
	return IsGlob(pattern) && err == nil && ok
}

// KeyMatches reports whether a key of sysctl.d, which may be a glob, names k.
func KeyMatches(pattern, k string) bool {
	return Globs(strings.ReplaceAll(pattern, ".", "/"), strings.ReplaceAll(k, ".", "/"))
}

// IsConntrackKey reports whether a sysctl, by its dotted name, is one of
// connection tracking.
func IsConntrackKey(k string) bool {
	return strings.HasPrefix(k, "net.netfilter.nf_conntrack_") || strings.HasPrefix(k, "net.ipv4.netfilter.ip_conntrack_") ||
		k == "net.nf_conntrack_max" || k == "net.ipv4.ip_conntrack_max"
}

// MaxKeys are the names by which nf_conntrack_max can be set; the first is
// the one that ctplan adds, the others are kept in step where they stand.
var MaxKeys = []string{KeyMax, "net.nf_conntrack_max", "net.ipv4.netfilter.ip_conntrack_max", "net.ipv4.ip_conntrack_max"}

// KeyMax is the sysctl of the most entries that are tracked.
const KeyMax = "net.netfilter.nf_conntrack_max"

// KeyBuckets is the sysctl of the hash size, in buckets.
const KeyBuckets = "net.netfilter.nf_conntrack_buckets"

// SysctlTarget is the file that sysctls are written to: what the HCL names, or
// /etc/sysctl.conf. systemd reads that by a link alone (systemd-sysctl(8)),
// which newer distributions no longer have: there it is a file of sysctl.d.
func SysctlTarget(d declared.Desired, l host.Live) string {
	if d.Files.Sysctl != "" || l.Boot == nil || l.Boot.Init != host.InitSystemd {
		return words.Or(d.Files.Sysctl, DefaultSysctlFile)
	}
	for _, f := range l.SysctlFiles {
		if f.Path == DefaultSysctlFile && f.As != "" {
			return DefaultSysctlFile
		}
	}
	return DropInSysctlFile
}

// Editable reports whether a configuration file is the administrator's:
// what packages and the run-time put elsewhere is not ctplan's to change.
func Editable(f host.File, target string) bool {
	return f.Path == target || strings.HasPrefix(f.Path, "/etc/")
}

// Names reports whether the line names its module to what reads it at boot:
// systemd takes parameters for a part of the name.
func Names(e host.ModulesLoadEntry, b *host.Boot) bool {
	return e.Params == "" || b != nil && b.Init != host.InitSystemd
}

// StandsIn reports whether a place that an init script looks for sysctls in,
// /etc/sysctl.conf or the folder /etc/sysctl.d, leads to the file.
func StandsIn(s *host.SysctlFile, place string) bool {
	return s.Path == place || strings.HasPrefix(s.Path, place+"/") || strings.HasPrefix(s.As, place+"/")
}

// IsBlock reports whether a modprobe.d entry keeps nf_conntrack from loading.
func IsBlock(e host.ModprobeEntry) bool {
	return e.Command == "install" && e.Module == "nf_conntrack" && IsNoop(e)
}

// IsNoop reports whether an install command does nothing, and so does not
// load. The shell runs it, so more than one command may stand there.
func IsNoop(e host.ModprobeEntry) bool {
	if len(e.Args) == 0 || slices.ContainsFunc(e.Args, func(a host.ModprobeArg) bool { return strings.ContainsAny(a.Text, ";|&<>()$`\n") }) {
		return false
	}
	switch e.Args[0].Text {
	case "/bin/false", "/bin/true", "/usr/bin/false", "/usr/bin/true", "false", "true", ":":
		return true
	}
	return false
}

// ResetsForGood reports whether a restart of the service unloads the module,
// and with it the sysctls, without a way to have them set again.
func ResetsForGood(s *host.InitScript) bool { return s.Unloads && s.SysctlFrom == nil }

// ServiceOf is the service that reads a configuration of init scripts.
func ServiceOf(path string) string {
	if strings.HasSuffix(path, "/ip6tables-config") {
		return "ip6tables"
	}
	return "iptables"
}

// Default paths, where the HCL sets no others.
const (
	DefaultSysctlFile      = "/etc/sysctl.conf"
	DropInSysctlFile       = "/etc/sysctl.d/99-netfilter.conf" // where boot does not read the former
	SysctlFolder           = "/etc/sysctl.d"
	DefaultModprobeFile    = "/etc/modprobe.d/netfilter.conf"
	DefaultModulesLoadFile = "/etc/modules-load.d/netfilter.conf"
)

// ModprobeFile is the file of that path, as it stands or as a new one.
func ModprobeFile(l host.Live, target string) host.ModprobeFile {
	for _, f := range l.ModprobeFiles {
		if f.Path == target {
			return f
		}
	}
	return host.ModprobeFile{File: host.File{Path: target}}
}
