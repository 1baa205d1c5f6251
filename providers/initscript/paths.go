// Package initscript reads the init scripts of iptables on the Red Hat family
// and their configuration.
//
// It owns where they stand and how they are read: the array NF_MODULES_COMMON
// of the scripts, in which order they flush, and the lists IPTABLES_MODULES and
// IPTABLES_SYSCTL_LOAD_LIST (IP6TABLES_… for IPv6) of iptables-config. It
// runs no script, and never edits one: the planner splices the spans that
// Parse and ParseConfig return.
//
// It promises that a list it returns is what bash would assign, word for
// word, that spans are exact, and that whatever it cannot be sure of (a
// second assignment, an expansion, a script that does not parse) is a
// refusal with its line and not a guess.
package initscript

import (
	"slices"

	"github.com/ctplan/ctplan/internal/hostfile"
)

// candidates are the scripts by release: EL6 has them in /etc/rc.d/init.d,
// where /etc/init.d links to, EL7 and later in /usr/libexec.
var candidates = []string{
	"/etc/init.d/iptables", "/etc/init.d/ip6tables",
	"/etc/rc.d/init.d/iptables", "/etc/rc.d/init.d/ip6tables",
	"/usr/libexec/iptables/iptables.init", "/usr/libexec/iptables/ip6tables.init",
}

var configs = []string{"/etc/sysconfig/iptables-config", "/etc/sysconfig/ip6tables-config"}

// Paths lists the init scripts, seen from root: those that scripts names,
// whether they exist or not, or else those that exist, each file once.
func Paths(root string, scripts []string) ([]string, error) {
	if scripts != nil {
		return distinct(root, scripts)
	}
	return distinct(root, existing(root, candidates))
}

// ConfigPaths lists the configuration files of the scripts that exist.
func ConfigPaths(root string) ([]string, error) {
	return distinct(root, existing(root, configs))
}

func existing(root string, paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return !hostfile.Exists(root, p) })
}

// distinct drops the paths that lead to a file already listed.
func distinct(root string, paths []string) ([]string, error) {
	var list []string
	seen := map[string]bool{}
	for _, p := range paths {
		real, err := hostfile.Real(root, p)
		if err != nil {
			return list, err
		}
		if !seen[real] {
			seen[real] = true
			list = append(list, p)
		}
	}
	return list, nil
}
