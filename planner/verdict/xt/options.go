package xt

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// plainModules are the matches that say nothing beyond their options.
var plainModules = words.Set("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "comment", "multiport", "state", "conntrack", "iprange", "addrtype",
	"limit", "hashlimit", "mark", "connmark", "set", "owner", "mac", "pkttype", "length", "physdev", "recent", "statistic", "string", "ttl", "hl", "tos", "dscp", "ecn",
	"time", "rt", "frag", "ipv6header", "hbh", "dst", "u32", "bpf", "quota", "connbytes", "connlimit", "connlabel", "helper", "tcpmss", "esp", "ah", "realm", "policy", "cpu", "cgroup", "devgroup", "nfacct", "osf")

// XTables is the language of iptables' rules. It reads rules of one family.
type XTables host.Family

// Read is Language's.
func (f XTables) Read(r *verdict.Rule, table verdict.TableID, source *verdict.RuleSource) {
	s := xtables.Parse(source.Words)
	b := ruleBuilder{family: host.Family(f), r: r, s: s, native: table.Backend == host.NFT, cts: map[int]*verdict.CT{}}
	for _, o := range s.Matches {
		b.option(o)
	}
	b.modules()
	b.finish(table.Backend)
	if xtables.JoinsFragments(source.Words) {
		r.Join()
	}
	r.Do(targetOf(table.Table, s))
}

// ruleBuilder collects the conditions of one rule.
type ruleBuilder struct {
	family host.Family
	r      *verdict.Rule
	s      xtables.Spec
	sure   []verdict.Condition
	native bool // some of its matches become nft's expressions
	cts    map[int]*verdict.CT
	// negated are where single ports that are not meant stand in sure, by side.
	negated [2]negatedPort
}

type negatedPort struct {
	at   int // from 1; 0: there is none
	port uint16
}

func (b *ruleBuilder) add(not bool, m verdict.Condition) {
	if not {
		m = m.Negated()
	}
	b.sure = append(b.sure, m)
}

// header adds what a rule asks of the protocol's own header.
func (b *ruleBuilder) header(not bool, m verdict.Condition) {
	if b.native {
		m = m.ReadBlindly()
	}
	b.add(not, m)
}

func side(dst bool) verdict.Side {
	if dst {
		return verdict.DestinationEnd
	}
	return verdict.SourceEnd
}

// option adds what one option asks for.
func (b *ruleBuilder) option(o xtables.Option) {
	arg := ""
	if len(o.Args) > 0 {
		arg = o.Args[0]
	}
	ok := true
	switch o.Name {
	case "-4", "--ipv4", "-6", "--ipv6":
		if strings.HasSuffix(o.Name, "4") != (b.family == host.IPv4) {
			b.add(false, verdict.Never()) // for the other family: iptables-restore passes over it
		}
	case "--comment", "--limit-burst", "--rsource", "--rdest", "--mask", "--rttl", "--name":
		// --name and the like tell which list, not whether
	case "-p":
		ok = b.protocol(o.Not, arg)
	case "-s", "-d":
		ok = b.address(o.Name == "-d", o.Not, arg)
	case "-i":
		b.r.In(arg, o.Not)
	case "-o":
		b.r.Out(arg, o.Not)
	case "-f":
		b.add(o.Not, verdict.Fragments(verdict.MiddleFragment, verdict.LastFragment))
	case "--sport", "--sports", "--dport", "--dports", "--ports":
		ok = b.ports(o, arg)
	case "--syn":
		b.header(o.Not, verdict.Flags(verdict.TCPFin|verdict.TCPSyn|verdict.TCPRst|verdict.TCPAck, verdict.TCPSyn))
	case "--tcp-flags":
		ok = b.flags(o)
	case "--icmp-type", "--icmpv6-type":
		ok = b.icmp(o.Not, arg, o.Name == "--icmpv6-type")
	case "--mark":
		ok = b.mark(o, arg)
	case "--src-range", "--dst-range":
		ok = b.addressRange(o, arg)
	case "--src-type", "--dst-type":
		ok = b.addressType(o, arg)
	case "--uid-owner", "--gid-owner":
		ok = b.owner(o, arg)
	case "--length":
		var lo, hi uint32
		lo, hi, ok = numberRange(arg, 65535)
		b.add(o.Not, verdict.Length(lo, hi))
	case "--mac-source":
		ok = b.mac(o.Not, arg)
	case "--pkt-type":
		var typ uint8
		typ, ok = linkTypes[arg]
		b.add(o.Not, verdict.LinkType(typ))
	case "--physdev-in", "--physdev-out", "--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged":
		// Where no bridge is, it matches exactly when negated.
		b.add(false, verdict.BridgePort(o.Not))
	case "--match-set":
		ok = b.set(o)
	case "--set":
		// xt_recent: noting the address always matches.
		ok = slices.Contains(b.s.Modules, "recent") && b.recentOnlySets()
		if ok && o.Not {
			b.add(false, verdict.Never())
		}
	case "--fragfirst", "--fraglast", "--fragmore", "--fragid", "--fraglen", "--fragres", "--header", "--soft":
		ok = b.fragment(o, arg)
	case "--rt-type", "--rt-segsleft", "--rt-len", "--rt-0-res", "--rt-0-addrs", "--rt-0-not-strict",
		"--hbh-len", "--hbh-opts", "--dst-len", "--dst-opts":
		// About extension headers (net/ipv6/netfilter/ip6t_rt.c and others): no
		// packet here has one, and they do not match then, negated or not.
		b.add(false, verdict.Never())
	case "--limit", "--hashlimit", "--hashlimit-upto", "--hashlimit-burst", "--hashlimit-mode", "--hashlimit-name", "--hashlimit-srcmask", "--hashlimit-dstmask",
		"--hashlimit-htable-size", "--hashlimit-htable-max", "--hashlimit-htable-expire", "--hashlimit-htable-gcinterval":
		b.r.Rate()
		ok = !o.Not
	default:
		ok = b.connection(o, arg)
	}
	if !ok {
		b.r.Vague()
	}
}

