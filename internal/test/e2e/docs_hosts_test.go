package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	live "github.com/ctplan/ctplan/planner/host"
)

// docHosts are the hosts that pages are about, by the word behind console and
// sh. Each also has snapshots, web-1.json and so on, for what is planned elsewhere.
var docHosts = map[string]func(t *testing.T, name string) *host{
	"web-1":       webServer,
	"legacy-1":    onLegacy,
	"resolver-1":  resolver,
	"api-1":       apiClient,
	"ftp-1":       ftpHost,
	"nat-1":       gateway,
	"node-1":      kubernetesNode,
	"node-2":      gateway,
	"ufw-1":       ufwHost,
	"firewalld-1": firewalldHost,
	"firewalld-2": firewalldHost,
}

// machines are the hosts of docHosts that set what the machine has once.
var machines = []string{"nat-1", "node-2"}

// connectPeer gives the host an interface and addresses, and a neighbour: the
// network namespace "peer".
func (h *host) connectPeer() {
	h.t.Helper()
	h.sh(`
		ip netns add peer
		ip link add eth0 type veth peer name eth0 netns peer
		peer="ip netns exec peer ip"
		for side in "ip 5" "$peer 1"; do
			ip=${side% *} n=${side##* }
			$ip link set lo up
			$ip addr add 192.0.2.$n/24 dev eth0
			$ip addr add 2001:db8::$n/64 dev eth0 nodad
			$ip link set eth0 up
		done
		ip route add default via 192.0.2.1
		ip -6 route add default via 2001:db8::1`)
}

// docHost is a default-drop host with what everybody has: loopback, answers, SSH.
func docHost(t *testing.T, backend live.Backend, name, rules string) *host {
	t.Helper()
	h := newHost(t, backend, name)
	h.connectPeer()
	h.sh(`
		iptables -P INPUT DROP
		iptables -A INPUT -i lo -j ACCEPT
		iptables -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
		` + rules + `
		mkdir -p /etc/iptables
		iptables-save | grep -v '^#' > /etc/iptables/rules.v4`)
	return h
}

func webServer(t *testing.T, name string) *host {
	return docHost(t, live.NFT, name, "iptables -A INPUT -p tcp --dport 443 -m state --state NEW -j ACCEPT")
}

func onLegacy(t *testing.T, name string) *host {
	return docHost(t, live.Legacy, name, "iptables -A INPUT -p tcp --dport 443 -m state --state NEW -j ACCEPT")
}

func resolver(t *testing.T, name string) *host {
	return docHost(t, live.NFT, name, `
		iptables -A INPUT -p tcp --dport 22 -m state --state NEW -j ACCEPT
		iptables -A INPUT -p udp --dport 53 -m state --state NEW -j ACCEPT
		iptables -A INPUT -p tcp --dport 53 -m state --state NEW -j ACCEPT`)
}

func apiClient(t *testing.T, name string) *host {
	return docHost(t, live.NFT, name, "iptables -A INPUT -p tcp --dport 22 -m state --state NEW -j ACCEPT")
}

func ftpHost(t *testing.T, name string) *host {
	return docHost(t, live.NFT, name, `
		iptables -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp
		iptables -A INPUT -p tcp --dport 22 -j ACCEPT
		iptables -A INPUT -p tcp --dport 21 -j ACCEPT`)
}

