package planner

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// plainModules are the matches that say nothing beyond their options.
var plainModules = wordSet("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "comment", "multiport", "state", "conntrack", "iprange", "addrtype",
	"limit", "hashlimit", "mark", "connmark", "set", "owner", "mac", "pkttype", "length", "physdev", "recent", "statistic", "string", "ttl", "hl", "tos", "dscp", "ecn",
	"time", "rt", "frag", "hbh", "dst", "u32", "bpf", "quota", "connbytes", "connlimit", "connlabel", "helper", "tcpmss", "esp", "ah", "realm", "policy", "cpu", "cgroup", "devgroup", "nfacct", "osf")

// XTables is the language of iptables' rules. It reads rules of one family.
type XTables Family

// Read is Language's.
func (f XTables) Read(r *CompiledRule, table TableID, words []string) {
	s := parseSpec(words)
	b := ruleBuilder{family: Family(f), r: r, s: s, cts: map[int]*CT{}}
	for _, o := range s.opts {
		b.option(o)
	}
	b.modules()
	b.finish(table.Backend)
	r.Do(targetOf(table.Table, s))
}

// ruleBuilder collects the conditions of one rule.
type ruleBuilder struct {
	family Family
	r      *CompiledRule
	s      spec
	sure   []Condition
	cts    map[int]*CT
	// negated are where single ports that are not meant stand in sure, by side.
	negated [2]negatedPort
}

type negatedPort struct {
	at   int // from 1; 0: there is none
	port uint16
}

func (b *ruleBuilder) add(not bool, m Condition) {
	if not {
		m = m.Negated()
	}
	b.sure = append(b.sure, m)
}

func side(dst bool) Side {
	if dst {
		return DestinationEnd
	}
	return SourceEnd
}

// option adds what one option asks for.
func (b *ruleBuilder) option(o option) {
	arg := ""
	if len(o.args) > 0 {
		arg = o.args[0]
	}
	ok := true
	switch o.name {
	case "-4", "--ipv4", "-6", "--ipv6":
		if strings.HasSuffix(o.name, "4") != (b.family == IPv4) {
			b.add(false, Never()) // for the other family: iptables-restore passes over it
		}
	case "--comment", "--limit-burst", "--rsource", "--rdest", "--mask", "--rttl", "--name":
		// --name and the like tell which list, not whether
	case "-p":
		ok = b.protocol(o.not, arg)
	case "-s", "-d":
		ok = b.address(o.name == "-d", o.not, arg)
	case "-i":
		b.r.In(arg, o.not)
	case "-o":
		b.r.Out(arg, o.not)
	case "-f":
		if !o.not {
			b.add(false, Never()) // tracking joins fragments, and no packet here is one
		}
	case "--sport", "--sports", "--dport", "--dports", "--ports":
		ok = b.ports(o, arg)
	case "--syn":
		b.add(o.not, Flags(TCPFin|TCPSyn|TCPRst|TCPAck, TCPSyn))
	case "--tcp-flags":
		ok = b.flags(o)
	case "--icmp-type", "--icmpv6-type":
		ok = b.icmp(o.not, arg, o.name == "--icmpv6-type")
	case "--mark":
		ok = b.mark(o, arg)
	case "--state", "--ctstate":
		ok = stateOption(b.ct(o), o.not, arg)
	case "--ctdir":
		ct := b.ct(o)
		ct.ByDirection, ct.Reply = true, (arg == "REPLY") != o.not
	case "--ctstatus":
		ok = statusOption(b.ct(o), o.not, arg)
	case "--ctproto":
		ct := b.ct(o)
		ct.Protocol, ok = ProtocolNumber(arg)
		ct.ByProtocol, ct.NotProtocol, ct.Vague = ok, o.not, ct.Vague || !ok
		ok = true
	case "--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport":
		tupleOption(b.ct(o), o, arg)
	case "--ctexpire":
		b.ct(o).Vague = true
	case "--src-range", "--dst-range":
		ok = b.addressRange(o, arg)
	case "--src-type", "--dst-type":
		ok = b.addressType(o, arg)
	case "--uid-owner", "--gid-owner":
		ok = b.owner(o, arg)
	case "--length":
		lo, hi, valid := numberRange(arg, 65535)
		ok = valid
		b.add(o.not, Length(lo, hi))
	case "--mac-source":
		ok = b.mac(o.not, arg)
	case "--pkt-type":
		typ, known := map[string]uint8{"unicast": PktHost, "host": PktHost, "broadcast": PktBroadcast, "bcast": PktBroadcast, "multicast": PktMulticast, "mcast": PktMulticast}[arg]
		ok = known
		b.add(o.not, LinkType(typ))
	case "--physdev-in", "--physdev-out", "--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged":
		// Where no bridge is, it matches exactly when negated.
		b.add(false, BridgePort(o.not))
	case "--match-set":
		ok = b.set(o)
	case "--set":
		// xt_recent: noting the address always matches.
		ok = slices.Contains(b.s.modules, "recent") && b.recentOnlySets()
		if ok && o.not {
			b.add(false, Never())
		}
	case "--helper":
		b.add(o.not, TrackedOnly())
	case "--connbytes":
		b.add(false, TrackedOnly())
	case "--connbytes-dir", "--connbytes-mode":
	case "--rt-type", "--rt-segsleft", "--rt-len", "--rt-0-res", "--rt-0-addrs", "--rt-0-not-strict", "--fragid", "--fraglen", "--fragres", "--fragfirst", "--fraglast", "--fragmore",
		"--hbh-len", "--hbh-opts", "--dst-len", "--dst-opts":
		// About extension headers (net/ipv6/netfilter/ip6t_rt.c and others): no
		// packet here has one, and they do not match then, negated or not.
		b.add(false, Never())
	case "--limit", "--hashlimit", "--hashlimit-upto", "--hashlimit-burst", "--hashlimit-mode", "--hashlimit-name", "--hashlimit-srcmask", "--hashlimit-dstmask",
		"--hashlimit-htable-size", "--hashlimit-htable-max", "--hashlimit-htable-expire", "--hashlimit-htable-gcinterval":
		b.r.Rate()
		ok = !o.not
	default:
		ok = false
	}
	if !ok {
		b.r.Vague()
	}
}

