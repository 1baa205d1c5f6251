package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	live "github.com/ctplan/ctplan/planner/host"
)

// work is a host that has tracking do something besides states, and what becomes
// of that under a plan.
type work struct {
	name   string
	setup  string // of the host
	rules  string // of both families; ICMP is the family's
	blocks string
	talks  func(t *testing.T, here, near, far *space) []*datagrams
	lost   []string // names, of whom the plan says so and it is so
	unsaid []string // of the plan
}

// through is FORWARD of a stateful router, with rules of its own for what begins.
func through(rules ...string) string {
	return "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

// into is the same of INPUT.
func into(rules ...string) string {
	return strings.NewReplacer(":INPUT ACCEPT", ":INPUT DROP", ":FORWARD DROP", ":FORWARD ACCEPT", "-A FORWARD", "-A INPUT").Replace(through(rules...))
}

const (
	untrackAll    = "notrack \"all\" { }\n"
	untrackRouted = "notrack \"routed\" { direction = \"forward\" }\n"
	acceptICMP    = "accept \"icmp\" { protocol = \"icmp\" }\naccept \"icmpv6\" { protocol = \"ipv6-icmp\" }\n"
	acceptRouted  = "accept \"routed\" {\n protocol = \"udp\"\n remote_port = 5301\n direction = \"forward\"\n}\n"
)

var works = []work{
	{name: "fragments by types of ICMP, routed", rules: through("-A FORWARD -p ICMP -m conntrack --ctstate NEW -j ACCEPT"),
		blocks: untrackAll + untrackRouted + "accept \"icmp\" {\n protocol = \"icmp\"\n direction = \"forward\"\n}\naccept \"icmpv6\" {\n protocol = \"ipv6-icmp\"\n direction = \"forward\"\n}\n",
		talks: func(t *testing.T, _, near, _ *space) (list []*datagrams) {
			for _, f := range live.Families {
				list = append(list, pings(t, "echo "+string(f), near, farAddr[f]))
			}
			return list
		}},
	{name: "fragments by their length", rules: into("-A INPUT -p udp -m udp --dport 5300 -m length --length 0:64 -j DROP", "-A INPUT -p udp -m udp --dport 5300 -m conntrack --ctstate NEW -j ACCEPT", "-A INPUT -p ICMP -j ACCEPT"),
		blocks: untrackAll + acceptICMP + "accept \"served\" {\n protocol = \"udp\"\n local_port = 5300\n}\n",
		talks:  servedOn(5300)},
	{name: "fragments of what one block leaves tracked", rules: into("-A INPUT -p udp -m multiport --dports 5300,5305 -m conntrack --ctstate NEW -j ACCEPT", "-A INPUT -p ICMP -j ACCEPT"),
		blocks: "notrack \"one\" {\n protocol = \"udp\"\n local_port = 5300\n}\naccept \"served\" {\n protocol = \"udp\"\n local_port = 5300\n}\n",
		talks: func(t *testing.T, here, near, far *space) []*datagrams {
			return append(servedOn(5300)(t, here, near, far), servedOn(5305)(t, here, near, far)...)
		}},
	{name: "tunnels whose both ends send to one port", rules: "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -p udp -m multiport --dports 4789,6081,2152 -j CT --notrack\n-A OUTPUT -p udp -m multiport --dports 4789,6081,2152 -j CT --notrack\nCOMMIT\n" +
		into("-A INPUT -p udp -m multiport --dports 4789,6081,2152 -j ACCEPT", "-A INPUT -p ICMP -j ACCEPT"),
		blocks: "notrack \"tcp\" { protocol = \"tcp\" }\n", unsaid: []string{"one_sided", "this rule takes"}, talks: overlays},
	{name: "tunnels that leave tracking", rules: into("-A INPUT -p udp -m multiport --dports 4789,6081,2152 -m conntrack --ctstate NEW -j ACCEPT", "-A INPUT -p ICMP -j ACCEPT"),
		blocks: untrackAll + acceptICMP + "accept \"overlays\" {\n protocol = \"udp\"\n local_port = [4789, 6081, 2152]\n}\naccept \"out\" {\n protocol = \"udp\"\n remote_port = [4789, 6081, 2152]\n}\n",
		unsaid: []string{"one_sided", "this rule takes"}, talks: overlays},
	{name: "tunnels of which one is left out", rules: into("-A INPUT -p udp -m multiport --dports 4789,6081,2152 -m conntrack --ctstate NEW -j ACCEPT", "-A INPUT -p ICMP -j ACCEPT"),
		blocks: untrackAll + acceptICMP + "accept \"overlays\" {\n protocol = \"udp\"\n local_port = [4789, 2152]\n}\nallow_risk = [\"lost_flows\", \"lost_services\"]\n",
		lost:   []string{"udp/6081 ipv4", "udp/6081 ipv6"}, talks: overlays},
	{name: "a bridge whose frames meet the rules", setup: "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1", rules: through("-A FORWARD -p udp -m udp --dport 5301 -m conntrack --ctstate NEW -j ACCEPT", "-A FORWARD -p ICMP -j ACCEPT"),
		blocks: untrackAll + untrackRouted + acceptRouted, talks: guests},
	{name: "a bridge, and no block for its guests", setup: "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1", rules: through("-A FORWARD -p udp -m udp --dport 5301 -m conntrack --ctstate NEW -j ACCEPT", "-A FORWARD -p ICMP -j ACCEPT"),
		blocks: untrackAll + untrackRouted + "allow_risk = [\"lost_flows\", \"lost_services\"]\n", lost: []string{"udp/5301 ipv4", "udp/5301 ipv6"}, talks: guests},
	{name: "a bridge, and blocks for this host alone", setup: "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1", rules: through("-A FORWARD -p udp -m udp --dport 5301 -m conntrack --ctstate NEW -j ACCEPT", "-A FORWARD -p ICMP -j ACCEPT"),
		blocks: untrackAll, talks: guests}, // the guests' frames are none of it
	{name: "a bridge whose frames do not", setup: "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0", rules: through("-A FORWARD -p ICMP -j ACCEPT"),
		blocks: untrackAll + untrackRouted, talks: guests},
}

// servedOn are datagrams to a port of the host.
func servedOn(port int) func(t *testing.T, here, near, far *space) []*datagrams {
	return func(t *testing.T, here, near, _ *space) (list []*datagrams) {
		for _, f := range live.Families {
			list = append(list, parley(t, fmt.Sprintf("udp/%d %s", port, f), near, here, nearAddr[f], nearHost[f], port))
		}
		return list
	}
}

// overlay is an end of a tunnel over UDP: it sends from a port of its own, and
// hears on the one that both ends send to.
type overlay struct {
	*net.UDPConn
	from net.Conn
}

func (o overlay) Write(b []byte) (int, error) { return o.from.Write(b) }

// overlays are tunnels between the host and a neighbour.
func overlays(t *testing.T, here, near, _ *space) (list []*datagrams) {
	end := func(at *space, own, other string, port, from int) (o overlay) {
		at.do(t, func() (err error) {
			if o.UDPConn, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(own), Port: port}); err == nil {
				o.from, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(own), Port: from}, &net.UDPAddr{IP: net.ParseIP(other), Port: port})
			}
			return err
		})
		t.Cleanup(func() { o.Close(); o.from.Close() })
		return o
	}
	for _, f := range live.Families {
		for _, port := range []int{4789, 6081, 2152} {
			list = append(list, &datagrams{name: fmt.Sprintf("udp/%d %s", port, f), a: end(near, nearAddr[f], nearHost[f], port, 51000+port/100), b: end(here, nearHost[f], nearAddr[f], port, 52000+port/100)})
		}
	}
	return list
}

