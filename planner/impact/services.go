package impact

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/judge"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
)

// Anybody is who no network that rules name holds.
const Anybody = "anybody"

// names are sources by the networks that rules name.
func names(from []judge.Somebody, who []int) []string {
	var out []string
	for _, i := range who {
		switch p := from[i].Name; {
		case !p.IsValid():
			out = append(out, Anybody)
		case p.IsSingleIP():
			out = append(out, p.Addr().String())
		default:
			out = append(out, p.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// reached is what somebody gets to: ports of a protocol, from ports, or a
// protocol without them.
type reached struct {
	name        string // of the protocol; "" for all that rules do not name
	ports, from []host.PortRange
}

// reach is what services are together.
func reach(all []judge.Service, which []int) (out []reached) {
	type origin struct {
		proto uint8
		from  string
	}
	var order []origin
	ports, froms := map[origin][]host.PortRange{}, map[origin][]host.PortRange{}
	var bare []reached
	for _, i := range which {
		s := &all[i]
		o := origin{s.Proto, rangeText(s.FromPorts)}
		switch {
		case s.Others:
			bare = append(bare, reached{})
		case s.Ports == nil:
			if r := (reached{name: protocol.Name(s.Proto)}); !slices.ContainsFunc(bare, func(o reached) bool { return o.name == r.name }) {
				bare = append(bare, r)
			}
		case ports[o] == nil:
			order = append(order, o)
			froms[o] = s.FromPorts
			fallthrough
		default:
			ports[o] = append(ports[o], s.Ports...)
		}
	}
	at := map[origin]int{}
	for _, o := range order {
		alike := origin{o.proto, rangeText(ports[o])}
		if n, ok := at[alike]; ok {
			out[n].from = joined(append(out[n].from, froms[o]...))
			continue
		}
		at[alike] = len(out)
		out = append(out, reached{protocol.Name(o.proto), joined(ports[o]), joined(froms[o])})
	}
	for i := range out {
		if rangeText(out[i].from) == everyPort {
			out[i].from = nil // from wherever
		}
	}
	return append(out, bare...)
}

const everyPort = "1-65535"

// list are services by name, for programs.
func list(of []reached) (out []string) {
	for _, r := range of {
		name := words.Or(r.name, "others")
		from := ""
		if len(r.from) > 0 {
			from = " from " + rangeText(r.from)
		}
		if r.ports == nil {
			out = append(out, name)
		}
		for _, p := range r.ports {
			out = append(out, name+"/"+words.Ports(p)+from)
		}
	}
	return out
}

// maxRanges is how many ranges of ports a sentence names.
const maxRanges = 10

// reachWords are the same in words.
func reachWords(of []reached) string {
	var out []string
	for _, r := range of {
		text := words.Or(r.name, "every other protocol")
		if r.name == "icmp" || r.name == "ipv6-icmp" {
			text = "ping (" + r.name + ")"
		}
		switch but := without(r.ports); {
		case r.ports == nil:
		case len(but) == 0:
			text = "every port of " + text
		case len(but) < len(r.ports):
			text = "every port of " + text + " but " + portWords(but)
		default:
			text += "/" + portWords(r.ports)
		}
		if len(r.from) > 0 {
			text += " from source port " + portWords(r.from)
		}
		out = append(out, text)
	}
	return and(out)
}

// portWords are ranges of ports as people write them: "22, 80 and 8000-8010".
func portWords(ranges []host.PortRange) string {
	var out []string
	for _, r := range ranges[:min(len(ranges), maxRanges)] {
		out = append(out, words.Ports(r))
	}
	if n := len(ranges) - maxRanges; n > 0 {
		out = append(out, fmt.Sprintf("%d more", n))
	}
	return and(out)
}

func and(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}

// without are the ports that are in none of the ranges, which stand in order.
func without(ranges []host.PortRange) (out []host.PortRange) {
	from := 1
	for _, r := range ranges {
		if int(r.From) > from {
			out = append(out, host.PortRange{From: uint16(from), To: r.From - 1})
		}
		from = int(r.To) + 1
	}
	if from <= 65535 {
		out = append(out, host.PortRange{From: uint16(from), To: 65535})
	}
	return out
}

// joined are ranges in order, those that touch as one.
func joined(list []host.PortRange) (out []host.PortRange) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b host.PortRange) int { return cmp.Compare(a.From, b.From) })
	for _, r := range list {
		if n := len(out); n > 0 && int(r.From) <= int(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

func rangeText(list []host.PortRange) string {
	var out []string
	for _, r := range joined(list) {
		out = append(out, words.Ports(r))
	}
	return strings.Join(out, ",")
}
