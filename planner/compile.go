package planner

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// IANA protocol numbers.
const (
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoGRE     = 47
	protoDCCP    = 33
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

// ProtocolNumber is the IANA number of a protocol by name or number, as
// Traffic and rules spell it.
func ProtocolNumber(name string) (uint8, bool) {
	n, err := strconv.ParseUint(canonicalProtocol(name), 10, 8)
	return uint8(n), err == nil
}

// compiledRule is a rule made to be compared with many packets.
type compiledRule struct {
	proto              uint8
	hasProto, notProto bool
	in, out            ifaceMatch
	matches            []matcher // the certain ones first
	target             targetKind
	fromConn           bool // the mark comes from the connection
	rated              bool // of what cannot be known of it, there is a rate alone
	value, mask        uint32
	chain              *compiledChain
	to                 string // the target's name
	ref                *RuleRef
}

// ifaceMatch is -i or -o.
type ifaceMatch struct {
	name   string
	prefix bool // of any name that begins so
	not    bool
	any    bool
}

func (m ifaceMatch) exact() bool { return !m.any && !m.prefix && !m.not }

func (m *ifaceMatch) hit(name string) truth {
	if m.any {
		return yes
	}
	if name == SomeInterface {
		if m.name == "lo" && !m.prefix {
			return truthOf(m.not)
		}
		if m.prefix && m.name == "" {
			return truthOf(!m.not)
		}
		return maybe
	}
	hit := name == m.name
	if m.prefix {
		hit = strings.HasPrefix(name, m.name)
	}
	return truthOf(hit != m.not)
}

func (r *compiledRule) match(s *walk) truth {
	if r.hasProto && (s.p.Protocol == r.proto) == r.notProto {
		return no
	}
	t := yes
	if !r.in.any {
		t = min(t, r.in.hit(s.in))
	}
	if !r.out.any {
		t = min(t, r.out.hit(s.out))
	}
	for i := range r.matches {
		if t == no {
			return no
		}
		t = min(t, r.matches[i].eval(s))
	}
	return t
}

// rateAlone reports whether a rule that may match is unsure of a rate alone.
func (r *compiledRule) rateAlone(s *walk) bool {
	if !r.rated || r.in.hit(s.in) != yes || r.out.hit(s.out) != yes {
		return false
	}
	for i := range r.matches {
		if m := &r.matches[i]; m.kind != matchUnknown && m.eval(s) != yes {
			return false
		}
	}
	return true
}

// plainModules are the matches that say nothing beyond their options.
var plainModules = set("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "comment", "multiport", "state", "conntrack", "iprange", "addrtype",
	"limit", "hashlimit", "mark", "connmark", "set", "owner", "mac", "pkttype", "length", "physdev", "recent", "statistic", "string", "ttl", "hl", "tos", "dscp", "ecn",
	"time", "rt", "frag", "hbh", "dst", "u32", "bpf", "quota", "connbytes", "connlimit", "connlabel", "helper", "tcpmss", "esp", "ah", "realm", "policy", "cpu", "cgroup", "devgroup", "nfacct", "osf")

// rule compiles a rule of the table. It cannot fail: what it does not know
// becomes a condition that is unknown.
func (c *compiler) rule(backend Backend, table string, s spec) compiledRule {
	r := compiledRule{in: ifaceMatch{any: true}, out: ifaceMatch{any: true}}
	b := ruleBuilder{c: c, r: &r, s: s, cts: map[int]*ctMatch{}}
	for _, o := range s.opts {
		b.option(o)
	}
	b.modules()
	if backend == NFT {
		b.joinNegatedPorts()
	}
	if r.rated = b.rated && !b.vague; b.rated || b.vague {
		b.sure = append(b.sure, matcher{kind: matchUnknown})
	}
	r.matches = b.sure
	c.target(table, &r, s)
	return r
}

// ruleBuilder collects the conditions of one rule.
type ruleBuilder struct {
	c            *compiler
	r            *compiledRule
	s            spec
	sure         []matcher
	rated, vague bool // what is unknown: a rate, something else
	cts          map[int]*ctMatch
}

func (b *ruleBuilder) add(m matcher) { b.sure = append(b.sure, m) }

func (b *ruleBuilder) unknown() { b.vague = true }

// option adds what one option asks for.
func (b *ruleBuilder) option(o option) {
	arg := ""
	if len(o.args) > 0 {
		arg = o.args[0]
	}
	ok := true
	switch o.name {
	case "-4", "--ipv4", "-6", "--ipv6":
		if strings.HasSuffix(o.name, "4") != (b.c.e.family == IPv4) {
			b.add(matcher{kind: matchNever}) // for the other family: iptables-restore passes over it
		}
	case "--comment", "--limit-burst", "--rsource", "--rdest", "--mask", "--rttl", "--name":
		// --name and the like tell which list, not whether
	case "-p":
		ok = b.protocol(o.not, arg)
	case "-s", "-d":
		ok = b.address(o.name == "-d", o.not, arg)
	case "-i":
		b.r.in = iface(o.not, arg)
	case "-o":
		b.r.out = iface(o.not, arg)
	case "-f":
		if !o.not {
			b.add(matcher{kind: matchNever}) // tracking joins fragments, and no packet here is one
		}
	case "--sport", "--sports", "--dport", "--dports", "--ports":
		ok = b.ports(o, arg)
	case "--syn":
		b.add(matcher{kind: matchFlags, not: o.not, a: TCPFin | TCPSyn | TCPRst | TCPAck, b: TCPSyn})
	case "--tcp-flags":
		ok = b.flags(o)
	case "--icmp-type", "--icmpv6-type":
		ok = b.icmp(o.not, arg, o.name == "--icmpv6-type")
	case "--mark":
		ok = b.mark(o, arg)
	case "--state", "--ctstate":
		ok = b.ct(o).stateOption(o.not, arg)
	case "--ctdir":
		ct := b.ct(o)
		ct.dir, ct.reply = true, (arg == "REPLY") != o.not
	case "--ctstatus":
		ok = b.ct(o).statusOption(o.not, arg)
	case "--ctproto":
		ct := b.ct(o)
		ct.proto, ok = ProtocolNumber(arg)
		ct.hasProto, ct.notProto, ct.unknown = ok, o.not, ct.unknown || !ok
		ok = true
	case "--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport":
		b.ct(o).tuple(o, arg)
	case "--ctexpire":
		b.ct(o).unknown = true
	case "--src-range", "--dst-range":
		ok = b.addressRange(o, arg)
	case "--src-type", "--dst-type":
		ok = b.addressType(o, arg)
	case "--uid-owner", "--gid-owner":
		ok = b.owner(o, arg)
	case "--length":
		lo, hi, valid := numberRange(arg, 65535)
		ok = valid
		b.add(matcher{kind: matchLength, not: o.not, a: lo, b: hi})
	case "--mac-source":
		ok = b.mac(o.not, arg)
	case "--pkt-type":
		typ, known := map[string]uint8{"unicast": PktHost, "host": PktHost, "broadcast": PktBroadcast, "bcast": PktBroadcast, "multicast": PktMulticast, "mcast": PktMulticast}[arg]
		ok = known
		b.add(matcher{kind: matchPkt, not: o.not, a: uint32(typ)})
	case "--physdev-in", "--physdev-out", "--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged":
		// Where no bridge is, it matches exactly when negated.
		result := uint32(0)
		if o.not {
			result = 1
		}
		b.add(matcher{kind: matchPhys, a: result})
	case "--match-set":
		ok = b.set(o)
	case "--set":
		// xt_recent: noting the address always matches.
		ok = slices.Contains(b.s.modules, "recent") && b.recentOnlySets()
		if ok && o.not {
			b.add(matcher{kind: matchNever})
		}
	case "--helper":
		b.add(matcher{kind: matchTrackedOnly, not: o.not})
	case "--connbytes":
		b.add(matcher{kind: matchTrackedOnly})
	case "--connbytes-dir", "--connbytes-mode":
	case "--rt-type", "--rt-segsleft", "--rt-len", "--rt-0-res", "--rt-0-addrs", "--rt-0-not-strict", "--fragid", "--fraglen", "--fragres", "--fragfirst", "--fraglast", "--fragmore",
		"--hbh-len", "--hbh-opts", "--dst-len", "--dst-opts":
		// About extension headers (net/ipv6/netfilter/ip6t_rt.c and others): no
		// packet here has one, and they do not match then, negated or not.
		b.add(matcher{kind: matchNever})
	case "--limit", "--hashlimit", "--hashlimit-upto", "--hashlimit-burst", "--hashlimit-mode", "--hashlimit-name", "--hashlimit-srcmask", "--hashlimit-dstmask",
		"--hashlimit-htable-size", "--hashlimit-htable-max", "--hashlimit-htable-expire", "--hashlimit-htable-gcinterval":
		b.rated, ok = true, !o.not
	default:
		ok = false
	}
	if !ok {
		b.unknown()
	}
}

// modules adds what modules ask for by themselves.
func (b *ruleBuilder) modules() {
	for i, m := range b.s.modules {
		if !plainModules[m] {
			b.unknown()
		}
		switch {
		case b.hasOptions(i + 1):
		case m == "esp" || m == "ah":
			b.unknown()
		case m == "rt" || m == "frag" || m == "hbh" || m == "dst":
			b.add(matcher{kind: matchNever})
		case m == "limit" || m == "hashlimit":
			b.rated = true
		}
	}
}

// joinNegatedPorts is for what iptables-nft (measured: 1.8.9) makes of
// "! --sport A ! --dport B": one comparison, "not both", where the rule says,
// prints and elsewhere means "neither". Which of the two stands in the kernel
// depends on the version that loaded the rule.
func (b *ruleBuilder) joinNegatedPorts() {
	var sport, dport *matcher
	for i := range b.sure {
		m := &b.sure[i]
		if m.kind != matchPorts || !m.not || m.either || len(m.ports) != 1 || m.ports[0].From != m.ports[0].To || m.multi {
			continue
		}
		if m.dst {
			dport = m
		} else {
			sport = m
		}
	}
	if sport == nil || dport == nil {
		return
	}
	joined := matcher{kind: matchNeitherPort, a: uint32(sport.ports[0].From), b: uint32(dport.ports[0].From)}
	*sport = joined
	*dport = joined
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
			b.add(matcher{kind: matchNever})
		}
		return true
	}
	n, ok := ProtocolNumber(name)
	if !ok || b.r.hasProto {
		return false
	}
	b.r.proto, b.r.hasProto, b.r.notProto = n, true, not
	return true
}

