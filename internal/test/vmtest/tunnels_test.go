package vmtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
)

// between puts a machine between two neighbours, a and b, as their router.
const between = `set -e
	sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
	n=1; for s in a b; do
		ip netns add $s; ip link add name $s type veth peer name eth0 netns $s
		ip addr add 10.$n.0.1/24 dev $s; ip addr add fd0$n::1/64 dev $s nodad; ip link set dev $s up
		ip netns exec $s sh -c "sysctl -qw net.ipv6.conf.default.accept_dad=0
			ip link set lo up; ip link set eth0 up; ip addr add 10.$n.0.2/24 dev eth0; ip addr add 10.$n.0.3/24 dev eth0
			ip addr add fd0$n::2/64 dev eth0 nodad; ip addr add fd0$n::3/64 dev eth0 nodad preferred_lft 0
			ip route add default via 10.$n.0.1; ip route add default via fd0$n::1"
		n=2
	done
	modprobe sctp; sysctl -qw net.sctp.rto_min=100 net.sctp.rto_initial=200 net.sctp.rto_max=500 net.sctp.path_max_retrans=1000 net.sctp.association_max_retrans=1000
	for s in a b; do ip netns exec $s sysctl -qw net.sctp.rto_min=100 net.sctp.rto_initial=200 net.sctp.rto_max=500 net.sctp.path_max_retrans=1000 net.sctp.association_max_retrans=1000; done
`

// conversation is one that has no ports, or not those of TCP or UDP.
type conversation struct {
	name  string // protocol, family, and where to
	check string // exits with 0 if SIZE bytes come back
}