// linkTypes are the names of link-layer destinations (xt_pkttype).
var linkTypes = map[string]uint8{
	"unicast": verdict.PktHost, "host": verdict.PktHost, "broadcast": verdict.PktBroadcast, "bcast": verdict.PktBroadcast,
	"multicast": verdict.PktMulticast, "mcast": verdict.PktMulticast,
}

// connection adds what an option asks of a packet's connection. It reports false
// for an option that is not known.
func (b *ruleBuilder) connection(o xtables.Option, arg string) (ok bool) {
	ok = true
	switch o.Name {
	case "--state", "--ctstate":
		ok = stateOption(b.ct(o), o.Not, arg)
	case "--ctdir":
		ct := b.ct(o)
		ct.ByDirection, ct.Reply = true, (arg == "REPLY") != o.Not
	case "--ctstatus":
		ok = statusOption(b.ct(o), o.Not, arg)
	case "--ctproto":
		ct := b.ct(o)
		ct.Protocol, ok = protocol.Number(arg)
		ct.ByProtocol, ct.NotProtocol, ct.Vague = ok, o.Not, ct.Vague || !ok
		ok = true
	case "--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport":
		tupleOption(b.ct(o), o, arg)
	case "--ctexpire":
		b.ct(o).Vague = true
	case "--helper":
		b.add(o.Not, verdict.TrackedOnly())
	case "--connbytes":
		b.add(false, verdict.TrackedOnly())
	case "--connbytes-dir", "--connbytes-mode":
	default:
		return false
	}
	return ok
}

// fragment adds what an option asks of the fragment header of IPv6
// (net/ipv6/netfilter/ip6t_frag.c, ip6t_ipv6header.c). It reports false for what
// cannot be told of a packet that has one.
func (b *ruleBuilder) fragment(o xtables.Option, arg string) (ok bool) {
	parts := []verdict.Fragment{verdict.FirstFragment, verdict.MiddleFragment, verdict.LastFragment}
	ok = true
	switch o.Name {
	case "--fragfirst":
		parts = parts[:1]
	case "--fraglast":
		parts = parts[2:]
	case "--fragmore":
		parts = parts[:2]
	case "--soft":
		return true
	case "--header":
		soft := func(o xtables.Option) bool { return o.Name == "--soft" }
		if !slices.Contains([]string{"frag", "ipv6-frag", "44"}, arg) || !slices.ContainsFunc(b.s.Matches, soft) {
			return false
		}
		b.add(o.Not, verdict.Fragments(parts...))
		return true
	default:
		ok = false
	}
	b.add(false, verdict.Fragments(parts...))
	return ok && !o.Not
}

