package etc

import "github.com/ctplan/ctplan/planner/host"

// SavedFile is a rules file of a distribution's own, with the services that
// restore it; the first is the one to name.
type SavedFile struct {
	Family   host.Family
	Path     string
	Services []string
}

// SavedFiles are those of the distributions: Red Hat's and SUSE's
// iptables-services, Debian's iptables-persistent, Arch, Alpine and Gentoo.
var SavedFiles = []SavedFile{
	{host.IPv4, "/etc/sysconfig/iptables", []string{"iptables"}},
	{host.IPv4, "/etc/iptables/rules.v4", []string{"netfilter-persistent", "iptables-persistent"}},
	{host.IPv4, "/etc/iptables/iptables.rules", []string{"iptables"}},
	{host.IPv4, "/etc/iptables/rules-save", []string{"iptables"}},
	{host.IPv4, "/var/lib/iptables/rules-save", []string{"iptables"}},
	{host.IPv6, "/etc/sysconfig/ip6tables", []string{"ip6tables"}},
	{host.IPv6, "/etc/iptables/rules.v6", []string{"netfilter-persistent", "iptables-persistent"}},
	{host.IPv6, "/etc/iptables/ip6tables.rules", []string{"ip6tables"}},
	{host.IPv6, "/etc/iptables/rules6-save", []string{"ip6tables"}},
	{host.IPv6, "/var/lib/ip6tables/rules-save", []string{"ip6tables"}},
}

// RestorersOf are the services that restore a file by what the distribution
// gives them; known is false for a file of nobody's.
func RestorersOf(path string) (services []string, known bool) {
	for _, f := range SavedFiles {
		if f.Path == path {
			return f.Services, true
		}
	}
	return nil, false
}

// RestoresFiles is whether a service restores rules files.
func RestoresFiles(service string) bool {
	for _, f := range SavedFiles {
		for _, s := range f.Services {
			if s == service {
				return true
			}
		}
	}
	return false
}
