package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	live "github.com/ctplan/ctplan/planner/host"
)

// What the drift of a cause test is about: rules and the file that keeps them.
const untrackDNS = `
conntrack "dns" {
  mode     = "notrack"
  families = ["ipv4"]

  notrack "dns" {
    protocol    = "udp"
    remote_port = 53
  }
}
`

// The same with rules of the filter table, beside rules on state that stay.
const acceptDNS = `
conntrack "dns" {
  mode       = "notrack"
  families   = ["ipv4"]
  allow_risk = ["stateful_rules"]

  notrack "dns" {
    protocol    = "udp"
    remote_port = 53
  }
  accept "dns" {
    protocol    = "udp"
    remote_port = 53
  }
}
`

// A value and the file that keeps it. The sizes are the machine's own.
const tunedTimeout = `
conntrack "nat" {
  mode     = "tuned"
  max      = host.conntrack.max
  hashsize = HASHSIZE
  timeouts = { tcp_established = 7200 }
}
`

// Modules, and what loads them.
const noTracking = `
conntrack "cache" {
  mode           = "disabled"
  families       = ["ipv4"]
  stateful_rules = "remove"
}
`

// Addresses of what differs.
const (
	rawV4       = "iptables.ipv4.raw"
	filterV4    = "iptables.ipv4.filter"
	established = "net.netfilter.nf_conntrack_tcp_timeout_established"
	timeout     = "sysctl." + established
	sysctlConf  = "file./etc/sysctl.conf"
	initScript  = "initscript./etc/init.d/iptables"
)

// told is what drift tells of a cause.
type told struct {
	Kind      string `json:"kind"`
	Certainty string `json:"certainty"`
	Text      string `json:"text"`
	Evidence  []struct {
		Where string `json:"where"`
		Text  string `json:"text"`
		Time  string `json:"time"`
	} `json:"evidence"`
}

// causes are those of each object that differs.
func (h *host) causes(path string) map[string][]told {
	h.t.Helper()
	var doc struct {
		Changes []struct {
			Address string `json:"address"`
			Causes  []told `json:"causes"`
		} `json:"changes"`
	}
	r := h.ctplan(exitChanges, "drift", "--json", path)
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		h.t.Fatalf("reading JSON: %v\n%s", err, r.stdout)
	}
	if r.stderr != "" && !strings.Contains(r.stderr, "was cut off") {
		h.t.Errorf("drift says on stderr:\n%s", r.stderr)
	}
	all := map[string][]told{}
	for _, c := range doc.Changes {
		all[c.Address] = c.Causes
	}
	return all
}

// A deed is one way for a host to drift, done for real.
type deed struct {
	name    string
	needs   []string // programs beside those of every test
	backend live.Backend
	furnish func(h *host) // before apply
	do      func(h *host) // after it
	config  string

	// What drift must tell first of the object.
	address, kind, certainty, text, where string
}

func shell(script string) func(*host) { return func(h *host) { h.sh(script) } }

