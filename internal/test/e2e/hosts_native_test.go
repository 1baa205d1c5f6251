package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/declared"
	live "github.com/ctplan/ctplan/planner/host"
)

// nativeHost is a host with a ruleset of nftables as people run it, and the
// connections that it has.
type nativeHost struct {
	name  string
	load  func(t *testing.T, h *host)
	kinds []kind
}

// file loads a ruleset of testdata/native.
func file(name string) func(t *testing.T, h *host) {
	return func(t *testing.T, h *host) {
		b, err := os.ReadFile(filepath.Join("testdata", "native", name+".nft"))
		if err != nil {
			t.Fatal(err)
		}
		h.RunInput(string(b), "nft", "-f", "-")
	}
}

// words loads a ruleset.
func words(ruleset string) func(t *testing.T, h *host) {
	return func(t *testing.T, h *host) { h.RunInput(ruleset, "nft", "-f", "-") }
}

// debianExamples is the folder of the examples that Debian ships with nftables.
// Where documentation is not installed they come out of the package.
func debianExamples(t *testing.T) string {
	t.Helper()
	const place = "usr/share/doc/nftables/examples"
	if _, err := os.Stat("/" + place + "/workstation.nft"); err == nil {
		return "/" + place
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(cache, "ctplan", "owners", "nftables")
	fetch := exec.Command("sh", "-ec", `[ ! -e "$1/$2" ] || exit 0; mkdir -p "$1"; cd "$1"; get() { apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root download nftables; }
		get || { apt-get -q update && get; }; dpkg-deb -x nftables_*.deb .`, "sh", folder, place)
	if out, err := fetch.CombinedOutput(); err != nil {
		testhost.Lacks(t, "getting the examples of Debian's nftables: "+err.Error()+"\n"+strings.TrimSpace(string(out)))
	}
	return filepath.Join(folder, place)
}

// example is the text of one.
func example(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(debianExamples(t), name+".nft"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// examples loads those examples, with the names and addresses of this host in
// place of theirs.
func examples(names ...string) func(t *testing.T, h *host) {
	return func(t *testing.T, h *host) {
		folder := debianExamples(t)
		var b strings.Builder
		for _, name := range names {
			b.WriteString(example(t, name))
		}
		text := strings.NewReplacer(
			"flush ruleset", "", "delete table filter", "", "table filter", "table ip sample", "#tcp dport", "tcp dport", "./", folder+"/",
			"eth0", "near", "eth1", "far", "eth2", "lo", "eth3", "lo", "bond0", "far", "bond1", "near",
			"192.168.1.1", "10.31.0.2", "1.1.1.1", "10.32.0.2", "1234", "80",
		).Replace(b.String())
		// Who is translated has an address of this host afterwards.
		text = strings.ReplaceAll(text, "10.31.0.2 : 10.32.0.2", "10.31.0.2 : 10.32.0.1")
		h.RunInput(text, "nft", "-f", "-")
	}
}

// secmark loads the example of that name beside the workstation's, but for the
// labels themselves, for which SELinux must have a policy with those contexts:
// they say nothing of who gets through.
func secmark(t *testing.T, h *host) {
	examples("workstation")(t, h)
	text := labels.ReplaceAllString(example(t, "secmark"), "")
	if strings.Count(text, "secmark set") != 4 {
		t.Fatalf("the example is another one:\n%s", text)
	}
	h.RunInput(text, "nft", "-f", "-")
}

// labels are the objects of the example, the maps of them, and the rules that set
// one.
var labels = regexp.MustCompile(`flush ruleset|secmark \w+ \{[^}]*\}|map \w+ \{[^{}]*\{[^}]*\}[^}]*\}|.* secmark set (tcp|udp|").*`)

// farSecond is a second address of far.
const farSecond = "10.32.0.3"

// balancer loads the example for balancing loads: connections from near are led
// on to one of two addresses of far, what is for its web server goes on by its
// address on the link alone, and each packet to another port 80 is sent there.
func balancer(t *testing.T, h *host) {
	neighbour := h.sh(`bash -c 'echo > /dev/udp/10.32.0.2/9'; for i in $(seq 100); do ip neigh show 10.32.0.2 dev far | grep lladdr && break; sleep 0.05; done`)
	mac := regexp.MustCompile(`lladdr (\S+)`).FindStringSubmatch(neighbour)
	if mac == nil {
		t.Fatal("far has no address on the link")
	}
	// The kernel refuses the example's priority for nat, ahead of tracking, and
	// iptables cannot add to its table raw.
	h.RunInput(strings.NewReplacer("table ip raw", "table ip stateless", "type nat hook prerouting priority -300", "type nat hook prerouting priority -100", "flush ruleset", "", "eth0", "near", "eth1", "far",
		"aa:aa:aa:aa:aa:aa", mac[1], "bb:bb:bb:bb:bb:bb", mac[1],
		"192.168.1.100 : numgen", "10.32.0.2 : numgen", "192.168.1.100", "10.32.0.2", "192.168.1.101", "10.32.0.2",
		"192.168.10.100", "10.32.0.2", "192.168.20.200", farSecond, "192.168.20.100", "10.32.0.2", "192.168.30.100", farSecond,
	).Replace(example(t, "load_balancing")), "nft", "-f", "-")
	examples("workstation")(t, h)
}

// manyNetworks is a ruleset with a set of 10,000 networks that it shuts out, and
// one of as many that it lets in.
func manyNetworks(t *testing.T, h *host) {
	var out, in strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&out, "100.%d.%d.%d/28,", 64+i/4096, i/16%256, i%16*16)
		fmt.Fprintf(&in, "172.%d.%d.%d-172.%[1]d.%d.%[4]d,", 16+i/4096, i/16%256, i%16*16+1, i%16*16+9)
	}
	h.RunInput(fmt.Sprintf(`
table inet guard {
	set outlaws {
		type ipv4_addr
		flags interval
		elements = { %s }
	}
	set clients {
		type ipv4_addr
		flags interval
		elements = { %s 10.31.0.0/24 }
	}
	chain early {
		type filter hook prerouting priority raw; policy accept;
		ip saddr @outlaws drop
	}
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto { icmp, ipv6-icmp, gre } accept
		ip saddr @clients tcp dport { 22, 8080 } accept
		ip saddr @clients udp dport 53 accept
		ip6 saddr fd31::/64 ct state new accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ip daddr @outlaws drop
		ip saddr @clients accept
		ip6 saddr fd31::/64 ct state new accept
	}
}
`, out.String(), in.String()), "nft", "-f", "-")
}

// mixedTables are rules of iptables-nft in tables where nft has put more:
// iptables-save shows the rule that looks a set up as one that drops all of TCP.
func mixedTables(t *testing.T, h *host) {
	for _, family := range []struct{ restore, table, icmp string }{{"iptables-restore", "ip", "icmp"}, {"ip6tables-restore", "ip6", "ipv6-icmp"}} {
		h.RunInput(strings.ReplaceAll(`*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ICMP -m comment --comment "everybody may ask" -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,443 -m addrtype --dst-type LOCAL -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 53 -j ACCEPT
-A INPUT -m pkttype --pkt-type broadcast -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
-A FORWARD -i near -m conntrack ! --ctstate INVALID,UNTRACKED -j ACCEPT
COMMIT
`, "ICMP", family.icmp), family.restore)
		h.sh("nft 'add set " + family.table + " filter ours { type inet_service; elements = { 9 }; }'; nft add rule " + family.table + " filter INPUT tcp dport @ours drop")
	}
}

// firewalldZones has firewalld filter: near is in its public zone, with services,
// rich rules and a port that leads on; far is in external, which masquerades, and
// a policy lets the one to the other. Before that, with nothing but its defaults,
// it refuses answers that are not tracked.
func firewalldZones(t *testing.T, h *host) {
	if s := h.ctplan(exitOK, "suggest").stdout; !strings.Contains(s, `"tuned"`) || !strings.Contains(s, "inet firewalld") {
		t.Errorf("under firewalld this is suggested:\n%s", s)
	}
	h.write("/etc/firewalld/zones/public.xml", `<zone>
  <interface name="near"/>
  <service name="ssh"/>
  <service name="dns"/>
  <service name="ftp"/>
  <port port="8080" protocol="tcp"/>
  <protocol value="gre"/>
  <rule family="ipv4"><source address="10.31.0.0/24"/><port port="8443" protocol="tcp"/><log prefix="x"><limit value="1/s"/></log><accept/></rule>
  <rule family="ipv6"><source address="fd31::/64"/><port port="8443" protocol="tcp"/><accept/></rule>
  <rule family="ipv4"><source address="10.31.0.64/26"/><reject/></rule>
  <forward-port port="8081" protocol="tcp" to-port="80" to-addr="10.32.0.2"/>
</zone>
`)
	h.write("/etc/firewalld/zones/external.xml", `<zone>
  <interface name="far"/>
  <service name="ssh"/>
  <masquerade/>
</zone>
`)
	h.write("/etc/firewalld/policies/outward.xml", `<policy target="ACCEPT">
  <ingress-zone name="public"/>
  <egress-zone name="external"/>
</policy>
`)
	h.sh("firewall-cmd --reload >/dev/null")
}

// Kinds that rulesets have in common.
var (
	ins = both(
		kind{from: "near", to: "here", proto: "tcp", port: 22, n: 4}, kind{from: "near", to: "here", proto: "tcp", port: 8080, n: 4},
		kind{from: "near", to: "here", proto: "icmp", n: 2},
	)
	outs = both(
		kind{from: "here", to: "far", proto: "tcp", port: 443, n: 4}, kind{from: "here", to: "near", proto: "udp", port: 123, n: 4}, kind{from: "here", to: "far", proto: "udp", port: 53, n: 2},
		kind{from: "here", to: "far", proto: "icmp", n: 2},
	)
	throughs = both(
		kind{from: "near", to: "far", proto: "tcp", port: 80, n: 4}, kind{from: "near", to: "far", proto: "udp", port: 514, n: 4}, kind{from: "near", to: "far", proto: "icmp", n: 2},
	)
	dns = both(kind{from: "near", to: "here", proto: "udp", port: 53, n: 4})
)

var nativeHosts = []nativeHost{
	{"main", file("main"), slices.Concat(ins, outs, dns, only(kind{from: "near", to: "here", proto: "gre", n: 1}))},
	{"router", file("router"), slices.Concat(outs, throughs, both(kind{from: "near", to: "here", proto: "tcp", port: 22, n: 3}), only(
		kind{from: "near", to: "here", proto: "icmp", n: 2},
		kind{from: "near", to: "far", proto: "tcp", port: 8081, dial: nearHost[live.IPv4], at: 80, n: 4},
		kind{from: "far", to: "near", proto: "tcp", port: 2222, dial: farHost[live.IPv4], at: 22, n: 4},
	))},
	{"docker", file("docker"), slices.Concat(ins, outs, only(
		kind{from: "near", to: "far", proto: "tcp", port: 8081, dial: nearHost[live.IPv4], at: 80, n: 4},
		kind{from: "near", to: "far", proto: "udp", port: 5353, dial: nearHost[live.IPv4], at: 53, n: 4},
		kind{from: "here", to: "far", proto: "tcp", port: 8081, dial: nearHost[live.IPv4], at: 80, n: 4},
		kind{from: "far", to: "near", proto: "tcp", port: 443, n: 4}, kind{from: "far", to: "near", proto: "udp", port: 53, n: 4},
		kind{from: "near", to: "far", proto: "tcp", port: 80, n: 4},
	))},
	{"kube-proxy", file("kube-proxy"), slices.Concat(ins, outs, only(
		kind{from: "near", to: "far", proto: "tcp", port: 443, dial: "10.96.0.10", at: 8443, n: 4},
		kind{from: "here", to: "far", proto: "tcp", port: 443, dial: "10.96.0.10", at: 8443, n: 4},
		kind{from: "near", to: "far", proto: "udp", port: 53, dial: "10.96.0.10", at: 53, n: 4},
		kind{from: "near", to: "far", proto: "tcp", port: 30080, dial: nearHost[live.IPv4], at: 8443, n: 4},
		kind{from: "near", to: "far", proto: "tcp", port: 80, n: 4}, kind{from: "far", to: "near", proto: "udp", port: 514, n: 4},
	))},
	{"issue", words(`
table inet filter {
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain helpers {
		type filter hook prerouting priority filter
		tcp dport 21 ct helper set "ftp"
	}
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state established,related accept
		ct state invalid drop
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 21, 22, 443, 8080 } ct state new accept
	}
	chain output {
		type filter hook output priority filter; policy accept;
	}
}`), slices.Concat(ins, outs, only(kind{from: "near", to: "here", proto: "ftp", n: 2}, kind{from: "near", to: "here", proto: "active ftp", n: 2}))},
	{"many networks", manyNetworks, slices.Concat(ins, outs, dns, throughs)},
	{"workstation", examples("workstation", "inet-filter", "inet-nat", "netdev-ingress", "ipv6-mangle", "sets_and_maps", "overview"), slices.Concat(outs, throughs, both(kind{from: "near", to: "here", proto: "tcp", port: 22, n: 4}), only(
		kind{from: "far", to: "near", proto: "tcp", port: 80, n: 4},
	))},
	{"all in one", examples("all-in-one"), slices.Concat(ins, outs, throughs, dns)},
	{"nat", examples("nat"), slices.Concat(ins, outs, throughs, dns, only(
		kind{from: "near", to: "far", proto: "tcp", port: 1000, dial: nearHost[live.IPv4], at: 80, n: 4},
	))},
	{"secmark", secmark, slices.Concat(outs, throughs, both(kind{from: "near", to: "here", proto: "tcp", port: 22, n: 4}), only(
		kind{from: "far", to: "near", proto: "tcp", port: 80, n: 4},
	))},
	{"load_balancing", balancer, slices.Concat(outs, onlySix(throughs), onlySix(ins[:2]), only(
		kind{from: "near", to: "far", proto: "icmp", n: 2}, kind{from: "near", to: "far", proto: "tcp", port: 8081, dial: nearHost[live.IPv4], anywhere: true, n: 12},
	))},
	{"ct_helpers", examples("ct_helpers"), only(
		kind{from: "here", to: "far", proto: "tcp", port: 443, n: 6}, kind{from: "here", to: "near", proto: "tcp", port: 22, n: 6}, kind{from: "here", to: "near", proto: "udp", port: 123, n: 6},
		kind{from: "here", to: "far", proto: "udp", port: 53, n: 6}, kind{from: "here", to: "far", proto: "icmp", n: 4}, kind{from: "here", to: "near", proto: "gre", n: 1},
		kind{from: "near", to: "far", proto: "tcp", port: 80, n: 6}, kind{from: "far", to: "near", proto: "tcp", port: 80, n: 6}, kind{from: "near", to: "far", proto: "udp", port: 514, n: 6},
		kind{from: "near", to: "far", proto: "icmp", n: 4}, kind{from: "near", to: "far", proto: "gre", n: 1}, kind{from: "here", to: "far", proto: "udp", port: 5000, n: 4},
	)},
	{"firewalld", firewalldZones, slices.Concat(ins, outs, dns, both(
		kind{from: "near", to: "here", proto: "tcp", port: 8443, n: 4}, kind{from: "near", to: "far", proto: "tcp", port: 80, n: 4}, kind{from: "near", to: "far", proto: "udp", port: 514, n: 4}, kind{from: "near", to: "far", proto: "icmp", n: 2},
	), only(
		kind{from: "near", to: "here", proto: "ftp", n: 2}, kind{from: "near", to: "here", proto: "gre", n: 1},
		kind{from: "near", to: "far", proto: "tcp", port: 8081, dial: nearHost[live.IPv4], at: 80, n: 4},
	))},
	{"iptables and nft", mixedTables, slices.Concat(ins, outs, throughs, dns)},
	{"masquerade", words(`
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		oifname "far" masquerade
	}
}`), slices.Concat(ins, outs, throughs, dns)},
	{"open", words(`
table inet filter {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 9999 drop
	}
}`), slices.Concat(ins, outs, throughs, dns)},
	{"ports", file("ports"), slices.Concat(ins, outs, dns, throughs, only(kind{from: "near", to: "here", proto: "gre", n: 1}))},
}

// stand makes the host and its neighbours.
func (n *nativeHost) stand(t *testing.T) (h *host, p places) {
	t.Helper()
	if n.name == "firewalld" {
		h = firewalldHost(t, "firewalld-1")
	} else {
		h = newHost(t, live.NFT, "crossroads")
	}
	here, near, far := network(t, h)
	p = places{"here": here, "near": near, "far": far}
	h.sh("ip route add 10.96.0.0/16 dev far")
	far.do(t, func() error { return furnish("up", map[live.Family]string{live.IPv4: farSecond}) })
	near.do(t, func() error { return routeTo("10.96.0.0/16", nearHost[live.IPv4]) })
	n.load(t, h)
	return h, p
}

// fill opens the connections that such a host has. All work.
func (n *nativeHost) fill(t *testing.T, p places, base int) (talks []*talk, before map[string]int) {
	t.Helper()
	talks = p.crowd(t, base, n.kinds)
	before = living(talks)
	if all := total(before); all != len(talks) {
		t.Fatalf("of %d connections %d work under the ruleset: %v", len(talks), all, before)
	}
	if len(talks) < 50 || len(before) < 10 {
		t.Fatalf("%d connections of %d kinds are too few: %v", len(talks), len(before), before)
	}
	return talks, before
}

// withoutAccepts is for where iptables cannot show its table for filtering, so that
// nothing can be put there.
const withoutAccepts = `conntrack "x" {
  mode = "notrack"

  stateful_rules = "remove"
  allow_risk     = ["lost_flows", "lost_services", "one_sided", "related", "unsaved_rules"]

  notrack "web" {
    protocol   = "tcp"
    local_port = [8080, 443]
  }
  notrack "dns" {
    protocol   = "udp"
    local_port = 53
  }
  notrack "ntp" {
    protocol    = "udp"
    remote_port = 123
  }
  notrack "through" {
    direction   = "forward"
    protocol    = "tcp"
    remote_port = 80
  }
}
`

// servicesUntracked takes services on both sides of the host out of tracking, each
// with its accept.
const servicesUntracked = `  notrack "web" {
    protocol   = "tcp"
    local_port = 8080
  }
  accept "web" {
    protocol   = "tcp"
    local_port = 8080
  }
  notrack "https" {
    protocol    = "tcp"
    remote_port = 443
  }
  accept "https" {
    protocol    = "tcp"
    remote_port = 443
  }
  notrack "dns" {
    protocol   = "udp"
    local_port = 53
  }
  accept "dns" {
    protocol   = "udp"
    local_port = 53
  }
`

// someUntracked takes part of what such a host has out of tracking, whoever it
// hurts.
const someUntracked = `conntrack "x" {
  mode = "notrack"

  stateful_rules = "remove"
  allow_risk     = ["lost_flows", "lost_services", "one_sided", "related", "nat", "unsaved_rules", "connection_marks"]

` + servicesUntracked + `  notrack "ntp" {
    protocol    = "udp"
    remote_port = 123
  }
  notrack "through" {
    direction   = "forward"
    protocol    = "tcp"
    remote_port = [80, 443]
  }
}
`

// told is what to take out of tracking there, and what blocks that whatever is
// accepted; empty: nothing.
func (n *nativeHost) told() (config string, blocked declared.Risk) {
	switch n.name {
	case "iptables and nft":
		return withoutAccepts, ""
	case "all in one":
		return someUntracked, declared.RiskUnshownRules // its tables are those of iptables, with chains of nft's
	}
	return someUntracked, ""
}

// TestHosts is what ctplan makes of hosts with rulesets as people run them. What
// it suggests, while nothing is open and with connections, cuts off none, nor any
// that are opened afterwards. What it is told to take out of tracking, whoever
// that hurts, kills those that the plan has called lost, and no others.
func TestHosts(t *testing.T) {
	for _, n := range nativeHosts {
		t.Run(n.name, func(t *testing.T) {
			h, p := n.stand(t)
			apply := func(when string) string {
				suggested := h.ctplan(exitOK, "suggest").stdout
				t.Log(when, suggested)
				h.ctplan(exitOK, "apply", "--auto-approve", h.config(suggested))
				return suggested
			}
			apply("while nothing was open")
			talks, before := n.fill(t, p, 20000)
			suggested := apply("with connections")
			if after := living(talks); !maps.Equal(before, after) {
				t.Errorf("what was open:\nbefore: %v\nafter:  %v\n%s\n%s", before, after, suggested, h.rules())
			}
			more, afterwards := n.fill(t, p, 26000)
			talks = append(talks, more...)
			for k, n := range afterwards {
				before[k] += n
			}
			if !strings.Contains(suggested, `"tuned"`) {
				return // what is not tracked now has nothing to lose
			}
			config, blocked := n.told()
			config = h.config(config)
			lost := willLose(t, h, config)
			t.Log(lost)
			if blocked != "" {
				if out := h.ctplan(exitBlocked, "apply", "--auto-approve", config).stdout; !strings.Contains(out, "BLOCKED by "+string(blocked)) {
					t.Errorf("this is not what blocks:\n%s", out)
				}
				if after := living(talks); total(lost) > 0 || !maps.Equal(before, after) {
					t.Errorf("before: %v\nlost:   %v\nafter:  %v", before, lost, after)
				}
				return
			}
			if total(lost) == 0 || total(lost) >= len(talks) {
				t.Errorf("the plan loses %v, which says nothing", lost)
			}
			h.ctplan(exitOK, "apply", "--auto-approve", config)
			want := maps.Clone(before)
			for k, n := range lost {
				want[k] -= n
			}
			if after := living(talks); !maps.Equal(want, after) {
				t.Errorf("before: %v\nlost:   %v\nafter:  %v\nwrong:  %s\n%s\n%s", before, lost, after, differing(want, after), h.try("plan", config).stdout, h.rules())
			}
		})
	}
}

// TestHostsLinesFirst adds the lines that a suggestion says are in the way of
// notrack, as often as it names some: then notrack is suggested, and cuts off
// nothing.
func TestHostsLinesFirst(t *testing.T) {
	n := nativeHost{"lines", words(`
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state established,related accept
		ct state invalid drop
		meta l4proto { icmp, ipv6-icmp } accept
		ip saddr 10.31.0.0/24 jump services
		ip6 saddr fd31::/64 jump services
		reject
	}
	chain services {
		tcp dport { 22, 443, 8080 } ct state new accept
		udp dport 53 ct state new accept
		ct state untracked counter drop
	}
	chain output {
		type filter hook output priority filter; policy accept;
	}
}`), slices.Concat(ins, outs, dns)}
	h, p := n.stand(t)
	talks, before := n.fill(t, p, 20000)
	suggested := ""
	for range 4 {
		suggested = h.ctplan(exitOK, "suggest").stdout
		t.Log(suggested)
		lines := commented.FindAllStringSubmatch(suggested, -1)
		if len(lines) == 0 {
			break
		}
		for _, l := range lines {
			h.sh(l[1])
		}
	}
	if !strings.Contains(suggested, `"notrack"`) {
		t.Errorf("with these lines notrack would do:\n%s\n%s", suggested, h.sh("nft -a list ruleset"))
	}
	h.ctplan(exitOK, "apply", "--auto-approve", h.config(suggested))
	if after := living(talks); !maps.Equal(before, after) {
		t.Errorf("before: %v\nafter:  %v\n%s\n%s", before, after, suggested, h.rules())
	}
	n.fill(t, p, 26000)
}

// commented are the commands in a suggestion's comment.
var commented = regexp.MustCompile(`(?m)^#   (nft .*)$`)

// differing are the keys whose counts differ.
func differing(want, got map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if want[k] != got[k] {
			out = append(out, fmt.Sprintf("%s: %d should live, %d do", k, want[k], got[k]))
		}
	}
	return strings.Join(out, "; ")
}