// tunnels are of each kind through the machine, from a to b, and with the machine
// itself, of both families, with the script that sets them up. Those of IPv4 are
// wider than the links under them, so that what they carry travels in fragments.
func tunnels() (list []conversation, script string) {
	links := map[string]*strings.Builder{"a": {}, "b": {}, "": {}} // what ip does in each space
	var talk strings.Builder
	at := func(space, format string, args ...any) {
		fmt.Fprintf(links[space], format+"\n", args...)
	}
	in := func(space, format string, args ...any) {
		if space != "" {
			space = "ip netns exec " + space + " "
		}
		fmt.Fprintf(&talk, space+format+"\n", args...)
	}
	add := func(name, format string, args ...any) {
		list = append(list, conversation{name, fmt.Sprintf(format, args...)})
	}
	n := 10
	for _, f := range []struct {
		family               live.Family
		here, a, b, a3, b3   string
		gre, ipip, ping, one string
	}{
		{live.IPv4, "10.1.0.1", "10.1.0.2", "10.2.0.2", "10.1.0.3", "10.2.0.3", "gre local %s remote %s nopmtudisc ignore-df", "ipip local %s remote %s nopmtudisc", "ping", "10.1.0.1"},
		{live.IPv6, "fd01::1", "fd01::2", "fd02::2", "fd01::3", "fd02::3", "ip6gre local %s remote %s", "ip6tnl mode ip6ip6 local %s remote %s", "ping6", "fd01::1"},
	} {
		wide, bits, subnet := " mtu 4500", "32", "24"
		if f.family == live.IPv6 {
			wide, bits, subnet = " mtu 1400", "128", "64" // these part what they carry instead
		}
		for _, to := range []struct{ way, space, addr, esp string }{{"forward", "b", f.b, f.b3}, {"in", "", f.here, f.one}} {
			for _, kind := range []struct{ name, link string }{{"gre", f.gre}, {"ipip", f.ipip}, {"vxlan", "vxlan id ID dstport 4789 local %s remote %s"}, {"geneve", "geneve id ID %.0sremote %s"}} {
				if kind.name == "geneve" && f.family == live.IPv6 {
					continue // it takes no local address
				}
				n++
				inner := []string{fmt.Sprintf("172.16.%d.1", n), fmt.Sprintf("172.16.%d.2", n)}
				if f.family == live.IPv6 {
					inner = []string{fmt.Sprintf("fd%d::1", n), fmt.Sprintf("fd%d::2", n)}
				}
				for i, end := range []struct{ space, local, remote string }{{"a", f.a, to.addr}, {to.space, to.addr, f.a}} {
					at(end.space, "link add t%d%s type "+strings.ReplaceAll(kind.link, "ID", fmt.Sprint(n)), n, wide, end.local, end.remote)
					at(end.space, "addr add %s/%s dev t%d", inner[i], subnet, n)
					at(end.space, "link set t%d up", n)
				}
				add(fmt.Sprintf("%s %s %s", kind.name, f.family, to.way), "ip netns exec a %s -c 1 -W 1 -s $SIZE -I %s %s", f.ping, inner[0], inner[1])
			}
			// Encrypted, between the neighbour's second address and the other.
			for _, end := range []struct{ space, local, remote string }{{"a", f.a3, to.esp}, {to.space, to.esp, f.a3}} {
				for _, way := range [][3]string{{end.local, end.remote, "out"}, {end.remote, end.local, "in"}} {
					at(end.space, "xfrm state add src %s dst %s proto esp spi 0x%d mode transport enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff auth 'hmac(sha256)' 0x00112233445566778899aabbccddeeff", way[0], way[1], 100+n)
					at(end.space, "xfrm policy add src %s/%s dst %s/%s dir %s tmpl proto esp mode transport", way[0], bits, way[1], bits, way[2])
				}
			}
			add(fmt.Sprintf("esp %s %s", f.family, to.way), "ip netns exec a %s -c 1 -W 1 -s $SIZE -I %s %s", f.ping, f.a3, to.esp)
			// An association that stays open.
			n++
			in(to.space, "socat SCTP-LISTEN:%d,pf=%s,fork,bind=%s PIPE </dev/null >/dev/null 2>&1 &", 5000, strings.Replace(string(f.family), "ipv", "ip", 1), bracketed(to.addr))
			in("", "mkfifo /run/ask%[1]d /run/said%[1]d", n)
			in("a", "socat 'OPEN:/run/ask%[1]d,rdwr!!OPEN:/run/said%[1]d,rdwr' SCTP:%[2]s:5000,bind=%[3]s,retry=50,interval=0.2 </dev/null >/run/socat%[1]d 2>&1 &", n, bracketed(to.addr), bracketed(f.a))
			add(fmt.Sprintf("sctp %s %s", f.family, to.way), "timeout 0.2 cat /run/said%[1]d >/dev/null; timeout 1 sh -c 'head -c $1 /dev/zero > /run/ask%[1]d' - $SIZE; [ \"$(timeout 1.5 head -c $SIZE /run/said%[1]d | wc -c)\" = $SIZE ]", n)
		}
	}
	for space, lines := range links {
		if space != "" {
			space = "-n " + space
		}
		script += fmt.Sprintf("ip %s -batch - <<'EOF'\n%sEOF\n", space, lines)
	}
	return list, script + talk.String()
}

// bracketed is an address as it stands ahead of a port.
func bracketed(addr string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]"
	}
	return addr
}

