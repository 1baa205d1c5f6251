package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// maxPorts is how many ports one multiport match holds; a range counts as two
// (XT_MULTI_PORTS in linux/netfilter/xt_multiport.h).
const maxPorts = 15

// Render turns the notrack and accept blocks into ctplan's own chains, as they
// should stand. Chains without rules are left out. The order is that of the
// families, then filter before raw, then INPUT, OUTPUT, FORWARD and
// PREROUTING, OUTPUT. A block's rules stand together, in order of the HCL.
//
// Rules are written from the host's point of view: inbound traffic comes from
// the remote side, outbound traffic is its mirror image. Protocol "icmp" means
// each family's own ICMP; "ipv6-icmp" and "icmpv6" exist in IPv6 alone.
//
// On a host that routes, what a block says of this host's traffic matches in
// PREROUTING what is for this host alone: its addresses, broadcasts and
// multicast. What passes on to others, containers' for one, stays tracked.
func Render(d declared.Desired, l host.Live) []declared.Chain {
	var chains []declared.Chain
	for _, f := range host.Families {
		for _, h := range []string{"INPUT", "OUTPUT", "FORWARD"} {
			chains = appendChain(chains, f, "filter", h, d.Accept, false)
		}
		for _, h := range []string{"PREROUTING", "OUTPUT"} {
			chains = appendChain(chains, f, "raw", h, d.Notrack, h == "PREROUTING" && l.Routes(f))
		}
	}
	return chains
}

func appendChain(chains []declared.Chain, f host.Family, table, hook string, blocks []declared.Traffic, passing bool) []declared.Chain {
	c := declared.Chain{Family: f, Table: table, Hook: hook, Name: declared.OwnPrefix + hook}
	for _, t := range blocks {
		own := passing && t.Direction != declared.Forward
		for _, text := range rules(t, f, table, hook, own) {
			words := Words(text)
			c.Rules = append(c.Rules, declared.TargetRule{
				Rule:   host.Rule{Chain: c.Name, Words: words, Text: text},
				Source: t.Source,
				Own:    own,
			})
		}
	}
	if len(c.Rules) == 0 {
		return chains
	}
	return append(chains, c)
}

// flow is one way of a block's traffic through a chain.
type flow struct {
	inbound bool   // from the remote side
	iface   string // "-i", "-o" or "": where the block's interface is matched
}

// flows says which of a block's traffic passes a chain.
func flows(d declared.Direction, hook string) []flow {
	in, out := d == declared.Both || d == declared.In, d == declared.Both || d == declared.Out
	switch {
	case hook == "INPUT" && in:
		return []flow{{inbound: true, iface: "-i"}}
	case hook == "OUTPUT" && out:
		return []flow{{iface: "-o"}}
	case hook == "PREROUTING" && in:
		return []flow{{inbound: true, iface: "-i"}}
	case hook == "PREROUTING" && d == declared.Forward:
		// Where local traffic will leave is not known before routing.
		return []flow{{}, {inbound: true, iface: "-i"}}
	case hook == "FORWARD" && d == declared.Forward:
		return []flow{{iface: "-o"}, {inbound: true, iface: "-i"}}
	}
	return nil
}

// rules renders one block for one chain, without repeats; own: only what is for
// this host itself.
func rules(t declared.Traffic, f host.Family, table, hook string, own bool) []string {
	proto, ok := protocol(t.Protocol, f)
	if !ok || !slices.Contains(t.Families, f) {
		return nil
	}
	local, okLocal := addresses(t.Local, f)
	remote, okRemote := addresses(t.Remote, f)
	if !okLocal || !okRemote {
		return nil
	}
	target := " -j ACCEPT"
	if table == "raw" {
		target = " -j CT --notrack"
	}
	end := " -m comment --comment " + Quote(t.Name) + target

	var out []string
	seen := map[string]bool{}
	for _, w := range flows(t.Direction, hook) {
		src, dst, sports, dports := local, remote, t.LocalPorts, t.RemotePorts
		if w.inbound {
			src, dst, sports, dports = dst, src, dports, sports
		}
		// The side that does not open connections sends no SYN.
		noSyn := table == "filter" && proto == "tcp" &&
			(t.Initiator == declared.LocalSide && w.inbound || t.Initiator == declared.RemoteSide && !w.inbound)
		iface := ""
		if w.iface != "" && t.Interface != "" && t.Interface != "+" {
			iface = " " + w.iface + " " + bare(t.Interface)
		}
		matches := portMatches(proto, sports, dports, noSyn)
		for _, s := range src {
			for _, d := range destinations(dst, f, own) {
				for _, m := range matches {
					text := strings.TrimPrefix(flag(" -s ", s)+flag(" -d ", d.prefix)+iface+flag(" -p ", proto)+m+d.types+end, " ")
					if !seen[text] {
						seen[text] = true
						out = append(out, text)
					}
				}
			}
		}
	}
	return out
}

