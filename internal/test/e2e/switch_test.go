package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/nstest"
	live "github.com/ctplan/ctplan/planner/host"
)

// webUntracked serves on port 8080 and tracks nothing at all.
const webUntracked = `
conntrack "web" {
  mode           = "notrack"
  stateful_rules = "remove"

  notrack "all" {}

  accept "web" {
    protocol   = "tcp"
    local_port = 8080
    initiator  = "remote"
  }
}
`

// defaultDrop is the usual stateful server: nothing passes but what it knows.
const defaultDrop = `
for ipt in iptables ip6tables; do
	$ipt -P INPUT DROP
	$ipt -P OUTPUT DROP
	$ipt -P FORWARD DROP
	$ipt -A INPUT -i lo -j ACCEPT
	$ipt -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
	$ipt -A INPUT -p tcp --dport 8080 -m state --state NEW -j ACCEPT
	$ipt -A OUTPUT -o lo -j ACCEPT
	$ipt -A OUTPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
done
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
ip6tables -A OUTPUT -p ipv6-icmp -j ACCEPT
`

var served = []string{"10.79.0.1:8080", "[fd79::1]:8080"}

// TestServesAcrossSwitch switches a stateful default-drop server to notrack
// while clients use it: no connection may fail, none that stands may break.
func TestServesAcrossSwitch(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			server, client := pair(t, backend)
			path := server.config(webUntracked)

			r := calling(t, client, func() {
				server.ctplan(exitOK, "apply", "--auto-approve", path)
			})
			t.Logf("%d connections and %d echoes of the long-lived ones across apply, %d failures", r.Connections, r.Echoes, len(r.Failures))
			if len(r.Failures) > 0 {
				t.Errorf("failures across apply:\n%s", strings.Join(r.Failures, "\n"))
			}
			if r.Connections < 100 || r.Echoes < 100 {
				t.Errorf("only %d connections and %d echoes: the clients did not work", r.Connections, r.Echoes)
			}
			rules := server.rules()
			if strings.Contains(rules, "--state") || strings.Contains(rules, "--ctstate") {
				t.Errorf("rules on connection state are still there:\n%s", rules)
			}
			server.sh("conntrack -F 2>/dev/null; conntrack -F -f ipv6 2>/dev/null || true")
			r = calling(t, client, func() { time.Sleep(200 * time.Millisecond) })
			if len(r.Failures) > 0 || server.entries() != 0 {
				t.Errorf("after the switch: %d failures, %d entries in the table; want none of either", len(r.Failures), server.entries())
			}
			server.ctplan(exitOK, "plan", "--detailed-exitcode", path)
		})
	}
}

// TestOneSidedNotrackLocksOut is the counter-proof: the same server and the same
// clients, with NOTRACK in PREROUTING alone, as it is done by hand.
func TestOneSidedNotrackLocksOut(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			server, client := pair(t, backend)
			r := calling(t, client, func() {
				server.sh(`for ipt in iptables ip6tables; do $ipt -t raw -A PREROUTING -p tcp --dport 8080 -j NOTRACK; done`)
			})
			t.Logf("%d connections, %d echoes, %d failures", r.Connections, r.Echoes, len(r.Failures))
			broken := 0
			for _, f := range r.Failures {
				if strings.HasPrefix(f, "long-lived") {
					broken++
				}
			}
			if broken != len(served) || len(r.Failures) < 20 {
				t.Errorf("one-sided NOTRACK broke %d of %d long-lived connections and failed %d calls: the clients would not notice a lock-out",
					broken, len(served), len(r.Failures))
			}
		})
	}
}

// pair makes a default-drop server that echoes on served, and a client beside it.
func pair(t *testing.T, backend live.Backend) (server, client *host) {
	t.Helper()
	server, client = newHost(t, backend, "web-1"), newHost(t, backend, "client-1")
	server.sh(fmt.Sprintf(`
		ip link add eth1 type veth peer name eth1 netns %d
		ip addr add 10.79.0.1/24 dev eth1
		ip addr add fd79::1/64 dev eth1 nodad
		ip link set eth1 up`, client.pid()))
	client.sh(`
		ip addr add 10.79.0.2/24 dev eth1
		ip addr add fd79::2/64 dev eth1 nodad
		ip link set eth1 up`)
	server.sh(defaultDrop)
	server.start("serve", served...)
	return server, client
}

// calling lets clients call the server while something happens there, and some
// time before and after.
func calling(t *testing.T, client *host, happens func()) called {
	t.Helper()
	stop := nstest.Start(t, client.child("call", served...))
	time.Sleep(500 * time.Millisecond)
	happens()
	time.Sleep(500 * time.Millisecond)
	var r called
	if err := json.Unmarshal(stop(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}