func (b *ruleBuilder) address(dst, not bool, arg string) bool {
	addr, bits, hasBits := strings.Cut(arg, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != (b.c.e.family == IPv4) || a.Zone() != "" {
		return false
	}
	mask := mask128(a.BitLen(), a.BitLen())
	if hasBits {
		if m, err := netip.ParseAddr(bits); err == nil {
			mask = words128(m) // may have holes
		} else if n, err := strconv.Atoi(bits); err == nil && n >= 0 && n <= a.BitLen() {
			mask = mask128(n, a.BitLen())
		} else {
			return false
		}
	}
	if mask == (addr128{}) && !not {
		return true
	}
	b.add(matcher{kind: matchAddr, not: not, dst: dst, addr: words128(a).and(mask), mask: mask})
	return true
}

func iface(not bool, arg string) ifaceMatch {
	stem, prefix := strings.CutSuffix(arg, "+")
	return ifaceMatch{name: stem, prefix: prefix, not: not, any: prefix && stem == "" && !not}
}

func (b *ruleBuilder) ports(o option, arg string) bool {
	var p portSet
	if !p.set(o.not, arg) {
		return false
	}
	b.add(matcher{kind: matchPorts, not: o.not, dst: strings.HasPrefix(o.name, "--d"), either: o.name == "--ports", multi: strings.HasSuffix(o.name, "ports"), ports: p.ranges})
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
	b.add(matcher{kind: matchFlags, not: o.not, a: v[0], b: v[1]})
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
	m := matcher{kind: matchICMP, not: not, a: 0xffff, b: 0xff}
	if arg != "any" {
		typ, code, hasCode := strings.Cut(arg, "/")
		t, err := strconv.ParseUint(typ, 10, 8)
		if err != nil {
			return false
		}
		m.a = uint32(t)
		if t == 255 && !six {
			m.a = 0xffff
		}
		if hasCode {
			n, err := strconv.ParseUint(code, 10, 8)
			if err != nil {
				return false
			}
			m.b = uint32(n)<<8 | uint32(n)
		}
	}
	b.add(m)
	return true
}

func (b *ruleBuilder) mark(o option, arg string) bool {
	value, mask, ok := maskedNumber(arg)
	if !ok {
		return false
	}
	kind := matchMark
	for _, m := range b.s.modules[:min(o.mod, len(b.s.modules))] {
		switch m {
		case "mark":
			kind = matchMark
		case "connmark":
			kind = matchCMark
		}
	}
	b.add(matcher{kind: kind, not: o.not, a: value, b: mask})
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
	if !ok || a.Is4() != (b.c.e.family == IPv4) {
		return false
	}
	b.add(matcher{kind: matchRange, not: o.not, dst: o.name == "--dst-range", addr: words128(a), mask: words128(z)})
	return true
}

func (b *ruleBuilder) addressType(o option, arg string) bool {
	for _, other := range b.s.opts {
		if other.name == "--limit-iface-in" || other.name == "--limit-iface-out" {
			return false
		}
	}
	bits := map[string]uint32{"UNSPEC": typeUnspec, "UNICAST": typeUnicast, "LOCAL": typeLocal, "BROADCAST": typeBroadcast, "MULTICAST": typeMulticast}
	var mask uint32
	for t := range strings.SplitSeq(arg, ",") {
		bit, ok := bits[t]
		if !ok {
			bit = typeOther
		}
		mask |= bit
	}
	b.add(matcher{kind: matchType, not: o.not, dst: o.name == "--dst-type", a: mask})
	return mask&typeOther == 0 || b.c.e.family == IPv6
}

func (b *ruleBuilder) owner(o option, arg string) bool {
	lo, hi, ok := numberRange(strings.Replace(arg, "-", ":", 1), ^uint32(0))
	if ok {
		b.add(matcher{kind: matchOwner, not: o.not, either: o.name == "--gid-owner", a: lo, b: hi})
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
	b.add(matcher{kind: matchMAC, not: not, addr: addr128{0, mac}})
	return true
}

func (b *ruleBuilder) set(o option) bool {
	if len(o.args) != 2 {
		return false
	}
	set := compileSet(b.c.facts.Sets[o.args[0]], b.c.e.family)
	dirs := strings.Split(o.args[1], ",")
	want := 0
	if set != nil && set.addr {
		want++
	}
	if set != nil && set.port {
		want++
	}
	if set == nil || len(dirs) < want {
		return false
	}
	m := matcher{kind: matchSet, not: o.not, set: set, dst: dirs[0] == "dst", dst2: dirs[want-1] == "dst"}
	b.add(m)
	return true
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
func (b *ruleBuilder) ct(o option) *ctMatch {
	m := b.cts[o.mod]
	if m == nil {
		m = &ctMatch{}
		b.cts[o.mod] = m
		b.add(matcher{kind: matchCT, ct: m})
	}
	return m
}

func (c *ctMatch) stateOption(not bool, arg string) bool {
	for name := range strings.SplitSeq(arg, ",") {
		switch strings.ToUpper(name) {
		case "NEW":
			c.states |= StateNew
		case "ESTABLISHED":
			c.states |= StateEstablished
		case "RELATED":
			c.states |= StateRelated
		case "INVALID":
			c.states |= StateInvalid
		case "UNTRACKED":
			c.states |= StateUntracked
		case "SNAT":
			c.snat = true
		case "DNAT":
			c.dnat = true
		default:
			return false
		}
	}
	c.notStates = not
	return true
}

func (c *ctMatch) statusOption(not bool, arg string) bool {
	bits := map[string]uint32{"NONE": 0, "EXPECTED": StatusExpected, "SEEN_REPLY": StatusSeenReply, "ASSURED": StatusAssured, "CONFIRMED": StatusConfirmed}
	for name := range strings.SplitSeq(arg, ",") {
		bit, ok := bits[name]
		if !ok {
			c.unknown = true
			return true
		}
		c.status |= bit
	}
	c.hasStatus, c.notStatus = true, not
	return true
}

func (c *ctMatch) tuple(o option, arg string) {
	name := strings.TrimPrefix(o.name, "--ct")
	m := tupleMatch{reply: strings.HasPrefix(name, "repl"), dst: strings.Contains(name, "dst"), port: strings.HasSuffix(name, "port"), not: o.not}
	if m.port {
		lo, hi, ok := numberRange(arg, 65535)
		if !ok || lo > 65535 || hi > 65535 {
			c.unknown = true
			return
		}
		m.ports = PortRange{uint16(lo), uint16(hi)}
	} else {
		var p prefixSet
		if !p.set(false, arg) {
			c.unknown = true
			return
		}
		m.mask = mask128(p.prefix.Bits(), p.prefix.Addr().BitLen())
		m.addr = words128(p.prefix.Addr()).and(m.mask)
	}
	c.tuples = append(c.tuples, m)
}
