package differential

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// native writes rulesets in nft's language, out of what the evaluator knows.
// Values are few, so that packets and rules meet.
type native struct {
	*generator
	table string // family of the table that is being written: ip, ip6 or inet
	vague int    // in how many of a thousand rules stands what nobody can know
}

func newNative(r *rand.Rand, f host.Family, vague int) *native {
	return &native{generator: &generator{Rand: r, family: f}, vague: vague}
}

func (g *native) six() bool { return g.family == host.IPv6 }

func (g *native) ip() string {
	if g.six() {
		return "ip6"
	}
	return "ip"
}

func (g *native) addrType() string {
	if g.six() {
		return "ipv6_addr"
	}
	return "ipv4_addr"
}

func (g *native) differs() string { return pick(&generator{Rand: g.Rand}, "", "", "", "!= ") }

func (g *native) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *native) single() string {
	if g.six() {
		return g.pick("fd01::a", "fd01::b", "fd02::c", "fd01::1", "fd02::b", "::1")
	}
	return g.pick("10.1.0.10", "10.1.0.11", "10.2.0.12", "10.1.0.1", "10.2.0.11", "127.0.0.1")
}

func (g *native) addresses() string {
	if g.six() {
		return g.pick("fd01::/64", "fd02::/64", "fd01::8/125", "fd00::/8", "fd01::a-fd01::b", "fd02::b-fd02::ffff", g.single())
	}
	return g.pick("10.1.0.0/24", "10.2.0.0/24", "10.1.0.8/29", "10.0.0.0/8", "10.1.0.10-10.1.0.11", "10.2.0.11-10.2.255.255", g.single())
}

// some is an anonymous set of values, which do not lie over each other.
func (g *native) some(value func() string, apart bool) string {
	seen := map[string]bool{}
	var list []string
	for range 1 + g.IntN(3) {
		v := value()
		if !seen[v] && (len(list) == 0 || apart) {
			list = append(list, v)
		}
		seen[v] = true
	}
	return "{ " + strings.Join(list, ", ") + " }"
}

func (g *native) servicePort() string { return fmt.Sprint(servicePorts[g.IntN(len(servicePorts))]) }

func (g *native) ports() string {
	switch p := servicePorts[g.IntN(len(servicePorts))]; g.IntN(9) {
	case 0:
		return fmt.Sprintf("%d-%d", p, p+g.IntN(500))
	case 1:
		return g.pick("< 1024", ">= 1000", "<= 443", "> 30000")
	case 2, 3:
		return g.differs() + g.some(g.servicePort, true)
	case 4:
		return g.differs() + "{ 20-25, 80, 400-500, 1000-1100 }"
	case 5:
		return g.differs() + "@services"
	default:
		return g.differs() + fmt.Sprint(p)
	}
}

func (g *native) icmp() string {
	if g.six() {
		return "icmpv6 type " + g.pick("echo-request", "!= echo-reply", "{ echo-request, destination-unreachable }", "destination-unreachable", "> 100")
	}
	return "icmp type " + g.pick("echo-request", "!= echo-reply", "{ echo-request, destination-unreachable }", "destination-unreachable", "< 5")
}

func (g *native) protocolMatch() string {
	l4 := "meta l4proto "
	switch g.IntN(9) {
	case 0:
		return g.icmp()
	case 1:
		return l4 + g.differs() + g.pick("tcp", "udp", "253", "{ tcp, udp }")
	case 2:
		return l4 + "{ tcp, udp } th dport " + g.ports()
	case 3:
		return "tcp flags " + g.pick("& (fin|syn|rst|ack) == syn", "& (syn|ack) != 0", "syn", "& (fin|syn) == (fin|syn)", "! syn", "& ack == ack")
	case 4:
		return g.pick("udp ", "tcp ") + "sport " + g.pick("30000-60000", "31000-31003", "!= 31000", "53")
	case 5:
		return "udp dport " + g.ports()
	default:
		return "tcp dport " + g.ports()
	}
}

func (g *native) stateList() string {
	return strings.ToLower(g.states())
}