// byProtocol is a stateful router that lets these protocols, and echoes, begin.
const byProtocol = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ICMP -j ACCEPT
-A INPUT -p gre -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p INNER -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p esp -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p udp -m multiport --dports 4789,6081 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p sctp -m sctp --dport 5000 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p gre -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p INNER -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p esp -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p udp -m multiport --dports 4789,6081 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -p sctp -m sctp --dport 5000 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p ICMP -j ACCEPT
-A OUTPUT -p udp -m multiport --dports 4789,6081 -m conntrack --ctstate NEW -j ACCEPT
COMMIT
`

// TestTunnels takes GRE, IP in IP, ESP and SCTP out of tracking on a router, for
// itself and for others: what the plan calls lost dies, and everything else
// lives on, in fragments too, with the module gone in the end.
func TestTunnels(t *testing.T) {
	t.Parallel()
	for k, b := range map[vmlab.Kernel]live.Backend{vmlab.Kernel612: live.NFT} {
		t.Run(fmt.Sprintf("%s/%s", k, b), func(t *testing.T) {
			t.Parallel()
			h := &host{open(t).Boot(t, k), t}
			h.Use(b)
			h.Run(between)
			for family, words := range map[string][2]string{"4": {"icmp", "ipencap"}, "6": {"ipv6-icmp", "ipv6"}} {
				h.Write("/etc/iptables/rules.v"+family, strings.NewReplacer("ICMP", words[0], "INNER", words[1]).Replace(byProtocol))
			}
			h.Run("iptables-restore < /etc/iptables/rules.v4; ip6tables-restore < /etc/iptables/rules.v6")
			list, setup := tunnels()
			h.Run("set -e\n" + setup)
			var all []string
			for _, c := range list {
				all = append(all, c.name)
			}
			h.talks(list, "to begin with", all)
			h.balances()

			// Blocks that leave some out: ESP for this host, SCTP and IP in IP for others.
			some := func(name string) bool {
				protocol, way, _ := strings.Cut(name, " ")
				return protocol == "gre" || protocol == "vxlan" || protocol == "geneve" || (protocol == "esp") == strings.HasSuffix(way, "forward")
			}
			h.Write("/root/host.hcl", tunnelBlocks("notrack", some, "allow_risk = [\"lost_flows\", \"lost_services\"]"))
			var lost []string
			for _, name := range all {
				if !some(name) {
					lost = append(lost, name)
				}
			}
			h.foretold(lost, true)
			h.Run("ctplan apply --auto-approve host.hcl")
			h.talks(list, "with blocks for some", slices.DeleteFunc(slices.Clone(all), func(name string) bool { return slices.Contains(lost, name) }))
			h.Run("ctplan rollback --auto-approve")

			for _, mode := range []string{"notrack", "disabled"} {
				h.Write("/root/host.hcl", tunnelBlocks(mode, func(string) bool { return true }, ""))
				h.foretold(nil, false) // what was untracked has no entries, but what has been said since
				h.Run("ctplan apply --auto-approve host.hcl")
				h.talks(list, mode, all)
			}
			h.unloaded()
		})
	}
}

// balances shows that IPVS, where it works with the table of connections, is not
// taken out of it without its own word.
func (h *host) balances() {
	h.t.Helper()
	h.Run("modprobe ip_vs && sysctl -qw net.ipv4.vs.conntrack=1 && ipvsadm -A -t 10.1.0.1:80 -s rr && ipvsadm -a -t 10.1.0.1:80 -r 10.2.0.2:80 -m && iptables -I INPUT -p tcp --dport 80 -j ACCEPT && iptables -I OUTPUT -p tcp --dport 80 -j ACCEPT")
	h.Run("ip netns exec b socat TCP-LISTEN:80,fork PIPE </dev/null >/dev/null 2>&1 &")
	h.Expect("for try in 1 2 3 4; do ip netns exec a sh -c 'echo balanced | socat -t 2 - TCP:10.1.0.1:80' && break; done", "balanced")
	h.Write("/root/host.hcl", tunnelBlocks("notrack", func(string) bool { return true }, ""))
	if said := h.Exits(3, "ctplan plan host.hcl"); !strings.Contains(said, "BLOCKED by ipvs") {
		h.Fail("the plan does not name IPVS:\n%s", said)
	}
	if said := h.Run("ctplan suggest"); !strings.Contains(said, `"tuned"`) {
		h.Fail("suggested beside IPVS:\n%s", said)
	}
	h.Run("ipvsadm -C; sysctl -qw net.ipv4.vs.conntrack=0; iptables -D INPUT -p tcp --dport 80 -j ACCEPT; iptables -D OUTPUT -p tcp --dport 80 -j ACCEPT; rmmod ip_vs_rr ip_vs; conntrack -D -p tcp; true")
}

// tunnelBlocks declares a mode, with accept blocks for those conversations that
// are asked for.
func tunnelBlocks(mode string, asked func(name string) bool, more string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "conntrack \"x\" {\n mode = %q\n stateful_rules = \"remove\"\n %s\n", mode, more)
	if mode == "notrack" {
		b.WriteString(" notrack \"all\" { }\n notrack \"routed\" { direction = \"forward\" }\n")
	}
	b.WriteString(" accept \"lo\" { interface = \"lo\" }\n accept \"icmp\" { protocol = \"icmp\" }\n accept \"icmpv6\" { protocol = \"ipv6-icmp\" }\n")
	const overlays = "_port = [4789, 6081]\n }\n"
	b.WriteString(" accept \"overlays\" {\n  protocol = \"udp\"\n  local" + overlays + " accept \"overlays-out\" {\n  protocol = \"udp\"\n  remote" + overlays + " accept \"overlays-routed\" {\n  direction = \"forward\"\n  protocol = \"udp\"\n  remote" + overlays)
	block := func(name, way string, lines ...string) {
		if way == "forward" {
			name, lines = name+"-routed", append(lines, `direction = "forward"`)
		}
		fmt.Fprintf(&b, " accept %q {\n  %s\n }\n", name, strings.Join(lines, "\n  "))
	}
	for _, way := range []string{"in", "forward"} {
		for _, protocol := range []string{"gre", "esp"} {
			if asked(protocol + " x " + way) {
				block(protocol, way, fmt.Sprintf("protocol = %q", protocol))
			}
		}
		if asked("ipip x " + way) {
			block("ipip4", way, `protocol = "ipencap"`, `families = ["ipv4"]`)
			block("ipip6", way, `protocol = "ipv6"`, `families = ["ipv6"]`)
		}
		if asked("sctp x " + way) {
			port := "local_port"
			if way == "forward" {
				port = "remote_port"
			}
			block("sctp", way, `protocol = "sctp"`, port+" = 5000")
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// talks expects these conversations to be alive, and no other, with small
// datagrams and such as travel in fragments.
func (h *host) talks(list []conversation, when string, want []string) {
	h.t.Helper()
	var script strings.Builder
	script.WriteString("rm -rf /run/live /run/dead; mkdir /run/live /run/dead\n")
	for n, c := range list { // all at once: each waits for most of its time
		fmt.Fprintf(&script, "( for SIZE in 100 4000; do for try in 1 2; do if ( %s ) >/run/dead/%[2]d 2>&1; then echo '%[3]s' $SIZE >>/run/live/%03[2]d; break; fi; done; done ) &\n", c.check, n, c.name)
	}
	var live []string
	for _, name := range want {
		live = append(live, name+" 100", name+" 4000")
	}
	got := strings.Split(h.Run(script.String()+"wait; cat /run/live/* 2>/dev/null || true"), "\n")
	if !slices.Equal(got, live) {
		h.Fail("%s, these live: %q\nwant %q\n%s", when, got, live, h.Run("cat /run/dead/* /run/socat*; iptables-save; ip6tables-save; conntrack -L; true"))
	}
}

// foretold expects the plan to call these conversations lost, and no other; where
// they are tracked, it knows of all.
func (h *host) foretold(want []string, tracked bool) {
	h.t.Helper()
	r := h.Try("ctplan plan --json host.hcl")
	var plan struct {
		Impact *impact.Impact `json:"impact"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &plan); err != nil || plan.Impact == nil {
		h.Fail("no impact in the plan: %v\n%s%s", err, r.Stdout, r.Stderr)
		return
	}
	names := map[string]string{"ipencap": "ipip", "ipv6": "ipip", "sctp/5000": "sctp", "udp/4789": "vxlan", "udp/6081": "geneve"}
	var got, kept []string
	for _, g := range plan.Impact.Groups {
		what, way, _ := strings.Cut(g.Service, " ")
		if names[what] != "" {
			what = names[what]
		}
		name := fmt.Sprintf("%s %s %s", what, g.Family, way)
		switch {
		case g.Result == impact.FlowKept:
			kept = append(kept, name)
		case g.Result == impact.FlowLost && !g.Fragments:
			got = append(got, name)
		default:
			h.Fail("the plan says %s of %s (fragments: %v): %s", g.Result, name, g.Fragments, g.After)
		}
	}
	slices.Sort(got)
	if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
		h.Fail("the plan calls %q lost, not %q", got, want)
	}
	known := slices.DeleteFunc(slices.Concat(kept, got), func(name string) bool { return strings.HasPrefix(name, "vxlan") || strings.HasPrefix(name, "geneve") })
	if tracked && len(known) < 16 { // those over UDP are soon forgotten
		h.Fail("not all are known: lost %q, kept %q", got, kept)
	}
}