// guests are the neighbours on one bridge of the host, which routes nothing.
func guests(t *testing.T, here, near, far *space) (list []*datagrams) {
	for at, script := range map[*space]string{
		here: "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0; ip link add name br0 type bridge; ip link set dev br0 up; for i in near far; do ip addr flush dev $i; ip link set dev $i master br0; done",
		near: "ip addr add 10.33.0.2/24 dev up; ip addr add fd33::2/64 dev up nodad",
		far:  "ip addr add 10.33.0.3/24 dev up; ip addr add fd33::3/64 dev up nodad",
	} {
		at.do(t, func() error {
			if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	return []*datagrams{parley(t, "udp/5301 ipv4", near, far, "10.33.0.2", "10.33.0.3", 5301), parley(t, "udp/5301 ipv6", near, far, "fd33::2", "fd33::3", 5301)}
}

// TestWork takes connections out of tracking on hosts that have it do more than
// tell states: what the plan calls lost dies, and everything else lives on, small
// and in fragments.
func TestWork(t *testing.T) {
	for _, k := range works {
		for _, b := range backends {
			t.Run(k.name+"/"+string(b), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, b, "kind")
				here, near, far := network(t, h)
				list := k.talks(t, here, near, far)
				if k.setup != "" {
					h.sh(k.setup)
				}
				h.RunInput(strings.ReplaceAll(k.rules, "ICMP", "icmp"), "iptables-restore")
				h.RunInput(strings.ReplaceAll(k.rules, "ICMP", "ipv6-icmp"), "ip6tables-restore")
				var want []string
				for _, d := range list {
					want = append(want, d.name+" 100", d.name+" 4000")
				}
				all := alive(list)
				for i := 0; i < 5 && !slices.Equal(all, want); i++ { // neighbours are being found
					all = alive(list)
				}
				if !slices.Equal(all, want) {
					t.Fatalf("to begin with, these live: %v", all)
				}
				path := h.config("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n" + k.blocks + "}\n")
				said := h.try("plan", path)
				for _, text := range k.unsaid {
					if strings.Contains(said.stdout, text) {
						t.Errorf("the plan says %q:\n%s", text, said.stdout)
					}
				}
				lost := map[string]bool{}
				for _, line := range fragmentsLost(h, path) {
					f := strings.Fields(line) // result, service, way, family, fragments alone
					if len(f) != 5 || f[0] != "lost" || f[4] != "false" {
						t.Errorf("the plan says %q", line)
						continue
					}
					lost[f[1]+" "+f[3]] = true
				}
				for _, name := range k.lost {
					if !lost[name] {
						t.Errorf("the plan does not call %s lost, but %v:\n%s", name, lost, said.stdout)
					}
				}
				if len(lost) != len(k.lost) {
					t.Errorf("the plan calls %v lost", lost)
				}
				h.ctplan(exitOK, "apply", "--auto-approve", path)
				want = slices.DeleteFunc(want, func(name string) bool {
					return slices.ContainsFunc(k.lost, func(lost string) bool { return strings.HasPrefix(name, lost+" ") })
				})
				if now := alive(list); !slices.Equal(now, want) {
					t.Errorf("after apply, these live: %v\nwant: %v\n%s", now, want, h.rules())
				}
			})
		}
	}
}
