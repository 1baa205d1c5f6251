package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	live "github.com/ctplan/ctplan/planner/host"
)

// away are clients that only the second uplink, far, leads to.
var away = map[live.Family]string{live.IPv4: "198.51.100.9", live.IPv6: "2001:db8:9::9"}

// uplinks is a host with two of them: its default route leads to near, and what
// is marked 2 goes to far.
const uplinks = `
	ip link add wg0 type veth peer name wg1; ip link set wg1 up; ip addr add 10.99.0.1/24 dev wg0; ip addr add fd99::1/64 dev wg0 nodad; ip link set wg0 up
	ip route add default via 10.31.0.2 dev near; ip -6 route add default via fd31::2 dev near
	ip route add default via 10.32.0.2 dev far table 200; ip -6 route add default via fd32::2 dev far table 200
	ip route add default dev wg0 table 300; ip -6 route add default dev wg0 table 300
	sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.far.rp_filter=0 net.ipv4.conf.near.rp_filter=0
`

const fwmark = "ip rule add fwmark 2 lookup 200 pref 100; ip -6 rule add fwmark 2 lookup 200 pref 100\n"

// markRules are rules of mangle for both families, on a host that filters by
// state and lets everybody call on 80.
func markRules(lines ...string) string {
	return "*mangle\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n" + strings.Join(lines, "\n") + "\nCOMMIT\n" + stateRules
}

const (
	stateRules = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p ICMP -j ACCEPT\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n-A INPUT -p udp -m udp --dport 53 -j ACCEPT\n" +
		"-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n"
	markNew, restoreOut, restoreIn = "-A PREROUTING -i far -m state --state NEW -j CONNMARK --set-mark 2", "-A OUTPUT -j CONNMARK --restore-mark", "-A PREROUTING -i near -j CONNMARK --restore-mark"
)

