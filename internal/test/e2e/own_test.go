package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	live "github.com/ctplan/ctplan/planner/host"
)

// ownService takes a service of a host out of tracking, and says nothing of what
// the host routes.
const ownService = `conntrack "x" {
  mode = "notrack"

  notrack "syslog" {
    protocol   = "udp"
    local_port = 514
  }
  accept "syslog" {
    protocol   = "udp"
    local_port = 514
  }
}
`

// dockerRules are those of Docker 28, with a container behind "near".
const dockerRules = `*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d LOOP -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s NEARNET ! -o near -j MASQUERADE
-A DOCKER ! -i near -p tcp -m tcp --dport 8080 -j DNAT --to-destination NEARPORT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-BRIDGE -
:DOCKER-CT -
:DOCKER-FORWARD -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d NEAR ! -i near -o near -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i near -o near -j DROP
-A DOCKER-BRIDGE -o near -j DOCKER
-A DOCKER-CT -o near -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i near -j ACCEPT
COMMIT
`

// kubeRules are those of kube-proxy 1.30 in mode iptables, with pods behind
// "near": a service of the same port as the host's, and one at a port of the node.
const kubeRules = `*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:KUBE-EXT-WEB -
:KUBE-KUBELET-CANARY -
:KUBE-MARK-MASQ -
:KUBE-NODEPORTS -
:KUBE-POSTROUTING -
:KUBE-SEP-LOG -
:KUBE-SEP-WEB -
:KUBE-SERVICES -
:KUBE-SVC-LOG -
:KUBE-SVC-WEB -
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-EXT-WEB -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-LOG -s FAR -j KUBE-MARK-MASQ
-A KUBE-SEP-LOG -p udp -m udp -j DNAT --to-destination FARPORT
-A KUBE-SEP-WEB -p tcp -m tcp -j DNAT --to-destination NEARPORT
-A KUBE-SERVICES -d VIP -p udp -m udp --dport 514 -j KUBE-SVC-LOG
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-LOG -d VIP -p udp -m udp --dport 514 -j KUBE-MARK-MASQ
-A KUBE-SVC-LOG -j KUBE-SEP-LOG
-A KUBE-SVC-WEB -j KUBE-SEP-WEB
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:KUBE-EXTERNAL-SERVICES -
:KUBE-FIREWALL -
:KUBE-FORWARD -
:KUBE-PROXY-FIREWALL -
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -i near -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-EXTERNAL-SERVICES -p tcp -m tcp --dport 30081 -m addrtype --dst-type LOCAL -j REJECT
-A KUBE-FIREWALL ! -s LOOP -d LOOP -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

var (
	nearNet = map[live.Family]string{live.IPv4: "10.31.0.0/24", live.IPv6: "fd31::/64"}
	vip     = map[live.Family]string{live.IPv4: "10.96.0.10", live.IPv6: "fd96::10"}
	nets    = map[live.Family]string{live.IPv4: "10.96.0.0/24", live.IPv6: "fd96::/64"} // of services
	loop    = map[live.Family]string{live.IPv4: "127.0.0.0/8", live.IPv6: "::1/128"}
)

// TestOwnTraffic takes a service of a host out of tracking where containers send
// to the same port elsewhere: what they send stays translated, what is for the
// host is tracked no longer, and nothing has to be allowed for it.
func TestOwnTraffic(t *testing.T) {
	for _, tt := range []struct {
		name, rules string
		to          map[live.Family]string // what a container sends to
	}{
		{"docker", dockerRules, farAddr},
		{"kube-proxy", kubeRules, vip},
	} {
		for _, b := range backends {
			t.Run(tt.name+"/"+string(b), func(t *testing.T) {
				h := newHost(t, b, "web-1")
				here, near, far := network(t, h)
				for _, f := range live.Families {
					h.RunInput(asFamily(tt.rules, f), map[live.Family]string{live.IPv4: "iptables-restore", live.IPv6: "ip6tables-restore"}[f])
				}
				near.do(t, func() error {
					for _, f := range live.Families {
						_, all, _ := net.ParseCIDR(nets[f])
						if err := netlink.RouteReplace(&netlink.Route{Dst: all, Gw: net.ParseIP(nearHost[f])}); err != nil {
							return err
						}
					}
					return nil
				})
				logs := map[live.Family]net.PacketConn{}
				for _, f := range live.Families {
					logs[f] = listenUDP(t, far, net.JoinHostPort(farAddr[f], "514"))
				}
				own := listenUDP(t, here, "[::]:514")
				// A container's packets go where they went, with the host's address.
				translated := func(when string) {
					t.Helper()
					for _, f := range live.Families {
						from, err := asks(t, near, net.JoinHostPort(tt.to[f], "514"), logs[f])
						if want := farHost[f]; err != nil || from != want {
							t.Fatalf("%s, %s: a container's datagram to %s came from %s, and not from %s: %v\n%s", when, f, tt.to[f], from, want, err, h.rules())
						}
					}
				}
				served := func(when string) {
					t.Helper()
					for _, f := range live.Families {
						for _, x := range []struct {
							from     *space
							to, want string
						}{
							{near, nearHost[f], nearAddr[f]}, {far, farHost[f], farAddr[f]}, {near, map[live.Family]string{live.IPv4: "10.31.0.255", live.IPv6: "ff02::1%up"}[f], ""},
						} {
							if from, err := asks(t, x.from, net.JoinHostPort(x.to, "514"), own); err != nil || x.want != "" && from != x.want {
								t.Fatalf("%s: a datagram to the host at %s came from %q, and not from %q: %v\n%s", when, x.to, from, x.want, err, h.rules())
							}
						}
					}
				}
				translated("before")
				served("before")
				before := h.stands()
				config := h.config(ownService)
				h.ctplan(exitOK, "apply", "--auto-approve", config)
				h.sh("conntrack -F 2>/dev/null")
				served("after")
				if n := h.entries(); n != 0 {
					t.Errorf("what was for the host is tracked: %d entries\n%s", n, h.rules())
				}
				translated("after")
				if n := h.entries(); n != 2 {
					t.Errorf("there are %d entries, and not one for each container's datagram", n)
				}
				if r := h.ctplan(exitOK, "drift", config); !strings.Contains(r.stdout, "no drift") {
					t.Errorf("drift: %s", r.stdout)
				}
				r := h.ctplan(exitOK, "plan", config)
				for _, no := range []string{"allow_risk", "would no longer apply"} {
					if strings.Contains(r.stdout, no) {
						t.Errorf("the plan has %q:\n%s", no, r.stdout)
					}
				}
				h.ctplan(exitOK, "rollback", "--auto-approve")
				same(t, "rolled back", before, h.stands())
				translated("rolled back")

				// A service that is redirected to a container is not the host's own.
				clash := h.config(strings.NewReplacer("udp", "tcp", "514", map[string]string{"docker": "8080", "kube-proxy": "30080"}[tt.name]).Replace(ownService))
				if r := h.ctplan(exitBlocked, "plan", clash); !strings.Contains(r.stdout, "are not translated") {
					t.Errorf("what is translated is taken out of tracking:\n%s", r.stdout)
				}
			})
		}
	}
}

// asFamily puts a family's addresses into rules.
func asFamily(rules string, f live.Family) string {
	host := map[live.Family]string{live.IPv4: "/32", live.IPv6: "/128"}[f]
	return strings.NewReplacer("NEARNET", nearNet[f], "NEARPORT", net.JoinHostPort(nearAddr[f], "80"), "NEAR", nearAddr[f]+host,
		"FARPORT", net.JoinHostPort(farAddr[f], "514"), "FAR", farAddr[f]+host, "VIP", vip[f]+host, "LOOP", loop[f]).Replace(rules)
}

// listenUDP answers nothing: who asks reads what came.
func listenUDP(t *testing.T, at *space, address string) (c net.PacketConn) {
	t.Helper()
	at.do(t, func() (err error) { c, err = net.ListenPacket("udp", address); return err })
	t.Cleanup(func() { c.Close() })
	return c
}

// asks sends a datagram, which arrives and is answered. It returns the address
// that it came from.
func asks(t *testing.T, from *space, to string, server net.PacketConn) (string, error) {
	t.Helper()
	host, _, _ := net.SplitHostPort(to)
	group := strings.HasSuffix(host, ".255") || strings.HasPrefix(host, "ff")
	var c net.PacketConn
	from.do(t, func() error {
		var err error
		if c, err = net.ListenPacket("udp", ":0"); err != nil {
			return err
		}
		a, err := net.ResolveUDPAddr("udp", to)
		if err != nil {
			return err
		}
		_, err = c.WriteTo([]byte("question"), a)
		return err
	})
	defer c.Close()
	buf := make([]byte, 100)
	server.SetReadDeadline(time.Now().Add(dialTimeout))
	_, peer, err := server.ReadFrom(buf)
	if err != nil {
		return "", fmt.Errorf("nothing came: %w", err)
	}
	source := netip.MustParseAddrPort(peer.String()).Addr().Unmap().String()
	if group {
		return source, nil
	}
	if _, err := server.WriteTo([]byte("answer"), peer); err != nil {
		return source, err
	}
	c.SetReadDeadline(time.Now().Add(dialTimeout))
	n, _, err := c.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "answer" {
		return source, fmt.Errorf("no answer came back: %v", err)
	}
	return source, nil
}