// nativeMatch is one condition that may stand in any chain.
func (g *native) nativeMatch() string {
	ip := g.ip()
	end := g.pick("saddr ", "daddr ")
	switch g.IntN(24) {
	case 0:
		return ip + " " + end + g.differs() + g.addresses()
	case 1:
		return ip + " " + end + g.differs() + g.some(g.single, true)
	case 2:
		return ip + " " + end + g.differs() + g.pick("@hosts", "@nets")
	case 3:
		return "meta iifname " + g.differs() + g.pick(`"vin"`, `"vout"`, `"v*"`, `"lo"`, `{ "vin", "lo" }`)
	case 4:
		return "meta oifname " + g.differs() + g.pick(`"vin"`, `"vout"`, `"v*"`, `"lo"`, `{ "vout", "lo" }`)
	case 5:
		return g.pick("iif ", "oif ") + g.differs() + g.pick("lo", "vin", "vout", "{ lo, vin }")
	case 6, 7, 8:
		return "ct state " + g.differs() + g.stateList()
	case 9:
		return "ct state " + g.pick("{ new, untracked }", "{ established, related }", "!= { invalid, new }")
	case 10:
		return "ct status " + g.pick("seen-reply", "assured", "seen-reply,assured", "! seen-reply", "dnat", "snat,dnat")
	case 11:
		return "ct direction " + g.pick("original", "reply", "!= reply")
	case 12:
		family := ""
		if g.table == "inet" {
			family = ip + " "
		}
		return "ct " + g.pick("original ", "reply ") + family + end + g.differs() + g.addresses()
	case 13:
		return g.pick("meta l4proto tcp ", "meta l4proto udp ") + "ct " + g.pick("original ", "reply ") + g.pick("proto-dst ", "proto-src ") + g.servicePort()
	case 14:
		return "meta mark " + g.pick("0x0", "0x1", "!= 0x1", "and 0xf == 0x1", "and 0x3 == 0x2", "and 0xf0 != 0x10", "{ 0x1, 0x2 }", "0x1-0x5", "& 0x3 != 0x0")
	case 15:
		if g.IntN(3) == 0 {
			return "ct mark " + g.pick("0x0", "0x1", "and 0xf == 0x1")
		}
		return "ct protocol " + g.pick("tcp", "udp")
	case 16:
		return "meta length " + g.pick("0-60", "60-100", "68", "> 100", "!= 88", "< 90")
	case 17:
		return "meta pkttype " + g.differs() + g.pick("host", "broadcast", "multicast", "{ host, multicast }")
	case 18:
		return "meta skuid " + g.pick("0", "0-10", "1000", "!= 0")
	case 19:
		return "ether saddr " + g.differs() + "02:00:00:00:00:0" + g.pick("1", "2")
	case 20:
		return "fib " + g.pick("saddr ", "daddr ") + "type " + g.pick("local", "unicast", "multicast", "{ local, multicast }", "!= local", "broadcast", "!= unicast")
	case 21:
		return g.concatenation()
	case 22:
		if g.six() {
			return "exthdr frag " + g.pick("exists", "missing")
		}
		return "ip frag-off & 0x1fff " + g.pick("== 0", "!= 0")
	default:
		return g.protocolMatch()
	}
}

func (g *native) concatenation() string {
	ip := g.ip()
	set := g.pick("@pairs", "@netpairs", fmt.Sprintf("{ %s . %s, %s . %s }", g.single(), "22", g.single(), "80"))
	if strings.HasPrefix(set, "{") {
		one := g.single()
		set = fmt.Sprintf("{ %s . 22, %s . 443, %s . 8080 }", one, one, one)
	}
	switch g.IntN(4) {
	case 0:
		return "meta iifname . tcp dport " + g.differs() + `{ "vin" . 22, "vin" . 80, "vout" . 443, "lo" . 1003 }`
	case 1:
		return ip + " saddr . udp dport " + g.differs() + set
	default:
		return ip + " " + g.pick("saddr", "daddr") + " . tcp dport " + g.differs() + set
	}
}

// unknowableMatch depends on more than the packet.
func (g *native) unknowableMatch() string {
	return g.pick("limit rate 1/hour", "limit rate over 1000/second", "numgen random mod 2 0", "quota over 1000 bytes", "ct count over 3", "tcp option maxseg size 1460", "ct packets > 3", "meta cpu 0")
}

