package iptables

import (
	"os"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// SavedPath is a rules file that boot loads, as the host sees it.
type SavedPath struct {
	Family host.Family
	Path   string
}

// SavedPaths lists the rules files of a host: the ones that the HCL names,
// whether they exist or not, else those of /etc/sysconfig/{iptables,ip6tables}
// and /etc/iptables/rules.{v4,v6} that exist under root.
func SavedPaths(root string, files declared.Files) []SavedPath {
	candidates := []struct {
		family   host.Family
		override string
		paths    [2]string
	}{
		{host.IPv4, files.RulesV4, [2]string{"/etc/sysconfig/iptables", "/etc/iptables/rules.v4"}},
		{host.IPv6, files.RulesV6, [2]string{"/etc/sysconfig/ip6tables", "/etc/iptables/rules.v6"}},
	}
	var found []SavedPath
	for _, c := range candidates {
		if c.override != "" {
			found = append(found, SavedPath{c.family, c.override})
			continue
		}
		for _, path := range c.paths {
			if _, err := os.Stat(root + path); err == nil {
				found = append(found, SavedPath{c.family, path})
			}
		}
	}
	return found
}
