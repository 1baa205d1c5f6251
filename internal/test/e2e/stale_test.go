package e2e

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	live "github.com/ctplan/ctplan/planner/host"
)

// TestStale changes one thing that a saved plan was made from at a time. Where
// the plan would be another one, or hurt somebody else, apply refuses, names it
// and changes nothing; put back, the plan is good again. Where not, apply names
// it and goes on, and there is a way back.
func TestStale(t *testing.T) {
	// bound shows the host other text in a file of the kernel.
	bound := func(path, text string) (do, undo string) {
		return "echo '" + text + "' > /run/test/bound; mount --bind /run/test/bound " + path, "umount " + path
	}
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "web-1")
			redHat(h)
			h.sh("touch /etc/machine-id")
			other := live.Legacy
			if backend == live.Legacy {
				other = live.NFT
			}
			// Tables that were used once stay, and are no news then.
			h.sh("for f in iptables ip6tables; do $f-" + string(other) + " -A INPUT -j ACCEPT; $f-" + string(other) + " -D INPUT -j ACCEPT; done")
			h.sh("nft 'add table inet fw; add set inet fw s { type ipv4_addr; }; add chain inet fw in { type filter hook input priority 10; }; add rule inet fw in ip saddr @s drop'")
			h.sh("ip link add up0 type veth peer name up1; ip addr add 198.18.0.1/24 dev up0; ip link set up0 up; ip link set up1 up")
			h.sh("iptables -N bans; iptables -I INPUT -j bans; iptables -t raw -S; ip6tables -t raw -S")
			path := h.config(webUntracked)
			h.ctplan(exitOK, "plan", "--out", "plan", path)

			type change struct{ address, do, undo string }
			told := []change{
				{"iptables.ipv4.filter", "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"},
				{"iptables.ipv4.filter", "iptables -N new; iptables -A new -s 192.0.2.1 -j DROP", "iptables -F new; iptables -X new"},
				{"iptables.ipv4.filter", "iptables -A bans -s 192.0.2.1 -j REJECT", "iptables -F bans"},
				{"nftables.inet.fw", "nft add rule inet fw in ip saddr 192.0.2.7 accept", "nft delete rule inet fw in handle $(nft -a list chain inet fw in | sed -n 's/.*192.0.2.7 accept # handle //p')"},
				{"nftables.inet.fw", "nft add element inet fw s { 192.0.2.9 }", "nft delete element inet fw s { 192.0.2.9 }"},
				{"iptables.ipv6.mangle", "ip6tables -t mangle -A OUTPUT -j ACCEPT", "ip6tables -t mangle -F"},
				{"sysctl.net.netfilter.nf_conntrack_udp_timeout", "cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout > was; echo 77 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout", "cat was > /proc/sys/net/netfilter/nf_conntrack_udp_timeout"},
				{"file./etc/modprobe.d/new.conf", "echo '# nothing' > /etc/modprobe.d/new.conf", "rm /etc/modprobe.d/new.conf"},
				{"file./etc/sysctl.d/new.conf", "touch /etc/sysctl.d/new.conf", "rm /etc/sysctl.d/new.conf"},
				{"file./etc/modules-load.d/net.conf", "mv /etc/modules-load.d/net.conf kept", "mv kept /etc/modules-load.d/net.conf"},
				{"file./etc/init.d/iptables", "cp -a /etc/rc.d/init.d/iptables /etc/rc.d/other; ln -sfn ../rc.d/other /etc/init.d/iptables", "ln -sfn ../rc.d/init.d/iptables /etc/init.d/iptables; rm /etc/rc.d/other"},
			}
			changes := []change{
				{"iptables.ipv4.filter", "iptables -A bans -p tcp --dport 8080 -j REJECT", "iptables -F bans"},
				{"iptables.ipv4.filter", "iptables -A bans -m state --state NEW -j REJECT", "iptables -F bans"},
				{"iptables.ipv4.filter", "iptables -D INPUT -j bans", "iptables -I INPUT -j bans"},
				{"iptables.ipv4.filter", "iptables -A INPUT -s 192.0.2.1 -j DROP", "iptables -D INPUT -s 192.0.2.1 -j DROP"},
				{"iptables.ipv4.raw", "iptables -t raw -A OUTPUT -j ACCEPT", "iptables -t raw -F"},
				{"iptables.ipv6.filter", "ip6tables -I INPUT -s 2001:db8::1 -j DROP", "ip6tables -D INPUT 1"},
				{"nftables.inet.fw", "nft add chain inet fw in { policy drop\\; }", "nft add chain inet fw in { policy accept\\; }"},
			}
			for family, command := range map[string]string{"ipv4": "iptables-", "ipv6": "ip6tables-"} {
				command += string(other)
				told = append(told, change{"iptables." + family + "." + string(other) + ".filter", command + " -A INPUT -j ACCEPT", command + " -D INPUT -j ACCEPT"})
			}
			do, undo := bound("/proc/sys/kernel/random/boot_id", "another")
			told = append(told, change{"host.boot_id", do, undo})
			do, undo = bound("/proc/sys/kernel/osrelease", "another")
			changes = append(changes, change{"host.kernel", do, undo})
			for address, file := range map[string][2]string{
				"host.cpus":                             {"/sys/devices/system/cpu/online", "0-63"},
				"host.memory":                           {"/proc/meminfo", "MemTotal: 123456 kB"},
				"conntrack.hashsize":                    {"/sys/module/nf_conntrack/parameters/hashsize", "512"},
				"sysctl.net.netfilter.nf_conntrack_max": {"/proc/sys/net/netfilter/nf_conntrack_max", "513"},
			} {
				do, undo := bound(file[0], file[1])
				changes = append(changes, change{address, do, undo})
			}
			// Each kind of file, whatever happens to it.
			for _, path := range []string{
				"/etc/sysctl.conf", "/etc/modules-load.d/net.conf", "/etc/init.d/iptables", "/etc/sysconfig/iptables-config",
				"/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables",
			} {
				address := "file." + path
				keep := "cp -a --remove-destination $(realpath " + path + ") /run/test/kept; "
				back := "cp -a --remove-destination /run/test/kept $(realpath " + path + ")"
				more := []change{
					{address, keep + "echo '# more' >> " + path, back},
					{address, keep + "chmod 0604 " + path, back},
					{address, keep + "chown 7 " + path, back},
					{address, keep + "chgrp 7 " + path, back},
				}
				if strings.HasSuffix(path, "tables") && strings.Contains(path, "sysconfig") { // the plan edits it
					changes = append(changes, more...)
				} else {
					told = append(told, more[0])
				}
			}
			for _, c := range told {
				h.sh(c.do)
				before := h.state()
				r := h.ctplan(exitOK, "apply", "plan")
				for _, text := range []string{c.address, "changed since the plan was made", "the changes are the same, and nobody else is hurt"} {
					if !strings.Contains(r.stderr, text) {
						t.Errorf("after %s, apply does not say %q:\n%s", c.do, text, r.stderr)
					}
				}
				h.ctplan(exitOK, "rollback", "--auto-approve")
				same(t, "after "+c.do+", apply and rollback", before, h.state())
				h.sh(c.undo)
				if t.Failed() {
					t.FailNow()
				}
			}
			for _, c := range changes {
				h.sh(c.do)
				before := h.state()
				h.refused(before, h.try("apply", "plan"), exitError, "the host changed since the plan was made", c.address, "nothing was changed", "plan again")
				h.sh(c.undo)
				if t.Failed() {
					t.Fatalf("after %s", c.do)
				}
			}
			attribute := func(set func(path string) error) {
				if err := set(h.Path("/etc/sysconfig/iptables")); err != nil {
					t.Fatal(err)
				}
			}
			attribute(func(path string) error { return unix.Setxattr(path, "user.x", []byte("y"), 0) })
			h.refused(h.state(), h.try("apply", "plan"), exitError, "file./etc/sysconfig/iptables")
			attribute(func(path string) error { return unix.Removexattr(path, "user.x") })

			do, undo = bound("/etc/machine-id", "another")
			h.sh(do)
			h.refused(h.state(), h.try("apply", "plan"), exitError, "the plan is for another machine", "host.machine_id")
			h.ctplan(exitOK, "show", "plan") // whatever the host is
			h.sh(undo)
			h.name = "web-2"
			h.refused(h.state(), h.try("apply", "plan"), exitError, "the plan is for host web-1, and this is web-2")
			h.name = "web-1"

			if r := h.ctplan(exitOK, "apply", "plan"); !strings.Contains(r.stdout, "applied: ") {
				t.Errorf("with everything as it was, apply says:\n%s", r.stdout)
			}
			t.Logf("%d changes, each refused and named; %d told", len(changes)+3, len(told))
		})
	}
}