// TestMarksThatRoute takes connections out of tracking whose marks decide by
// which way they go: those that the plan calls kept live, and those that it calls
// lost die.
func TestMarksThatRoute(t *testing.T) {
	for _, tt := range []struct {
		name   string
		setup  string // of the host
		rules  string
		nft    string   // rules of nftables' own, in the place of those of mangle
		routed bool     // the connection goes through the host
		lost   bool     // the plan says so, and it is so
		said   []string // by the plan
	}{
		{"two uplinks", fwmark, markRules(markNew, restoreOut), "", false, true, []string{"it loses the mark 0x2, which -A OUTPUT -j CONNMARK --restore-mark", "fwmark 0x2 lookup 200", "no longer by far", "narrow the notrack blocks", "BLOCKED by lost_services"}},
		{"two uplinks, under a mask", "ip rule add fwmark 0x20/0xf0 lookup 200 pref 100; ip -6 rule add fwmark 0x20/0xf0 lookup 200 pref 100", markRules("-A PREROUTING -i far -m state --state NEW -j CONNMARK --set-xmark 0x21/0xff", "-A OUTPUT -j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xf0"), "", false, true, []string{"fwmark 0x20/0xf0"}},
		{"two uplinks, routed", fwmark, markRules(markNew, restoreIn), "", true, true, []string{"no longer by far"}},
		{"without the mark, a blackhole", fwmark + "ip rule add to 198.51.100.0/24 blackhole pref 200; ip -6 rule add to 2001:db8:9::/64 unreachable pref 200", markRules(markNew, restoreIn), "", true, true, []string{"goes nowhere"}},
		{"pods with an uplink of their own, as AWS's CNI has it", "ip rule add fwmark 0x80/0x80 lookup 200 pref 1024; ip rule add from 10.31.0.2 lookup 300 pref 1536; ip -6 rule add fwmark 0x80/0x80 lookup 200 pref 1024; ip -6 rule add from fd31::2 lookup 300 pref 1536",
			markRules("-A PREROUTING -i far -m comment --comment \"primary ENI\" -j CONNMARK --set-xmark 0x80/0x80", "-A PREROUTING -i near -m comment --comment \"to the primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80"), "", true, true, []string{"fwmark 0x80/0x80 lookup 200"}},
		{"with the mark, past a tunnel", "ip rule add not fwmark 2 lookup 300 pref 150; ip -6 rule add not fwmark 2 lookup 300 pref 150\n" + fwmark, markRules(markNew, restoreOut), "", false, true, []string{"goes by wg0"}},
		{"marks that nothing goes by", "ip rule add fwmark 0x10/0xf0 lookup 300 pref 100; ip -6 rule add fwmark 0x10/0xf0 lookup 300 pref 100; ip route replace default via 10.32.0.2 dev far; ip -6 route replace default via fd32::2 dev far", markRules(markNew, restoreOut), "", false, false, nil},
		{"marks by which it goes the same way", fwmark + "ip route replace default via 10.32.0.2 dev far; ip -6 route replace default via fd32::2 dev far", markRules(markNew, restoreOut), "", false, false, nil},
		{"marks that a packet shows by itself", fwmark, markRules(), "", false, false, nil},
		{"of nftables' own", fwmark, stateRules, "chain in {\n type filter hook prerouting priority mangle\n iifname far ct state new ct mark set 2\n }\n chain out {\n type route hook output priority mangle\n meta mark set ct mark\n }\n", false, true, []string{"it loses the mark 0x2, which inet marks out", "no longer by far"}},
		{"of nftables' own, in a chain that does not route", fwmark + "ip route replace default via 10.32.0.2 dev far; ip -6 route replace default via fd32::2 dev far; ip route replace default via 10.31.0.2 dev near table 200; ip -6 route replace default via fd31::2 dev near table 200", stateRules, "chain in {\n type filter hook prerouting priority mangle\n iifname far ct state new ct mark set 2\n }\n chain out {\n type filter hook output priority mangle\n meta mark set ct mark\n }\n", false, false, nil},
	} {
		for _, b := range backends {
			if b == live.Legacy && (tt.nft != "" || !tt.lost) {
				continue // what is not lost, and nftables' own, is the same to both
			}
			t.Run(tt.name+"/"+string(b), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, b, "uplinks")
				here, near, far := network(t, h)
				h.sh(uplinks + tt.setup)
				if tt.nft != "" {
					h.RunInput("table inet marks {\n"+tt.nft+"}\n", "nft", "-f", "-")
				}
				for family, tool := range map[live.Family]string{live.IPv4: "iptables-restore", live.IPv6: "ip6tables-restore"} {
					rules := tt.rules
					if strings.Contains(tt.name, "shows by itself") {
						rules = markRules("-A OUTPUT -s " + farHost[family] + " -j MARK --set-mark 2")
					}
					h.RunInput(strings.ReplaceAll(rules, "ICMP", map[live.Family]string{live.IPv4: "icmp", live.IPv6: "ipv6-icmp"}[family]), tool)
				}
				beyond(t, near, far)
				talks := answers(t, here, near, far, tt.routed)
				checkMarks(t, h, talks, tt.lost, tt.said)
			})
		}
	}
}