// maps of verdicts; next is a chain to jump to, or "".
func (g *native) choice(next string) string {
	v := func() string {
		list := []string{"accept", "drop", "return", "continue"}
		if next != "" {
			list = append(list, "jump "+next, "goto "+next, "jump "+next)
		}
		return g.pick(list...)
	}
	switch g.IntN(7) {
	case 0:
		return fmt.Sprintf("ct state vmap { established : %s, related : %s, invalid : %s }", v(), v(), v())
	case 1:
		return fmt.Sprintf("ct state vmap { new : %s, untracked : %s, invalid : %s }", v(), v(), v())
	case 2:
		return fmt.Sprintf("tcp dport vmap { 22 : %s, 80-443 : %s, 1000 : %s }", v(), v(), v())
	case 3:
		return fmt.Sprintf(`meta iifname vmap { "vin" : %s, "lo" : %s }`, v(), v())
	case 4:
		return fmt.Sprintf("%s saddr . meta l4proto vmap { %s . tcp : %s, %s . udp : %s }", g.ip(), g.pick("10.1.0.10", "10.2.0.12")[:0]+g.single(), v(), g.single(), v())
	case 5:
		return fmt.Sprintf("meta l4proto vmap { tcp : %s, udp : %s }", v(), v())
	default:
		return fmt.Sprintf("meta mark vmap { 0x1 : %s, 0x0 : %s }", v(), v())
	}
}

// does is what a rule ends with, and what it does on the way.
func (g *native) does(chain, next string, early, base bool) string {
	way := ""
	if g.IntN(8) == 0 {
		way = g.pick("counter ", "meta mark set 0x1 ", "meta mark set meta mark or 0x2 ", "meta mark set meta mark and 0xfe ", "meta mark set ct mark ", "meta mark set tcp dport map { 22 : 0x1, 80 : 0x2, 443 : 0x10 } ")
		if !early && g.IntN(4) == 0 {
			way += g.pick("ct mark set 0x1 ", "ct mark set meta mark ")
		}
	}
	for {
		switch n := g.IntN(100); {
		case early && n < 40:
			return way + "notrack"
		case n < 25:
			return way + "accept"
		case n < 40:
			if !early || g.IntN(6) == 0 {
				return way + "drop"
			}
		case n < 44:
			if base && (chain == "input" || chain == "forward" || chain == "output") {
				return way + "reject"
			}
		case n < 50:
			return way + "return"
		case n < 65:
			if next != "" {
				return way + g.pick("jump ", "jump ", "goto ") + next
			}
		case n < 80:
			return way + g.choice(next)
		case n < 84:
			return way + g.pick("counter", `log prefix "x "`, "counter comment \"a comment: drop\"")
		case n < 95:
			return way + g.pick("meta mark set 0x1", "meta mark set 0x0", "meta mark set meta mark or 0x2", "meta mark set meta mark xor 0x3", "counter")
		case n < 97:
			return way + g.ip() + " dscp set cs1"
		case n < 98 && base:
			return way + "notrack" // too late, but for what has no connection
		}
	}
}

func (g *native) rule(chain, next string, early, base bool) string {
	var parts []string
	if base && chain == "prerouting" && g.IntN(15) == 0 {
		parts = append(parts, "fib saddr . iif oif "+g.pick("missing", "exists"))
	}
	proto := ""
	add := func(part string) {
		if p := protocolOf(part); p == "" || proto == "" || p == proto {
			parts = append(parts, part)
			if proto == "" {
				proto = p
			}
		}
	}
	for range g.IntN(3) {
		if m := g.nativeMatch(); chain == "output" || !strings.Contains(m, "skuid") {
			add(m)
		}
	}
	if g.IntN(2) == 0 {
		add(g.protocolMatch())
	}
	if g.IntN(1000) < g.vague {
		add(g.unknowableMatch())
	}
	does := g.does(chain, next, early, base)
	for p := protocolOf(does); p != "" && proto != "" && p != proto; p = protocolOf(does) {
		does = g.does(chain, next, early, base)
	}
	return strings.Join(append(parts, does), " ")
}

// protocolOf is the protocol that a match asks for, of which a rule has one.
func protocolOf(part string) string {
	for _, p := range []string{"{ tcp, udp }", "icmp", "l4proto vmap", "l4proto 253", "tcp", "udp"} {
		if strings.Contains(part, p) {
			return p
		}
	}
	return ""
}

