package schema

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

var notrackSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
	{Name: "protocol"}, {Name: "local"}, {Name: "remote"}, {Name: "local_port"}, {Name: "remote_port"},
	{Name: "interface"}, {Name: "direction"}, {Name: "families"},
}}

var acceptSchema = &hcl.BodySchema{Attributes: append(slices.Clone(notrackSchema.Attributes), hcl.AttributeSchema{Name: "initiator"})}

// traffic decodes the notrack and accept blocks in their order.
func (d *decoder) traffic(want *declared.Desired, content *hcl.BodyContent) {
	seen := map[string]map[string]hcl.Range{"notrack": {}, "accept": {}}
	for _, b := range content.Blocks {
		if seen[b.Type] == nil {
			continue
		}
		d.diags = append(d.diags, checkLabel(b, seen[b.Type])...)
		t := d.trafficBlock(b, want.Families)
		if b.Type == "notrack" {
			want.Notrack = append(want.Notrack, t)
		} else {
			want.Accept = append(want.Accept, t)
		}
	}
}

// trafficBlock decodes one block. Its families are what its own families
// attribute, those of the conntrack block, its protocol and its addresses
// have in common.
func (d *decoder) trafficBlock(b *hcl.Block, families []host.Family) declared.Traffic {
	shape := notrackSchema
	if b.Type == "accept" {
		shape = acceptSchema
	} else if attrs, _ := b.Body.JustAttributes(); attrs["initiator"] != nil {
		d.errorf(attrs["initiator"].NameRange, "Attribute in the wrong block", "initiator belongs to accept blocks: what is not tracked does not depend on who begins.")
		shape = acceptSchema
	}
	content, diags := bodyContent(b.Body, b.Type, shape)
	d.diags = append(d.diags, diags...)
	attrs := content.Attributes
	t := declared.Traffic{Name: b.Labels[0], Direction: declared.Both, Source: position(b.DefRange)}
	before, unknown := len(d.diags), d.unknown
	d.unknown = nil

	protocol, protocolKnown := d.protocol(attrs["protocol"])
	t.Protocol = protocol.name
	t.Local = d.prefixes(attrs["local"])
	t.Remote = d.prefixes(attrs["remote"])
	t.LocalPorts = d.ports(attrs["local_port"], protocol, protocolKnown)
	t.RemotePorts = d.ports(attrs["remote_port"], protocol, protocolKnown)
	t.Interface = d.iface(attrs["interface"])
	if e, ok := d.value(attrs["direction"]); ok {
		t.Direction, _ = choice(d, e, "direction", []declared.Direction{declared.Both, declared.In, declared.Out, declared.Forward})
	}
	if b.Type == "accept" {
		t.Initiator = d.initiator(attrs["initiator"], &t, protocolKnown)
	}

	own := d.families(attrs["families"])
	t.Families = common(families, own)
	if protocol.family != "" {
		t.Families = common(t.Families, []host.Family{protocol.family})
	}
	t.Families = common(t.Families, familiesOf(t.Local))
	t.Families = common(t.Families, familiesOf(t.Remote))
	if len(t.Families) == 0 && len(d.diags) == before && d.unknown == nil {
		d.errorf(b.DefRange, "No address family left",
			"The conntrack block allows %s, this block %s, its protocol %s, local is %s and remote is %s: no packet can match all of these.",
			familyText(families), familyText(own), familyText(protocolFamilies(protocol)), familyText(familiesOf(t.Local)), familyText(familiesOf(t.Remote)))
	}
	t.Local = simplify(t.Local, t.Families)
	t.Remote = simplify(t.Remote, t.Families)
	if unknown != nil {
		d.unknown = unknown
	}
	return t
}

// initiator decodes who opens a connection. Only TCP says so in its packets.
func (d *decoder) initiator(attr *hcl.Attribute, t *declared.Traffic, protocolKnown bool) declared.Initiator {
	e, ok := d.value(attr)
	if !ok {
		return declared.EitherSide
	}
	side, ok := choice(d, e, "initiator", []declared.Initiator{declared.LocalSide, declared.RemoteSide})
	if !ok {
		return declared.EitherSide
	}
	if protocolKnown && t.Protocol != "tcp" {
		d.errorf(attr.Range, "initiator without tcp", "Only a TCP packet shows who opens the connection: set protocol = \"tcp\", or leave initiator out.")
	}
	if t.Direction == declared.Forward && d.unknown == nil && t.Interface == "" &&
		len(t.Local)+len(t.Remote)+len(t.LocalPorts)+len(t.RemotePorts) == 0 {
		d.errorf(attr.Range, "initiator without sides", "Nothing tells the local from the remote side of routed traffic here: set local, remote, a port or interface.")
	}
	return side
}

// common returns the families in both lists; nil as the second means any.
func common(a, b []host.Family) []host.Family {
	if b == nil {
		return a
	}
	out := []host.Family{}
	for _, f := range a {
		if slices.Contains(b, f) {
			out = append(out, f)
		}
	}
	return out
}