// hasHeader are the matches that read the protocol's own header, and so match no
// part of a datagram but the first, whatever else they ask for.
var hasHeader = words.Set("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "multiport", "tcpmss", "ecn", "esp", "ah")

// modules adds what modules ask for by themselves.
func (b *ruleBuilder) modules() {
	for i, m := range b.s.Modules {
		if !plainModules[m] {
			b.r.Vague()
		}
		if hasHeader[m] && !b.hasOptions(i+1) {
			b.add(false, verdict.Fragments(verdict.Whole, verdict.FirstFragment))
		}
		switch {
		case b.hasOptions(i + 1):
		case m == "esp" || m == "ah":
			b.r.Vague()
		case m == "frag":
			b.add(false, verdict.Fragments(verdict.FirstFragment, verdict.MiddleFragment, verdict.LastFragment))
		case m == "rt" || m == "hbh" || m == "dst":
			b.add(false, verdict.Never())
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
func (b *ruleBuilder) finish(backend host.Backend) {
	sport, dport := b.negated[verdict.SourceEnd], b.negated[verdict.DestinationEnd]
	if backend == host.NFT && sport.at > 0 && dport.at > 0 {
		joined := verdict.NeitherPort(sport.port, dport.port).ReadBlindly()
		b.sure[sport.at-1], b.sure[dport.at-1] = joined, joined
	}
	for _, m := range b.sure {
		b.r.Match(m)
	}
}

// hasOptions is whether a match has options of its own. Those that any rule may
// have, such as -i, may stand behind it too.
func (b *ruleBuilder) hasOptions(mod int) bool {
	for _, o := range b.s.Matches {
		if o.Module == mod && strings.HasPrefix(o.Name, "--") && o.Name != "--ipv4" && o.Name != "--ipv6" {
			return true
		}
	}
	return false
}

func (b *ruleBuilder) protocol(not bool, arg string) bool {
	name := protocol.Canonical(arg)
	if name == "all" {
		if not {
			b.add(false, verdict.Never())
		}
		return true
	}
	n, ok := protocol.Number(name)
	return ok && b.r.Protocol(n, not)
}

func (b *ruleBuilder) address(dst, not bool, arg string) bool {
	addr, bits, hasBits := strings.Cut(arg, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != (b.family == host.IPv4) || a.Zone() != "" {
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
	b.add(not, verdict.Masked(side(dst), a, mask))
	return true
}

// maskOf is the mask of a network, bits of width.
func maskOf(bits, width int) netip.Addr {
	ones, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, width/8))
	p, _ := ones.Prefix(bits)
	return p.Addr()
}

func (b *ruleBuilder) ports(o xtables.Option, arg string) bool {
	var p xtables.PortSet
	if !p.Take(o.Not, arg) {
		return false
	}
	at := side(strings.HasPrefix(o.Name, "--d"))
	if o.Name == "--ports" {
		at = verdict.EitherEnd
	}
	if strings.HasSuffix(o.Name, "ports") { // xt_multiport, on either backend
		b.add(o.Not, verdict.InPorts(at, p.Ranges))
		return true
	}
	b.header(o.Not, verdict.InPorts(at, p.Ranges))
	if o.Not && (o.Name == "--sport" || o.Name == "--dport") && len(p.Ranges) == 1 && p.Ranges[0].From == p.Ranges[0].To {
		b.negated[at] = negatedPort{len(b.sure), p.Ranges[0].From}
	}
	return true
}

var flagBits = map[string]uint32{"FIN": verdict.TCPFin, "SYN": verdict.TCPSyn, "RST": verdict.TCPRst, "PSH": verdict.TCPPsh, "ACK": verdict.TCPAck, "URG": verdict.TCPUrg, "ALL": 0x3f, "NONE": 0}

func (b *ruleBuilder) flags(o xtables.Option) bool {
	if len(o.Args) != 2 {
		return false
	}
	var v [2]uint32
	for i, list := range o.Args {
		for f := range strings.SplitSeq(list, ",") {
			bit, ok := flagBits[f]
			if !ok {
				return false
			}
			v[i] |= bit
		}
	}
	b.header(o.Not, verdict.Flags(v[0], v[1]))
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
	kind, from, to := uint16(verdict.AnyICMP), uint8(0), uint8(0xff)
	if arg != "any" {
		typ, code, hasCode := strings.Cut(arg, "/")
		t, err := strconv.ParseUint(typ, 10, 8)
		if err != nil {
			return false
		}
		if kind = uint16(t); t == 255 && !six {
			kind = verdict.AnyICMP
		}
		if hasCode {
			n, err := strconv.ParseUint(code, 10, 8)
			if err != nil {
				return false
			}
			from, to = uint8(n), uint8(n)
		}
	}
	b.header(not, verdict.ICMP(kind, from, to))
	return true
}

func (b *ruleBuilder) mark(o xtables.Option, arg string) bool {
	value, mask, ok := maskedNumber(arg)
	if !ok {
		return false
	}
	m := verdict.PacketMark(value, mask)
	for _, module := range b.s.Modules[:min(o.Module, len(b.s.Modules))] {
		switch module {
		case "mark":
			m = verdict.PacketMark(value, mask)
		case "connmark":
			m = verdict.ConnMark(value, mask)
		}
	}
	b.add(o.Not, m)
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

func (b *ruleBuilder) addressRange(o xtables.Option, arg string) bool {
	a, z, ok := nets.ParseRange(arg)
	if !ok || a.Is4() != (b.family == host.IPv4) {
		return false
	}
	b.add(o.Not, verdict.Between(side(o.Name == "--dst-range"), a, z))
	return true
}

func (b *ruleBuilder) addressType(o xtables.Option, arg string) bool {
	for _, other := range b.s.Matches {
		if other.Name == "--limit-iface-in" || other.Name == "--limit-iface-out" {
			return false
		}
	}
	bits := map[string]uint32{"UNSPEC": verdict.TypeUnspec, "UNICAST": verdict.TypeUnicast, "LOCAL": verdict.TypeLocal, "BROADCAST": verdict.TypeBroadcast, "MULTICAST": verdict.TypeMulticast}
	var mask uint32
	for t := range strings.SplitSeq(arg, ",") {
		bit, ok := bits[t]
		if !ok {
			bit = verdict.TypeOther
		}
		mask |= bit
	}
	b.add(o.Not, verdict.AddressType(side(o.Name == "--dst-type"), mask))
	return mask&verdict.TypeOther == 0 || b.family == host.IPv6
}

func (b *ruleBuilder) owner(o xtables.Option, arg string) bool {
	lo, hi, ok := numberRange(strings.Replace(arg, "-", ":", 1), ^uint32(0))
	switch {
	case !ok:
	case o.Name == "--gid-owner":
		b.add(o.Not, verdict.Group(lo, hi))
	default:
		b.add(o.Not, verdict.User(lo, hi))
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
	b.add(not, verdict.MAC(mac))
	return true
}

func (b *ruleBuilder) set(o xtables.Option) bool {
	if len(o.Args) != 2 {
		return false
	}
	var sides []verdict.Side
	for d := range strings.SplitSeq(o.Args[1], ",") {
		sides = append(sides, side(d == "dst"))
	}
	m, ok := verdict.InSet(b.r.Set(o.Args[0]), b.family, sides)
	if ok {
		b.add(o.Not, m)
	}
	return ok
}

// recentOnlySets is whether the rule's -m recent does nothing but note the address.
func (b *ruleBuilder) recentOnlySets() bool {
	for _, o := range b.s.Matches {
		switch o.Name {
		case "--rcheck", "--update", "--remove", "--seconds", "--hitcount", "--reap":
			return false
		}
	}
	return true
}

// ct is the match that the option belongs to: those of one -m are one match.
func (b *ruleBuilder) ct(o xtables.Option) *verdict.CT {
	m := b.cts[o.Module]
	if m == nil {
		m = &verdict.CT{}
		b.cts[o.Module] = m
		b.add(false, verdict.Connection(m))
	}
	return m
}

func stateOption(c *verdict.CT, not bool, arg string) bool {
	for name := range strings.SplitSeq(arg, ",") {
		switch strings.ToUpper(name) {
		case "NEW":
			c.States |= verdict.StateNew
		case "ESTABLISHED":
			c.States |= verdict.StateEstablished
		case "RELATED":
			c.States |= verdict.StateRelated
		case "INVALID":
			c.States |= verdict.StateInvalid
		case "UNTRACKED":
			c.States |= verdict.StateUntracked
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

func statusOption(c *verdict.CT, not bool, arg string) bool {
	bits := map[string]uint32{"NONE": 0, "EXPECTED": host.StatusExpected, "SEEN_REPLY": host.StatusSeenReply, "ASSURED": host.StatusAssured, "CONFIRMED": host.StatusConfirmed}
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

func tupleOption(c *verdict.CT, o xtables.Option, arg string) {
	name := strings.TrimPrefix(o.Name, "--ct")
	m := verdict.TupleMatch{Reply: strings.HasPrefix(name, "repl"), Destination: strings.Contains(name, "dst"), Not: o.Not}
	if strings.HasSuffix(name, "port") {
		lo, hi, ok := numberRange(arg, 65535)
		if !ok || lo > 65535 || hi > 65535 {
			c.Vague = true
			return
		}
		m.Ports = host.PortRange{From: uint16(lo), To: uint16(hi)}
	} else {
		var p xtables.PrefixSet
		if !p.Take(false, arg) {
			c.Vague = true
			return
		}
		m.Network = p.Prefix
	}
	c.Tuples = append(c.Tuples, m)
}