var deeds = []deed{
	{
		name: "nothing was ever applied", backend: live.NFT, do: func(h *host) { h.sh("rm -rf /var/lib/ctplan; iptables -t raw -F CTPLAN-OUTPUT") },
		config:  untrackDNS,
		address: rawV4, kind: "never_applied", certainty: "likely", text: "not been applied here",
	},
	{
		name: "the declaration changed", backend: live.Legacy,
		do: func(h *host) {
			h.write("/run/test/main.hcl", strings.ReplaceAll(sized(h, tunedTimeout), "7200", "3600"))
		},
		config:  tunedTimeout,
		address: timeout, kind: "declaration", certainty: "likely", text: "what is declared has changed", where: "/var/lib/ctplan/000001.journal",
	},
	{
		name: "the declaration of rules changed", backend: live.NFT,
		do: func(h *host) {
			h.write("/run/test/main.hcl", strings.ReplaceAll(untrackDNS, "= 53", "= 5353"))
		},
		config:  untrackDNS,
		address: rawV4, kind: "declaration", certainty: "likely", text: "what is declared has changed",
	},
	{
		name: "a rollback", backend: live.NFT, do: func(h *host) { h.ctplan(exitOK, "rollback", "--auto-approve") },
		config:  tunedTimeout,
		address: timeout, kind: "rolled_back", certainty: "likely", text: "took it back",
	},
	{
		name: "an apply that was killed", backend: live.NFT,
		furnish: func(h *host) { h.initialBreak() },
		do:      func(h *host) { h.cutOff() },
		config:  untrackDNS,
		address: rawV4, kind: "cut_off", certainty: "likely", text: "was cut off", where: "/var/lib/ctplan/000002.journal",
	},
	{
		name: "a dpkg upgrade of the init script", backend: live.NFT, needs: []string{"dpkg-deb"},
		furnish: func(h *host) { h.deb("iptables-init", "1.0", "/etc/init.d/iptables", initContent, "", false) },
		do:      func(h *host) { h.deb("iptables-init", "1.1", "/etc/init.d/iptables", initContent+"# 1.1\n", "", false) },
		config:  noTracking,
		address: initScript, kind: "package", certainty: "likely", text: "dpkg wrote it anew with the package iptables-init 1.1", where: "/var/log/dpkg.log:",
	},
	{
		name: "a dpkg conffile taken from the maintainer", backend: live.Legacy, needs: []string{"dpkg-deb"},
		furnish: func(h *host) { h.deb("settings", "1.0", "/etc/sysctl.conf", "# settings\n", "", true) },
		do:      func(h *host) { h.deb("settings", "2.0", "/etc/sysctl.conf", "# settings 2\n", "", true) },
		config:  tunedTimeout,
		address: sysctlConf, kind: "package", certainty: "likely", text: "dpkg wrote it anew with the package settings 2.0", where: "/var/log/dpkg.log:",
	},
	{
		name: "a dpkg maintainer script", backend: live.NFT, needs: []string{"dpkg-deb"},
		furnish: func(h *host) { h.deb("settings", "1.0", "/etc/sysctl.conf", "# settings\n", "", true) },
		do: func(h *host) {
			h.deb("settings", "2.0", "/etc/sysctl.conf", "# settings\n", "sed -i /nf_conntrack/d /etc/sysctl.conf; echo '# tuned by postinst' >> /etc/sysctl.conf", true)
		},
		config:  tunedTimeout,
		address: sysctlConf, kind: "package", certainty: "likely", text: "it changed while dpkg put the package settings 2.0", where: "/var/log/dpkg.log:",
	},
	{
		name: "an rpm upgrade of the init script", backend: live.NFT, needs: []string{"rpmbuild", "rpm"},
		furnish: func(h *host) { h.rpm("1.0", initContent) },
		do:      func(h *host) { h.rpm("1.1", initContent+"# 1.1\n") },
		config:  noTracking,
		address: initScript, kind: "package", certainty: "likely", text: "rpm wrote it anew with the package iptables-init 1.1-1", where: "rpm -q iptables-init",
	},
	{
		name: "a reboot", backend: live.Legacy,
		do: shell(`iptables -t raw -F; iptables -t raw -X
			echo 01234567-89ab-cdef-0123-456789abcdef > /run/boot_id; mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
			echo "btime $(date +%s)" > /run/stat; mount --bind /run/stat /proc/stat`),
		config:  untrackDNS,
		address: rawV4, kind: "reboot", certainty: "likely", text: "the host was restarted", where: "/proc/stat",
	},
	{
		name: "a restart of the init script", backend: live.Legacy,
		furnish: func(h *host) { h.redHatService() },
		do:      shell("sed -i /CTPLAN/d /etc/sysconfig/iptables; /etc/init.d/iptables restart"),
		config:  untrackDNS,
		address: rawV4, kind: "service", certainty: "likely", text: "the service iptables was started", where: "/var/lock/subsys/iptables",
	},
	{
		name: "a restart by systemd", backend: live.NFT,
		// systemd makes the link in this way; it does not run here.
		do: shell(`iptables-restore < /dev/null; iptables -t raw -F; iptables -t raw -X; mkdir -p /run/systemd/units
			ln -s 0123456789abcdef0123456789abcdef /run/systemd/units/invocation:netfilter-persistent.service`),
		config:  untrackDNS,
		address: rawV4, kind: "service", certainty: "likely", text: "the service netfilter-persistent was started", where: "/run/systemd/units/invocation:netfilter-persistent.service",
	},
	{
		name: "rules of Docker", backend: live.NFT,
		do: func(h *host) {
			h.sh(`iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -I FORWARD -j DOCKER-USER
				iptables -A DOCKER-USER -m conntrack --ctstate ESTABLISHED -j ACCEPT`)
		},
		config:  noTracking,
		address: filterV4, kind: "writer", certainty: "likely", text: "Docker made rules", where: filterV4,
	},
	{
		// As firewalld with its iptables backend has them; it does not run here.
		name: "rules of firewalld", backend: live.Legacy,
		do: shell(`iptables -N INPUT_ZONES; iptables -A INPUT -j INPUT_ZONES
			iptables -A INPUT_ZONES -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT`),
		config:  noTracking,
		address: filterV4, kind: "firewall", certainty: "likely", text: "firewalld made rules", where: filterV4,
	},
	{
		name: "a reload of ufw", backend: live.NFT, needs: []string{"apt-get", "/usr/bin/python3"},
		furnish: func(h *host) {
			h.ufw()
			h.sh("sed -i s/^MANAGE_BUILTINS=no/MANAGE_BUILTINS=yes/ /etc/default/ufw; ufw allow 22/tcp >/dev/null; ufw --force enable >/dev/null")
		},
		do:      shell("sleep 0.01; ufw reload >/dev/null"),
		config:  acceptDNS,
		address: filterV4, kind: "firewall", certainty: "likely", text: "ufw was run or reloaded", where: "/etc/ufw/",
	},
	{
		name: "kube-proxy", backend: live.NFT,
		do: func(h *host) {
			h.process("kube-proxy")
			h.sh("echo 86400 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
		},
		config:  tunedTimeout,
		address: timeout, kind: "writer", certainty: "likely", text: "kube-proxy sets this value", where: "/proc/",
	},
	{
		name: "TuneD", backend: live.Legacy,
		furnish: shell(`mkdir -p /etc/tuned/web /etc/tuned/base; echo web > /etc/tuned/active_profile
			printf '[main]\ninclude=base\n' > /etc/tuned/web/tuned.conf
			printf '[sysctl]\n# for the proxy\n` + established + `=1200\n' > /etc/tuned/base/tuned.conf`),
		do:      shell("sysctl -qw $(grep ^net. /etc/tuned/base/tuned.conf)"),
		config:  tunedTimeout,
		address: timeout, kind: "writer", certainty: "likely", text: "TuneD sets " + established + " to 1200", where: "/etc/tuned/base/tuned.conf:3",
	},
	{
		name: "a later file of sysctl.d", backend: live.NFT,
		do: shell(`printf '# vendor\n\n` + established + ` = 999\n' > /etc/sysctl.d/99-zz-vendor.conf
			sysctl -qp /etc/sysctl.d/99-zz-vendor.conf`),
		config:  tunedTimeout,
		address: timeout, kind: "setting", certainty: "likely", text: "/etc/sysctl.d/99-zz-vendor.conf:3 sets", where: "/etc/sysctl.d/99-zz-vendor.conf:3",
	},
	{
		name: "a hand with sudo and iptables", backend: live.Legacy, needs: []string{"sudo"},
		do:      func(h *host) { h.sudo("iptables", "-t", "raw", "-F", "CTPLAN-OUTPUT") },
		config:  untrackDNS,
		address: rawV4, kind: "hand", certainty: "likely", text: "alice ran", where: "/var/log/auth.log:",
	},
	{
		name: "a hand with sudo and sysctl", backend: live.NFT, needs: []string{"sudo"},
		do:      func(h *host) { h.sudo("sysctl", "-qw", established+"=60") },
		config:  tunedTimeout,
		address: timeout, kind: "hand", certainty: "likely", text: "sysctl -qw " + established + "=60 with sudo", where: "/var/log/auth.log:",
	},
	{
		name: "a hand with sudo and an editor", backend: live.NFT, needs: []string{"sudo"},
		do: func(h *host) {
			h.sudo("sh", "-c", "cd /etc && sed -i /nf_conntrack/d /etc/sysctl.conf")
		},
		config:  tunedTimeout,
		address: sysctlConf, kind: "hand", certainty: "likely", text: "alice ran", where: "/var/log/auth.log:",
	},
	{
		name: "a shell of root", backend: live.Legacy, needs: []string{"sudo"},
		do: func(h *host) {
			h.sudo("sh", "-s")
			h.sh("iptables -t raw -F CTPLAN-PREROUTING")
		},
		config:  untrackDNS,
		address: rawV4, kind: "hand", certainty: "possible", text: "alice ran", where: "/var/log/auth.log:",
	},
	{
		name: "Ansible", backend: live.NFT, needs: []string{"logger"},
		do: func(h *host) {
			h.syslog(func() {
				h.sh(`sysctl -qw ` + established + `=60; logger -t ansible-ansible.posix.sysctl "Invoked with name=` + established + ` value=60 state=present"`)
			})
		},
		config:  tunedTimeout,
		address: timeout, kind: "hand", certainty: "likely", text: "Ansible ran ansible.posix.sysctl", where: "/var/log/auth.log:",
	},
	{
		name: "Puppet", backend: live.NFT,
		furnish: shell("sed -i '1i # This file is managed by Puppet; changes are lost' /etc/sysctl.conf"),
		do:      shell("sed -i /nf_conntrack/d /etc/sysctl.conf"),
		config:  tunedTimeout,
		address: sysctlConf, kind: "writer", certainty: "likely", text: "Puppet manages the file", where: "/etc/sysctl.conf:1",
	},
	{
		name: "nobody knows", backend: live.NFT, do: shell("sed -i /nf_conntrack/d /etc/sysctl.conf"),
		config:  tunedTimeout,
		address: sysctlConf, kind: "unknown", text: "cause not known", where: "/etc/sysctl.conf",
	},
	{
		name: "nobody knows of rules", backend: live.Legacy, do: shell("iptables -t raw -F CTPLAN-OUTPUT"),
		config:  untrackDNS,
		address: rawV4, kind: "unknown", text: "cause not known",
	},
}

const initContent = "#!/bin/sh\n# iptables\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6\n"

// TestCauses does every deed for real, and has drift name it.
func TestCauses(t *testing.T) {
	for _, d := range deeds {
		t.Run(strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
			for _, program := range d.needs {
				if _, err := exec.LookPath(program); err != nil {
					testhost.Lacks(t, "needs "+program)
				}
			}
			t.Parallel()
			h := newHost(t, d.backend, "web-1", "/var/log")
			h.sh(`rm -rf /var/log/auth.log* /var/log/syslog* /var/log/dpkg.log* /var/log/journal /etc/tuned /etc/ufw /etc/firewalld
				iptables -A INPUT -p icmp -j ACCEPT; mkdir -p /etc/iptables; iptables-save > /etc/iptables/rules.v4`)
			if d.furnish != nil {
				d.furnish(h)
			}
			path := h.config(sized(h, d.config))
			h.ctplan(exitOK, "apply", "--auto-approve", path)
			h.ctplan(exitOK, "drift", path)
			d.do(h)
			causes := h.causes(path)
			got := causes[d.address]
			if len(got) == 0 {
				t.Fatalf("drift tells no cause of %s: %+v", d.address, causes)
			}
			first := got[0]
			if first.Kind != d.kind || first.Certainty != d.certainty || !strings.Contains(first.Text, d.text) {
				t.Errorf("%s: the first cause is %+v, want %s, %s, %q", d.address, got, d.kind, d.certainty, d.text)
			}
			if d.where != "" && (len(first.Evidence) == 0 || !strings.HasPrefix(first.Evidence[0].Where, d.where)) {
				t.Errorf("%s: the evidence is %+v, want it at %s", d.address, first.Evidence, d.where)
			}
			t.Logf("%s", h.ctplan(exitChanges, "drift", path).stdout)
		})
	}
}

