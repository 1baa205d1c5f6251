package impact

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// exposures tries what the accepts declared for this host let in, or through,
// as somebody who opens a connection, against what is let in today.
func exposures(j *judge.Judge, total *Impact) {
	named := map[string]bool{}
	for _, ch := range j.Desired.ChainsOf(j.Family) {
		if ch.Table != "filter" || ch.Hook == "OUTPUT" {
			continue
		}
		for _, r := range ch.Rules {
			key := ch.Name + " " + r.Text
			if named[key] {
				continue
			}
			named[key] = true
			if x, ok := exposed(j, ch.Hook, xtables.PacketsOf(xtables.Parse(r.Words))); ok {
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
func passages(j *judge.Judge, hook string, q xtables.Packets) (out []passage) {
	if hook == "FORWARD" {
		ends := j.Ends()
		for _, a := range ends {
			for _, b := range ends {
				from, ok1 := j.Remote(q.Src, a)
				to, ok2 := j.Remote(q.Dst, b)
				if ok1 && ok2 && from != to {
					out = append(out, passage{from, to, ""})
				}
			}
		}
		return out
	}
	from, _ := j.Remote(q.Src, j.Stranger())
	for _, to := range j.Doors() {
		if q.Dst.Prefix.IsValid() && q.Dst.Prefix.Contains(to.Prefix.Addr()) == q.Dst.Not || q.In.Name != "" && xtables.InterfaceCovers(q.In.Name, to.Interface) == q.In.Not {
			continue
		}
		out = append(out, passage{from, to.Prefix.Addr(), to.Interface})
	}
	return out
}

// exposed is what an accept for these packets newly lets in at a hook. Each
// range of ports is tried at both its ends.
func exposed(j *judge.Judge, hook string, q xtables.Packets) (Exposure, bool) {
	proto, ok := uint8(protocol.TCP), true
	if q.Proto != "" {
		proto, ok = protocol.Number(q.Proto)
	}
	if !ok || q.NotProto {
		return Exposure{}, false
	}
	var before *verdict.RuleRef
	news := xtables.Packets{Proto: q.Proto, Src: q.Src}
	for _, p := range passages(j, hook, q) {
		for _, sports := range portsToTry(q.SrcPorts, proto, 40000) {
			for _, dports := range portsToTry(q.DstPorts, proto, 9) {
				for _, t := range []host.Tuple{{Src: p.from, Dst: p.to, SrcPort: sports.From, DstPort: dports.From}, {Src: p.from, Dst: p.to, SrcPort: sports.To, DstPort: dports.To}} {
					today, end, ok := firstPacket(j, proto, t, p.in)
					if !ok || today.Verdict != verdict.Dropped || end.Verdict != verdict.Accepted {
						continue
					}
					if before == nil {
						before = today.Rule
					}
					notePorts(&news.SrcPorts, sports, q.SrcPorts)
					notePorts(&news.DstPorts, dports, q.DstPorts)
				}
			}
		}
	}
	if before == nil {
		return Exposure{}, false
	}
	return Exposure{Family: j.Family, Before: before.String(), What: exposes(hook, proto, news)}, true
}

// portsToTry are the ranges of a set, or a port that stands for any.
func portsToTry(s xtables.PortSet, proto uint8, any uint16) []host.PortRange {
	switch {
	case !protocol.CarriesPorts(proto):
		return []host.PortRange{{}}
	case len(s.Ranges) == 0 || s.Not:
		return []host.PortRange{{From: any, To: any}}
	}
	return s.Ranges
}

// notePorts adds a range to a set, unless it stands for any.
func notePorts(s *xtables.PortSet, r host.PortRange, from xtables.PortSet) {
	if slices.Contains(from.Ranges, r) && !from.Not && !slices.Contains(s.Ranges, r) {
		s.Ranges = append(s.Ranges, r)
	}
}

// firstPacket is what becomes of one today and at the end, coming to this host
// through an interface, or through this host where the routes lead: getting in
// is enough.
func firstPacket(j *judge.Judge, proto uint8, t host.Tuple, in string) (today, end verdict.Decision, ok bool) {
	var c judge.Connection
	if in == "" {
		c, ok = j.Routed(proto, t)
	} else {
		c, ok = j.Visit(proto, t, in)
	}
	if !ok {
		return today, end, false
	}
	c.Count = 1
	return j.At(j.Stages[0], &c, false), j.At(j.End(), &c, true), true
}

// looseStates tries strangers against foreign rules that mean untracked
// packets without saying so: one for everything that is ! --ctstate NEW lets
// in whatever leaves tracking.
func looseStates(j *judge.Judge, total *Impact) {
	for _, proto := range []uint8{protocol.TCP, protocol.UDP} {
		for _, to := range j.Doors() {
			today, end, ok := firstPacket(j, proto, host.Tuple{Src: j.Stranger(), Dst: to.Prefix.Addr(), SrcPort: 40000, DstPort: 9}, to.Interface)
			if !ok || today.Verdict != verdict.Dropped || end.Verdict != verdict.Accepted || !end.Untracked || end.Rule == nil || end.Rule.Text == "" || xtables.IsOwn(end.Rule.Chain) {
				continue
			}
			name, _, _ := strings.Cut(judge.ServiceName(proto, judge.HighPorts, judge.In), "/")
			total.Exposed = append(total.Exposed, Exposure{
				Family: j.Family, Rule: end.Rule.String(), Before: today.Rule.String(), Source: j.Desired.Source,
				What: fmt.Sprintf("anybody may now open %s connections to every port of this host: packets that are not tracked are in state UNTRACKED, which the rule does not leave out", name),
			})
			break
		}
	}
}

// exposes says in words what an accept lets in.
func exposes(hook string, proto uint8, q xtables.Packets) string {
	who := "anybody"
	if q.Src.Prefix.IsValid() && q.Src.Prefix.Bits() > 0 && !q.Src.Not {
		who = q.Src.Prefix.String()
	}
	name, _, _ := strings.Cut(strings.TrimSuffix(judge.ServiceName(proto, judge.HighPorts, judge.In), " in"), "/")
	where, to := "", "this host"
	if hook == "FORWARD" {
		where, to = " through this host", "the hosts behind this one"
	}
	const keeps = `; initiator = "local" in the accept block keeps them out`
	switch {
	case len(q.DstPorts.Ranges) > 0:
		text := fmt.Sprintf("%s may now open %s connections%s to %s", who, name, where, portWords(q.DstPorts))
		if len(q.SrcPorts.Ranges) > 0 {
			text += " from source " + portWords(q.SrcPorts)
		}
		return text
	case q.Proto == "":
		return fmt.Sprintf("%s may now open connections to every port of %s, and send every other protocol", who, to)
	case protocol.CarriesPorts(proto):
		text := fmt.Sprintf("%s may now open %s connections to every port of %s", who, name, to)
		if len(q.SrcPorts.Ranges) > 0 {
			text += ", as long as they come from source " + portWords(q.SrcPorts)
		}
		if proto == protocol.TCP && hook == "INPUT" {
			text += keeps
		}
		return text
	}
	return fmt.Sprintf("%s may now send %s to %s that no connection of its own asked for", who, name, to)
}

// portWords are the ports as people write them: "port 22", "ports 22 and 8000-8010".
func portWords(s xtables.PortSet) string {
	var list []string
	for _, r := range s.Ranges {
		list = append(list, words.Ports(r))
	}
	if len(list) == 1 {
		return "port " + list[0]
	}
	return "ports " + strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}