func familyOf(p netip.Prefix) host.Family {
	if p.Addr().Is4() {
		return host.IPv4
	}
	return host.IPv6
}

// familiesOf returns the families that addresses have; nil when any address will do.
func familiesOf(prefixes []netip.Prefix) []host.Family {
	var out []host.Family
	for _, f := range host.Families {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return familyOf(p) == f }) {
			out = append(out, f)
		}
	}
	return out
}

func protocolFamilies(p protocolInfo) []host.Family {
	if p.family == "" {
		return nil
	}
	return []host.Family{p.family}
}

func familyText(families []host.Family) string {
	if families == nil || len(families) == len(host.Families) {
		return "both families"
	}
	names := []string{}
	for _, f := range families {
		names = append(names, string(f))
	}
	return strings.Join(names, " and ") + " only"
}

// simplify drops addresses of other families, and those that a whole family
// (0.0.0.0/0, ::/0) covers. A list that covers all families becomes empty: any.
func simplify(prefixes []netip.Prefix, families []host.Family) []netip.Prefix {
	whole := map[host.Family]bool{}
	for _, p := range prefixes {
		if p.Bits() == 0 {
			whole[familyOf(p)] = true
		}
	}
	var out []netip.Prefix
	narrow := false
	for _, p := range prefixes {
		f := familyOf(p)
		if !slices.Contains(families, f) || whole[f] && p.Bits() > 0 {
			continue
		}
		out = append(out, p)
		narrow = narrow || p.Bits() > 0
	}
	if !narrow {
		return nil
	}
	return out
}

// protocolInfo is what the language knows about a protocol.
type protocolInfo struct {
	name   string // "" any; a number where it has no name here
	ports  bool
	family host.Family // "" when both have it
}

// protocols are the names and numbers of /etc/protocols that filters deal
// with. As there, "ipip" is 94 and the tunnel that Linux calls ipip is "ipencap".
var protocols = map[int]protocolInfo{
	1:   {name: "icmp", family: host.IPv4},
	2:   {name: "igmp", family: host.IPv4},
	4:   {name: "ipencap"},
	6:   {name: "tcp", ports: true},
	17:  {name: "udp", ports: true},
	33:  {name: "dccp", ports: true},
	41:  {name: "ipv6"},
	47:  {name: "gre"},
	50:  {name: "esp"},
	51:  {name: "ah"},
	58:  {name: "ipv6-icmp", family: host.IPv6},
	89:  {name: "ospf"},
	94:  {name: "ipip"},
	103: {name: "pim"},
	112: {name: "vrrp"},
	115: {name: "l2tp"},
	132: {name: "sctp", ports: true},
	136: {name: "udplite", ports: true},
}

// protocol decodes a name or a number. The second result is false while the
// protocol is not known, after an error too.
func (d *decoder) protocol(attr *hcl.Attribute) (protocolInfo, bool) {
	e, ok := d.value(attr)
	if !ok {
		return protocolInfo{}, attr == nil || e.expr != nil && e.val.IsNull()
	}
	number := -1
	if e.val.Type() == cty.String {
		s := e.val.AsString()
		names := []string{"all", "icmpv6"}
		for n, p := range protocols {
			names = append(names, p.name)
			if p.name == s {
				number = n
			}
		}
		switch {
		case s == "all":
			number = 0
		case s == "icmpv6":
			number = 58
		case s != "" && strings.Trim(s, "0123456789") == "":
			e.val = cty.MustParseNumberVal(s)
		case number < 0:
			slices.Sort(names)
			d.badValue(e, "Unknown protocol", "%q is not a protocol that ctplan knows by name.%s Give its number, or one of: %s.", clip(s), didYouMean(s, names), strings.Join(names, ", "))
			return protocolInfo{}, false
		}
	}
	if number < 0 {
		n, ok := d.integer(e, "protocol", 0, math.MaxUint8)
		if !ok {
			return protocolInfo{}, false
		}
		number = int(n)
	}
	if number == 0 {
		return protocolInfo{}, true
	}
	if p, ok := protocols[number]; ok {
		return p, true
	}
	return protocolInfo{name: strconv.Itoa(number)}, true
}

