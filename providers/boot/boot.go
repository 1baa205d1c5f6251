// Package boot knows what a host starts at boot, by systemd or by the links of
// runlevels, and what of it runs.
//
// It owns the folders of enabled units, /etc/rc?.d and OpenRC's runlevels, the
// control groups and PID files of services, the words of the kernel's command line
// that are about modules, and everything that runs programs by itself: units, init
// scripts, interfaces(5), rc.local, crontabs, dispatchers and udev. It starts and
// enables nothing.
//
// It promises to name a service only where boot starts it or it runs, and only
// one that the planner knows to need connection tracking; and to name each command
// found that loads, makes or flushes rules, or that it cannot follow what a script
// which names such a program does. Conditions are taken to hold, variables to have
// what the script gives them; what is called is followed one call deep.
package boot

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

var (
	unitFolders = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
	// runlevels are where the links of a host that is up are; Debian and Red
	// Hat have them in different places.
	runlevels = []string{"S", "2", "3", "4", "5"}
	params    = []string{"nf_conntrack.", "modprobe.blacklist=", "module_blacklist=", "modules_load=", "rd.modules_load="}
)

// Read reads what the host under root starts. What cannot be read is as if it
// were not there.
func Read(root string) host.Boot {
	b := host.Boot{Services: []string{}}
	enabled := map[string]bool{}
	comm, _ := os.ReadFile(filepath.Join(root, "/proc/1/comm"))
	switch {
	case exists(root, "/run/systemd/system"): // sd_booted(3)
		b.Init = host.InitSystemd
		units(root, enabled)
		links(root, enabled) // systemd-sysv-generator(8)
	case exists(root, "/run/openrc") || exists(root, "/etc/runlevels/default"):
		b.Init = host.InitOpenRC
		levels(root, enabled)
	case strings.TrimSpace(string(comm)) == "init" && links(root, enabled):
		b.Init = host.InitSysv
	}
	b.Restorers = restorers(root, b.Init)
	for _, s := range etc.ServiceNames() {
		if runs(root, s) {
			b.Running = append(b.Running, s)
		}
		if enabled[s] && !(b.Init == host.InitSystemd && masked(root, s)) {
			b.Services = append(b.Services, s)
		}
	}
	slices.Sort(b.Services)
	slices.Sort(b.Running)
	cmdline, _ := os.ReadFile(filepath.Join(root, "/proc/cmdline"))
	for w := range strings.FieldsSeq(string(cmdline)) {
		w = strings.ToValidUTF8(w, "\uFFFD")
		if slices.ContainsFunc(params, func(p string) bool { return strings.HasPrefix(w, p) }) {
			b.Cmdline = append(b.Cmdline, w)
		}
	}
	return b
}

// units collects the units that others want or require: what systemctl enable
// links, and what packages link for good.
func units(root string, into map[string]bool) {
	for _, folder := range unitFolders {
		for _, e := range list(root, folder) {
			if !strings.HasSuffix(e, ".wants") && !strings.HasSuffix(e, ".requires") {
				continue
			}
			for _, unit := range list(root, path.Join(folder, e)) {
				into[strings.TrimSuffix(strings.TrimSuffix(unit, ".service"), ".socket")] = true
			}
		}
	}
}

// masked reports whether systemctl mask has taken a service off.
func masked(root, service string) bool {
	real, err := hostfile.Real(root, "/etc/systemd/system/"+service+".service")
	return err == nil && real == "/dev/null"
}

// runs reports whether a service runs: it has a control group of systemd's, or
// a PID file that names a process.
func runs(root, service string) bool {
	for _, above := range []string{"/sys/fs/cgroup/system.slice/", "/sys/fs/cgroup/systemd/system.slice/"} {
		if exists(root, above+service+".service") {
			return true
		}
	}
	for _, file := range []string{"/run/" + service + ".pid", "/run/" + service + "/" + service + ".pid"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && exists(root, "/proc/"+strconv.Itoa(pid)) {
			return true
		}
	}
	return false
}

// links collects the scripts that a runlevel starts. It reports whether there
// are runlevels.
func links(root string, into map[string]bool) bool {
	found := false
	for _, above := range []string{"/etc/rc", "/etc/rc.d/rc"} {
		for _, level := range runlevels {
			folder := above + level + ".d"
			found = found || exists(root, folder)
			for _, e := range list(root, folder) { // "S08iptables"
				if len(e) > 3 && e[0] == 'S' && strings.Trim(e[1:3], "0123456789") == "" {
					into[e[3:]] = true
				}
			}
		}
	}
	return found
}

// levels collects the services of OpenRC's runlevels.
func levels(root string, into map[string]bool) {
	for _, level := range list(root, "/etc/runlevels") {
		for _, e := range list(root, "/etc/runlevels/"+level) {
			into[e] = true
		}
	}
}

func exists(root, name string) bool {
	_, err := os.Stat(filepath.Join(root, name))
	return err == nil
}

func list(root, folder string) []string {
	d, err := os.Open(filepath.Join(root, folder))
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	return names
}