// sets are those that rules of a table name.
func (g *native) sets(b *strings.Builder) {
	typ := g.addrType()
	fmt.Fprintf(b, "  set hosts { type %s; elements = { %s } }\n", typ, strings.Trim(g.some(g.single, true), "{ }"))
	fmt.Fprintf(b, "  set nets { type %s; flags interval; auto-merge; elements = { %s, %s } }\n", typ, g.addresses(), g.single())
	fmt.Fprintf(b, "  set services { type inet_service; flags interval; elements = { %s } }\n", g.pick("22, 80, 400-500", "1000-1100, 53", "22, 53, 80, 443, 8080 comment \"web\"", "0-1023"))
	a, z := g.single(), g.single()
	second := ""
	if a != z {
		second = fmt.Sprintf(", %s . 443", z)
	}
	fmt.Fprintf(b, "  set pairs { type %s . inet_service; flags timeout; elements = { %s . 22%s, %s . 1000 timeout 1h } }\n", typ, a, second, a)
	net := g.pick("10.1.0.0/24 . 20-30, 10.2.0.0/24 . 80-90, 10.1.0.10-10.1.0.11 . 443", "10.0.0.0/8 . 53, 10.1.0.10 . 1000-1003")
	if g.six() {
		net = g.pick("fd01::/64 . 20-30, fd02::/64 . 80-90, fd01::a-fd01::b . 443", "fd00::/8 . 53, fd01::a . 1000-1003")
	}
	fmt.Fprintf(b, "  set netpairs { type %s . inet_service; flags interval; elements = { %s } }\n", typ, net)
}

// ruleset writes one or several tables.
func (g *native) ruleset() string {
	var b strings.Builder
	b.WriteString("flush ruleset\n")
	for n := range 1 + g.IntN(3) {
		if g.table = g.pick("inet", "inet", g.ip()); n == 0 && g.IntN(3) == 0 {
			g.table = g.ip()
		}
		fmt.Fprintf(&b, "table %s t%d {\n", g.table, n)
		g.sets(&b)
		for d := 3; d >= 1; d-- {
			next := ""
			if d < 3 {
				next = fmt.Sprintf("sub%d", d+1)
			}
			fmt.Fprintf(&b, "  chain sub%d {\n", d)
			for range g.IntN(4) {
				fmt.Fprintf(&b, "    %s\n", g.rule("sub", next, false, false))
			}
			b.WriteString("  }\n")
		}
		for _, hook := range []string{"prerouting", "input", "forward", "output", "postrouting"} {
			if g.IntN(10) < 3 && hook != "input" && hook != "forward" && hook != "output" || g.IntN(10) < 2 {
				continue
			}
			priority := []int{-10, 0, 0, 0, 5, 50}[g.IntN(6)]
			early := false
			if (hook == "prerouting" || hook == "output") && g.IntN(2) == 0 {
				priority, early = []int{-300, -250, -301}[g.IntN(3)], true
			} else if hook == "prerouting" {
				priority = []int{-150, -90, 0}[g.IntN(3)]
			}
			if g.IntN(4) > 0 {
				priority += n // of one priority, which comes first is not known
			}
			fmt.Fprintf(&b, "  chain %s%d {\n    type filter hook %s priority %d; policy %s;\n", hook, n, hook, priority, g.policy(hook, early))
			rules := g.IntN(6)
			if g.IntN(12) == 0 {
				rules = 20 + g.IntN(20) // long enough to be indexed
			}
			for range rules {
				fmt.Fprintf(&b, "    %s\n", g.rule(hook, g.pick("sub1", "sub1", "sub2", ""), early, true))
			}
			b.WriteString("  }\n")
		}
		if g.IntN(3) == 0 {
			g.natChain(&b, n)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// natChain is one that the first packet of a connection passes. It may drop it,
// or send it elsewhere.
func (g *native) natChain(b *strings.Builder, n int) {
	hook := g.pick("prerouting", "input", "output", "postrouting")
	priority := map[string]int{"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}[hook] + n
	fmt.Fprintf(b, "  chain nat%d {\n    type nat hook %s priority %d; policy accept;\n", n, hook, priority)
	for range 1 + g.IntN(4) {
		switch {
		case g.IntN(25) == 0 && (hook == "prerouting" || hook == "output"):
			family := ""
			if g.table == "inet" {
				family = g.ip() + " "
			}
			fmt.Fprintf(b, "    %s %s dnat %sto %s\n", g.protocolMatch(), g.pick("", "ct state new"), family, g.single())
		default:
			fmt.Fprintf(b, "    %s\n", g.rule("nat", g.pick("sub1", "sub2", ""), false, false))
		}
	}
	b.WriteString("  }\n")
}

func (g *native) policy(hook string, early bool) string {
	if early || hook == "prerouting" || hook == "postrouting" {
		return "accept"
	}
	return g.pick("accept", "accept", "drop")
}
