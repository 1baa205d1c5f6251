package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/modules"
)

// datagrams are two ends of UDP, or of ICMP where there is no b.
type datagrams struct {
	name string
	a, b net.Conn
	icmp net.PacketConn
	to   net.Addr
}

// parley opens a socket in each space and connects them.
func parley(t *testing.T, name string, from, to *space, src, dst string, port int) *datagrams {
	t.Helper()
	d := &datagrams{name: name}
	at := func(a string, port int) *net.UDPAddr {
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a), uint16(port)))
	}
	from.do(t, func() (err error) { d.a, err = net.DialUDP("udp", at(src, 40000+port), at(dst, port)); return err })
	to.do(t, func() (err error) { d.b, err = net.DialUDP("udp", at(dst, port), at(src, 40000+port)); return err })
	t.Cleanup(func() { d.a.Close(); d.b.Close() })
	return d
}

// pings asks for echoes.
func pings(t *testing.T, name string, from *space, dst string) *datagrams {
	t.Helper()
	d := &datagrams{name: name, to: &net.IPAddr{IP: net.ParseIP(dst)}}
	network := "ip4:icmp"
	if strings.Contains(dst, ":") {
		network = "ip6:ipv6-icmp"
	}
	from.do(t, func() (err error) { d.icmp, err = net.ListenPacket(network, ""); return err })
	t.Cleanup(func() { d.icmp.Close() })
	return d
}

// passes is whether datagrams of a size pass, there and back.
func (d *datagrams) passes(size int) error {
	deadline := time.Now().Add(200 * time.Millisecond)
	if d.icmp != nil {
		return d.echoes(size, deadline)
	}
	for _, way := range [][2]net.Conn{{d.a, d.b}, {d.b, d.a}} {
		way[1].SetReadDeadline(deadline)
		if _, err := way[0].Write(make([]byte, size)); err != nil {
			return err
		}
		if n, err := way[1].Read(make([]byte, 8192)); err != nil || n != size {
			return fmt.Errorf("%d bytes of %d from %s: %w", n, size, way[0].LocalAddr(), err)
		}
	}
	return nil
}

func (d *datagrams) echoes(size int, deadline time.Time) error {
	msg := make([]byte, size)
	answer := byte(129)
	if msg[0] = 128; d.to.(*net.IPAddr).IP.To4() != nil {
		msg[0], answer = 8, 0
		msg[2], msg[3] = 0xf7, 0xff // of zeros, but for the type
	}
	d.icmp.SetReadDeadline(deadline)
	if _, err := d.icmp.WriteTo(msg, d.to); err != nil {
		return err
	}
	for buf := make([]byte, 8192); ; {
		n, _, err := d.icmp.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n == size && buf[0] == answer {
			return nil
		}
	}
}

// alive are the names of those whose datagrams pass, with their sizes.
func alive(list []*datagrams) (out []string) {
	for _, d := range list {
		for _, size := range []int{100, 4000} {
			err := d.passes(size)
			for i := 0; i < 1 && errors.Is(err, os.ErrDeadlineExceeded); i++ {
				err = d.passes(size)
			}
			if err == nil {
				out = append(out, fmt.Sprintf("%s %d", d.name, size))
			}
		}
	}
	return out
}

// parleys are datagrams to the host, from it and through it, of both families.
func parleys(t *testing.T, here, near, far *space) (list []*datagrams) {
	for _, f := range live.Families {
		list = append(list,
			parley(t, "in "+string(f), near, here, nearAddr[f], nearHost[f], 5300),
			parley(t, "out "+string(f), here, far, farHost[f], farAddr[f], 5302),
			parley(t, "through "+string(f), near, far, nearAddr[f], farAddr[f], 5301),
			pings(t, "echo "+string(f), near, nearHost[f]))
	}
	return list
}

// byPorts is a stateful host that routes, with rules of somebody's own against
// fragments, which no packet meets as long as fragments are joined.
const byPorts = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p udp -m multiport --dports 5300,5306 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p ICMP -j ACCEPT
-A FORWARD FRAG -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p udp -m udp --dport 5301 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p udp -m udp --dport 5302 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -p ICMP -j ACCEPT
COMMIT
`

// portsDeclared are the same conversations as blocks.
const portsDeclared = `
  accept "served" {
    protocol   = "udp"
    local_port = [5300, 5306]
  }
  accept "asked" {
    protocol    = "udp"
    remote_port = 5302
  }
  accept "routed" {
    protocol    = "udp"
    remote_port = 5301
    direction   = "forward"
  }
  accept "echo" { protocol = "icmp" }
