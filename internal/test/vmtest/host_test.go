package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// stateful is the ruleset of a host that has never heard of ctplan: drops by
// default and lets in by connection state.
const stateful = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
-A INPUT -p udp -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -s 192.0.2.66/32 -j DROP
COMMIT
`

// host is a machine that ctplan manages.
type host struct {
	*vmlab.VM
	t testing.TB
}

// newHost boots a machine with stateful rules, live and saved, of the backend.
func newHost(t *testing.T, k vmlab.Kernel, b live.Backend) *host {
	t.Helper()
	h := &host{open(t).Boot(t, k), t}
	h.Use(b)
	h.rules()
	h.Run("iptables-restore < /etc/iptables/rules.v4; ip6tables-restore < /etc/iptables/rules.v6; sync")
	return h
}

// rules saves stateful rules.
func (h *host) rules() {
	h.t.Helper()
	h.Write("/etc/iptables/rules.v4", stateful)
	h.Write("/etc/iptables/rules.v6", strings.ReplaceAll(stateful, "192.0.2.66/32", "2001:db8::66/128"))
}

// declare puts one of the repository's examples on the machine, words in it
// replaced.
func (h *host) declare(example string, replace ...string) {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "examples", example+".hcl"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.Write("/root/host.hcl", strings.NewReplacer(replace...).Replace(string(text)))
}

// apply brings the machine to what is declared, after a boot that went well.
func (h *host) apply() {
	h.t.Helper()
	h.change()
	h.settled()
}

// change expects something to change, and then nothing.
func (h *host) change() {
	h.t.Helper()
	h.Exits(2, "ctplan plan --detailed-exitcode host.hcl")
	h.Run("ctplan apply --auto-approve host.hcl")
	h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
}

// files is what the files that ctplan may change hold, and their metadata.
func (h *host) files() string {
	h.t.Helper()
	return h.Run("cd /etc && find sysctl.conf sysctl.d modprobe.d modules-load.d iptables $(ls -d sysconfig rc.d /usr/libexec 2>/dev/null) -type f | sort | while read -r f; do stat -c '%n %a %u:%g' $f; cat $f; done")
}

// settled holds the machine to its declaration, and its boot to having gone
// well.
func (h *host) settled() {
	h.t.Helper()
	h.Exits(0, "ctplan plan --detailed-exitcode host.hcl")
	if failed := h.BootFailed(); failed != "" {
		h.Fail("a step of the boot failed: %s\n%s", failed, h.BootLog())
	}
}

// unloaded expects no module whose name begins with nf_conntrack, even after
// something that would load it.
func (h *host) unloaded() {
	h.t.Helper()
	const none = "lsmod | grep ^nf_conntrack || echo none"
	h.Expect(none, "none")
	h.Run("iptables -t nat -L; ip6tables -t nat -L; iptables -A INPUT -m state --state NEW; modprobe nf_conntrack; true")
	h.Expect(none, "none")
}

// sized expects the sizes that examples/tuned.hcl declares.
func (h *host) sized() {
	h.t.Helper()
	h.Expect("sysctl -n net.netfilter.nf_conntrack_max net.nf_conntrack_max net.netfilter.nf_conntrack_tcp_timeout_established; cat /sys/module/nf_conntrack/parameters/hashsize",
		"524288\n524288\n86400\n131072")
}

// connect opens a TCP connection to the machine itself and says something over
// it. It expects it to be tracked, or untracked.
func (h *host) connect(want string) {
	h.t.Helper()
	h.Expect(`rm -f /run/open; mkfifo /run/open; exec 4<>/run/open
		nc -l -p 22 <&4 4>&- >/tmp/heard &
		until { exec 3<>/dev/tcp/127.0.0.1/22; } 2>/dev/null; do sleep 0.1; done
		echo hello >&3
		until grep hello /tmp/heard; do sleep 0.1; done
		if conntrack -L -p tcp | grep -q 'ESTABLISHED.* dport=22'; then echo tracked; else echo untracked; fi
		exec 3>&- 4>&-; kill $!; wait`, "hello\n"+want)
}

// untracked expects the rules of examples/notrack.hcl in both families, and
// what they do.
func (h *host) untracked() {
	h.t.Helper()
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		h.Expect(save+" -t raw | grep ^-A | sed 's/-j NOTRACK/-j CT --notrack/'", `
			-A PREROUTING -j CTPLAN-PREROUTING
			-A OUTPUT -j CTPLAN-OUTPUT
			-A CTPLAN-OUTPUT -p tcp -m comment --comment tcp -j CT --notrack
			-A CTPLAN-PREROUTING -p tcp -m comment --comment tcp -j CT --notrack`)
	}
	h.connect("untracked")
	// Tracking itself is on where a rule on the state of UDP stays.
	if h.tracks() {
		h.Run("iptables-save | grep -q -- '-p udp -m conntrack --ctstate ESTABLISHED'")
		h.Run("ping -c 1 127.0.0.1 && conntrack -L -p icmp | grep -q src=127.0.0.1")
	}
}

// tracks reports whether a rule asks for the state of connections: without, the
// kernel tracks none. A host that was in disabled has lost such rules.
func (h *host) tracks() bool {
	h.t.Helper()
	return strings.Contains(h.Run("iptables-save"), "--ctstate")
}

// removing, given to declare, has examples/notrack.hcl remove rules on state.
var removing = []string{`mode = "notrack"`, "mode = \"notrack\"\n  stateful_rules = \"remove\""}
