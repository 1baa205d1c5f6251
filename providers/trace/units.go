package trace

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Services are those whose start, stop or reload can take away or set what
// ctplan manages.
var Services = []string{
	"iptables", "ip6tables", "netfilter-persistent", "nftables", "ufw", "firewalld",
	"docker", "kube-proxy", "tuned", "systemd-sysctl", "systemd-modules-load", "procps",
	"libvirtd", "fail2ban", "shorewall", "ferm",
}

// parseUnit reads what systemd logs about one of Services: "Started
// iptables.service - IPv4 firewall with iptables." Releases before 252 leave
// the unit's name out.
func parseUnit(text string) (name, did string, ok bool) {
	verb, rest, _ := strings.Cut(text, " ")
	switch verb {
	case "Started", "Finished":
		did = "started"
	case "Reloaded":
		did = "reloaded"
	case "Stopped":
		did = "stopped"
	default:
		return "", "", false
	}
	word, _, _ := strings.Cut(rest, " ")
	name, ok = strings.CutSuffix(strings.TrimSuffix(word, "."), ".service")
	return name, did, ok && slices.Contains(Services, name)
}

// readUnits reads what starting a service leaves behind.
func (e *Evidence) readUnits(q Query) {
	keep := func(s Service) {
		if !s.Time.Before(q.Since) {
			e.Services = append(e.Services, s)
		}
	}
	for _, name := range Services {
		// systemd makes this link when it starts a unit (src/core/unit.c,
		// unit_export_invocation_id).
		link := "/run/systemd/units/invocation:" + name + ".service"
		if info, err := os.Lstat(q.Root + link); err == nil {
			keep(Service{name, "started", Record{link, "made when systemd started the unit", info.ModTime()}})
		}
		// Init scripts touch this file when they have started.
		lock := "/var/lock/subsys/" + name
		if s, ok := stamp(q.Root + lock); ok {
			keep(Service{name, "started", Record{lock, "touched by the init script when it started", s.Modified}})
		}
	}
	// ufw takes this lock for every command, and writes its rules there.
	for _, path := range []string{"/run/ufw.lock", "/etc/ufw/user.rules", "/etc/ufw/user6.rules", "/etc/ufw/ufw.conf"} {
		if s, ok := stamp(q.Root + path); ok {
			keep(Service{"ufw", "ran", Record{path, "touched when ufw changes or reloads its rules", s.Changed}})
		}
	}
	zones, _ := filepath.Glob(q.Root + "/etc/firewalld/zones/*.xml")
	for _, path := range append(zones, q.Root+"/etc/firewalld/firewalld.conf", q.Root+"/etc/firewalld/direct.xml") {
		if s, ok := stamp(path); ok {
			keep(Service{"firewalld", "ran", Record{strings.TrimPrefix(path, q.Root), "configuration of firewalld, changed then", s.Changed}})
		}
	}
}
