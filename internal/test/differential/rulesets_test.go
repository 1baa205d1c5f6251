package differential

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// generator writes rulesets in the language of iptables-save, out of every
// match and target that the evaluator knows. Values are few, so that packets
// and rules meet.
type generator struct {
	*rand.Rand
	family host.Family
	vague  int // in how many of a thousand rules stands a match that nobody can know, and in how many a rate that the test knows
}

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

func (g *generator) not() string { return pick(g, "", "", "", "! ") }

func (g *generator) prefix() string {
	if g.family == host.IPv6 {
		return pick(g, "fd01::a/128", "fd01::b/128", "fd01::/64", "fd02::/64", "fd02::c/128", "fd01::8/125", "fd00::/8", "::1/128", "fd01::1/128")
	}
	return pick(g, "10.1.0.10/32", "10.1.0.11/32", "10.1.0.0/24", "10.2.0.0/24", "10.2.0.12/32", "10.1.0.8/29", "10.0.0.0/8", "127.0.0.0/8", "10.1.0.1/32", "10.0.0.10/255.0.0.255")
}

func (g *generator) span() string {
	if g.family == host.IPv6 {
		return pick(g, "fd01::a-fd01::b", "fd02::b-fd02::ffff", "fd01::1-fd01::a")
	}
	return pick(g, "10.1.0.10-10.1.0.11", "10.2.0.11-10.2.255.255", "10.1.0.1-10.1.0.10")
}

var servicePorts = []int{22, 53, 80, 443, 1000, 1003, 8080}

func (g *generator) port() string {
	p := servicePorts[g.IntN(len(servicePorts))]
	return pick(g, fmt.Sprint(p), fmt.Sprint(p), fmt.Sprintf("%d:%d", p, p+g.IntN(500)), "0:1023", "1024:65535", "30000:65535")
}

func (g *generator) portList() string {
	list := make([]string, 1+g.IntN(4))
	for i := range list {
		list[i] = pick(g, fmt.Sprint(servicePorts[g.IntN(len(servicePorts))]), "1000:1100", "40000:50000")
	}
	return strings.Join(list, ",")
}

// protocol returns "-p …" with matches of that protocol.
func (g *generator) protocol() string {
	icmp := "icmp"
	if g.family == host.IPv6 {
		icmp = "ipv6-icmp"
	}
	switch proto := pick(g, "tcp", "tcp", "udp", icmp, "other"); proto {
	case "other":
		return pick(g, "! -p tcp", "! -p udp", "! -p "+icmp, "-p 253")
	case icmp:
		out := "-p " + icmp
		if g.IntN(2) == 0 {
			return out
		}
		if g.family == host.IPv6 {
			return out + " -m icmp6 " + g.not() + "--icmpv6-type " + pick(g, "128", "129", "1", "1/4", "128/0", "2")
		}
		return out + " -m icmp " + g.not() + "--icmp-type " + pick(g, "8", "0", "3", "3/3", "8/0", "any", "13")
	default:
		out := "-p " + proto
		switch g.IntN(6) {
		case 0, 1:
			out += " -m " + proto
			if g.IntN(3) == 0 {
				out += " " + g.not() + "--sport " + g.port()
			}
			out += " " + g.not() + "--dport " + g.port()
			if proto == "tcp" && g.IntN(3) == 0 {
				out += " " + g.not() + "--tcp-flags " + pick(g, "FIN,SYN,RST,ACK SYN", "FIN,SYN,RST,PSH,ACK,URG NONE", "SYN,ACK ACK", "ACK ACK", "FIN,SYN FIN,SYN", "PSH PSH")
			}
		case 2:
			out += " -m multiport " + g.not() + pick(g, "--dports ", "--sports ", "--ports ") + g.portList()
		case 3:
			if proto == "tcp" {
				out += " -m tcp " + g.not() + "--tcp-flags " + pick(g, "FIN,SYN,RST,ACK SYN", "SYN,ACK ACK")
			}
		}
		return out
	}
}

func (g *generator) states() string {
	all := []string{"INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED"}
	var out []string
	for _, s := range all {
		if g.IntN(3) == 0 {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		out = all[g.IntN(5):][:1]
	}
	return strings.Join(out, ",")
}

func (g *generator) conntrack() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	for len(parts) == 0 {
		if g.IntN(2) == 0 {
			add("%s--ctstate %s", g.not(), g.states())
		}
		if g.IntN(6) == 0 {
			add("--ctdir %s", pick(g, "ORIGINAL", "REPLY"))
		}
		if g.IntN(8) == 0 {
			add("%s--ctproto %s", g.not(), pick(g, "6", "17"))
		}
		if g.IntN(8) == 0 {
			add("%s--%s %s", g.not(), pick(g, "ctorigsrc", "ctorigdst", "ctreplsrc", "ctrepldst"), strings.ReplaceAll(g.prefix(), "/255.0.0.255", "/32"))
		}
		if g.IntN(8) == 0 {
			add("%s--%s %d", g.not(), pick(g, "ctorigdstport", "ctreplsrcport"), servicePorts[g.IntN(len(servicePorts))])
		}
		if g.IntN(8) == 0 {
			add("%s--ctstatus %s", g.not(), pick(g, "SEEN_REPLY", "ASSURED", "NONE", "SEEN_REPLY,ASSURED"))
		}
	}
	return "-m conntrack " + strings.Join(parts, " ")
}

