package e2e

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/pages"
)

// TestDocsPackets does what pages say, and then sends packets: from a neighbour
// of the host, over a wire.
func TestDocsPackets(t *testing.T) {
	for _, c := range []struct {
		page, host string
		port       string
	}{
		{"docs/tasks/firewalld-ufw.md", "ufw-1", "53"},
		{"docs/tasks/firewalld-ufw.md", "firewalld-1", "53"},
		{"docs/tasks/untrack.md", "resolver-1", "53"},
		{"docs/tasks/kubernetes.md", "node-1", "514"},
	} {
		t.Run(c.host, func(t *testing.T) {
			r := reader{t: t, session: map[string]*host{}, files: map[string]string{}}
			h := r.host(c.host, true)
			h.answers(c.port)
			if got := h.asked(c.port); got != "answered, tracked" {
				t.Fatalf("before, a question is %s", got)
			}
			for _, b := range pages.Blocks(pages.Read(t, repository, c.page)) {
				switch {
				case b.Language == "hcl" && b.Word != "":
					r.files[b.Word] = b.Text
				case b.Language == "console" && b.Word == c.host:
					r.console(r.host(c.host, true), b.Text)
				default:
					continue
				}
				if b.Language == "console" {
					break // the next blocks undo it
				}
			}
			if got := h.asked(c.port); got != "answered, untracked" {
				t.Errorf("afterwards, a question is %s", got)
			}
			if c.host == "node-1" {
				if got := h.asks(c.port); got != "192.0.2.5" {
					t.Errorf("what a pod asks elsewhere comes from %s, and not from the node", got)
				}
			}
		})
	}
}

// TestDocsFragments: where nothing asks for tracking nobody joins fragments, and
// the rule that docs/tasks/disable.md gives lets them in.
func TestDocsFragments(t *testing.T) {
	h := webServer(t, "web-1")
	h.sh(`
		ip6tables -P INPUT DROP
		ip6tables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		ip6tables -A INPUT -p udp --dport 5300 -j ACCEPT
		ip6tables -A INPUT -p icmpv6 -j ACCEPT`)
	h.answers("5300")
	large := func() string {
		out, _ := h.Command("ip", "netns", "exec", "peer", "python3", "/run/test/udp.py", "ask", "2001:db8::5", "5300", "4000").Output()
		return strings.TrimSpace(string(out))
	}
	if got := large(); got != "2001:db8::1" {
		t.Fatalf("before, a large datagram is answered by %q", got)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", h.config(`
conntrack "web" {
  mode           = "disabled"
  stateful_rules = "remove"
  accept "udp" {
    protocol   = "udp"
    local_port = 5300
  }
  accept "https" {
    protocol   = "tcp"
    local_port = 443
  }
  accept "icmp" { protocol = "icmp" }
  accept "icmpv6" { protocol = "icmpv6" }
}
`))
	if got := large(); got != "2001:db8::1" {
		t.Errorf("after apply, a large datagram is answered by %q", got)
	}
	h.sh("ip6tables -F CTPLAN-DEFRAG; ip6tables -X CTPLAN-DEFRAG")
	if got := large(); got != "" {
		t.Errorf("the page says that large datagrams are lost without the chain, and %s answers", got)
	}
	remedy := regexp.MustCompile("`(ip6tables -I INPUT [^`]+)`").FindStringSubmatch(pages.Read(t, repository, "docs/tasks/disable.md"))
	if remedy == nil {
		t.Fatal("docs/tasks/disable.md has no rule for fragments")
	}
	h.sh(remedy[1])
	if got := large(); got != "2001:db8::1" {
		t.Errorf("after %q a large datagram is answered by %q", remedy[1], got)
	}
}

// udp is a peer of UDP in a few lines: serve PORT says to each who asks where it
// asked from; ask ADDRESS PORT SIZE prints the answer.
const udp = `
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
if sys.argv[1] == "serve":
    s.bind(("::", int(sys.argv[2])))
    while True:
        data, where = s.recvfrom(65535)
        s.sendto(where[0].replace("::ffff:", "").encode().ljust(len(data)), where)
s.settimeout(1)
s.sendto(b"x" * int(sys.argv[4]), ("::ffff:" + sys.argv[2] if "." in sys.argv[2] else sys.argv[2], int(sys.argv[3])))
print(s.recvfrom(65535)[0].decode().strip())
`

// answers has the host and its neighbour answer on a port.
func (h *host) answers(port string) {
	h.t.Helper()
	h.write("/run/test/udp.py", udp)
	for _, where := range [][]string{nil, {"ip", "netns", "exec", "peer"}} {
		words := append(where, "python3", "/run/test/udp.py", "serve", port)
		server := h.Command(words[0], words[1:]...)
		if err := server.Start(); err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() {
			server.Process.Kill()
			server.Wait()
		})
	}
	h.sh(`for i in $(seq 100); do [ "$(cat /proc/net/udp6 | wc -l)" -gt 1 ] && break; sleep 0.1; done; sleep 0.3`)
}

// asked has the neighbour ask the host, and tells what becomes of it.
func (h *host) asked(port string) string {
	h.t.Helper()
	h.sh("conntrack -F 2>/dev/null")
	out, err := h.Command("ip", "netns", "exec", "peer", "python3", "/run/test/udp.py", "ask", "192.0.2.5", port, "100").Output()
	if err != nil || strings.TrimSpace(string(out)) != "192.0.2.1" {
		return "lost"
	}
	if strings.Contains(h.sh("conntrack -L -p udp 2>/dev/null"), "dport="+port) {
		return "answered, tracked"
	}
	return "answered, untracked"
}

// asks has a pod behind the host ask the neighbour, and tells where the
// question seemed to come from.
func (h *host) asks(port string) string {
	h.t.Helper()
	h.sh(`
		sysctl -q -w net.ipv4.ip_forward=1
		ip netns add pod
		ip link add pod0 type veth peer name eth0 netns pod
		ip addr add 10.244.0.1/24 dev pod0
		ip link set pod0 up
		ip netns exec pod ip addr add 10.244.0.9/24 dev eth0
		ip netns exec pod ip link set eth0 up
		ip netns exec pod ip route add default via 10.244.0.1`)
	out, err := h.Command("ip", "netns", "exec", "pod", "python3", "/run/test/udp.py", "ask", "192.0.2.1", port, "100").Output()
	if err != nil {
		return "nowhere: it was lost"
	}
	return strings.TrimSpace(string(out))
}
