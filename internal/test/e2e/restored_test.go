package e2e

import (
	"fmt"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestRestoredBy is of hosts whose rules come back by other means than the services
// of distributions: plan finds the file and who restores it, apply keeps the file,
// and what the command of boot restores is what apply left. Rollback gives every
// byte back.
func TestRestoredBy(t *testing.T) {
	for i, tt := range []struct {
		name  string
		files map[string]string // those of boot; FILE stands for the rules file
		file  string
		boot  string // what is run to boot
		at    string // what the forecast names
	}{
		{"a script before an interface comes up", map[string]string{"/etc/network/if-pre-up.d/iptables": "#!/bin/sh\niptables-restore < FILE\nip6tables-restore < FILE6\n"},
			"/etc/iptables.up.rules", "run-parts /etc/network/if-pre-up.d", "/etc/network/if-pre-up.d/iptables:2"},
		{"a line with an interface", map[string]string{"/etc/network/interfaces": "auto lo\niface lo inet loopback\n\tpost-up iptables-restore < FILE\n\tpost-up ip6tables-restore < FILE6\n"},
			"/etc/iptables.rules", "sed -n 's/.*post-up//p' /etc/network/interfaces | sh", "/etc/network/interfaces:3"},
		{"a unit", map[string]string{"/etc/systemd/system/multi-user.target.wants/firewall.service": "-> ../firewall.service",
			"/etc/systemd/system/firewall.service": "[Service]\nType=oneshot\nExecStart=/sbin/iptables-restore FILE\nExecStart=/sbin/ip6tables-restore FILE6\n"},
			"/etc/firewall/rules.v4", "sed -n 's/^ExecStart=//p' /etc/systemd/system/firewall.service | sh", "/etc/systemd/system/firewall.service:3"},
		{"rc.local, which has a script do it", map[string]string{"/etc/rc.local": "#!/bin/sh\n/etc/fw/load\nexit 0\n", "/etc/fw/load": "#!/bin/bash\nRULES=FILE\n[ -s \"$RULES\" ] && iptables-restore \"$RULES\"\ncat FILE6 | ip6tables-restore\n"},
			"/etc/fw/rules", "/etc/rc.local", "/etc/fw/load:3"},
	} {
		backend := backends[i%len(backends)]
		t.Run(tt.name+"/"+string(backend), func(t *testing.T) {
			t.Parallel()
			h := bootedHost(t, backend, tt.files, tt.file)
			h.write(tt.file, savedRules)
			h.write(tt.file+"6", strings.NewReplacer("198.51.100.0/24", "2001:db8::/32", "-p icmp", "-p ipv6-icmp").Replace(savedRules))
			h.sh(tt.boot)
			path := h.config(webUntracked)
			before := map[string]string{tt.file: h.read(tt.file), tt.file + "6": h.read(tt.file + "6")}

			r := h.ctplan(exitOK, "plan", path)
			if strings.Contains(r.stdout, "survive a reboot") || !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), tt.at) {
				t.Errorf("plan does not say that %s restores the file:\n%s", tt.at, r.stdout)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			applied := h.rules()
			h.sh("iptables -F; iptables -X; iptables -t raw -F; iptables -t raw -X; ip6tables -F; ip6tables -X; ip6tables -t raw -F; ip6tables -t raw -X")
			h.sh(tt.boot)
			same(t, "what a boot restores", applied, h.rules())
			h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
			h.ctplan(exitOK, "rollback", "--auto-approve")
			for file, was := range before {
				same(t, file+" after rollback", was, h.read(file))
			}
		})
	}
}

// TestMadeByScript is of a host whose rules a script makes: plan names it and
// what to put there, and with that line ctplan's rules stand after a boot.
func TestMadeByScript(t *testing.T) {
	const script = "#!/bin/sh\niptables -F INPUT\niptables -P INPUT DROP\niptables -A INPUT -i lo -j ACCEPT\niptables -A INPUT -p tcp --dport 8080 -m state --state NEW -j ACCEPT\n" +
		"ip6tables -F INPUT\nip6tables -A INPUT -i lo -j ACCEPT\n"
	h := bootedHost(t, "nft", map[string]string{"/etc/rc.local": script}, "")
	h.sh("/etc/rc.local")
	path := h.config(webUntracked)
	r := h.ctplan(exitOK, "plan", path)
	for _, at := range []string{"/etc/rc.local:3 makes rules", "/etc/rc.local:7 makes rules"} {
		if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), at) {
			t.Errorf("plan does not say %q:\n%s", at, r.stdout)
		}
	}
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	h.write("/etc/rc.local", script+fmt.Sprintf("/run/test/ctplan apply --auto-approve %s\n", path))
	for range 2 {
		h.sh("iptables -F; iptables -X; iptables -t raw -F; iptables -t raw -X; ip6tables -F; ip6tables -X; ip6tables -t raw -F; ip6tables -t raw -X")
		finish(t, h.commandOf("/etc/rc.local"))
		h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
	}
}

// bootedHost is a host that systemd seems to have booted, with files of boot; what
// begins with #! can be run.
func bootedHost(t *testing.T, backend live.Backend, files map[string]string, file string) *host {
	t.Helper()
	h := newHost(t, backend, "web-1")
	h.Run("sh", "-c", "mkdir -p /run/systemd/system /run/u /run/w && mount -t overlay -o lowerdir=/usr/sbin,upperdir=/run/u,workdir=/run/w overlay /usr/sbin && touch /usr/sbin/ifup")
	for name, content := range files {
		h.write(name, strings.NewReplacer("FILE6", file+"6", "FILE", file).Replace(content))
		if strings.HasPrefix(content, "#!") {
			h.Run("chmod", "755", name)
		}
	}
	return h
}
