package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// The main goroutine keeps the main thread, so that no other one, which may
// take its thread into another network namespace, runs there: what /proc/PID
// shows of a process is its main thread's.
func init() { runtime.LockOSThread() }

// space is a thread in a network namespace. Sockets opened there stay there,
// whoever uses them.
type space struct {
	work    chan func()
	listens map[string]net.Listener // by address
}

// newSpace enters the namespace at path, or makes one where path is empty.
func newSpace(t *testing.T, path string) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var err error
		if path == "" {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			var f *os.File
			if f, err = os.Open(path); err == nil {
				err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
				f.Close()
			}
		}
		ready <- err
		for fn := range s.work {
			fn()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("entering a network namespace: %v", err)
	}
	t.Cleanup(func() { close(s.work) })
	return s
}

// do runs fn there, and fails the test with its error.
func (s *space) do(t *testing.T, fn func() error) {
	t.Helper()
	done := make(chan error)
	s.work <- func() { done <- fn() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The addresses of a small network: near - host - far.
var (
	nearAddr  = map[live.Family]string{live.IPv4: "10.31.0.2", live.IPv6: "fd31::2"}
	nearHost  = map[live.Family]string{live.IPv4: "10.31.0.1", live.IPv6: "fd31::1"}
	farAddr   = map[live.Family]string{live.IPv4: "10.32.0.2", live.IPv6: "fd32::2"}
	farHost   = map[live.Family]string{live.IPv4: "10.32.0.1", live.IPv6: "fd32::1"}
	nearRoute = []string{"10.32.0.0/24", "fd32::/64"}
	farRoute  = []string{"10.31.0.0/24", "fd31::/64"}
)

// network puts the host between two others.
func network(t *testing.T, h *host) (here, near, far *space) {
	t.Helper()
	here = newSpace(t, filepath.Join(filepath.Dir(strings.TrimSuffix(h.Path("/"), "/")), "ns/net"))
	near, far = newSpace(t, ""), newSpace(t, "")
	for _, side := range []struct {
		s               *space
		name            string
		host, peer      map[live.Family]string
		gateway, behind []string
	}{
		{near, "near", nearHost, nearAddr, []string{nearHost[live.IPv4], nearHost[live.IPv6]}, nearRoute},
		{far, "far", farHost, farAddr, []string{farHost[live.IPv4], farHost[live.IPv6]}, farRoute},
	} {
		var fd int
		side.s.do(t, func() (err error) {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			return err
		})
		here.do(t, func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = side.name
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up", PeerNamespace: netlink.NsFd(fd)}); err != nil {
				return err
			}
			return furnish(side.name, side.host)
		})
		side.s.do(t, func() error {
			defer unix.Close(fd)
			if err := furnish("up", side.peer); err != nil {
				return err
			}
			for i, to := range side.behind {
				_, dst, err := net.ParseCIDR(to)
				if err != nil {
					return err
				}
				if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(side.gateway[i])}); err != nil {
					return fmt.Errorf("route to %s: %w", to, err)
				}
			}
			return nstest.Settle()
		})
	}
	here.do(t, nstest.Settle)
	h.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	return here, near, far
}

func furnish(name string, addrs map[live.Family]string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, a := range addrs {
		bits := 24
		if strings.Contains(a, ":") {
			bits = 64
		}
		ip := netip.MustParseAddr(a)
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, ip.BitLen())}, Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return nil
}

