package planner

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

func place(path string, line int) string { return fmt.Sprintf("%s:%d", path, line) }

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

// bootReads is also asked by what makes the plan: a line in a file that boot
// does not read is worth nothing.
func bootReads(b *Boot, file File, as, folder string) bool {
	switch {
	case isDropIn(file.Path, folder), as != "":
		return true
	case file.Path == DefaultSysctlFile, file.Path == etcModules:
		// systemd reads the folders alone; what Debian and Red Hat do without it
		// reads these two as well.
		return b == nil || b.Init != InitSystemd
	}
	return false
}

const etcModules = "/etc/modules"

func isGlob(s string) bool { return strings.ContainsAny(s, "*?[") }

// globs reports whether a name matches a pattern of fnmatch(3). Its "[!" is
// "[^" to package path.
func globs(pattern, name string) bool {
	if pattern == name {
		return true
	}
	ok, err := path.Match(strings.ReplaceAll(pattern, "[!", "[^"), name)
	return isGlob(pattern) && err == nil && ok
}

// keyMatches reports whether a key of sysctl.d, which may be a glob, names k.
func keyMatches(pattern, k string) bool {
	return globs(strings.ReplaceAll(pattern, ".", "/"), strings.ReplaceAll(k, ".", "/"))
}

func isConntrackKey(k string) bool {
	return strings.HasPrefix(k, "net.netfilter.nf_conntrack_") || strings.HasPrefix(k, "net.ipv4.netfilter.ip_conntrack_") ||
		k == "net.nf_conntrack_max" || k == "net.ipv4.ip_conntrack_max"
}

// maxKeys are the names by which nf_conntrack_max can be set; the first is
// the one that ctplan adds, the others are kept in step where they stand.
var maxKeys = []string{keyMax, "net.nf_conntrack_max", "net.ipv4.netfilter.ip_conntrack_max", "net.ipv4.ip_conntrack_max"}

const keyMax = "net.netfilter.nf_conntrack_max"

const keyBuckets = "net.netfilter.nf_conntrack_buckets"

// SysctlTarget is the file that sysctls are written to: what the HCL names, or
// /etc/sysctl.conf. systemd reads that by a link alone (systemd-sysctl(8)),
// which newer distributions no longer have: there it is a file of sysctl.d.
func SysctlTarget(d Desired, l Live) string {
	if d.Files.Sysctl != "" || l.Boot == nil || l.Boot.Init != InitSystemd {
		return orDefault(d.Files.Sysctl, DefaultSysctlFile)
	}
	for _, f := range l.SysctlFiles {
		if f.Path == DefaultSysctlFile && f.As != "" {
			return DefaultSysctlFile
		}
	}
	return DropInSysctlFile
}

// editable reports whether a configuration file is the administrator's:
// what packages and the run-time put elsewhere is not ctplan's to change.
func editable(f File, target string) bool {
	return f.Path == target || strings.HasPrefix(f.Path, "/etc/")
}

// option is the value of a module's option, quotes taken off, if it is of
// this name.
func optionOf(a ModprobeArg, name string) (value string, ok bool) {
	return strings.CutPrefix(strings.ReplaceAll(a.Text, `"`, ""), name+"=")
}

// names reports whether the line names its module to what reads it at boot:
// systemd takes parameters for a part of the name.
func namesModule(e ModulesLoadEntry, b *Boot) bool {
	return e.Params == "" || b != nil && b.Init != InitSystemd
}

// standsIn reports whether a place that an init script looks for sysctls in,
// /etc/sysctl.conf or the folder /etc/sysctl.d, leads to the file.
func standsIn(s *SysctlFile, place string) bool {
	return s.Path == place || strings.HasPrefix(s.Path, place+"/") || strings.HasPrefix(s.As, place+"/")
}

// isBlock reports whether a modprobe.d entry keeps nf_conntrack from loading.
func isBlock(e ModprobeEntry) bool {
	return e.Command == "install" && e.Module == "nf_conntrack" && isNoop(e)
}

// isNoop reports whether an install command does nothing, and so does not
// load. The shell runs it, so more than one command may stand there.
func isNoop(e ModprobeEntry) bool {
	if len(e.Args) == 0 || slices.ContainsFunc(e.Args, func(a ModprobeArg) bool { return strings.ContainsAny(a.Text, ";|&<>()$`\n") }) {
		return false
	}
	switch e.Args[0].Text {
	case "/bin/false", "/bin/true", "/usr/bin/false", "/usr/bin/true", "false", "true", ":":
		return true
	}
	return false
}

// resetsForGood reports whether a restart of the service unloads the module,
// and with it the sysctls, without a way to have them set again.
func resetsForGood(s *InitScript) bool { return s.Unloads && s.SysctlFrom == nil }

// configService is the service that reads a configuration of init scripts.
func configService(path string) string {
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

// ModprobeFileAt is the file of that path, as it stands or as a new one.
func ModprobeFileAt(l Live, target string) ModprobeFile {
	for _, f := range l.ModprobeFiles {
		if f.Path == target {
			return f
		}
	}
	return ModprobeFile{File: File{Path: target}}
}