// deb builds a package with one file and installs it, as an upgrade if it is
// there already.
func (h *host) deb(name, version, file, content, postinst string, conffile bool) {
	h.t.Helper()
	h.sh("rm -rf /run/deb; mkdir -p /run/deb/DEBIAN")
	h.write("/run/deb"+file, content)
	h.write("/run/deb/DEBIAN/control", fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: for a test\n", name, version))
	if conffile {
		h.write("/run/deb/DEBIAN/conffiles", file+"\n")
	} else {
		h.sh(`cd /run/deb && chmod 755 .` + file + ` && md5sum .` + file + ` | sed 's,\./,,' > DEBIAN/md5sums`)
	}
	if postinst != "" {
		h.write("/run/deb/DEBIAN/postinst", "#!/bin/sh\nset -e\n"+postinst+"\n")
		h.sh("chmod 755 /run/deb/DEBIAN/postinst")
	}
	h.sh(`chmod 755 /run/deb /run/deb/DEBIAN; dpkg-deb --root-owner-group --build /run/deb /run/test.deb >/dev/null
		dpkg --force-confnew --force-confdef=no --force-overwrite -i /run/test.deb >/dev/null 2>&1 || dpkg --force-confnew --force-overwrite -i /run/test.deb >/dev/null`)
}

// rpm builds the package of an init script and installs it into a database
// where the Red Hat family has it.
func (h *host) rpm(version, content string) {
	h.t.Helper()
	h.write("/run/rpm/iptables", content)
	h.write("/run/rpm/iptables-init.spec", fmt.Sprintf(`Name: iptables-init
Version: %s
Release: 1
Summary: for a test
License: none
BuildArch: noarch
%%description
For a test.
%%install
mkdir -p %%{buildroot}/etc/init.d
cp /run/rpm/iptables %%{buildroot}/etc/init.d/iptables
%%files
%%attr(0755,root,root) /etc/init.d/iptables
`, version))
	h.sh(`mkdir -p /var/lib/rpm; cd /run/rpm
		rpmbuild --quiet --define "_topdir /run/rpm/top" --define "_rpmdir /run/rpm" --define "_build_name_fmt iptables-init.rpm" -bb iptables-init.spec >/run/rpm/log 2>&1 || { cat /run/rpm/log >&2; exit 1; }
		rpm --dbpath /var/lib/rpm --force-debian --nodeps -U iptables-init.rpm`)
}

// sized fills in the machine's hash size.
func sized(h *host, hcl string) string {
	return strings.ReplaceAll(hcl, "HASHSIZE", strings.TrimSpace(h.read(nstest.Hashsize)))
}

// redHatService is an init script that brings saved rules, as the Red Hat
// family has it.
func (h *host) redHatService() {
	h.t.Helper()
	h.write("/etc/init.d/iptables", `#!/bin/sh
start() {
	iptables-restore /etc/sysconfig/iptables && touch /var/lock/subsys/iptables
}
stop() {
	for table in $(cat /proc/net/ip_tables_names); do
		iptables -t $table -F
		iptables -t $table -X
	done
	rm -f /var/lock/subsys/iptables
}
case $1 in
start) start ;;
stop) stop ;;
restart) stop; start ;;
esac
`)
	h.sh(`chmod 755 /etc/init.d/iptables; mkdir -p /etc/sysconfig /run/lock/subsys; iptables-save > /etc/sysconfig/iptables
		rm -rf /etc/iptables`)
}

// ufw puts Debian's ufw on the host alone: over /usr lies a folder with the
// package, which is fetched once.
func (h *host) ufw() {
	h.t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		h.t.Fatal(err)
	}
	dir := filepath.Join(cache, "ctplan", "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(dir, "ufw_*.deb"))
	if len(found) == 0 {
		fetch := exec.Command("sh", "-c", "apt-get -q -o Acquire::Retries=3 download ufw || { apt-get -q update && apt-get -q -o Acquire::Retries=3 download ufw; }")
		fetch.Dir = dir
		if out, err := fetch.CombinedOutput(); err != nil {
			testhost.Lacks(h.t, fmt.Sprintf("cannot fetch Debian's ufw: %v\n%s", err, out))
		}
		found, _ = filepath.Glob(filepath.Join(dir, "ufw_*.deb"))
	}
	h.sh(`mkdir /run/ufw; dpkg-deb -x ` + found[0] + ` /run/ufw; cd /run/ufw; [ ! -d lib ] || { cp -a lib/. usr/lib/; rm -r lib; }
		mount -t overlay overlay -o lowerdir=/run/ufw/usr:/usr /usr
		cp -a etc/. /etc/; cp /usr/share/ufw/iptables/*.rules /etc/ufw/; cp /usr/share/ufw/ufw.conf /etc/ufw/ 2>/dev/null || echo ENABLED=no > /etc/ufw/ufw.conf`)
}

// process runs a program of that name in the host's namespaces until the test ends.
func (h *host) process(name string) {
	h.t.Helper()
	h.sh("cp /bin/sleep /run/test/" + name)
	cmd := h.Command("/run/test/"+name, "1000")
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	time.Sleep(50 * time.Millisecond) // nsenter becomes it
}

// syslog runs fn while what is logged goes to /var/log/auth.log, in the form
// of rsyslog on Debian 12.
func (h *host) syslog(fn func()) {
	h.t.Helper()
	h.sh(`[ -e /run/dev ] || { mkdir /run/dev; cp -a /dev/null /dev/zero /dev/urandom /dev/random /dev/tty /dev/fd /dev/std* /run/dev; mount --bind /run/dev /dev; }; rm -f /dev/log`)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.Path("/dev/log"), Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	log, err := os.OpenFile(h.Path("/var/log/auth.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 8192)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			// "<86>Nov 28 17:29:41 sudo: …"
			_, text, _ := strings.Cut(strings.TrimRight(string(buf[:n]), "\n\x00"), ">")
			if len(text) > 16 {
				fmt.Fprintf(log, "%s web-1 %s\n", time.Now().Format("2006-01-02T15:04:05.000000-07:00"), text[16:])
			}
		}
	}()
	fn()
	time.Sleep(20 * time.Millisecond)
	conn.Close()
	<-done
}

// sudo runs a command as alice does with sudo.
func (h *host) sudo(words ...string) {
	h.t.Helper()
	h.sh(`id alice >/dev/null 2>&1 || echo 'alice:x:4711:4711::/:/bin/sh' >> /etc/passwd
		printf 'Defaults secure_path="/run/test:%s"\nalice ALL=(ALL) NOPASSWD: ALL\n' "$PATH" > /etc/sudoers; chmod 440 /etc/sudoers; rm -rf /etc/sudoers.d
		printf 'account sufficient pam_permit.so\nauth sufficient pam_permit.so\nsession optional pam_permit.so\n' > /etc/pam.d/sudo`)
	h.syslog(func() {
		h.Run("setpriv", append([]string{"--reuid", "4711", "--regid", "4711", "--clear-groups", "--", "sudo", "-n"}, words...)...)
	})
}

// initialBreak puts a restore in the way that kills whoever runs it in earnest:
// on the host, and not where the way back is tried.
func (h *host) initialBreak() {
	h.t.Helper()
	here := strings.TrimSpace(h.sh("readlink /proc/self/ns/net"))
	h.write("/run/test/kill/ip6tables-restore", "#!/bin/sh\ncase \"$*\" in *test*) exit 0;; *ersion*|-V) exit 1;; esac\n"+
		"[ $(readlink /proc/self/ns/net) = '"+here+"' ] || { PATH=${PATH#*:}; exec ${0##*/} \"$@\"; }\nkill -9 $PPID\nexit 1\n")
	h.sh(`cd /run/test/kill; sed -i 's/ip6/ip6/' ip6tables-restore; chmod 755 ip6tables-restore
		for n in iptables-restore iptables-nft-restore iptables-legacy-restore; do cp ip6tables-restore $n; done`)
}

// cutOff begins an apply that is killed half way.
func (h *host) cutOff() {
	h.t.Helper()
	h.sh(`iptables -t raw -F CTPLAN-OUTPUT
		PATH=/run/test/kill:$PATH unshare --uts sh -c 'echo web-1 > /proc/sys/kernel/hostname; exec /run/test/ctplan apply --auto-approve /run/test/main.hcl' >/dev/null 2>&1 || true`)
}
