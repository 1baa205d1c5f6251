// Package servers knows which servers of UDP a host is configured to ask: name
// servers, time servers, and those of DHCP.
//
// It owns resolv.conf, the configurations of chrony, ntpd and systemd-timesyncd,
// and what ifupdown, systemd-networkd and Red Hat's ifcfg files say of DHCP. It
// reads them and asks nobody: what a name stands for it does not know.
package servers

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/internal/hostfile"
	"github.com/ctplan/ctplan/planner/host"
)

// maxBytes bounds what is read of a file, maxServers what is taken of all.
const (
	maxBytes   = 1 << 16
	maxServers = 64
)

// Read is what the host under root is configured to ask, by service and file.
// What cannot be read is as if it were not there.
func Read(root string) (out []host.Server) {
	add := func(s host.Server) {
		if len(out) < maxServers && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	nameServers(root, add)
	for _, path := range []string{"/etc/chrony/chrony.conf", "/etc/chrony.conf", "/etc/ntp.conf", "/etc/ntpsec/ntp.conf"} {
		timeServers(root, path, []string{"server", "pool", "peer"}, add)
	}
	timeServers(root, "/etc/systemd/timesyncd.conf", []string{"NTP"}, add)
	dhcp(root, add)
	return out
}

// statements calls visit with the words of each line that is no comment; an
// equals sign parts words too.
func statements(root, path string, visit func(words []string)) {
	f, err := hostfile.Read(root, path)
	if err != nil || !f.Exists {
		return
	}
	for line := range strings.Lines(f.Content[:min(len(f.Content), maxBytes)]) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(strings.Replace(line, "=", " ", 1)); len(words) > 1 && words[0][0] != ';' {
			visit(words)
		}
	}
}

// nameServers are those of resolv.conf(5). Where it names the host itself,
// systemd-resolved asks those of its own file.
func nameServers(root string, add func(host.Server)) {
	local := false
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		statements(root, path, func(w []string) {
			a, err := netip.ParseAddr(w[1])
			if w[0] != "nameserver" || err != nil {
				return
			}
			if local = local || a.IsLoopback(); !a.IsLoopback() {
				add(host.Server{Service: host.ServiceDNS, Addr: a.Unmap().WithZone(""), Port: 53, File: path})
			}
		})
		if !local {
			return
		}
	}
}

func timeServers(root, path string, words []string, add func(host.Server)) {
	statements(root, path, func(w []string) {
		if !slices.Contains(words, w[0]) {
			return
		}
		names := w[1:2]
		if len(words) == 1 { // a list
			names = w[1:]
		}
		for _, name := range names {
			s := host.Server{Service: host.ServiceNTP, Port: 123, File: path}
			if a, err := netip.ParseAddr(name); err == nil {
				s.Addr = a.Unmap().WithZone("")
			}
			if !s.Addr.IsLoopback() {
				add(s)
			}
		}
	})
}

// dhcp is whether addresses come by DHCP (RFC 2131) or DHCPv6 (RFC 8415).
func dhcp(root string, add func(host.Server)) {
	four := func(path string) { add(host.Server{Service: host.ServiceDHCP, Port: 67, LocalPort: 68, File: path}) }
	six := func(path string) {
		add(host.Server{Service: host.ServiceDHCPv6, Port: 547, LocalPort: 546, File: path})
	}
	for _, path := range append([]string{"/etc/network/interfaces"}, in(root, "/etc/network/interfaces.d", "")...) {
		statements(root, path, func(w []string) {
			switch {
			case len(w) < 4 || w[0] != "iface" || w[3] != "dhcp":
			case w[2] == "inet6":
				six(path)
			default:
				four(path)
			}
		})
	}
	for _, folder := range []string{"/etc/systemd/network", "/run/systemd/network"} {
		for _, path := range in(root, folder, ".network") {
			statements(root, path, func(w []string) {
				if w[0] != "DHCP" {
					return
				}
				on := strings.ToLower(w[1])
				if on == "yes" || on == "true" || on == "both" || on == "ipv4" || on == "v4" {
					four(path)
				}
				if on == "yes" || on == "true" || on == "both" || on == "ipv6" || on == "v6" {
					six(path)
				}
			})
		}
	}
	for _, path := range in(root, "/etc/sysconfig/network-scripts", "") {
		if strings.HasPrefix(filepath.Base(path), "ifcfg-") {
			statements(root, path, func(w []string) {
				if w[0] == "BOOTPROTO" && strings.ToLower(strings.Trim(w[1], `"'`)) == "dhcp" {
					four(path)
				}
			})
		}
	}
}

// in are the files of a folder whose names end so, in their order.
func in(root, folder, suffix string) (out []string) {
	entries, _ := os.ReadDir(filepath.Join(root, folder))
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && utf8.ValidString(e.Name()) && len(out) < maxServers {
			out = append(out, folder+"/"+e.Name())
		}
	}
	return out
}