// match returns one condition that is allowed at the hook.
func (g *generator) match(hook string) string {
	comes := hook == "PREROUTING" || hook == "INPUT" || hook == "FORWARD"
	goes := hook == "OUTPUT" || hook == "POSTROUTING" || hook == "FORWARD"
	for {
		switch g.IntN(19) {
		case 0:
			return g.not() + "-s " + g.prefix()
		case 1:
			return g.not() + "-d " + g.prefix()
		case 2:
			if comes {
				return g.not() + "-i " + pick(g, inside, outside, "v+", "lo", "eth+")
			}
		case 3:
			if goes {
				return g.not() + "-o " + pick(g, inside, outside, "v+", "lo", "eth+")
			}
		case 4:
			return "-m state " + g.not() + "--state " + g.states()
		case 5, 6:
			return g.conntrack()
		case 7:
			return "-m iprange " + g.not() + pick(g, "--src-range ", "--dst-range ") + g.span()
		case 8:
			types := []string{"LOCAL", "UNICAST", "MULTICAST", "LOCAL,UNICAST"}
			if g.family == host.IPv4 {
				types = append(types, "BROADCAST", "UNICAST,BROADCAST")
			}
			return "-m addrtype " + g.not() + pick(g, "--src-type ", "--dst-type ") + pick(g, types...)
		case 9:
			return "-m mark " + g.not() + "--mark " + pick(g, "0x0", "0x1", "0x1/0xf", "0x2/0x3", "0x10/0xf0")
		case 10:
			if g.IntN(4) == 0 {
				return "-m connmark " + g.not() + "--mark " + pick(g, "0x0", "0x1", "0x1/0xf")
			}
		case 11:
			if hook == "OUTPUT" || hook == "POSTROUTING" {
				return "-m owner " + g.not() + pick(g, "--uid-owner ", "--gid-owner ") + pick(g, "0", "0-10", "1000")
			}
		case 12:
			if comes && hook != "PREROUTING" || hook == "PREROUTING" {
				return "-m mac " + g.not() + "--mac-source 02:00:00:00:00:" + pick(g, "01", "02")
			}
		case 13:
			return "-m pkttype " + g.not() + "--pkt-type " + pick(g, "unicast", "broadcast", "multicast")
		case 14:
			return "-m length " + g.not() + "--length " + pick(g, "0:60", "60:100", "68", "100:65535", "88")
		case 15:
			if comes {
				return "-m physdev " + g.not() + pick(g, "--physdev-is-in", "--physdev-in vin", "--physdev-in br+")
			}
		case 16:
			return fmt.Sprintf("-m recent %s--set --name r%d --mask %s --rsource", pick(g, "", "", "", "! "), g.IntN(3), map[host.Family]string{host.IPv4: "255.255.255.255", host.IPv6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}[g.family])
		case 17:
			return `-m comment --comment "` + pick(g, "a word", "-j DROP", `quo\"te`, "--dport 1", "!") + `"`
		case 18:
			name := pick(g, setNames...)
			if g.family == host.IPv6 {
				name += "6"
			}
			return "-m set " + g.not() + "--match-set " + name + " " + pick(g, setDirs[strings.TrimSuffix(name, "6")]...)
		}
	}
}

// rated is a match on a rate of which the test knows how it ends, and the
// evaluator does not: so many packets never come, so few always do.
func (g *generator) rated() string { return pick(g, always[0], always[1], never) }

var (
	always = []string{"-m limit --limit 10000/sec --limit-burst 10000", "-m hashlimit --hashlimit-upto 10000/sec --hashlimit-burst 10000 --hashlimit-mode srcip --hashlimit-name many"}
	never  = "-m hashlimit --hashlimit-above 10000/sec --hashlimit-burst 10000 --hashlimit-mode dstip --hashlimit-name few"
)

// settled is the ruleset as those matches turn out.
func settled(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, never) {
			b.WriteString(strings.NewReplacer(always[0]+" ", "", always[1]+" ", "").Replace(line))
		}
	}
	return b.String()
}