// beyond gives one uplink's neighbour the clients' addresses, and both a way back.
func beyond(t *testing.T, other, clients *space) {
	const back = "net=$(ip -4 -o addr show dev up | sed -n 's/.*inet 10[.]\\(3[12]\\)[.].*/\\1/p'); ip route add default via 10.$net.0.1; ip -6 route add default via fd$net::1\n"
	for at, script := range map[*space]string{
		clients: back + "ip addr add 198.51.100.9/32 dev up; ip addr add 2001:db8:9::9/128 dev up nodad",
		other:   back,
	} {
		at.do(t, func() error {
			out, err := exec.Command("sh", "-ec", script).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

// answers opens connections of TCP and UDP from clients behind the second uplink
// to the host, or through it to the first one's neighbour.
func answers(t *testing.T, here, near, far *space, routed bool) (talks []*talk) {
	for _, f := range live.Families {
		to, at, way := farHost[f], here, "in"
		if routed {
			to, at, way = nearAddr[f], near, "forward"
		}
		l := listen(t, at, net.JoinHostPort(to, "80"))
		k := &talk{service: "tcp/80 " + way, family: f}
		k.a, k.b = connect(t, far, l, net.JoinHostPort(away[f], "0"))
		talks = append(talks, k)
		talks = append(talks, open(t, far, at, "udp", away[f], to, 53, 1, "udp/53 "+way)...)
	}
	for _, k := range talks {
		if !k.alive() {
			t.Fatalf("%s of %s does not work to begin with", k.service, k.family)
		}
	}
	return talks
}

// checkMarks plans, applies, and sees whether what was said is so.
func checkMarks(t *testing.T, h *host, talks []*talk, lost bool, said []string) {
	t.Helper()
	const hcl = "conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n allow_risk = [%s]\n notrack \"all\" { }\n notrack \"through\" { direction = \"forward\" }\n" +
		" accept \"web\" {\n protocol = \"tcp\"\n local_port = 80\n }\n accept \"dns\" {\n protocol = \"udp\"\n local_port = 53\n }\n accept \"through\" { direction = \"forward\" }\n accept \"icmp\" { protocol = \"icmp\" }\n accept \"icmpv6\" { protocol = \"ipv6-icmp\" }\n}\n"
	r := h.try("plan", h.config(fmt.Sprintf(hcl, `"connection_marks"`)))
	text := strings.Join(strings.Fields(r.stdout), " ")
	for _, want := range said {
		if !strings.Contains(text, want) {
			t.Errorf("not said: %q\n%s", want, r.stdout)
		}
	}
	if (r.status == exitBlocked) != lost {
		t.Errorf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	config := h.config(fmt.Sprintf(hcl, `"connection_marks", "lost_flows", "lost_services"`))
	got := willLose(t, h, config)
	h.ctplan(exitOK, "apply", "--auto-approve", config)
	for key, n := range living(talks) {
		if (n == 0) != lost || (got[key] > 0) != lost {
			t.Errorf("%s: %d live, the plan calls %d lost\n%s\n%s", key, n, got[key], text, h.rules())
		}
	}
}

// unconnected is a socket of UDP that has no peer to the kernel, as those of
// tunnels: what comes to it is not taken for checked because it came before.
type unconnected struct {
	*net.UDPConn
	peer *net.UDPAddr
}

func (u unconnected) Write(b []byte) (int, error) { return u.WriteToUDP(b, u.peer) }

// TestMarksOfTunnels is a host as wg-quick or tailscale leaves it: what is not marked goes
// through the tunnel, the tunnel's own packets are marked by their socket, and the
// connection carries the mark to what comes in, so that rp_filter does not take it
// for forged.
func TestMarksOfTunnels(t *testing.T) {
	const (
		quick    = "*mangle\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n-A POSTROUTING -p udp -m mark --mark 51820 -j CONNMARK --save-mark\n-A PREROUTING -p udp -j CONNMARK --restore-mark\nCOMMIT\n"
		quickWay = "ip rule add not fwmark 51820 lookup 300 pref 150; ip rule add lookup main suppress_prefixlength 0 pref 140"
		tail     = "*mangle\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000\n" +
			"-A OUTPUT -m conntrack --ctstate NEW -m mark ! --mark 0x0/0xff0000 -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000\nCOMMIT\n"
		tailWay = "ip rule add fwmark 0x80000/0xff0000 lookup main pref 5210; ip rule add fwmark 0x80000/0xff0000 unreachable pref 5250; ip route add default dev wg0 table 52; ip rule add lookup 52 pref 5270"
	)
	for _, tt := range []struct {
		name       string
		mark       int
		ways       string
		rules      string
		strict     bool
		lost       bool
		routedRule string // that the plan names
	}{
		{"wg-quick, rp_filter", 51820, quickWay, quick, true, true, "not from all fwmark 0xca6c lookup 300"},
		{"wg-quick, no rp_filter", 51820, quickWay, quick, false, false, ""},
		{"tailscale, rp_filter", 0x80000, tailWay, tail, true, true, "fwmark 0x80000/0xff0000 lookup main"},
		{"tailscale, no rp_filter", 0x80000, tailWay, tail, false, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, live.NFT, "roadwarrior")
			here, near, far := network(t, h)
			h.sh(uplinks + tt.ways + "; sysctl -qw net.ipv4.conf.all.src_valid_mark=1")
			if tt.strict {
				h.sh("sysctl -qw net.ipv4.conf.near.rp_filter=1")
			}
			h.RunInput(tt.rules, "iptables-restore")
			beyond(t, far, near)
			k := &talk{service: "udp/high ports out", family: live.IPv4}
			here.do(t, func() (err error) {
				l := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
					c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, tt.mark) })
					return err
				}}
				c, err := l.ListenPacket(context.Background(), "udp", nearHost[live.IPv4]+":51821")
				if err == nil {
					k.a = unconnected{c.(*net.UDPConn), &net.UDPAddr{IP: net.ParseIP(away[live.IPv4]), Port: 51820}}
				}
				return err
			})
			near.do(t, func() (err error) {
				d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(away[live.IPv4]), Port: 51820}}
				k.b, err = d.Dial("udp", nearHost[live.IPv4]+":51821")
				return err
			})
			if !k.alive() {
				t.Fatal("the tunnel does not work to begin with")
			}
			said := []string{"rp_filter of near takes it for forged", tt.routedRule}
			if !tt.lost {
				said = nil
			}
			// What ctplan suggests keeps the marks.
			out := h.ctplan(exitOK, "suggest").stdout
			if !regexp.MustCompile(`mode += "tuned"`).MatchString(out) || regexp.MustCompile(`(?m)^ +allow_risk`).MatchString(out) {
				t.Errorf("suggested:\n%s", out)
			}
			checkMarks(t, h, []*talk{k}, tt.lost, said)
		})
	}
}