// destination is what a rule asks of where a packet goes.
type destination struct {
	prefix string // "" any
	types  string // matches on its type, behind those that cost less
}

// destinations are a rule each; own: as far as they are of this host. The types
// are asked of the routes (net/netfilter/xt_addrtype.c): addresses may come and
// go. To IPv6 several types are conditions that must all hold, so multicast has a
// rule of its own.
func destinations(prefixes []string, f host.Family, own bool) []destination {
	const local = " -m addrtype --dst-type LOCAL"
	var out []destination
	for _, p := range prefixes {
		cast := false
		if prefix, err := netip.ParsePrefix(p); err == nil {
			cast = prefix.Addr().IsMulticast()
		}
		switch {
		case !own || cast:
			out = append(out, destination{prefix: p})
		case f == host.IPv4:
			out = append(out, destination{p, local + ",BROADCAST,MULTICAST"})
		default:
			out = append(out, destination{p, local})
			if p == "" {
				out = append(out, destination{prefix: "ff00::/8"})
			}
		}
	}
	return out
}

func flag(name, value string) string {
	if value == "" {
		return ""
	}
	return name + value
}

// bare is a word that iptables-save never quotes, quoted only if it must be.
func bare(word string) string {
	if strings.ContainsAny(word, " \t\"") {
		return Quote(word)
	}
	return word
}

// addresses picks a family's prefixes; "" is any address. It reports false
// when the list names addresses of the other family alone.
func addresses(list []netip.Prefix, f host.Family) ([]string, bool) {
	if len(list) == 0 {
		return []string{""}, true
	}
	var out []string
	for _, p := range list {
		if p.Addr().Is4() != (f == host.IPv4) {
			continue
		}
		text := ""
		if p.Bits() > 0 {
			text = p.Masked().String()
		}
		out = append(out, text)
	}
	return out, len(out) > 0
}

// portMatches returns the matches behind "-p proto" that cover every pair of a
// source and a destination port.
func portMatches(proto string, sports, dports []host.PortRange, noSyn bool) []string {
	var out []string
	for _, s := range portSets(sports) {
		for _, d := range portSets(dports) {
			out = append(out, portMatch(proto, s, d, noSyn))
		}
	}
	return out
}

func portMatch(proto string, sports, dports []host.PortRange, noSyn bool) string {
	// A single port or range is the protocol's own match, more are multiport's.
	// udplite has no match of its own.
	var own, multi string
	add := func(name string, ports []host.PortRange) {
		switch {
		case len(ports) == 0:
		case len(ports) == 1 && proto != "udplite":
			own += " --" + name + "port " + portText(ports[0])
		default:
			list := make([]string, len(ports))
			for i, p := range ports {
				list[i] = portText(p)
			}
			multi += " -m multiport --" + name + "ports " + strings.Join(list, ",")
		}
	}
	add("s", sports)
	add("d", dports)
	if noSyn {
		own += " ! --tcp-flags FIN,SYN,RST,ACK SYN"
	}
	if own != "" {
		own = " -m " + proto + own
	}
	return own + multi
}

// portSets splits a list of ports into what one rule can hold. No ports, or
// all of them, are one empty set: any port.
func portSets(ports []host.PortRange) [][]host.PortRange {
	var sets [][]host.PortRange
	room := 0
	for _, p := range ports {
		cost := 1
		if p.From != p.To {
			cost = 2
		}
		if p.From == 0 && p.To == 65535 {
			return [][]host.PortRange{nil}
		}
		if cost > room {
			sets = append(sets, nil)
			room = maxPorts
		}
		sets[len(sets)-1] = append(sets[len(sets)-1], p)
		room -= cost
	}
	if len(sets) == 0 {
		return [][]host.PortRange{nil}
	}
	return sets
}

func portText(p host.PortRange) string {
	if p.From == p.To {
		return strconv.Itoa(int(p.From))
	}
	return strconv.Itoa(int(p.From)) + ":" + strconv.Itoa(int(p.To))
}
