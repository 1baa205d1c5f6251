package e2e

import (
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	live "github.com/ctplan/ctplan/planner/host"
)

// closedGateway is a router that lets in and through by state, and nothing else.
const closedGateway = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
:guard - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j guard
-A INPUT -s NEAR -p tcp -m tcp --dport 8080 -m state --state NEW -j ACCEPT
-A INPUT -s NEAR -p tcp -m tcp --dport 5432 --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j ACCEPT
-A INPUT -p udp -m udp --dport 5300 -m state --state NEW -j ACCEPT
-A INPUT -p ECHO -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i near -o far -p tcp -m conntrack --ctstate NEW -m multiport --dports 443,8443 -j ACCEPT
-A FORWARD -i near -o far -p udp -m udp --dport 53 -m state --state NEW -j ACCEPT
-A FORWARD -i far -o near -p tcp -m tcp --dport 25 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -i near -o far -p ECHO -m state --state NEW -j ACCEPT
-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT
-A guard -m recent --update --seconds 60 --hitcount 15 --name LIST --mask MASK --rsource -j DROP
-A guard -m recent --set --name LIST --mask MASK --rsource
-A guard -p tcp -j ACCEPT
COMMIT
`

// openGateway is one that lets in and through what no rule refuses by its state.
const openGateway = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:closed - [0:0]
-A INPUT ! -s NEAR -p tcp -m state --state NEW -m multiport --dports 8080,5432 -j REJECT --reject-with tcp-reset
-A INPUT -p tcp -m tcp --dport 3306 -m conntrack ! --ctstate RELATED,ESTABLISHED -j closed
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A FORWARD -i far -o near -p tcp -m tcp ! --dport 25 -m state --state NEW -j closed
-A FORWARD -i near -o far -p tcp -m conntrack --ctstate NEW -m multiport ! --dports 443,8443 -j DROP
-A closed -m limit --limit 5/min -j LOG
-A closed -j REJECT
COMMIT
`

// dnsAnswers lets in the answers of UDP, which nothing shows to be some.
const dnsAnswers = `
  accept "dns" {
    protocol    = "udp"
    remote      = ["10.32.0.2", "fd32::2"]
    remote_port = 53
  }
  accept "dns-through" {
    protocol    = "udp"
    direction   = "forward"
    remote      = ["10.32.0.2", "fd32::2"]
    remote_port = 53
  }
`

// everything is the host's own traffic, and what is routed.
const everything = "notrack \"all\" { }\n notrack \"through\" { direction = \"forward\" }\n"

// TestTranslateGateway has a router of both families do without tracking, for TCP,
// for everything and in disabled, with connections of every kind to, from and
// through it: they live through it there and back, others can be opened all the
// time, strangers stay out, and every byte comes back.
func TestTranslateGateway(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, b, "gateway")
			here, near, far := network(t, h)
			h.sh("mkdir -p /etc/iptables; iptables -t raw -S; ip6tables -t raw -S") // legacy makes a table when it is named
			c := gatewayCrowd(t, here, near, far)
			for _, tt := range []struct{ name, rules, mode, blocks, risks string }{
				{"tcp", closedGateway, "notrack", "notrack \"tcp\" { protocol = \"tcp\" }\n notrack \"through\" {\n protocol = \"tcp\"\n direction = \"forward\"\n }", `"wider_rules"`}, // INVALID are errors about what is not tracked
				{"all", closedGateway, "notrack", everything + dnsAnswers, `"wider_rules"`},
				{"disabled", closedGateway, "disabled", dnsAnswers, `"wider_rules"`},
				{"open, all", openGateway, "notrack", everything, ""},
			} {
				outer := h.t
				t.Run(tt.name, func(t *testing.T) {
					h.t = t
					defer func() { h.t = outer }()
					for f, words := range map[live.Family][]string{
						live.IPv4: {"iptables", "rules.v4", "NEAR", "10.31.0.0/24", "ECHO", "icmp -m icmp --icmp-type 8", "MASK", "255.255.255.255"},
						live.IPv6: {"ip6tables", "rules.v6", "NEAR", "fd31::/64", "ECHO", "ipv6-icmp -m icmp6 --icmpv6-type 128", "MASK", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
					} {
						rules := strings.NewReplacer(append(words[2:], "LIST", "ssh-"+tt.name)...).Replace(tt.rules)
						if f == live.IPv6 { // which nobody tracks
							rules = strings.ReplaceAll(rules, "-A INPUT -i lo -j ACCEPT\n", "-A INPUT -i lo -j ACCEPT\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT\n-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT\n-A OUTPUT -p ipv6-icmp -j ACCEPT\n")
						}
						h.RunInput(rules, words[0]+"-restore")
						h.sh(words[0] + "-save > /etc/iptables/" + words[1])
					}
					c.open(t)
					path := h.config("conntrack \"x\" {\n mode = \"" + tt.mode + "\"\n stateful_rules = \"translate\"\n allow_risk = [" + tt.risks + "]\n" + tt.blocks + "\n}\n")
					c.hold(t, h, "before")
					was := h.state()
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					c.hold(t, h, "translated")
					h.ctplan(exitOK, "plan", "--detailed-exitcode", path)
					if tt.name != "tcp" {
						h.sh("conntrack -F 2>/dev/null")
						c.hold(t, h, "with nothing in the table")
						if n := strings.TrimSpace(h.sh("conntrack -C")); n != "0" {
							t.Errorf("%s connections are tracked\n%s", n, h.sh("conntrack -L 2>/dev/null; iptables-save -t raw"))
						}
					}
					h.ctplan(exitOK, "rollback", "--auto-approve")
					same(t, "there and back", was, h.state())
					c.hold(t, h, "back")
				})
			}
		})
	}
}