// modules adds what modules ask for by themselves.
func (b *ruleBuilder) modules() {
	for i, m := range b.s.modules {
		if !plainModules[m] {
			b.r.Vague()
		}
		switch {
		case b.hasOptions(i + 1):
		case m == "esp" || m == "ah":
			b.r.Vague()
		case m == "rt" || m == "frag" || m == "hbh" || m == "dst":
			b.add(false, Never())
		case m == "limit" || m == "hashlimit":
			b.r.Rate()
		}
	}
}

// finish gives the rule its conditions.
//
// Of "! --sport A ! --dport B" iptables-nft (measured: 1.8.9) makes one
// comparison, "not both", where the rule says, prints and elsewhere means
// "neither". Which of the two stands in the kernel depends on the version that
// loaded the rule.
func (b *ruleBuilder) finish(backend Backend) {
	sport, dport := b.negated[SourceEnd], b.negated[DestinationEnd]
	if backend == NFT && sport.at > 0 && dport.at > 0 {
		joined := NeitherPort(sport.port, dport.port)
		b.sure[sport.at-1], b.sure[dport.at-1] = joined, joined
	}
	for _, m := range b.sure {
		b.r.Match(m)
	}
}

func (b *ruleBuilder) hasOptions(mod int) bool {
	for _, o := range b.s.opts {
		if o.mod == mod {
			return true
		}
	}
	return false
}

func (b *ruleBuilder) protocol(not bool, arg string) bool {
	name := canonicalProtocol(arg)
	if name == "all" {
		if not {
			b.add(false, Never())
		}
		return true
	}
	n, ok := ProtocolNumber(name)
	return ok && b.r.Protocol(n, not)
}

func (b *ruleBuilder) address(dst, not bool, arg string) bool {
	addr, bits, hasBits := strings.Cut(arg, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != (b.family == IPv4) || a.Zone() != "" {
		return false
	}
	mask := maskOf(a.BitLen(), a.BitLen())
	if hasBits {
		if m, err := netip.ParseAddr(bits); err == nil {
			mask = m // may have holes
		} else if n, err := strconv.Atoi(bits); err == nil && n >= 0 && n <= a.BitLen() {
			mask = maskOf(n, a.BitLen())
		} else {
			return false
		}
	}
	if mask.IsUnspecified() && !not {
		return true
	}
	b.add(not, Masked(side(dst), a, mask))
	return true
}

// maskOf is the mask of a network, bits of width.
func maskOf(bits, width int) netip.Addr {
	ones, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, width/8))
	p, _ := ones.Prefix(bits)
	return p.Addr()
}