// prefixes decodes addresses and networks, each once, in their order.
func (d *decoder) prefixes(attr *hcl.Attribute) []netip.Prefix {
	elements, ok := d.list(attr, true)
	if ok && len(elements) == 0 {
		d.errorf(attr.Expr.Range(), "No addresses", "This list is empty. Leave %s out for any address.", attr.Name)
	}
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for _, e := range elements {
		if p, ok := d.prefix(e, attr.Name); ok && !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

func (d *decoder) prefix(e element, what string) (netip.Prefix, bool) {
	s, ok := d.text(e, what)
	if !ok {
		return netip.Prefix{}, false
	}
	const bad = "Bad address"
	var p netip.Prefix
	if strings.Contains(s, "/") {
		var err error
		if p, err = netip.ParsePrefix(s); err != nil {
			d.badValue(e, bad, "%q is not a network: write it like 192.0.2.0/24 or 2001:db8::/32.", clip(s))
			return netip.Prefix{}, false
		}
	} else {
		addr, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			d.badValue(e, bad, "%q is not an IP address or a network. Host names are not resolved: rules hold addresses.", clip(s))
			return netip.Prefix{}, false
		case addr.Zone() != "":
			d.badValue(e, bad, "%q has a zone, which rules cannot match: use %q with interface = …", clip(s), addr.WithZone("").String())
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		d.badValue(e, bad, "%q is an IPv4 address in IPv6 clothing, which no packet carries: write %q.", clip(s), p.Addr().Unmap().String())
	case p.Masked() != p:
		d.badValue(e, bad, "%q has bits set behind its mask: the network is %q, the address alone %q.", clip(s), p.Masked().String(), p.Addr().String())
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// ports decodes ports and ranges into ranges that are sorted and do not
// overlap.
func (d *decoder) ports(attr *hcl.Attribute, protocol protocolInfo, protocolKnown bool) []host.PortRange {
	if attr == nil {
		return nil
	}
	elements, ok := d.list(attr, true)
	if ok && len(elements) == 0 {
		d.errorf(attr.Expr.Range(), "No ports", "This list is empty. Leave %s out for any port.", attr.Name)
	}
	if ok && protocolKnown && !protocol.ports {
		if protocol.name == "" {
			d.errorf(attr.Range, "Ports without a protocol", "%s needs a protocol that has ports: tcp, udp, udplite, sctp or dccp.", attr.Name)
		} else {
			d.errorf(attr.Range, "Ports without a protocol", "The protocol %s has no ports; tcp, udp, udplite, sctp and dccp have.", protocol.name)
		}
	}
	var ranges []host.PortRange
	for _, e := range elements {
		if r, ok := d.portRange(e); ok {
			ranges = append(ranges, r)
		}
	}
	slices.SortFunc(ranges, func(a, b host.PortRange) int {
		if a.From != b.From {
			return int(a.From) - int(b.From)
		}
		return int(a.To) - int(b.To)
	})
	var out []host.PortRange
	for _, r := range ranges {
		if n := len(out); n > 0 && r.From <= out[n-1].To {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

func (d *decoder) portRange(e element) (host.PortRange, bool) {
	number := func(val cty.Value) (uint16, bool) {
		n, ok := d.integer(element{val, e.expr}, "A port", 1, math.MaxUint16)
		return uint16(n), ok
	}
	if e.val.Type() != cty.String {
		n, ok := number(e.val)
		return host.PortRange{From: n, To: n}, ok
	}
	s := e.val.AsString()
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	for _, part := range []string{low, high} {
		if part == "" || strings.Trim(part, "0123456789") != "" || len(part) > 10 {
			d.badValue(e, "Bad port", "%q is not a port: write 443, \"1024-65535\", or a list of these.", clip(s))
			return host.PortRange{}, false
		}
	}
	from, ok := number(cty.MustParseNumberVal(low))
	if !ok {
		return host.PortRange{}, false
	}
	to, ok := number(cty.MustParseNumberVal(high))
	if !ok {
		return host.PortRange{}, false
	}
	if from > to {
		d.badValue(e, "Inverted port range", "%q ends before it begins: write \"%d-%d\".", clip(s), to, from)
		return host.PortRange{}, false
	}
	return host.PortRange{From: from, To: to}, true
}

// iface decodes the name of an interface, as iptables and the kernel take it:
// at most 15 bytes (IFNAMSIZ with its NUL), and a + at the end for any ending.
func (d *decoder) iface(attr *hcl.Attribute) string {
	e, ok := d.value(attr)
	if !ok {
		return ""
	}
	s, ok := d.text(e, "interface")
	if !ok {
		return ""
	}
	bad := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("/:\"'`\\!", r)
	})
	stem := strings.TrimSuffix(s, "+")
	switch {
	case len(s) > 15:
		d.badValue(e, "Bad interface name", "%q is %d bytes long: the kernel allows 15.", clip(s), len(s))
	case bad >= 0:
		d.badValue(e, "Bad interface name", "%q has a character at byte %d that no interface name has here: letters, digits and . _ - @ are usual.", clip(s), bad+1)
	case stem == "" || stem == "." || stem == "..":
		d.badValue(e, "Bad interface name", "%q names no interface. Leave interface out for any.", clip(s))
	case strings.Contains(stem, "+"):
		d.badValue(e, "Bad interface name", "In %q the + stands before the end, where it matches only itself.", clip(s))
	case s[0] == '-':
		d.badValue(e, "Bad interface name", "%q begins with a dash, which iptables reads as an option.", clip(s))
	default:
		return s
	}
	return ""
}