// gatewayClients are who talks to, from and through the gateway.
type gatewayClients struct {
	here, near, far *space
	lets, refuses   []knocking
	briefly         []knocking // what is let in too, and is not held: once forgotten it is not NEW by its flags
	talks           []*talk
	before          map[string]int
	pings           uint16
}

// knocking is a connection that somebody may try to open.
type knocking struct {
	from *space
	to   net.Listener
}

func gatewayCrowd(t *testing.T, here, near, far *space) *gatewayClients {
	c := &gatewayClients{here: here, near: near, far: far}
	for _, f := range live.Families {
		at := func(s *space, addr, port string) net.Listener { return listen(t, s, net.JoinHostPort(addr, port)) }
		ssh, web, db := at(here, nearHost[f], "22"), at(here, nearHost[f], "5432"), at(here, nearHost[f], "3306")
		out, mail, other := at(far, farAddr[f], "8443"), at(near, nearAddr[f], "25"), at(far, farAddr[f], "9999")
		inner := at(near, nearAddr[f], "22")
		c.lets = append(c.lets, knocking{near, ssh}, knocking{far, ssh}, knocking{here, out}, knocking{near, out}, knocking{far, mail})
		c.briefly = append(c.briefly, knocking{near, web})
		c.refuses = append(c.refuses, knocking{near, db}, knocking{far, db}, knocking{far, web}, knocking{near, other}, knocking{far, inner})
	}
	return c
}

// open has connections of every kind, all of them working.
func (c *gatewayClients) open(t *testing.T) {
	t.Helper()
	c.talks = nil
	for _, f := range live.Families {
		for _, more := range [][]*talk{
			open(t, c.near, c.here, "tcp", "", nearHost[f], 8080, 2, "tcp in"),
			open(t, c.here, c.far, "tcp", "", farAddr[f], 443, 2, "tcp out"),
			open(t, c.near, c.here, "udp", nearAddr[f], nearHost[f], 5300, 2, "udp in"),
			open(t, c.here, c.far, "udp", farHost[f], farAddr[f], 53, 2, "udp out"),
			open(t, c.near, c.far, "udp", nearAddr[f], farAddr[f], 53, 2, "udp through"),
		} {
			c.talks = append(c.talks, more...)
		}
		c.talks = append(c.talks, c.ping(t, f)...)
	}
	for _, k := range c.lets {
		x := &talk{service: "tcp to " + k.to.Addr().String()}
		x.a, x.b = connect(t, k.from, k.to, "")
		c.talks = append(c.talks, x)
	}
	talks := c.talks
	t.Cleanup(func() {
		for _, k := range talks {
			k.a.Close()
			k.b.Close()
		}
	})
	if c.before = living(talks); total(c.before) != len(talks) {
		t.Fatalf("of %d connections %d work under the stateful rules: %v", len(talks), total(c.before), c.before)
	}
}

func (c *gatewayClients) ping(t *testing.T, f live.Family) []*talk {
	c.pings += 10
	return []*talk{ping(t, c.near, nearHost[f], c.pings, "ping in"), ping(t, c.here, farAddr[f], c.pings+1, "ping out"), ping(t, c.near, farAddr[f], c.pings+2, "ping through")}
}

// hold expects the open connections to live, and opens others.
func (c *gatewayClients) hold(t *testing.T, h *host, when string) {
	t.Helper()
	if now := living(c.talks); !maps.Equal(c.before, now) {
		t.Fatalf("%s: %v, and before %v\n%s", when, now, c.before, h.rules())
	}
	for _, k := range slices.Concat(c.lets, c.briefly) {
		x, y := connect(t, k.from, k.to, "")
		x.Close()
		y.Close()
	}
	for _, f := range live.Families {
		for _, k := range c.ping(t, f) {
			if !k.alive() {
				t.Errorf("%s: %s of %s gets no answer\n%s", when, k.service, k.family, h.rules())
			}
			k.a.Close()
		}
	}
	for _, k := range reached(t, c.refuses) {
		t.Errorf("%s: %s is reached that no rule lets anybody reach\n%s", when, k.to.Addr(), h.rules())
	}
}

// reached are those of the connections that can be opened, all tried at once.
func reached(t *testing.T, all []knocking) (through []knocking) {
	t.Helper()
	return reachedIn(t, all, 300*time.Millisecond)
}

// reachedIn are those that are there by then.
func reachedIn(t *testing.T, all []knocking, wait time.Duration) (through []knocking) {
	t.Helper()
	polls := make([]unix.PollFd, len(all))
	for i, k := range all {
		to := k.to.Addr().(*net.TCPAddr).AddrPort()
		k.from.do(t, func() error {
			domain, addr := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
			if to.Addr().Is4() {
				domain, addr = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
			}
			fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
			if err := unix.Connect(fd, addr); err != nil && err != unix.EINPROGRESS && err != unix.EINTR { // it goes on all the same
				return err
			}
			return nil
		})
	}
	time.Sleep(wait)
	_, err := unix.Poll(polls, 0)
	for err == unix.EINTR { // a signal of the runtime's
		_, err = unix.Poll(polls, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range polls {
		if polls[i].Revents&(unix.POLLOUT|unix.POLLERR|unix.POLLHUP) == unix.POLLOUT {
			through = append(through, all[i])
		}
		unix.Close(int(polls[i].Fd))
	}
	return through
}
