package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// exposures tries what the accepts declared for this host let in, or through,
// as somebody who opens a connection, against what is let in today.
func exposures(j *judge, total *Impact) {
	named := map[string]bool{}
	for _, ch := range j.d.ChainsOf(j.family) {
		if ch.Table != "filter" || ch.Hook == "OUTPUT" {
			continue
		}
		for _, r := range ch.Rules {
			key := ch.Name + " " + r.Text
			if named[key] {
				continue
			}
			named[key] = true
			if x, ok := exposed(j, ch.Hook, packetsOf(parseSpec(r.Words))); ok {
				x.Rule, x.Source = "-A "+ch.Name+" "+r.Text, r.Source
				total.Exposed = append(total.Exposed, x)
			}
		}
	}
}

// passage is a way for a first packet to come to this host, or through it.
type passage struct {
	from, to netip.Addr
	in       string // "": where the routes lead
}

// passages are those that packets of q may take at a hook.
func passages(j *judge, hook string, q packets) (out []passage) {
	if hook == "FORWARD" {
		ends := j.ends()
		for _, a := range ends {
			for _, b := range ends {
				from, ok1 := j.remote(q.src, a)
				to, ok2 := j.remote(q.dst, b)
				if ok1 && ok2 && from != to {
					out = append(out, passage{from, to, ""})
				}
			}
		}
		return out
	}
	from, _ := j.remote(q.src, j.stranger())
	for _, to := range j.doors() {
		if q.dst.prefix.IsValid() && q.dst.prefix.Contains(to.Prefix.Addr()) == q.dst.not || q.in.name != "" && ifaceCovers(q.in.name, to.Interface) == q.in.not {
			continue
		}
		out = append(out, passage{from, to.Prefix.Addr(), to.Interface})
	}
	return out
}

// exposed is what an accept for these packets newly lets in at a hook. Each
// range of ports is tried at both its ends.
func exposed(j *judge, hook string, q packets) (Exposure, bool) {
	proto, ok := uint8(protoTCP), true
	if q.proto != "" {
		proto, ok = ProtocolNumber(q.proto)
	}
	if !ok || q.notProto {
		return Exposure{}, false
	}
	var before *RuleRef
	news := packets{proto: q.proto, src: q.src}
	for _, p := range passages(j, hook, q) {
		for _, sports := range portsToTry(q.sports, proto, 40000) {
			for _, dports := range portsToTry(q.dports, proto, 9) {
				for _, t := range []Tuple{{p.from, p.to, sports.From, dports.From}, {p.from, p.to, sports.To, dports.To}} {
					today, end, ok := firstPacket(j, proto, t, p.in)
					if !ok || today.Verdict != Dropped || end.Verdict != Accepted {
						continue
					}
					if before == nil {
						before = today.Rule
					}
					notePorts(&news.sports, sports, q.sports)
					notePorts(&news.dports, dports, q.dports)
				}
			}
		}
	}
	if before == nil {
		return Exposure{}, false
	}
	return Exposure{Family: j.family, Before: before.String(), What: exposes(hook, proto, news)}, true
}

// portsToTry are the ranges of a set, or a port that stands for any.
func portsToTry(s portSet, proto uint8, any uint16) []PortRange {
	switch {
	case !carriesPorts(proto):
		return []PortRange{{}}
	case len(s.ranges) == 0 || s.not:
		return []PortRange{{any, any}}
	}
	return s.ranges
}

// notePorts adds a range to a set, unless it stands for any.
func notePorts(s *portSet, r PortRange, from portSet) {
	if slices.Contains(from.ranges, r) && !from.not && !slices.Contains(s.ranges, r) {
		s.ranges = append(s.ranges, r)
	}
}

// firstPacket is what becomes of one today and at the end, coming to this host
// through an interface, or through this host where the routes lead: getting in
// is enough.
func firstPacket(j *judge, proto uint8, t Tuple, in string) (today, end Decision, ok bool) {
	var c connection
	if in == "" {
		c, ok = j.routed(proto, t)
	} else {
		c, ok = j.visit(proto, t, in)
	}
	if !ok {
		return today, end, false
	}
	c.n = 1
	return j.at(j.stages[0], &c, false), j.at(j.end(), &c, true), true
}

// looseStates tries strangers against foreign rules that mean untracked
// packets without saying so: one for everything that is ! --ctstate NEW lets
// in whatever leaves tracking.
func looseStates(j *judge, total *Impact) {
	for _, proto := range []uint8{protoTCP, protoUDP} {
		for _, to := range j.doors() {
			today, end, ok := firstPacket(j, proto, Tuple{j.stranger(), to.Prefix.Addr(), 40000, 9}, to.Interface)
			if !ok || today.Verdict != Dropped || end.Verdict != Accepted || !end.Untracked || end.Rule == nil || end.Rule.Text == "" || isOwn(end.Rule.Chain) {
				continue
			}
			name, _, _ := strings.Cut(service(proto, highPorts, wayIn), "/")
			total.Exposed = append(total.Exposed, Exposure{
				Family: j.family, Rule: end.Rule.String(), Before: today.Rule.String(), Source: j.d.Source,
				What: fmt.Sprintf("anybody may now open %s connections to every port of this host: packets that are not tracked are in state UNTRACKED, which the rule does not leave out", name),
			})
			break
		}
	}
}

// exposes says in words what an accept lets in.
func exposes(hook string, proto uint8, q packets) string {
	who := "anybody"
	if q.src.prefix.IsValid() && q.src.prefix.Bits() > 0 && !q.src.not {
		who = q.src.prefix.String()
	}
	name, _, _ := strings.Cut(strings.TrimSuffix(service(proto, highPorts, wayIn), " in"), "/")
	where, to := "", "this host"
	if hook == "FORWARD" {
		where, to = " through this host", "the hosts behind this one"
	}
	const keeps = `; initiator = "local" in the accept block keeps them out`
	switch {
	case len(q.dports.ranges) > 0:
		text := fmt.Sprintf("%s may now open %s connections%s to %s", who, name, where, portWords(q.dports))
		if len(q.sports.ranges) > 0 {
			text += " from source " + portWords(q.sports)
		}
		return text
	case q.proto == "":
		return fmt.Sprintf("%s may now open connections to every port of %s, and send every other protocol", who, to)
	case carriesPorts(proto):
		text := fmt.Sprintf("%s may now open %s connections to every port of %s", who, name, to)
		if len(q.sports.ranges) > 0 {
			text += ", as long as they come from source " + portWords(q.sports)
		}
		if proto == protoTCP && hook == "INPUT" {
			text += keeps
		}
		return text
	}
	return fmt.Sprintf("%s may now send %s to %s that no connection of its own asked for", who, name, to)
}

// portWords are the ports as people write them: "port 22", "ports 22 and 8000-8010".
func portWords(s portSet) string {
	var list []string
	for _, r := range s.ranges {
		list = append(list, rangeText(r))
	}
	if len(list) == 1 {
		return "port " + list[0]
	}
	return "ports " + strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}