`

func (h *host) loadByPorts() {
	h.sh("mkdir -p /etc/iptables")
	for file, words := range map[string][2]string{"/etc/iptables/rules.v4": {"icmp", "-f"}, "/etc/iptables/rules.v6": {"ipv6-icmp", "-m frag --fragmore"}} {
		h.write(file, strings.NewReplacer("ICMP", words[0], "FRAG", words[1]).Replace(byPorts))
	}
	h.sh("iptables-restore < /etc/iptables/rules.v4; ip6tables-restore < /etc/iptables/rules.v6")
}

var emptyRaw = regexp.MustCompile(`\*raw\n(:\w+ ACCEPT\n)*COMMIT\n`)

// emptied are the rules and the files that boot restores. A table that the
// legacy backend has made stays, empty.
func (h *host) emptied() string {
	return emptyRaw.ReplaceAllString(h.rules(), "") + h.read("/etc/iptables/rules.v4") + h.read("/etc/iptables/rules.v6")
}

// fragmentsLost are the services whose fragments a plan calls lost, or whose
// connections.
func fragmentsLost(h *host, args ...string) (out []string) {
	h.t.Helper()
	var plan struct {
		Impact *impact.Impact `json:"impact"`
	}
	r := h.try(append([]string{"plan", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &plan); err != nil || plan.Impact == nil {
		h.t.Fatalf("no impact in the plan: %v\n%s%s", err, r.stdout, r.stderr)
	}
	for _, g := range plan.Impact.Groups {
		if g.Result != impact.FlowKept {
			out = append(out, fmt.Sprintf("%s %s %s %v", g.Result, g.Service, g.Family, g.Fragments))
		}
	}
	slices.Sort(out)
	return out
}

// TestFragments takes all rules on state from a host by whose rules datagrams
// pass that come in fragments: those live on, in the kernel, from the saved
// files and once somebody has meddled, and the way back leaves nothing behind.
func TestFragments(t *testing.T) {
	for _, mode := range []string{"notrack", "disabled"} {
		for _, b := range backends {
			t.Run(mode+"/"+string(b), func(t *testing.T) {
				h := newHost(t, b, "parts")
				here, near, far := network(t, h)
				h.loadByPorts()
				list := parleys(t, here, near, far)
				all := alive(list)
				if len(all) != 2*len(list) {
					t.Fatalf("to begin with, only %v live", all)
				}
				blocks := portsDeclared
				if mode == "notrack" {
					blocks += "notrack \"all\" {}\nnotrack \"routed\" { direction = \"forward\" }\n"
				}
				path := h.config(fmt.Sprintf("conntrack \"x\" {\n mode = %q\n stateful_rules = \"remove\"\n %s\n}\n", mode, blocks))
				before := h.emptied()
				if lost := fragmentsLost(h, path); len(lost) > 0 {
					t.Errorf("the plan says %v", lost)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				hold := func(after string, want []string) {
					t.Helper()
					if now := alive(list); !slices.Equal(now, want) {
						t.Errorf("after %s, these live: %v\n%s", after, now, h.rules())
					}
				}
				hold("apply", all)
				if n := strings.Count(h.rules(), "-A CTPLAN-DEFRAG -m socket -j RETURN"); n != 2 {
					t.Errorf("%d chains that keep fragments joined:\n%s", n, h.rules())
				}
				h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
				h.ctplan(exitOK, "rollback", "--auto-approve")
				hold("the way back", all)
				same(t, "after the way back", before, h.emptied())
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				h.sh("for i in iptables ip6tables; do $i -F CTPLAN-DEFRAG; $i -X CTPLAN-DEFRAG; done")
				if r := h.ctplan(exitChanges, "drift", path); !strings.Contains(r.stdout, "CTPLAN-DEFRAG") {
					t.Errorf("drift does not name the chain:\n%s", r.stdout)
				}
				hold("the chain is gone", slices.DeleteFunc(slices.Clone(all), func(name string) bool {
					return slices.Contains([]string{"in ipv6 4000", "out ipv6 4000", "through ipv4 4000", "through ipv6 4000"}, name)
				}))
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				hold("mending it", all)
				h.sh("for i in iptables ip6tables; do $i -F; $i -t raw -F; $i -X; $i -t raw -X; done; iptables-restore < /etc/iptables/rules.v4; ip6tables-restore < /etc/iptables/rules.v6")
				hold("boot", all)
				h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
			})
		}
	}
}

// TestFragmentsWithoutSocketMatch is a kernel that cannot join fragments without
// tracking: what the plan calls lost dies, and what its remedy leaves tracked
// keeps the rest alive.
func TestFragmentsWithoutSocketMatch(t *testing.T) {
	h := newHost(t, live.NFT, "parts")
	here, near, far := network(t, h)
	h.loadByPorts()
	list := parleys(t, here, near, far)
	here.do(t, func() error {
		c, err := net.ListenPacket("udp", "[::]:5306")
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	all := alive(list)
	config := func(more string) string {
		return h.config("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n " + portsDeclared + more + "\n}\n")
	}
	const everything = "notrack \"all\" {}\nnotrack \"routed\" { direction = \"forward\" }\n"
	path, snapshot := config(everything), h.without("xt_socket")
	r := h.ctplan(exitBlocked, "plan", "--snapshot", snapshot, path)
	text := strings.Join(strings.Fields(r.stdout), " ")
	for _, want := range []string{"BLOCKED by lost_flows", "BLOCKED by lost_services", "a service listens on udp/5306 in, which datagrams in fragments reach today", "datagrams in fragments of 1 connection that is open now would be lost", "only the first of them has ports", "which keeps fragments joined"} {
		if !strings.Contains(text, want) {
			t.Errorf("the plan does not say %q:\n%s", want, r.stdout)
		}
	}
	want := []string{"lost udp/5300 in ipv6 true", "lost udp/5301 forward ipv4 true", "lost udp/5301 forward ipv6 true", "lost udp/5302 out ipv6 true"}
	if lost := fragmentsLost(h, "--snapshot", snapshot, path); !slices.Equal(lost, want) {
		t.Errorf("the plan says %v", lost)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	h.sh("for i in iptables ip6tables; do $i -F CTPLAN-DEFRAG; $i -X CTPLAN-DEFRAG; done") // as such a kernel has it
	var dead []string
	now := alive(list)
	for _, name := range all {
		if !slices.Contains(now, name) {
			dead = append(dead, name)
		}
	}
	slices.Sort(dead)
	if want := []string{"in ipv6 4000", "out ipv6 4000", "through ipv4 4000", "through ipv6 4000"}; !slices.Equal(dead, want) {
		t.Errorf("these are dead: %v", dead)
	}
	h.sh("iptables -t raw -F; ip6tables -t raw -F")
	h.loadByPorts()
	narrow := config("notrack \"served\" {\n protocol = \"udp\"\n local_port = 5300\n}\n")
	if lost := fragmentsLost(h, "--snapshot", h.without("xt_socket"), narrow); len(lost) > 0 {
		t.Errorf("with the remedy, the plan says %v", lost)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", narrow)
	if now := alive(list); !slices.Equal(now, all) || strings.Contains(h.rules(), "CTPLAN-DEFRAG") {
		t.Errorf("with the remedy, these live: %v\n%s", now, h.rules())
	}
}

// without is a snapshot of the host in a file, as of a kernel that has no such
// module.
func (h *host) without(module string) (path string) {
	h.t.Helper()
	var s map[string]any
	if err := json.Unmarshal([]byte(h.ctplan(exitOK, "snapshot").stdout), &s); err != nil {
		h.t.Fatal(err)
	}
	usable := slices.DeleteFunc(slices.Clone(modules.Used), func(m string) bool { return m == module })
	s["loading"] = live.Loading{Tree: true, Usable: usable}
	text, err := json.Marshal(s)
	if err != nil {
		h.t.Fatal(err)
	}
	path = "/run/test/snapshot.json"
	h.write(path, string(text))
	return path
}

// TestFragmentsNative leaves tracking beside rules of nft's own, which go on
// asking for it: nothing has to be added.
func TestFragmentsNative(t *testing.T) {
	h := newHost(t, live.NFT, "parts")
	here, near, far := network(t, h)
	h.RunInput(`table inet fw {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		udp dport 5300 ct state { new, untracked } accept
		udp sport 5302 ct state untracked accept
		meta l4proto { icmp, ipv6-icmp } accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		udp dport 5301 accept
	}
}`, "nft", "-f", "-")
	list := parleys(t, here, near, far)
	all := alive(list)
	if len(all) != 2*len(list) {
		t.Fatalf("to begin with, only %v live", all)
	}
	path := h.config("conntrack \"x\" {\n mode = \"notrack\"\n firewall = \"iptables\"\n allow_risk = [\"exposed\"]\n notrack \"served\" {\n protocol = \"udp\"\n local_port = 5300\n}\nnotrack \"asked\" {\n protocol = \"udp\"\n remote_port = 5302\n}\n accept \"served\" {\n protocol = \"udp\"\n local_port = 5300\n}\n}\n")
	if lost := fragmentsLost(h, path); len(lost) > 0 {
		t.Errorf("the plan says %v", lost)
	}
	h.ctplan(exitOK, "apply", "--auto-approve", path)
	if now := alive(list); !slices.Equal(now, all) {
		t.Errorf("after apply, these live: %v\n%s", now, h.rules())
	}
	if strings.Contains(h.rules(), "CTPLAN-DEFRAG") {
		t.Errorf("a chain that nothing needs:\n%s", h.rules())
	}
}