// unknowable is a match that depends on more than the packet.
func (g *generator) unknowable() string {
	return pick(g, "-m limit --limit 1/hour --limit-burst 3", "-m limit --limit 1000/sec", "-m statistic --mode random --probability 0.50000000000",
		"-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name h1",
		"-m recent --rcheck --seconds 60 --name r1 --mask "+map[host.Family]string{host.IPv4: "255.255.255.255", host.IPv6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}[g.family]+" --rsource",
		"-m connbytes --connbytes 10:20 --connbytes-mode packets --connbytes-dir both")
}

func (g *generator) matches(hook string) string {
	var parts []string
	if g.IntN(3) > 0 {
		// iptables-save writes addresses and interfaces ahead of the protocol
		parts = append(parts, g.protocol())
	}
	seen := map[string]bool{}
	for range g.IntN(3) {
		m := g.match(hook)
		key := strings.Fields(strings.TrimPrefix(m, "! "))[0]
		if key == "-m" {
			key = strings.Join(strings.Fields(m)[:2], " ")
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if strings.HasPrefix(key, "-m") {
			parts = append(parts, m)
		} else {
			parts = append([]string{m}, parts...)
		}
	}
	switch n := g.IntN(1000); {
	case n < g.vague:
		parts = append(parts, g.unknowable())
	case n < 2*g.vague:
		parts = append(parts, g.rated())
	}
	return strings.Join(parts, " ")
}

// target returns what a rule does, where jumps lead to next.
func (g *generator) target(table, hook, next string) string {
	reject := "REJECT --reject-with icmp-port-unreachable"
	if g.family == host.IPv6 {
		reject = "REJECT --reject-with icmp6-port-unreachable"
	}
	for {
		n := g.IntN(100)
		switch {
		case table == "raw" && n < 45:
			return "-j CT --notrack"
		case n < 20:
			return "-j ACCEPT"
		case n < 38:
			if table == "filter" || g.IntN(4) == 0 {
				return "-j DROP"
			}
		case n < 44:
			if table == "filter" {
				return "-j " + reject
			}
		case n < 52:
			return "-j RETURN"
		case n < 78:
			if next != "" {
				return "-j " + next
			}
		case n < 84:
			if next != "" {
				return "-g " + next
			}
		case n < 87:
			return "-j LOG"
		case n < 95:
			return "-j MARK --set-xmark " + pick(g, "0x1/0xffffffff", "0x1/0x1", "0x0/0xffffffff", "0x2/0x3", "0x10/0xf0", "0x1/0x0")
		case n < 97:
			if table != "raw" {
				return "-j CONNMARK " + pick(g, "--set-xmark 0x1/0xffffffff", "--set-xmark 0x2/0xf", "--restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", "--restore-mark --nfmask 0x3 --ctmask 0xf",
					"--save-mark --nfmask 0xffffffff --ctmask 0xffffffff", "--save-mark --nfmask 0xf0 --ctmask 0x3")
			}
		case n < 98:
			return ""
		}
	}
}

// ruleset writes all tables.
func (g *generator) ruleset() string {
	var b strings.Builder
	for _, t := range []struct {
		name  string
		hooks []string
		most  int
	}{{"raw", []string{"PREROUTING", "OUTPUT"}, 3}, {"mangle", []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, 2}, {"filter", []string{"INPUT", "FORWARD", "OUTPUT"}, 7}} {
		b.WriteString("*" + t.name + "\n")
		for _, h := range t.hooks {
			policy := "ACCEPT"
			if t.name == "filter" {
				policy = pick(g, "ACCEPT", "DROP")
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", h, policy)
		}
		for _, h := range t.hooks {
			for d := 1; d <= 3; d++ {
				fmt.Fprintf(&b, ":%s-%d - [0:0]\n", h, d)
			}
		}
		long := t.name == "filter" && g.IntN(6) == 0 // long enough to be indexed
		for _, h := range t.hooks {
			for d := 0; d <= 3; d++ {
				name, next := h, fmt.Sprintf("%s-%d", h, d+1)
				if d > 0 {
					name = fmt.Sprintf("%s-%d", h, d)
				}
				if d == 3 {
					next = ""
				} else if g.IntN(5) == 0 {
					next = fmt.Sprintf("%s-3", h)
				}
				n := g.IntN(t.most + 1)
				if long && d < 2 {
					n = 20 + g.IntN(30)
				}
				for range n {
					m := g.matches(h)
					if long && m == "" {
						continue
					}
					rule := strings.Join(strings.Fields(m+" "+g.target(t.name, h, next)), " ")
					if strings.Contains(m, `"`) {
						rule = m + " " + g.target(t.name, h, next)
					}
					fmt.Fprintf(&b, "-A %s %s\n", name, rule)
					if t.name == "filter" && h != "OUTPUT" && g.IntN(40) == 0 {
						fmt.Fprintf(&b, "-A %s -p tcp %s-j SYNPROXY --sack-perm --mss 1460\n", name, pick(g, "", "-m conntrack --ctstate INVALID,UNTRACKED ", "-m tcp --dport 80 "))
					}
				}
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