func (b *ruleBuilder) ports(o option, arg string) bool {
	var p portSet
	if !p.set(o.not, arg) {
		return false
	}
	at := side(strings.HasPrefix(o.name, "--d"))
	if o.name == "--ports" {
		at = EitherEnd
	}
	b.add(o.not, InPorts(at, p.ranges))
	if o.not && (o.name == "--sport" || o.name == "--dport") && len(p.ranges) == 1 && p.ranges[0].From == p.ranges[0].To {
		b.negated[at] = negatedPort{len(b.sure), p.ranges[0].From}
	}
	return true
}

var flagBits = map[string]uint32{"FIN": TCPFin, "SYN": TCPSyn, "RST": TCPRst, "PSH": TCPPsh, "ACK": TCPAck, "URG": TCPUrg, "ALL": 0x3f, "NONE": 0}

func (b *ruleBuilder) flags(o option) bool {
	if len(o.args) != 2 {
		return false
	}
	var v [2]uint32
	for i, list := range o.args {
		for f := range strings.SplitSeq(list, ",") {
			bit, ok := flagBits[f]
			if !ok {
				return false
			}
			v[i] |= bit
		}
	}
	b.add(o.not, Flags(v[0], v[1]))
	return true
}

// Names that hand-written files use; iptables-save writes numbers.
var (
	icmpNames = map[string]string{"any": "any", "echo-reply": "0", "pong": "0", "destination-unreachable": "3", "network-unreachable": "3/0", "host-unreachable": "3/1",
		"protocol-unreachable": "3/2", "port-unreachable": "3/3", "fragmentation-needed": "3/4", "source-quench": "4", "redirect": "5", "echo-request": "8", "ping": "8",
		"router-advertisement": "9", "router-solicitation": "10", "time-exceeded": "11", "ttl-exceeded": "11", "parameter-problem": "12", "timestamp-request": "13", "timestamp-reply": "14"}
	icmp6Names = map[string]string{"destination-unreachable": "1", "packet-too-big": "2", "time-exceeded": "3", "ttl-exceeded": "3", "parameter-problem": "4",
		"echo-request": "128", "ping": "128", "echo-reply": "129", "pong": "129", "router-solicitation": "133", "router-advertisement": "134",
		"neighbour-solicitation": "135", "neighbor-solicitation": "135", "neighbour-advertisement": "136", "neighbor-advertisement": "136", "redirect": "137"}
)

func (b *ruleBuilder) icmp(not bool, arg string, six bool) bool {
	names := icmpNames
	if six {
		names = icmp6Names
	}
	if n, ok := names[arg]; ok {
		arg = n
	}
	kind, from, to := uint16(AnyICMP), uint8(0), uint8(0xff)
	if arg != "any" {
		typ, code, hasCode := strings.Cut(arg, "/")
		t, err := strconv.ParseUint(typ, 10, 8)
		if err != nil {
			return false
		}
		if kind = uint16(t); t == 255 && !six {
			kind = AnyICMP
		}
		if hasCode {
			n, err := strconv.ParseUint(code, 10, 8)
			if err != nil {
				return false
			}
			from, to = uint8(n), uint8(n)
		}
	}
	b.add(not, ICMP(kind, from, to))
	return true
}

func (b *ruleBuilder) mark(o option, arg string) bool {
	value, mask, ok := maskedNumber(arg)
	if !ok {
		return false
	}
	m := PacketMark(value, mask)
	for _, module := range b.s.modules[:min(o.mod, len(b.s.modules))] {
		switch module {
		case "mark":
			m = PacketMark(value, mask)
		case "connmark":
			m = ConnMark(value, mask)
		}
	}
	b.add(o.not, m)
	return true
}

// maskedNumber reads "value" or "value/mask".
func maskedNumber(arg string) (value, mask uint32, ok bool) {
	v, m, hasMask := strings.Cut(arg, "/")
	n, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		return 0, 0, false
	}
	mask = ^uint32(0)
	if hasMask {
		k, err := strconv.ParseUint(m, 0, 32)
		if err != nil {
			return 0, 0, false
		}
		mask = uint32(k)
	}
	return uint32(n), mask, true
}

// numberRange reads "n" or "lo:hi", either side of which may be missing.
func numberRange(arg string, most uint32) (lo, hi uint32, ok bool) {
	a, z, isRange := strings.Cut(arg, ":")
	if !isRange {
		z = a
	}
	if a == "" {
		a = "0"
	}
	if z == "" {
		z = strconv.FormatUint(uint64(most), 10)
	}
	from, err1 := strconv.ParseUint(a, 0, 32)
	to, err2 := strconv.ParseUint(z, 0, 32)
	return uint32(from), uint32(to), err1 == nil && err2 == nil
}