// gateway is one whose table ctplan can size: it stands in the machine's own
// network namespace.
func gateway(t *testing.T, name string) *host {
	h := newHost(t, live.NFT, name)
	h.initial = true
	for path, value := range map[string]string{nstest.Max: "65536", nstest.Hashsize: "16384", timeoutEstablished: "432000"} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

const timeoutEstablished = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"

// kubernetesNode has a service as kube-proxy of mode iptables writes it.
func kubernetesNode(t *testing.T, name string) *host {
	h := newHost(t, live.NFT, name)
	h.connectPeer()
	h.RunInput(`*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-BS3ZMVJ7XWSW3AFY - [0:0]
-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "default/kubernetes:https cluster IP" -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https" -j KUBE-SEP-BS3ZMVJ7XWSW3AFY
-A KUBE-SEP-BS3ZMVJ7XWSW3AFY -p tcp -m comment --comment "default/kubernetes:https" -m tcp -j DNAT --to-destination 192.0.2.10:6443
COMMIT
`, "iptables-restore", "--noflush")
	return h
}

// ufwHost runs Debian's ufw as ufw enable leaves it, with SSH and DNS allowed.
func ufwHost(t *testing.T, name string) *host {
	h := newHost(t, live.NFT, name)
	h.connectPeer()
	h.install("ufw")
	h.sh(`
		mkdir -p /etc/ufw # as its postinst furnishes it
		cp -n /usr/share/ufw/ufw.conf /usr/share/ufw/iptables/*.rules /etc/ufw
		[ -e /etc/default/ufw ] || sed 's/^IPV6=.*/IPV6=yes/' /usr/share/ufw/ufw > /etc/default/ufw
		ufw --force enable
		ufw allow 22/tcp
		ufw allow 53/udp`)
	return h
}

// firewalldHost runs Debian's firewalld, with its public zone open for DNS;
// firewalld-2 is one with the iptables backend.
func firewalldHost(t *testing.T, name string) *host {
	h := newHost(t, live.NFT, name)
	h.connectPeer()
	configure := ""
	if name == "firewalld-2" {
		configure = "sed -i 's/^FirewallBackend=.*/FirewallBackend=iptables/' /etc/firewalld/firewalld.conf"
	}
	h.firewalld(configure)
	h.sh(`
		firewall-cmd --permanent --add-service=dns
		firewall-cmd --reload`)
	return h
}

// firewalld starts Debian's, configured by a script beforehand.
func (h *host) firewalld(configure string) {
	t := h.t
	t.Helper()
	h.install("firewalld")
	h.sh(configure + `
		# Without it every caller would have to be known to polkit.
		rm -f /usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service
		for base in passwd group; do
			grep -q ^messagebus: /etc/$base || echo messagebus:x:100:100::/nonexistent:/bin/false >> /etc/$base
		done
		mkdir -p /run/dbus
		dbus-daemon --system --fork`)
	t.Cleanup(func() { h.sh("kill $(cat /run/dbus/pid)") })
	daemon := h.Command("firewalld", "--nofork", "--nopid")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	h.sh("for i in $(seq 100); do firewall-cmd --state >/dev/null 2>&1 && break; sleep 0.1; done")
}

// install unpacks a Debian package and what it depends on, as far as the
// machine lacks it, for this host alone: nothing is installed, no service starts.
func (h *host) install(name string) {
	h.t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		h.t.Fatal(err)
	}
	folder := filepath.Join(cache, "ctplan", "owners", name)
	if err := os.MkdirAll(filepath.Join(folder, "partial"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	fetch := exec.Command("sh", "-c", `get() { apt-get install -q -y --download-only --no-install-recommends -o DPkg::Lock::Timeout=60 -o Acquire::Retries=3 -o Dir::Cache::archives="$1" "$2"; }
		get "$@" || { apt-get -q update && get "$@"; }`, "sh", folder, name)
	if out, err := fetch.CombinedOutput(); err != nil {
		testhost.Lacks(h.t, "getting Debian's "+name+": "+err.Error()+"\n"+strings.TrimSpace(string(out)))
	}
	h.sh(`
		mkdir -p /run/owner/upper /run/owner/work /run/owner/tree
		mount -t overlay overlay -o lowerdir=/usr,upperdir=/run/owner/upper,workdir=/run/owner/work /usr
		for deb in ` + folder + `/*.deb; do dpkg-deb -x "$deb" /run/owner/tree; done
		cp -a /run/owner/tree/usr/. /usr
		[ ! -d /run/owner/tree/lib ] || cp -a /run/owner/tree/lib/. /usr/lib
		cp -a /run/owner/tree/etc/. /etc`)
}

// atTerminal stands for ctplan where a page shows what one types: whoever sits
// there answers yes. Nobody waits a minute for packets that do not come.
const atTerminal = `#!/bin/bash
case "$1 $*" in
	verify*) set -- "${@/#60s/1s}" ;;
	status*--watch*) exec script -qec "timeout --preserve-status --signal INT 1 /run/test/ctplan $*" /dev/null ;;
	status*) set -- "${@/#10s/1s}" ;;
	*--auto-approve*|*.ctplan*) ;;
	apply*|rollback*) exec /run/test/ctplan "$@" --auto-approve ;;
esac
exec /run/test/ctplan "$@"
`

// shell runs a script on the host, under its name and as if at a terminal.
func (h *host) shell(script string) *exec.Cmd {
	return h.commandOf("timeout", "60", "bash", "-c", "PATH=/run/test/bin:$PATH SYSTEMD_OFFLINE=1; export SYSTEMD_OFFLINE; "+script)
}

// webConfig is what recipes are tried with on pages that show no configuration.
const webConfig = `
conntrack "web" {
  mode           = "notrack"
  stateful_rules = "remove"

  notrack "all" {}

  accept "https" {
    protocol   = "tcp"
    local_port = 443
    initiator  = "remote"
  }
  accept "icmp" { protocol = "icmp" }
  accept "icmpv6" { protocol = "icmpv6" }
}
`

// belongings puts into the host what pages take for granted: ctplan in PATH, the
// files of the repository, snapshots of other hosts, the folder of node_exporter;
// /etc/ctplan is the folder that commands run in.
func (h *host) belongings() {
	h.t.Helper()
	h.write("/run/test/bin/ctplan", atTerminal)
	h.sh("chmod 0755 /run/test/bin/ctplan; mkdir -p /var/lib/prometheus/node-exporter /etc/systemd/system; ln -s /run/test /etc/ctplan")
	for _, folder := range []string{"contrib", "examples", "deploy"} {
		if path, err := filepath.Abs(filepath.Join(repository, folder)); err == nil {
			h.sh("[ ! -d '" + path + "' ] || cp -r '" + path + "' /run/test")
		}
	}
	for name, file := range map[string]string{"web-1": "web", "nat-1": "nat", "db-1": "busy"} {
		content, err := os.ReadFile(filepath.Join(repository, "cmd/ctplan/testdata/snapshot", file+".json"))
		if err != nil {
			h.t.Fatal(err)
		}
		h.write("/run/test/"+name+".json", string(content))
		if name == "web-1" {
			h.write("/run/test/web-2.json", strings.ReplaceAll(string(content), `"web-1"`, `"web-2"`))
		}
	}
}