// TestImpactIsExact plans on a host with more than 200 live connections of many
// kinds, and forces the plan through: those that ctplan calls lost die, and no
// others.
func TestImpactIsExact(t *testing.T) {
	const part = `
  accept "web" {
    protocol   = "tcp"
    local_port = [8080, 22]
  }
  accept "calls" {
    protocol    = "tcp"
    remote_port = 443
    initiator   = "local"
  }
`
	for _, tt := range []struct{ name, mode, blocks string }{
		{"notrack", "notrack", "notrack \"all\" { }\n" + part},
		{"notrack in part", "notrack", "notrack \"tcp\" { protocol = \"tcp\" }\n notrack \"udp\" { protocol = \"udp\" }\n notrack \"through\" { direction = \"forward\" }" + part},
		{"disabled", "disabled", part},
	} {
		for _, b := range backends {
			t.Run(tt.name+"/"+string(b), func(t *testing.T) {
				h, talks, before := crossroads(t, b)
				config := h.config(fmt.Sprintf("conntrack \"x\" {\n mode = %q\n stateful_rules = \"remove\"\n allow_risk = [\"lost_flows\", \"lost_services\"]\n %s\n}\n", tt.mode, tt.blocks))
				got := willLose(t, h, config)
				h.ctplan(exitOK, "apply", "--auto-approve", config)
				after := living(talks)
				want := map[string]int{}
				for k, n := range before {
					if died := n - after[k]; died > 0 {
						want[k] = died
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("the plan says that these are lost: %v\nand these died: %v\n%s", got, want, h.rules())
				}
				if len(want) < 8 || len(want) == len(before) {
					t.Errorf("these died, which shows little: %v", want)
				}
			})
		}
	}
}

// willLose counts the connections that a plan calls lost, by service and family.
func willLose(t *testing.T, h *host, config string) map[string]int {
	t.Helper()
	var plan struct {
		Impact *impact.Impact `json:"impact"`
	}
	out := h.try("plan", "--json", config)
	if err := json.Unmarshal([]byte(out.stdout), &plan); err != nil || plan.Impact == nil {
		t.Fatalf("no impact in the plan: %v\n%s%s", err, out.stdout, out.stderr)
	}
	got := map[string]int{}
	for _, g := range plan.Impact.Groups {
		switch g.Result {
		case impact.FlowLost:
			got[g.Service+" "+string(g.Family)] += int(g.Count)
		case impact.FlowUnknown:
			t.Errorf("unknown: %+v", g)
		}
	}
	return got
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// living counts the connections that work, by service and family.
func living(talks []*talk) map[string]int {
	out := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, k := range talks {
		wg.Go(func() {
			ok := k.alive()
			mu.Lock()
			defer mu.Unlock()
			key := k.service + " " + string(k.family)
			out[key] += 0
			if ok {
				out[key]++
			}
		})
	}
	wg.Wait()
	return out
}

// TestImpactBlocks shows that lost connections and services hold a plan back,
// the operator's own session first.
func TestImpactBlocks(t *testing.T) {
	h := newHost(t, live.NFT, "server")
	here, near, _ := network(t, h)
	guard(h)
	talks := open(t, near, here, "tcp", "", nearHost[live.IPv4], 22, 3, "tcp/22 in")
	config := h.config("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n notrack \"tcp\" { protocol = \"tcp\" }\n}\n")
	session := talks[1].a.(net.Conn).LocalAddr().(*net.TCPAddr).AddrPort()
	cmd := h.command("plan", config)
	cmd.Env = append(cmd.Env, fmt.Sprintf("SSH_CONNECTION=%s %d %s 22", session.Addr(), session.Port(), nearHost[live.IPv4]))
	r := finish(t, cmd)
	if r.status != exitBlocked {
		t.Fatalf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	for _, want := range []string{"1. BLOCKED by lost_flows: ipv4.tcp/22.in", "the session that you are working through would be cut off", session.String() + " ->", "BLOCKED by lost_services", "impact of 3 open connections: 3 lost"} {
		if !strings.Contains(strings.Join(strings.Fields(r.stdout), " "), want) {
			t.Errorf("not said: %q\n%s", want, r.stdout)
		}
	}
	// The same in code review, from a snapshot, also where that hides addresses.
	for _, flags := range [][]string{nil, {"--anonymise"}} {
		h.ctplan(exitOK, slices.Concat([]string{"snapshot", "-o", "/run/test/host.json"}, flags, []string{config})...)
		r := h.ctplan(exitBlocked, "plan", "--snapshot", "/run/test/host.json", config)
		if !strings.Contains(r.stdout, "impact of 3 open connections: 3 lost") {
			t.Errorf("from a snapshot %v:\n%s", flags, r.stdout)
		}
		if hidden := strings.Contains(h.read("/run/test/host.json"), session.Addr().String()+`"`); hidden != (flags == nil) {
			t.Errorf("snapshot %v shows the client: %v", flags, hidden)
		}
	}
	if before := living(talks); before["tcp/22 in ipv4"] != 3 {
		t.Errorf("a plan has touched connections: %v", before)
	}
}

// reusePort lets several sockets have one port, each with its own peer.
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
		return cerr
	}
	return err
}