// TestMarksOfPolicies is a router on which answers pass a policy of IPsec by the
// mark of their connection: what that does without the mark the plan does not know, and
// says so, with the policy. Here they die.
func TestMarksOfPolicies(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b, "policies")
			_, near, far := network(t, h)
			h.sh(uplinks + "ip route replace default via 10.32.0.2 dev far; ip -6 route replace default via fd32::2 dev far\n" +
				"ip xfrm policy add src 10.31.0.2 dst 198.51.100.9 dir fwd mark 2 action allow priority 1; ip xfrm policy add src 10.31.0.2 dst 198.51.100.9 dir fwd action block priority 2")
			for family, tool := range map[live.Family]string{live.IPv4: "iptables-restore", live.IPv6: "ip6tables-restore"} {
				h.RunInput(strings.ReplaceAll(markRules(markNew, restoreIn), "ICMP", map[live.Family]string{live.IPv4: "icmp", live.IPv6: "ipv6-icmp"}[family]), tool)
			}
			beyond(t, near, far)
			talks := open(t, far, near, "udp", away[live.IPv4], nearAddr[live.IPv4], 53, 2, "udp/53 forward")
			if before := living(talks); before["udp/53 forward ipv4"] != 2 {
				t.Fatalf("to begin with: %v", before)
			}
			config := h.config("conntrack \"x\" {\n mode = \"notrack\"\n stateful_rules = \"remove\"\n allow_risk = [\"connection_marks\"]\n notrack \"all\" { }\n notrack \"through\" { direction = \"forward\" }\n accept \"web\" {\n protocol = \"tcp\"\n local_port = 80\n }\n accept \"dns\" {\n protocol = \"udp\"\n local_port = 53\n }\n" +
				" accept \"icmp\" { protocol = \"icmp\" }\n accept \"icmpv6\" { protocol = \"ipv6-icmp\" }\n accept \"through\" { direction = \"forward\" }\n}\n")
			said := h.try("plan", config).stdout
			if text := strings.Join(strings.Fields(said), " "); !strings.Contains(text, "whether 2 connections survive cannot be told, because of its mark") || !strings.Contains(text, "a policy of IPsec goes by that (mark 0x2/0xffffffff)") || strings.Contains(text, "2 kept") {
				t.Errorf("the plan says\n%s", said)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", config)
			if after := living(talks); after["udp/53 forward ipv4"] != 0 {
				t.Errorf("nothing is tried: %v live\n%s", after, h.rules())
			}
		})
	}
}