func (b *ruleBuilder) addressRange(o option, arg string) bool {
	a, z, ok := addressRange(arg)
	if !ok || a.Is4() != (b.family == IPv4) {
		return false
	}
	b.add(o.not, Between(side(o.name == "--dst-range"), a, z))
	return true
}

func (b *ruleBuilder) addressType(o option, arg string) bool {
	for _, other := range b.s.opts {
		if other.name == "--limit-iface-in" || other.name == "--limit-iface-out" {
			return false
		}
	}
	bits := map[string]uint32{"UNSPEC": TypeUnspec, "UNICAST": TypeUnicast, "LOCAL": TypeLocal, "BROADCAST": TypeBroadcast, "MULTICAST": TypeMulticast}
	var mask uint32
	for t := range strings.SplitSeq(arg, ",") {
		bit, ok := bits[t]
		if !ok {
			bit = TypeOther
		}
		mask |= bit
	}
	b.add(o.not, AddressType(side(o.name == "--dst-type"), mask))
	return mask&TypeOther == 0 || b.family == IPv6
}

func (b *ruleBuilder) owner(o option, arg string) bool {
	lo, hi, ok := numberRange(strings.Replace(arg, "-", ":", 1), ^uint32(0))
	switch {
	case !ok:
	case o.name == "--gid-owner":
		b.add(o.not, Group(lo, hi))
	default:
		b.add(o.not, User(lo, hi))
	}
	return ok
}

func (b *ruleBuilder) mac(not bool, arg string) bool {
	var mac uint64
	parts := strings.Split(arg, ":")
	for _, p := range parts {
		n, err := strconv.ParseUint(p, 16, 8)
		if err != nil {
			return false
		}
		mac = mac<<8 | n
	}
	if len(parts) != 6 {
		return false
	}
	b.add(not, MAC(mac))
	return true
}

func (b *ruleBuilder) set(o option) bool {
	if len(o.args) != 2 {
		return false
	}
	var sides []Side
	for d := range strings.SplitSeq(o.args[1], ",") {
		sides = append(sides, side(d == "dst"))
	}
	m, ok := InSet(b.r.Set(o.args[0]), b.family, sides)
	if ok {
		b.add(o.not, m)
	}
	return ok
}

// recentOnlySets is whether the rule's -m recent does nothing but note the address.
func (b *ruleBuilder) recentOnlySets() bool {
	for _, o := range b.s.opts {
		switch o.name {
		case "--rcheck", "--update", "--remove", "--seconds", "--hitcount", "--reap":
			return false
		}
	}
	return true
}

// ct is the match that the option belongs to: those of one -m are one match.
func (b *ruleBuilder) ct(o option) *CT {
	m := b.cts[o.mod]
	if m == nil {
		m = &CT{}
		b.cts[o.mod] = m
		b.add(false, Connection(m))
	}
	return m
}

func stateOption(c *CT, not bool, arg string) bool {
	for name := range strings.SplitSeq(arg, ",") {
		switch strings.ToUpper(name) {
		case "NEW":
			c.States |= StateNew
		case "ESTABLISHED":
			c.States |= StateEstablished
		case "RELATED":
			c.States |= StateRelated
		case "INVALID":
			c.States |= StateInvalid
		case "UNTRACKED":
			c.States |= StateUntracked
		case "SNAT":
			c.SNAT = true
		case "DNAT":
			c.DNAT = true
		default:
			return false
		}
	}
	c.NotStates = not
	return true
}

func statusOption(c *CT, not bool, arg string) bool {
	bits := map[string]uint32{"NONE": 0, "EXPECTED": StatusExpected, "SEEN_REPLY": StatusSeenReply, "ASSURED": StatusAssured, "CONFIRMED": StatusConfirmed}
	for name := range strings.SplitSeq(arg, ",") {
		bit, ok := bits[name]
		if !ok {
			c.Vague = true
			return true
		}
		c.Status |= bit
	}
	c.ByStatus, c.NotStatus = true, not
	return true
}

func tupleOption(c *CT, o option, arg string) {
	name := strings.TrimPrefix(o.name, "--ct")
	m := TupleMatch{Reply: strings.HasPrefix(name, "repl"), Destination: strings.Contains(name, "dst"), Not: o.not}
	if strings.HasSuffix(name, "port") {
		lo, hi, ok := numberRange(arg, 65535)
		if !ok || lo > 65535 || hi > 65535 {
			c.Vague = true
			return
		}
		m.Ports = PortRange{uint16(lo), uint16(hi)}
	} else {
		var p prefixSet
		if !p.set(false, arg) {
			c.Vague = true
			return
		}
		m.Network = p.prefix
	}
	c.Tuples = append(c.Tuples, m)
}
