package suggest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// worked are packets that a rule has tracking do more for than tell states, and
// the hook or chain that it stands in.
type worked struct {
	chain string
	xtables.Packets
}

// work are those of a host's rules, live and saved.
func work(l *host.Live) (out []worked) {
	for _, sets := range [][]host.Ruleset{l.Rulesets, l.SavedRules} {
		for i := range sets {
			for k := range sets[i].Tables {
				for n := range sets[i].Tables[k].Rules {
					r := &sets[i].Tables[k].Rules[n]
					if s := xtables.Parse(r.Words); !xtables.IsOwn(r.Chain) && xtables.WorkOf(s) != "" {
						out = append(out, worked{r.Chain, xtables.PacketsOf(s)})
					}
				}
			}
		}
	}
	for i := range l.NFT {
		for k := range l.NFT[i].Items {
			if item := &l.NFT[i].Items[k]; item.Kind == "rule" && nftables.WorkOf(&l.NFT[i], item) != "" {
				q, hook := nftables.PacketsOf(&l.NFT[i], item)
				out = append(out, worked{strings.ToUpper(hook), q})
			}
		}
	}
	return out
}

// around are ways of notrack around what tracking alone can do, where such rules
// name a protocol, or ports of this host: TCP and UDP but for these, then either
// alone. There are none where most of what is open now would stay in the table:
// it could go on filling.
func around(l *host.Live) (out []way) {
	rules := work(l)
	if len(rules) == 0 {
		return nil
	}
	var parts []declared.Traffic
	var stays []string
	for _, proto := range []uint8{protocol.TCP, protocol.UDP} {
		name := protocol.Name(proto)
		taken, some := portsAtWork(rules, proto)
		t := declared.Traffic{Name: name, Protocol: name, Direction: declared.Both, Families: slices.Clone(host.Families)}
		if some {
			if t.LocalPorts = otherPorts(taken); len(t.LocalPorts) == 0 {
				stays = append(stays, name)
				continue
			}
			for _, r := range taken {
				stays = append(stays, name+"/"+words.Ports(r))
			}
		}
		parts = append(parts, t)
	}
	lists := [][]declared.Traffic{parts}
	if len(parts) == 2 {
		lists = append(lists, parts[:1], parts[1:])
	}
	for _, list := range lists {
		open, leave := leaving(l, list)
		if len(list) == 0 || 2*leave < open || leave == 0 {
			continue
		}
		w := way{notrack: list, stateful: declared.RemoveStateful,
			note: "Around what tracking alone can do here" + suffix(stays) + ".",
			cure: fmt.Sprintf("with notrack around what tracking alone can do here, %d of %s would not stand in the table", leave, words.Plural(open, "connection that is open now", "connections that are open now")),
		}
		out = append(out, variants(w)...)
	}
	return out
}

func suffix(stays []string) string {
	if len(stays) == 0 {
		return ""
	}
	return ", which is for " + strings.Join(stays, ", ")
}

// portsAtWork are the ports of this host that rules about a protocol name, and
// whether there are such rules. All ports are there where one does not say which.
func portsAtWork(rules []worked, proto uint8) (ports []host.PortRange, some bool) {
	all := []host.PortRange{{From: 0, To: 65535}}
	for _, r := range rules {
		if r.Proto != "" && (r.Proto == strconv.Itoa(int(proto))) == r.NotProto {
			continue
		}
		some = true
		own := r.DstPorts
		if r.chain == "OUTPUT" || r.chain == "POSTROUTING" || r.chain == "EGRESS" || len(own.Ranges) == 0 {
			own = r.SrcPorts
		}
		if own.Not || len(own.Ranges) == 0 {
			return all, true
		}
		ports = append(ports, own.Ranges...)
	}
	return ports, some
}

// otherPorts are the ports, from 1 on, that are in none of the ranges.
func otherPorts(taken []host.PortRange) (out []host.PortRange) {
	taken = slices.SortedFunc(slices.Values(taken), func(a, b host.PortRange) int { return int(a.From) - int(b.From) })
	next := 1
	for _, r := range taken {
		if int(r.From) > next {
			out = append(out, host.PortRange{From: uint16(next), To: r.From - 1})
		}
		next = max(next, int(r.To)+1)
	}
	if next <= 65535 {
		out = append(out, host.PortRange{From: uint16(next), To: 65535})
	}
	return out
}

// leaving counts the connections that are in the table, and those of them that
// these notrack blocks take out.
func leaving(l *host.Live, list []declared.Traffic) (open, leave int) {
	if l.Connections == nil {
		return 0, 0
	}
	own := func(f *host.Flow) (port uint16, ok bool) {
		for _, a := range l.Connections.Addresses {
			switch a.Prefix.Addr() {
			case f.Orig.Dst:
				return f.Orig.DstPort, true
			case f.Orig.Src:
				return f.Orig.SrcPort, true
			}
		}
		return 0, false
	}
	for i := range l.Connections.Flows {
		f := &l.Connections.Flows[i]
		open++
		port, ok := own(f)
		if ok && slices.ContainsFunc(list, func(t declared.Traffic) bool {
			n, _ := protocol.Number(t.Protocol)
			return n == f.Protocol && (len(t.LocalPorts) == 0 || host.InRanges(t.LocalPorts, port))
		}) {
			leave++
		}
	}
	return open, leave
}
