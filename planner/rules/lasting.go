package rules

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// lasting says what becomes of rules at a reboot where no saved file of their
// family was found, by what brings this host's rules back, and what to do: a
// sentence, and commands to run after apply.
func lasting(l host.Live, f host.Family) (text string, commands []string) {
	tool := "iptables-save"
	if f == host.IPv6 {
		tool = "ip6tables-save"
	}
	const keeps = "; from then on ctplan keeps the file"
	unknown := fmt.Sprintf("whether the %s rules will survive a reboot is not known: there is no saved rules file, and ", f)
	gone := fmt.Sprintf("the %s rules will not survive a reboot", f)
	if l.Boot == nil || l.Boot.Init == "" {
		return unknown + "how this host boots could not be told", nil
	}
	if service, reload := keeper(l.Boot); service != "" {
		if reload {
			return fmt.Sprintf("%s, nor a restart or reload of %s, which keeps this host's rules, and none of ctplan's: run ctplan apply again after either", gone, service), nil
		}
		return fmt.Sprintf("%s: %s keeps this host's rules, and none of ctplan's: run ctplan apply again after it", gone, service), nil
	}
	if service, file := awaited(l, f); service != "" {
		return fmt.Sprintf("%s: %s is enabled, and the file that it restores, %s, does not exist. Save the rules there once after apply%s", gone, service, file, keeps),
			[]string{tool + " > " + file}
	}
	if r := byCommand(l.Boot, f); r != nil {
		switch {
		case r.Does == host.DoUnknown:
			return unknown + r.At + " names a program that changes rules, in a way that cannot be followed", nil
		case r.Does == host.DoRestore && r.File == "":
			return fmt.Sprintf("%s%s restores one that cannot be told from there: name it by files { %s = … }", unknown, r.At, attribute(f)), nil
		case r.Does == host.DoRestore:
			return fmt.Sprintf("%s: the file that %s restores, %s, does not exist. Save the rules there once after apply%s", gone, r.At, r.File, keeps),
				[]string{tool + " > " + r.File}
		}
		return fmt.Sprintf("%s: %s makes rules, and what scripts make is not ctplan's to edit. Have ctplan apply --auto-approve run there, behind the last of its rules, with the folder of the configuration", gone, r.At), nil
	}
	gone += ": there is no saved rules file, and nothing was found that restores one"
	switch like := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(l.Host.OS, n) })
	}; {
	case like("debian", "ubuntu"):
		return gone + ". Install netfilter-persistent (package iptables-persistent), and save the rules once after apply" + keeps, []string{tool + " > " + distributionFile(f, 1)}
	case like("rhel", "fedora", "centos"):
		return gone + ". Install and enable iptables-services, and save the rules once after apply" + keeps, []string{tool + " > " + distributionFile(f, 0)}
	}
	return gone, nil
}

// distributionFile is one of SavedFiles of the family, by its place.
func distributionFile(f host.Family, n int) string {
	for _, s := range etc.SavedFiles {
		if s.Family == f {
			if n == 0 {
				return s.Path
			}
			n--
		}
	}
	return ""
}

func attribute(f host.Family) string {
	if f == host.IPv6 {
		return "rules_v6"
	}
	return "rules_v4"
}

// keeper is an enabled service that makes a host's rules from files of its own,
// where none restores saved ones; reload is whether it takes what is not its own
// away whenever it is told to read them anew.
func keeper(b *host.Boot) (service string, reload bool) {
	if slices.ContainsFunc(b.Services, etc.RestoresFiles) {
		return "", false
	}
	for _, s := range b.Services {
		switch s {
		case etc.NFTablesService, "firewalld", "shorewall", "shorewall6", "ferm", "firehol", "csf", "apf", "arno-iptables-firewall":
			service, reload = s, true
		case "ufw":
			if service == "" {
				service = s
			}
		}
	}
	return service, reload
}

// awaited is an enabled service of the distribution's that restores a rules file,
// and that file, which is not there.
func awaited(l host.Live, f host.Family) (service, file string) {
	for _, saved := range etc.SavedFiles {
		if saved.Family != f {
			continue
		}
		i := slices.IndexFunc(saved.Services, func(s string) bool { return slices.Contains(l.Boot.Services, s) })
		// A unit that says itself which file it restores is no distribution's of these.
		if i < 0 || slices.ContainsFunc(l.Boot.Restorers, func(r host.Restorer) bool { return r.By == saved.Services[i]+".service" }) {
			continue
		}
		switch gentoo, alpine := slices.Contains(l.Host.OS, "gentoo"), slices.Contains(l.Host.OS, "alpine"); path.Base(saved.Path) {
		case "rules-save", "rules6-save":
			if ofGentoo := strings.HasPrefix(saved.Path, "/var/"); ofGentoo != gentoo || !gentoo && !alpine {
				continue
			}
		case "iptables.rules", "ip6tables.rules": // Arch: by its unit alone
			continue
		default:
			if l.Boot.Init == host.InitOpenRC {
				continue
			}
		}
		return saved.Services[i], saved.Path
	}
	return "", ""
}

// byCommand is the command that brings rules of the family, whose word counts most:
// one that restores a file before one that makes rules, before one that cannot be followed.
func byCommand(b *host.Boot, f host.Family) (best *host.Restorer) {
	weight := map[host.RestorerDo]int{host.DoRestore: 4, host.DoMake: 3, host.DoAdd: 2, host.DoUnknown: 1}
	for i := range b.Restorers {
		r := &b.Restorers[i]
		if (r.Family == "" || r.Family == f) && weight[r.Does] > 0 && (best == nil || weight[r.Does] > weight[best.Does]) {
			best = r
		}
	}
	return best
}
